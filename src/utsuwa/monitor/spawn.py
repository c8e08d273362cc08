"""Starting a monitor: spawned, not forked, so that a program with threads can be the caller; at once, so that its boot costs no waiting.

It runs from a read-only clone of the interpreter: a container that reopens /proc/PID/exe for writing gets EROFS (CVE-2019-5736).
"""

from __future__ import annotations

import os
import sys

import _signal as signal  # `signal` itself imports enum, 2 ms

from utsuwa.errors import RuntimeFailure
from utsuwa.kernel import mount
from utsuwa.kernel.door import announce, close
from utsuwa.ledger import because
from utsuwa.runtime.handshake import socketpair_fds

_BOOT = "import gc, sys; gc.disable(); sys.path.append(sys.argv[1]); from utsuwa.monitor.main import main; main(int(sys.argv[2]), int(sys.argv[3]))"


def spawn() -> tuple[int, int]:
    """Return (our end of its socket, pid of the first of its two forks, to be waited for). Raises RuntimeFailure."""
    ours, theirs = socketpair_fds()
    package_parent = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
    with because("what enters a container runs from an interpreter that nobody can write", "CVE-2019-5736; open_tree(2)", 6):
        try:
            clone = mount.open_tree(mount.AT_FDCWD, os.path.realpath(sys.executable), mount.OPEN_TREE_CLONE | mount.OPEN_TREE_CLOEXEC)
            mount.mount_setattr(clone, "", mount.AT_EMPTY_PATH, mount.MOUNT_ATTR_RDONLY)
        except OSError as error:
            os.close(ours)
            os.close(theirs)
            raise RuntimeFailure(f"cannot make the interpreter read-only: {error.strerror}; utsuwa needs CAP_SYS_ADMIN, run it as root or with user namespaces") from None
    inherited, itself = [fd for fd in (3, 4, 5, 6) if fd not in (theirs, clone)][:2]
    argv = [sys.executable, "-I", "-S", "-c", _BOOT, package_parent, str(inherited), str(itself)]
    environ = {k: v for k, v in os.environ.items() if k in ("UTSUWA_FAULT", "UTSUWA_MODULES", "LANG", "LC_ALL", "TZ")}
    actions = [(os.POSIX_SPAWN_DUP2, theirs, inherited), (os.POSIX_SPAWN_DUP2, clone, itself), *_standard_streams()]
    with because("one monitor a container: its parent as long as it lives", "posix_spawn(3)", 1):
        try:
            if not announce("posix_spawn", (argv[0], *argv[1:])):
                return ours, 0
            pid = os.posix_spawn(f"/proc/self/fd/{clone}", argv, environ, file_actions=actions, setsigmask=(), setsigdef=signal.valid_signals() - {signal.SIGKILL, signal.SIGSTOP})
        finally:
            close(clone)
            os.close(theirs)
    return ours, pid


def _standard_streams() -> list[tuple[int, int, str, int, int]]:
    # The caller's streams are not the monitor's: a pipe read to its end must see that end when the caller is gone.
    keep_errors = bool(os.environ.get("UTSUWA_DEBUG"))
    return [(os.POSIX_SPAWN_OPEN, fd, "/dev/null", os.O_RDWR, 0) for fd in ((0, 1) if keep_errors else (0, 1, 2))]
