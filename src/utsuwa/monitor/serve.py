"""The monitor's socket: attach, exec, wait, signal, input and resize. A path in a 0700 directory, 0600, only for the same user (SO_PEERCRED)."""

from __future__ import annotations

import fcntl
import os
import select
from _struct import unpack

import _socket

from utsuwa.container import cgroup
from utsuwa.kernel import process
from utsuwa.kernel.door import close
from utsuwa.ledger import because
from utsuwa.monitor.clients import Client, deliver
from utsuwa.runtime import enter, handshake, init
from utsuwa.runtime.terminal import TIOCSWINSZ

TYPE_CHECKING = False
if TYPE_CHECKING:
    from socket import socket

    from utsuwa.monitor.main import Monitor

    Spec = dict[str, object]
    Message = tuple[str, object, list[int]]


class Birth:
    """A process on its way into the container: for which `client` (None once it has gone), our end of its handshake, its pid and failure as they become known."""

    __slots__ = ("client", "failure", "pid", "sock")

    def __init__(self, client: Client, sock: socket) -> None:
        self.client: Client | None = client
        self.sock, self.pid = sock, 0
        self.failure: object = None


class Server:
    """Listens beside the event loop; `clients` by descriptor, the caller that made the container among them while it holds on."""

    def __init__(self, monitor: Monitor) -> None:
        self.monitor = monitor
        self.clients: dict[int, Client] = {}
        self.sessions: dict[int, int] = {}  # pid of an exec session -> its client
        self._births: dict[int, Birth] = {}  # exec sessions on their way, by our end of their handshake
        self._early: dict[int, int] = {}  # pid -> exit code of what ended before its birth was over
        self._kept: set[int] = set()  # terminals of exec sessions whose caller has let go
        directory = os.open(str(monitor.bundle["run_directory"]), os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        self._listener: socket = _socket.socket(_socket.AF_UNIX, _socket.SOCK_SEQPACKET | _socket.SOCK_CLOEXEC | _socket.SOCK_NONBLOCK)  # type: ignore[assignment]
        os.umask(0o177)
        # Through the directory's descriptor: a 64-digit id nearly fills the 108 bytes of sun_path. unix(7)
        self._listener.bind(f"/proc/self/fd/{directory}/monitor.sock")
        self._listener.listen(64)
        os.umask(0o022)
        os.close(directory)
        monitor.poll.register(self._listener.fileno(), select.EPOLLIN)

    def fileno(self) -> int:
        return self._listener.fileno()

    def ready(self, fd: int, events: int) -> None:
        """Serve one descriptor the event loop found ready."""
        if fd == self._listener.fileno():
            self._accept()
            return
        if fd in self._births:
            self._follow(self._births[fd])
            return
        if fd in self._kept:
            self._discard(fd)
            return
        client = self.clients.get(fd)
        if client is None:
            return
        try:
            if events & select.EPOLLOUT:
                client.flush()
            message = handshake.receive(client.sock) if events & ~select.EPOLLOUT else ("", None, [])
        except OSError:
            message = None
        if message is None or message[0] == handshake.DONE:
            self.drop(client)
        elif message[0]:
            self._request(client, message)

    def _accept(self) -> None:
        try:
            fd, _ = self._listener._accept()  # type: ignore[attr-defined] # noqa: SLF001 - what socket.accept itself calls
        except OSError:
            return
        sock = handshake.adopt(fd)
        _, uid, _ = unpack("3i", sock.getsockopt(_socket.SOL_SOCKET, _socket.SO_PEERCRED, 12))
        if uid != os.geteuid():
            sock.close()
            return
        self.clients[fd] = Client(sock, self.monitor.poll)

    def drop(self, client: Client) -> None:
        """Forget a client that has gone."""
        self.clients.pop(client.fileno(), None)
        self.monitor.stdin.forget(client)
        for pid, fd in tuple(self.sessions.items()):
            if fd == client.fileno():  # its number may be another's soon
                self.sessions[pid] = -1
        for birth in self._births.values():
            if birth.client is client:
                birth.client = None
        if client.owner and client.attached:  # whose input it was; as Docker has it (StdinOnce), nobody else's comes after
            self.monitor.stdin.end()
        client.close()

    def _request(self, client: Client, message: Message) -> None:
        kind, body, fds = message
        if kind == handshake.ATTACH:
            self.tell(client, handshake.RUNNING, bool(self.monitor.config["process"].get("terminal")))  # type: ignore[attr-defined]
            client.attached = client.waiting = True
        elif kind == handshake.WAIT:
            client.waiting = True
        elif kind == handshake.EXEC:
            self._exec(client, body, fds)  # type: ignore[arg-type]
            return
        elif kind == handshake.TTY:
            self._keep(fds)
            return
        elif kind == handshake.SIGNAL:
            self._signal(client, body)
        else:
            self._input(client, kind, body)
        for fd in fds:
            os.close(fd)

    def tell(self, client: Client, kind: str, body: object, fds: tuple[int, ...] = ()) -> None:
        """Send to a client; one that has gone is dropped."""
        try:
            client.send(kind, body, fds)
        except OSError:
            self.drop(client)

    def _signal(self, client: Client, body: object) -> None:
        """Signal the container's first process, or the session that this client started: (number) or (number, pid)."""
        number, pid = body if isinstance(body, tuple) else (body, self.monitor.attempt.pid)
        if pid != self.monitor.attempt.pid and self.sessions.get(pid) != client.fileno():
            return
        if pid > 0:  # not reaped yet, so the number is still its own
            with because("somebody signals the container", "kill(2)", 1):
                try:
                    process.kill(pid, number)
                except OSError:
                    return

    def _input(self, client: Client, kind: str, body: object) -> None:
        stdin = self.monitor.stdin
        if kind == handshake.INPUT:
            stdin.put(client, body)  # type: ignore[arg-type]
        elif kind == handshake.END_INPUT and client.owner:  # an attach that ends leaves the input open for the next
            stdin.end()
        elif kind == handshake.RESIZE and stdin.fd >= 0:
            size: tuple[int, int] = body  # type: ignore[assignment]
            rows, columns = size
            try:
                fcntl.ioctl(stdin.fd, TIOCSWINSZ, rows.to_bytes(2, "little") + columns.to_bytes(2, "little") + bytes(4))
            except OSError:  # the terminal is gone
                return

    def output(self, stream: str, data: bytes) -> None:
        """Pass output on to whoever is attached."""
        for client in tuple(self.clients.values()):
            if client.attached:
                self.tell(client, handshake.OUTPUT, (stream, data))

    def _keep(self, fds: list[int]) -> None:
        """Hold the terminal of an exec session whose caller has let go, so that its program is not hung up, and take its output, so that it is not held up."""
        for fd in fds:
            os.set_blocking(fd, False)
            self._kept.add(fd)
            self.monitor.poll.register(fd, select.EPOLLIN)

    def _discard(self, fd: int) -> None:
        try:
            if os.read(fd, handshake.OUTPUT_CHUNK):
                return
        except BlockingIOError:
            return
        except OSError:  # EIO: its last user is gone
            pass
        self._kept.discard(fd)
        self.monitor.poll.unregister(fd)
        os.close(fd)

    @property
    def full(self) -> bool:
        """Whether an attached client is so far behind that the container's output must wait. What one that has ended left in its pipes is taken at once: it is little."""
        return self.monitor.exit_code is None and any(client.full for client in self.clients.values())

    # ---- exec

    def _exec(self, client: Client, spec: Spec, fds: list[int]) -> None:
        """Send a process on its way into the container. Nothing here waits for it: what is in there could stop it on the way (kill -STOP -1), and us with it."""
        monitor = self.monitor
        ours, theirs = handshake.pair()
        held = [*fds]
        try:
            pidfd = process.pidfd_open(monitor.attempt.pid)  # EINVAL once the container has ended
            held.append(pidfd)
            group = cgroup.open_unified(monitor.attempt.directories)
            held += [group] if group >= 0 else []
            entry = enter.Entry(spec, monitor.bundle, enter.namespaces(monitor.config), pidfd, monitor.attempt.directories, tuple(fds), theirs, monitor.book.fd)
            with because("one more process for the container; it joins from a fork, so the monitor never leaves its own namespaces", "setns(2)", 1):
                process.fork("exec", lambda: enter.main(entry), group)
        except OSError as error:
            ours.close()
            text = f"cannot enter the container: {(error.strerror or '').lower()}" if monitor.attempt.pid else f"container {monitor.bundle['id']} is not running"
            self.tell(client, handshake.FAILED, ("Conflict" if not monitor.attempt.pid else "RuntimeFailure", text, 125))
        else:
            self._births[ours.fileno()] = Birth(client, ours)
            monitor.poll.register(ours.fileno(), select.EPOLLIN)
        finally:
            theirs.close()
            for each in held:
                close(each)

    def _follow(self, birth: Birth) -> None:
        """Take a message of a process on its way; execve closes its end."""
        try:
            message = handshake.receive(birth.sock)
        except OSError:
            message = None
        if message is None:
            self._born(birth)
            return
        kind, body, fds = message
        if kind == handshake.PID:
            birth.pid = body  # type: ignore[assignment]
        elif kind == handshake.TTY and birth.client is not None:
            self.tell(birth.client, handshake.TTY, None, tuple(fds))
        elif kind == handshake.FAILED:
            birth.failure = body
        for each in fds:
            os.close(each)

    def _born(self, birth: Birth) -> None:
        fd, monitor, client = birth.sock.fileno(), self.monitor, birth.client
        del self._births[fd]
        monitor.poll.unregister(fd)
        birth.sock.close()
        monitor.book.take(monitor.ledger_fd)
        if birth.failure is not None or not birth.pid:
            if client is not None:
                self.tell(client, handshake.FAILED, birth.failure or ("RuntimeFailure", "cannot enter the container: it is gone", 125))
        else:
            self.sessions[birth.pid] = client.fileno() if client is not None else -1
            if client is not None:
                self.tell(client, handshake.RUNNING, birth.pid)
            if birth.pid in self._early:
                self.ended(birth.pid, self._early[birth.pid])
        if not self._births:
            self._early.clear()

    def ended(self, pid: int, code: int) -> None:
        """A child that is not the container's first process has ended: of an exec session, or one on its way there."""
        if pid not in self.sessions and self._births:
            self._early[pid] = code
        client = self.clients.get(self.sessions.pop(pid, -1))
        if client is not None:
            self.tell(client, handshake.EXITED, (code, False))

    def close(self, code: int, *, oom: bool) -> None:
        """Stop listening, and tell everyone that the container has ended: who has heard it finds nobody to talk to. The owner stays."""
        self._listener.close()
        try:
            os.unlink(str(self.monitor.bundle["run_directory"]) + "/monitor.sock")
        except OSError:
            pass
        sessions = set(self.sessions.values())
        for fd, client in tuple(self.clients.items()):
            if client.owner or client.waiting or fd in sessions:
                self.tell(client, handshake.EXITED, (128 + 9, False) if fd in sessions else (code, oom))
        slow = [client for client in self.clients.values() if client.queue]
        if slow:
            keep = {self.monitor.poll.fileno(), *(client.fileno() for client in slow), *(fd for client in slow for _, _, fds in client.queue for fd in fds)}
            with because("who reads slowly gets the rest from a process of its own: the end waits for nobody", "fork(2)", 1):
                process.fork("deliver", lambda: _deliver(slow, keep))


def _deliver(slow: list[Client], keep: set[int]) -> None:
    init.keep_only(keep)
    deliver(slow)
