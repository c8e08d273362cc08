"""Docker's -p forms, and reserving ports. The error texts begin with those of docker 28.2, asked with the same arguments."""

import errno
import os
import socket

import pytest

from utsuwa.errors import Conflict, NotSupported, PermissionDenied, UsageError
from utsuwa.network import ports
from utsuwa.state.db import Database


@pytest.fixture
def db(tmp_path):
    database = Database(f"{tmp_path}/state.db")
    yield database
    database.close()


@pytest.mark.parametrize(("text", "expected"), [
    ("80", [("tcp", "", 0, 0, 80)]),
    ("8080:80", [("tcp", "", 8080, 8080, 80)]),
    ("8080:80/udp", [("udp", "", 8080, 8080, 80)]),
    ("8080:80/TCP", [("tcp", "", 8080, 8080, 80)]),
    ("127.0.0.1:8080:80", [("tcp", "127.0.0.1", 8080, 8080, 80)]),
    ("127.0.0.1::80", [("tcp", "127.0.0.1", 0, 0, 80)]),
    ("0.0.0.0:8080:80", [("tcp", "", 8080, 8080, 80)]),
    (":80", [("tcp", "", 0, 0, 80)]),
    ("0:80", [("tcp", "", 0, 0, 80)]),
    ("8000-8001:80-81", [("tcp", "", 8000, 8000, 80), ("tcp", "", 8001, 8001, 81)]),
    ("8000-8010:80", [("tcp", "", 8000, 8010, 80)]),
    ("80-81", [("tcp", "", 0, 0, 80), ("tcp", "", 0, 0, 81)]),
])
def test_forms(text, expected):
    assert [request.plain() for request in ports.parse([text])] == expected


@pytest.mark.parametrize(("text", "kind", "message"), [
    ("abc:80", UsageError, "invalid hostPort: abc"),
    ("70000:80", UsageError, "invalid hostPort: 70000"),
    ("8080:abc", UsageError, "invalid containerPort: abc"),
    ("80-70", UsageError, "invalid containerPort: 80-70"),
    (" 80", UsageError, "invalid containerPort:  80"),
    ("80:0", UsageError, "invalid containerPort: 0"),
    ("8080:", UsageError, "no port specified: 8080:<empty>"),
    (":", UsageError, "no port specified: :<empty>"),
    ("", UsageError, "no port specified: <empty>"),
    ("8000-8005:80-82", UsageError, "invalid ranges specified for container and host Ports: 80-82 and 8000-8005"),
    ("80/xyz", UsageError, "invalid proto: xyz"),
    ("1.2.3.999:80:80", UsageError, "invalid IP address: 1.2.3.999"),
    ("localhost:80:80", UsageError, "invalid IP address: localhost"),
    ("٣:80", UsageError, "invalid hostPort: ٣"),
    ("[::1]:80:80", NotSupported, r"not yet supported: -p [::1]:80:80 (IPv6)"),
    ("::1:80:80", NotSupported, "not yet supported: -p ::1:80:80 (IPv6)"),
    ("80/sctp", NotSupported, "not yet supported: -p 80/sctp (sctp)"),
])
def test_malformed(text, kind, message):
    with pytest.raises(kind) as caught:
        ports.parse([text])
    assert str(caught.value).startswith(message)


def test_the_same_twice_counts_once():
    assert len(ports.parse(["8080:80", "8080:80/tcp", "8080:80/udp"])) == 2


def listener(kind=socket.SOCK_STREAM, address="127.0.0.1"):
    sock = socket.socket(socket.AF_INET, kind)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    sock.bind((address, 0))
    if kind == socket.SOCK_STREAM:
        sock.listen()
    return sock, sock.getsockname()[1]


@pytest.mark.parametrize(("kind", "protocol"), [(socket.SOCK_STREAM, "tcp"), (socket.SOCK_DGRAM, "udp")])
def test_who_uses_a_port_is_named(db, kind, protocol):
    sock, port = listener(kind)
    with open("/proc/self/comm") as file:
        name = file.read().strip()
    with sock, pytest.raises(Conflict) as caught:
        ports.reserve(db, ports.parse([f"{port}:80/{protocol}"]))
    assert str(caught.value) == f"cannot publish port {port}/{protocol}: address in use by {name} (pid {os.getpid()}); choose another with -p HOST:80"


def test_a_container_of_ours_is_named(db):
    sock, port = listener()
    with db.write():
        db.do("INSERT INTO container VALUES ('c1', 'web', '', 'host', 0, 'up', 0, 0, '', x'')")
        db.do("INSERT INTO port (protocol, address, port, sandbox, target) VALUES ('tcp', '', ?, 'c1', 80)", port)
    with sock, pytest.raises(Conflict, match="in use by container web; choose"):
        ports.reserve(db, ports.parse([f"{port}:80"]))


def test_a_reserved_port_cannot_be_listened_on(db):
    bindings, descriptors = ports.reserve(db, ports.parse(["80"]))
    other = socket.socket()
    other.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        assert bindings[0].port >= 1024
        with other, pytest.raises(OSError, match="Address already in use"):
            other.bind(("0.0.0.0", bindings[0].port))
            other.listen()
        assert not os.get_inheritable(descriptors[0])
    finally:
        ports.release(descriptors)


def test_connections_that_linger_do_not_stand_in_the_way(db):
    server, port = listener()
    client = socket.create_connection(("127.0.0.1", port))
    accepted, _ = server.accept()
    accepted.close()  # the side that closes first is the one in TIME_WAIT
    client.close()
    server.close()
    with open("/proc/net/tcp") as file:
        assert any(line.split()[1].endswith(f":{port:04X}") and line.split()[3] == "06" for line in file.readlines()[1:])
    _, descriptors = ports.reserve(db, ports.parse([f"{port}:80"]))
    ports.release(descriptors)


def test_a_range_of_host_ports_takes_the_first_free_one(db):
    sock, port = listener()
    with sock:
        bindings, descriptors = ports.reserve(db, ports.parse([f"{port}-{port + 20}:80"]))
        ports.release(descriptors)
        assert port < bindings[0].port <= port + 20
        with pytest.raises(Conflict, match="address in use"):
            ports.reserve(db, ports.parse([f"{port}-{port}:80"]))


def test_all_or_none(db):
    sock, port = listener()
    before = len(os.listdir("/proc/self/fd"))
    with sock, pytest.raises(Conflict):
        ports.reserve(db, ports.parse(["80", "81", f"{port}:82"]))
    assert len(os.listdir("/proc/self/fd")) == before - 1  # `sock` is closed by now, and nothing else is open


def test_an_address_of_somebody_else(db):
    with pytest.raises(Conflict, match=r"cannot publish port 192\.0\.2\.77:80/tcp: this host does not have the address 192\.0\.2\.77"):
        ports.reserve(db, ports.parse(["192.0.2.77:80:80"]))


def test_a_low_port_needs_root(db, monkeypatch):
    def refuse(*_):
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(ports, "_bind", refuse)
    with pytest.raises(PermissionDenied, match=r"cannot publish port 81/tcp: permission denied; ports below .* need root"):
        ports.reserve(db, ports.parse(["81:80"]))
