"""A real sandbox on a real bridge, with a second network namespace as the world outside. Run directory and database are the test's own.

Traffic goes through sockets that are made inside a namespace and used from here: a socket belongs to where it was born.
"""

import contextlib
import errno
import os
import secrets
import socket
import subprocess
import sys
import threading
import time

import pytest

from utsuwa import ledger
from utsuwa.errors import RuntimeFailure
from utsuwa.kernel import namespace, netlink
from utsuwa.network import bridge, firewall, ports, sandbox
from utsuwa.spec.network import address_text
from utsuwa.state import leases
from utsuwa.state.db import Database
from utsuwa.state.paths import Paths

pytestmark = pytest.mark.root_only("makes links and network namespaces on the host")
HERE = ""


def ip(*words):
    subprocess.run(["ip", *words], check=True)


def inside(place, work):
    """Return work(), run by a thread in the network namespace pinned at `place`; '' is the host's."""
    if not place:
        return work()
    found = []

    def go():
        fd = os.open(place, os.O_RDONLY | os.O_CLOEXEC)
        with ledger.because("test"):
            namespace.setns(fd, namespace.CLONE_NEWNET)
        os.close(fd)
        try:
            found.append((work(), None))
        except OSError as error:
            found.append((None, error))

    thread = threading.Thread(target=go)
    thread.start()
    thread.join()
    result, error = found[0]
    if error:
        raise error
    return result


class Server:
    """Answers each TCP connection or UDP datagram with the address it came from."""

    def __init__(self, place, port, kind=socket.SOCK_STREAM, address="0.0.0.0"):
        self.sock = inside(place, lambda: socket.socket(socket.AF_INET, kind))
        self.sock.bind((address, port))
        self.kind = kind
        if kind == socket.SOCK_STREAM:
            self.sock.listen()
        self.thread = threading.Thread(target=self.serve, daemon=True)
        self.thread.start()

    def serve(self):
        while True:
            try:
                if self.kind == socket.SOCK_DGRAM:
                    _, peer = self.sock.recvfrom(64)
                    if peer is None:  # shut down
                        return
                    self.sock.sendto(peer[0].encode(), peer)
                else:
                    connection, peer = self.sock.accept()
                    with connection:
                        connection.sendall(peer[0].encode())
            except OSError:
                return

    def close(self):
        try:
            self.sock.shutdown(socket.SHUT_RDWR)
        except OSError:  # ENOTCONN, but the reader wakes all the same
            pass
        self.thread.join()
        self.sock.close()


def dial(place, host, port, source=0, timeout=2.0):
    """Return what the server there sees as our address."""
    with inside(place, lambda: socket.socket(socket.AF_INET, socket.SOCK_STREAM)) as sock:
        sock.settimeout(timeout)
        if source:
            sock.bind(("", source))
        sock.connect((host, port))
        return sock.recv(64).decode()


def unreachable(place, host, port):
    try:
        dial(place, host, port, timeout=0.15)
    except OSError:
        return True
    return False


