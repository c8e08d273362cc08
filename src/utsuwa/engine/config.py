"""Options and image become config.json (OCI runtime-spec) and the walls beside it. Pure but for what it looks up of this machine."""

from __future__ import annotations

import os

from utsuwa.container import user as users
from utsuwa.errors import UsageError
from utsuwa.security import capabilities, devices, paths

TYPE_CHECKING = False
if TYPE_CHECKING:
    from utsuwa.container.user import User
    from utsuwa.engine.options import RunOptions
    from utsuwa.spec.image import ImageRecord

    Spec = dict[str, object]

DEFAULT_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
CPU_PERIOD = 100_000
SHM_SIZE = 67_108_864
MIN_MEMORY = 6 * 1024 * 1024
PIDS_MAX = 4_194_304  # PID_MAX_LIMIT of the kernel: the pids controller takes no more


def command(options: RunOptions, image: ImageRecord) -> list[str]:
    """Return argv: entrypoint and command, as Docker joins them. A new entrypoint clears the image's command. Raises UsageError."""
    entry, args = image.config.get("Entrypoint"), options.args
    if options.entrypoint is not None:
        argv = [*options.entrypoint, *args]
    else:
        argv = [*(entry or []), *(args or image.config.get("Cmd") or [])]  # type: ignore[misc]
    if not argv:
        raise UsageError(f"no command specified: the image {options.image} has none, give one after the image's name")
    if any("\0" in word for word in argv):
        raise UsageError("invalid command: a word contains a NUL character")
    return argv


def environment(options: RunOptions, image: ImageRecord, hostname: str, home: str) -> list[str]:
    """Return the environment in Docker's order: PATH, HOSTNAME, TERM, the caller's, the image's, and HOME where nobody set it.

    A caller's entry goes before the image's of the same name; one that is a name alone, which the caller has not set, takes the variable away.
    """
    found = {"PATH": DEFAULT_PATH, "HOSTNAME": hostname}
    if options.terminal:
        found["TERM"] = "xterm"
    given = {entry.partition("=")[0] for entry in options.env}
    for entry in (*options.env, *(each for each in image.config.get("Env") or () if str(each).partition("=")[0] not in given)):  # type: ignore[attr-defined]
        key, equals, value = str(entry).partition("=")
        if equals:
            found[key] = value
        else:
            found.pop(key, None)
    found.setdefault("HOME", home)
    return [f"{key}={value}" for key, value in found.items()]


def process(options: RunOptions, image: ImageRecord, hostname: str, user: User, kept: list[str]) -> Spec:
    """Return config.json's `process`. Capabilities as Docker gives them: a user that is not root has them in the bounding set alone."""
    effective = kept if user.uid == 0 else []
    return {
        "terminal": options.terminal,
        "user": {"uid": user.uid, "gid": user.gid, "additionalGids": user.groups},
        "args": command(options, image), "env": environment(options, image, hostname, user.home),
        "cwd": work_directory(options.workdir or str(image.config.get("WorkingDir") or "/")),
        "capabilities": {"bounding": kept, "effective": effective, "permitted": effective},
        "noNewPrivileges": options.no_new_privs,
        **({"consoleSize": {"height": options.console[0], "width": options.console[1]}} if options.console[0] else {}),
    }


def work_directory(path: str) -> str:
    """Return the directory to start in. Raises UsageError for one that is not absolute, as Docker does, or that no path can be."""
    if not path.startswith("/") or "\0" in path:
        raise UsageError(f"the working directory {path!r} is invalid, it needs to be an absolute path")
    return path


def resources(options: RunOptions) -> Spec:
    """Return `linux.resources`. Memory and swap together are twice the memory, as Docker sets them. Raises UsageError."""
    found: Spec = {"devices": devices.rules()}
    if options.memory:
        if options.memory < MIN_MEMORY:
            raise UsageError("invalid memory limit: minimum memory limit allowed is 6MB")
        found["memory"] = {"limit": options.memory, "swap": 2 * options.memory}
    if options.cpus:
        most = os.cpu_count() or 1
        if not 0.01 <= options.cpus <= most:
            raise UsageError(f"invalid --cpus {options.cpus:g}: range of CPUs is from 0.01 to {most}.00, as there are only {most} CPUs available")
        found["cpu"] = {"quota": int(options.cpus * CPU_PERIOD), "period": CPU_PERIOD}
    if options.pids_limit > PIDS_MAX:
        raise UsageError(f"invalid --pids-limit {options.pids_limit}: at most {PIDS_MAX}; -1 for unlimited")
    if options.pids_limit > 0:
        found["pids"] = {"limit": options.pids_limit}
    return found


def _mount(destination: str, kind: str, *options: str, source: str = "") -> Spec:
    return {"destination": destination, "type": kind, "source": source or kind, "options": list(options)}


def mapped(number: int, which: str = "gid") -> bool:
    """Whether our user namespace knows this group id (or `which="uid"`, user id). user_namespaces(7)"""
    with open(f"/proc/self/{which}_map", "rb") as file:
        return any(int(first) <= number < int(first) + int(count) for first, _, count in (line.split() for line in file))


