#!/usr/bin/env python3
"""What the units promise, tried under a real systemd: the one task of the machine that systemd.sh
starts. It runs twice, with a reboot between, and turns the machine off at the end.
"""

import http.client
import json
import os
import pathlib
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
import traceback
import urllib.error
import urllib.request

DRILL = pathlib.Path("/drill")
BINARY = "/usr/local/bin/gennaker"
BUILDS = pathlib.Path("/srv/builds")
STATE = pathlib.Path("/var/lib/drill")
SETTINGS = pathlib.Path("/etc/gennaker/gennaker.toml")
# The machine may be an emulated one.
WITHIN_S = 300

# The application: what it is asked to do tries its limits.
APP = """
import http.server, os, subprocess, sys
class App(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        said = sys.argv[1]
        if self.path == "/eat":
            said = str(len(bytearray(os.urandom(1 << 20) * 512)))
        if self.path == "/fork":
            kept = []
            try:
                while len(kept) < 50:
                    kept.append(subprocess.Popen(["sleep", "600"]))
            except OSError as error:
                said = f"{len(kept)} {error}"
            for child in kept:
                child.kill()
                child.wait()
        if self.path == "/burn":
            subprocess.Popen([sys.executable, "-c", "while True: pass"])
        self.send_response(200)
        self.end_headers()
        self.wfile.write(said.encode())
    def log_message(self, *_):
        print("asked for", self.path, flush=True)
http.server.HTTPServer(("127.0.0.1", int(os.environ["PORT"])), App).serve_forever()
"""

SHOP = """
kind: Application
name: shop
---
kind: Application
name: small
---
kind: SecurityGroup
name: shop
inbound: [{ cidr: 127.0.0.0/8, portFrom: 8080, portTo: 8080 }]
---
kind: LoadBalancer
name: shop
listeners: [{ port: 8080 }]
healthCheck: { protocol: HTTP, path: /, timeout: PT10S }
securityGroups: [shop]
---
kind: Pipeline
application: shop
name: deploy
parameters: [{ name: version }]
stages:
  - key: deploy
    kind: deploy
    config:
      clusters:
        - strategy: { kind: redBlack }
          capacity: { min: 2, desired: 2, max: 2 }
          loadBalancers: [shop]
          securityGroups: [shop]
          healthCheck: { protocol: http, path: /, timeoutMs: 10000, intervalMs: 1000 }
          launch:
            artifact: { path: /srv/builds/app.py }
            command: [python3, ./app.py, "${ parameters.version }"]
---
kind: Pipeline
application: small
name: deploy
parameters: [{ name: user }]
stages:
  - key: deploy
    kind: deploy
    config:
      clusters:
        - strategy: { kind: redBlack }
          capacity: { min: 1, desired: 1, max: 1 }
          launch:
            artifact: { path: /srv/builds/app.py }
            command: [python3, ./app.py, small]
            runAs: "${ parameters.user }"
            limits: { memoryBytes: 134217728, cpuMillis: 300, processes: 10, openFiles: 200 }
"""


def say(text):
    print(f"drill: {text}", flush=True)


def run(*command, ok=True, **more):
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False, **more)
    if ok and done.returncode != 0:
        raise AssertionError(f"{' '.join(map(str, command))} ended with {done.returncode}: {done.stdout}")
    return done.stdout.strip()


def until(what, look, within_s=WITHIN_S):
    """Looks until there is something."""
    end, last = time.monotonic() + within_s, None
    while time.monotonic() < end:
        try:
            found = look()
            if found:
                return found
        except (OSError, http.client.HTTPException, AssertionError, LookupError, StopIteration, ValueError) as error:
            last = error
        time.sleep(0.2)
    raise AssertionError(f"{what}: not within {within_s} s (last: {last!r})")


def gennaker(*args, **more):
    return run(BINARY, *args, env={**os.environ, "GENNAKER_TOKEN": (STATE / "token").read_text()}, **more)


