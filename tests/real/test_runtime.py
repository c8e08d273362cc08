"""A container through monitor and runtime, without the engine: spawn, CREATE, START, output, exit, nothing left. Root only for now."""

import json
import os
import pathlib
import shutil

import pytest

from utsuwa.monitor import spawn
from utsuwa.runtime import handshake
from utsuwa.security import capabilities, devices, paths, seccomp

NAMESPACES = ("pid", "mount", "uts", "ipc", "network", "cgroup")
CGROUP = "/utsuwa-test/c1"
pytestmark = pytest.mark.root_only("works in this process, with control groups of its own")


def mount(destination, fstype, *options):
    return {"destination": destination, "type": fstype, "source": fstype, "options": list(options)}


def config(directory, args):
    return {
        "ociVersion": "1.3.0", "root": {"path": f"{directory}/merged"}, "hostname": "vessel",
        "process": {"args": args, "env": ["PATH=/bin"], "cwd": "/made/here", "user": {"uid": 0, "gid": 0}},
        "mounts": [
            mount("/proc", "proc", "nosuid", "nodev", "noexec"), mount("/dev", "tmpfs", "nosuid", "mode=755", "size=64k"),
            mount("/dev/pts", "devpts", "newinstance", "ptmxmode=0666", "nosuid", "noexec"), mount("/sys", "sysfs", "ro", "nosuid"),
            mount("/sys/fs/cgroup", "cgroup", "ro"),
        ],
        "linux": {
            "namespaces": [{"type": kind} for kind in NAMESPACES], "cgroupsPath": CGROUP, "devices": devices.nodes(),
            "resources": {"pids": {"limit": 50}, "devices": devices.rules()}, "maskedPaths": paths.masked(), "readonlyPaths": paths.readonly(),
        },
    }


def bundle(root, directory):
    names = capabilities.resolve([], [])
    mask = capabilities.mask(names)
    return {
        "id": "c1", "directory": directory, "run_directory": f"{directory}/run", "place": f"{directory}/merged", "in_userns": False,
        "masks": {"bounding": mask, "effective": mask, "permitted": mask, "inheritable": 0, "ambient": 0}, "filter": seccomp.default_program(names, root),
        "filter_text": "default", "last_capability": capabilities.last(), "boot": "test", "root": root, "run": root, "package": "", "attached": True,
        "overlay": {"lower": [f"{root}/fs"], "upper": f"{directory}/upper", "work": f"{directory}/work"},
    }


def host_mounts():
    """Lines of mountinfo, without those of engines that work beneath another test session's directory."""
    return [line for line in pathlib.Path("/proc/self/mountinfo").read_text().splitlines() if "/utsuwa-test-" not in line]


@pytest.fixture
def run(tmp_path):
    """Callable: run args in a busybox container; returns (messages by kind, output bytes, ledger lines)."""
    directory = f"{tmp_path}/c"
    for part in ("merged", "upper", "work", "run"):
        os.makedirs(f"{directory}/{part}")
    os.makedirs(f"{tmp_path}/fs/bin")
    shutil.copy("/bin/busybox", f"{tmp_path}/fs/bin/busybox")
    for name in ("sh", "id", "hostname", "cat", "ps", "pwd"):
        os.symlink("busybox", f"{tmp_path}/fs/bin/{name}")

    def go(*args):
        descriptor, pid = spawn.spawn()
        os.waitpid(pid, 0)
        sock = handshake.adopt(descriptor)
        sock.settimeout(30)
        handshake.send(sock, handshake.CREATE, (config(directory, list(args)), bundle(str(tmp_path), directory)))
        seen, output = {}, b""
        while (message := handshake.receive(sock)) is not None:
            kind, body, _ = message
            seen[kind] = body
            if kind == handshake.CREATED:
                handshake.send(sock, handshake.START)
            elif kind == handshake.OUTPUT:
                output += body[1]
            elif kind in (handshake.EXITED, handshake.FAILED):
                handshake.send(sock, handshake.DONE)
        sock.close()
        with open(f"{directory}/ledger.jsonl") as file:
            return seen, output, [json.loads(line) for line in file]

    yield go
    for top in os.listdir("/sys/fs/cgroup"):
        if os.path.isdir(f"/sys/fs/cgroup/{top}/utsuwa-test"):
            os.rmdir(f"/sys/fs/cgroup/{top}/utsuwa-test")  # fails if the container's own group is still in it


def test_a_container_runs_and_leaves_nothing(run):
    mounts = host_mounts()
    seen, output, lines = run("sh", "-c", "id; hostname; pwd; ps; echo x >/dev/null; exit 3")
    assert seen["exited"][0] == 3
    words = output.decode().splitlines()
    assert words[:3] == ["uid=0 gid=0", "vessel", "/made/here"]
    assert words[4].split()[0] == "1"
    assert host_mounts() == mounts
    assert all(line["why"] for line in lines)
    assert {"engine", "monitor", "init"} >= {line["who"] for line in lines} >= {"monitor", "init"}


def test_its_walls_are_the_default_ones(run):
    _, output, _ = run("cat", "/proc/self/status")
    status = dict(line.split(":\t", 1) for line in output.decode().splitlines() if ":\t" in line)
    assert (status["CapEff"], status["CapPrm"], status["CapBnd"]) == ("00000000a80425fb",) * 3
    assert (status["CapInh"], status["CapAmb"], status["Seccomp"], status["Groups"].strip()) == ("0" * 16, "0" * 16, "2", "")


@pytest.mark.parametrize(("program", "code"), [("nothing-here", 127), ("/etc", 127), ("/proc/self/exe", 126)])
def test_a_program_that_cannot_run(run, program, code):
    seen, _, _ = run(program)
    assert seen["failed"][0] == "CommandError" and seen["failed"][2] == code
    assert program in seen["failed"][1]
