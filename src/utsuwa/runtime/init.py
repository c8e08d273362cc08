"""PID 1 of a container, from its birth in new namespaces to execve. Imports nothing: the host's files are about to vanish.

An orchestrator is a list of named steps; `STEPS` is the order, and the comments say what would break in another.
"""

from __future__ import annotations

import os
import stat
import sys

from utsuwa import ledger
from utsuwa.container import cgroup
from utsuwa.errors import CommandError, RuntimeFailure, UtsuwaError
from utsuwa.kernel import credential, files, link, namespace, process
from utsuwa.kernel.door import close, is_real
from utsuwa.ledger import because
from utsuwa.runtime import handshake, rootfs, terminal, walls

TYPE_CHECKING = False
if TYPE_CHECKING:
    from socket import socket

    from utsuwa.container.cgroup import Groups

    Spec = dict[str, object]

DEFAULT_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


class Plan:
    """What init needs, as plain data and descriptors; made by the monitor before the fork.

    `config` is the OCI document; `masks` five 64-bit capability masks by name; `stdio` three descriptors, or () with a terminal;
    `groups` and `directories` are the cgroup hierarchies and this container's group in each; `joins` (descriptor, CLONE_NEW*) pairs.
    """

    __slots__ = ("book_fd", "config", "directories", "filter", "filter_text", "groups", "in_userns", "joins", "last_capability", "masks", "new_network", "place", "root_fd", "sock", "stdio", "unshare")

    def __init__(self) -> None:
        self.config: Spec = {}
        self.groups: Groups = cgroup.Groups({}, "")
        self.directories: dict[str, str] = {}
        self.masks: dict[str, int] = {}
        self.filter, self.filter_text = b"", ""
        self.stdio: tuple[int, ...] = ()
        self.joins: list[tuple[int, int]] = []
        self.unshare = 0
        self.root_fd, self.place = -1, ""
        self.book_fd = -1
        self.in_userns = self.new_network = False
        self.last_capability = 40
        self.sock: socket | None = None


def main(plan: Plan) -> None:
    """Become the container. Returns only on failure (or where the backend does nothing); the failure has gone up the pipe."""
    if not is_real():  # a plan: one process plays all the parts
        with ledger.recording(ledger.Ledger("init", ledger.current().sink)):
            _take_steps(plan)
        return
    ledger.use(ledger.Ledger("init", ledger.to_memory(plan.book_fd)))
    _take_steps(plan)


def _take_steps(plan: Plan) -> None:
    sock = plan.sock
    try:
        for step in STEPS:
            step(plan)
    except UtsuwaError as error:
        _fail(sock, type(error).__name__, str(error), error.exit_code)
    except OSError as error:
        _fail(sock, "RuntimeFailure", f"cannot make the container: {error.strerror}", 125)


def _fail(sock: socket | None, kind: str, text: str, code: int) -> None:
    if sock is None or not is_real():
        raise RuntimeFailure(text)
    handshake.send(sock, handshake.FAILED, (kind, text, code))


def hide(plan: Plan) -> None:
    with because("until the program runs, nobody may look into this process: it still holds the host's files", "CVE-2016-9962", 6):
        credential.prctl(credential.PR_SET_DUMPABLE, 0)
    with because("the container does not outlive its monitor", "prctl(2), PR_SET_PDEATHSIG", 1):
        credential.prctl(credential.PR_SET_PDEATHSIG, 9)
    spec: Spec = plan.config["process"]  # type: ignore[assignment]
    if spec.get("oomScoreAdj") is not None:  # while /proc is the host's
        _oom_score(int(spec["oomScoreAdj"]))  # type: ignore[call-overload]
    keep_only({*plan.stdio, *(fd for fd, _ in plan.joins), plan.root_fd, plan.book_fd, plan.sock.fileno() if plan.sock else 2})


def keep_only(keep: set[int]) -> None:
    """Close every descriptor above 2 but these: nothing of the monitor's is carried into a container. CVE-2024-21626"""
    last = 2
    for fd in sorted(keep):
        if fd > last + 1:
            process.close_range(last + 1, fd - 1, 0)
        last = max(last, fd)
    process.close_range(last + 1, 0xFFFFFFFF, 0)


def enter_namespaces(plan: Plan) -> None:
    if plan.directories:
        cgroup.enter(plan.directories, born=True)
    for fd, kind in plan.joins:
        with because("join the namespace that was made ready outside", "setns(2)", 4 if kind == namespace.CLONE_NEWNET else 1):
            namespace.setns(fd, kind)
        close(fd)
    if plan.new_network:
        with because("a new network namespace has a loopback link that is down", "network_namespaces(7)", 4):
            link.up_loopback()
    if plan.unshare:
        with because("the container's own group becomes the top of what it sees; last, when it is already in it", "cgroup_namespaces(7)", 1):
            namespace.unshare(plan.unshare)


def furnish(plan: Plan) -> None:
    linux: Spec = plan.config["linux"]  # type: ignore[assignment]
    spec_root: Spec = plan.config["root"]  # type: ignore[assignment]
    root = rootfs.Root(plan.root_fd, plan.in_userns)
    rootfs.attach(plan.root_fd, plan.place)
    rootfs.mount_all(root, plan.config["mounts"], plan.groups)  # type: ignore[arg-type]
    rootfs.furnish_dev(root, linux.get("devices") or [])  # type: ignore[arg-type]
    if plan.config.get("hostname"):
        with because("the host name it knows itself by", "uts_namespaces(7)", 1):
            namespace.sethostname(str(plan.config["hostname"]))
    rootfs.write_sysctls(root, linux.get("sysctl") or {})  # type: ignore[arg-type]
    make_work_directory(plan, root)
    # Masks come last of the mounts: none of the above may then uncover what they hide.
    rootfs.make_readonly(root, linux.get("readonlyPaths") or [])  # type: ignore[arg-type]
    rootfs.mask(root, linux.get("maskedPaths") or [])  # type: ignore[arg-type]
    rootfs.pivot(root.fd)
    terminal.set_up(plan, root)
    rootfs.finish_root(root, bool(spec_root.get("readonly")), str(linux.get("rootfsPropagation") or ""))
    for fd in (*root.mounts.values(), root.null, root.fd):
        if fd >= 0:
            close(fd)


