"""The ledger: every kernel call that makes a container, with its reason. Append-only; imports nothing of ours.

    with because("the container's root is the image's layers plus one writable layer", ref="overlayfs", topic=3):
        kernel.mount.fsmount(...)

`because` keeps a stack of reasons per thread; `recording(ledger)` says, per thread, which container's ledger is written.
`record` refuses a call that has no reason. `fault` is where `UTSUWA_FAULT=WHO:CALL#N=kill|ERRNO` strikes: the test suite walks every
line of a ledger with it (tests/faults). What a ledger leaves out: reading, the database, logs, and the ledger's own writes.
"""

from __future__ import annotations

import errno
import os
import sys
import time
from _thread import _local, allocate_lock
from marshal import dumps as marshalled, loads

from utsuwa.ledger.encode import dumps

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from types import TracebackType

    Argument = str | int | None
    Line = tuple[str, tuple[Argument, ...], int | None, str, str, int]  # call, args, result, why, ref, topic


class _Context(_local):
    """Per thread: the reasons, innermost last, and the ledger in force."""

    def __init__(self) -> None:
        self.reasons: list[because] = []
        self.ledger: Ledger | None = None


_context = _Context()


class because:  # noqa: N801 - reads as a sentence: `with because("…")`
    """Give the reason for every kernel call made inside the block.

    `why` is a plain sentence, `ref` a manual page, specification section or CVE, `topic` 1–7 (0 inherits the enclosing one's).
    """

    __slots__ = ("ref", "topic", "why")

    def __init__(self, why: str, ref: str = "", topic: int = 0) -> None:
        self.why, self.ref, self.topic = why, ref, topic

    def __enter__(self) -> because:
        reasons = _context.reasons
        if not self.topic and reasons:
            self.topic = reasons[-1].topic
        reasons.append(self)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        _context.reasons.pop()


class MissingReason(AssertionError):
    """A kernel call was made outside every `because` block: a defect of the engine, found by the tests."""


class Ledger:
    """One writer's part of a container's ledger.

    `who` is engine, monitor or init; `sink` takes a finished Line. Numbers lines from 1 per `who`. Several threads may write: each line has a
    number of its own, and they reach the sink in that order.
    """

    __slots__ = ("_lock", "seq", "sink", "who")

    def __init__(self, who: str, sink: Callable[[Ledger, Line], None]) -> None:
        self.who, self.sink, self.seq, self._lock = who, sink, 0, allocate_lock()

    def write(self, line: Line) -> None:
        """Number the line and hand it to the sink."""
        with self._lock:
            self.seq += 1
            self.sink(self, line)


def append(descriptor: int, data: bytes) -> None:
    """Write to a ledger's file. A full disk stops the ledger, not the container, and least of all its removal."""
    try:
        os.write(descriptor, data)
    except OSError:
        return


def to_file(descriptor: int) -> Callable[[Ledger, Line], None]:
    """Return a sink that appends JSON lines to an O_APPEND descriptor, one write(2) a line so that writers do not tear."""

    def sink(ledger: Ledger, line: Line) -> None:
        append(descriptor, encode_line(ledger.who, ledger.seq, line))

    return sink


def encode_line(who: str, seq: int, line: Line, t: int = 0) -> bytes:
    """Return one ledger line as JSON: seq, t (monotonic ns, now unless given), who, topic, call, args, result, why, ref."""
    call, args, result, why, ref, topic = line
    return (
        f'{{"seq":{seq},"t":{t or time.monotonic_ns()},"who":"{who}","topic":{topic},"call":{dumps(call)},'
        f'"args":{dumps(args)},"result":{"null" if result is None else result},"why":{dumps(why)},"ref":{dumps(ref)}}}\n'
    ).encode()


def to_memory(memfd: int) -> Callable[[Ledger, Line], None]:
    """Return a sink that appends lines to a memfd: what init writes, in one cheap call a line, and its monitor reads even when init is killed. memfd_create(2)."""

    def sink(_ledger: Ledger, line: Line) -> None:
        data = marshalled((time.monotonic_ns(), line))
        os.write(memfd, len(data).to_bytes(4, "little") + data)

    return sink


