"""A sandbox without a kernel: the calls in their order, the rules as text, addresses and ports in the database, the three files."""

import errno
import os
import threading

import pytest

from utsuwa import ledger
from utsuwa.errors import Conflict, DependencyMissing, RuntimeFailure
from utsuwa.kernel import door, nftables
from utsuwa.network import bridge, files, firewall, sandbox
from utsuwa.spec.network import Binding, NetworkRecord, address_number, address_text
from utsuwa.state import leases
from utsuwa.state.db import Database

ID = "0123456789abcdef" * 4
NET = NetworkRecord("bridge", "utsuwa0", address_number("172.30.0.0"), 16)
ADDRESS = address_number("172.30.0.2")


@pytest.fixture
def recording():
    door.use_backend("recording")
    yield door.recorded
    door.use_backend("real")


@pytest.fixture
def db(tmp_path):
    database = Database(f"{tmp_path}/state.db")
    yield database
    database.close()


def texts(recorded):
    return [" ".join(map(str, args)).partition("\n")[0] for _, args in recorded]


def test_a_sandbox_is_planned_in_its_order(recording):
    sandbox.begin(NET, ID, ADDRESS, "/r", [Binding("tcp", "", 8080, 80)]).wait()
    inside = f"nsenter --net=/r/netns/{ID} ip"
    assert texts(recording) == [
        f'add element ip utsuwa ports {{ tcp . 8080 comment "{ID[:12]}" : 172.30.0.2 . 80 }}',
        "CLONE_NEWNET",
        f"/proc/thread-self/ns/net /r/netns/{ID} None MS_BIND None",
        "/proc/sys/net/ipv6/conf/default/accept_ra 0",
        f"ip link add uts{ID[:12]} up master utsuwa0 type veth peer name eth0 address 02:42:ac:1e:00:02 netns /r/netns/{ID}",
        f"ip link set uts{ID[:12]} type bridge_slave hairpin on",
        "/proc/sys/net/ipv6/conf/eth0/disable_ipv6 1",
        f"{inside} link set lo up",
        f"{inside} address add 172.30.0.2/16 broadcast 172.30.255.255 dev eth0",
        f"{inside} link set eth0 up",
        f"{inside} route add default via 172.30.0.1 dev eth0",
    ]


def test_an_internal_network_has_no_way_out(recording):
    network = NetworkRecord("inner", "utsuwa7", NET.subnet, 16, 0, True)
    sandbox.begin(network, ID, ADDRESS, "/r").wait()
    assert not any("route add default" in text for text in texts(recording))
    assert "subnets {" not in firewall.setup_text(network).partition("forward")[2]


def test_teardown_is_planned_ports_first(recording):
    sandbox.destroy(ID, "/r", [Binding("udp", "127.0.0.1", 53, 5353)], ADDRESS)
    entry = f'ip utsuwa ports_at {{ 127.0.0.1 . udp . 53 comment "{ID[:12]}" : 172.30.0.2 . 5353 }}'
    assert [args for _, args in recording] == [
        (f"add element {entry}\ndelete element {entry}",), ("conntrack -D -p udp --orig-port-dst 53",), (f"/r/netns/{ID}", "MNT_DETACH|UMOUNT_NOFOLLOW"),
    ]


def test_every_line_has_a_reason_and_its_topic(recording):
    lines = []
    with ledger.recording(ledger.Ledger("engine", lambda _, line: lines.append(line))):
        sandbox.begin(NET, ID, ADDRESS, "/r", [Binding("tcp", "", 8080, 80)]).wait()
        sandbox.destroy(ID, "/r")
    assert len(lines) == len(recording) and all(why and topic == 4 for _, _, _, why, _, topic in lines)


def test_a_failure_in_the_thread_is_raised_where_it_is_waited_for(monkeypatch):
    def refuse(*_):
        raise OSError(errno.EPERM, "unshare CLONE_NEWNET: operation not permitted")

    monkeypatch.setattr(bridge, "ensure", refuse)
    handle = sandbox.begin(NET, ID, ADDRESS, "/r")
    for _ in range(2):
        with pytest.raises(RuntimeFailure, match="cannot set up the container's network: unshare CLONE_NEWNET: operation not permitted"):
            handle.wait()


