"""A caller's side of a running container: output comes, input goes, signals are passed on, the terminal follows. run, attach and exec -it.

Input is sent one chunk at a time and the next only when the monitor has written the last (TAKEN), so that a container that does not read
stops its writer and nobody else.
"""

from __future__ import annotations

import errno
import fcntl
import os
import select

import _signal as signal  # `signal` itself imports enum, 2 ms

from utsuwa.runtime import handshake

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from socket import socket

TIOCGWINSZ, TCGETS, TCSETS = 0x5413, 0x5401, 0x5402
_NEVER_FORWARDED = frozenset({signal.SIGCHLD, signal.SIGPIPE, signal.SIGWINCH, signal.SIGURG, signal.SIGKILL, signal.SIGSTOP, signal.SIGTSTP, signal.SIGTTIN, signal.SIGTTOU, signal.SIGCONT})
INPUT_CHUNK = 16384


class Outcome:
    """How it ended: `code` of the container, `oom`, or `detached`; `lost` when the monitor went away without a word."""

    __slots__ = ("code", "detached", "lost", "oom")

    def __init__(self, code: int = 0, *, oom: bool = False, detached: bool = False, lost: bool = False) -> None:
        self.code, self.oom, self.detached, self.lost = code, oom, detached, lost


def write_all(fd: int, data: bytes) -> None:
    """Write all of it; a reader that has gone away is nobody to tell."""
    view = memoryview(data)
    while view:
        try:
            view = view[os.write(fd, view):]
        except BlockingIOError:
            wait_ready([], (fd,))
        except OSError as error:
            if error.errno in (errno.EPIPE, errno.EIO):
                return
            raise


def to_streams(stream: str, data: bytes) -> None:
    """Pass output on to our own standard streams."""
    write_all(2 if stream == "stderr" else 1, data)


def wait_ready(reading: list[int], writing: list[int] | tuple[int, ...] = (), seconds: float | None = None) -> set[int]:
    """Return which descriptors are ready; an ended or broken one is. poll(2): select(2) cannot hold a descriptor above 1023."""
    poll = select.poll()
    for fd in reading:
        poll.register(fd, select.POLLIN)
    for fd in writing:
        poll.register(fd, select.POLLOUT | (select.POLLIN if fd in reading else 0))
    return {fd for fd, _ in poll.poll(None if seconds is None else int(seconds * 1000))}


class raw:  # noqa: N801 - reads as a sentence: `with raw(0)`
    """The caller's terminal without its own editing and signals, put back at the end whatever happens. termios(3), cfmakeraw."""

    __slots__ = ("_before", "fd")

    def __init__(self, fd: int) -> None:
        self.fd = fd
        self._before: list[object] | None = None

    def __enter__(self) -> None:
        import termios

        if self.fd < 0 or not os.isatty(self.fd):
            return
        self._before = termios.tcgetattr(self.fd)
        mode: list[object] = [*self._before[:6], list(self._before[6])]  # type: ignore[call-overload]
        mode[0] &= ~(termios.IGNBRK | termios.BRKINT | termios.PARMRK | termios.ISTRIP | termios.INLCR | termios.IGNCR | termios.ICRNL | termios.IXON)  # type: ignore[operator]
        mode[1] &= ~termios.OPOST  # type: ignore[operator]
        mode[2] = mode[2] & ~(termios.CSIZE | termios.PARENB) | termios.CS8  # type: ignore[operator]
        mode[3] &= ~(termios.ECHO | termios.ECHONL | termios.ICANON | termios.ISIG | termios.IEXTEN)  # type: ignore[operator]
        termios.tcsetattr(self.fd, termios.TCSADRAIN, mode)  # type: ignore[arg-type]

    def __exit__(self, *_: object) -> None:
        if self._before is not None:
            import termios

            termios.tcsetattr(self.fd, termios.TCSADRAIN, self._before)  # type: ignore[arg-type]


def window(fd: int) -> tuple[int, int]:
    """Return (rows, columns) of a terminal, (0, 0) where there is none. ioctl_tty(2), TIOCGWINSZ."""
    try:
        data = fcntl.ioctl(fd, TIOCGWINSZ, bytes(8))
    except OSError:
        return 0, 0
    return int.from_bytes(data[:2], "little"), int.from_bytes(data[2:4], "little")


