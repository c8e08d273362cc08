"""The loopback link of a new network namespace, without netlink: three system calls, for init, which must import little. netdevice(7)."""

from __future__ import annotations

from _struct import pack
from fcntl import ioctl

import _socket

from utsuwa.kernel.door import call_os

_SIOCSIFFLAGS, _IFF_UP = 0x8914, 0x1


def up_loopback() -> None:
    """Set `lo` of this network namespace up; the kernel gives it 127.0.0.1 and ::1. Idempotent. Raises OSError. netdevice(7), SIOCSIFFLAGS."""
    call_os("netlink", ("ip link set lo up",), "ip link set lo up", _up)


def _up() -> None:
    sock = _socket.socket(_socket.AF_INET, _socket.SOCK_DGRAM | _socket.SOCK_CLOEXEC, 0)
    try:
        ioctl(sock.fileno(), _SIOCSIFFLAGS, pack("16sH22x", b"lo", _IFF_UP))
    finally:
        sock.close()
