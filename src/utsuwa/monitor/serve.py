"""The monitor's socket: attach, exec, wait, input and resize. A path in a 0700 directory, 0600, only for the same user (SO_PEERCRED)."""

from __future__ import annotations

import fcntl
import os
import select
from _struct import unpack

import _socket

from utsuwa.kernel import namespace, process
from utsuwa.ledger import because
from utsuwa.runtime import enter, handshake
from utsuwa.runtime.terminal import TIOCSWINSZ

TYPE_CHECKING = False
if TYPE_CHECKING:
    from socket import socket

    from utsuwa.monitor.main import Monitor

    Spec = dict[str, object]
    Message = tuple[str, object, list[int]]

_JOIN = {"pid": namespace.CLONE_NEWPID, "mount": namespace.CLONE_NEWNS, "uts": namespace.CLONE_NEWUTS, "ipc": namespace.CLONE_NEWIPC,
         "network": namespace.CLONE_NEWNET, "cgroup": namespace.CLONE_NEWCGROUP}


class Server:
    """Listens beside the event loop; `clients` are sockets by descriptor."""

    def __init__(self, monitor: Monitor) -> None:
        self.monitor = monitor
        self.clients: dict[int, socket] = {}
        self.attached: set[int] = set()
        self.waiting: set[int] = set()
        self.sessions: dict[int, int] = {}  # pid of an exec session -> its client
        directory = os.open(str(monitor.bundle["run_directory"]), os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        self._listener: socket = _socket.socket(_socket.AF_UNIX, _socket.SOCK_SEQPACKET | _socket.SOCK_CLOEXEC | _socket.SOCK_NONBLOCK)  # type: ignore[assignment]
        os.umask(0o077)
        # Through the directory's descriptor: a 64-digit id nearly fills the 108 bytes of sun_path. unix(7)
        self._listener.bind(f"/proc/self/fd/{directory}/monitor.sock")
        self._listener.listen(16)
        os.umask(0o022)
        os.close(directory)

    def fileno(self) -> int:
        return self._listener.fileno()

    def ready(self, fd: int) -> None:
        """Serve one descriptor the event loop found ready."""
        if fd == self._listener.fileno():
            self._accept()
        elif fd in self.clients:
            try:
                message = handshake.receive(self.clients[fd])
            except OSError:
                message = None
            if message is None:
                self._drop(fd)
            else:
                self._request(fd, message)

    def _accept(self) -> None:
        try:
            fd, _ = self._listener._accept()  # type: ignore[attr-defined]
        except OSError:
            return
        client = handshake.adopt(fd)
        _, uid, _ = unpack("3i", client.getsockopt(_socket.SOL_SOCKET, _socket.SO_PEERCRED, 12))
        if uid != os.geteuid():
            client.close()
            return
        self.clients[fd] = client
        self.monitor.poll.register(fd, select.EPOLLIN)

    def _drop(self, fd: int) -> None:
        self.monitor.poll.unregister(fd)
        self.clients.pop(fd).close()
        self.attached.discard(fd)
        self.waiting.discard(fd)

    def _request(self, fd: int, message: Message) -> None:
        kind, body, fds = message
        if kind == handshake.ATTACH:
            self.attached.add(fd)
            self.waiting.add(fd)
            self._tell(fd, handshake.RUNNING, bool(self.monitor.config["process"].get("terminal")))  # type: ignore[attr-defined]
        elif kind == handshake.WAIT:
            self.waiting.add(fd)
        elif kind == handshake.EXEC:
            self._exec(fd, body, fds)  # type: ignore[arg-type]
        else:
            self.input(message)

    def _tell(self, fd: int, kind: str, body: object, fds: tuple[int, ...] = ()) -> None:
        client = self.clients.get(fd)
        if client is None:
            return
        try:
            handshake.send(client, kind, body, fds)
        except OSError:
            self._drop(fd)

    def input(self, message: Message) -> None:
        """Input, its end, or a new size of the terminal."""
        kind, body, fds = message
        for fd in fds:
            os.close(fd)
        target = self.monitor.stdin_fd
        if target < 0:
            return
        try:
            if kind == handshake.INPUT:
                view = memoryview(body)  # type: ignore[arg-type]
                while view:
                    view = view[os.write(target, view):]
            elif kind == handshake.RESIZE:
                rows, columns = body  # type: ignore[misc]
                fcntl.ioctl(target, TIOCSWINSZ, rows.to_bytes(2, "little") + columns.to_bytes(2, "little") + bytes(4))
            elif kind == handshake.END_INPUT and target not in self.monitor.streams:
                os.close(target)
                self.monitor.stdin_fd = -1
        except OSError:  # the container closed its input
            return

    def output(self, stream: str, data: bytes) -> None:
        """Pass output on to whoever is attached."""
        for fd in tuple(self.attached):
            self._tell(fd, handshake.OUTPUT, (stream, data))

    # ---- exec

    def _exec(self, fd: int, spec: Spec, fds: list[int]) -> None:
        monitor = self.monitor
        ours, theirs = handshake.pair()
        bundle = {**monitor.bundle, **spec["walls"]}  # type: ignore[dict-item]
        flags = 0
        for item in monitor.config["linux"]["namespaces"]:  # type: ignore[index]
            flags |= _JOIN[item["type"]]
        pidfd = process.pidfd_open(monitor.attempt.pid)
        entry = enter.Entry(spec["process"], bundle, pidfd, flags, monitor.attempt.directories, tuple(fds), theirs)  # type: ignore[arg-type]
        with because("one more process for the container; it joins from a fork, so the monitor never leaves its own namespaces", "setns(2)", 1):
            middle = process.fork("exec", lambda: enter.main(entry))
        for each in (*fds, pidfd):
            os.close(each)
        theirs.close()
        pid, failure = self._follow(fd, ours)
        ours.close()
        os.waitpid(middle, 0)
        if failure is not None or not pid:
            self._tell(fd, handshake.FAILED, failure or ("RuntimeFailure", "cannot enter the container: it is gone", 125))
            return
        self.sessions[pid] = fd
        self._tell(fd, handshake.RUNNING, pid)
        monitor.reap()

    def _follow(self, fd: int, sock: socket) -> tuple[int, object]:
        """Take the new process's messages until execve closes its end. Returns (pid, failure or None)."""
        pid, failure = 0, None
        while (message := handshake.receive(sock)) is not None:
            kind, body, fds = message
            if kind == handshake.PID:
                pid = body  # type: ignore[assignment]
            elif kind == handshake.LEDGER:
                self.monitor.init_ledger.write(body)  # type: ignore[arg-type]
            elif kind == handshake.TTY:
                self._tell(fd, handshake.TTY, None, tuple(fds))
            elif kind == handshake.FAILED:
                failure = body
            for each in fds:
                os.close(each)
        return pid, failure

    def ended(self, pid: int, code: int) -> None:
        """An exec session's process has ended."""
        fd = self.sessions.pop(pid, -1)
        if fd >= 0:
            self._tell(fd, handshake.EXITED, (code, False))

    def close(self, code: int) -> None:
        """Tell everyone that the container has ended, and stop listening."""
        for fd in tuple(self.waiting | set(self.sessions.values())):
            self._tell(fd, handshake.EXITED, (code, False))
        self._listener.close()
        try:
            os.unlink(str(self.monitor.bundle["run_directory"]) + "/monitor.sock")
        except OSError:
            return
