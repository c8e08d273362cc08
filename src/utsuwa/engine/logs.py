"""Reading a container's log, which its monitor writes in the CRI's form (monitor/log.py): `STAMP STREAM F|P TEXT`. Only looks.

P is a line that goes on in the next record of its stream. A log is not rotated yet, so one descriptor sees it all, removed or not.
"""

from __future__ import annotations

import os
import time

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

    from utsuwa.engine.context import Context

BLOCK = 1 << 16
POLL_SECONDS = 0.05
STATE_SECONDS = 0.5
"""How often a follower looks for new text, and whether the container still runs."""
ALL = -1


class Record:
    """One record: `stamp` RFC 3339 with nine digits, `stream` stdout or stderr, `text` with its newline, or without where the line goes on."""

    __slots__ = ("stamp", "stream", "text")

    def __init__(self, stamp: str, stream: str, text: bytes) -> None:
        self.stamp, self.stream, self.text = stamp, stream, text

    @property
    def ends(self) -> bool:
        return self.text.endswith(b"\n")


def parse(line: bytes) -> Record | None:
    """Return what one line of the file says, None for one that is torn."""
    stamp, _, rest = line.partition(b" ")
    stream, _, rest = rest.partition(b" ")
    tag, space, text = rest.partition(b" ")
    if tag not in (b"F", b"P") or not space:
        return None
    return Record(stamp.decode("ascii", "replace"), stream.decode("ascii", "replace"), text + b"\n" if tag == b"F" else text)


def read(context: Context, container: str, *, follow: bool = False, tail: int = ALL, since: int | None = None, until: int | None = None) -> Iterator[Record | None]:
    """Yield the records of a container's log; None where it waits for more (time to show what there is).

    `tail` is how many lines from the end, ALL for all; `since` and `until` are ns since the epoch. With `follow` it ends when the container does.
    """
    try:
        fd = os.open(context.paths.container(container) + "/log", os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
    except FileNotFoundError:
        return
    first, last = _stamp(since), _stamp(until)
    try:
        os.lseek(fd, 0 if tail < 0 else _start_of_tail(fd, tail), os.SEEK_SET)
        for record in _records(context, container, fd, follow, until):
            # Stamps of one length in UTC compare as text.
            if record is None or ((not first or record.stamp >= first) and (not last or record.stamp <= last)):
                yield record
            elif last and record.stamp > last:
                return
    finally:
        os.close(fd)


def _stamp(ns: int | None) -> str:
    if ns is None:
        return ""
    ns = min(max(ns, 0), 253_402_300_799_000_000_000)  # the year 9999
    return time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(ns // 1_000_000_000)) + f".{ns % 1_000_000_000:09d}Z"


def _records(context: Context, container: str, fd: int, follow: bool, until: int | None) -> Iterator[Record | None]:
    rest, looked, running = b"", 0.0, True
    while True:
        data = os.read(fd, BLOCK)
        if data:
            *lines, rest = (rest + data).split(b"\n")
            yield from filter(None, map(parse, lines))
            continue
        if not follow or not running or (until is not None and time.time_ns() > until):
            return
        yield None
        if time.monotonic() > looked + STATE_SECONDS:
            from utsuwa.engine import containers

            # Asked before the last read: what is written after the answer "ended" is nothing.
            looked, running = time.monotonic(), containers.is_running(context, container)
        if running:
            time.sleep(POLL_SECONDS)


def _start_of_tail(fd: int, lines: int) -> int:
    """Return the offset of the last `lines` lines, found from the end so that a long log costs nothing. The last text of a stream counts unfinished."""
    end = os.lseek(fd, 0, os.SEEK_END)
    if not lines:
        return end
    found, started = 0, set()
    place, rest = end, b""
    while place > 0:
        size = min(BLOCK, place)
        place -= size
        rest = os.pread(fd, size, place) + rest
        head, *whole = rest.split(b"\n")
        # Offsets of the lines after each newline in what was read; the first one's start is not known before the block above it.
        offset = place + len(rest)
        for line in reversed(whole):
            offset -= len(line) + 1
            record = parse(line)
            if record is not None:
                found += record.ends or record.stream not in started
                started.add(record.stream)
                if found > lines:
                    return offset + 1 + len(line) + 1
        rest = head
    record = parse(rest)
    if record is not None and found + (record.ends or record.stream not in started) > lines:
        return len(rest) + 1
    return 0
