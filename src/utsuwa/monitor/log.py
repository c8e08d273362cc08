"""The container's log, in the CRI's form: `2026-11-24T05:02:47.123456789Z stdout F text`. One write a line; never blocks DNS or attach."""

from __future__ import annotations

import os
import time

PARTIAL_LIMIT = 16384


class Log:
    """Appends to one file. A line without its newline is kept until it comes, or written as P (partial) past 16 KiB."""

    __slots__ = ("_fd", "_rest", "_second", "_stamp")

    def __init__(self, path: str) -> None:
        self._fd = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)
        self._rest: dict[str, bytes] = {}
        self._second, self._stamp = -1, ""

    def _now(self) -> bytes:
        ns = time.time_ns()
        second = ns // 1_000_000_000
        if second != self._second:
            self._second, self._stamp = second, time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(second))
        return f"{self._stamp}.{ns % 1_000_000_000:09d}Z".encode()

    def write(self, stream: str, data: bytes) -> None:
        """Append output of "stdout" or "stderr"."""
        data = self._rest.pop(stream, b"") + data
        *lines, rest = data.split(b"\n")
        head = self._now() + b" " + stream.encode()
        out = [head + b" F " + line + b"\n" for line in lines]
        while len(rest) > PARTIAL_LIMIT:
            out.append(head + b" P " + rest[:PARTIAL_LIMIT] + b"\n")
            rest = rest[PARTIAL_LIMIT:]
        if rest:
            self._rest[stream] = rest
        self._append(b"".join(out))

    def _append(self, data: bytes) -> None:
        try:
            while data:
                data = data[os.write(self._fd, data):]
        except OSError:  # a full disk stops the log, not the container
            return

    def close(self) -> None:
        """Write what has no newline as partial, and close."""
        for stream, rest in self._rest.items():
            self._append(self._now() + b" " + stream.encode() + b" P " + rest + b"\n")
        self._rest.clear()
        os.close(self._fd)
