"""A monitor that boots while its caller still reads arguments, and the engine's part of the ledger until the container has a place for it.

Imported before everything else on the hot path: keep it small.
"""

from __future__ import annotations

import os
from _thread import allocate_lock

from utsuwa import ledger
from utsuwa.monitor.spawn import spawn
from utsuwa.runtime import handshake

TYPE_CHECKING = False
if TYPE_CHECKING:
    from socket import socket

    from utsuwa.ledger import Ledger, Line


class Held:
    """A ledger sink that keeps lines until there is a file to write them in. Another thread may write while it is opened."""

    __slots__ = ("_lock", "fd", "lines")

    def __init__(self) -> None:
        self.fd, self._lock = -1, allocate_lock()
        self.lines: list[bytes] = []

    def __call__(self, book: Ledger, line: Line) -> None:
        encoded = ledger.encode_line(book.who, book.seq, line)
        with self._lock:
            if self.fd >= 0:
                ledger.append(self.fd, encoded)
            else:
                self.lines.append(encoded)

    def open(self, path: str) -> None:
        """Write what was held, and from now on at once."""
        with self._lock:
            self.fd = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)
            ledger.append(self.fd, b"".join(self.lines))
            self.lines.clear()

    def close(self) -> None:
        with self._lock:
            if self.fd >= 0:
                os.close(self.fd)
                self.fd = -1


class Seed:
    """A spawned monitor, our end of its socket, and the engine's ledger. Dropped unused, the monitor leaves by itself at end of file."""

    __slots__ = ("book", "held", "pid", "sock")

    def __init__(self) -> None:
        self.held = Held()
        self.book = ledger.Ledger("engine", self.held)
        with ledger.recording(self.book):
            descriptor, self.pid = spawn()
        self.sock: socket = handshake.adopt(descriptor)

    def drop(self) -> None:
        """Let the monitor go. Idempotent."""
        self.sock.close()
        self.held.close()
        if self.pid > 0:
            try:
                os.waitpid(self.pid, 0)  # the first of its two forks, gone at once
            except ChildProcessError:  # a caller that ignores SIGCHLD: the kernel has reaped it
                pass
            self.pid = 0
