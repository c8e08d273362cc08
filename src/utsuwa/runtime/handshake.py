"""How engine, monitor and init speak: one message a record over SOCK_SEQPACKET, marshalled, descriptors by SCM_RIGHTS.

Create and start:

    engine                              monitor                              init
      │ spawn ───────────────────────────▶ boots
      │ CREATE(config, fds) ─────────────▶ cgroups made; root mounted,
      │                                    detached; clone(CLONE_NEW*) ───────▶ PID 1: not dumpable; enters its
      │                                                                         cgroups; joins pinned namespaces;
      │                                                                         unshares the cgroup one, last
      │                                                        (ledger: memfd) mounts, /dev, pivot_root, masks,
      │                                    ◀──────────────────── TTY(fd) ───── console, bounding set, seccomp, ids
      │ ◀──────────── CREATED(pid) ─────── ◀──────────────────── READY ─────── waits
      │ START ───────────────────────────▶ GO ────────────────────────────────▶ execve; its end closes
      │ ◀──────────── RUNNING ──────────── end of file: execve happened
      │ ◀──────────── OUTPUT… ──────────── pipes or pty, logged
      │ ◀──────────── EXITED(code) ─────── reaps, state.json
      │ DONE ────────────────────────────▶ (the caller has cleaned up) leaves

End of file on the engine's side without DONE gives the clean-up back to the monitor; before START it undoes the container, and DONE there says that
the caller undoes the rest. FAILED(kind, message, exit_code) may come instead of any answer. INPUT is answered by TAKEN when the container has it.

An exec session is a fork of the monitor that joins the namespaces and forks once more: PID(pid) tells which process that is.

Attach, exec, wait, signal and resize are requests on the monitor's own socket, with the same messages.
"""

from __future__ import annotations

import marshal
import os
from _struct import calcsize, pack, unpack

import _socket

TYPE_CHECKING = False
if TYPE_CHECKING:
    from socket import socket

    Message = tuple[str, object]

# engine → monitor
CREATE, START, DONE, INPUT, END_INPUT, RESIZE, ATTACH, EXEC, WAIT, SIGNAL = "create", "start", "done", "input", "end-input", "resize", "attach", "exec", "wait", "signal"
# monitor → engine
CREATED, RUNNING, OUTPUT, EXITED, FAILED, TAKEN = "created", "running", "output", "exited", "failed", "taken"
# init → monitor, and the one answer
PID, TTY, READY, GO = "pid", "tty", "ready", "go"

MESSAGE_LIMIT = 65536
"""A longer message travels in a memfd: SOCK_SEQPACKET must fit one into the socket's buffer (212992 bytes by default)."""
OUTPUT_CHUNK = 32768
_MOST_FDS = 32


def pair() -> tuple[socket, socket]:
    """Return two connected sockets, close-on-exec. unix(7)."""
    return _socket.socketpair(_socket.AF_UNIX, _socket.SOCK_SEQPACKET | _socket.SOCK_CLOEXEC)  # type: ignore[return-value]


def socketpair_fds() -> tuple[int, int]:
    """The same as bare descriptors, for a spawn."""
    left, right = pair()
    return left.detach(), right.detach()


def adopt(descriptor: int) -> socket:
    """Return a socket object for an inherited descriptor; it owns the descriptor from now on."""
    return _socket.socket(_socket.AF_UNIX, _socket.SOCK_SEQPACKET, 0, descriptor)  # type: ignore[return-value]


def send(sock: socket, kind: str, body: object = None, fds: tuple[int, ...] = (), flags: int = 0) -> None:
    """Send one message. Raises OSError: EPIPE when the other side is gone, EAGAIN with MSG_DONTWAIT in `flags`. The caller keeps its descriptors."""
    data = marshal.dumps((kind, body))  # type: ignore[arg-type]
    memfd = -1
    if len(data) > MESSAGE_LIMIT:
        memfd = os.memfd_create("message", os.MFD_CLOEXEC)
        view = memoryview(data)
        while view:
            view = view[os.write(memfd, view):]
        data, fds = marshal.dumps(("memfd", len(data))), (memfd, *fds)
    try:
        ancillary = [(_socket.SOL_SOCKET, _socket.SCM_RIGHTS, pack(f"{len(fds)}i", *fds))] if fds else []
        sock.sendmsg([data], ancillary, _socket.MSG_NOSIGNAL | flags)
    finally:
        if memfd >= 0:
            os.close(memfd)


def receive(sock: socket) -> tuple[str, object, list[int]] | None:
    """Return (kind, body, descriptors) of the next message, or None at end of file. Received descriptors are close-on-exec.

    Raises BlockingIOError where the socket does not block and nothing is there.
    """
    for _ in range(2):
        try:
            data, ancillary, flags, _address = sock.recvmsg(MESSAGE_LIMIT + 4096, _socket.CMSG_SPACE(_MOST_FDS * 4), _socket.MSG_CMSG_CLOEXEC)
            break
        except ConnectionResetError:  # told once, when the other end left something of ours unread; what it had sent is still to be read. unix(7)
            continue
    else:
        return None
    fds: list[int] = []
    for level, kind, payload in ancillary:
        if level == _socket.SOL_SOCKET and kind == _socket.SCM_RIGHTS:
            count = len(payload) // calcsize("i")
            fds += unpack(f"{count}i", payload[: count * calcsize("i")])
    if not data or flags & (_socket.MSG_TRUNC | _socket.MSG_CTRUNC):
        for fd in fds:
            os.close(fd)
        return None
    message, body = marshal.loads(data)  # noqa: S302 - both ends are ours: 0600 path, SO_PEERCRED, socketpair
    if message == "memfd":
        memfd = fds.pop(0)
        try:
            message, body = marshal.loads(_read_all(memfd, body))  # noqa: S302
        finally:
            os.close(memfd)
    return message, body, fds


def connect(path: str) -> socket:
    """Connect to a monitor by the path of its socket, through its directory's descriptor (sun_path holds 108 bytes). Raises OSError. unix(7)"""
    directory, _, name = path.rpartition("/")
    fd = os.open(directory, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        sock = _socket.socket(_socket.AF_UNIX, _socket.SOCK_SEQPACKET | _socket.SOCK_CLOEXEC)
        sock.connect(f"/proc/self/fd/{fd}/{name}")
    finally:
        os.close(fd)
    return sock  # type: ignore[return-value]


def _read_all(memfd: int, length: int) -> bytes:
    parts, offset = [], 0
    while offset < length:
        part = os.pread(memfd, length - offset, offset)
        if not part:
            break
        parts.append(part)
        offset += len(part)
    return b"".join(parts)