def as_service(*args, **more):
    return run("runuser", "-u", "gennaker", "--", *args, cwd="/", **more)


def ask(query, **variables):
    body = json.dumps({"query": query, "variables": variables}).encode()
    headers = {"content-type": "application/json", "authorization": f"Bearer {(STATE / 'token').read_text()}"}
    request = urllib.request.Request("http://127.0.0.1:7777/graphql", body, headers)
    with urllib.request.urlopen(request, timeout=60) as answer:
        said = json.load(answer)
    assert not said.get("errors"), said
    return said["data"]


def get(url):
    with urllib.request.urlopen(url, timeout=60) as answer:
        return answer.read().decode()


def status_of(url):
    try:
        with urllib.request.urlopen(url, timeout=60) as answer:
            return answer.status
    except urllib.error.HTTPError as error:
        return error.code


INSTANCES = """{ serverGroups { nodes { name isEnabled limitsEnforcedBy problem
  instances { name state pid port restarts lastExit } } } }"""


def group(name):
    return next(each for each in ask(INSTANCES)["serverGroups"]["nodes"] if each["name"] == name)


def up(name, count):
    """The group, once so many instances are up and say where they listen."""
    def look():
        found = group(name)
        return found if [each["state"] for each in found["instances"]] == ["UP"] * count else None
    return until(f"{count} healthy of {name}", look)


def pids(name="shop-v001", count=2):
    return sorted(each["pid"] for each in up(name, count)["instances"])


def unit(name, what):
    return run("systemctl", "show", "--value", f"--property={what}", name)


def active(name):
    return until(f"{name} is active", lambda: unit(name, "ActiveState") == "active" and unit(name, "SubState") == "running")


def journal(name, *more):
    return run("journalctl", "--no-pager", "-o", "cat", "-u", name, *more)


def host():
    return json.loads(as_service(BINARY, "host", "status", "--dir", "/var/lib/gennaker-host"))


def kill(pid, how=signal.SIGKILL):
    os.kill(pid, how)


class Load(threading.Thread):
    """Requests through the load balancer, one after the other, for as long as the block takes. With
    `again`, one that got no answer is asked once more, as a client of a killed process does."""

    def __init__(self, again=False):
        super().__init__(daemon=True)
        self.again, self.sent, self.failed, self.over = again, 0, [], threading.Event()

    def run(self):
        while not self.over.is_set():
            for last in ([False, True] if self.again else [True]):
                try:
                    get("http://127.0.0.1:8080/")
                    break
                except (OSError, http.client.HTTPException) as error:
                    if last:
                        self.failed.append(repr(error))
            self.sent += 1

    def __enter__(self):
        self.start()
        until("the first requests", lambda: self.sent > 3)
        return self

    def __exit__(self, kind, *_):
        sent = self.sent
        if kind is None:
            until("requests afterwards", lambda: self.sent > sent + 3)
        self.over.set()
        self.join(120)
        if kind is None:
            assert not self.failed, f"{len(self.failed)} of {self.sent} requests failed: {self.failed[:3]}"
            say(f"  {self.sent} requests, none failed")


# The trials of the first start of the machine, in this order.


