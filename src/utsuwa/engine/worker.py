"""The engine for an ordinary user's program that has threads: one process inside the holder, spoken to over a socketpair.

setns(2) refuses a user namespace to a process with threads, so the program itself cannot join. The worker is the same engine in a process that can.

    program                          worker                          child
      │ spawn ────────────────────────▶ joins the holder
      │ ◀──────────────── READY or ERROR
      │ CALL(name, kwargs, [reply]) ──▶ fork ────────────────────────▶ the use case
      │ ◀───────────────────────────────────── RESULT or ERROR ─────── leaves

Every call brings a socket of its own for the answer: any number may be under way, from any thread, and no answer can be taken for another's. A child that is
killed shows as end of file. When the program ends, so do the worker and what it is doing, as an engine inside the program would; containers stay.
"""

from __future__ import annotations

import os
import signal
import sys
from _thread import allocate_lock

from utsuwa.errors import RuntimeFailure, UtsuwaError, carried
from utsuwa.kernel import credential, process, userns
from utsuwa.ledger import because
from utsuwa.runtime import handshake

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from socket import socket

    from utsuwa.state.paths import Paths

READY, CALL, RESULT, ERROR = "ready", "call", "result", "error"
_BOOT = "import sys; sys.path.append(sys.argv[1]); from utsuwa.engine.worker import main; main(int(sys.argv[2]), sys.argv[3], sys.argv[4], sys.argv[5:])"
_TUPLE = "\0tuple"


class Remote:
    """The program's end. Safe from any thread; the worker starts at the first call and again should it have died."""

    def __init__(self, paths: Paths) -> None:
        self._paths = paths
        self._lock = allocate_lock()
        self._sock: socket | None = None
        self._pid = 0

    def call(self, name: str, /, **arguments: object) -> object:
        """Return what the engine's use case `name` returns for these plain arguments. Raises what it raises, as UtsuwaError."""
        ours, theirs = handshake.pair()
        try:
            try:
                self._send(name, arguments, theirs.fileno())
            finally:
                theirs.close()
            return self._answer(ours, name)
        finally:
            ours.close()

    def close(self) -> None:
        """End the worker and every call under way. Idempotent; a later call starts another."""
        with self._lock:
            self._drop()

    def _send(self, name: str, arguments: dict[str, object], reply: int) -> None:
        with self._lock:
            for attempt in (1, 2):
                if self._sock is None:
                    self._start()
                try:
                    handshake.send(self._sock, CALL, (name, _pack(arguments)), (reply,))  # type: ignore[arg-type]
                except OSError:
                    self._drop()
                    if attempt == 2:
                        raise RuntimeFailure(f"cannot call {name}: the engine's worker ended unexpectedly; is memory short?") from None
                else:
                    return

    def _answer(self, sock: socket, name: str) -> object:
        message = handshake.receive(sock)
        if message is None:
            raise RuntimeFailure(f"cannot finish {name}: the engine's worker was killed; what it left is cleaned up by the next command")
        return _result(message[0], message[1])

    def _start(self) -> None:
        ours, theirs = handshake.pair()
        descriptor = 3 if theirs.fileno() != 3 else 4
        package = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
        # The program's own folders come after the interpreter's, so that the worker finds the same libraries, and no file of the program's hides one of ours.
        folders = [folder for folder in sys.path if folder.startswith("/")]
        argv = [sys.executable, "-I", "-S", "-c", _BOOT, package, str(descriptor), self._paths.root, self._paths.run, *folders]
        with because("setns(2) wants a process with one thread: the engine of this program lives in a process of its own", "setns(2), user namespaces", 1):
            self._pid = userns.posix_spawn(argv, dict(os.environ), [(os.POSIX_SPAWN_DUP2, theirs.fileno(), descriptor)])
        theirs.close()
        self._sock = ours
        try:
            _result(*(handshake.receive(ours) or (ERROR, ("RuntimeFailure", "cannot start the engine's worker: it ended at once; is memory short?", 125), []))[:2])
        except UtsuwaError:
            self._drop()
            raise

    def _drop(self) -> None:
        if self._sock is not None:
            self._sock.close()
            self._sock = None
        if self._pid:
            try:
                os.waitpid(self._pid, 0)
            except ChildProcessError:  # the program ignores SIGCHLD, or is a fork of the one that started it
                pass
            self._pid = 0


