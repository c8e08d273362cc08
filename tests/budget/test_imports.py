"""What the hot path loads (design.md, section 6): a snapshot of sys.modules at the end of a real run, against an allow-list and a list of bans."""

import json

import pytest

pytestmark = pytest.mark.root_only("the run needs the root lane's cgroups; the code is the same in both")

BANNED = {
    "json": "7 ms: utsuwa.ledger.encode writes, marshal carries",
    "sqlite3": "_sqlite3 is enough: datetime and collections come with the rest",
    "argparse": "9 ms: utsuwa.cli.flags",
    "socket": "8 ms: _socket",
    "subprocess": "11 ms: os.posix_spawn",
    "shutil": "12 ms: and its walks follow links",
    "dataclasses": "18 ms: __slots__",
    "pathlib": "10 ms: and its paths are strings on the host",
    "logging": "13 ms: the ledger",
    "asyncio": "45 ms: epoll",
    "re": "4 ms: str methods",
    "typing": "3 ms: TYPE_CHECKING = False",
    "inspect": "9 ms",
    "tempfile": "7 ms: memfd_create",
    "random": "5 ms: os.urandom",
    "threading": "what a library caller has; we have processes",
    "datetime": "2 ms: time",
    "struct": "_struct",
    "selectors": "select.epoll",
    "signal": "enum and its metaclass come with it: _signal",
    "enum": "3 ms",
    "urllib3": "third party", "rich": "third party", "isal": "third party", "zstandard": "third party",
}
"""Module → why not. Milliseconds are those of design.md, section 6."""

INTERPRETER = frozenset({
    "__main__", "sys", "builtins", "_imp", "_thread", "_warnings", "_weakref", "_io", "marshal", "posix", "zipimport", "time", "_codecs", "codecs", "encodings",
    "encodings.aliases", "encodings.utf_8", "_signal", "_abc", "abc", "io", "_stat", "stat", "_collections_abc", "posixpath", "genericpath", "os.path", "os",
    "_frozen_importlib", "_frozen_importlib_external",
})
"""What CPython has loaded before our first line runs, with -I -S."""
WITH_SITE = frozenset({"site", "_sitebuiltins", "sitecustomize"})
"""And without -S: Debian's sitecustomize only looks for apport."""

TOLERATED = frozenset({"struct", "signal", "enum"})
"""Banned for our own use, but here they come with ctypes (struct) and with the handling of signals: paid for once, in a boot that is measured."""
MONITOR = INTERPRETER | TOLERATED | {
    "__future__", "ctypes", "_ctypes", "ctypes._endian", "_struct", "_socket", "select", "fcntl", "errno", "gc", "resource", "_json",
    "types", "functools", "_functools", "collections", "_collections", "itertools", "keyword", "operator", "_operator", "reprlib",
}
ENGINE = MONITOR - {"resource"} | WITH_SITE | {"_sqlite3", "_sha256", "_sha2", "termios"}
ALLOWED = {"run": ENGINE, "exec": ENGINE, "monitor": MONITOR}
"""Of the standard library. Modules of ours are bounded by the packages a process needs:"""
OURS = {
    "run": {"errors", "ledger", "kernel", "spec", "state", "container", "security", "network", "storage", "runtime", "monitor", "engine", "cli"},
    "exec": {"errors", "ledger", "kernel", "spec", "state", "container", "runtime", "engine", "cli"},
    "monitor": {"errors", "ledger", "kernel", "spec", "container", "runtime", "monitor"},
}
COLD = ("utsuwa.engine.api", "utsuwa.engine.plan", "utsuwa.engine.inspect", "utsuwa.security.compiler", "utsuwa.security.docker_profile", "utsuwa.cli.template", "utsuwa.cli.gofmt")
"""Parts of those packages that no start of a container needs."""


@pytest.fixture(scope="module")
def noted(tmp_path_factory):
    """What was noted, by process; filled by the first test."""
    return {}


@pytest.fixture
def modules(utsuwa, lane_dir, noted):
    """{"run": names, "exec": names, "monitor": names}: what each had loaded at its end, once everything was warm."""
    if not noted:
        utsuwa("run", "--rm", "--network", "none", "hello", check=True)  # the first compiles the seccomp filter and makes the state
        utsuwa("run", "--rm", "--network", "none", "hello", check=True, env={"UTSUWA_MODULES": lane_dir + "/run"})
        utsuwa("run", "-d", "--name", "modules", "--network", "none", "host", "sleep", "60", check=True)
        utsuwa("exec", "modules", "true", check=True, env={"UTSUWA_MODULES": lane_dir + "/exec"})
        utsuwa("rm", "-f", "modules", check=True)
        for command in ("run", "exec"):
            with open(f"{lane_dir}/{command}") as file:
                noted |= {command if line["who"] == "engine" else line["who"]: frozenset(line["modules"]) for line in map(json.loads, file)}
    return noted


@pytest.mark.parametrize("who", ["run", "exec", "monitor"])
def test_nothing_outside_the_allow_list_is_loaded(modules, who):
    stray = {name for name in modules[who] - ALLOWED[who] if name.partition(".")[0] != "utsuwa"}
    assert {name: BANNED.get(name.partition(".")[0], "not in the allow-list") for name in stray} == {}


@pytest.mark.parametrize("who", ["run", "exec", "monitor"])
def test_only_what_it_needs_of_ours_is_loaded(modules, who):
    ours = {name for name in modules[who] if name.startswith("utsuwa.")}
    assert {name for name in ours if name.split(".")[1] not in OURS[who] or name.startswith(COLD)} == set()
    assert ours > {"utsuwa.errors", "utsuwa.ledger"}


def test_the_allow_lists_hold_no_banned_module():
    assert (ENGINE | MONITOR) & BANNED.keys() == TOLERATED
