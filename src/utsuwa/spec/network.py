"""A network, its addresses and its published ports, as plain data."""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    Plain = tuple[str, str, int, int, int, bool]


def address_text(address: int) -> str:
    """172.30.0.2 for 0xAC1E0002."""
    return f"{address >> 24}.{address >> 16 & 255}.{address >> 8 & 255}.{address & 255}"


def address_number(text: str) -> int:
    """The reverse. Raises ValueError for anything but four decimal numbers 0–255."""
    parts = text.split(".")
    if len(parts) != 4 or not all(part.isascii() and part.isdecimal() and len(part) <= 3 and int(part) <= 255 for part in parts):
        raise ValueError(f"not an IPv4 address: {text}")
    return int.from_bytes(bytes(map(int, parts)), "big")


class NetworkRecord:
    """One bridge network. `link` is the bridge's name on the host; addresses are numbers; `internal` reaches nothing outside."""

    __slots__ = ("gateway", "internal", "link", "name", "prefix", "subnet")

    def __init__(self, name: str, link: str, subnet: int, prefix: int, gateway: int = 0, internal: bool = False) -> None:
        self.name, self.link, self.subnet, self.prefix, self.internal = name, link, subnet, prefix, internal
        self.gateway = gateway or subnet + 1

    @property
    def cidr(self) -> str:
        """172.30.0.0/16."""
        return f"{address_text(self.subnet)}/{self.prefix}"

    def holds(self, address: int) -> bool:
        """Whether an address is one of the subnet's."""
        return address >> (32 - self.prefix) == self.subnet >> (32 - self.prefix)

    def plain(self) -> Plain:
        """What marshal keeps; `NetworkRecord(*plain)` is the record again."""
        return self.name, self.link, self.subnet, self.prefix, self.gateway, self.internal


class Binding:
    """One published port: `address` of the host ('' is all of them) and `port`, to the container's `target` port. `protocol` is tcp or udp."""

    __slots__ = ("address", "port", "protocol", "target")

    def __init__(self, protocol: str, address: str, port: int, target: int) -> None:
        self.protocol, self.address, self.port, self.target = protocol, address, port, target

    def plain(self) -> tuple[str, str, int, int]:
        """What marshal keeps; `Binding(*plain)` is the binding again."""
        return self.protocol, self.address, self.port, self.target

    def __repr__(self) -> str:
        return f"{self.address or '0.0.0.0'}:{self.port}->{self.target}/{self.protocol}"  # noqa: S104 - as docker ps shows it
