"""rtnetlink(7): links, addresses and routes, several requests in one sendmsg(2).

A `Message` is one request with its text in the manner of ip(8), which is what the ledger keeps: pasted into a shell, it does the same.
`Netlink` is a socket of the network namespace it was opened in, and stays there when its thread leaves for another.

Leaves out: what to connect to what (network/), nftables (nftables.py), the loopback link for init (link.py).
"""

from __future__ import annotations

import os
from _struct import pack, unpack_from

import _socket

from utsuwa import ledger
from utsuwa.kernel.door import call_os, is_real

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

NETLINK_ROUTE = 0
RTM_NEWLINK, RTM_DELLINK, RTM_GETLINK, RTM_NEWADDR, RTM_GETADDR, RTM_NEWROUTE, RTM_GETROUTE = 16, 17, 18, 20, 22, 24, 26
NLM_F_REQUEST, NLM_F_ACK, NLM_F_EXCL, NLM_F_CREATE, NLM_F_DUMP = 0x1, 0x4, 0x200, 0x400, 0x300
NLMSG_ERROR, NLMSG_DONE = 2, 3
IFF_UP = 0x1
IFLA_ADDRESS, IFLA_IFNAME, IFLA_MASTER, IFLA_LINKINFO, IFLA_IFALIAS, IFLA_NET_NS_FD = 1, 3, 10, 18, 20, 28
IFLA_INFO_KIND, IFLA_INFO_DATA, IFLA_INFO_SLAVE_KIND, IFLA_INFO_SLAVE_DATA = 1, 2, 4, 5
VETH_INFO_PEER, IFLA_BRPORT_MODE = 1, 4
IFA_ADDRESS, IFA_LOCAL, IFA_BROADCAST = 1, 2, 4
RTA_DST, RTA_OIF, RTA_GATEWAY = 1, 4, 5
RT_TABLE_MAIN, RTPROT_BOOT, RTN_UNICAST = 254, 3, 1
_NEW = NLM_F_CREATE | NLM_F_EXCL
_HEADER, _RECEIVE = 16, 1 << 16


class Message:
    """One request. `text` is what ip(8) would be told; `allow` are errno values that mean it was done already."""

    __slots__ = ("allow", "body", "flags", "kind", "text")

    def __init__(self, kind: int, flags: int, body: bytes, text: str, allow: tuple[int, ...] = ()) -> None:
        self.kind, self.flags, self.body, self.text, self.allow = kind, flags, body, text, allow


def attribute(kind: int, value: bytes) -> bytes:
    """Return one attribute: length, type, value, padded to four bytes. netlink(7)."""
    return pack("HH", 4 + len(value), kind) + value + b"\0" * (-len(value) % 4)


def _name(kind: int, name: str) -> bytes:
    return attribute(kind, name.encode() + b"\0")


def _ifinfo(index: int = 0, flags: int = 0) -> bytes:
    return pack("BxHiII", _socket.AF_UNSPEC, 0, index, flags, flags)


def link_add_bridge(name: str, allow: tuple[int, ...] = ()) -> Message:
    """A bridge, down."""
    info = attribute(IFLA_LINKINFO, _name(IFLA_INFO_KIND, "bridge"))
    return Message(RTM_NEWLINK, _NEW, _ifinfo() + _name(IFLA_IFNAME, name) + info, f"ip link add {name} type bridge", allow)


def link_add_veth(name: str, master: tuple[str, int], peer: str, peer_mac: str, netns: tuple[str, int]) -> Message:
    """A veth pair: `name` here, up, a port of the bridge `master` (name, index); its peer, down, in `netns` (path, descriptor). veth(4).

    One message, so there is no moment at which the pair exists without its bridge or outside its namespace. The peer cannot come up in
    it too: veth_open answers ENOTCONN until both ends know each other.
    """
    inside = _ifinfo() + _name(IFLA_IFNAME, peer) + attribute(IFLA_ADDRESS, bytes.fromhex(peer_mac.replace(":", ""))) + attribute(IFLA_NET_NS_FD, pack("I", netns[1]))
    info = _name(IFLA_INFO_KIND, "veth") + attribute(IFLA_INFO_DATA, attribute(VETH_INFO_PEER, inside))
    body = _ifinfo(0, IFF_UP) + _name(IFLA_IFNAME, name) + attribute(IFLA_MASTER, pack("I", master[1])) + attribute(IFLA_LINKINFO, info)
    text = f"ip link add {name} up master {master[0]} type veth peer name {peer} address {peer_mac} netns {netns[0]}"
    return Message(RTM_NEWLINK, _NEW, body, text)