def test_the_rules_keep_loopback_and_unpublished_ports_shut():
    text = firewall.setup_text(NET)
    rules = [line.partition("utsuwa ")[2] for line in text.splitlines() if line.startswith("add rule")]
    assert "raw iifname @bridges ip daddr 127.0.0.0/8 drop" in rules
    assert rules.index("prerouting ip daddr 127.0.0.0/8 return") < min(n for n, rule in enumerate(rules) if rule.startswith("prerouting") and "dnat" in rule)
    assert [rule for rule in rules if rule.startswith("forward")][-1] == "forward oifname @bridges drop"
    assert text.count("flush chain") == len(firewall.CHAINS)


def test_a_missing_library_is_named_with_its_package(monkeypatch):
    monkeypatch.setattr(nftables, "SONAME", "libnftables.so.none")
    monkeypatch.setattr(nftables, "_context", None)
    with pytest.raises(DependencyMissing) as caught:
        firewall.publish([Binding("tcp", "", 1, 1)], ADDRESS, ID)
    assert str(caught.value) == "cannot publish ports: libnftables is not installed; install the package libnftables1"


def test_an_element_in_the_way_is_replaced(monkeypatch):
    asked = []

    def run(text):
        asked.append(text)
        if len(asked) == 1:
            raise FileExistsError(errno.EEXIST, "File exists")

    monkeypatch.setattr(nftables, "run", run)
    monkeypatch.setattr(nftables, "listing", lambda text: 'map ports { elements = { tcp . 80 comment "dead" : 172.30.0.9 . 1,\n tcp . 81 comment "x" : 172.30.0.8 . 1 } }' if text.endswith(" ports") else "")
    firewall.publish([Binding("tcp", "", 80, 8080)], ADDRESS, ID)
    assert asked[1] == "delete element ip utsuwa ports { tcp . 80 }" and asked[2] == asked[0]


# ------------------------------------------------------------------------------------------------------------- database

def test_the_lowest_free_address_is_given(db):
    with db.write():
        assert [address_text(leases.take(db, NET, name)) for name in "abca"] == ["172.30.0.2", "172.30.0.3", "172.30.0.4", "172.30.0.2"]
        leases.release(db, "b")
        leases.release(db, "b")
        assert address_text(leases.take(db, NET, "d")) == "172.30.0.3"
    assert leases.address_of(db, "d") == ADDRESS + 1 and leases.address_of(db, "b") is None


def test_the_gateway_is_never_given_wherever_it_is(db):
    network = NetworkRecord("n", "utsuwa1", address_number("10.0.0.0"), 29, address_number("10.0.0.3"))
    with db.write():
        assert [leases.take(db, network, name) & 7 for name in "abcde"] == [1, 2, 4, 5, 6]
        with pytest.raises(Conflict, match="no available IPv4 addresses on this network's address pools: n"):
            leases.take(db, network, "f")


