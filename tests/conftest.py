"""Lanes, the house they live in, the registry, and the check that nothing is left.

A test that takes `utsuwa` runs once in each lane: as root, and as an ordinary user who is made for the session. Both run a wheel built
from the checkout and installed outside it. A test marked root_only or rootless_only runs in that lane alone.
"""

import os
import secrets
import tempfile
from collections import Counter

import pytest

from support import faults, leaks
from support.containers import Box
from support.house import House, install, make_user, others, remove_user, sub_ids, tool
from support.lanes import Lane
from support.registry import Registry, busybox_image

LANES = ("root", "rootless")
IS_ROOT = os.geteuid() == 0
counts: Counter[str] = Counter()
"""Tests that ran, passed or failed, by lane."""
crowded: set[str] = set()
"""Modules during which another session ran, so that mounts, links, nft and cgroups of the machine were not compared."""


# ---- which test runs in which lane


def pytest_generate_tests(metafunc):
    if "lane" not in metafunc.fixturenames:
        return
    only = [name for name in LANES if metafunc.definition.get_closest_marker(name + "_only")]
    metafunc.parametrize("lane", [_parameter(name) for name in only or LANES if IS_ROOT or only or name == "rootless"], indirect=True)


def _parameter(name):
    return pytest.param(name, marks=[] if IS_ROOT or name == "rootless" else pytest.mark.skip(reason="the root lane needs root"))


def pytest_collection_modifyitems(items):
    """A test that is root_only but takes no lane works in this process: it is skipped where that is not root."""
    for item in items:
        marker = item.get_closest_marker("root_only")
        if marker and not IS_ROOT and "lane" not in item.fixturenames:
            item.add_marker(pytest.mark.skip(reason=f"needs root: {marker.args[0]}"))


# ---- every lane ran


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item, call):
    report = yield
    if call.when == "call" and not report.skipped:
        lane = getattr(item, "callspec", None) and item.callspec.params.get("lane")
        counts[lane or "this process"] += 1
    return report


def _missing(config) -> list[str]:
    """Return the lanes that ran nothing although they should: all tests were asked for, and this is root."""
    whole = config.args_source != pytest.Config.ArgsSource.ARGS and not (config.option.keyword or config.option.markexpr or getattr(config.option, "lf", False))
    return [name for name in LANES if whole and IS_ROOT and not config.option.collectonly and not counts[name]]


@pytest.hookimpl(tryfirst=True)
def pytest_sessionfinish(session, exitstatus):
    if _missing(session.config) and exitstatus == pytest.ExitCode.OK:
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


def pytest_terminal_summary(terminalreporter, config):
    ran = ", ".join(f"{name} {counts[name]}" for name in (*LANES, "this process"))
    terminalreporter.section("lanes")
    terminalreporter.line(f"tests that ran, by lane: {ran}")
    for line in faults.tried:
        terminalreporter.line(f"killed or failed at every step: {line}")
    for name in _missing(config):
        terminalreporter.line(f"FAILED: the {name} lane ran no test", red=True, bold=True)
    if crowded:
        terminalreporter.line(f"another test session ran beside this one: mounts, links, nft and cgroups not compared in {len(crowded)} modules", yellow=True)
    if not IS_ROOT:
        terminalreporter.line("not root: the root lane did not run; `sudo make test` runs both", yellow=True)


# ---- the house


@pytest.fixture(scope="session")
def house(_watch):
    """The session's directory outside the checkout."""
    house = House()
    _watch.house = house.path
    _watch.states.append(house.path + "/lane")
    _watch.places.append(house.path + "/lane")
    yield house
    house.close()


@pytest.fixture(scope="session")
def installation(house):
    """The venv with the wheel, readable by everybody."""
    return install(house.path)


@pytest.fixture(scope="session")
def ordinary_user(house, _watch):
    """(uid, gid) of the rootless lane: a temporary user, or whoever runs the tests when that is not root."""
    if not IS_ROOT:
        yield os.getuid(), os.getgid()
        return
    user = make_user(house.path)
    _watch.ids += [range(user.pw_uid, user.pw_uid + 1), *(range(start, start + count) for name, start, count in sub_ids("/etc/subuid") if name == user.pw_name)]
    yield user.pw_uid, user.pw_gid
    remove_user(user.pw_name)


@pytest.fixture(scope="session")
def _root_lane(house, installation):
    return Lane("root", house.path + "/lane/root", installation, 0, 0)


@pytest.fixture(scope="session")
def _rootless_lane(house, installation, ordinary_user):
    return Lane("rootless", house.path + "/lane/rootless", installation, *ordinary_user)


@pytest.fixture
def lane(request):
    """The lane this test runs in."""
    return request.getfixturevalue(f"_{request.param}_lane")


@pytest.fixture
def utsuwa(lane):
    """`utsuwa("run", "--rm", "hello", check=True)`: a command in this lane; see support/lanes.py."""
    return lane


@pytest.fixture
def lane_dir(lane):
    """A new directory of the lane's user, for what a test wants to mount, log or write."""
    path = f"{lane.home}/t-{secrets.token_hex(3)}"
    os.mkdir(path, 0o700)
    if lane.uid != os.geteuid():
        os.chown(path, lane.uid, lane.gid)
    yield path
    tool("rm", "-rf", "--one-file-system", path)


@pytest.fixture(scope="session")
def registry(house):
    """A docker-registry on loopback: `registry.address` is "127.0.0.1:PORT", and it holds `busybox`."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tempfile, "tempdir", house.path)  # beneath the house, so that a killed session's registry is swept too
        served = Registry()
    with served:
        served.push("busybox", busybox_image())
        yield served


@pytest.fixture
def box(utsuwa, registry):
    """Containers of the registry's busybox in this lane; see support/containers.py."""
    made = Box(utsuwa, f"{registry.address}/busybox")
    yield made
    made.close()


# ---- nothing is left

@pytest.fixture
def nothing_left(utsuwa, box):
    """After the test no container is known and `system check` says nothing."""
    yield
    box.close()
    left = utsuwa("ps", "-aq", check=True).lines
    if left:  # one failure, not one for every test that follows
        utsuwa("rm", "-f", "-v", *left)
    assert left == []
    found = utsuwa("system", "check")
    assert (found.code, found.out, found.err) == (0, "", ""), found



@pytest.fixture(scope="session")
def _watch(tmp_path_factory):
    """Where leaks are looked for; grows with the house and its user, so that a run of unit tests makes neither."""
    return leaks.Watch([], [str(tmp_path_factory.getbasetemp())], [])


@pytest.fixture(scope="module", autouse=True)
def _leaves_nothing(request, _watch):
    """Compare mounts, links, nft, cgroups, processes and state before and after each module; name what differs."""
    if request.node.get_closest_marker("leaves"):
        yield
        return
    before, neighbours = _watch.snapshot(), others(_watch.house)
    yield
    neighbours += others(_watch.house)
    if neighbours:
        crowded.add(request.node.name)
    if lines := _watch.settle(before, alone=not neighbours):
        pytest.fail(f"{request.node.name} leaves things behind:\n" + "\n".join(lines), pytrace=False)