def the_documented_commands_install_it():
    shutil.copy(DRILL / "gennaker", BINARY)
    BUILDS.mkdir()
    (BUILDS / "app.py").write_text(APP)
    SETTINGS.parent.mkdir()
    SETTINGS.write_text('artifact-root = ["/srv/builds"]\n')
    (SETTINGS.parent / "environment").write_text("GENNAKER_PORT_RANGE=21000-21999\n")
    said = run(BINARY, "systemd", "--dir", "/etc/systemd/system")
    for line in said.split("Next:\n")[1].splitlines():
        command = re.split(" {3,}", line.strip())[0]
        if not command.startswith("journalctl"):
            run("sh", "-c", command)
    active("gennaker-host")
    active("gennaker")
    said = run("sh", "-c", f"{command} --no-pager -o cat")
    assert "Gennaker serves http://127.0.0.1:7777" in said, said
    assert "gnk_" not in said, "a token stands in the journal"
    make = next(line.strip() for line in said.splitlines() if "token create" in line)
    token = as_service("sh", "-c", f"{make} 2>/dev/null")
    assert token.startswith("gnk_"), token
    (STATE / "token").write_text(token)
    assert host()["artifactRoots"] == ["/srv/builds"] and host()["ports"] == "21000-21999", host()
    assert unit("gennaker", "StatusText").startswith("serves http"), unit("gennaker", "StatusText")
    for line in run("systemd-analyze", "security", "--no-pager", ok=False).splitlines():
        if "gennaker" in line:
            say("  " + line.strip())


def an_application_is_deployed():
    (STATE / "shop.yaml").write_text(SHOP)
    gennaker("apply", "-f", str(STATE / "shop.yaml"))
    for version in ["1.0.0", "2.0.0"]:
        gennaker("run", "shop/deploy", "-p", f"version={version}", "--wait")
    assert get("http://127.0.0.1:8080/") == "2.0.0"
    assert "asked for /" in gennaker("logs", "--server-group", "shop-v001")
    up("shop-v001", 2)


def a_restarted_server_stops_no_instance_and_fails_no_request():
    before, process = pids(), unit("gennaker", "MainPID")
    with Load():
        run("systemctl", "restart", "gennaker")
        active("gennaker")
    assert unit("gennaker", "MainPID") != process and pids() == before
    with Load():
        kill(int(unit("gennaker", "MainPID")))
        until("the service manager starts it again", lambda: unit("gennaker", "NRestarts") == "1")
        active("gennaker")
    assert pids() == before


def a_reload_reads_the_settings_again():
    SETTINGS.write_text(SETTINGS.read_text() + "retention-days = 7\n")
    run("systemctl", "reload", "gennaker")
    until("the reload is in the journal", lambda: "changed: retention-days" in journal("gennaker"))


def a_server_that_hangs_is_started_again():
    drop_in = pathlib.Path("/run/systemd/system/gennaker.service.d/soon.conf")
    drop_in.parent.mkdir(parents=True)
    drop_in.write_text("[Service]\nWatchdogSec=20\n")
    run("systemctl", "daemon-reload")
    run("systemctl", "restart", "gennaker")
    before, process, restarts = pids(), int(unit("gennaker", "MainPID")), int(unit("gennaker", "NRestarts"))
    kill(process, signal.SIGSTOP)
    until("another one", lambda: int(unit("gennaker", "NRestarts")) > restarts)
    active("gennaker")
    assert pids() == before
    drop_in.unlink()
    run("systemctl", "daemon-reload")
    run("systemctl", "restart", "gennaker")


def a_reloaded_host_is_another_process_and_fails_no_request():
    before, worker = pids(), host()["pid"]
    with Load():
        run("systemctl", "reload", "gennaker-host")
        assert host()["pid"] != worker
    assert pids() == before
    active("gennaker-host")


def a_killed_worker_is_replaced_and_stops_no_instance():
    before, worker, keeper = pids(), host()["pid"], unit("gennaker-host", "MainPID")
    with Load(again=True):
        kill(worker)
        until("another worker", lambda: host()["pid"] != worker)
    assert pids() == before and unit("gennaker-host", "MainPID") == keeper


def a_killed_keeper_is_replaced_and_the_unit_follows():
    before, keeper = pids(), int(unit("gennaker-host", "MainPID"))
    with Load(again=True):
        kill(keeper)
        until("another keeper is the unit's", lambda: host()["keeper"] != keeper
              and int(unit("gennaker-host", "MainPID")) == host()["keeper"])
        active("gennaker-host")
    assert pids() == before
    # And it goes on being looked after: its end is seen.
    again, restarts = host()["keeper"], int(unit("gennaker-host", "NRestarts"))
    kill(again)
    until("the unit follows once more", lambda: int(unit("gennaker-host", "NRestarts")) > restarts
          and host()["keeper"] != again and int(unit("gennaker-host", "MainPID")) == host()["keeper"])


