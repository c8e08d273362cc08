"""A monitor's life: boot, CREATE, the event loop, the end. Imports only what a container needs while it starts (design.md, section 6)."""

from __future__ import annotations

import fcntl
import os
import select
import sys
import time

import _signal as signal  # `signal` itself imports enum, 2 ms

from utsuwa import ledger
from utsuwa.container import cgroup
from utsuwa.errors import RuntimeFailure, UtsuwaError, carried
from utsuwa.kernel import process
from utsuwa.kernel.door import close, label
from utsuwa.ledger import because
from utsuwa.runtime import create, handshake, init

TYPE_CHECKING = False
if TYPE_CHECKING:
    from socket import socket

    from utsuwa.monitor.clients import Client, Stdin
    from utsuwa.monitor.log import Log
    from utsuwa.monitor.serve import Server

    Spec = dict[str, object]

DRAIN_SECONDS = 2.0


class Monitor:
    """One container's monitor. `engine` is the caller's connection, None once it has let go; `itself` the mount of our interpreter."""

    def __init__(self, engine: socket, itself: int) -> None:
        self.engine: socket | None = engine
        self.itself = itself
        self.config: Spec = {}
        self.bundle: Spec = {}
        self.attempt = create.Attempt()
        self.ledger_fd = self.lock_fd = self._stdin_fd = -1
        self.streams: dict[int, str] = {}
        self.state: Spec = {}
        self.poll = select.epoll()
        self.exit_code: int | None = None
        self.log: Log | None = None
        self.server: Server | None = None
        self.stdin: Stdin
        self.owner: Client | None = None
        self.paused = False
        self.ended_at = 0.0

    # ---- before the container runs

    def begin(self) -> None:
        """Take CREATE and carry it to CREATED, or say FAILED and leave."""
        assert self.engine is not None
        message = handshake.receive(self.engine)
        if message is None or message[0] != handshake.CREATE:
            os._exit(0)
        self.config, self.bundle = message[1]  # type: ignore[misc]
        try:
            self._own(message[2])
            theirs = self._streams()
            self.attempt = create.create(self.config, self.bundle, theirs, self.book.fd)
            for fd in set(theirs):
                os.close(fd)
            self._prepare()
            self._follow_init()
            handshake.send(self.engine, handshake.CREATED, self.attempt.pid)
            self.book.take(self.ledger_fd)
            self._write_state("created")
        except UtsuwaError as error:
            self._failed(type(error).__name__, str(error), error.exit_code)
        except OSError as error:
            self._failed("RuntimeFailure", f"cannot make the container: {error.strerror}", 125)

    def _own(self, fds: list[int]) -> None:
        """Take what makes us the one monitor: a session, the lock, the ledger, every orphan of the container."""
        directory = str(self.bundle["directory"])
        self.held = fds  # sockets that reserve published ports: open as long as we live
        self.lock_fd = os.open(directory + "/lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        fcntl.flock(self.lock_fd, fcntl.LOCK_EX)
        self.ledger_fd = os.open(directory + "/ledger.jsonl", os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)
        ledger.use(ledger.Ledger("monitor", ledger.to_file(self.ledger_fd)))
        self.book = ledger.Memory("init")
        create.adopt_orphans()
        create.retire(self.itself)
        os.close(self.itself)

    def _streams(self) -> tuple[int, ...]:
        """Make the container's streams; returns its ends, none with a terminal, which is made inside."""
        spec: Spec = self.config["process"]  # type: ignore[assignment]
        if spec.get("terminal"):
            return ()
        out, out_theirs = os.pipe2(os.O_CLOEXEC)
        err, err_theirs = os.pipe2(os.O_CLOEXEC)
        if self.bundle.get("interactive"):
            in_theirs, self._stdin_fd = os.pipe2(os.O_CLOEXEC)
        else:
            in_theirs = os.open("/dev/null", os.O_RDONLY | os.O_CLOEXEC)
        self.streams = {out: "stdout", err: "stderr"}
        return in_theirs, out_theirs, err_theirs

    def _prepare(self) -> None:
        """Make ready what the running container needs, while init works on the other core."""
        from utsuwa.monitor import clients, serve  # noqa: F401 - loaded now, used in `run`
        from utsuwa.monitor.log import Log

        self.log = Log(str(self.bundle["directory"]) + "/log")
        create.shelter(self.config)

    def _follow_init(self) -> None:
        """Take init's ledger lines until it waits for START. Raises what it failed with.

        Line by line while it works, on another core: taken at its end, they would cost the start 2 ms.
        """
        sock = self.attempt.sock
        assert sock is not None
        ready = select.poll()
        ready.register(sock.fileno(), select.POLLIN)
        while True:
            while not ready.poll(1):
                self.book.take(self.ledger_fd)
            message = handshake.receive(sock)
            if message is None:
                raise _lost(self.attempt.pid)
            if message[0] == handshake.READY:
                return
            self._from_init(message)

    def _from_init(self, message: tuple[str, object, list[int]]) -> None:
        kind, body, fds = message
        if kind == handshake.TTY:
            self._stdin_fd = label(fds[0], "terminal")
            self.streams = {fds[0]: "stdout"}
        elif kind == handshake.FAILED:
            raise carried(body)

    def _failed(self, kind: str, text: str, code: int) -> None:
        if self.ledger_fd >= 0:
            self.book.take(self.ledger_fd)
        self._destroy()
        try:
            if self.engine is not None:
                handshake.send(self.engine, handshake.FAILED, (kind, text, code))
                self._hand_back()
        except OSError:
            self._clean_up()
        os._exit(0)

    def _destroy(self) -> None:
        """Undo our part. What resists is tried again by whoever cleans up after us, the caller or `_clean_up`."""
        try:
            create.destroy(self.attempt)
        except OSError:
            return

    def start(self) -> None:
        """Wait for START, let init go, and see whether execve happened."""
        assert self.engine is not None and self.attempt.sock is not None
        try:
            message = handshake.receive(self.engine)
        except OSError:
            message = None
        if message is None or message[0] != handshake.START:
            self._destroy()
            if message is None:  # the caller died; DONE says that it undoes the rest itself
                self._clean_up()
            os._exit(0)
        try:
            handshake.send(self.attempt.sock, handshake.GO)
            while True:
                answer = handshake.receive(self.attempt.sock)
                if answer is None:
                    break
                self._from_init(answer)
        except UtsuwaError as error:
            self._failed(type(error).__name__, str(error), error.exit_code)
        except OSError:
            self._failed("RuntimeFailure", "cannot start the container: its first process is gone", 125)
        self.attempt.sock.close()
        self.attempt.sock = None
        self.book.take(self.ledger_fd)
        from utsuwa.monitor.serve import Server

        try:
            self.server = Server(self)
            self._write_state("running")
        except OSError as error:
            self._failed("RuntimeFailure", f"cannot start the container: {(error.strerror or '').lower()}", 125)

    # ---- while it runs

    def run(self) -> None:
        """The event loop, until the container has ended and its output is drained."""
        import gc

        from utsuwa.monitor.clients import Stdin

        gc.enable()  # off for the start, which makes no garbage worth looking for
        reading, wake = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        signal.set_wakeup_fd(wake, warn_on_full_buffer=False)
        signal.signal(signal.SIGCHLD, _nothing)
        for sig in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            signal.signal(sig, signal.SIG_IGN)
        for fd in (reading, *self.streams):
            self.poll.register(fd, select.EPOLLIN)
        self.stdin = Stdin(self.poll, self._stdin_fd, terminal=self._stdin_fd in self.streams)
        self._keep_owner()
        self.reap()
        while self.exit_code is None or (self.streams and time.monotonic() < self.ended_at + DRAIN_SECONDS):
            for fd, events in self.poll.poll(-1 if self.exit_code is None else 0.05):
                self._ready(fd, events, reading)
            self._hold_back()

    def _keep_owner(self) -> None:
        """From now on the caller is a client like others, but for what its going means."""
        from utsuwa.monitor.clients import Client

        assert self.engine is not None and self.server is not None
        self.owner = Client(self.engine, self.poll, owner=True)
        self.owner.attached = bool(self.bundle.get("attached"))
        self.server.clients[self.owner.fileno()] = self.owner
        self.server.tell(self.owner, handshake.RUNNING, None)

    def _ready(self, fd: int, events: int, reading: int) -> None:
        assert self.server is not None
        if fd == reading:
            os.read(reading, 4096)
            self.reap()
            return
        if fd == self.stdin.fd and events & select.EPOLLOUT:
            self.stdin.ready()
        if fd in self.streams:
            if events & ~select.EPOLLOUT:
                self._output(fd)
        elif fd == self.stdin.fd:
            if events & (select.EPOLLERR | select.EPOLLHUP):  # nobody reads it any more
                self.stdin.close()
        else:
            self.server.ready(fd, events)

    def _hold_back(self) -> None:
        """Stop reading the container's output while an attached client is behind, and go on when it has caught up."""
        assert self.server is not None
        full = self.server.full
        if full != self.paused:
            self.paused = full
            for fd in self.streams:
                self.poll.modify(fd, 0 if full else select.EPOLLIN)

    def _output(self, fd: int) -> None:
        try:
            data = os.read(fd, handshake.OUTPUT_CHUNK)
        except BlockingIOError:
            return
        except OSError:  # EIO: the last user of the terminal is gone
            data = b""
        stream = self.streams[fd]
        if not data:
            self.poll.unregister(fd)
            del self.streams[fd]
            if fd == self.stdin.fd:
                self.stdin.fd = -1
            os.close(fd)
            return
        assert self.log is not None and self.server is not None
        self.log.write(stream, data)
        self.server.output(stream, data)

    def reap(self) -> None:
        """Take every child that has ended: the container's first process, exec sessions, orphans."""
        assert self.server is not None
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return
            if not pid:
                return
            code = os.waitstatus_to_exitcode(status)
            code = 128 - code if code < 0 else code
            if pid == self.attempt.pid:
                self.exit_code, self.ended_at = code, time.monotonic()
                self.attempt.pid = 0
            else:
                self.server.ended(pid, code)

    # ---- the end

    def finish(self) -> None:
        """Record the exit, remove the control groups, answer everyone; then clean up, unless the caller does."""
        assert self.log is not None and self.server is not None
        self.log.close()
        oom = cgroup.oom_kills(self.attempt.directories) > 0
        self._destroy()
        try:
            self._write_state("stopped", exit_code=self.exit_code, oom=oom)
        except OSError:  # a full disk: who is connected hears the code, later ones read that it was lost
            pass
        os.close(self.lock_fd)  # all is written: who takes the lock now may clean up
        self.lock_fd = -1
        self.server.close(self.exit_code or 0, oom=oom)
        ledger.note_modules("monitor")
        self.engine = self.owner.sock if self.owner is not None and self.owner.fileno() >= 0 else None
        self._hand_back()

    def _hand_back(self) -> None:
        """Wait until a caller that holds the connection has cleaned up; without one, do it."""
        while self.engine is not None:
            try:
                message = handshake.receive(self.engine)
            except OSError:
                message = None
            if message is None:
                break
            if message[0] == handshake.DONE:
                return
        self._clean_up()

    def _clean_up(self) -> None:
        """Become `utsuwa _cleanup ID`, the engine's own code in a full interpreter; the lock goes first."""
        if self.lock_fd >= 0:
            os.close(self.lock_fd)
        argv = [sys.executable, "-I", "-c", "import sys; sys.path.append(sys.argv[1]); from utsuwa.cli.main import main; main(sys.argv[2:])",
                str(self.bundle["package"]), "_cleanup", str(self.bundle["id"])]
        environ = {"UTSUWA_ROOT": str(self.bundle["root"]), "UTSUWA_RUNROOT": str(self.bundle["run"]), "PATH": "/usr/sbin:/usr/bin:/sbin:/bin"}
        point = os.environ.get("UTSUWA_FAULT", "")
        if point.startswith("cleanup:"):
            environ["UTSUWA_FAULT"] = "engine:" + point.removeprefix("cleanup:")
        if self.bundle.get("rootless"):
            environ["UTSUWA_ROOTLESS"] = str(self.bundle["rootless"])
        with because("nobody waits for the container: its monitor becomes the command that cleans up after it", "execve(2)", 2):
            process.execve(sys.executable, argv, environ)

    def _write_state(self, status: str, exit_code: int | None = None, oom: bool = False) -> None:
        from utsuwa.ledger.encode import dumps

        now = time.time_ns()
        if not self.state:
            self.state = {"ociVersion": "1.3.0", "id": self.bundle["id"], "bundle": self.bundle["directory"], "boot": self.bundle["boot"]}
        self.state.update({"status": status, "pid": self.attempt.pid, "monitor": os.getpid()})
        if status == "running":
            self.state.update({"started": now, "start_time": process.start_time(self.attempt.pid)})
        if status == "stopped":
            self.state.update({"finished": now, "exit_code": exit_code, "oom": oom})
        path = str(self.bundle["directory"]) + "/state.json"
        fd = os.open(path + ".tmp", os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
        os.write(fd, dumps(self.state).encode())
        os.close(fd)
        os.rename(path + ".tmp", path)


def _nothing(_signal: int, _frame: object) -> None:
    return


def _lost(pid: int) -> UtsuwaError:
    return RuntimeFailure(f"cannot make the container: its first process (pid {pid}) was killed before it was ready")


def main(descriptor: int, itself: int) -> None:
    """Entry point: `descriptor` is our end of the engine's socket, `itself` the mount that holds our interpreter and nothing else.

    Forks once, so that the caller has no zombie to wait for later.
    """
    os.set_inheritable(descriptor, False)
    os.set_inheritable(itself, False)
    init.keep_only({descriptor, itself})
    group = cgroup.open_monitors()
    with because("a process of its own, for which the caller need not wait", "fork(2)", 2):
        try:
            process.fork("monitor", lambda: live(descriptor, itself, group), group)
        except OSError:  # not this user's to be born in
            process.fork("monitor", lambda: live(descriptor, itself, group))
    os._exit(0)


def live(descriptor: int, itself: int, group: int) -> None:
    """Be the monitor, from here to the end."""
    if group >= 0:
        close(group)
    os.setsid()
    os.umask(0o022)  # what is made in the container does not depend on the caller's umask,
    os.chdir("/")    # and its directory is not held for as long as the container lives
    monitor = Monitor(handshake.adopt(descriptor), itself)
    monitor.begin()
    monitor.start()
    monitor.run()
    monitor.finish()
