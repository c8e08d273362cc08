"""A network's bridge on the host: chosen once, kept in the database, made when the first container needs it.

`default` chooses; `ensure` makes, and costs three looks once it stands. Interrupted at any point, the next `ensure` completes it: the marker
under RUN/networks is written last.
"""

from __future__ import annotations

import errno
import fcntl
import marshal
import os

from utsuwa.errors import Conflict, RuntimeFailure
from utsuwa.kernel import files, netlink
from utsuwa.kernel.door import is_real
from utsuwa.ledger import because
from utsuwa.network import firewall
from utsuwa.spec.network import NetworkRecord, address_number, address_text

TYPE_CHECKING = False
if TYPE_CHECKING:
    from utsuwa.state.db import Database

DEFAULT = "bridge"
ALIAS = "utsuwa"
"""A bridge's alias is this, its subnet, and the run directory of its engine."""
SYSTEM = "/var/lib/utsuwa/state.db"
# Docker's own come from 172.17–31 upwards and 192.168: taken from the far end, the two rarely meet.
POOLS = tuple((address_number(f"172.{n}.0.0"), 16) for n in (30, 31, 29, 28, 27, 26, 25, 24)) + tuple((address_number(f"192.168.{n}.0"), 20) for n in (224, 208, 192))
POOLS += tuple((address_number("10.213.0.0") + (n << 12), 20) for n in range(256))


def default(db: Database) -> NetworkRecord:
    """Return the default network's record, chosen and noted at first use. Safe against a second chooser. Raises Conflict when no subnet is free."""
    rows = db.read("SELECT record FROM network WHERE name = ?", DEFAULT)
    if rows:
        return NetworkRecord(*marshal.loads(rows[0][0]))  # type: ignore[arg-type]  # noqa: S302 - our own database, 0600
    with db.write():
        rows = db.read("SELECT record FROM network WHERE name = ?", DEFAULT)
        if rows:
            return NetworkRecord(*marshal.loads(rows[0][0]))  # type: ignore[arg-type]  # noqa: S302
        record = _choose(str(db.read("PRAGMA database_list")[0][2]))
        db.do("INSERT INTO network (name, record) VALUES (?, ?)", DEFAULT, marshal.dumps(record.plain()))
    return record


def _choose(database: str) -> NetworkRecord:
    sock, lock = netlink.Netlink(), _lock()
    try:
        _drop_orphans(sock)
        routes = sock.routes()
    finally:
        os.close(lock)
        sock.close()
    link, pools = _preferred(database)
    for subnet, prefix in pools:
        if not any(_overlap(subnet, prefix, to, length) for to, length, _ in routes):
            return NetworkRecord(DEFAULT, link, subnet, prefix)
    raise Conflict("cannot choose a subnet for network bridge: this host has routes to all of 172.24–31, 192.168.192–239 and 10.213–228")


def _preferred(database: str) -> tuple[str, tuple[tuple[int, int], ...]]:
    """Return a name for the bridge and subnets in the order to try: the system's engine has `utsuwa0` and the first pools.

    For one that keeps its state elsewhere both follow from where, so that no two take the same while neither bridge stands.
    """
    if database == SYSTEM:
        return "utsuwa0", POOLS
    from zlib import crc32

    number = crc32(database.encode())
    turn = len(POOLS) - number % 256
    return f"utsuwa{number % 10**9 or 1}", POOLS[turn:] + POOLS[:turn]


def _drop_orphans(sock: netlink.Netlink) -> None:
    """Remove bridges whose engine's run directory is gone and that no container is on: a deleted engine's, which nobody else will miss.

    An engine that is only out of sight (another mount namespace) makes its bridge again at its next start.
    """
    links = sock.links() if is_real() else []
    masters = {master for _, _, master, _ in links}
    for name, index, _, alias in links:
        word, _, rest = alias.partition(" ")
        cidr, _, run_dir = rest.partition(" ")
        if word == ALIAS and run_dir and index not in masters and not os.path.isdir(run_dir):
            subnet, _, prefix = cidr.partition("/")
            firewall.remove(NetworkRecord(DEFAULT, name, address_number(subnet), int(prefix)))
            with because("this bridge belongs to an engine whose state is gone", "bridge(8)", 4):
                sock.send(netlink.link_delete(name, (errno.ENODEV,)))


def _overlap(first: int, first_prefix: int, second: int, second_prefix: int) -> bool:
    shift = 32 - min(first_prefix, second_prefix)
    return first >> shift == second >> shift


def marker_path(run_dir: str, network: NetworkRecord) -> str:
    """Return the file that says the network is complete: the bridge's index, name and address."""
    return f"{run_dir}/networks/{network.name}.up"


def _marker(network: NetworkRecord, index: int) -> bytes:
    return f"{index} {network.link} {address_text(network.gateway)}/{network.prefix}\n".encode()


