#!/usr/bin/env python3
"""The explorer in a real browser: a query and a subscription from the page that the server gives,
opened by the address with the token that the first start prints. Nothing may be asked for elsewhere,
refused by the page's policy, or complained about in the console.

  tests/browser/explorer.py target/debug/gennaker [directory for screenshots]

Needs chromium and chromedriver.
"""

import base64
import json
import os
import pathlib
import shutil
import subprocess
import sys
import tempfile
import time
import urllib.request

WITHIN_S = 30


def wait(what, look):
    """Looks until there is something, or fails after a while."""
    until = time.monotonic() + WITHIN_S
    while True:
        found = look()
        if found:
            return found
        if time.monotonic() > until:
            sys.exit(f"{what}: not within {WITHIN_S} s")
        time.sleep(0.05)


def post(url, body, headers=None):
    data = json.dumps(body).encode()
    request = urllib.request.Request(url, data, {"content-type": "application/json", **(headers or {})})
    with urllib.request.urlopen(request, timeout=WITHIN_S) as answer:
        return json.load(answer)


class Browser:
    """Chromium, driven by the WebDriver protocol."""

    def __init__(self, scratch):
        port = "9515"
        log = open(scratch / "chromedriver.log", "wb")
        self.driver = subprocess.Popen(["chromedriver", f"--port={port}"], stdout=log, stderr=log)
        self.base = f"http://127.0.0.1:{port}"
        wait("chromedriver", self.answers)
        flags = [
            "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
            "--disable-background-networking", "--disable-component-update", "--disable-sync",
            "--disable-dev-shm-usage", "--window-size=1400,900", f"--user-data-dir={scratch / 'profile'}",
        ]
        wanted = {
            "browserName": "chrome",
            "goog:chromeOptions": {"args": flags},
            "goog:loggingPrefs": {"browser": "ALL", "performance": "ALL"},
        }
        made = post(f"{self.base}/session", {"capabilities": {"alwaysMatch": wanted}})
        self.session = f"{self.base}/session/{made['value']['sessionId']}"
        # What the browser asks for on its own first page is no business of ours.
        self.open("about:blank")
        for kind in ("browser", "performance"):
            self.log(kind)

    def answers(self):
        try:
            with urllib.request.urlopen(f"{self.base}/status", timeout=5) as answer:
                return json.load(answer)["value"]["ready"]
        except OSError:
            return False

    def open(self, url):
        post(f"{self.session}/url", {"url": url})

    def run(self, script, *arguments):
        return post(f"{self.session}/execute/sync", {"script": script, "args": list(arguments)})["value"]

    def log(self, kind):
        return post(f"{self.session}/se/log", {"type": kind})["value"]

    def screenshot(self, path):
        with urllib.request.urlopen(f"{self.session}/screenshot", timeout=WITHIN_S) as answer:
            path.write_bytes(base64.b64decode(json.load(answer)["value"]))

    def end(self):
        try:
            request = urllib.request.Request(self.session, method="DELETE")
            urllib.request.urlopen(request, timeout=10).close()
        except OSError:
            pass
        self.driver.terminate()
        self.driver.wait(10)


SHOWN = "return document.querySelector('.result-window .CodeMirror')?.CodeMirror.getValue() ?? ''"


def ask(browser, document, says, shots, name):
    """Puts a document into the editor, runs it, and waits for a result that says something."""
    browser.run("document.querySelector('.graphiql-query-editor .CodeMirror').CodeMirror.setValue(arguments[0])", document)
    # The welcome text has two operations, for which the button is a menu until the editor has settled.
    wait("a button for one operation", lambda: browser.run(
        "const button = document.querySelector('.graphiql-execute-button');"
        "return !button.hasAttribute('aria-haspopup') && (button.click(), true)"))
    try:
        wait(f"`{says}` in the result of {name}", lambda: says in browser.run(SHOWN))
    finally:
        if shots:
            browser.screenshot(shots / f"{name}.png")


def faults(browser, origin):
    """What a page must not do: complain, ask elsewhere, or get refusals."""
    found = [entry for entry in browser.log("browser") if entry["level"] in ("SEVERE", "WARNING")]
    for entry in browser.log("performance"):
        message = json.loads(entry["message"])["message"]
        kind, given = message["method"], message["params"]
        if kind == "Network.requestWillBeSent":
            url = given["request"]["url"]
            if not url.startswith((origin + "/", "data:", "blob:" + origin)):
                found.append(f"asked elsewhere: {url}")
        elif kind == "Network.responseReceived" and given["response"]["status"] >= 400:
            found.append(f"{given['response']['status']}: {given['response']['url']}")
        elif kind == "Network.loadingFailed" and not given.get("canceled"):
            found.append(f"failed: {given}")
    return found


