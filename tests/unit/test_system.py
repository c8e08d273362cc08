"""version, info and system check: what they print."""

import json
import sys

import pytest

from utsuwa import __version__
from utsuwa.cli import system as command
from utsuwa.engine import containers, leftovers, system as engine
from utsuwa.engine.context import Context
from utsuwa.errors import UsageError
from utsuwa.state.db import Database
from utsuwa.state.paths import Paths


@pytest.fixture
def house(tmp_path, monkeypatch):
    """A context with three containers: running, ended, being made."""
    paths = Paths(f"{tmp_path}/root", f"{tmp_path}/run")
    paths.make()
    context = Context(paths, Database(paths.database))
    with context.db.write():
        for name in ("running", "stopped", "creating"):
            context.db.do("INSERT INTO container VALUES (?,?,'','',0,'up',0,0,'',x'')", name, name)
    monkeypatch.setattr(containers, "state", lambda _context, name: {"status": name})
    monkeypatch.setattr("utsuwa.cli.main.context", lambda: context)
    yield context
    context.db.close()


def test_version(capsys):
    assert command.version([]) == command.version(["--short"]) == command.version(["-f", "{{.Client.Version}} {{.Server.Version}}"]) == command.version(["--format=json"]) == 0
    lines = capsys.readouterr().out.splitlines()
    python = ".".join(map(str, sys.version_info[:3]))
    assert lines[:4] == ["Client:", f" Version:           {__version__}", " API version:       n/a", f" Python version:    {python}"] and lines[4].startswith(" OS/Arch:           linux/")
    assert lines[5] == f"utsuwa version {__version__}" and lines[6] == f"{__version__} {__version__}" and json.loads(lines[7])["Client"]["PythonVersion"] == python


def test_info(house, capsys):
    assert command.info([]) == command.info(["-f", "{{.Containers}} {{.ContainersRunning}} {{.ContainersStopped}} {{.Driver}} {{.CgroupVersion}}"]) == 0
    text, last = capsys.readouterr().out.rstrip().rsplit("\n", 1)
    assert last[:-1] == "3 1 2 overlay2 " and last[-1] in "12"
    for line in (" Containers: 3", "  Running: 1", "  Stopped: 2", " Images: 0", " Storage Driver: overlay2", "  seccomp", "   Profile: builtin", f" Root Dir: {house.paths.root}", " Rootless: false"):
        assert line in text.splitlines()
    known = engine.info(house)
    assert known["MemTotal"] > 1 << 20 and known["NCPU"] >= 1 and known["DriverStatus"][0][1] not in ("", "unknown")
    json.dumps(known)


def test_what_a_machine_may_not_tell():
    assert engine.operating_system('NAME=x\nPRETTY_NAME="Debian GNU/Linux 12"\n') == "Debian GNU/Linux 12" and engine.operating_system("") == "Linux"
    assert engine.memory("MemTotal:  10 kB\n") == 10240 and engine.memory("") == 0


@pytest.mark.parametrize(("argv", "found", "code", "out"), [
    (["check"], [], 0, ""), (["check"], ["trash x"], 1, "left: trash x\n"), (["check", "--repair"], ["trash x"], 0, "removed: trash x\n"),
])
def test_system_check(house, monkeypatch, capsys, argv, found, code, out):
    monkeypatch.setattr(leftovers, "check", lambda _context, *, repair: found if repair == ("--repair" in argv) else None)
    assert command.system(argv) == code and capsys.readouterr().out == out


@pytest.mark.parametrize("argv", [[], ["prune"], ["check", "more"]])
def test_other_system_commands(argv):
    with pytest.raises(UsageError):
        command.system(argv)
