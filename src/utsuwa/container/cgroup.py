"""Control groups of one container, on v1, hybrid and v2 hierarchies: made, limited, entered, killed, removed. cgroups(7).

`Groups` is what a machine has; `settings_v1` and `settings_v2` turn config.json's `linux.resources` into file writes, and are pure.
Never touches a group that is not below a container's own path; never mounts or unmounts anything.
"""

from __future__ import annotations

import os

from utsuwa.errors import RuntimeFailure, SpecError
from utsuwa.kernel import files
from utsuwa.kernel.door import FAKE, close, is_real, label
from utsuwa.ledger import because

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    Resources = dict[str, dict[str, object]]
    Setting = tuple[str, str, str]  # controller, file, text

MONITORS = "/utsuwa/monitors"
REMOVE_TRIES = 400
KILL_PASSES = 50


class Groups:
    """The cgroup hierarchies of this machine: controller → mount point for v1, and the v2 mount point or "".

    `pure` is true where there is only cgroup v2. `writable` is false where this user may not make groups.
    """

    __slots__ = ("unified", "v1")

    def __init__(self, v1: dict[str, str], unified: str) -> None:
        self.v1, self.unified = v1, unified

    @property
    def pure(self) -> bool:
        return bool(self.unified) and not self.v1

    def directories(self, path: str) -> dict[str, str]:
        """Return hierarchy → directory of the group `path` (`/utsuwa/ID`); the v2 one is called "unified"."""
        found = {name: mount + path for name, mount in self.v1.items()}
        if self.unified:
            found["unified"] = self.unified + path
        return found

    @property
    def writable(self) -> bool:
        """Whether this process may make groups at the top: root on a machine that has hierarchies mounted."""
        tops = list(self.v1.values()) + ([self.unified] if self.unified else [])
        return bool(tops) and all(os.access(top, os.W_OK) for top in tops)


def discover(mountinfo: str = "") -> Groups:
    """Read what is mounted from /proc/self/mountinfo (text given by tests). proc_pid_mountinfo(5)."""
    if not mountinfo:
        fd = os.open("/proc/self/mountinfo", os.O_RDONLY | os.O_CLOEXEC)
        try:
            parts = []
            while part := os.read(fd, 65536):
                parts.append(part)
        finally:
            os.close(fd)
        mountinfo = b"".join(parts).decode(errors="surrogateescape")
    v1: dict[str, str] = {}
    unified = ""
    for line in mountinfo.splitlines():
        if " - cgroup" not in line:
            continue
        left, _, right = line.partition(" - ")
        _, _, _, root, where = left.split(" ")[:5]
        if root != "/" and "/.." not in root:  # a bind mount of one group, not the hierarchy
            continue
        fstype, _, options = right.split(" ", 2)
        if fstype == "cgroup2":
            unified = unified or where
            continue
        names = [o for o in options.split(" ")[-1].split(",") if o not in ("rw", "ro", "xattr") and "clone_children" not in o]
        v1.setdefault(",".join(names), where)
    return Groups(v1, unified)


def _hierarchy(groups: Groups, controller: str) -> str:
    """Return the v1 hierarchy that carries a controller, "" if none. Co-mounted ones are joined by a comma."""
    for names in groups.v1:
        if controller in names.split(","):
            return names
    return ""


def _integer(resources: dict[str, object], key: str) -> int | None:
    value = resources.get(key)
    if value is None:
        return None
    if not isinstance(value, int) or isinstance(value, bool):
        raise SpecError(f"linux.resources: {key}: expected a whole number, got {value!r}")
    return value


