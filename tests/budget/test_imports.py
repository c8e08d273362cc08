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

MONITOR = INTERPRETER | {"ctypes", "_ctypes", "_struct", "struct", "ctypes._endian", "_socket", "select", "fcntl", "errno", "signal", "enum", "operator", "_operator", "types", "functools"}
ENGINE = MONITOR | {"_sqlite3", "site", "_sitebuiltins", "math"}
"""Of the standard library; modules of ours are bounded by OURS."""

OURS = ("errors", "ledger", "kernel", "spec", "state", "container", "security", "network", "storage", "runtime", "monitor", "engine", "cli", "image")
"""Top-level parts that may be loaded at all. What must not be there whatever it costs is what a run does not need:"""
NOT_NEEDED = ("utsuwa.explain", "utsuwa.engine.api", "utsuwa.security.compiler", "utsuwa.image.registry", "utsuwa.image.pull", "utsuwa.cli.gofmt", "utsuwa.cli.template")


@pytest.fixture(scope="module")
def noted(tmp_path_factory):
    return tmp_path_factory.mktemp("modules") / "noted.jsonl"


@pytest.fixture
def modules(utsuwa, noted):
    """{"engine": names, "monitor": names} of one warm run."""
    if not noted.exists():
        utsuwa("run", "--rm", "--network", "none", "hello", check=True)  # the first compiles the seccomp filter and makes the state
        utsuwa("run", "--rm", "--network", "none", "hello", check=True, env={"UTSUWA_MODULES": str(noted)})
    return {line["who"]: frozenset(line["modules"]) for line in map(json.loads, noted.read_text().splitlines())}


@pytest.mark.parametrize(("who", "allowed"), [("engine", ENGINE), ("monitor", MONITOR)])
def test_nothing_outside_the_allow_list_is_loaded(modules, who, allowed):
    stray = {name for name in modules[who] - allowed if name.partition(".")[0] != "utsuwa"}
    assert {name: BANNED.get(name, "not in the allow-list") for name in stray} == {}


@pytest.mark.parametrize("who", ["engine", "monitor"])
def test_only_what_a_run_needs_of_ours_is_loaded(modules, who):
    ours = {name for name in modules[who] if name.startswith("utsuwa.")}
    assert {name for name in ours if name.split(".")[1] not in OURS or name.startswith(NOT_NEEDED)} == set()


def test_the_monitor_loads_no_database_and_no_engine(modules):
    assert {name for name in modules["monitor"] if name.startswith(("_sqlite3", "utsuwa.state.db", "utsuwa.engine", "utsuwa.cli"))} == set()


def test_the_allow_lists_hold_no_banned_module():
    assert {name for name in (ENGINE | MONITOR) & BANNED.keys() if name not in TOLERATED} == set()


TOLERATED = frozenset({"struct", "signal", "enum"})
"""Come with ctypes (struct) and with the monitor's signal handling: paid for once, in the monitor's boot, which is measured."""