class Memory:
    """A memfd of ledger lines, read by whoever gave it to a child: `take` moves what has come since to a file, numbered for `who`."""

    __slots__ = ("_at", "fd", "seq", "who")

    def __init__(self, who: str) -> None:
        self.who, self._at, self.seq = who, 0, 0
        self.fd = os.memfd_create("ledger", os.MFD_CLOEXEC)

    def take(self, descriptor: int) -> None:
        """Append the new lines to an O_APPEND descriptor, in one write. Idempotent."""
        size = os.fstat(self.fd).st_size
        data = os.pread(self.fd, size - self._at, self._at) if size > self._at else b""
        place, out = 0, []
        while place + 4 <= len(data):
            end = place + 4 + int.from_bytes(data[place : place + 4], "little")
            if end > len(data):
                break
            t, line = loads(data[place + 4 : end])  # noqa: S302 - written by our own child, before the container's program ran
            self.seq += 1
            out.append(encode_line(self.who, self.seq, line, t))
            place = end
        self._at += place
        if out:
            append(descriptor, b"".join(out))


def nowhere(_ledger: Ledger, _line: Line) -> None:
    """Drop the line: for work that belongs to no container (reasons are still demanded)."""


_nobody = Ledger("engine", nowhere)


class recording:  # noqa: N801 - reads as a sentence: `with recording(ledger)`
    """Write this thread's kernel calls to `ledger` inside the block."""

    __slots__ = ("_before", "ledger")

    def __init__(self, ledger: Ledger) -> None:
        self.ledger = ledger

    def __enter__(self) -> Ledger:
        self._before = _context.ledger
        _context.ledger = self.ledger
        return self.ledger

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        _context.ledger = self._before


def use(ledger: Ledger | None) -> None:
    """Make `ledger` this thread's for good: what a process that serves one container does once."""
    _context.ledger = ledger


def current() -> Ledger:
    """Return this thread's ledger; one that drops its lines where none is in force."""
    return _context.ledger or _nobody


def record(call: str, args: tuple[Argument, ...], result: int | None) -> None:
    """Write one call. `result` is the return value, a negative errno, or None for a call whose return is not seen.

    Raises MissingReason outside every `because` block.
    """
    reasons = _context.reasons
    if not reasons:
        raise MissingReason(f"{call}{args!r} has no reason: wrap it in because(...)")
    reason = reasons[-1]
    (_context.ledger or _nobody).write((call, args, result, reason.why, reason.ref, reason.topic))


# ---------------------------------------------------------------------------------------------------------------- faults

_counts: dict[tuple[str, str], int] = {}
_counting = allocate_lock()
_fault: tuple[str, str, int, str] | None = None


def arm(text: str) -> None:
    """Arm one fault, `WHO:CALL#N=kill|ERRNO` (N counts that WHO's CALLs from 1); an empty text disarms. Raises ValueError.

    WHO is engine, monitor, init, or cleanup: the engine's part of the process that a monitor becomes at the end, which arms it as its own.
    """
    global _fault
    _counts.clear()
    if not text:
        _fault = None
        return
    point, _, effect = text.partition("=")
    who, _, call = point.partition(":")
    call, _, number = call.partition("#")
    if who not in ("engine", "monitor", "init", "cleanup") or not call or not effect:
        raise ValueError(f"UTSUWA_FAULT={text}: expected WHO:CALL#N=kill|ERRNO")
    _fault = (who, call, int(number or "1"), effect)


arm(os.environ.get("UTSUWA_FAULT", ""))


def fault(call: str) -> None:
    """Strike here if this is the armed point: SIGKILL to ourselves, or the errno named, as OSError."""
    if _fault is None:
        return
    who = current().who
    key = (who, call)
    with _counting:
        count = _counts[key] = _counts.get(key, 0) + 1
    if _fault[:3] == (who, call, count):
        if _fault[3] == "kill":
            os.kill(os.getpid(), 9)
        number = getattr(errno, _fault[3])
        raise OSError(number, f"{call}: {os.strerror(number)} (fault injected)")


def note_modules(who: str) -> None:
    """Tell the budget test which modules this process has loaded, where it asks (UTSUWA_MODULES names a file)."""
    path = os.environ.get("UTSUWA_MODULES")
    if path:
        fd = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o666)
        os.write(fd, (dumps({"who": who, "modules": sorted(sys.modules)}) + "\n").encode())
        os.close(fd)