def a_restarted_host_stops_no_instance():
    for commands in [["restart"], ["stop", "start"]]:
        before, keeper = pids(), host()["keeper"]
        for command in commands:
            run("systemctl", command, "gennaker-host")
            if command == "stop":
                assert all(pathlib.Path(f"/proc/{pid}").exists() for pid in before), "an instance ended"
        until("another keeper", lambda: host()["keeper"] != keeper)
        active("gennaker-host")
        assert int(unit("gennaker-host", "MainPID")) == host()["keeper"]
        assert pids() == before
        with Load():
            pass


def cgroup_of(pid):
    path = pathlib.Path(f"/proc/{pid}/cgroup").read_text().strip().removeprefix("0::/")
    return pathlib.Path("/sys/fs/cgroup") / path


def try_limits(user):
    """The limits of the newest server group of `small`, as the service's or another user."""
    name = sorted(each["name"] for each in ask(INSTANCES)["serverGroups"]["nodes"] if each["isEnabled"]
                  and each["name"].startswith("small-"))[-1]
    found = up(name, 1)
    instance = found["instances"][0]
    url = f"http://127.0.0.1:{instance['port']}"
    said = found["limitsEnforcedBy"]
    running = pathlib.Path(f"/proc/{instance['pid']}/status").read_text()
    owner = int(run("id", "-u", user))
    assert f"Uid:\t{owner}\t{owner}" in running, running
    systemd = int(re.search(r"systemd (\d+)", run("systemctl", "--version"))[1])
    say(f"  systemd {systemd}: {said}")
    if systemd < 254:
        assert "memory by rlimit" in said and "CPU not enforced" in said, said
        return
    assert said == "open files by rlimit; memory, CPU, processes by cgroup", said
    own = cgroup_of(instance["pid"])
    assert own.parent.parent.name == "gennaker-host.service", own
    until("it answers", lambda: get(url) == "small")
    until("processes are refused", lambda: re.match(r"\d+ .*unavailable", get(f"{url}/fork")))
    get(f"{url}/burn")
    until("it is throttled", lambda: int(re.search(r"nr_throttled (\d+)", (own / "cpu.stat").read_text())[1]) > 2)
    try:
        raise AssertionError(f"it took more memory than it may: {get(f'{url}/eat')}")
    except (OSError, http.client.HTTPException):
        pass
    ended = until("its end is told", lambda: next(each for each in group(name)["instances"] if each["lastExit"]))
    assert ended["lastExit"] == "signal 9: it took more memory than its limit", ended
    up(name, 1)
    until("its group is gone", lambda: not own.exists())
    active("gennaker-host")


def limits_hold_in_the_unit_as_it_is():
    before = pids()
    gennaker("run", "small/deploy", "-p", "user=gennaker", "--wait")
    try_limits("gennaker")
    run("systemctl", "restart", "gennaker-host")
    active("gennaker-host")
    assert pids() == before
    gennaker("run", "small/deploy", "-p", "user=gennaker", "--wait")
    try_limits("gennaker")


def as_root_instances_run_as_others():
    for name in ["gennaker", "gennaker-host"]:
        drop_in = pathlib.Path(f"/etc/systemd/system/{name}.service.d/root.conf")
        drop_in.parent.mkdir(parents=True, exist_ok=True)
        # With `User=root`, systemd takes CAP_SETUID away beside NoNewPrivileges.
        drop_in.write_text("[Service]\nUser=\nGroup=\n")
    before = pids("shop-v002")
    run("systemctl", "daemon-reload")
    run("systemctl", "restart", "gennaker-host", "gennaker")
    active("gennaker-host")
    active("gennaker")
    assert pids("shop-v002") == before
    gennaker("run", "small/deploy", "-p", "user=nobody", "--wait")
    try_limits("nobody")


