"""utsuwa logs."""

from __future__ import annotations

import os
import time

from utsuwa.cli.flags import BOOL, TEXT, Flag, parse
from utsuwa.errors import UsageError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

    from utsuwa.engine.logs import Record

FLAGS = (
    Flag("follow", "f", BOOL, "Follow log output"),
    Flag("since", kind=TEXT, help="Show logs since timestamp (e.g. 2013-01-02T13:23:37Z) or relative (e.g. 42m for 42 minutes)"),
    Flag("tail", "n", TEXT, "Number of lines to show from the end of the logs", default="all"),
    Flag("timestamps", "t", BOOL, "Show timestamps"),
    Flag("until", kind=TEXT, help="Show logs before a timestamp (e.g. 2013-01-02T13:23:37Z) or relative (e.g. 42m for 42 minutes)"),
)
SUMMARY = "Fetch the logs of a container"
BATCH = 1 << 16
DESCRIPTORS = {"stdout": 1, "stderr": 2}


def main(argv: list[str]) -> int:
    """Write a container's log: what it wrote to standard output there, to standard error there."""
    given, words = parse("logs", "utsuwa logs [OPTIONS] CONTAINER", FLAGS, argv, least=1, most=1, unsupported=frozenset({"details"}), summary=SUMMARY)
    from utsuwa.cli import units
    from utsuwa.cli.main import context
    from utsuwa.engine import containers, logs

    tail, now = _tail(given.text("tail")), time.time_ns()
    since, until = (units.parse_time(given.text(name), now) if given.text(name) else None for name in ("since", "until"))
    where = context()
    row = containers.find(where, words[0])
    copy(logs.read(where, row.id, follow=given.on("follow"), tail=tail, since=since, until=until), stamps=given.on("timestamps"))
    return 0


def _tail(text: str) -> int:
    if text == "all":
        return -1
    try:
        return max(int(text), -1)
    except ValueError:
        raise UsageError(f"invalid --tail {text}: expected a number of lines, or all") from None


def copy(records: Iterator[Record | None], *, stamps: bool) -> None:
    """Write records to standard output and error, in order; in few writes, but nothing held back while the log waits."""
    batch: list[bytes] = []
    size, target = 0, 1
    begun: set[str] = set()  # streams in the middle of a line

    def flush() -> None:
        nonlocal size
        data = b"".join(batch)
        batch.clear()
        size = 0
        while data:
            data = data[os.write(target, data):]

    for record in records:
        descriptor = target if record is None else DESCRIPTORS.get(record.stream, 1)
        if record is None or descriptor != target or size > BATCH:
            flush()
        if record is None:
            continue
        target = descriptor
        text = record.text
        if stamps and record.stream not in begun:
            text = f"{record.stamp} ".encode() + text
        (begun.discard if record.ends else begun.add)(record.stream)
        batch.append(text)
        size += len(text)
    flush()