class Net:
    """An engine's network, and the outside world: a namespace behind a link of the host, 10.231.x.1 here and .2 there."""

    def __init__(self, tmp_path):
        self.paths = Paths(f"{tmp_path}/root", f"{tmp_path}/run")
        self.paths.make()
        self.run = self.paths.run
        self.db = Database(self.paths.database)
        self.network = bridge.default(self.db)
        self.closing = []
        self.made = {}
        tag = secrets.token_hex(3)
        number = int(tag[:2], 16)
        self.host, self.world = f"10.231.{number}.1", f"10.231.{number}.2"
        self.outside = f"/run/netns/t{tag}"
        ip("netns", "add", f"t{tag}")
        ip("link", "add", f"t{tag}", "type", "veth", "peer", "name", "world", "netns", f"t{tag}")
        ip("address", "add", f"{self.host}/24", "dev", f"t{tag}")
        ip("link", "set", f"t{tag}", "up")
        for words in (("address", "add", f"{self.world}/24", "dev", "world"), ("link", "set", "world", "up"), ("link", "set", "lo", "up")):
            ip("-n", f"t{tag}", *words)
        self.tag = f"t{tag}"

    def add(self, *publish):
        """Make a sandbox; returns its id, path and address."""
        name = secrets.token_hex(32)
        bindings, held = ports.reserve(self.db, ports.parse(list(publish)))
        self.made[name] = (bindings, held)
        with self.db.write():
            address = leases.take(self.db, self.network, name)
            leases.claim(self.db, name, bindings)
        handle = sandbox.begin(self.network, name, address, self.run, bindings)
        handle.wait()
        return name, handle.path, address_text(address)

    def drop(self, name):
        bindings, held = self.made.pop(name, ([], []))
        sandbox.destroy(name, self.run, bindings, leases.address_of(self.db, name) or 0)
        ports.release(held)
        with self.db.write():
            leases.release(self.db, name)

    def serve(self, place, port, kind=socket.SOCK_STREAM, address="0.0.0.0"):
        self.closing.append(Server(place, port, kind, address))

    def port_of(self, name, number=0):
        return self.made[name][0][number].port

    def close(self):
        """Undo all, each step even where another fails."""
        with contextlib.ExitStack() as stack:
            stack.callback(self.db.close)
            stack.callback(gone, self.tag)
            stack.callback(ip, "netns", "delete", self.tag)
            stack.callback(bridge.remove, self.network, self.run)
            for name in self.made:
                stack.callback(self.drop, name)
            for server in self.closing:
                stack.callback(server.close)


def gone(link):
    """Wait until a link has gone with its namespace."""
    deadline = time.monotonic() + 2
    while os.path.exists(f"/sys/class/net/{link}") and time.monotonic() < deadline:
        time.sleep(0.005)


@pytest.fixture
def net(tmp_path):
    net = Net(tmp_path)
    yield net
    net.close()


def text_of(place, *command):
    return subprocess.run(["nsenter", f"--net={place}", *command], capture_output=True, text=True, check=True).stdout


def test_a_container_has_its_address_and_reaches_the_world_as_the_host(net):
    _, path, address = net.add()
    shown = text_of(path, "sh", "-c", "ip address; ip route; cat /proc/sys/net/ipv6/conf/eth0/accept_ra /proc/sys/net/ipv6/conf/eth0/disable_ipv6")
    hexed = ":".join(f"{int(part):02x}" for part in address.split("."))
    assert f"inet {address}/{net.network.prefix} " in shown and f"link/ether 02:42:{hexed} " in shown and "inet 127.0.0.1/8" in shown
    assert f"default via {address_text(net.network.gateway)} dev eth0" in shown and shown.endswith("0\n1\n")
    net.serve(path, 80)
    net.serve(net.outside, 99)
    assert dial(HERE, address, 80) == address_text(net.network.gateway)
    assert dial(path, net.world, 99) == net.host


def test_a_published_port_is_reached_from_everywhere(net):
    name, path, _ = net.add("80")
    _, neighbour, _ = net.add()
    net.serve(path, 80)
    port, gateway = net.port_of(name), address_text(net.network.gateway)
    assert dial(net.outside, net.host, port) == net.world, "the client's own address is seen"
    assert dial(HERE, net.host, port) == net.host
    assert dial(HERE, "127.0.0.1", port) == gateway
    assert dial(HERE, "127.8.8.8", port) == gateway
    for place in (path, neighbour):
        assert dial(place, net.host, port) == gateway and dial(place, gateway, port) == gateway


@pytest.mark.parametrize("bridged", ["0", "1"])
def test_a_container_calls_itself_whether_or_not_bridged_frames_are_filtered(net, bridged):
    """With br_netfilter on (dockerd turns it on) the frame is translated while it is bridged, and must leave where it came in."""
    key = "/proc/sys/net/bridge/bridge-nf-call-iptables"
    with open(key) as file:
        before = file.read()
    name, path, _ = net.add("80")
    net.serve(path, 80)
    try:
        with open(key, "w") as file:
            file.write(bridged)
        assert dial(path, net.host, net.port_of(name)) == address_text(net.network.gateway)
    finally:
        with open(key, "w") as file:
            file.write(before)


