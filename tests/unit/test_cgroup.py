"""Control groups: hierarchies as mountinfo tells them, limits as file writes, and what is made on a machine that has cgroup v2 alone."""

import pytest

from utsuwa import ledger
from utsuwa.container import cgroup
from utsuwa.kernel import bpf, door
from utsuwa.security import devices

HYBRID = """\
30 24 0:26 / /sys/fs/cgroup ro - tmpfs tmpfs ro,mode=755
31 30 0:27 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw
32 30 0:28 / /sys/fs/cgroup/cpu,cpuacct rw - cgroup cgroup rw,cpu,cpuacct
33 30 0:29 / /sys/fs/cgroup/systemd rw - cgroup cgroup rw,xattr,name=systemd
34 30 0:28 /docker/abc /somewhere/else rw - cgroup cgroup rw,cpu,cpuacct
"""
PURE = "30 24 0:26 / /sys/fs/cgroup rw - cgroup2 cgroup2 rw,nsdelegate\n"


@pytest.fixture
def recorded():
    door.use_backend("recording")
    with ledger.because("a test", "pytest", 1):
        yield door.recorded
    door.use_backend("real")


def test_hierarchies_are_told_apart_and_a_bind_of_one_group_is_none():
    groups = cgroup.discover(HYBRID)
    assert (groups.v1, groups.unified, groups.pure) == ({"cpu,cpuacct": "/sys/fs/cgroup/cpu,cpuacct", "name=systemd": "/sys/fs/cgroup/systemd"}, "/sys/fs/cgroup/unified", False)
    pure = cgroup.discover(PURE)
    assert (pure.v1, pure.unified, pure.pure) == ({}, "/sys/fs/cgroup", True)
    assert pure.directories("/utsuwa/x") == {"unified": "/sys/fs/cgroup/utsuwa/x"}


def test_limits_of_v2():
    resources = {
        "memory": {"limit": 64 << 20, "swap": 96 << 20, "reservation": -1}, "pids": {"limit": 50},
        "cpu": {"quota": 50000, "period": 100000, "shares": 1024, "cpus": "0-1", "mems": "0"}, "devices": devices.rules(),
    }
    assert cgroup.settings_v2(resources) == [
        ("memory", "memory.max", str(64 << 20)), ("memory", "memory.swap.max", str(32 << 20)), ("memory", "memory.low", "max"),
        ("cpu", "cpu.weight", "39"), ("cpu", "cpu.max", "50000 100000"), ("cpuset", "cpuset.cpus", "0-1"), ("cpuset", "cpuset.mems", "0"), ("pids", "pids.max", "50"),
    ]
    assert cgroup.settings_v2({"memory": {"limit": -1}, "pids": {"limit": 0}, "cpu": {"quota": -1}}) == [
        ("memory", "memory.max", "max"), ("cpu", "cpu.max", "max 100000"), ("pids", "pids.max", "max"),
    ]


def hierarchy(top, *groups):
    for name in ("", *groups):
        (top / name).mkdir(exist_ok=True)
        (top / name / "cgroup.controllers").write_text("cpuset cpu io memory hugetlb pids\n")
        (top / name / "cgroup.subtree_control").write_text("cpu pids\n" if not name else "")
    return cgroup.Groups({}, str(top))


@pytest.mark.parametrize("there", [(), ("utsuwa",)])
def test_on_v2_controllers_are_handed_down_even_when_the_parent_was_left_without(recorded, tmp_path, there):
    groups = hierarchy(tmp_path, *there)
    cgroup.make(groups, "/utsuwa/c1", {"memory": {"limit": 4096}})
    below = [("write", (f"{tmp_path}/utsuwa/cgroup.subtree_control", "+cpuset +cpu +io +memory +pids"))] if there else []
    made = [("mkdir", (f"{tmp_path}/utsuwa", "755"))] if not there else []
    assert recorded == [
        *made, ("write", (f"{tmp_path}/cgroup.subtree_control", "+cpuset +io +memory")), *below,
        ("mkdir", (f"{tmp_path}/utsuwa/c1", "755")), ("write", (f"{tmp_path}/utsuwa/c1/memory.max", "4096")),
    ]


def test_on_v2_devices_are_limited_by_a_program(recorded, tmp_path):
    cgroup.make(hierarchy(tmp_path, "utsuwa"), "/utsuwa/c1", {"devices": devices.rules()})
    calls = [line for line in recorded if line[0] == "bpf"]
    assert [call[1][0] for call in calls] == ["BPF_PROG_LOAD", "BPF_PROG_ATTACH"]
    assert calls[1][1][2].endswith(f"<{tmp_path}/utsuwa/c1>")


# ---- the device program, by an interpreter of the few instructions that it has


def run(program: bytes, kind: str, access: str, major: int, minor: int) -> int:
    context = [sum(bpf.ACCESS[letter] for letter in access) << 16 | bpf.TYPES[kind], major, minor]
    registers, at = [0] * 11, 0
    while True:
        code, names, offset, value = program[at * 8], program[at * 8 + 1], int.from_bytes(program[at * 8 + 2:at * 8 + 4], "little", signed=True), int.from_bytes(
            program[at * 8 + 4:at * 8 + 8], "little", signed=True)
        to, source = names & 15, names >> 4
        at += 1
        if code == 0x61:
            registers[to] = context[offset // 4]
        elif code == 0xBF:
            registers[to] = registers[source]
        elif code == 0x57:
            registers[to] &= value
        elif code == 0x77:
            registers[to] >>= value
        elif code == 0x55:
            at += offset if registers[to] != value else 0
        elif code == 0xB7:
            registers[to] = value
        else:
            assert code == 0x95
            return registers[0]


@pytest.mark.parametrize(("device", "allowed"), [
    (("c", "rw", 1, 3), 1), (("c", "rwm", 1, 9), 1), (("c", "r", 136, 7), 1), (("c", "m", 200, 1), 1), (("b", "m", 8, 0), 1),
    (("b", "r", 8, 0), 0), (("c", "r", 1, 1), 0), (("c", "rm", 1, 1), 0), (("b", "rwm", 1, 3), 0), (("c", "w", 10, 200), 0), (("c", "r", 5, 3), 0),
])
def test_the_default_rules_let_the_default_devices_be_opened_and_no_other(device, allowed):
    assert run(bpf.device_program(devices.rules()), *device) == allowed


def test_the_last_rule_that_fits_decides_and_none_is_no():
    assert run(bpf.device_program([]), "c", "r", 1, 3) == 0
    assert run(bpf.device_program(devices.rules(privileged=True)), "b", "rwm", 8, 0) == 1
    some = [{"allow": True, "access": "rwm"}, {"allow": False, "type": "b", "major": 8, "minor": -1, "access": "w"}]
    program = bpf.device_program(some)
    assert (run(program, "b", "r", 8, 1), run(program, "b", "w", 8, 1), run(program, "b", "w", 9, 1)) == (1, 0, 1)
