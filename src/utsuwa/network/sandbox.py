"""A container's network namespace: made in a thread of its own while the monitor boots, pinned under RUN/netns, plugged into a bridge.

    handle = begin(network, sandbox_id, address, run_dir, bindings)   # returns at once; ~1.5 ms of work behind it
    …                                                                # the caller spawns, writes config.json
    handle.wait()                                                    # raises what went wrong
    destroy(sandbox_id, run_dir, bindings, address)                  # from the id, at any time, any number of times

What exists for one sandbox: the file RUN/netns/ID with the namespace mounted on it, and a veth pair: `eth0` inside, `uts` and 12 digits of the id on the
host. The namespace owns its end of the pair, so the kernel takes both away with the namespace: unpinning is the cheap teardown (0.9 ms until the
link is gone); deleting the link by name waits for an RCU barrier (14 ms), and is kept for a namespace that something else still holds.
"""

from __future__ import annotations

import errno
import os
import time
from _thread import allocate_lock, start_new_thread

from utsuwa import ledger
from utsuwa.errors import RuntimeFailure
from utsuwa.kernel import files, mount, namespace, netlink
from utsuwa.kernel.door import is_real, label, labels
from utsuwa.ledger import because
from utsuwa.network import bridge, firewall
from utsuwa.spec.network import Binding, NetworkRecord, address_text

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Collection

MS_BIND = 0x1000
INSIDE = "eth0"
OWN_NAMESPACE = "/proc/thread-self/ns/net"
GONE_SECONDS = 0.5
"""How long a link may take to go with its namespace before it is deleted by name: with traffic, or fifty ending at once, it is tens of ms."""


def netns_path(run_dir: str, sandbox: str) -> str:
    """Return where the namespace is pinned: what config.json names."""
    return f"{run_dir}/netns/{sandbox}"


def veth_name(sandbox: str) -> str:
    """Return the host's end of the pair: 15 characters, all that a link's name may have."""
    return f"uts{sandbox[:12]}"


def mac_of(address: int) -> str:
    """Return Docker's MAC for an IPv4 address, 02:42 and its four bytes: when an address is given again, no neighbour's cache is stale."""
    return ":".join(f"{byte:02x}" for byte in b"\x02\x42" + address.to_bytes(4, "big"))


class Sandbox:
    """A sandbox in the making. `path` is known at once; the rest holds after `wait`."""

    __slots__ = ("_done", "_error", "address", "bindings", "id", "network", "path", "run_dir")

    def __init__(self, network: NetworkRecord, sandbox: str, address: int, run_dir: str, bindings: list[Binding]) -> None:
        self.network, self.id, self.address, self.run_dir, self.bindings = network, sandbox, address, run_dir, bindings
        self.path = netns_path(run_dir, sandbox)
        self._error: BaseException | None = None
        self._done = allocate_lock()
        self._done.acquire()

    def wait(self) -> None:
        """Return when the namespace is ready and its ports are published. Raises UtsuwaError; then `destroy` undoes what was made. Call once or more."""
        with self._done:
            if self._error is not None:
                raise self._error

    def run(self) -> None:
        """The thread's work. The thread never comes back to the host's namespace: it ends in the container's."""
        try:
            create(self.network, self.id, self.address, self.run_dir, self.bindings)
        except OSError as error:
            self._error = RuntimeFailure(f"cannot set up the container's network: {error.strerror}")
        except BaseException as error:  # noqa: BLE001 - a thread has nobody above it; wait() raises this in the caller
            self._error = error
        finally:
            self._done.release()


def begin(network: NetworkRecord, sandbox: str, address: int, run_dir: str, bindings: list[Binding] | None = None) -> Sandbox:
    """Start making a sandbox and return its handle. The caller's ledger gets the lines. Where nothing is really done, it is planned here and now."""
    handle = Sandbox(network, sandbox, address, run_dir, bindings or [])
    current = ledger.current()

    def work() -> None:
        with ledger.recording(current):
            handle.run()

    if is_real():
        start_new_thread(work, ())
    else:
        work()
    return handle


def create(network: NetworkRecord, sandbox: str, address: int, run_dir: str, bindings: list[Binding]) -> None:
    """Make the sandbox; afterwards the calling thread is inside it. For a thread that ends then. Raises OSError, UtsuwaError.

    The order: what concerns the host first, because after unshare(2) this thread's sockets are the container's; the pin before the pair, so that at no
    moment a namespace with a link in it exists that no path leads to.
    """
    index = bridge.ensure(network, run_dir)
    firewall.publish(bindings, address, sandbox)
    host = netlink.Netlink()
    try:
        with because("the container has links, addresses, routes and ports of its own", "network_namespaces(7)", 4):
            namespace.unshare(namespace.CLONE_NEWNET)
        path = pin(run_dir, sandbox)
        set_up(network, sandbox, address, path, host, index)
    finally:
        host.close()


def pin(run_dir: str, sandbox: str) -> str:
    """Bind this thread's network namespace to its file, so that it lasts without a process and any OCI runtime can join it by path."""
    path = netns_path(run_dir, sandbox)
    if is_real():
        os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600))
    with because("the network outlives single processes: a restart finds it again, another runtime joins it by path", "network_namespaces(7), ip-netns(8)", 4):
        mount.mount(OWN_NAMESPACE, path, None, MS_BIND, None)
    return path