def test_a_port_published_to_loopback_is_reached_from_loopback_only(net):
    name, path, _ = net.add("127.0.0.1::80")
    net.serve(path, 80)
    port = net.port_of(name)
    assert dial(HERE, "127.0.0.1", port) == address_text(net.network.gateway)
    _, neighbour, _ = net.add()
    assert unreachable(HERE, net.host, port) and unreachable(net.outside, net.host, port)
    assert unreachable(neighbour, address_text(net.network.gateway), port)


def divert_loopback(place, gateway, link):
    """Make 127.0.0.1 a remote address in a namespace, as whoever is root on the neighbour's machine can."""
    with open("/dev/null", "w") as null:
        for command in ("ip address del 127.0.0.1/8 dev lo", f"sysctl -qw net.ipv4.conf.{link}.route_localnet=1", f"ip route add 127.0.0.1/32 via {gateway} dev {link}"):
            subprocess.run(["nsenter", f"--net={place}", "sh", "-c", command], check=True, stdout=null)


@pytest.mark.parametrize("victim", ["published", "host"])
def test_loopback_is_not_reached_by_packets_sent_to_it_from_elsewhere(net, victim):
    """CVE-2020-8558: route_localnet on the bridge, and a neighbour that sends to 127.0.0.1."""
    name, path, _ = net.add("127.0.0.1::80")
    _, neighbour, _ = net.add()
    port = net.port_of(name)
    if victim == "published":
        net.serve(path, 80)
    else:
        net.drop(name)
        net.serve(HERE, port, address="127.0.0.1")
    assert dial(HERE, "127.0.0.1", port)
    divert_loopback(neighbour, address_text(net.network.gateway), "eth0")
    divert_loopback(net.outside, net.host, "world")
    assert unreachable(neighbour, "127.0.0.1", port) and unreachable(net.outside, "127.0.0.1", port)


def test_an_unpublished_port_is_not_reached_by_a_neighbour_who_routes_through_us(net):
    _, path, address = net.add("81")
    net.serve(path, 80)
    ip("-n", net.tag, "route", "add", net.network.cidr, "via", net.host)
    assert dial(HERE, address, 80) and unreachable(net.outside, address, 80)


def ask(place, host, port, source, timeout=2.0):
    with inside(place, lambda: socket.socket(socket.AF_INET, socket.SOCK_DGRAM)) as sock:
        sock.settimeout(timeout)
        sock.bind(("", source))
        sock.sendto(b"?", (host, port))
        return sock.recv(64).decode()


def test_udp_clients_follow_a_port_to_its_next_container(net):
    name, path, _ = net.add("53/udp")
    port = net.port_of(name)
    net.serve(path, 53, socket.SOCK_DGRAM)
    assert ask(net.outside, net.host, port, 7777) == net.world
    net.closing.pop().close()
    net.add()  # takes no part, but the next container's address is another one
    net.drop(name)
    with pytest.raises(OSError, match=r"timed out|refused"):
        ask(net.outside, net.host, port, 7777, timeout=0.1)
    net.add()
    name, path, _ = net.add(f"{port}:53/udp")
    net.serve(path, 53, socket.SOCK_DGRAM)
    assert ask(net.outside, net.host, port, 7777) == net.world


def test_teardown_is_idempotent_and_whole(net):
    name, path, _ = net.add("80", "127.0.0.1::81/udp")
    bindings, held = net.made[name]
    address = leases.address_of(net.db, name)
    assert netlink.index_of(sandbox.veth_name(name)) and len(firewall.published()) >= 2 and os.path.ismount(path)
    assert sandbox.leftovers(net.run, {name}) == []
    for _ in range(3):
        sandbox.destroy(name, net.run, bindings, address)
        assert not netlink.index_of(sandbox.veth_name(name)) and not os.path.exists(path)
        assert not any(owner == name[:12] for owner, _, _ in firewall.published())
    ports.release(held)
    net.made.pop(name)