def main():
    binary = pathlib.Path(sys.argv[1]).resolve()
    shots = pathlib.Path(sys.argv[2]) if len(sys.argv) > 2 else None
    scratch = pathlib.Path(tempfile.mkdtemp(prefix="gennaker-browser-"))
    environment = {name: value for name, value in os.environ.items() if not name.startswith("GENNAKER_")}
    environment["GENNAKER_DATA_DIR"] = str(scratch / "data")
    environment.pop("DATABASE_URL", None)
    environment.pop("GENNAKER_DATABASE_URL", None)
    server = subprocess.Popen(
        [binary, "serve", "--listen", "127.0.0.1:0"],
        stdout=subprocess.PIPE, stderr=open(scratch / "server.log", "wb"), env=environment, text=True,
    )
    browser = None
    try:
        address = next(line.split()[-1] for line in server.stdout if "#token=" in line)
        origin, token = address.split("/#token=")

        def graphql(document, **variables):
            answer = post(f"{origin}/graphql", {"query": document, "variables": variables},
                          {"authorization": f"Bearer {token}"})
            if "errors" in answer:
                sys.exit(f"{document}: {answer['errors']}")
            return answer["data"]

        graphql('mutation { createApplication(input: {name: "shop", description: "The shop"}) { userErrors { message } } }')
        graphql('mutation { savePipeline(input: {application: {name: "shop"}, name: "breathe", stages: ['
                '{key: "in", kind: "wait", config: {seconds: 2}}, '
                '{key: "out", kind: "wait", requires: ["in"], config: {seconds: 2}}]}) { userErrors { message } } }')
        browser = Browser(scratch)
        browser.open(address)
        wait("the explorer", lambda: browser.run("return !!document.querySelector('.graphiql-query-editor .CodeMirror')"))
        hash_left = browser.run("return location.href")
        if "#" in hash_left or token in hash_left:
            sys.exit("the token stays in the address bar")
        wait("the schema", lambda: browser.run(
            "return !!document.querySelector('.graphiql-query-editor .CodeMirror').CodeMirror.options.lint?.schema"))
        ask(browser, "{ viewer { name } applications(first: 5) { nodes { name description } } }", '"The shop"', shots, "query")
        started = graphql('mutation { startPipeline(input: {pipeline: {name: {application: "shop", name: "breathe"}}}) '
                          "{ execution { id } userErrors { message } } }")
        execution = started["startPipeline"]["execution"]["id"]
        document = (
            "subscription { executionEvents(scope: {execution: {id: \"%s\"}}) { __typename occurredAt execution { status }"
            " ... on StageChanged { stage { key status } } } }" % execution
        )
        ask(browser, document, "StageChanged", shots, "subscription")
        wait("the end of the execution", lambda: '"SUCCEEDED"' in browser.run(SHOWN))
        if shots:
            browser.screenshot(shots / "end.png")
        # The documentation of the schema, as people look at it.
        browser.run("document.querySelector('.graphiql-sidebar button')?.click()")
        wait("the documentation", lambda: browser.run("return !!document.querySelector('.graphiql-doc-explorer')"))
        if shots:
            browser.screenshot(shots / "documentation.png")
        found = faults(browser, origin)
        for fault in found:
            print(f"fault: {fault}", file=sys.stderr)
        if found:
            sys.exit(1)
        # A token that is none is asked for again, and said to be wrong.
        browser.open("about:blank")
        browser.open(f"{origin}/#token=gnk_wrong")
        wait("the question for a token", lambda: browser.run("return !!document.querySelector('form.note .wrong')"))
        if shots:
            browser.screenshot(shots / "wrong-token.png")
        print("the explorer works in a browser")
    finally:
        if browser:
            browser.end()
        server.terminate()
        server.wait(60)
        subprocess.run([binary, "host", "stop", "--instances", "--dir", scratch / "data" / "host"],
                       env=environment, stdout=subprocess.DEVNULL, check=False)
        shutil.rmtree(scratch, ignore_errors=True)


if __name__ == "__main__":
    main()