def the_trials_of_limits_pass_as_root():
    path = pathlib.Path((DRILL / "path").read_text().strip())
    path.parent.mkdir(parents=True, exist_ok=True)
    path.symlink_to(BINARY)
    everything = {**os.environ, "GENNAKER_TEST_REQUIRE_ALL": "1"}
    for trial in ["a_cgroup_of_its_own_limits_an_instance", "limits_hold_and_it_is_told_how",
                  "an_instance_runs_as_the_user_it_is_told"]:
        said = run(DRILL / "it", trial, env=everything)
        assert "1 passed" in said, said
    systemd = int(re.search(r"systemd (\d+)", run("systemctl", "--version"))[1])
    if systemd >= 254:
        said = run("systemd-run", "--quiet", "--wait", "--pipe", "-pDelegate=yes", "-pDelegateSubgroup=gennaker-host",
                   "-EGENNAKER_TEST_REQUIRE_ALL=1", DRILL / "it", "a_cgroup_of_its_own_limits_an_instance")
        assert "1 passed" in said, said


# The trials of the second start.


def all_comes_back_by_itself():
    active("gennaker-host")
    active("gennaker")
    until("it is ready", lambda: status_of("http://127.0.0.1:7777/readyz") == 200)
    pids()
    assert until("an answer", lambda: get("http://127.0.0.1:8080/")) == "2.0.0"
    with Load():
        pass
    gennaker("run", "shop/deploy", "-p", "version=3.0.0", "--wait")
    assert get("http://127.0.0.1:8080/") == "3.0.0"


def nothing_was_said_to_be_wrong():
    metrics = urllib.request.Request("http://127.0.0.1:7777/metrics",
                                     headers={"authorization": f"Bearer {(STATE / 'token').read_text()}"})
    with urllib.request.urlopen(metrics, timeout=60) as answer:
        violations = [line for line in answer.read().decode().splitlines()
                      if line.startswith("gennaker_invariant_violations_total")]
    assert violations and all(line.endswith(" 0") for line in violations), violations
    for name in ["gennaker", "gennaker-host"]:
        assert "panicked" not in journal(name), journal(name)


FIRST = [
    the_documented_commands_install_it,
    an_application_is_deployed,
    a_restarted_server_stops_no_instance_and_fails_no_request,
    a_reload_reads_the_settings_again,
    a_server_that_hangs_is_started_again,
    a_reloaded_host_is_another_process_and_fails_no_request,
    a_killed_worker_is_replaced_and_stops_no_instance,
    a_killed_keeper_is_replaced_and_the_unit_follows,
    a_restarted_host_stops_no_instance,
    limits_hold_in_the_unit_as_it_is,
    the_trials_of_limits_pass_as_root,
]
SECOND = [all_comes_back_by_itself, nothing_was_said_to_be_wrong, as_root_instances_run_as_others]


def main():
    first = not STATE.exists()
    STATE.mkdir(exist_ok=True)
    try:
        for trial in FIRST if first else SECOND:
            since = time.monotonic()
            trial()
            say(f"{trial.__name__.replace('_', ' ')} ({time.monotonic() - since:.0f} s)")
    except BaseException:
        for name in ["gennaker", "gennaker-host"]:
            print(run("systemctl", "status", "--no-pager", "-l", "-n", "40", name, ok=False), flush=True)
        say(f"failed: {trial.__name__.replace('_', ' ')}")
        traceback.print_exc(file=sys.stdout)
        sys.stdout.flush()
        run("systemctl", "poweroff", "--no-block", ok=False)
        return
    if first:
        say("reboot")
        run("systemctl", "reboot", "--no-block")
    else:
        say("all passed")
        run("systemctl", "poweroff", "--no-block")


if __name__ == "__main__":
    main()
