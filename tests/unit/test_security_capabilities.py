"""Capabilities, masked paths, devices: the tables and Docker's arithmetic."""

from __future__ import annotations

import pathlib

import pytest

from utsuwa.errors import UsageError
from utsuwa.runtime import rootfs
from utsuwa.security import capabilities, devices, paths

HEADER = pathlib.Path("/usr/include/linux/capability.h")


def test_names_and_numbers() -> None:
    assert len(capabilities.NAMES) == 41
    picked = {name: capabilities.NUMBERS["CAP_" + name] for name in ("CHOWN", "NET_ADMIN", "SYS_ADMIN", "MKNOD", "SETFCAP", "CHECKPOINT_RESTORE")}
    assert picked == {"CHOWN": 0, "NET_ADMIN": 12, "SYS_ADMIN": 21, "MKNOD": 27, "SETFCAP": 31, "CHECKPOINT_RESTORE": 40}


@pytest.mark.skipif(not HEADER.exists(), reason="linux/capability.h is not installed")
def test_the_table_is_the_headers() -> None:
    words = [line.split() for line in HEADER.read_text().splitlines()]
    known = {w[1]: int(w[2]) for w in words if len(w) >= 3 and w[0] == "#define" and w[1].startswith("CAP_") and w[2].isdigit()}
    assert known.items() <= capabilities.NUMBERS.items()


def test_the_default_mask_is_the_one_every_docker_container_shows() -> None:
    assert capabilities.mask(capabilities.DEFAULT) == 0xA80425FB
    assert capabilities.mask(capabilities.names(0xA80425FB)) == 0xA80425FB
    assert capabilities.names(1 << 41) == ["CAP_41"]


def test_add_and_drop() -> None:
    default = list(capabilities.DEFAULT)
    assert capabilities.resolve([], []) == default
    assert capabilities.resolve(["net_admin"], ["CAP_MKNOD"]) == [n for n in default if n != "CAP_MKNOD"] + ["CAP_NET_ADMIN"]
    assert capabilities.resolve(["Cap_Chown"], []) == default
    assert capabilities.resolve([], ["all"]) == []
    assert capabilities.resolve(["KILL"], ["ALL"]) == ["CAP_KILL"]
    assert capabilities.resolve(["KILL"], ["KILL"])[-1] == "CAP_KILL"        # dropped from the default, then added: Docker's order


def test_all_is_what_we_ourselves_may_have(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(capabilities, "everything", lambda: ["CAP_CHOWN", "CAP_KILL", "CAP_SYS_ADMIN"])
    assert capabilities.resolve(["ALL"], ["KILL"]) == ["CAP_CHOWN", "CAP_SYS_ADMIN"]
    assert capabilities.resolve(["ALL"], ["ALL"]) == ["CAP_CHOWN", "CAP_KILL", "CAP_SYS_ADMIN"]
    assert capabilities.resolve([], ["ALL"], privileged=True) == ["CAP_CHOWN", "CAP_KILL", "CAP_SYS_ADMIN"]


def test_everything_leaves_out_what_is_gone_from_our_bounding_set() -> None:
    (line,) = [line for line in pathlib.Path("/proc/self/status").read_text().splitlines() if line.startswith("CapBnd:")]
    assert capabilities.mask(capabilities.everything()) == int(line.split()[1], 16) & (1 << 41) - 1
    assert capabilities.last() == int(pathlib.Path("/proc/sys/kernel/cap_last_cap").read_text())


@pytest.mark.parametrize("ask", [{"add": ["FOO"], "drop": []}, {"add": [], "drop": ["FOO"]}, {"add": ["FOO"], "drop": [], "privileged": True}])
def test_an_unknown_capability_is_named(ask: dict[str, list[str]]) -> None:
    with pytest.raises(UsageError) as error:
        capabilities.resolve(**ask)  # type: ignore[arg-type]
    assert str(error.value) == 'unknown capability: "FOO"'


def test_masked_and_readonly_paths() -> None:
    docker_20 = ["/proc/asound", "/proc/acpi", "/proc/kcore", "/proc/keys", "/proc/latency_stats", "/proc/timer_list", "/proc/timer_stats", "/proc/sched_debug", "/proc/scsi", "/sys/firmware"]
    assert [path for path in paths.masked() if path in docker_20] == docker_20
    assert set(paths.masked()) >= {"/proc/interrupts", "/sys/devices/virtual/powercap"}
    assert paths.readonly() == ["/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"]


def test_thermal_counters_are_masked_where_the_machine_has_them(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(paths, "_CPUS", str(tmp_path))
    assert paths.masked() == list(paths.MASKED)
    (tmp_path / "cpu0" / "thermal_throttle").mkdir(parents=True)
    (tmp_path / "possible").write_text("0-1,4\n")
    assert paths.masked()[len(paths.MASKED):] == [f"{tmp_path}/cpu{number}/thermal_throttle" for number in (0, 1, 4)]


def test_devices() -> None:
    assert {(n["path"], n["major"], n["minor"], n["fileMode"]) for n in devices.nodes()} == {
        ("/dev/null", 1, 3, 0o666), ("/dev/zero", 1, 5, 0o666), ("/dev/full", 1, 7, 0o666), ("/dev/random", 1, 8, 0o666), ("/dev/urandom", 1, 9, 0o666), ("/dev/tty", 5, 0, 0o666)}
    assert dict(rootfs.LINKS)["ptmx"] == "pts/ptmx"
    first, *rest = devices.rules()
    assert first == {"allow": False, "access": "rwm"}
    assert {"allow": True, "type": "c", "major": 136, "access": "rwm"} in rest
    assert all(rule["access"] == "m" for rule in rest if "major" not in rule)
    assert devices.rules(privileged=True) == [{"allow": True, "access": "rwm"}]