def _result(kind: str, body: object) -> object:
    if kind != ERROR:
        return _unpack(body)
    raise carried(body)


# --------------------------------------------------------------------------------------------------- results across the socket

def _pack(value: object) -> object:
    """Return plain data for `value`: a named tuple of ours travels with its class's name."""
    if isinstance(value, dict):
        return {key: _pack(item) for key, item in value.items()}
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return (_TUPLE, type(value).__module__, type(value).__name__, [_pack(item) for item in value])
    if isinstance(value, (list, tuple)):
        return type(value)(_pack(item) for item in value)
    return value


def _unpack(value: object) -> object:
    if isinstance(value, dict):
        return {key: _unpack(item) for key, item in value.items()}
    if isinstance(value, tuple) and len(value) == 4 and value[0] == _TUPLE:
        from importlib import import_module

        _, module, name, items = value
        return getattr(import_module(module), name)(*map(_unpack, items))
    if isinstance(value, (list, tuple)):
        return type(value)(_unpack(item) for item in value)
    return value


# ------------------------------------------------------------------------------------------------------------ the worker itself

def main(descriptor: int, root: str, run: str, folders: list[str]) -> None:
    """Entry point of the worker: join the holder, say so, serve until end of file."""
    from utsuwa.engine import holder
    from utsuwa.state.paths import Paths

    os.set_inheritable(descriptor, False)
    process.close_range(descriptor + 1, 0xFFFFFFFF, 0)
    with because("a session of its own: Ctrl-C of the terminal is for the program to handle", "setsid(2)", 1):
        process.setsid()
    sys.path += [folder for folder in folders if folder not in sys.path]
    sock = handshake.adopt(descriptor)
    try:
        if os.geteuid():
            holder.enter(Paths(root, run))
    except UtsuwaError as error:
        handshake.send(sock, ERROR, (type(error).__name__, str(error), error.exit_code))
        os._exit(1)
    handshake.send(sock, READY)
    serve(sock, use_case)


def serve(sock: socket, function: Callable[[str, dict[str, object]], object]) -> None:
    """Answer calls, each in a child of its own, so that this process stays one that may spawn and fork. Returns at end of file."""
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # children that have answered leave no zombie. signal(2)
    worker = os.getpid()
    while (message := handshake.receive(sock)) is not None:
        fds = message[2]
        call: tuple[str, object] = message[1]  # type: ignore[assignment]

        def child(name: str = call[0], arguments: object = call[1], reply: int = fds[0]) -> None:
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            sock.close()
            with because("a call does not outlive the program that made it", "prctl(2), PR_SET_PDEATHSIG", 1):
                credential.prctl(credential.PR_SET_PDEATHSIG, signal.SIGKILL)
            if os.getppid() == worker:
                _serve_one(handshake.adopt(reply), name, _unpack(arguments), function)  # type: ignore[arg-type]

        with because("one child a call: any number may be under way", "fork(2)", 1):
            process.fork("worker", child)
        for fd in fds:
            os.close(fd)


def _serve_one(reply: socket, name: str, arguments: dict[str, object], function: Callable[[str, dict[str, object]], object]) -> None:
    try:
        answer: tuple[str, object] = (RESULT, _pack(function(name, arguments)))
    except UtsuwaError as error:
        answer = (ERROR, (type(error).__name__, str(error), error.exit_code))
    except Exception as error:  # noqa: BLE001 - whatever it is belongs to the caller, who sits in another process
        answer = (ERROR, ("UtsuwaError", f"cannot finish {name}: {type(error).__name__}: {error}; this is a defect of utsuwa", 125))
    try:
        handshake.send(reply, *answer)
    except OSError:  # the caller no longer waits
        return
    except ValueError:
        handshake.send(reply, ERROR, ("UtsuwaError", f"cannot finish {name}: its result is not plain data; this is a defect of utsuwa", 125))


def use_case(name: str, arguments: dict[str, object]) -> object:
    """Run one use case of the engine, here inside the holder, where it is local."""
    from utsuwa.engine.api import Engine

    return getattr(Engine(), name)(**arguments)
