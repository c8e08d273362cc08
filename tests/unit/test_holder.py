"""The rootless holder's plain parts: records, subordinate ids, the program that waits, what refusals say, and the worker's messages."""

import os
import struct
import threading

import pytest

from utsuwa import ledger
from utsuwa.engine import holder, pause, stand_in, subids, worker
from utsuwa.errors import CommandError, DependencyMissing, NotFound, PermissionDenied, UtsuwaError
from utsuwa.kernel import door, process
from utsuwa.runtime import handshake
from utsuwa.state.paths import Paths


@pytest.fixture
def places(tmp_path):
    made = Paths(f"{tmp_path}/root", f"{tmp_path}/run")
    made.make()
    return made


def alive():
    return os.getpid(), process.start_time(os.getpid()), process.boot_id()


def write_record(places, *words):
    with open(f"{places.run}/holder", "w") as file:
        file.write(" ".join(map(str, words)) + "\n")
    os.chmod(f"{places.run}/holder", 0o600)


@pytest.mark.parametrize("text", ["", "1", "1 2", "x 2 b", "1 x b", "-1 2 b", "0 2 b", "1 0 b", "1 2 b c", "4194305 2 b", "１ 2 b"])
def test_what_is_no_record_is_none(text):
    assert holder.parse(text) is None


def test_a_record_names_a_living_process(places):
    assert holder.recorded(places) == -1
    write_record(places, *alive())
    pidfd = holder.recorded(places)
    try:
        with open(f"/proc/self/fdinfo/{pidfd}") as file:
            assert f"Pid:\t{os.getpid()}\n" in file.read()
    finally:
        os.close(pidfd)


@pytest.mark.parametrize("change", ["reused pid", "other boot", "dead"])
def test_a_stale_record_is_recognised(places, change):
    pid, start, boot = alive()
    child = os.posix_spawn("/bin/true", ["true"], {})
    os.waitpid(child, 0)
    write_record(places, *{"reused pid": (pid, start - 1, boot), "other boot": (pid, start, "0" * 8), "dead": (child, start, boot)}[change])
    assert holder.recorded(places) == -1


@pytest.mark.parametrize("attack", ["link", "writable by others", "fifo", "directory link"])
def test_a_planted_record_is_not_read(places, tmp_path, attack):
    write_record(places, *alive())
    record = f"{places.run}/holder"
    if attack == "link":
        os.rename(record, f"{tmp_path}/elsewhere")
        os.symlink(f"{tmp_path}/elsewhere", record)
    elif attack == "writable by others":
        os.chmod(record, 0o620)
    elif attack == "fifo":
        os.unlink(record)
        os.mkfifo(record, 0o600)
    else:
        os.symlink(places.run, f"{tmp_path}/planted")
        places = Paths(places.root, f"{tmp_path}/planted")
    assert holder.recorded(places) == -1


@pytest.mark.parametrize(("text", "found"), [
    ("ann:100000:65536", (100000, 65536)), ("1000:7:8\nann:1:2", (7, 8)), ("bob:1:2\n# ann:1:2\nann:3:4\nann:5:6", (3, 4)), ("ann:1\nann:x:2\nann:1:0\nann:0:5", None),
    ("ann:4294967295:2", None), ("", None), ("ann:1:4294967295", (1, subids.MOST)), ("an:1:2\nannn:1:2", None),
])
def test_subordinate_ids_are_found_by_name_or_number(text, found):
    assert subids.first_range(text, "ann", 1000) == found


def test_a_user_without_a_name_is_found_by_number_only():
    assert subids.first_range(":1:2\n1000:3:4", "", 1000) == (3, 4)