def test_a_namespace_that_somebody_holds_loses_its_link(net, monkeypatch):
    monkeypatch.setattr(sandbox, "GONE_SECONDS", 0.02)
    name, path, _ = net.add()
    with open(path) as _held:
        net.drop(name)
        assert not netlink.index_of(sandbox.veth_name(name))


def test_what_nobody_owns_is_found_and_swept_and_others_are_left_alone(net, tmp_path):
    kept, lost = net.add("80")[0], net.add("80")[0]
    assert sandbox.leftovers(f"{tmp_path}/another", set()) == [], "another engine sees nothing of ours"
    found = sandbox.sweep(net.run, {kept})
    assert [line.partition(" ")[0] for line in found] == ["published", "network", "link"] and all(lost[:12] in line for line in found)
    assert sandbox.leftovers(net.run, {kept}) == [] and netlink.index_of(sandbox.veth_name(kept))
    assert any(owner == kept[:12] for owner, _, _ in firewall.published())


def test_the_bridge_and_its_rules_go_and_come_again(net):
    net.drop(net.add()[0])
    for _ in range(2):
        bridge.remove(net.network, net.run)
        assert not netlink.index_of(net.network.link)
        assert net.network.link not in subprocess.run(["nft", "list", "ruleset"], capture_output=True, text=True, check=True).stdout
    _, path, address = net.add()
    net.serve(path, 80)
    assert dial(HERE, address, 80)


def test_a_subnet_that_the_host_routes_elsewhere_is_refused(net):
    ip("route", "add", f"{address_text(net.network.subnet)}/24", "dev", net.tag)
    with pytest.raises(Exception, match=r"cannot make network bridge: its subnet .* overlaps a route of this host"):
        net.add()


def test_a_full_kernel_answer_is_one_line(net, monkeypatch):
    monkeypatch.setenv("UTSUWA_FAULT", "engine:unshare#1=ENOSPC")
    ledger.arm("engine:unshare#1=ENOSPC")
    try:
        with pytest.raises(RuntimeFailure, match="cannot set up the container's network: "):
            net.add("80")
    finally:
        ledger.arm("")


# ----------------------------------------------------------------------------------------------------- killed on the way

CREATE = """
import sys
from utsuwa import ledger
from utsuwa.kernel import door
from utsuwa.network import bridge, ports, sandbox
from utsuwa.state import leases
from utsuwa.state.db import Database
root, run, name, log = sys.argv[1:]
out = open(log, "a", buffering=1)
ledger.use(ledger.Ledger("engine", lambda _, line: out.write(line[0] + "\\n")))
db = Database(root + "/state.db")
network = bridge.default(db)
bindings, held = ports.reserve(db, ports.parse(["80"]))
with db.write():
    address = leases.take(db, network, name)
    leases.claim(db, name, bindings)
handle = sandbox.begin(network, name, address, run, bindings)
handle.wait()
if "destroy" in log:
    sandbox.destroy(name, run, bindings, address)
"""


def started(net, name, log, fault=""):
    environ = {"PATH": os.environ["PATH"], "PYTHONPATH": os.pathsep.join(sys.path), "UTSUWA_FAULT": fault}
    return subprocess.Popen([sys.executable, "-c", CREATE, net.paths.root, net.run, name, log], env={k: v for k, v in environ.items() if v})


def calls(path):
    """Return the calls of a log with their count: ("netlink", 3)."""
    seen, found = {}, []
    with open(path) as file:
        for call in file.read().split():
            seen[call] = seen.get(call, 0) + 1
            found.append((call, seen[call]))
    return found


