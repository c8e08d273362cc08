"""What undoing rests on, part by part: lines that two threads write, a sandbox waited for, networks taken away twice."""

import json
import os
import threading

import pytest

from utsuwa import ledger
from utsuwa.engine import launch
from utsuwa.engine.seed import Held
from utsuwa.errors import RuntimeFailure
from utsuwa.kernel import nftables
from utsuwa.network import bridge, firewall
from utsuwa.spec.network import NetworkRecord, address_number


def test_lines_of_two_threads_have_numbers_of_their_own_and_none_is_lost(tmp_path):
    held = Held()
    book = ledger.Ledger("engine", held)
    started = threading.Barrier(5)

    def write():
        started.wait()
        with ledger.recording(book), ledger.because("a test"):
            for _ in range(2000):
                ledger.record("write", ("x",), 0)

    workers = [threading.Thread(target=write) for _ in range(4)]
    for worker in workers:
        worker.start()
    started.wait()
    held.open(f"{tmp_path}/ledger.jsonl")
    for worker in workers:
        worker.join()
    held.close()
    numbers = [json.loads(line)["seq"] for line in (tmp_path / "ledger.jsonl").read_text().splitlines()]
    assert numbers == list(range(1, 8001))


@pytest.mark.parametrize("text", ["engine:mount", "somebody:mount=kill", "engine:=kill", "mount=kill", "engine:mount#x=kill"])
def test_a_fault_that_is_none_is_refused(text):
    with pytest.raises(ValueError):
        ledger.arm(text)
    ledger.arm("")


def test_a_fault_strikes_the_call_of_that_number_by_that_writer_alone():
    ledger.arm("engine:mount#2=EIO")
    try:
        with ledger.recording(ledger.Ledger("monitor", ledger.nowhere)):
            for _ in range(3):
                ledger.fault("mount")
        ledger.fault("mount")
        ledger.fault("umount2")
        with pytest.raises(OSError, match="fault injected"):
            ledger.fault("mount")
        ledger.fault("mount")
    finally:
        ledger.arm("")


class Stub:
    """A launch whose sandbox and monitor note what is asked of them."""

    def __init__(self, monkeypatch, error=None):
        self.order, self.error = [], error
        self.id, self.context, self.sandbox, self.seed = "0" * 64, None, self, self
        self.sock = self
        monkeypatch.setattr(launch.handshake, "send", lambda _sock, kind, *_: self.order.append(kind))
        monkeypatch.setattr(launch.handshake, "receive", lambda _: self.order.append("monitor gone"))
        monkeypatch.setattr("utsuwa.engine.remove.remove_all", lambda *_: self.order.append("removed"))

    def release(self):
        self.order.append("ports")

    def wait(self):
        self.order.append("sandbox")
        if self.error:
            raise self.error


@pytest.mark.parametrize("error", [None, RuntimeFailure("cannot set up"), KeyboardInterrupt()])
def test_a_launch_is_undone_when_its_monitor_and_its_sandbox_are_done(monkeypatch, error):
    stub = Stub(monkeypatch, error)
    launch.undo(stub)
    assert stub.order[-5:] == ["done", "monitor gone", "ports", "sandbox", "removed"]


@pytest.fixture
def network():
    made = NetworkRecord("test", f"utsuwa{990000000 + os.getpid() % 1000000}", address_number("198.18.240.0"), 24)
    lock = bridge._lock()  # the table is everybody's
    yield made
    firewall.remove(made)
    os.close(lock)


def elements(name):
    return nftables.listing(f"list set {firewall.TABLE} {name}")


@pytest.mark.root_only("nftables")
def test_a_network_leaves_the_firewall_whatever_of_it_is_there_still(network):
    for missing in ("", f'bridges {{ "{network.link}" }}', f"subnets {{ {network.cidr} }}", f'pairs {{ "{network.link}" . "{network.link}" }}'):
        firewall.setup(network)
        assert network.link in elements("bridges") and "198.18.240.0" in elements("subnets")
        if missing:
            with ledger.because("a test"):
                nftables.run(f"delete element {firewall.TABLE} {missing}")
        for _ in range(2):
            firewall.remove(network)
            assert network.link not in elements("bridges") + elements("pairs") and "198.18.240.0" not in elements("subnets"), missing
