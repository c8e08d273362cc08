"""Standard streams of a container: pipes, or a terminal of the container's own devpts. Never a socket, never the host's terminal."""

from __future__ import annotations

import fcntl
import os
import stat

import _signal as signal  # `signal` itself imports enum, 2 ms

from utsuwa.errors import RuntimeFailure
from utsuwa.kernel import files, mount, process
from utsuwa.kernel.door import close, is_real
from utsuwa.ledger import because
from utsuwa.runtime import handshake

TYPE_CHECKING = False
if TYPE_CHECKING:
    from utsuwa.runtime.init import Plan
    from utsuwa.runtime.rootfs import Root

TIOCSCTTY, TIOCSPTLCK, TIOCGPTPEER, TIOCSWINSZ, TIOCGPTN = 0x540E, 0x40045431, 0x5441, 0x5414, 0x80045430
PTMX_DEVICE = os.makedev(5, 2)


def set_up(plan: Plan, root: Root) -> None:
    """Give the process its standard streams; with a terminal, send its other end to the monitor and bind it on /dev/console."""
    spec: dict[str, object] = plan.config["process"]  # type: ignore[assignment]
    with because("a session of its own: signals of the caller's terminal do not reach it", "setsid(2)", 1):
        process.setsid()
    reset_signals()
    if not spec.get("terminal"):
        use_streams(plan.stdio, spec)
        return
    devpts = root.made_here("/dev/pts")
    if devpts < 0:
        raise RuntimeFailure("cannot make a terminal: the container has no /dev/pts of its own")
    master, slave = open_pair(devpts, spec)
    with because("/dev/console is the container's terminal", "OCI runtime-spec, process.terminal", 1):
        bind_console(root, master, slave)
    if plan.sock is not None and is_real():
        handshake.send(plan.sock, handshake.TTY, None, (master,))
        take(slave)
    close(master)


def reset_signals() -> None:
    """Ignore and block no signal. What Python, the monitor or its caller ignores would stay so past execve: `yes | head` would complain, and a shell can not even trap it.

    signal(7), execve(2); POSIX, trap.
    """
    if not is_real():
        return
    signal.set_wakeup_fd(-1)
    for number in signal.valid_signals() - {signal.SIGKILL, signal.SIGSTOP}:
        signal.signal(number, signal.SIG_DFL)
    process.default_internal_signals()
    signal.pthread_sigmask(signal.SIG_SETMASK, ())


def open_pair(devpts: int, spec: dict[str, object]) -> tuple[int, int]:
    """Return (master, slave) of a new terminal of the devpts that `devpts` stands for, owned by the container's user. devpts, ptmx."""
    if not is_real():
        return devpts, devpts
    master = files.openat2(devpts, "ptmx", os.O_RDWR | os.O_NOCTTY)
    if os.fstat(master).st_rdev != PTMX_DEVICE:  # a swapped node would hand us a foreign terminal: CVE-2025-52565
        raise RuntimeFailure("cannot make a terminal: /dev/pts/ptmx of the container is not a terminal multiplexer")
    fcntl.ioctl(master, TIOCSPTLCK, b"\0\0\0\0")
    # The slave by its master, not by a path the container could have replaced. ioctl_tty(2), TIOCGPTPEER
    slave = fcntl.ioctl(master, TIOCGPTPEER, os.O_RDWR | os.O_NOCTTY | os.O_CLOEXEC)
    user: dict[str, object] = spec.get("user") or {}  # type: ignore[assignment]
    os.fchown(slave, int(user.get("uid", 0)), -1)  # type: ignore[call-overload]
    size: dict[str, int] = spec.get("consoleSize") or {}  # type: ignore[assignment]
    if size:
        fcntl.ioctl(master, TIOCSWINSZ, size["height"].to_bytes(2, "little") + size["width"].to_bytes(2, "little") + bytes(4))
    return master, slave


def bind_console(root: Root, master: int, slave: int) -> None:
    """Bind the terminal's own node, reached through our descriptor of it, on /dev/console."""
    dev = root.made_here("/dev")
    if dev < 0:
        return
    try:
        files.mknodat(dev, "console", stat.S_IFREG | 0o600, 0)
    except FileExistsError:
        pass
    target = files.openat2(dev, "console", files.O_PATH | os.O_NOFOLLOW)
    number = str(int.from_bytes(fcntl.ioctl(master, TIOCGPTN, bytes(4)), "little")) if is_real() else "0"
    tree = mount.open_tree(root.mounts["/dev/pts"], number, mount.OPEN_TREE_CLONE | mount.OPEN_TREE_CLOEXEC)
    if is_real() and os.fstat(tree).st_rdev != os.fstat(slave).st_rdev:
        raise RuntimeFailure("cannot make a terminal: its node in /dev/pts was replaced")
    mount.move_mount(tree, target)
    close(tree)
    close(target)


def take(slave: int) -> None:
    """Make the terminal ours: controlling, and all three streams."""
    fcntl.ioctl(slave, TIOCSCTTY, 0)
    for fd in (0, 1, 2):
        os.dup2(slave, fd)
    os.close(slave)


def use_streams(stdio: tuple[int, ...], spec: dict[str, object]) -> None:
    """Make three descriptors the standard streams, owned by the container's user so that it can reopen /dev/stdout."""
    if not is_real():
        return
    user: dict[str, object] = spec.get("user") or {}  # type: ignore[assignment]
    uid = int(user.get("uid", 0))  # type: ignore[call-overload]
    for target, fd in enumerate(stdio):
        # Pipes only: another descriptor may be the host's /dev/null, whose owner would change for the whole machine (in a user namespace: EPERM).
        if uid and stat.S_ISFIFO(os.fstat(fd).st_mode):
            os.fchown(fd, uid, -1)
        os.dup2(fd, target)
    for fd in set(stdio):
        if fd > 2:
            os.close(fd)


