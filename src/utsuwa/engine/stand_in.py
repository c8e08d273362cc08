"""A monitor in the holder's place: it lives in the same namespaces, so that containers stay within reach when the holder was killed."""

from __future__ import annotations

import fcntl
import os

from utsuwa.kernel import process, userns
from utsuwa.kernel.door import close

TYPE_CHECKING = False
if TYPE_CHECKING:
    from utsuwa.state.paths import Paths

_MARK = b"utsuwa.monitor.main"


def find(paths: Paths, uid: int) -> int:
    """Return a pidfd of any living monitor of these paths whose user namespace is this user's own, or -1."""
    directory = paths.root + "/containers"
    boot = process.boot_id()
    for name in sorted(os.listdir(directory)):
        pid = _claimed(f"{directory}/{name}", boot)
        if pid <= 0:
            continue
        try:
            pidfd = process.pidfd_open(pid)
        except OSError:
            continue
        # After pidfd_open: what is looked at now is the process that will be joined.
        if _is_monitor(pid) and _is_ours(pid, uid) and _is_locked(f"{directory}/{name}/lock"):
            return pidfd
        close(pidfd)
    return -1


def _claimed(directory: str, boot: str) -> int:
    """Return the pid that a container's state.json names as its monitor, 0 where there is none or it is another boot's."""
    import json

    try:
        with open(directory + "/state.json", encoding="utf-8") as file:
            state = json.load(file)
        return int(state["monitor"]) if state.get("boot") == boot else 0
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return 0


def _is_locked(path: str) -> bool:
    """Whether the lock that a monitor holds for life is held."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(fd)
    return False


def _is_monitor(pid: int) -> bool:
    """Whether the process runs a monitor: its pid alone could by now be a browser's, which has a user namespace of this user's too."""
    try:
        with open(f"/proc/{pid}/cmdline", "rb") as file:
            return _MARK in file.read(4096)
    except OSError:
        return False


def _is_ours(pid: int, uid: int) -> bool:
    """Whether its user namespace was made by this user and lies directly in ours. ioctl_ns(2)"""
    try:
        here = os.stat("/proc/self/ns/user")
        fd = os.open(f"/proc/{pid}/ns/user", os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        return userns.owner_uid(fd) == uid and userns.parent(fd) == (here.st_dev, here.st_ino)
    except OSError:
        return False
    finally:
        os.close(fd)
