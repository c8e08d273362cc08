"""exec: one more process in a running container. Its pipes or terminal come straight to the caller: the monitor only forks and waits."""

from __future__ import annotations

import os
import time
from marshal import loads

from utsuwa.container import user as users
from utsuwa.engine import containers, foreground
from utsuwa.errors import Conflict, UsageError, UtsuwaError, carried
from utsuwa.kernel import files, process
from utsuwa.runtime import handshake

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from socket import socket

    from utsuwa.engine.context import Context

    Spec = dict[str, object]

PASSWD_LIMIT = 1 << 20
DRAIN_SECONDS = 2.0
REST = 1 << 20
"""As much as a pipe may hold (pipe-max-size, pipe(7)): what the program itself had written before its end."""


class Exec:
    """What a caller asks of exec; `container` an id, name or prefix. The rest as in RunOptions."""

    __slots__ = ("args", "container", "detach", "detach_keys", "env", "interactive", "terminal", "user", "workdir")

    def __init__(self, container: str, args: list[str], *, env: list[str] | None = None, user: str = "", workdir: str = "", terminal: bool = False, interactive: bool = False, detach: bool = False) -> None:
        self.container, self.args, self.env, self.user, self.workdir = container, args, env or [], user, workdir
        self.terminal, self.interactive, self.detach = terminal, interactive, detach
        self.detach_keys = b"\x10\x11"


def run(context: Context, wanted: Exec, *, stdin: int = -1, output: Callable[[str, bytes], None] = foreground.to_streams, signals: bool = False) -> int:
    """Run a command in a running container and return its exit code (0 when detached).

    Raises NotFound, Conflict for one that does not run, CommandError, UsageError.
    """
    row = containers.find(context, wanted.container)
    sock = _connect(context, row.id)
    try:
        known: Spec = loads(context.db.read("SELECT record FROM container WHERE id=?", row.id)[0][0])  # type: ignore[arg-type] # noqa: S302 - our own database, 0700
        pid = _container_pid(context, row.id)
        spec = _process(known, wanted, pid)
        session = _Session(wanted, stdin, output)
        with session:
            handshake.send(sock, handshake.EXEC, spec, session.theirs)
            session.started(sock)
            if wanted.detach:
                return 0
            return session.follow(sock, signals=signals)
    finally:
        sock.close()


def _connect(context: Context, container: str) -> socket:
    try:
        return handshake.connect(containers.monitor_socket(context, container))
    except OSError:
        raise Conflict(f"container {container} is not running") from None


def _container_pid(context: Context, container: str) -> int:
    """Return the pid of the container's first process, from a state file that the monitor just proved alive."""
    with open(context.paths.container(container) + "/state.json", encoding="utf-8") as file:
        text = file.read()
    if '"status":"running"' not in text:
        raise Conflict(f"container {container} is not running")
    return int(text.partition('"pid":')[2].partition(",")[0].rstrip("}"))


def _process(known: Spec, wanted: Exec, pid: int) -> Spec:
    base: Spec = known["config"]["process"]  # type: ignore[index]
    user: dict[str, object] = base["user"]  # type: ignore[assignment]
    environ = [*base["env"]]  # type: ignore[misc]
    if wanted.user:
        found = users.resolve(wanted.user, _container_file(pid, "etc/passwd"), _container_file(pid, "etc/group"))
        if process.in_user_namespace():
            from utsuwa.engine.config import check_ids

            found.groups = check_ids(found)
        user = {"uid": found.uid, "gid": found.gid, "additionalGids": found.groups}
        asked = [*known["options"].get("env", ()), *(known["image_config"].get("Env") or ())]  # type: ignore[attr-defined]
        if not any(str(entry).startswith("HOME=") for entry in asked):  # nobody's choice: it follows the user
            environ = [entry for entry in environ if not str(entry).startswith("HOME=")] + [f"HOME={found.home}"]
    if wanted.terminal and not any(str(entry).startswith("TERM=") for entry in environ):
        environ.append("TERM=xterm")
    names = {entry.partition("=")[0] for entry in wanted.env}
    environ = [entry for entry in environ if str(entry).partition("=")[0] not in names] + [entry for entry in wanted.env if "=" in entry]
    if any("\0" in word for word in wanted.args):
        raise UsageError("invalid command: a word contains a NUL character")
    kept = base["capabilities"]["bounding"]  # type: ignore[index]
    effective = kept if not user["uid"] else []
    return {
        **base, "terminal": wanted.terminal, "args": wanted.args, "env": environ, "user": user, "cwd": wanted.workdir or base["cwd"],
        "capabilities": {"bounding": kept, "effective": effective, "permitted": effective}, "consoleSize": _size(wanted),
    }


def _size(wanted: Exec) -> dict[str, int] | None:
    rows, columns = foreground.screen() if wanted.terminal else (0, 0)
    return {"height": rows, "width": columns} if rows else None