def check_ids(user: User) -> list[int]:
    """Return the user's additional groups that exist in our user namespace. Raises UsageError where the user or its group does not."""
    for which, number in (("uid", user.uid), ("gid", user.gid)):
        if not mapped(number, which):
            raise UsageError(f"cannot run as {which} {number}: it is not among the subordinate ids of this user; root can give more in /etc/subuid and /etc/subgid")
    return [group for group in user.groups if mapped(group)]


def mounts(directory: str, binds: list[Spec], *, own_network: bool, in_userns: bool) -> list[Spec]:
    """Return `mounts` in Docker's order: the kernel's file systems, the three files of names, then the caller's, outer before inner."""
    sys_ = _mount("/sys", "sysfs", "nosuid", "noexec", "nodev", "ro")
    if in_userns and not own_network:
        # sysfs shows a network namespace, and only the user namespace that owns it may mount it: the host's is bound instead, read-only. sysfs(5)
        sys_ = _mount("/sys", "bind", "rbind", "rro", "nosuid", "noexec", "nodev", source="/sys")
    found = [
        _mount("/proc", "proc", "nosuid", "noexec", "nodev"),
        _mount("/dev", "tmpfs", "nosuid", "strictatime", "mode=755", "size=65536k"),
        # 5 is the group tty; where this user has one id only, it does not exist and the kernel would refuse it.
        _mount("/dev/pts", "devpts", "nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", *(["gid=5"] if mapped(5) else [])),
        sys_,
        _mount("/sys/fs/cgroup", "cgroup", "ro", "nosuid", "noexec", "nodev"),
        _mount("/dev/mqueue", "mqueue", "nosuid", "noexec", "nodev"),
        _mount("/dev/shm", "tmpfs", "nosuid", "noexec", "nodev", "mode=1777", f"size={SHM_SIZE}", source="shm"),  # noqa: S108
    ]
    given = [str(bind["destination"]) for bind in binds]
    for name in ("resolv.conf", "hostname", "hosts"):
        if f"/etc/{name}" not in given:
            found.append(_mount(f"/etc/{name}", "bind", "rbind", "rprivate", source=f"{directory}/{name}"))
    # As in Docker, a /dev of the user's own is left alone, and nothing of ours is put in it.
    kept = [item for item in found if item["destination"] not in given and not ("/dev" in given and str(item["destination"]).startswith("/dev/"))]
    return kept + sorted(binds, key=lambda bind: str(bind["destination"]).count("/"))


def namespaces(network: str, netns: str) -> list[Spec]:
    """Return `linux.namespaces`: all that a container has of its own. `network` is host, none, or another mode whose namespace is at `netns`."""
    found: list[Spec] = [{"type": kind} for kind in ("mount", "uts", "ipc", "pid", "cgroup")]
    if network != "host":
        found.append({"type": "network", "path": netns} if netns else {"type": "network"})
    return found


def document(options: RunOptions, image: ImageRecord, *, directory: str, hostname: str, cgroup: str, netns: str, binds: list[Spec], in_userns: bool) -> tuple[Spec, list[str]]:
    """Return (config.json, the capabilities kept). Raises UsageError for a user, command, limit or capability that cannot be."""
    user = users.resolve(options.user or str(image.config.get("User") or ""), image.passwd, image.group)
    if in_userns:
        user.groups = check_ids(user)
    kept = capabilities.resolve(options.cap_add, options.cap_drop)
    linux: Spec = {
        "namespaces": namespaces(options.network, netns), "resources": resources(options) if cgroup else {}, "devices": devices.nodes(),
        "maskedPaths": paths.masked(), "readonlyPaths": paths.readonly(),
    }
    if cgroup:
        linux["cgroupsPath"] = cgroup
    if options.network != "host":
        linux["sysctl"] = sysctls(in_userns)
    return {
        "ociVersion": "1.3.0", "root": {"path": f"{directory}/merged", "readonly": options.read_only}, "hostname": hostname,
        "process": process(options, image, hostname, user, kept), "linux": linux,
        "mounts": mounts(directory, binds, own_network=options.network != "host", in_userns=in_userns),
    }, kept


def sysctls(in_userns: bool) -> dict[str, str]:
    """Return what Docker sets in a network namespace of the container's own: any program may bind low ports, and (where all groups are mapped) ping."""
    found = {"net.ipv4.ip_unprivileged_port_start": "0"}
    if not in_userns:
        found["net.ipv4.ping_group_range"] = "0 2147483647"
    return found


def masks(kept: list[str], uid: int) -> dict[str, int]:
    """Return the five capability sets as masks; the inheritable one is always empty (CVE-2022-24769)."""
    bounding = capabilities.mask(kept)
    effective = bounding if uid == 0 else 0
    return {"bounding": bounding, "effective": effective, "permitted": effective, "inheritable": 0, "ambient": 0}
