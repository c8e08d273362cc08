"""The holder's own side: unshare, map, and become a program of some hundred bytes that only waits. Forked by holder.py; off the hot path.

Also says which wall stood in the way where a kernel forbids user namespaces to ordinary users.
"""

from __future__ import annotations

import errno
import os
import sys
from _struct import pack

from utsuwa.engine import subids
from utsuwa.errors import PermissionDenied
from utsuwa.kernel import credential, mount, namespace, process
from utsuwa.ledger import because
from utsuwa.runtime import handshake

TYPE_CHECKING = False
if TYPE_CHECKING:
    from socket import socket

    from utsuwa.engine.subids import Ranges

UNSHARED, MAPPED, PID, GO, REFUSED = "unshared", "mapped", "pid", "go", "refused"
"""The messages drawn in holder.py."""
NAME = "utsuwa-holder"
BASE = 0x400000
_PROGRAMS: dict[str, tuple[int, bytes]] = {  # machine: (e_machine of elf(5), code: wait for a signal, for ever)
    "x86_64": (62, bytes.fromhex("b822000000" "0f05" "ebf7")),  # mov eax, 34 (pause); syscall; jmp back
    "aarch64": (183, bytes.fromhex("000080d2" "010080d2" "020080d2" "030080d2" "280980d2" "010000d4" "faffff17")),  # ppoll(0, 0, 0, 0); b back
}


def program(machine: str) -> bytes:
    """Return a static ELF that waits for ever; b"" for a machine whose code is not known here. elf(5)"""
    if machine not in _PROGRAMS:
        return b""
    number, code = _PROGRAMS[machine]
    size = 64 + 56 + len(code)
    header = pack("<16sHHIQQQIHHHHHH", b"\x7fELF\x02\x01\x01", 2, number, 1, BASE + 120, 64, 0, 0, 64, 56, 1, 64, 0, 0)  # ET_EXEC, one segment
    segment = pack("<IIQQQQQQ", 1, 5, 0, BASE, BASE, size, size, 0x10000)  # PT_LOAD, read and execute
    return header + segment + code


def middle(parents: socket, sock: socket, ids: tuple[int, int, Ranges | None] | None) -> None:
    """Make the namespaces where `ids` says so, fork the holder into them, leave. What goes wrong goes up the socket."""
    parents.close()  # else its end would never be seen
    try:
        if ids is not None:
            unshare(sock, ids)
        process.fork("holder", lambda: hold(sock))
    except OSError as error:
        handshake.send(sock, REFUSED, (error.errno or 0, str(error.strerror)))


def unshare(sock: socket, ids: tuple[int, int, Ranges | None]) -> None:
    """Leave for namespaces of the user's own; return when ids are mapped there and we are 0. Raises OSError."""
    with because("an ordinary user may do what containers need only in a user namespace of its own", "user_namespaces(7)", 1):
        # Both at once: the user namespace comes first, and then owns the mount namespace. unshare(2)
        namespace.unshare(namespace.CLONE_NEWUSER | namespace.CLONE_NEWNS)
    uid, gid, ranges = ids
    if ranges is None:
        subids.write_single(uid, gid)
    handshake.send(sock, UNSHARED)
    if handshake.receive(sock) is None:
        os._exit(1)
    with because("inside the namespace the user is 0", "user_namespaces(7)", 1):
        credential.setresgid(0)
        credential.setresuid(0)
    with because("what the host mounts later comes in, nothing goes out", "mount_namespaces(7)", 1):
        mount.mount(None, "/", None, mount.MS_REC | mount.MS_SLAVE, None)


def hold(sock: socket) -> None:
    """Become the holder once the record is written; leave if nobody is there to write it."""
    with because("a session of its own: it outlives the terminal", "setsid(2)", 1):
        process.setsid()
    handshake.send(sock, PID, os.getpid())
    if handshake.receive(sock) is None:
        os._exit(1)
    os.chdir("/")
    null = os.open("/dev/null", os.O_RDWR | os.O_CLOEXEC)
    for fd in (0, 1, 2):
        os.dup2(null, fd)
    process.close_range(3, 0xFFFFFFFF, process.CLOSE_RANGE_CLOEXEC)
    _ignore_terminal()
    with because("the holder needs no interpreter: 129 bytes that wait", "execve(2), memfd_create(2)", 1):
        try:
            _become_program()
        except OSError:  # vm.memfd_noexec, or a machine whose code is not in the table: an interpreter waits as well, with more memory
            process.execve(sys.executable, [NAME, "-I", "-S", "-c", "import signal\nwhile True: signal.pause()"], {})


def _become_program() -> None:
    image = program(os.uname().machine)
    if not image:
        raise OSError(errno.ENOEXEC, "no program for this machine")
    fd = os.memfd_create(NAME, os.MFD_CLOEXEC)
    os.write(fd, image)
    os.fchmod(fd, 0o500)
    process.execve(f"/proc/self/fd/{fd}", [NAME], {})


def _ignore_terminal() -> None:
    import signal

    # Ignored signals stay ignored across execve. SIGTERM is left: that is how the holder is ended.
    for number in (signal.SIGHUP, signal.SIGINT, signal.SIGQUIT):
        signal.signal(number, signal.SIG_IGN)


# ------------------------------------------------------------------------------------------------------------- refusals

_SWITCHES = (  # file, what it must not say, why and what to do
    ("/proc/sys/kernel/unprivileged_userns_clone", "0", "this kernel forbids them to ordinary users; root can allow them with: sysctl -w kernel.unprivileged_userns_clone=1"),
    ("/proc/sys/user/max_user_namespaces", "0", "user.max_user_namespaces is 0; root can allow them with: sysctl -w user.max_user_namespaces=15000"),
    ("/proc/sys/user/max_mnt_namespaces", "0", "user.max_mnt_namespaces is 0; root can allow them with: sysctl -w user.max_mnt_namespaces=15000"),
    (
        "/proc/sys/kernel/apparmor_restrict_unprivileged_userns", "1",
        "AppArmor restricts them; root can allow them with: sysctl -w kernel.apparmor_restrict_unprivileged_userns=0, or with a profile for {python} that has `userns,`",
    ),
)


def refusal(number: int, text: str, switches: tuple[tuple[str, str, str], ...] = _SWITCHES) -> PermissionDenied:
    """Return the error that names which wall keeps this user out of a user namespace. `number` and `text` are the kernel's own answer."""
    for path, forbidden, advice in switches:
        if _read(path).strip() == forbidden:
            return PermissionDenied(f"cannot make a user namespace: {advice.format(python=sys.executable)}")
    reason = text
    if number == errno.ENOSPC:
        reason = "this user has as many as it may have, or they are nested too deep; see sysctl user.max_user_namespaces"
    elif number == errno.EPERM and "Seccomp:\t2" in _read("/proc/self/status"):
        reason = f"{text}; a system call filter is in force: is this inside a container? give that one --security-opt seccomp=unconfined"
    elif number == errno.EPERM:
        reason = f"{text}; is this a chroot, or a process whose ids its own namespace does not map?"
    return PermissionDenied(f"cannot make a user namespace: {reason}")


def _read(path: str) -> str:
    try:
        with open(path, encoding="ascii", errors="replace") as file:
            return file.read()
    except OSError:
        return ""