def link_set_hairpin(name: str) -> Message:
    """Let a bridge port send a frame back where it came from. bridge(8), hairpin."""
    info = _name(IFLA_INFO_SLAVE_KIND, "bridge") + attribute(IFLA_INFO_SLAVE_DATA, attribute(IFLA_BRPORT_MODE, b"\1"))
    return Message(RTM_NEWLINK, 0, _ifinfo() + _name(IFLA_IFNAME, name) + attribute(IFLA_LINKINFO, info), f"ip link set {name} type bridge_slave hairpin on")


def link_set_up(name: str) -> Message:
    """Set a link up. Idempotent."""
    return Message(RTM_NEWLINK, 0, _ifinfo(0, IFF_UP) + _name(IFLA_IFNAME, name), f"ip link set {name} up")


def link_set_alias(name: str, alias: str) -> Message:
    """Give a link a text of at most 255 bytes that says whose it is. Idempotent."""
    return Message(RTM_NEWLINK, 0, _ifinfo() + _name(IFLA_IFNAME, name) + attribute(IFLA_IFALIAS, alias.encode()[:255]), f"ip link set {name} alias {alias}")


def link_delete(name: str, allow: tuple[int, ...] = ()) -> Message:
    """Delete a link; a veth's peer goes with it."""
    return Message(RTM_DELLINK, 0, _ifinfo() + _name(IFLA_IFNAME, name), f"ip link delete {name}", allow)


def address_add(link: tuple[str, int], address: bytes, prefix: int, allow: tuple[int, ...] = ()) -> Message:
    """Give a link (name, index) an IPv4 address (4 bytes); the broadcast address follows from the prefix length."""
    mask = (1 << (32 - prefix)) - 1
    broadcast = (int.from_bytes(address, "big") | mask).to_bytes(4, "big")
    body = pack("BBBBi", _socket.AF_INET, prefix, 0, 0, link[1]) + attribute(IFA_ADDRESS, address) + attribute(IFA_LOCAL, address) + attribute(IFA_BROADCAST, broadcast)
    return Message(RTM_NEWADDR, _NEW, body, f"ip address add {_socket.inet_ntoa(address)}/{prefix} broadcast {_socket.inet_ntoa(broadcast)} dev {link[0]}", allow)


def route_add_default(gateway: bytes, link: tuple[str, int]) -> Message:
    """The default route through `gateway` (4 bytes) on a link that is up."""
    body = pack("BBBBBBBBI", _socket.AF_INET, 0, 0, 0, RT_TABLE_MAIN, RTPROT_BOOT, 0, RTN_UNICAST, 0) + attribute(RTA_GATEWAY, gateway) + attribute(RTA_OIF, pack("i", link[1]))
    return Message(RTM_NEWROUTE, _NEW, body, f"ip route add default via {_socket.inet_ntoa(gateway)} dev {link[0]}")


def index_of(name: str) -> int:
    """Return the index of a link of this thread's network namespace, 0 when there is none. if_nametoindex(3). Looks only."""
    if not is_real():
        return 1
    try:
        return _socket.if_nametoindex(name)
    except OSError:
        return 0