def _container_file(pid: int, path: str) -> bytes | None:
    """Return a regular file of the container, beneath its root and of bounded size; None where there is none (CVE-2019-14271)."""
    root = os.open(f"/proc/{pid}/root", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fd = files.openat2(root, path, files.O_PATH)
    except OSError:
        return None
    finally:
        os.close(root)
    try:
        import stat

        if not stat.S_ISREG(os.fstat(fd).st_mode):  # a FIFO would hold us, a device could do anything: not opened before it is known
            return None
        reading = os.open(f"/proc/self/fd/{fd}", os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        try:
            return os.read(reading, PASSWD_LIMIT)
        finally:
            os.close(reading)
    finally:
        os.close(fd)


class _Session:
    """The caller's ends of the streams: three pipes, or the terminal's master once it has come. A context manager that closes them."""

    def __init__(self, wanted: Exec, stdin: int, output: Callable[[str, bytes], None]) -> None:
        self.wanted, self.stdin, self.output = wanted, stdin if wanted.interactive and not wanted.detach else -1, output
        self.pid = 0
        self.into = -1
        self.out: dict[int, str] = {}
        self.theirs: tuple[int, ...] = ()
        if wanted.terminal:
            return
        null = os.open("/dev/null", os.O_RDWR | os.O_CLOEXEC)
        if wanted.detach:
            self.theirs = (null, null, null)
            return
        theirs, self.into = os.pipe2(os.O_CLOEXEC) if self.stdin >= 0 else (os.dup(null), -1)
        os.close(null)
        out, out_theirs = os.pipe2(os.O_CLOEXEC)
        err, err_theirs = os.pipe2(os.O_CLOEXEC)
        self.out = {out: "stdout", err: "stderr"}
        self.theirs = (theirs, out_theirs, err_theirs)

    def __enter__(self) -> None:
        return

    def __exit__(self, *_: object) -> None:
        for fd in {*self.theirs, *self.out, self.into}:
            if fd >= 0:
                os.close(fd)
        self.theirs, self.out, self.into = (), {}, -1

    def started(self, sock: socket) -> None:
        """Take the terminal, if there is one, and the news that the program runs. Raises what it failed with."""
        for fd in set(self.theirs):
            os.close(fd)
        self.theirs = ()
        while True:
            message = handshake.receive(sock)
            if message is None:
                raise UtsuwaError("cannot enter the container: it has just ended")
            kind, body, fds = message
            if kind == handshake.TTY:
                self.into = fds[0]
                self.out = {self.into: "stdout"}
            elif kind == handshake.FAILED:
                raise carried(body)
            elif kind == handshake.RUNNING:
                self.pid = body  # type: ignore[assignment]
                return

    def follow(self, sock: socket, *, signals: bool) -> int:
        """Relay until the program has ended and its output is drained (for a bounded time: a child may hold the pipe)."""
        relay = _Direct(self, sock, terminal=self.wanted.terminal, keys=self.wanted.detach_keys, signals=signals)
        return relay.run().code


class _Direct(foreground.Relay):
    """A relay whose streams are the program's own pipes or terminal; the socket only tells the end."""

    def __init__(self, session: _Session, sock: socket, *, terminal: bool, keys: bytes, signals: bool) -> None:
        super().__init__(sock, stdin=session.stdin, output=session.output, terminal=terminal, keys=keys, signals=signals)
        self.session = session
        self.pending = memoryview(b"")
        self.ended: foreground.Outcome | None = None
        self.until, self.rest = 0.0, REST
        if session.into >= 0:
            os.set_blocking(session.into, False)

    def _turn(self) -> None:
        session = self.session
        watched = [*session.out, *([self._wake] if self._wake >= 0 else [])]
        if self.ended is None:
            watched.append(self.sock.fileno())
            if self.stdin >= 0 and not self.pending:
                watched.append(self.stdin)
        writing = [session.into] if self.pending else []
        left = None if self.ended is None else max(0.0, self.until - time.monotonic())
        ready = foreground.wait_ready(watched, writing, left)
        if self._wake in ready:
            os.read(self._wake, 512)
        coming = [fd for fd in session.out if fd in ready]
        for fd in coming:
            self._read(fd)
        if self.pending:
            self._write()
        if self.ended is None:
            if self.sock.fileno() in ready:
                self._message()
                self._end()
            elif self.stdin in ready:
                self._input()
        elif not session.out or (time.monotonic() >= self.until and (not coming or self.rest <= 0)):
            self.outcome = self.ended

    def _end(self) -> None:
        """The program has ended, or the container: what it wrote is in the pipes. A time for what its children may add, which none of their writing prolongs for ever."""
        if self.outcome is not None:
            self.ended, self.until = self.outcome, time.monotonic() + DRAIN_SECONDS
            if self.session.out:
                self.outcome = None

    def _read(self, fd: int) -> None:
        try:
            data = os.read(fd, 65536)
        except BlockingIOError:
            return
        except OSError:  # EIO: nobody has the terminal any more
            data = b""
        if data:
            self.rest -= len(data) if self.ended is not None else 0
            self.output(self.session.out[fd], data)
            return
        del self.session.out[fd]
        if fd != self.session.into:
            os.close(fd)

    def _write(self) -> None:
        try:
            self.pending = self.pending[os.write(self.session.into, self.pending):]
        except BlockingIOError:
            return
        except OSError:  # it closed its input
            self.pending = memoryview(b"")
            self.stdin = -1

    def _let_go(self) -> None:
        """Give the terminal to the monitor: without one who has its other end the program would be hung up."""
        try:
            handshake.send(self.sock, handshake.TTY, None, (self.session.into,))
        except OSError:  # it has just ended
            return

    def _send(self, kind: str, body: object) -> bool:
        session = self.session
        if kind == handshake.INPUT:
            self.pending = memoryview(bytes(self.pending) + body)  # type: ignore[operator]
            self._write()
            return False
        if kind == handshake.END_INPUT:
            if session.into >= 0 and session.into not in session.out and not self.pending:
                os.close(session.into)
                session.into = -1
            return False
        if kind == handshake.RESIZE:
            import fcntl

            size: tuple[int, int] = body  # type: ignore[assignment]
            rows, columns = size
            if session.into >= 0:
                fcntl.ioctl(session.into, 0x5414, rows.to_bytes(2, "little") + columns.to_bytes(2, "little") + bytes(4))
            return False
        return super()._send(kind, (body, session.pid)) if kind == handshake.SIGNAL else super()._send(kind, body)