def _marked(run_dir: str) -> list[tuple[int, str, str]]:
    """Return (index, link, address/prefix) of every network that this run directory has made."""
    try:
        names = os.listdir(f"{run_dir}/networks")
    except FileNotFoundError:
        return []
    lines = [_read(f"{run_dir}/networks/{name}").decode().split() for name in names if name.endswith(".up")]
    return [(int(words[0]), words[1], words[2]) for words in lines if len(words) == 3]


def indexes(run_dir: str) -> set[int]:
    """Return the indexes of this engine's bridges."""
    return {index for index, _, _ in _marked(run_dir)}


def owns(run_dir: str, address: str) -> bool:
    """Whether an address belongs to one of this engine's networks."""
    for _, _, cidr in _marked(run_dir):
        gateway, _, prefix = cidr.partition("/")
        if _overlap(address_number(gateway), int(prefix), address_number(address), 32):
            return True
    return False


def _read(path: str) -> bytes:
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return b""
    try:
        return os.read(fd, 256)
    finally:
        os.close(fd)


def ensure(network: NetworkRecord, run_dir: str) -> int:
    """Return the index of the network's bridge, which stands with its address and rules. Idempotent; 0.2 ms when nothing is to be done.

    Raises Conflict where the subnet or the link's name belongs to somebody else, RuntimeFailure, DependencyMissing.
    """
    index = netlink.index_of(network.link)
    if not is_real() or (index and _read(marker_path(run_dir, network)) == _marker(network, index) and firewall.is_set_up(network)):
        return index
    lock = _lock()
    try:
        return _make(network, run_dir)
    finally:
        os.close(lock)


def _lock() -> int:
    """Lock this thread's network namespace, by the file that stands for it: against other commands and other engines on the same host. flock(2).

    The table is shared: without it one engine could find no bridge left and delete the table that another has just entered itself into.
    """
    descriptor = os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
    fcntl.flock(descriptor, fcntl.LOCK_EX)
    return descriptor


def _make(network: NetworkRecord, run_dir: str) -> int:
    firewall.setup(network)
    with because("packets of containers pass from one link to another: the host is their router", "ip-sysctl, ip_forward", 4):
        if _read("/proc/sys/net/ipv4/ip_forward").strip() != b"1":
            files.write_file("/proc/sys/net/ipv4/ip_forward", "1")
    sock = netlink.Netlink()
    try:
        _check_free(sock, network)
        with because(f"network {network.name}: a switch on the host, whose own address is the containers' gateway", "bridge(8)", 4):
            sock.send(netlink.link_add_bridge(network.link, (errno.EEXIST,)), netlink.link_set_alias(network.link, f"{ALIAS} {network.cidr} {run_dir}"))
            index = netlink.index_of(network.link)
            _settings(network)
            address = network.gateway.to_bytes(4, "big")
            sock.send(netlink.address_add((network.link, index), address, network.prefix, (errno.EEXIST,)), netlink.link_set_up(network.link))
    except OSError as error:
        raise RuntimeFailure(f"cannot make network {network.name}: {error.strerror}") from None
    finally:
        sock.close()
    path = marker_path(run_dir, network)
    fd = os.open(path + ".tmp", os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    os.write(fd, _marker(network, index))
    os.close(fd)
    os.rename(path + ".tmp", path)
    return index


def _settings(network: NetworkRecord) -> None:
    # A router advertisement from a container would make itself the host's IPv6 gateway: CVE-2020-13401.
    settings = (("ipv6", "accept_ra", "0"), ("ipv4", "route_localnet", "1"))
    for family, key, value in settings:
        path = f"/proc/sys/net/{family}/conf/{network.link}/{key}"
        if os.path.exists(path):
            files.write_file(path, value)


def _check_free(sock: netlink.Netlink, network: NetworkRecord) -> None:
    own = netlink.index_of(network.link)
    for to, length, link in sock.routes():
        if link != own and _overlap(network.subnet, network.prefix, to, length):
            raise Conflict(f"cannot make network {network.name}: its subnet {network.cidr} overlaps a route of this host to {address_text(to)}/{length}; remove that route")


def remove(network: NetworkRecord, run_dir: str) -> None:
    """Remove the bridge and its rules from the host; containers on it lose their link to it. Idempotent. The database keeps the record."""
    lock = _lock()
    try:
        _unmake(network, run_dir)
    finally:
        os.close(lock)


def _unmake(network: NetworkRecord, run_dir: str) -> None:
    try:
        os.unlink(marker_path(run_dir, network))
    except FileNotFoundError:
        pass
    firewall.remove(network)
    sock = netlink.Netlink()
    try:
        with because("the network is removed", "bridge(8)", 4):
            if netlink.index_of(network.link):
                sock.send(netlink.link_delete(network.link, (errno.ENODEV,)))
    finally:
        sock.close()
