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
_ENDING = frozenset({signal.SIGHUP, signal.SIGINT, signal.SIGQUIT, signal.SIGTERM})
INPUT_CHUNK = 16384


class Outcome:
    """How it ended: `code` of the container, `oom`, or `detached`; `lost` when the monitor went away without a word."""

    __slots__ = ("code", "detached", "lost", "oom")

    def __init__(self, code: int = 0, *, oom: bool = False, detached: bool = False, lost: bool = False) -> None:
        self.code, self.oom, self.detached, self.lost = code, oom, detached, lost


def write_all(fd: int, data: bytes) -> None:
    """Write all of it. Raises BrokenPipeError for a reader, or a terminal, that has gone away: as with Docker's client the command ends then, and the container runs on."""
    view = memoryview(data)
    while view:
        try:
            view = view[os.write(fd, view):]
        except BlockingIOError:
            wait_ready([], (fd,))
        except OSError as error:
            if error.errno == errno.EIO:  # a terminal that has hung up
                raise BrokenPipeError(errno.EPIPE, os.strerror(errno.EPIPE)) from None
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
        mode[6][termios.VMIN], mode[6][termios.VTIME] = 1, 0  # type: ignore[index] # else a read may return nothing, which is taken for the end
        # At once, not once the output is drained: a terminal that takes none would hold us for ever.
        termios.tcsetattr(self.fd, termios.TCSANOW, mode)  # type: ignore[arg-type]

    def __exit__(self, *_: object) -> None:
        if self._before is None:
            return
        import termios

        try:
            termios.tcsetattr(self.fd, termios.TCSANOW, self._before)  # type: ignore[arg-type]
        except termios.error:  # it has hung up: there is nothing to put back
            return


def window(fd: int) -> tuple[int, int]:
    """Return (rows, columns) of a terminal, (0, 0) where there is none. ioctl_tty(2), TIOCGWINSZ."""
    try:
        data = fcntl.ioctl(fd, TIOCGWINSZ, bytes(8))
    except OSError:
        return 0, 0
    return int.from_bytes(data[:2], "little"), int.from_bytes(data[2:4], "little")


def screen() -> tuple[int, int]:
    """Return (rows, columns) of the terminal we speak to: where the output goes, as Docker has it, else where the input comes from."""
    found = window(1)
    return found if any(found) else window(0)


class _Detach:
    """Finds the detach keys in what is typed; bytes that only began like them are passed on. "" never detaches."""

    __slots__ = ("held", "keys")

    def __init__(self, keys: bytes) -> None:
        self.keys, self.held = keys, b""

    def feed(self, data: bytes) -> tuple[bytes, bool]:
        """Return (what to send, whether the keys were all typed)."""
        if not self.keys:
            return data, False
        out = bytearray()
        for value in data:
            self.held += bytes((value,))
            while not self.keys.startswith(self.held):
                out.append(self.held[0])
                self.held = self.held[1:]
            if self.held == self.keys:
                self.held = b""
                return bytes(out), True
        return bytes(out), False


class Relay:
    """One conversation with a monitor until the container ends or is let go.

    `stdin` a descriptor or -1; `output` takes (stream, bytes); `terminal` whether the container has one; `signals` whether ours are caught (main thread
    only): with `proxy` they are passed on, without it they end the relay, which puts the terminal back.
    """

    def __init__(
        self, sock: socket, *, stdin: int = -1, output: Callable[[str, bytes], None] = to_streams, terminal: bool = False, keys: bytes = b"", signals: bool = False, proxy: bool = True,
    ) -> None:
        self.sock, self.stdin, self.output, self.terminal, self.signals, self.proxy = sock, stdin, output, terminal, signals, proxy
        self.detach = _Detach(keys if terminal else b"")
        self.outcome: Outcome | None = None
        self._waiting = False  # for TAKEN
        self._wake = self._waker = -1
        self._wake_before = -1
        self._before: dict[int, object] = {}

    def run(self) -> Outcome:
        """Carry on until the end. Restores signal handlers and the terminal. Raises BrokenPipeError where nobody takes the output any more."""
        self._catch()  # before the terminal is changed: no signal may end us then without putting it back
        try:
            with raw(self.stdin if self.terminal else -1):
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
            os.read(self._wake, 512)
        if self.sock.fileno() in ready:
            self._message()
        # Input in the same turn: a container that writes without end must still hear Ctrl-C and the detach keys.
        if self.outcome is None and self.stdin in ready:
            self._input()

    def _message(self) -> None:
        try:
            # Once more at the end of file: one that closes while a message of ours is unread resets the connection, which comes before what it sent. unix(7)
            message = handshake.receive(self.sock) or handshake.receive(self.sock)
        except OSError:
            message = None
        if message is None:
            self.outcome = Outcome(137, lost=True)
            return
        kind, body, fds = message
        for fd in fds:
            os.close(fd)
        if kind == handshake.OUTPUT:
            part: tuple[str, bytes] = body  # type: ignore[assignment]
            self.output(*part)
        elif kind == handshake.TAKEN:
            self._waiting = False
        elif kind == handshake.EXITED:
            end: tuple[int, bool] = body  # type: ignore[assignment]
            self.outcome = Outcome(end[0], oom=end[1])

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
            self._let_go()
            self.outcome = Outcome(0, detached=True)

    def _let_go(self) -> None:
        """What is left to do at the detach keys: nothing, where the monitor has the streams."""

    def _send(self, kind: str, body: object) -> bool:
        try:
            handshake.send(self.sock, kind, body)
        except OSError:
            return False
        return True

    # ---- signals

    def _catch(self) -> None:
        """Handlers do the work, so that a signal gets through while we wait in writing to a reader that is slow; the pipe only ends the waiting in poll(2)."""
        if not self.signals:
            return
        self._wake, self._waker = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        self._wake_before = signal.set_wakeup_fd(self._waker, warn_on_full_buffer=False)
        wanted = signal.valid_signals() - _NEVER_FORWARDED if self.proxy else _ENDING
        for number in wanted | ({signal.SIGWINCH} if self.terminal else set()):
            try:
                self._before[number] = signal.signal(number, self._caught)
            except (OSError, ValueError):
                continue
        signal.pthread_sigmask(signal.SIG_UNBLOCK, (signal.SIGINT,))  # held back since the program started

    def _release(self) -> None:
        if self._wake < 0:
            return
        for number, handler in self._before.items():
            signal.signal(number, handler if handler is not None else signal.SIG_DFL)
        self._before.clear()
        signal.set_wakeup_fd(self._wake_before)
        os.close(self._waker)
        os.close(self._wake)
        self._wake = self._waker = -1

    def _caught(self, number: int, _frame: object) -> None:
        if number == signal.SIGWINCH:
            self._resize()
        elif self.proxy:
            self._send(handshake.SIGNAL, number)
        else:
            self.outcome = Outcome(128 + number)

    def _resize(self) -> None:
        size = screen()
        if any(size):
            self._send(handshake.RESIZE, size)
