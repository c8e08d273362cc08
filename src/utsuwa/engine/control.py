"""stop, kill, wait, attach, rm: requests to a container's monitor, or what is on disk when there is none."""

from __future__ import annotations

import time

from utsuwa.engine import containers, foreground
from utsuwa.engine.remove import remove_all
from utsuwa.errors import Conflict, UsageError, UtsuwaError
from utsuwa.runtime import handshake

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from socket import socket

    from utsuwa.engine.context import Context

STOP_SECONDS = 10
_REAL_TIME = 34  # SIGRTMIN as the C library leaves it. signal(7)


def connect(context: Context, container: str) -> socket | None:
    """Return a connection to the container's monitor, None where it has none (any more)."""
    try:
        return handshake.connect(containers.monitor_socket(context, container))
    except OSError:
        return None


def wait(context: Context, container: str, seconds: float | None = None) -> int | None:
    """Wait for the container's end; return its exit code, or None after `seconds`. Returns at once for one that has ended."""
    sock = connect(context, container)
    if sock is not None:
        with_code = _wait_for(sock, seconds)
        sock.close()
        if with_code is not None or seconds is not None:
            return with_code
    deadline = time.monotonic() + 30
    while True:  # between the socket's end and the state file, or between creating and the socket
        state = containers.state(context, container)
        if state.get("status") == "stopped":
            return int(state["exit_code"])  # type: ignore[call-overload,no-any-return]
        if time.monotonic() > deadline:
            raise UtsuwaError(f"cannot wait for {container}: its monitor does not answer")
        time.sleep(0.01)


def _wait_for(sock: socket, seconds: float | None) -> int | None:
    until = None if seconds is None else time.monotonic() + seconds
    try:
        handshake.send(sock, handshake.WAIT)
        while True:
            left = None if until is None else max(0.0, until - time.monotonic())
            if not foreground.wait_ready([sock.fileno()], (), left):
                return None
            message = handshake.receive(sock)
            if message is None:
                return None
            if message[0] == handshake.EXITED:
                return int(message[1][0])  # type: ignore[index]
    except OSError:
        return None


def kill(context: Context, container: str, signal: int) -> None:
    """Signal the container's first process. Raises Conflict when it does not run."""
    sock = connect(context, container)
    if sock is None:
        raise Conflict(f"Cannot kill container: {container}: container {container[:12]} is not running")
    try:
        handshake.send(sock, handshake.SIGNAL, signal)
    except OSError:
        raise Conflict(f"Cannot kill container: {container}: container {container[:12]} is not running") from None
    finally:
        sock.close()


def stop(context: Context, container: str, seconds: int = STOP_SECONDS, signal: int | None = None) -> None:
    """Ask the container to end, and after `seconds` (-1: for ever) kill it. Returns when it has ended. Idempotent."""
    known = containers.details(context, container)
    wanted = signal or _stop_signal(str(known["image_config"].get("StopSignal") or "SIGTERM"))  # type: ignore[attr-defined]
    try:
        kill(context, container, wanted)
    except Conflict:
        return
    if wait(context, container, None if seconds < 0 else seconds) is None:
        try:
            kill(context, container, 9)
        except Conflict:
            return
        wait(context, container)


def _stop_signal(name: str) -> int:
    """Return the image's stop signal; one that is none must not keep a container from being stopped."""
    try:
        return signal_number(name)
    except UsageError:
        return 15


def attach(context: Context, container: str, *, stdin: int = -1, output: Callable[[str, bytes], None] = foreground.to_streams, keys: bytes = b"", signals: bool = False, proxy: bool = True) -> foreground.Outcome:
    """Follow a running container's streams until it ends or is let go. Raises Conflict when it does not run.

    `signals` says whether ours are caught; with `proxy` they are passed on, but not to a container with a terminal, as Docker has it: there keys are what reaches it.
    """
    sock = connect(context, container)
    if sock is None:
        raise Conflict("You cannot attach to a stopped container, start it first")
    try:
        handshake.send(sock, handshake.ATTACH)
        message = handshake.receive(sock)
        if message is None:
            raise Conflict("You cannot attach to a stopped container, start it first")
        options = containers.details(context, container)["options"]
        interactive, terminal = bool(options.get("interactive")), bool(message[1])  # type: ignore[attr-defined]
        if terminal:
            _provoke(sock)
        relay = foreground.Relay(sock, stdin=stdin if interactive else -1, output=output, terminal=terminal, keys=keys, signals=signals, proxy=proxy and not terminal)
        return relay.run()
    finally:
        sock.close()


def _provoke(sock: socket) -> None:
    """Resize the terminal to what it will not stay, so that the program draws its screen or prompt again even where the size is what it was, as Docker does."""
    rows, columns = foreground.screen()
    if rows or columns:
        handshake.send(sock, handshake.RESIZE, (rows + 1, columns + 1))


def remove(context: Context, container: str, *, force: bool = False, volumes: bool = False) -> None:
    """Remove a container. Raises Conflict for one that runs, unless `force` kills it first. With `volumes` its anonymous ones go too."""
    state = containers.state(context, container)
    if state.get("status") != "stopped":
        if not force:
            raise Conflict(f"cannot remove container {container[:12]}: container is {state.get('status')}: stop the container before removing or force remove")
        try:
            kill(context, container, 9)
        except Conflict:
            pass
        else:
            wait(context, container)
    remove_all(context, container, volumes=volumes)


def signal_number(text: str) -> int:
    """Return the number of TERM, SIGTERM, sigterm, 15, RTMIN+3. Raises UsageError."""
    import signal

    name = text.upper().removeprefix("SIG")
    if name.isascii() and name.isdigit() and 1 <= int(name) <= 64:
        return int(name)
    base, plus, offset = name.partition("+") if "+" in name else name.partition("-")
    if base in ("RTMIN", "RTMAX") and (not plus or offset.isdigit()):
        number = _REAL_TIME + int(offset or "0") if base == "RTMIN" else 64 - int(offset or "0")
        if _REAL_TIME <= number <= 64:
            return number
    found = getattr(signal, "SIG" + name, None)
    if not isinstance(found, signal.Signals):
        raise UsageError(f"Invalid signal: {text}")
    return int(found)
