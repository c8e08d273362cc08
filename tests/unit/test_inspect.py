"""inspect: the engine's data in Docker's shape, printed as Docker's client prints it."""

import json
import re

import pytest

from utsuwa.cli import inspect as command
from utsuwa.cli.template import Template, render
from utsuwa.engine import images, inspect as engine
from utsuwa.errors import Conflict, NotFound, NotSupported, UsageError

KNOWN = {
    "id": "c" * 64, "name": "web", "image": "sha256:" + "1" * 64, "image_name": "busybox", "created": 1_700_000_000_120_000_000, "directory": "/root/containers/c",
    "config": {"process": {"args": ["sh", "-c", "x"], "terminal": True}, "hostname": "vessel", "linux": {"cgroupsPath": "/utsuwa/c", "maskedPaths": ["/proc/kcore"]}},
    "options": {
        "args": ["-c", "x"], "env": ["A=1"], "volumes": ["data:/d:ro", "/anon"], "network": "bridge", "cpus": 1.5, "memory": 1 << 29, "pids_limit": 0, "read_only": True, "remove": False,
        "detach": True, "interactive": False, "entrypoint": None, "cap_add": ["NET_ADMIN"], "no_new_privs": True, "seccomp": "unconfined", "user": "", "workdir": "",
    },
    "image_config": {"Env": ["A=0", "PATH=/bin"], "Cmd": ["true"], "Entrypoint": ["sh"], "User": "daemon", "WorkingDir": "/w", "ExposedPorts": {"443/tcp": {}}, "Labels": {"a.b": "c"}},
    "state": {"status": "running", "pid": 42, "started": 1_700_000_001_000_000_000},
    "network": {"mode": "bridge", "netns": "/run/n", "address": "172.17.0.2", "prefix": 16, "gateway": "172.17.0.1", "mac": "02:42:ac:11:00:02", "ports": [("tcp", "", 8080, 80), ("tcp", "127.0.0.1", 81, 80)]},
    "bundle": {"overlay": {"lower": ["/l/b", "/l/a"], "upper": "/u", "work": "/w"}},
    "volumes": [
        {"type": "volume", "name": "data", "source": "/v/data/_data", "destination": "/d", "driver": "local", "mode": "ro", "rw": False, "propagation": ""},
        {"type": "bind", "name": "", "source": "/h", "destination": "/h", "driver": "", "mode": "", "rw": True, "propagation": "rprivate"},
    ],
}


@pytest.fixture
def shown():
    return engine.describe(KNOWN)


def test_what_scripts_ask_for(shown):
    typed = command.typed(shown)
    for template, text in (
        ("{{.State.Status}} {{.State.Running}} {{.State.Pid}} {{.State.ExitCode}}", "running true 42 0"), ("{{.Name}} {{.Path}} {{.Args}}", "/web sh [-c x]"),
        ("{{.NetworkSettings.IPAddress}} {{.NetworkSettings.Networks.bridge.Gateway}}", "172.17.0.2 172.17.0.1"),
        ("{{range .NetworkSettings.Networks}}{{.IPAddress}}{{end}}", "172.17.0.2"), ('{{(index (index .NetworkSettings.Ports "80/tcp") 0).HostPort}}', "8080"),
        ("{{range $p, $c := .NetworkSettings.Ports}}{{$p}}={{range $c}}{{.HostIp}}:{{.HostPort}},{{end}};{{end}}", "443/tcp=;80/tcp=0.0.0.0:8080,127.0.0.1:81,;"),
        ("{{.Config.Hostname}} {{.Config.Env}} {{.Config.Cmd}} {{.Config.Entrypoint}} {{.Config.User}} {{.Config.WorkingDir}}", "vessel [A=1 PATH=/bin] [-c x] [sh] daemon /w"),
        ('{{index .Config.Labels "a.b"}}|{{index .Config.Labels "none"}}|{{.Config.Labels.none}}', "c||<no value>"), ("{{if .State.Health}}{{.State.Health.Status}}{{else}}none{{end}}", "none"),
        ("{{.HostConfig.NanoCpus}} {{.HostConfig.Memory}} {{.HostConfig.PidsLimit}} {{.HostConfig.CapDrop}}", "1500000000 536870912 <nil> []"),
        ("{{range .Mounts}}{{.Type}} {{.Name}} {{.Source}}:{{.Destination}} {{.RW}};{{end}}", "volume data /v/data/_data:/d false;bind  /h:/h true;"),
        ("{{json (index .Mounts 1)}}", '{"Type":"bind","Source":"/h","Destination":"/h","Mode":"","RW":true,"Propagation":"rprivate"}'),
        ("{{.Created}} {{.State.StartedAt}} {{.State.FinishedAt}}", "2023-11-14T22:13:20.12Z 2023-11-14T22:13:21Z 0001-01-01T00:00:00Z"), ("{{.HostConfig.SecurityOpt}}", "[no-new-privileges seccomp=unconfined]"),
        ("{{.GraphDriver.Data.LowerDir}} {{.HostConfig.CgroupParent}} {{.HostConfig.Binds}}", "/l/b:/l/a /utsuwa [data:/d:ro]"), ("{{json .State}}", json.dumps(shown["State"], separators=(",", ":"))),
    ):
        assert render(template, typed) == text