def test_a_hundred_starts_at_once_get_a_hundred_addresses(db, tmp_path):
    found = []

    def start(worker):
        own = Database(f"{tmp_path}/state.db")
        for n in range(10):
            with own.write():
                found.append(leases.take(own, NET, f"{worker}-{n}"))
        own.close()

    threads = [threading.Thread(target=start, args=(n,)) for n in range(10)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == len(set(found)) == 100 and max(found) == ADDRESS + 99


def test_bindings_are_kept_and_a_dead_owner_is_replaced(db):
    bindings = [Binding("tcp", "", 8080, 80), Binding("udp", "127.0.0.1", 53, 53)]
    with db.write():
        leases.claim(db, "dead", bindings)
        leases.claim(db, "live", bindings)
    assert [b.plain() for b in leases.bindings_of(db, "live")] == [b.plain() for b in bindings]
    assert leases.bindings_of(db, "dead") == []


def routed(monkeypatch, *routes):
    monkeypatch.setattr(bridge.netlink.Netlink, "routes", lambda _: [(address_number(address), prefix, 2) for address, prefix in routes])
    monkeypatch.setattr(bridge.netlink.Netlink, "links", lambda _: [])


def test_the_network_is_chosen_once_and_beside_the_hosts_routes(db, monkeypatch, tmp_path):
    monkeypatch.setattr(bridge, "SYSTEM", f"{tmp_path}/state.db")
    routed(monkeypatch, ("172.30.5.0", 24), ("172.16.0.0", 12), ("10.0.0.0", 8))
    record = bridge.default(db)
    assert (record.cidr, record.link) == ("192.168.224.0/20", "utsuwa0")
    routed(monkeypatch)
    assert bridge.default(db).plain() == record.plain()


def test_an_engine_elsewhere_takes_a_name_and_a_subnet_of_its_own(tmp_path, monkeypatch):
    routed(monkeypatch)
    records = []
    for name in "abcd":
        database = Database(f"{tmp_path}/{name}")
        records.append(bridge.default(database))
        database.close()
    assert len({record.link for record in records}) == 4 and all(len(record.link) <= 15 for record in records)
    assert all(record.cidr.startswith("10.2") for record in records)


def test_no_subnet_left(db, monkeypatch):
    routed(monkeypatch, ("10.0.0.0", 8), ("172.0.0.0", 8), ("192.0.0.0", 8))
    with pytest.raises(Conflict, match="cannot choose a subnet for network bridge"):
        bridge.default(db)
    assert db.read("SELECT * FROM network") == []


@pytest.mark.parametrize("text", ["1.2.3", "1.2.3.256", "1.2.3.x", "1.2.3.4.5", "", "1.2.3.-4", "1.2.3.²"])
def test_what_is_no_address(text):
    with pytest.raises(ValueError, match="not an IPv4 address"):
        address_number(text)


# ---------------------------------------------------------------------------------------------------------------- files

def test_hosts_is_dockers():
    assert files.hosts("web.example.org", "172.30.0.2") == (
        "127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\nfe00::\tip6-localnet\nff00::\tip6-mcastprefix\n"
        "ff02::1\tip6-allnodes\nff02::2\tip6-allrouters\n172.30.0.2\tweb.example.org web\n"
    )
    assert files.hosts("0123456789ab", "172.30.0.2").endswith("ip6-allrouters\n172.30.0.2\t0123456789ab\n")
    assert files.hosts("x").endswith("ip6-allrouters\n")
    assert files.hosts("x", "172.30.0.2", (("db", "10.0.0.9"),)).endswith("ip6-allrouters\n10.0.0.9\tdb\n172.30.0.2\tx\n")
    assert files.hostname("web") == "web\n"


def words(text):
    return [line for line in text.splitlines() if line and not line.startswith("#")]


HOST = "# c\n; c\nnameserver 127.0.0.53\nnameserver 192.0.2.53\nnameserver fe80::1%eth0\nnameserver nonsense\ndomain a.example\nsearch b.example c.example\noptions edns0\noptions ndots:2\nsortlist 1.2.3.4\n"


def test_resolv_on_a_bridge_leaves_out_what_cannot_be_reached():
    text = files.resolv(("/etc/resolv.conf", HOST), bridge=True)
    assert words(text) == ["nameserver 192.0.2.53", "search b.example c.example", "options edns0 ndots:2", "sortlist 1.2.3.4"]
    assert "# Based on host file: '/etc/resolv.conf' (legacy)\n# Invalid nameservers: [nonsense]\n# Overrides: []\n# Option ndots from: host\n" in text


def test_resolv_without_a_bridge_keeps_the_hosts():
    assert words(files.resolv(("/etc/resolv.conf", HOST), bridge=False))[:3] == ["nameserver 127.0.0.53", "nameserver 192.0.2.53", "nameserver fe80::1%eth0"]


@pytest.mark.parametrize("text", ["", "nameserver 127.0.0.1\nnameserver ::1\n"])
def test_resolv_falls_back(text):
    made = files.resolv(("/etc/resolv.conf", text), bridge=True)
    assert words(made) == ["nameserver 8.8.8.8", "nameserver 8.8.4.4"] and "# Used default nameservers.\n" in made


def test_resolv_takes_overrides_as_they_are():
    made = files.resolv(("/etc/resolv.conf", HOST), bridge=True, nameservers=("127.0.0.1",), search=("z", "."), options=("ndots:1",))
    assert words(made) == ["nameserver 127.0.0.1", "search z", "options ndots:1", "sortlist 1.2.3.4"]
    assert made.endswith("# Overrides: [nameservers search options]\n# Option ndots from: override\n")


def test_systemd_resolveds_own_file_is_read_where_the_other_names_its_stub(tmp_path):
    stub, real = f"{tmp_path}/stub", f"{tmp_path}/real"
    for path, text in ((stub, "nameserver 127.0.0.53\noptions edns0\n"), (real, "nameserver 192.0.2.1\n")):
        with open(path, "w") as file:
            file.write(text)
    assert files.host_resolv(stub, real) == (real, "nameserver 192.0.2.1\n")
    assert files.host_resolv(real, stub) == (real, "nameserver 192.0.2.1\n")
    assert files.host_resolv(f"{tmp_path}/none", stub) == (f"{tmp_path}/none", "")
    assert os.path.exists(stub)