def settings_v1(resources: Resources) -> list[Setting]:
    """Return the writes for v1, in order. OCI runtime-spec, config-linux, "Control groups"; kernel doc admin-guide/cgroup-v1."""
    writes: list[Setting] = []
    memory, cpu = resources.get("memory", {}), resources.get("cpu", {})
    for controller, source, key, file in (
        ("memory", memory, "limit", "memory.limit_in_bytes"),
        ("memory", memory, "swap", "memory.memsw.limit_in_bytes"),  # after limit: the kernel wants limit <= memsw
        ("memory", memory, "reservation", "memory.soft_limit_in_bytes"),
        ("cpu", cpu, "shares", "cpu.shares"),
        ("cpu", cpu, "period", "cpu.cfs_period_us"),
        ("cpu", cpu, "quota", "cpu.cfs_quota_us"),
        ("pids", resources.get("pids", {}), "limit", "pids.max"),
    ):
        value = _integer(source, key)
        if value is not None:
            writes.append((controller, file, "max" if file == "pids.max" and value <= 0 else str(value)))
    for key in ("cpus", "mems"):
        if cpu.get(key):
            writes.append(("cpuset", "cpuset." + key, str(cpu[key])))
    for rule in resources.get("devices", ()):
        assert isinstance(rule, dict)
        kind, major, minor = rule.get("type", "a"), rule.get("major", -1), rule.get("minor", -1)
        numbers = f"{'*' if major in (-1, None) else major}:{'*' if minor in (-1, None) else minor}"
        text = "a" if kind == "a" else f"{kind} {numbers} {rule.get('access', 'rwm')}"
        writes.append(("devices", "devices.allow" if rule.get("allow") else "devices.deny", text))
    return writes