def test_a_missing_helper_names_its_package(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(subids, "HELPER_PATH", str(tmp_path))
    with pytest.raises(DependencyMissing, match="newuidmap is not installed; install the package uidmap"):
        subids.find_helper("newuidmap")
    (tmp_path / "newuidmap").touch(0o755)
    assert subids.find_helper("newuidmap") == f"{tmp_path}/newuidmap"


def test_maps_are_the_user_then_the_first_range(monkeypatch):
    monkeypatch.setattr(subids, "find_helper", lambda tool: "/bin/" + tool)
    door.use_backend("recording")
    try:
        subids.write_maps(42, 1000, 1001, ((100000, 65536), (200000, 10)))
        with ledger.because("test"):
            subids.write_single(1000, 1001)
        assert door.recorded == [
            ("posix_spawn", ("/bin/newuidmap", "42", "0", "1000", "1", "1", "100000", "65536")),
            ("posix_spawn", ("/bin/newgidmap", "42", "0", "1001", "1", "1", "200000", "10")),
            ("write", ("/proc/self/setgroups", "deny")), ("write", ("/proc/self/uid_map", "0 1000 1")), ("write", ("/proc/self/gid_map", "0 1001 1")),
        ]
    finally:
        door.use_backend("real")


@pytest.mark.parametrize(("machine", "number"), [("x86_64", 62), ("aarch64", 183)])
def test_the_program_that_waits_is_an_elf(machine, number):
    image = pause.program(machine)
    assert image[:5] == b"\x7fELF\x02" and struct.unpack_from("<H", image, 18)[0] == number
    entry, table = struct.unpack_from("<QQ", image, 24)
    kind, flags, offset, address, _, in_file, in_memory, _ = struct.unpack_from("<IIQQQQQQ", image, table)
    assert (kind, flags, offset, address + 120, in_file, in_memory) == (1, 5, 0, entry, len(image), len(image))


def test_an_unknown_machine_has_no_program():
    assert pause.program("m68k") == b""


@pytest.mark.parametrize(("index", "value", "words"), [
    (0, "0", "kernel.unprivileged_userns_clone=1"), (1, "0", "user.max_user_namespaces=15000"), (2, "0", "user.max_mnt_namespaces=15000"), (3, "1", "AppArmor restricts them"),
])
def test_a_refusal_names_the_switch(tmp_path, index, value, words):
    (tmp_path / "switch").write_text(value + "\n")
    table = ((str(tmp_path / "switch"), *pause._SWITCHES[index][1:]),)
    error = pause.refusal(1, "unshare CLONE_NEWUSER: operation not permitted", table)
    assert isinstance(error, PermissionDenied) and words in str(error)
    (tmp_path / "switch").write_text("7\n")
    assert words not in str(pause.refusal(1, "unshare", table))


def test_a_refusal_for_want_of_room_says_so():
    assert "max_user_namespaces" in str(pause.refusal(28, "unshare: no space left on device", ()))


def test_nothing_stands_in_where_no_monitor_lives(places):
    directory = f"{places.root}/containers"
    for name, text in (("a", "{"), ("b", "[]"), ("c", f'{{"monitor": {os.getpid()}, "boot": "other"}}'), ("d", f'{{"monitor": {os.getpid()}, "boot": "{process.boot_id()}"}}')):
        os.mkdir(f"{directory}/{name}")
        with open(f"{directory}/{name}/state.json", "w") as file:
            file.write(text)
    os.mkdir(f"{directory}/e")
    assert stand_in.find(places, os.getuid()) == -1  # the last is this test: alive, but no monitor


# -------------------------------------------------------------------------------------------------------------- the worker

class Result(tuple):  # as typing.NamedTuple makes one
    __slots__ = ()
    _fields = ("code", "output")

    def __new__(cls, code, output):
        return tuple.__new__(cls, (code, output))


@pytest.mark.parametrize("value", [None, 3, "x", b"\0", [1, (2, [3])], {"a": {"b": (1,)}}])
def test_plain_data_crosses_as_it_is(value):
    assert worker._unpack(worker._pack(value)) == value


def test_a_named_tuple_crosses_as_itself(monkeypatch):
    monkeypatch.setattr(worker, "Result", Result, raising=False)
    monkeypatch.setattr(Result, "__module__", worker.__name__)
    found = worker._unpack(worker._pack([Result(3, b"hi")]))
    assert type(found[0]) is Result and found[0] == (3, b"hi")


def act(name, arguments):
    if name == "fail":
        raise NotFound("no such container: x")
    if name == "command":
        raise CommandError("cannot run 'x'", 127)
    if name == "defect":
        raise ZeroDivisionError
    if name == "odd":
        return object()
    if name == "die":
        os.kill(os.getpid(), 9)
    if name == "big":
        return b"x" * 1_000_000
    return os.getpid(), arguments


@pytest.fixture
def remote(places, monkeypatch):
    """A Remote whose worker is a fork of this test that calls `act`."""
    def start(self):
        ours, theirs = handshake.pair()
        self._pid = os.fork()
        if not self._pid:
            try:
                ours.close()
                worker.serve(theirs, act)
            finally:
                os._exit(0)
        theirs.close()
        self._sock = ours

    monkeypatch.setattr(worker.Remote, "_start", start)
    made = worker.Remote(places)
    yield made
    made.close()


def test_a_call_returns_or_raises_what_the_use_case_does(remote):
    pid, arguments = remote.call("run", image="x", args=["a"])
    assert pid not in (os.getpid(), remote._pid) and arguments == {"image": "x", "args": ["a"]}
    with pytest.raises(NotFound, match="no such container: x"):
        remote.call("fail")
    with pytest.raises(CommandError) as caught:
        remote.call("command")
    assert caught.value.exit_code == 127
    for name, words in (("defect", "ZeroDivisionError"), ("odd", "not plain data"), ("die", "worker was killed")):
        with pytest.raises(UtsuwaError, match=words):
            remote.call(name)
    assert len(remote.call("big")) == 1_000_000


def test_calls_from_many_threads_get_their_own_answers(remote):
    found = {}
    remote.call("run")  # so that the fork of this test's worker happens before there are threads
    threads = [threading.Thread(target=lambda n=n: found.update({n: remote.call("run", number=n)[1]["number"]})) for n in range(20)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == {n: n for n in range(20)}


def test_a_dead_worker_is_replaced(remote):
    remote.call("run")
    os.kill(remote._pid, 9)
    os.waitpid(remote._pid, 0)
    assert remote.call("run")[1] == {}