def test_killed_at_any_line_the_next_start_works_and_nothing_is_left(net, tmp_path):
    """Once with the bridge to be made, then with the bridge standing; every line of making and of taking down."""
    bridge.remove(net.network, net.run)
    for warm in (False, True):
        name, log = secrets.token_hex(32), f"{tmp_path}/destroy-{warm}"
        assert started(net, name, log).wait() == 0
        points = calls(log)
        assert len(points) >= (13 if warm else 20)
        for call, number in points:
            if not warm:
                bridge.remove(net.network, net.run)
            name = secrets.token_hex(32)
            assert started(net, name, f"{tmp_path}/destroy-killed", f"engine:{call}#{number}=kill").wait() == -9, (call, number)
            sandbox.sweep(net.run, set())
            assert sandbox.leftovers(net.run, set()) == [], (call, number)
            assert not netlink.index_of(sandbox.veth_name(name))
            with net.db.write():
                leases.release(net.db, name)
            if number == 1:  # the next start completes what was left half made
                net.drop(net.add("80")[0])


# ------------------------------------------------------------------------------------------- beside other people's rules

FOREIGN = """
import os, sys
sys.path[:0] = [sys.argv[1]]
from utsuwa.kernel import nftables
from utsuwa.network import bridge, firewall
from utsuwa.state.db import Database
from utsuwa.state.paths import Paths
import subprocess
from utsuwa import ledger
paths = Paths(sys.argv[2] + "/root", sys.argv[2] + "/run")
paths.make()
network = bridge.default(Database(paths.database))
bridge.ensure(network, paths.run)
assert firewall.is_set_up(network)

def nft(text):
    return subprocess.run(["nft", "-f", "-"], input=text, text=True, check=True)

def rules(chain):
    out = subprocess.run(["nft", "list", "chain", "ip", "filter", chain], capture_output=True, text=True, check=True).stdout
    return [line.strip().replace("counter packets 0 bytes 0 ", "") for line in out.splitlines() if network.link in line]

nft("add table ip filter; add chain ip filter FORWARD { type filter hook forward priority 0; policy drop; }")
assert not firewall.is_set_up(network)
bridge.ensure(network, paths.run)
bridge.ensure(network, paths.run)
assert rules("FORWARD") == [f'iifname "{network.link}" accept', f'oifname "{network.link}" accept'], rules("FORWARD")

# what dockerd 20.10 makes
nft("add chain ip filter DOCKER-USER; add rule ip filter DOCKER-USER counter return; insert rule ip filter FORWARD counter jump DOCKER-USER")
bridge.ensure(network, paths.run)
bridge.ensure(network, paths.run)
link = network.link
assert rules("DOCKER-USER") == [f'iifname "{link}" oifname "docker0" return', f'iifname "{link}" oifname "br-*" return', f'iifname "{link}" accept', f'oifname "{link}" accept'], rules("DOCKER-USER")
assert subprocess.run(["iptables", "-S", "DOCKER-USER"], capture_output=True, check=True).stdout.count(b"ACCEPT") == 2, "iptables can still read its table"

nft("flush ruleset")
assert not firewall.is_set_up(network)
bridge.ensure(network, paths.run)
assert firewall.is_set_up(network)
nft("add table ip filter; add chain ip filter FORWARD { type filter hook forward priority 0; policy drop; }")
bridge.ensure(network, paths.run)
bridge.remove(network, paths.run)
assert rules("FORWARD") == [] and nftables.chain_policy("utsuwa", "forward") is None
print("done")
"""


def test_a_foreign_forward_policy_and_a_flushed_rule_set(tmp_path):
    """In a network namespace of its own: the rules of this host are not touched."""
    script = 'ip link set lo up; exec "$@"'
    done = subprocess.run(
        ["unshare", "-n", "sh", "-c", script, "sh", sys.executable, "-c", FOREIGN, os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(bridge.__file__)))), f"{tmp_path}"],
        capture_output=True, text=True, check=False,
    )
    assert (done.returncode, done.stdout) == (0, "done\n"), done.stderr


def test_errno_is_kept(net):
    with ledger.because("test"), pytest.raises(OSError) as caught:
        sock = netlink.Netlink()
        try:
            sock.send(netlink.link_set_up("no-such-link"))
        finally:
            sock.close()
    assert caught.value.errno == errno.ENODEV and caught.value.strerror == "ip link set no-such-link up: no such device"
