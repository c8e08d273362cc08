"""Published ports: Docker's `-p` forms, and the sockets that hold a host's ports while the container lives.

The kernel's translation would send a port to the container even while a server of the host listens on it, without anybody noticing. So a bound socket
reserves each one: a second use fails where it is asked for, and ephemeral ports are the kernel's own choice. The monitor keeps the descriptors.
"""

from __future__ import annotations

import errno
import os

import _socket

from utsuwa.errors import Conflict, NotSupported, PermissionDenied, UsageError
from utsuwa.kernel.door import FAKE, call_os, is_real
from utsuwa.ledger import because
from utsuwa.spec.network import Binding, address_number
from utsuwa.state import leases

TYPE_CHECKING = False
if TYPE_CHECKING:
    from socket import socket

    from utsuwa.state.db import Database

_TYPES = {"tcp": _socket.SOCK_STREAM, "udp": _socket.SOCK_DGRAM}
_EXAMPLE = "as in -p 8080:80, -p 127.0.0.1:8080:80 or -p 8000-8010:80-90/udp"


class Request:
    """One wish: container port `target`, published on `address` ('' is all) at a port from `first` to `last`; 0 leaves the choice to the kernel."""

    __slots__ = ("address", "first", "last", "protocol", "target")

    def __init__(self, protocol: str, address: str, first: int, last: int, target: int) -> None:
        self.protocol, self.address, self.first, self.last, self.target = protocol, address, first, last, target

    def plain(self) -> tuple[str, str, int, int, int]:
        """What marshal keeps; `Request(*plain)` is the request again."""
        return self.protocol, self.address, self.first, self.last, self.target


def parse(texts: list[str]) -> list[Request]:
    """Return what `-p` asks for: `[[IP:]HOST:]CONTAINER[/tcp|udp]`, HOST and CONTAINER a port or a range; HOST may be empty or 0.

    Equal requests count once, as at Docker. Raises UsageError worded as Docker's, NotSupported for IPv6 and sctp.
    """
    found: dict[tuple[str, str, int, int, int], Request] = {}
    for text in texts:
        for request in _parse_one(text):
            found[request.plain()] = request
    return list(found.values())


def _parse_one(text: str) -> list[Request]:
    parts = text.split(":")
    container, host, ip = parts[-1], parts[-2] if len(parts) > 1 else "", ":".join(parts[:-2])
    container, _, protocol = container.partition("/")
    protocol = (protocol or "tcp").lower()
    address = _address(ip, text)
    if not container:
        raise UsageError(f"no port specified: {text}<empty>; write it {_EXAMPLE}")
    first, last = _range(container, "containerPort")
    if not first:
        raise UsageError(f"invalid containerPort: {container}; write it {_EXAMPLE}")
    host_first, host_last = _range(host, "hostPort") if host else (0, 0)
    if protocol == "sctp":
        raise NotSupported(f"not yet supported: -p {text} (sctp)")
    if protocol not in _TYPES:
        raise UsageError(f"invalid proto: {protocol}; use tcp or udp")
    if host and last - first != host_last - host_first and first != last:
        raise UsageError(f"invalid ranges specified for container and host Ports: {container} and {host}; make them equally long")
    if first == last:
        return [Request(protocol, address, host_first, host_last, first)]
    return [Request(protocol, address, host_first + n if host_first else 0, host_first + n if host_first else 0, first + n) for n in range(last - first + 1)]


def _address(ip: str, text: str) -> str:
    if ":" in ip or ip.startswith("["):
        raise NotSupported(f"not yet supported: -p {text} (IPv6)")
    if not ip:
        return ""
    try:
        return "" if address_number(ip) == 0 else ip
    except ValueError:
        raise UsageError(f"invalid IP address: {ip}; write it {_EXAMPLE}") from None


def _range(text: str, what: str) -> tuple[int, int]:
    first, dash, last = text.partition("-")
    try:
        low = _port(first)
        high = _port(last) if dash else low
    except ValueError:
        low, high = 1, 0
    if high < low:
        raise UsageError(f"invalid {what}: {text}; write it {_EXAMPLE}")
    return low, high


def _port(text: str) -> int:
    if not (text.isascii() and text.isdecimal() and len(text) <= 5 and int(text) <= 65535):
        raise ValueError(text)
    return int(text)


# ------------------------------------------------------------------------------------------------------------ reserving