def set_up(network: NetworkRecord, sandbox: str, address: int, path: str, host: netlink.Netlink, index: int) -> None:
    """Plug this thread's namespace, pinned on `path`, into the bridge with `index`; `host` is a socket of the host's namespace.

    Docker's own sysctls (low ports, ping groups) are in config.json, as at Docker: any runtime sets them, and a user's `--sysctl` goes before.
    """
    _write("/proc/sys/net/ipv6/conf/default/accept_ra", "0", "no router advertisement redirects the container's traffic: CVE-2020-10749", "ip-sysctl")
    name = veth_name(sandbox)
    descriptor = label(os.open(OWN_NAMESPACE, os.O_RDONLY | os.O_CLOEXEC), path)
    try:
        with because("a cable: one end in the bridge, the other is the container's eth0", "veth(4)", 4):
            host.send(netlink.link_add_veth(name, (network.link, index), INSIDE, mac_of(address), (path, descriptor)))
        with because("a container that calls its own published port gets its frame back through the port it came from", "bridge(8), hairpin", 4):
            host.send(netlink.link_set_hairpin(name))
    finally:
        labels.pop(descriptor, None)
        os.close(descriptor)
    _write("/proc/sys/net/ipv6/conf/eth0/disable_ipv6", "1", "this network has no IPv6", "ip-sysctl")
    inside = netlink.Netlink(path)
    eth0 = (INSIDE, netlink.index_of(INSIDE))
    try:
        with because(f"the container answers at {address_text(address)} and reaches the rest through the bridge; a new namespace's lo is down", "rtnetlink(7)", 4):
            inside.send(netlink.link_set_up("lo"), netlink.address_add(eth0, address.to_bytes(4, "big"), network.prefix), netlink.link_set_up(INSIDE),
                        *([] if network.internal else [netlink.route_add_default(network.gateway.to_bytes(4, "big"), eth0)]))
    finally:
        inside.close()


def _write(path: str, value: str, why: str, ref: str) -> None:
    """Set a value of this thread's namespace; one that the kernel lacks (no IPv6) is left out."""
    with because(why, ref, 4):
        try:
            files.write_file(path, value)
        except FileNotFoundError:
            return


# ------------------------------------------------------------------------------------------------------------- teardown

def destroy(sandbox: str, run_dir: str, bindings: list[Binding] | None = None, address: int = 0) -> None:
    """Remove all that `create` made, whole or half. Idempotent; returns when the host's link is gone. Raises OSError.

    Call when the container's processes are gone and before its lease is released. The published ports go first: nothing is sent to an address
    that somebody else may get. A caller with other work splits it: `unpin` starts the teardown, `settle` sees it done.
    """
    unpin(sandbox, run_dir, bindings, address)
    settle(sandbox)


def unpin(sandbox: str, run_dir: str, bindings: list[Binding] | None = None, address: int = 0) -> None:
    """Take back the published ports and let go of the namespace; the kernel removes it, and the veth pair with it, in its own time. Idempotent."""
    firewall.unpublish(bindings or [], address, sandbox)
    path = netns_path(run_dir, sandbox)
    with because("the container is gone: its network namespace is let go", "umount(2); network_namespaces(7)", 4):
        try:
            mount.umount2(path, mount.MNT_DETACH | mount.UMOUNT_NOFOLLOW)
        except OSError as error:
            if error.errno not in (errno.EINVAL, errno.ENOENT):  # killed between file and mount, or done before
                raise
    try:
        os.unlink(path)
    except FileNotFoundError:
        return


def settle(sandbox: str) -> None:
    """Return when the host's end of the pair is gone; deletes it by name when something else still holds the namespace. Idempotent."""
    name = veth_name(sandbox)
    if not is_real():
        return
    deadline = time.monotonic() + GONE_SECONDS
    pause = 0.0002
    while netlink.index_of(name):
        if time.monotonic() > deadline:
            _delete_link(name)
            return
        time.sleep(pause)
        pause = min(pause * 1.5, 0.005)


def _delete_link(name: str) -> None:
    sock = netlink.Netlink()
    try:
        with because("somebody holds the namespace of a container that is gone: its link is cut", "veth(4)", 4):
            sock.send(netlink.link_delete(name, (errno.ENODEV,)))
    finally:
        sock.close()


# ----------------------------------------------------------------------------------------------------------- left behind

def leftovers(run_dir: str, known: Collection[str]) -> list[str]:
    """Return what belongs to no sandbox in `known` (full ids), one line each: pins, links on our bridges, published ports. Looks only.

    Never names what another engine made: pins are of this run directory, links and ports of the bridges that it has marked as its own.
    """
    return [text for text, _, _ in _leftovers(run_dir, known)]


def sweep(run_dir: str, known: Collection[str]) -> list[str]:
    """Remove what `leftovers` finds; returns its lines. Idempotent. Call with every row in `known`, those in flight too."""
    found = _leftovers(run_dir, known)
    for _, remove, what in found:
        remove(what)
    return [text for text, _, _ in found]


def _leftovers(run_dir: str, known: Collection[str]) -> list[tuple[str, Callable[[str], None], str]]:
    short, links = {sandbox[:12] for sandbox in known}, {veth_name(sandbox) for sandbox in known}
    found: list[tuple[str, Callable[[str], None], str]] = [
        (f"published port {entry} of {owner}", lambda what: firewall.delete([what]), entry)
        for owner, address, entry in firewall.published() if owner not in short and bridge.owns(run_dir, address)
    ]
    try:
        pins = os.listdir(f"{run_dir}/netns")
    except FileNotFoundError:
        pins = []
    found += [(f"network namespace {netns_path(run_dir, name)}", lambda what: unpin(what, run_dir), name) for name in sorted(pins) if name not in known]
    sock = netlink.Netlink()
    try:
        links_now = sock.links()
    finally:
        sock.close()
    own = bridge.indexes(run_dir)
    found += [(f"link {name}", _cut, name) for name, _, master, _ in links_now if master in own and name.startswith("uts") and name not in links]
    return found


def _cut(name: str) -> None:
    """Give a link a moment to go with the namespace that was just unpinned, then delete it."""
    settle(name.removeprefix("uts"))
