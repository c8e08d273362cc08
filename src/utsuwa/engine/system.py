"""What `version` and `info` tell: this engine and this machine, under the names of Docker's API. Only looks."""

from __future__ import annotations

import os
import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    from utsuwa.engine.context import Context

    Spec = dict[str, object]

_ARCHITECTURES = {"x86_64": "amd64", "aarch64": "arm64", "armv7l": "arm", "i686": "386"}


def version() -> Spec:
    """Return what `version` shows. There is no daemon: client and server are one program, and both are there for scripts that ask either."""
    from utsuwa import __version__

    machine = os.uname()
    python = ".".join(map(str, sys.version_info[:3]))
    both: Spec = {"Version": __version__, "ApiVersion": "n/a", "PythonVersion": python, "Os": "linux", "Arch": _ARCHITECTURES.get(machine.machine, machine.machine)}
    return {"Client": both, "Server": {**both, "KernelVersion": machine.release}}


def info(context: Context) -> Spec:
    """Return what `info` shows, with Docker's field names. Raises UtsuwaError when the database cannot be read."""
    from utsuwa import __version__
    from utsuwa.container import cgroup

    machine, groups = os.uname(), cgroup.discover()
    return {
        **_counts(context), "Driver": "overlay2", "DriverStatus": [["Backing Filesystem", _file_system(context.paths.root)], ["userxattr", str(context.rootless).lower()]],
        "LoggingDriver": "cri", "CgroupDriver": "cgroupfs" if groups.writable else "none", "CgroupVersion": "2" if groups.pure else "1",
        "Runtimes": {"utsuwa": {"path": "utsuwa"}}, "DefaultRuntime": "utsuwa", "SecurityOptions": _security(context), "KernelVersion": machine.release,
        "OperatingSystem": operating_system(_read("/etc/os-release")), "OSType": "linux", "Architecture": machine.machine, "NCPU": len(os.sched_getaffinity(0)),
        "MemTotal": memory(_read("/proc/meminfo")), "Name": machine.nodename, "DockerRootDir": context.paths.root, "RunRoot": context.paths.run, "ServerVersion": __version__,
        "Rootless": context.rootless, "Warnings": _warnings(groups),
    }


def _counts(context: Context) -> Spec:
    from utsuwa.engine import containers
    from utsuwa.state import images

    states = [containers.state(context, row.id) for row in containers.every(context)]
    paused = sum(bool(state.get("paused")) for state in states if state.get("status") == "running")
    running = sum(state.get("status") == "running" for state in states) - paused
    return {
        "Containers": len(states), "ContainersRunning": running, "ContainersPaused": paused, "ContainersStopped": len(states) - running - paused,
        "Images": len(images.every(context.db)),
    }


def _security(context: Context) -> list[str]:
    return ["name=seccomp,profile=builtin", "name=cgroupns", *(["name=rootless"] if context.rootless else [])]


def _warnings(groups: object) -> list[str]:
    if not groups.writable:  # type: ignore[attr-defined]
        return ["WARNING: No control group can be made by this user: no limits of memory, processors or processes"]
    return []


def _read(path: str) -> str:
    try:
        with open(path, encoding="utf-8", errors="replace") as file:
            return file.read(1 << 16)
    except OSError:
        return ""


def operating_system(release: str) -> str:
    """Return PRETTY_NAME of an os-release file, Linux where there is none. os-release(5)"""
    for line in release.splitlines():
        key, _, value = line.partition("=")
        if key == "PRETTY_NAME":
            return value.strip().strip("\"'") or "Linux"
    return "Linux"


def memory(meminfo: str) -> int:
    """Return the bytes of memory that /proc/meminfo tells, 0 where it does not. proc_meminfo(5)"""
    for line in meminfo.splitlines():
        if line.startswith("MemTotal:"):
            return int(line.split()[1]) * 1024
    return 0


def _file_system(path: str) -> str:
    """Return the type of the file system that holds `path`, by its device number. proc_pid_mountinfo(5)"""
    device = os.stat(path).st_dev
    wanted = f"{os.major(device)}:{os.minor(device)}"
    for line in _read("/proc/self/mountinfo").splitlines():
        fields = line.split()
        if fields[2] == wanted:
            return fields[fields.index("-") + 1]
    return "unknown"