def test_an_ended_container_has_no_network(shown):
    ended = engine.describe({**KNOWN, "state": {"status": "stopped", "exit_code": 3, "oom": True, "finished": 1_700_000_002_000_000_000, "error": "monitor lost"}})
    assert ended["State"] == {
        "Status": "exited", "Running": False, "Paused": False, "Restarting": False, "OOMKilled": True, "Dead": False, "Pid": 0, "ExitCode": 3, "Error": "monitor lost",
        "StartedAt": engine.NEVER, "FinishedAt": "2023-11-14T22:13:22Z",
    }
    assert ended["NetworkSettings"]["Ports"] == {} and ended["NetworkSettings"]["IPAddress"] == "" and ended["NetworkSettings"]["Networks"]["bridge"]["IPAddress"] == ""


def test_a_row_that_has_nothing_yet_is_shown():
    bare = engine.describe({"id": "x", "name": "n", "image": "", "image_name": "hello", "created": 1, "directory": "/d", "state": {"status": "creating", "pid": 0}})
    assert bare["State"]["Status"] == "created" and bare["Config"]["Cmd"] is None and bare["Path"] == ""


@pytest.fixture
def house(monkeypatch):
    def container(_context, text):
        if text == "two":
            raise Conflict("cannot choose a container for two: several ids begin so; give more digits")
        if text != "web":
            raise NotFound(f"No such container: {text}")
        return {"Id": "c", "Name": "/web"}

    def image(_context, text):
        if text != "busybox":
            raise NotFound(f"no such image: {text}")
        return {"Id": "sha256:1", "RepoTags": ["busybox:latest"]}

    monkeypatch.setattr("utsuwa.cli.main.context", lambda: None)
    monkeypatch.setattr(engine, "container", container)
    monkeypatch.setattr(images, "inspect", image)


@pytest.mark.parametrize(("argv", "code", "out", "err"), [
    (["web"], 0, '[\n    {\n        "Id": "c",\n        "Name": "/web"\n    }\n]\n', ""), (["--format", "json", "web", "busybox"], 0, '[{"Id":"c","Name":"/web"},{"Id":"sha256:1","RepoTags":["busybox:latest"]}]\n', ""),
    (["nope"], 1, "[]\n", "Error: No such object: nope\n"), (["--type", "container", "busybox"], 1, "[]\n", "Error: No such container: busybox\n"),
    (["--type=image", "web"], 1, "[]\n", "Error: No such image: web\n"), (["-f", "{{.Id}}", "web", "no", "busybox"], 1, "c\nsha256:1\n", "Error: No such object: no\n"),
    (["-f", "{{.Nope}}", "web"], 1, "\n", 'template parsing error: template: :1:2: executing "" at <.Nope>: map has no entry for key "Nope"\n'),
    (["-f{{.Id}}", "nope"], 1, "\n", "Error: No such object: nope\n"), (["two"], 1, "[]\n", "Error: cannot choose a container for two: several ids begin so; give more digits\n"),
])
def test_output_and_exit_code(house, capsys, argv, code, out, err):
    assert command.main(argv) == code
    shown = capsys.readouterr()
    assert (shown.out, shown.err) == (out, err)


@pytest.mark.parametrize(("argv", "error", "text"), [
    (["--type", "volume", "x"], NotSupported, "not yet supported: --type volume"), (["--type", "nope", "x"], UsageError, 'unknown type: "nope"'), (["--type=", "x"], UsageError, "unknown type"),
    ([], UsageError, "takes at least 1 argument"), (["-f", "{{", "x"], UsageError, "unclosed action"), (["-s", "x"], NotSupported, "not yet supported: -s"),
])
def test_bad_arguments(house, argv, error, text):
    with pytest.raises(error, match=re.escape(text)):
        command.main(argv)


def test_what_is_found_first_wins(house):
    found, failures = command.collect(None, ["web", "busybox"], command.KINDS)
    assert [item["Id"] for item in found] == ["c", "sha256:1"] and failures == []
    assert command.show(found, "{{.Id}}", Template("{{.Name}}")) == ['template parsing error: template: :1:2: executing "" at <.Name>: map has no entry for key "Name"']
