"""rtnetlink without a kernel: what goes over the wire, what the ledger says, how errors are worded."""

import errno
import socket
import struct

import pytest

from utsuwa import ledger
from utsuwa.kernel import door, link, netlink


class Wire:
    """A socket that keeps what is sent and answers each message with an error number (0 is an acknowledgement)."""

    def __init__(self, numbers):
        self.numbers, self.sent = numbers, []

    def send(self, data):
        self.sent.append(data)

    def recv(self, _):
        data, self.answers = self.sent[-1], b""
        for _, sequence, _ in netlink.split(data):
            body = struct.pack("i", -self.numbers[(sequence - 1) % len(self.numbers)])
            self.answers += struct.pack("IHHII", 16 + len(body), netlink.NLMSG_ERROR, 0, sequence, 0) + body
        return self.answers

    def close(self):
        return


@pytest.fixture
def wired():
    def make(*numbers, inside=""):
        sock = netlink.Netlink(inside)
        sock.close()
        sock._socket = Wire(numbers)
        return sock, sock._socket

    return make


@pytest.fixture
def lines():
    found = []
    with ledger.recording(ledger.Ledger("engine", lambda _, line: found.append(line[:3]))), ledger.because("test"):
        yield found


def test_a_veth_pair_is_one_message():
    message = netlink.link_add_veth("uts0", ("br0", 7), "eth0", "02:42:ac:1e:00:02", ("/run/n", 9))
    assert message.text == "ip link add uts0 up master br0 type veth peer name eth0 address 02:42:ac:1e:00:02 netns /run/n"
    assert struct.unpack_from("iII", message.body, 4) == (0, netlink.IFF_UP, netlink.IFF_UP)
    outer = netlink.attributes(message.body, 16)
    assert (outer[netlink.IFLA_IFNAME], outer[netlink.IFLA_MASTER]) == (b"uts0\0", struct.pack("I", 7))
    info = netlink.attributes(outer[netlink.IFLA_LINKINFO], 0)
    peer = netlink.attributes(netlink.attributes(info[netlink.IFLA_INFO_DATA], 0)[netlink.VETH_INFO_PEER], 16)
    assert info[netlink.IFLA_INFO_KIND] == b"veth\0"
    assert (peer[netlink.IFLA_IFNAME], peer[netlink.IFLA_ADDRESS], peer[netlink.IFLA_NET_NS_FD]) == (b"eth0\0", bytes.fromhex("0242ac1e0002"), struct.pack("I", 9))


def test_an_address_has_its_broadcast():
    message = netlink.address_add(("eth0", 2), socket.inet_aton("172.30.0.2"), 20)
    fields = netlink.attributes(message.body, 8)
    assert fields[netlink.IFA_BROADCAST] == socket.inet_aton("172.30.15.255")
    assert message.text == "ip address add 172.30.0.2/20 broadcast 172.30.15.255 dev eth0"


def test_several_requests_go_in_one_datagram(wired, lines):
    sock, wire = wired(0, 0, inside="/run/n")
    sock.send(netlink.link_set_up("lo"), netlink.link_set_up("eth0"))
    assert len(wire.sent) == 1 and len(list(netlink.split(wire.sent[0]))) == 2
    assert lines == [("netlink", ("nsenter --net=/run/n ip link set lo up",), 0), ("netlink", ("nsenter --net=/run/n ip link set eth0 up",), 0)]


def test_the_first_failure_is_named_and_all_are_recorded(wired, lines):
    sock, _ = wired(0, errno.EEXIST, errno.EPERM)
    with pytest.raises(FileExistsError) as caught:
        sock.send(netlink.link_set_up("a"), netlink.link_add_bridge("b"), netlink.link_set_up("c"))
    assert caught.value.strerror == "ip link add b type bridge: file exists"
    assert [result for _, _, result in lines] == [0, -errno.EEXIST, -errno.EPERM]


def test_what_may_be_there_already_is_no_failure(wired, lines):
    sock, _ = wired(errno.EEXIST, errno.ENODEV)
    sock.send(netlink.link_add_bridge("b", (errno.EEXIST,)), netlink.link_delete("c", (errno.ENODEV,)))
    assert [result for _, _, result in lines] == [-errno.EEXIST, -errno.ENODEV]


def test_a_fault_strikes_between_two_of_a_batch(wired, lines, monkeypatch):
    monkeypatch.setenv("UTSUWA_FAULT", "engine:netlink#2=ENOMEM")
    ledger.arm("engine:netlink#2=ENOMEM")
    sock, wire = wired(0)
    try:
        with pytest.raises(OSError, match="fault injected"):
            sock.send(netlink.link_set_up("a"), netlink.link_set_up("b"))
    finally:
        ledger.arm("")
    assert len(wire.sent) == 1 and len(lines) == 1


def test_nothing_is_sent_where_the_backend_does_nothing(wired, lines):
    door.use_backend("recording")
    try:
        sock, wire = wired(0)
        sock.send(netlink.link_set_up("a"))
        link.up_loopback()
        assert wire.sent == []
        assert door.recorded == [("netlink", ("ip link set a up",)), ("netlink", ("ip link set lo up",))]
    finally:
        door.use_backend("real")


def test_attributes_end_at_nonsense():
    assert netlink.attributes(struct.pack("HHI", 8, 1, 5) + struct.pack("HH", 2, 9), 0) == {1: struct.pack("I", 5)}
    assert list(netlink.split(b"short")) == []