def make_work_directory(plan: Plan, root: rootfs.Root) -> None:
    """Make a missing work directory, beneath the root, as Docker does."""
    spec: Spec = plan.config["process"]  # type: ignore[assignment]
    with because("the directory to start in exists", "OCI runtime-spec, process.cwd", 5):
        base, rest = rootfs.beneath(root, str(spec.get("cwd") or "/"))
        try:
            close(files.make_directories(base, rest))
        except OSError as error:
            raise RuntimeFailure(f"cannot use work directory {spec.get('cwd')}: {error.strerror}") from None


def build_walls(plan: Plan) -> None:
    spec: Spec = plan.config["process"]  # type: ignore[assignment]
    walls.set_limits(spec)
    walls.build(spec, plan.masks, plan.filter, plan.filter_text, plan.last_capability, leash=True)


def _oom_score(value: int) -> None:
    with because("which process the kernel kills first when memory ends", "proc_pid_oom_score_adj(5)", 1):
        try:
            files.write_file("/proc/self/oom_score_adj", str(value))
        except PermissionError:  # without CAP_SYS_RESOURCE it cannot go below ours
            return


def wait_for_start(plan: Plan) -> None:
    if plan.sock is None or not is_real():
        return
    handshake.send(plan.sock, handshake.READY)
    if handshake.receive(plan.sock) is None:
        os._exit(1)


def execute(plan: Plan) -> None:
    run_program(plan.config["process"])  # type: ignore[arg-type]


def run_program(spec: Spec) -> None:
    """Change to the work directory, find the program and become it. Raises CommandError 126 or 127. Shared with exec."""
    argv, environ = [str(a) for a in spec["args"]], _environment(spec)  # type: ignore[attr-defined]
    cwd = str(spec.get("cwd") or "/")
    if is_real():
        _change_directory(cwd)
    path = find_program(argv[0], environ.get("PATH", DEFAULT_PATH)) if is_real() else argv[0]
    with because("the container's program takes over: from here on everything is its own doing", "execve(2)", 1):
        try:
            process.execve(path, argv, environ)
        except OSError as error:
            raise command_error(argv[0], error) from None


def _environment(spec: Spec) -> dict[str, str]:
    environ = {}
    for entry in spec.get("env") or ():  # type: ignore[attr-defined]
        key, _, value = str(entry).partition("=")
        if key and key not in environ:
            environ[key] = value
    return environ


def _change_directory(cwd: str) -> None:
    try:
        os.chdir(cwd)
    except OSError as error:
        raise CommandError(f"cannot change to work directory {cwd}: {(error.strerror or '').lower()}", 126) from None
    # A descriptor of the host's leaked into here would make a path outside: the kernel says so. CVE-2024-21626
    if not os.getcwd().startswith("/"):
        raise RuntimeFailure(f"cannot change to work directory {cwd}: it is outside the container's root")


def find_program(name: str, path: str) -> str:
    """Return the path to execute, as execvp finds it, inside the container. Raises CommandError: 127 not found, 126 not executable."""
    if "/" in name:
        check_program(name)
        return name
    for directory in path.split(":"):
        candidate = os.path.join(directory or ".", name)
        try:
            info = os.stat(candidate)
        except OSError:
            continue
        if stat.S_ISREG(info.st_mode) and os.access(candidate, os.X_OK):
            check_program(candidate)
            return candidate
    raise CommandError(f"cannot run {name!r}: executable file not found in $PATH", 127)


def check_program(path: str) -> None:
    """Refuse the host's interpreter and magic links as a container's program: that is how a runtime was overwritten. CVE-2019-5736"""
    try:
        fd = files.openat2(-100, path, files.O_PATH, 0, files.RESOLVE_NO_MAGICLINKS)
    except OSError as error:
        if error.errno == 40:
            raise CommandError(f"cannot run {path!r}: it is a magic link of /proc, or a loop of symlinks", 126) from None
        raise command_error(path, error) from None
    info = os.fstat(fd)
    close(fd)
    if (info.st_dev, info.st_ino) == _ourselves:
        raise CommandError(f"cannot run {path!r}: it is the host's own interpreter", 126)


def _own_identity() -> tuple[int, int]:
    info = os.stat(sys.executable) if sys.executable else os.stat("/proc/self/exe")
    return info.st_dev, info.st_ino


_ourselves = _own_identity()


def command_error(name: str, error: OSError) -> CommandError:
    """Word an execve failure as Docker does: 127 for what is not there, 126 for what cannot run."""
    reason = os.strerror(error.errno or 0).lower()
    code = 127 if error.errno in (2, 20) else 126
    if error.errno == 8:
        reason = "exec format error: it is for another architecture, or a script without #!"
    if error.errno in (13, 1):
        reason = "permission denied: is it an executable file?"
    return CommandError(f"cannot run {name!r}: {reason}", code)


STEPS = (
    hide,                # before any namespace with strangers in it is joined
    enter_namespaces,    # cgroups before the cgroup namespace
    furnish,
    build_walls,         # after every mount: they need the capabilities that go now
    wait_for_start,
    execute,
)