class Netlink:
    """An rtnetlink socket. `inside` is the path of the namespace it belongs to, '' for the host's: it is part of what the ledger shows."""

    __slots__ = ("_prefix", "_sequence", "_socket")

    def __init__(self, inside: str = "") -> None:
        self._prefix = f"nsenter --net={inside} " if inside else ""
        self._sequence = 0
        self._socket = _socket.socket(_socket.AF_NETLINK, _socket.SOCK_RAW | _socket.SOCK_CLOEXEC, NETLINK_ROUTE)

    def close(self) -> None:
        """Close the socket. Idempotent."""
        self._socket.close()

    def send(self, *messages: Message) -> None:
        """Make all requests in one sendmsg(2); each is one ledger line. Raises OSError for the first that failed, unless it allows that.

        The kernel takes them in order and goes on after a failure. Under an armed fault each goes alone, so that a test can strike between two.
        """
        if not is_real():
            for message in messages:
                call_os("netlink", (self._prefix + message.text,), message.text, _nothing)
            return
        if "UTSUWA_FAULT" in os.environ and len(messages) > 1:
            for message in messages:
                self.send(message)
            return
        for _ in messages:
            ledger.fault("netlink")
        failure: OSError | None = None
        for message, number in zip(messages, self._exchange(messages), strict=True):
            ledger.record("netlink", (self._prefix + message.text,), -number)
            if number and number not in message.allow and failure is None:
                failure = OSError(number, f"{message.text}: {os.strerror(number).lower()}")
        if failure is not None:
            raise failure

    def _exchange(self, messages: tuple[Message, ...]) -> list[int]:
        first = self._sequence + 1
        parts = []
        for message in messages:
            self._sequence += 1
            parts.append(pack("IHHII", _HEADER + len(message.body), message.kind, NLM_F_REQUEST | NLM_F_ACK | message.flags, self._sequence, 0) + message.body)
        self._socket.send(b"".join(parts))
        numbers: dict[int, int] = {}
        while len(numbers) < len(messages):
            for kind, sequence, body in split(self._socket.recv(_RECEIVE)):
                if kind == NLMSG_ERROR:
                    numbers[sequence] = -unpack_from("i", body)[0]
        return [numbers[sequence] for sequence in range(first, first + len(messages))]

    def dump(self, kind: int, family: int = _socket.AF_INET) -> list[bytes]:
        """Return the bodies of all objects of a kind (RTM_GETLINK, RTM_GETADDR, RTM_GETROUTE). Looks only."""
        self._sequence += 1
        body = pack("B15x", family)
        self._socket.send(pack("IHHII", _HEADER + len(body), kind, NLM_F_REQUEST | NLM_F_DUMP, self._sequence, 0) + body)
        bodies: list[bytes] = []
        while True:
            for answer, _, part in split(self._socket.recv(_RECEIVE)):
                if answer in (NLMSG_DONE, NLMSG_ERROR):
                    return bodies
                bodies.append(part)

    def links(self) -> list[tuple[str, int, int, str]]:
        """Return (name, index, index of its master or 0, alias) of every link here."""
        found = []
        for body in self.dump(RTM_GETLINK, _socket.AF_UNSPEC):
            fields = attributes(body, 16)
            name, alias = (fields.get(kind, b"").rstrip(b"\0").decode(errors="replace") for kind in (IFLA_IFNAME, IFLA_IFALIAS))
            found.append((name, unpack_from("i", body, 4)[0], int.from_bytes(fields.get(IFLA_MASTER, b""), "little"), alias))
        return found

    def routes(self) -> list[tuple[int, int, int]]:
        """Return (destination as a number, prefix length, index of the link) of the IPv4 routes of the main table; the default route is left out."""
        found = []
        for body in self.dump(RTM_GETROUTE):
            prefix, table = body[1], body[4]
            fields = attributes(body, 12)
            if table == RT_TABLE_MAIN and RTA_DST in fields:
                found.append((int.from_bytes(fields[RTA_DST], "big"), prefix, int.from_bytes(fields.get(RTA_OIF, b""), "little")))
        return found


def attributes(body: bytes, offset: int) -> dict[int, bytes]:
    """Return the attributes that follow the fixed part of a message body. rtnetlink(7)."""
    found = {}
    while offset + 4 <= len(body):
        length, kind = unpack_from("HH", body, offset)
        if length < 4:
            break
        found[kind & 0x3FFF] = body[offset + 4: offset + length]
        offset += (length + 3) & ~3
    return found


def split(data: bytes) -> Iterator[tuple[int, int, bytes]]:
    """Yield (type, sequence number, body) of each message in a datagram. netlink(7)."""
    offset = 0
    while offset + _HEADER <= len(data):
        length, kind, _, sequence, _ = unpack_from("IHHII", data, offset)
        yield kind, sequence, data[offset + _HEADER: offset + length]
        offset += (length + 3) & ~3


def _nothing() -> None:
    return
