"""The floor: ledger, fault points, recording door, flags, database, cgroup settings."""

import errno
import json

import pytest

from utsuwa import ledger
from utsuwa.cli.flags import BOOL, LIST, Flag, parse
from utsuwa.container import cgroup
from utsuwa.errors import NotSupported, UsageError
from utsuwa.kernel import door, mount
from utsuwa.state.db import Database


@pytest.fixture
def recording():
    door.use_backend("recording")
    yield door.recorded
    door.use_backend("real")
    ledger.arm("")


def test_a_call_without_a_reason_is_refused(recording):
    with pytest.raises(ledger.MissingReason):
        mount.umount2("/x", mount.MNT_DETACH)


def test_calls_are_recorded_with_names(recording):
    with ledger.because("test"):
        mount.umount2("/x", mount.MNT_DETACH)
    assert recording == [("umount2", ("/x", "MNT_DETACH"))]


def test_a_ledger_line_is_json():
    line = json.loads(ledger.encode_line("init", 3, ("mount", ("a\n", None, 7), -errno.EPERM, "why", "ref", 5)))
    assert (line["seq"], line["args"], line["result"], line["topic"]) == (3, ["a\n", None, 7], -errno.EPERM, 5)


def test_a_fault_strikes_at_its_count():
    ledger.arm("engine:mount#2=ENOSPC")
    try:
        ledger.fault("mount")
        with pytest.raises(OSError) as caught:
            ledger.fault("mount")
    finally:
        ledger.arm("")
    assert caught.value.errno == errno.ENOSPC


def test_flags_are_pflags():
    flags = (Flag("tty", "t"), Flag("interactive", "i"), Flag("rm", "", BOOL), Flag("publish", "p", LIST))
    options, rest = parse("run", "u", flags, ["-it", "-p80:80", "--rm=false", "image", "-x"], stop_at_first=True, unsupported=frozenset({"gpus"}))
    assert options.on("tty") and options.on("interactive") and not options.on("rm")
    assert options.many("publish") == ["80:80"] and rest == ["image", "-x"]
    with pytest.raises(NotSupported, match="not yet supported: --gpus"):
        parse("run", "u", flags, ["--gpus"], unsupported=frozenset({"gpus"}))
    with pytest.raises(UsageError, match="unknown flag: --nope"):
        parse("run", "u", flags, ["--nope"])


def test_a_failed_transaction_leaves_nothing(tmp_path):
    db = Database(str(tmp_path / "state.db"))
    with pytest.raises(RuntimeError), db.write():
        db.do("INSERT INTO volume VALUES ('v', 1, x'')")
        raise RuntimeError
    assert db.read("SELECT * FROM volume") == []
    db.close()


def test_limits_become_files():
    resources = {"memory": {"limit": 64, "swap": 128}, "cpu": {"quota": 50000, "period": 100000}, "pids": {"limit": 9}}
    assert ("memory", "memory.memsw.limit_in_bytes", "128") in cgroup.settings_v1(resources)
    assert cgroup.settings_v2(resources) == [("memory", "memory.max", "64"), ("memory", "memory.swap.max", "64"), ("cpu", "cpu.max", "50000 100000"), ("pids", "pids.max", "9")]
