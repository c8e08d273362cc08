"""Addresses and published ports in the database, by sandbox id.

`take` and `claim` run inside the caller's `with db.write():`, an IMMEDIATE transaction, so a hundred starts at once never get the same
address. `release` is idempotent and needs nothing but the id. A row outlives a killed engine until the sandbox is destroyed.
"""

from __future__ import annotations

from utsuwa.errors import Conflict
from utsuwa.spec.network import Binding, NetworkRecord

TYPE_CHECKING = False
if TYPE_CHECKING:
    from utsuwa.state.db import Database


def take(db: Database, network: NetworkRecord, sandbox: str) -> int:
    """Return the lowest free address of the network, now leased to the sandbox; the one it has already, where it has one.

    Call inside `with db.write():`. Raises Conflict when the network is full.
    """
    for (address,) in db.read("SELECT address FROM lease WHERE network = ? AND sandbox = ?", network.name, sandbox):
        return int(address)  # type: ignore[arg-type]
    # The lowest free one is the first candidate, or follows a lease or the gateway.
    free = db.read(
        "SELECT MIN(a) FROM (SELECT ? AS a UNION ALL SELECT ? UNION ALL SELECT address + 1 FROM lease WHERE network = ?) "
        "WHERE a <> ? AND a NOT IN (SELECT address FROM lease WHERE network = ?)",
        network.subnet + 1, network.gateway + 1, network.name, network.gateway, network.name,
    )[0][0]
    last = network.subnet | ((1 << (32 - network.prefix)) - 1)
    if not isinstance(free, int) or free >= last:
        raise Conflict(f"cannot give the container an address: no available IPv4 addresses on this network's address pools: {network.name}; remove containers or use another network")
    db.do("INSERT INTO lease (network, address, sandbox) VALUES (?, ?, ?)", network.name, free, sandbox)
    return free


def address_of(db: Database, sandbox: str) -> int | None:
    """Return the sandbox's address as a number, None where it has none."""
    for (address,) in db.read("SELECT address FROM lease WHERE sandbox = ?", sandbox):
        return int(address)  # type: ignore[arg-type]
    return None


def claim(db: Database, sandbox: str, bindings: list[Binding]) -> None:
    """Note the published ports of a sandbox, which are reserved by bound sockets already. Call inside `with db.write():`."""
    for binding in bindings:
        # A row of a sandbox that is gone (killed before its clean-up) may stand here: the socket that we hold proves that it is stale.
        db.do("INSERT OR REPLACE INTO port (protocol, address, port, sandbox, target) VALUES (?, ?, ?, ?, ?)", *binding.plain()[:3], sandbox, binding.target)


def bindings_of(db: Database, sandbox: str) -> list[Binding]:
    """Return the published ports of a sandbox."""
    return [Binding(str(protocol), str(address), int(port), int(target))  # type: ignore[arg-type]
            for protocol, address, port, target in db.read("SELECT protocol, address, port, target FROM port WHERE sandbox = ? ORDER BY rowid", sandbox)]


def port_owner(db: Database, protocol: str, port: int) -> str:
    """Return the name of the container that publishes a host port, '' where none of ours does."""
    for (name,) in db.read("SELECT container.name FROM port JOIN container ON container.id = port.sandbox WHERE protocol = ? AND port = ?", protocol, port):
        return str(name)
    return ""


def release(db: Database, sandbox: str) -> None:
    """Give back the addresses and ports of a sandbox. Idempotent. Call inside `with db.write():`, after the sandbox is destroyed."""
    db.do("DELETE FROM lease WHERE sandbox = ?", sandbox)
    db.do("DELETE FROM port WHERE sandbox = ?", sandbox)
