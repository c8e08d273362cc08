"""What the monitor owes to others and must never wait for: messages to clients that read slowly, input for a container that does not read.

A client that is attached and slow stops the reading of the container's output (as a full pipe would), not the monitor.
"""

from __future__ import annotations

import os
import select

import _socket

from utsuwa.runtime import handshake

TYPE_CHECKING = False
if TYPE_CHECKING:
    from socket import socket

QUEUE_LIMIT = 64
"""Messages (of up to 32 KiB) that an attached client may owe before the container's output waits for it."""


class Client:
    """One connection. `attached` gets output, `waiting` the exit, `owner` is the caller that made the container and has not let go."""

    __slots__ = ("attached", "owner", "poll", "queue", "sock", "waiting")

    def __init__(self, sock: socket, poll: select.epoll, *, owner: bool = False) -> None:
        self.sock, self.poll, self.owner = sock, poll, owner
        self.attached = self.waiting = False
        self.queue: list[tuple[str, object, tuple[int, ...]]] = []
        poll.register(sock.fileno(), select.EPOLLIN)

    def fileno(self) -> int:
        return self.sock.fileno()

    def send(self, kind: str, body: object, fds: tuple[int, ...] = ()) -> None:
        """Send, or queue in order. Raises OSError when the client is gone."""
        if not self.queue:
            try:
                handshake.send(self.sock, kind, body, fds, _socket.MSG_DONTWAIT)
            except BlockingIOError:
                self.poll.modify(self.sock.fileno(), select.EPOLLIN | select.EPOLLOUT)
            else:
                return
        self.queue.append((kind, body, tuple(os.dup(fd) for fd in fds)))

    def flush(self) -> None:
        """Send what waits, as far as it goes. Raises OSError when the client is gone."""
        while self.queue:
            kind, body, fds = self.queue[0]
            try:
                handshake.send(self.sock, kind, body, fds, _socket.MSG_DONTWAIT)
            except BlockingIOError:
                return
            for fd in fds:
                os.close(fd)
            del self.queue[0]
        self.poll.modify(self.sock.fileno(), select.EPOLLIN)

    @property
    def full(self) -> bool:
        return self.attached and len(self.queue) >= QUEUE_LIMIT

    def close(self) -> None:
        self.poll.unregister(self.sock.fileno())
        for _, _, fds in self.queue:
            for fd in fds:
                os.close(fd)
        self.queue.clear()
        self.sock.close()


def deliver(slow: list[Client]) -> None:
    """Bring each what it is still owed, however long it takes; one that goes away is owed nothing. For a process of its own."""
    waiting = {client.fileno(): client for client in slow}
    poll = select.poll()
    for fd in waiting:
        poll.register(fd, select.POLLOUT)
    while waiting:
        for fd, events in poll.poll():
            try:
                waiting[fd].flush()
                done = not waiting[fd].queue or events & (select.POLLHUP | select.POLLERR)
            except OSError:
                done = True
            if done:
                poll.unregister(fd)
                del waiting[fd]


class Stdin:
    """The container's input: a pipe, or the terminal, whose descriptor the monitor also reads. `fd` is -1 once closed."""

    __slots__ = ("_ending", "_reading", "fd", "poll", "queue")

    def __init__(self, poll: select.epoll, fd: int, *, terminal: bool) -> None:
        self.poll, self.fd = poll, fd
        self._reading = select.EPOLLIN if terminal else 0
        self._ending = False
        self.queue: list[tuple[Client | None, memoryview]] = []
        if fd >= 0:
            os.set_blocking(fd, False)
            if not terminal:
                poll.register(fd, 0)

    def put(self, client: Client, data: bytes) -> None:
        """Write a chunk; its sender hears TAKEN when the container's end has taken all of it."""
        self.queue.append((client, memoryview(data)))
        self.ready()

    def ready(self) -> None:
        """Write what waits, as far as it goes."""
        while self.queue:
            client, view = self.queue[0]
            try:
                while view and self.fd >= 0:
                    view = view[os.write(self.fd, view):]
            except BlockingIOError:
                self.queue[0] = (client, view)
                self._watch(select.EPOLLOUT)
                return
            except OSError:  # the container closed its input: what is sent goes nowhere
                if not self._reading:
                    self.close()
                    return
            del self.queue[0]
            if client is not None:
                _tell(client)
        self._watch(0)
        if self._ending:
            self.close()

    def end(self) -> None:
        """End of input, once what waits is written. A terminal has none: it stays open, since it is read as well."""
        self._ending = True
        if not self.queue:
            self.close()

    def forget(self, client: Client) -> None:
        """Drop the name of a client that has gone; what it sent is still written."""
        self.queue = [(None if owner is client else owner, view) for owner, view in self.queue]

    def close(self) -> None:
        """Close a pipe, and let its writers go on; a terminal is closed with the output. Idempotent."""
        if self.fd >= 0 and not self._reading:
            self.poll.unregister(self.fd)
            os.close(self.fd)
            self.fd = -1
            left, self.queue = self.queue, []
            for client, _ in left:
                if client is not None:
                    _tell(client)

    def _watch(self, events: int) -> None:
        if self.fd >= 0:
            self.poll.modify(self.fd, self._reading | events)


def _tell(client: Client) -> None:
    try:
        client.send(handshake.TAKEN, None)
    except OSError:
        return