def reserve(db: Database, requests: list[Request]) -> tuple[list[Binding], list[int]]:
    """Bind one socket per request; returns the bindings, host ports decided, and descriptors that hold them while they are open.

    All or none. The caller closes them, or hands them to the monitor. Raises Conflict naming who uses the port, PermissionDenied.
    """
    bindings: list[Binding] = []
    descriptors: list[int] = []
    try:
        with because("a published port is the container's while it lives: nobody else can bind it", "bind(2); Docker, port allocator", 4):
            for request in requests:
                port, descriptor = _reserve_one(db, request)
                descriptors.append(descriptor)
                bindings.append(Binding(request.protocol, request.address, port, request.target))
    except BaseException:
        release(descriptors)
        raise
    return bindings, descriptors


def release(descriptors: list[int]) -> None:
    """Close reserved sockets."""
    for descriptor in descriptors:
        if descriptor < FAKE or is_real():
            os.close(descriptor)


def _reserve_one(db: Database, request: Request) -> tuple[int, int]:
    for port in range(request.first, request.last + 1):
        sock = _socket.socket(_socket.AF_INET, _TYPES[request.protocol] | _socket.SOCK_CLOEXEC, 0)
        try:
            call_os("bind", (request.protocol, request.address or "0.0.0.0", port), f"{port}/{request.protocol}", _bind, sock, request.address, port)  # noqa: S104 - asked for
            return (sock.getsockname()[1] if is_real() else port or 32768), sock.detach()
        except OSError as error:
            sock.close()
            if error.errno == errno.EADDRINUSE and port < request.last:
                continue  # a range of host ports for one of the container's: the first free one
            raise _refused(db, request, port, error) from None
    raise AssertionError("unreachable")


def _bind(sock: socket, address: str, port: int) -> None:
    # With SO_REUSEADDR connections in TIME_WAIT do not stand in the way. Taken back afterwards, so that nobody who sets it can listen beside us.
    if port:
        sock.setsockopt(_socket.SOL_SOCKET, _socket.SO_REUSEADDR, 1 if sock.type == _socket.SOCK_STREAM else 0)
    sock.bind((address, port))
    sock.setsockopt(_socket.SOL_SOCKET, _socket.SO_REUSEADDR, 0)


def _refused(db: Database, request: Request, port: int, error: OSError) -> Conflict | PermissionDenied:
    place = f"{request.address}:{port}" if request.address else str(port)
    what = f"cannot publish port {place}/{request.protocol}"
    if error.errno == errno.EADDRINUSE:
        if request.first != request.last:
            return Conflict(f"{what}: all ports from {request.first} to {request.last} are in use; choose others with -p HOST:{request.target}")
        return Conflict(f"{what}: address in use{_holder(db, request.protocol, port)}; choose another with -p HOST:{request.target}")
    if error.errno in (errno.EACCES, errno.EPERM):
        return PermissionDenied(f"{what}: permission denied; ports below net.ipv4.ip_unprivileged_port_start need root")
    if error.errno == errno.EADDRNOTAVAIL:
        return Conflict(f"{what}: this host does not have the address {request.address}; see ip address")
    return Conflict(f"{what}: {(error.strerror or '').rpartition(': ')[2]}")


def _holder(db: Database, protocol: str, port: int) -> str:
    """Return " by NAME (pid N)" or " by container NAME" where it can be known, else ''. Reads /proc: only on the way to an error."""
    name = leases.port_owner(db, protocol, port)
    if name:
        return f" by container {name}"
    wanted = {f"socket:[{inode}]" for table in (protocol, protocol + "6") for inode in _inodes(f"/proc/net/{table}", protocol, port)}
    for pid in filter(str.isdecimal, os.listdir("/proc") if wanted else []):
        try:
            if any(os.readlink(f"/proc/{pid}/fd/{fd}") in wanted for fd in os.listdir(f"/proc/{pid}/fd")):
                with open(f"/proc/{pid}/comm", encoding="utf-8", errors="replace") as file:
                    return f" by {file.read().strip()} (pid {pid})"
        except OSError:
            continue
    return ""


def _inodes(path: str, protocol: str, port: int) -> list[str]:
    """Inode numbers of the sockets that listen on a port: state 0A for tcp, any unconnected one for udp. proc(5), /proc/net/tcp."""
    try:
        with open(path, encoding="ascii") as file:
            rows = [line.split() for line in file.readlines()[1:]]
    except OSError:
        return []
    states = ("0A", "07") if protocol == "tcp" else ("07",)
    return [row[9] for row in rows if int(row[1].rpartition(":")[2], 16) == port and row[3] in states]
