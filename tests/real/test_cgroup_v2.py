"""What cgroup v2 does for a container, on the v2 hierarchy that a hybrid machine has too: the device program, killing, removing."""

import errno
import os
import secrets
import time

import pytest

from utsuwa import ledger
from utsuwa.container import cgroup
from utsuwa.security import devices

UNIFIED = cgroup.discover().unified
pytestmark = [
    pytest.mark.root_only("control groups are root's"),
    pytest.mark.skipif(not UNIFIED, reason="no cgroup2 hierarchy is mounted"),
]


@pytest.fixture
def group():
    """A group of our own with the default device rules: hierarchy → directory."""
    parent = f"/utsuwa-test-{secrets.token_hex(4)}"
    with ledger.recording(ledger.Ledger("engine", ledger.nowhere)):
        directories = cgroup.make(cgroup.Groups({}, UNIFIED), parent + "/c1", {"devices": devices.rules()})
        yield directories
        cgroup.kill(directories, time.sleep)
        cgroup.remove(directories, time.sleep)
    os.rmdir(UNIFIED + parent)


def inside(directories, action):
    """Return the errno with which `action` failed in a child in the group, 0 where it did not."""
    pid = os.fork()
    if not pid:
        code = 255
        try:
            cgroup.enter(directories)
            action()
            code = 0
        except OSError as error:
            code = error.errno
        finally:
            os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def test_only_the_default_devices_can_be_opened(group, tmp_path):
    for name, major, minor in (("mem", 1, 1), ("kmsg", 1, 11)):
        os.mknod(tmp_path / name, 0o20600, os.makedev(major, minor))
    os.mknod(tmp_path / "disk", 0o60600, os.makedev(7, 0))
    assert inside(group, lambda: os.open("/dev/null", os.O_RDWR)) == 0
    assert inside(group, lambda: os.open("/dev/urandom", os.O_RDONLY)) == 0
    assert inside(group, lambda: os.mknod(tmp_path / "made", 0o60600, os.makedev(8, 0))) == 0  # it may be made, not opened
    for name in ("mem", "kmsg", "disk", "made"):
        assert inside(group, lambda name=name: os.open(tmp_path / name, os.O_RDONLY)) == errno.EPERM


def test_all_of_a_group_ends_at_once(group):
    pids = []
    for _ in range(5):
        pid = os.fork()
        if not pid:
            cgroup.enter(group)
            time.sleep(60)
            os._exit(0)
        pids.append(pid)
    deadline = time.monotonic() + 10
    while len(cgroup.processes(group)) < 5 and time.monotonic() < deadline:
        time.sleep(0.005)
    assert sorted(cgroup.processes(group)) == sorted(pids)
    cgroup.kill(group, time.sleep)
    assert [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in pids] == [-9] * 5
    assert cgroup.processes(group) == []