def settings_v2(resources: Resources) -> list[Setting]:
    """Return the writes for v2. Device rules are not files there. Kernel doc admin-guide/cgroup-v2; shares as crun converts them."""
    writes: list[Setting] = []
    memory, cpu, pids = resources.get("memory", {}), resources.get("cpu", {}), resources.get("pids", {})
    limit, swap = _integer(memory, "limit"), _integer(memory, "swap")
    if limit is not None:
        writes.append(("memory", "memory.max", "max" if limit < 0 else str(limit)))
    if swap is not None:
        # v1 counts memory and swap together, v2 swap alone.
        writes.append(("memory", "memory.swap.max", "max" if swap < 0 else str(max(0, swap - (limit or 0)))))
    reservation = _integer(memory, "reservation")
    if reservation is not None:
        writes.append(("memory", "memory.low", "max" if reservation < 0 else str(reservation)))
    shares = _integer(cpu, "shares")
    if shares:
        writes.append(("cpu", "cpu.weight", str(1 + ((max(2, min(shares, 262144)) - 2) * 9999) // 262142)))
    quota, period = _integer(cpu, "quota"), _integer(cpu, "period")
    if quota is not None or period is not None:
        writes.append(("cpu", "cpu.max", f"{'max' if not quota or quota < 0 else quota} {period or 100000}"))
    for key in ("cpus", "mems"):
        if cpu.get(key):
            writes.append(("cpuset", "cpuset." + key, str(cpu[key])))
    count = _integer(pids, "limit")
    if count is not None:
        writes.append(("pids", "pids.max", "max" if count <= 0 else str(count)))
    return writes


_WHY = {
    "memory": "memory.* bounds what the container may use before the kernel kills inside it",
    "cpu": "cpu.* shares or throttles processor time",
    "pids": "pids.max stops a fork bomb",
    "cpuset": "a new cpuset is empty and takes no process until cpus and mems are filled",
    "devices": "only the listed devices can be opened, whatever nodes the container makes",
}


def make(groups: Groups, path: str, resources: Resources) -> dict[str, str]:
    """Make the group `path` in every hierarchy and set its limits. Returns hierarchy → directory. Idempotent. Raises RuntimeFailure."""
    directories = groups.directories(path)
    with because("a control group of its own in every hierarchy: what the container uses is counted and bounded there", "cgroups(7)", 1):
        for hierarchy, directory in directories.items():
            _make_directory(directory, groups.pure)
            if "cpuset" in hierarchy.split(","):
                _fill_cpuset(directory)
    writes = settings_v2(resources) if groups.pure else settings_v1(resources)
    for controller, file, text in writes:
        where = "unified" if groups.pure else _hierarchy(groups, controller)
        if where not in directories:
            raise RuntimeFailure(f"cannot limit {controller}: this kernel has no {controller} controller; drop the flag that sets {file}")
        with because(_WHY.get(controller, "a limit of the container's"), f"cgroups(7), {file}", 1):
            _set(f"{directories[where]}/{file}", text)
    if "devices" in resources and not _hierarchy(groups, "devices"):
        _limit_devices(directories.get("unified", ""), resources["devices"])  # type: ignore[arg-type]
    return directories


def _limit_devices(directory: str, rules: list[dict[str, object]]) -> None:
    """Attach a program that knows the rules: cgroup v2 has no devices controller. Raises RuntimeFailure: without it a container opens any disk."""
    from utsuwa.kernel import bpf

    fd = label(os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC) if is_real() else FAKE, directory)
    program = -1
    try:
        with because(_WHY["devices"], "bpf(2), BPF_PROG_TYPE_CGROUP_DEVICE", 6):
            program = bpf.load(bpf.device_program(rules), f"{len(rules)} device rules")
            bpf.attach(program, fd)
    except OSError as error:
        raise RuntimeFailure(f"cannot limit devices: {error.strerror}") from None
    finally:
        for each in (program, fd):
            if each >= 0:
                close(each)


def _set(path: str, text: str) -> None:
    try:
        files.write_file(path, text)
    except FileNotFoundError:
        if path.endswith("memsw.limit_in_bytes"):  # a kernel without swap accounting: memory alone is bounded
            return
        raise RuntimeFailure(f"cannot set {path}: this kernel does not have it") from None
    except OSError as error:
        raise RuntimeFailure(f"cannot set {path} to {text}: {(error.strerror or '').rpartition(': ')[2]}") from None


def _make_directory(directory: str, delegate: bool) -> None:
    parent = directory.rpartition("/")[0]
    for each in (parent, directory):
        if not os.path.isdir(each):
            try:
                files.mkdir(each, 0o755)
            except FileExistsError:
                continue
        if delegate and each == parent:  # each time: whoever made the parent may have been killed before this
            _delegate(parent)


def _delegate(parent: str) -> None:
    """On v2, hand every controller the parent has down to its children; needs the same one level up."""
    for each in (parent.rpartition("/")[0], parent):
        available = _read(each + "/cgroup.controllers").split()
        enabled = _read(each + "/cgroup.subtree_control").split()
        wanted = [name for name in available if name in ("cpu", "cpuset", "io", "memory", "pids") and name not in enabled]
        if wanted:
            files.write_file(each + "/cgroup.subtree_control", " ".join("+" + name for name in wanted))


def _fill_cpuset(directory: str) -> None:
    parent = directory.rpartition("/")[0]
    for each, above in ((parent, parent.rpartition("/")[0]), (directory, parent)):
        for file in ("cpuset.cpus", "cpuset.mems"):
            if not _read(f"{each}/{file}").strip():
                files.write_file(f"{each}/{file}", _read(f"{above}/{file}").strip())


def _read(path: str) -> str:
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return ""
    try:
        return os.read(fd, 65536).decode()
    finally:
        os.close(fd)


def enter(directories: dict[str, str], *, born: bool = False) -> None:
    """Move the caller, a process of one thread, into the group of every hierarchy; `born` says that it was born in the v2 one.

    By `tasks` where v1 has it: one thread that moves itself is let through, while cgroup.procs waits for every CPU of the machine, 8 ms or more after a
    quiet time (Linux, cgroup_procs_write_start). v2 has no such way: there a process is born where it belongs (CLONE_INTO_CGROUP).
    """
    with because("enter the control groups first: every later child is counted from its birth", "cgroups(7), tasks", 1):
        for hierarchy, directory in directories.items():
            if hierarchy != "unified":
                files.write_file(directory + "/tasks", "0")
            elif not born:
                files.write_file(directory + "/cgroup.procs", "0")


def open_unified(directories: dict[str, str]) -> int:
    """Return a descriptor of the v2 group, for a child to be born in; -1 where there is none. Raises OSError."""
    path = directories.get("unified", "")
    if not path:
        return -1
    return label(os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC) if is_real() else FAKE, path)


def open_monitors() -> int:
    """Return a descriptor of the monitors' v2 group, made when missing; -1 where this user may not have it. The group stays, like its parent."""
    groups = discover()
    try:
        if groups.unified:
            path = groups.unified + MONITORS
            with because("monitors outlive their callers' sessions: a group of their own, which nobody ends as a whole", "cgroups(7); systemd.kill(5)", 1):
                _make_directory(path, groups.pure)
            if os.access(path + "/cgroup.procs", os.W_OK):
                return open_unified({"unified": path})
    except OSError:
        pass
    return -1


def shelter(groups: Groups) -> None:
    """Move the calling monitor into the monitors' group of systemd's own v1 hierarchy too, where there is one. Raises OSError."""
    if "name=systemd" in groups.v1:
        path = groups.v1["name=systemd"] + MONITORS
        with because("a session or unit that systemd ends takes no container along", "systemd.kill(5)", 1):
            _make_directory(path, False)
            files.write_file(path + "/tasks", "0")


def processes(directories: dict[str, str]) -> list[int]:
    """Return the pids in the group (one hierarchy tells; all hold the same processes)."""
    for hierarchy in ("unified", "pids", *directories):
        if hierarchy in directories:
            return [int(pid) for pid in _read(directories[hierarchy] + "/cgroup.procs").split()]
    return []


def kill(directories: dict[str, str], pause: Callable[[float], object]) -> None:
    """Kill every process of the group, again until none is left (a bounded number of times). Idempotent."""
    unified = directories.get("unified", "")
    with because("nothing of the container may outlive it", "cgroups(7), cgroup.kill", 1):
        for attempt in range(KILL_PASSES):
            pids = processes(directories)
            if not pids:
                return
            if attempt == 0 and unified and os.path.exists(unified + "/cgroup.kill"):
                files.write_file(unified + "/cgroup.kill", "1")
            else:
                _kill_each(pids)
            pause(0.002)


def _kill_each(pids: list[int]) -> None:
    from utsuwa.kernel.process import kill as send

    for pid in pids:
        try:
            send(pid, 9)
        except ProcessLookupError:
            continue


def remove(directories: dict[str, str], pause: Callable[[float], object]) -> None:
    """Remove the group everywhere. Idempotent. A group whose last process is still leaving is tried again. Raises OSError after that."""
    with because("the container is gone: its control groups go too", "cgroups(7)", 1):
        for directory in directories.values():
            if os.path.isdir(directory):
                _remove(directory, pause)


def _remove(directory: str, pause: Callable[[float], object]) -> None:
    for attempt in range(REMOVE_TRIES):
        try:
            files.rmdir(directory)
        except FileNotFoundError:
            return
        except OSError:
            for child in [entry.path for entry in os.scandir(directory) if entry.is_dir(follow_symlinks=False)]:
                _remove(child, pause)
            if attempt == REMOVE_TRIES - 1:
                raise
            pause(0.001 if attempt < 100 else 0.01)
        else:
            return


def oom_kills(directories: dict[str, str]) -> int:
    """Return how many processes of the group the kernel killed for memory."""
    for hierarchy, file in (("memory", "memory.oom_control"), ("unified", "memory.events")):
        for names, directory in directories.items():
            if hierarchy in names.split(","):
                for line in _read(f"{directory}/{file}").splitlines():
                    if line.startswith("oom_kill "):
                        return int(line.split()[1])
    return 0
