#!/usr/bin/env python3
"""Prints what happens to one execution, as it happens, and ends when it is over.

    GENNAKER_TOKEN=gnk_… ./live_feed.py http://127.0.0.1:7777 hello "deploy hello" 3

Server-sent events, standard library only. When the connection breaks, it goes on behind the last
event it has seen: the cursor is the event's `id`.
"""

import json
import os
import sys
import time
import urllib.error
import urllib.request

FEED = """
subscription Feed($execution: ExecutionNumber!, $after: String) {
  executionEvents(scope: { execution: { number: $execution } }, after: $after) {
    __typename
    cursor
    occurredAt
    execution { name number status }
    ... on ExecutionSnapshot { execution { stages { name status progress { message } } } }
    ... on StageChanged { stage { name status progress { message } } }
  }
}"""


def post(url, token, document, variables, accept):
    body = json.dumps({"query": document, "variables": variables}).encode()
    headers = {"Content-Type": "application/json", "Accept": accept, "Authorization": f"Bearer {token}"}
    return urllib.request.urlopen(urllib.request.Request(f"{url}/graphql", body, headers), timeout=60)


def events(answer):
    """Yields (event, data) of a stream of server-sent events."""
    name, data = "message", []
    for line in answer:
        line = line.decode().rstrip("\n").rstrip("\r")
        if not line:
            if data or name != "message":
                yield name, "\n".join(data)
            name, data = "message", []
        elif line.startswith("event:"):
            name = line[6:].strip()
        elif line.startswith("data:"):
            data.append(line[5:].strip())


def show(event):
    execution = event["execution"]
    stages = [event["stage"]] if "stage" in event else execution.get("stages", [])
    for stage in stages:
        progress = (stage.get("progress") or {}).get("message") or ""
        print(f"{event['occurredAt']}  {stage['name']}: {stage['status']} {progress}".rstrip(), flush=True)
    if "stage" not in event:
        print(f"{event['occurredAt']}  {execution['name']} #{execution['number']}: {execution['status']}", flush=True)


def main():
    if len(sys.argv) != 5:
        sys.exit(__doc__)
    url, application, pipeline, number = sys.argv[1].rstrip("/"), sys.argv[2], sys.argv[3], int(sys.argv[4])
    token = os.environ.get("GENNAKER_TOKEN") or sys.exit("set GENNAKER_TOKEN")
    execution = {"application": application, "pipeline": pipeline, "number": number}
    after = None
    while True:
        try:
            with post(url, token, FEED, {"execution": execution, "after": after}, "text/event-stream") as answer:
                for name, data in events(answer):
                    if name == "complete":
                        return
                    if name == "next":
                        result = json.loads(data)
                        if result.get("errors"):
                            sys.exit(result["errors"][0]["message"])
                        event = result["data"]["executionEvents"]
                        after = event["cursor"]
                        show(event)
        except urllib.error.HTTPError as error:
            sys.exit(f"refused: {error.read().decode()}")
        except OSError:
            pass
        time.sleep(1)


if __name__ == "__main__":
    main()