class _Detach:
    """Finds the detach keys in what is typed; bytes that only began like them are passed on. "" never detaches."""

    __slots__ = ("keys", "matched")

    def __init__(self, keys: bytes) -> None:
        self.keys, self.matched = keys, 0

    def feed(self, data: bytes) -> tuple[bytes, bool]:
        """Return (what to send, whether the keys were all typed)."""
        if not self.keys:
            return data, False
        out = bytearray()
        for value in data:
            if value == self.keys[self.matched]:
                self.matched += 1
                if self.matched == len(self.keys):
                    return bytes(out), True
                continue
            out += self.keys[: self.matched]
            self.matched = 1 if value == self.keys[0] else 0
            if not self.matched:
                out.append(value)
        return bytes(out), False


class Relay:
    """One conversation with a monitor until the container ends or is let go.

    `stdin` a descriptor or -1; `output` takes (stream, bytes); `terminal` whether the container has one; `signals` whether ours are passed on.
    """

    def __init__(self, sock: socket, *, stdin: int = -1, output: Callable[[str, bytes], None] = to_streams, terminal: bool = False, keys: bytes = b"", signals: bool = False) -> None:
        self.sock, self.stdin, self.output, self.terminal, self.signals = sock, stdin, output, terminal, signals
        self.detach = _Detach(keys if terminal else b"")
        self.outcome: Outcome | None = None
        self._waiting = False  # for TAKEN
        self._wake = -1
        self._before: dict[int, object] = {}

    def run(self) -> Outcome:
        """Carry on until the end. Restores signal handlers and the terminal."""
        with raw(self.stdin if self.terminal else -1):
            self._catch()
            try:
                if self.terminal:
                    self._resize()
                while self.outcome is None:
                    self._turn()
            finally:
                self._release()
        return self.outcome

    def _turn(self) -> None:
        watched = [self.sock.fileno()]
        if self._wake >= 0:
            watched.append(self._wake)
        if self.stdin >= 0 and not self._waiting:
            watched.append(self.stdin)
        ready = wait_ready(watched)
        if self._wake in ready:
            for number in os.read(self._wake, 512):
                self._signal(number)
        if self.sock.fileno() in ready:
            self._message()
        elif self.stdin in ready:  # output first: a container that ends is not waited for by a closed input
            self._input()

    def _message(self) -> None:
        try:
            message = handshake.receive(self.sock)
        except OSError:
            message = None
        if message is None:
            self.outcome = Outcome(137, lost=True)
            return
        kind, body, fds = message
        for fd in fds:
            os.close(fd)
        if kind == handshake.OUTPUT:
            stream, data = body  # type: ignore[misc]
            self.output(stream, data)
        elif kind == handshake.TAKEN:
            self._waiting = False
        elif kind == handshake.EXITED:
            code, oom = body  # type: ignore[misc]
            self.outcome = Outcome(code, oom=oom)

    def _input(self) -> None:
        try:
            data = os.read(self.stdin, INPUT_CHUNK)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if not data:
            self.stdin = -1
            self._send(handshake.END_INPUT, None)
            return
        data, detached = self.detach.feed(data)
        if data:
            self._waiting = self._send(handshake.INPUT, data)
        if detached:
            self.outcome = Outcome(0, detached=True)

    def _send(self, kind: str, body: object) -> bool:
        try:
            handshake.send(self.sock, kind, body)
        except OSError:
            return False
        return True

    # ---- signals

    def _catch(self) -> None:
        if not self.signals:
            return
        reading, writing = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        self._wake = reading
        self._before = {-1: signal.set_wakeup_fd(writing, warn_on_full_buffer=False), -2: writing}
        for number in signal.valid_signals():
            if (number in _NEVER_FORWARDED and number != signal.SIGWINCH) or (number == signal.SIGWINCH and not self.terminal):
                continue
            try:
                self._before[number] = signal.signal(number, _noted)
            except (OSError, ValueError):
                continue

    def _release(self) -> None:
        if self._wake < 0:
            return
        signal.set_wakeup_fd(self._before.pop(-1))  # type: ignore[arg-type]
        os.close(self._before.pop(-2))  # type: ignore[arg-type]
        for number, handler in self._before.items():
            signal.signal(number, handler if handler is not None else signal.SIG_DFL)  # type: ignore[arg-type]
        os.close(self._wake)
        self._wake = -1

    def _signal(self, number: int) -> None:
        if number == signal.SIGWINCH:
            self._resize()
        else:
            self._send(handshake.SIGNAL, number)

    def _resize(self) -> None:
        rows, columns = window(self.stdin if self.stdin >= 0 else 1)
        if rows or columns:
            self._send(handshake.RESIZE, (rows, columns))


def _noted(_number: int, _frame: object) -> None:
    """Handled by the wakeup descriptor."""
