// The explorer's own code: takes the token from the address, and gives GraphiQL a fetcher that
// asks over HTTP and follows subscriptions over a WebSocket (graphql-transport-ws).
"use strict";

const KEY = "gennaker.token";
const place = document.getElementById("explorer");

// The token comes in the fragment, which is never sent; it leaves the address bar at once and
// stays in this tab only.
function takeToken() {
  const given = new URLSearchParams(location.hash.slice(1)).get("token");
  if (given) {
    sessionStorage.setItem(KEY, given);
    history.replaceState(null, "", location.pathname + location.search);
  }
  return given || sessionStorage.getItem(KEY);
}

function askForToken(wrong) {
  const form = document.createElement("form");
  form.className = "note";
  const say = (tag, text, name) => {
    const element = document.createElement(tag);
    element.textContent = text;
    if (name) element.className = name;
    form.append(element);
    return element;
  };
  say("p", "Every request to this server needs a token. Make one with `gennaker token create`, or open the address that the server printed when it started.");
  if (wrong) say("p", "The server did not accept that token.", "wrong");
  const input = say("input", "");
  input.type = "password";
  input.placeholder = "gnk_…";
  input.autocomplete = "off";
  say("button", "Open");
  form.addEventListener("submit", (event) => {
    event.preventDefault();
    sessionStorage.setItem(KEY, input.value.trim());
    start();
  });
  place.replaceChildren(form);
  input.focus();
}

async function ask(token, params) {
  const response = await fetch("/graphql", {
    method: "POST",
    headers: {
      "content-type": "application/json",
      accept: "application/graphql-response+json, application/json;q=0.9",
      authorization: "Bearer " + token,
    },
    body: JSON.stringify(params),
  });
  return { status: response.status, result: await response.json() };
}

// One connection for all subscriptions of this page, opened when one is wanted.
class Socket {
  constructor(token) {
    this.token = token;
    this.operations = new Map();
    this.next = 1;
  }

  open() {
    this.opened ??= new Promise((resolve, reject) => {
      const address = location.origin.replace(/^http/, "ws") + "/graphql/ws";
      const socket = new WebSocket(address, "graphql-transport-ws");
      const send = (message) => socket.send(JSON.stringify(message));
      socket.onopen = () =>
        send({ type: "connection_init", payload: { authorization: "Bearer " + this.token } });
      socket.onmessage = ({ data }) => {
        const message = JSON.parse(data);
        const operation = this.operations.get(message.id);
        if (message.type === "connection_ack") resolve(send);
        else if (message.type === "ping") send({ type: "pong" });
        else if (message.type === "next") operation?.push(message.payload);
        else if (message.type === "error") operation?.fail({ errors: message.payload });
        else if (message.type === "complete") operation?.end();
      };
      socket.onclose = (event) => {
        const error = new Error(`The connection was closed: ${event.code} ${event.reason}`);
        reject(error);
        this.opened = undefined;
        for (const operation of [...this.operations.values()]) operation.fail(error);
      };
    });
    return this.opened;
  }

  // The results of a subscription, to be read with `for await`.
  subscribe(payload) {
    const id = String(this.next++);
    const results = [];
    let wake = () => {};
    let over = false;
    let failure;
    const finish = (error) => {
      this.operations.delete(id);
      over = true;
      failure = error;
      wake();
    };
    const operation = {
      push: (result) => (results.push(result), wake()),
      fail: (error) => finish(error),
      end: () => finish(),
    };
    this.operations.set(id, operation);
    this.open().then((send) => !over && send({ type: "subscribe", id, payload }), finish);
    return {
      [Symbol.asyncIterator]() {
        return this;
      },
      next: async () => {
        while (!results.length && !over) await new Promise((resolve) => (wake = resolve));
        if (results.length) return { done: false, value: results.shift() };
        const error = failure;
        failure = undefined;
        if (error) throw error;
        return { done: true, value: undefined };
      },
      return: async () => {
        if (!over) {
          finish();
          (await this.open())({ type: "complete", id });
        }
        return { done: true, value: undefined };
      },
    };
  }
}

// What sort of operation would run, by the text itself: what the editor says of it is a moment old,
// and who types fast would get the answer to another question.
function isSubscription(text, name) {
  let depth = 0;
  let expectsName = false;
  let inFragment = false;
  const operations = [];
  for (const [token] of text.matchAll(/"""[^]*?"""|"(?:\\.|[^"\\])*"|#.*|[{}()]|[_A-Za-z]\w*/g)) {
    if (token === "{" || token === "(") {
      if (token === "{" && depth === 0) {
        if (!inFragment && !operations.length) operations.push({ kind: "query" });
        inFragment = false;
      }
      depth += 1;
      expectsName = false;
    } else if (token === "}" || token === ")") {
      depth -= 1;
    } else if (depth === 0 && expectsName) {
      operations.at(-1).name = token;
      expectsName = false;
    } else if (depth === 0 && token === "fragment") {
      inFragment = true;
    } else if (depth === 0 && ["query", "mutation", "subscription"].includes(token)) {
      operations.push({ kind: token });
      expectsName = true;
    }
  }
  const chosen = name ? operations.find((one) => one.name === name) : operations[0];
  return chosen?.kind === "subscription";
}

function fetcher(token) {
  const socket = new Socket(token);
  return (params) => {
    if (isSubscription(params.query, params.operationName)) return socket.subscribe(params);
    return ask(token, params).then(({ result }) => result);
  };
}

const WELCOME = `# Gennaker. Ctrl-Enter runs the operation under the cursor; the book on the left has the schema.
query Overview {
  viewer { name roles }
  applications { nodes { name pipelines { nodes { name } } } }
  executions(first: 5) { nodes { id number name status } }
}

# Follow an execution: put its id here.
subscription Follow {
  executionEvents(scope: { execution: { id: "…" } }) {
    __typename
    cursor
    ... on ExecutionSnapshot { execution { status stages { key status } } }
    ... on StageChanged { stage { key status progress { message } } }
    ... on ExecutionChanged { execution { status } }
  }
}
`;

async function start() {
  const token = takeToken();
  if (!token) return askForToken(false);
  const { status } = await ask(token, { query: "{ viewer { name } }" });
  if (status === 401) {
    sessionStorage.removeItem(KEY);
    return askForToken(true);
  }
  const given = new URLSearchParams(location.search);
  place.replaceChildren();
  ReactDOM.createRoot(place).render(
    React.createElement(GraphiQL, {
      fetcher: fetcher(token),
      defaultQuery: WELCOME,
      query: given.get("query") ?? undefined,
      variables: given.get("variables") ?? undefined,
      shouldPersistHeaders: false,
      isHeadersEditorEnabled: false,
    }),
  );
}

addEventListener("hashchange", () => location.hash.includes("token=") && takeToken() && location.reload());
start().catch((error) => {
  place.textContent = "The server cannot be reached: " + error.message;
});
