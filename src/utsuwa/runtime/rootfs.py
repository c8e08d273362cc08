"""What PID 1 of a container does to its mount namespace, before and after pivot_root. Runs in init: imports nothing after the fork.

Nothing here trusts the image. A path in the container is resolved beneath the root's descriptor (openat2, RESOLVE_IN_ROOT and
RESOLVE_NO_MAGICLINKS), mounts go onto descriptors, and what lies in /proc, /sys and /dev is reached through the descriptors of the
mounts made here, which no file of the image can redirect (CVE-2019-16884, CVE-2021-30465, CVE-2025-31133, CVE-2025-52565, CVE-2025-52881).
"""

from __future__ import annotations

import errno
import os
import stat

from utsuwa.errors import RuntimeFailure
from utsuwa.kernel import files, mount
from utsuwa.kernel.door import close, is_real, label
from utsuwa.ledger import because
from utsuwa.spec.mount import PROC_FILES, Options

TYPE_CHECKING = False
if TYPE_CHECKING:
    from utsuwa.container.cgroup import Groups

    Spec = dict[str, object]

_WHY = {
    "proc": ("the container sees its own processes only: proc shows the pid namespace of whoever mounts it", "pid_namespaces(7)", 1),
    "sysfs": ("hardware may be looked at, not set", "sysfs(5)", 6),
    "tmpfs": ("memory of the container's own, gone with it", "tmpfs(5)", 5),
    "devpts": ("terminals of the container's own: it cannot reach the host's", "devpts, newinstance", 1),
    "mqueue": ("message queues of this IPC namespace", "mq_overview(7)", 1),
    "cgroup": ("the container may see what bounds it, not change it", "cgroup_namespaces(7)", 1),
    "cgroup2": ("the container may see what bounds it, not change it", "cgroup_namespaces(7)", 1),
}
_BIND_WHY = ("a file or directory of the host's, the same on both sides", "mount(8), bind", 5)
_MOST_LINKS = 8
NULL_DEVICE = os.makedev(1, 3)


class Root:
    """The container's root while it is being furnished: its descriptor and those of the mounts made on it.

    `own` are the destinations whose file system was made here: what is bound, a volume above all, may hold whatever its owner put there.
    `bound` are all destinations of binds.
    """

    __slots__ = ("bound", "fd", "in_userns", "mounts", "null", "own")

    def __init__(self, fd: int, in_userns: bool) -> None:
        self.fd, self.in_userns = fd, in_userns
        self.mounts: dict[str, int] = {}
        self.own: set[str] = set()
        self.bound: set[str] = set()
        self.null = -1

    def made_here(self, destination: str) -> int:
        """Return the descriptor of a mount whose file system was made here, -1 where there is none."""
        return self.mounts[destination] if destination in self.own else -1


def attach(root_fd: int, place: str) -> None:
    """Cut propagation to the host, then attach the detached root at `place`, a directory of the engine's."""
    with because("mounts made here must not reach the host; the host's later ones may still come in", "mount_namespaces(7)", 1):
        # First of all: until propagation is cut, every mount below would appear on the host too.
        mount.mount(None, "/", None, mount.MS_REC | mount.MS_SLAVE, None)
    with because("the image's layers plus one writable layer become the container's root", "overlayfs", 3):
        mount.move_mount(root_fd, mount.AT_FDCWD, place)
        # A private root, so that the pivot is allowed and nothing below it propagates. pivot_root(2), EINVAL.
        mount.mount_setattr(root_fd, "", mount.AT_EMPTY_PATH, 0, 0, mount.MS_PRIVATE)
    label(root_fd, "/")


def mount_all(root: Root, mounts: list[Spec], groups: Groups) -> None:
    """Make every mount of config.json, in its order. Raises RuntimeFailure naming the destination."""
    for item in mounts:
        destination, kind = str(item["destination"]), str(item.get("type") or "none")
        options = Options([str(o) for o in item.get("options") or ()])  # type: ignore[attr-defined]
        try:
            if options.bind or kind == "bind":
                with because(*_BIND_WHY):
                    bind(root, str(item["source"]), destination, options)
            elif kind in ("cgroup", "cgroup2"):
                with because(*_WHY[kind]):
                    mount_cgroups(root, destination, options, groups)
            else:
                with because(*_WHY.get(kind, ("a mount that the configuration asks for", "OCI runtime-spec, mounts", 5))):
                    mount_filesystem(root, kind, str(item.get("source") or kind), destination, options)
        except OSError as error:
            raise RuntimeFailure(f"cannot mount {item.get('source') if kind in ('none', 'bind') else kind} on {destination}: {error.strerror}") from None


def make_filesystem(kind: str, source: str, options: Options) -> int:
    """Return a detached mount of a new file system. mount_api: fsopen, fsconfig, fsmount."""
    context = mount.fsopen(kind)
    try:
        if source and source != kind:
            mount.fsconfig(context, mount.FSCONFIG_SET_STRING, "source", source)
        for key, value in options.data:
            mount.fsconfig(context, mount.FSCONFIG_SET_FLAG if value is None else mount.FSCONFIG_SET_STRING, key, value)
        mount.fsconfig(context, mount.FSCONFIG_CMD_CREATE)
        return mount.fsmount(context, options.set)
    finally:
        close(context)


def mount_filesystem(root: Root, kind: str, source: str, destination: str, options: Options) -> None:
    """Mount a new file system of type `kind` on `destination`, made if missing."""
    fd = make_filesystem(kind, source, options)
    target = place(root, destination)
    mount.move_mount(fd, target)
    close(target)
    _keep(root, os.path.normpath(destination), fd)
    root.own.add(os.path.normpath(destination))


def _keep(root: Root, destination: str, fd: int) -> None:
    root.own.discard(destination)
    label(fd, destination)
    if destination in root.mounts:
        close(root.mounts[destination])
    root.mounts[destination] = fd


def place(root: Root, destination: str) -> int:
    """Return an O_PATH descriptor of a directory to mount on, made if missing, resolved beneath the root or a mount made here."""
    base, rest = beneath(root, destination)
    if base == root.made_here("/dev") and "/" not in rest:  # a tmpfs made a moment ago
        try:
            files.mkdirat(base, rest, 0o755)
        except FileExistsError:
            pass
    return files.make_directories(base, rest)


def beneath(root: Root, destination: str) -> tuple[int, str]:
    """Split a path into the descriptor of the innermost mount of ours that holds it, and the rest.

    So /dev/pts is reached through the /dev that was just mounted, even when the image's own /dev is a symlink (CVE-2026-41579).
    """
    path = os.path.normpath("/" + destination.lstrip("/"))
    prefix = path
    while prefix != "/":
        prefix = prefix.rpartition("/")[0] or "/"
        if prefix in root.mounts:
            return root.mounts[prefix], path[len(prefix) + 1:]
    return root.fd, path[1:] or "."


def bind(root: Root, source: str, destination: str, options: Options) -> None:
    """Bind a path of the host, with its attributes, on a target made to match (file or directory)."""
    flags = mount.OPEN_TREE_CLONE | mount.OPEN_TREE_CLOEXEC | (mount.AT_RECURSIVE if options.recursive else 0)
    tree = mount.open_tree(mount.AT_FDCWD, source, flags)
    recursive = mount.AT_RECURSIVE if options.recursive else 0
    if options.set or options.clear:
        mount.mount_setattr(tree, "", mount.AT_EMPTY_PATH, options.set, options.clear)
    if options.recursive_set:
        mount.mount_setattr(tree, "", mount.AT_EMPTY_PATH | mount.AT_RECURSIVE, options.recursive_set)
    kind, deep = options.propagation or (mount.MS_PRIVATE, True)
    mount.mount_setattr(tree, "", mount.AT_EMPTY_PATH | (recursive if deep else 0), 0, 0, kind)
    is_directory = stat.S_ISDIR(os.fstat(tree).st_mode) if is_real() else os.path.isdir(source)
    target = place(root, destination) if is_directory else file_place(root, destination)
    if not is_directory and is_real() and stat.S_ISDIR(os.fstat(target).st_mode):
        raise OSError(errno.EISDIR, "it is a directory there, and a file here; give a file's path, or bind a directory")
    _spare_proc(target, destination)
    mount.move_mount(tree, target)
    close(target)
    root.bound.add(os.path.normpath(destination))
    if is_directory:
        _keep(root, os.path.normpath(destination), tree)
    else:
        close(tree)


def _spare_proc(target: int, destination: str) -> None:
    """Refuse to cover /proc, wherever a symlink of the image may have led: what is written there must reach the kernel. CVE-2019-16884, CVE-2023-28642."""
    path = os.path.normpath(destination)
    if path in PROC_FILES or not is_real():
        return
    if path == "/proc" or path.startswith("/proc/") or files.file_system(target) == files.PROC_SUPER_MAGIC:
        raise OSError(1, f"{destination} is inside /proc, which is the container's own")


def file_place(root: Root, destination: str) -> int:
    """Return an O_PATH descriptor of a file to mount on; an empty one is made if missing, beneath the root only (CVE-2024-45310).

    Where a symlink leads nowhere, it is made there: /etc/resolv.conf of many images points into a /run that is empty.
    """
    path = destination
    for _ in range(_MOST_LINKS):
        base, rest = beneath(root, path)
        if base == root.made_here("/dev") and "/" not in rest:  # a tmpfs made a moment ago
            _make_file(base, rest)
        try:
            return files.openat2(base, rest, files.O_PATH)
        except FileNotFoundError:
            pass
        directory, _, name = rest.rpartition("/")
        parent = files.make_directories(base, directory or ".")
        try:
            if not _make_file(parent, name):  # a dangling symlink: on to its target, which is resolved beneath the root like any path
                path = os.path.join("/", os.path.dirname(path), os.readlink(name, dir_fd=parent))
        finally:
            close(parent)
    raise OSError(40, f"{destination} is a symlink that leads nowhere")


def _make_file(parent: int, name: str) -> bool:
    try:
        files.mknodat(parent, name, stat.S_IFREG | 0o644, 0)
    except FileExistsError:
        return False
    return True


def mount_cgroups(root: Root, destination: str, options: Options, groups: Groups) -> None:
    """Show the container its control groups: cgroup2 where that is all there is, else a tmpfs with one mount a hierarchy."""
    if groups.pure:
        mount_filesystem(root, "cgroup2", "cgroup", destination, options)
        return
    top = Options(["mode=755", "size=64k", "nosuid", "nodev", "noexec"])
    mount_filesystem(root, "tmpfs", "tmpfs", destination, top)
    base = root.mounts[os.path.normpath(destination)]
    for names in groups.v1:
        each = Options([])
        each.set = options.set
        each.data = [("none", None), ("name", names[5:])] if names.startswith("name=") else [(name, None) for name in names.split(",")]
        _mount_group(base, "cgroup", names.removeprefix("name="), each)
    if groups.unified:
        each = Options([])
        each.set = options.set
        _mount_group(base, "cgroup2", "unified", each)
    if options.set & mount.MOUNT_ATTR_RDONLY:
        mount.mount_setattr(base, "", mount.AT_EMPTY_PATH, mount.MOUNT_ATTR_RDONLY)


def _mount_group(base: int, kind: str, name: str, options: Options) -> None:
    fd = make_filesystem(kind, "cgroup", options)
    files.mkdirat(base, name, 0o755)
    target = files.openat2(base, name, files.O_PATH | os.O_DIRECTORY)
    mount.move_mount(fd, target)
    close(target)
    close(fd)


# ------------------------------------------------------------------------------------------------------------------- /dev

LINKS = (("fd", "/proc/self/fd"), ("stdin", "/proc/self/fd/0"), ("stdout", "/proc/self/fd/1"), ("stderr", "/proc/self/fd/2"),
          ("core", "/proc/kcore"), ("ptmx", "pts/ptmx"))
"""`ptmx` leads to the container's own devpts; the rest is what programs expect (OCI runtime-spec, dev symbolic links). core is masked behind it."""


def furnish_dev(root: Root, devices: list[Spec]) -> None:
    """Make the device nodes and links of /dev, where /dev is a tmpfs made here; a volume or a bind of the host's /dev is left as it is."""
    dev = root.made_here("/dev")
    if dev < 0:
        root.null = _null_of_the_host()
        return
    with because("device nodes are the container's own, never the host's", "OCI runtime-spec, default devices", 6):
        for device in devices:
            _make_device(root, dev, device)
        for name, target in LINKS:
            try:
                files.symlinkat(target, dev, name)
            except FileExistsError:
                continue
    root.null = files.openat2(dev, "null", files.O_PATH | os.O_NOFOLLOW)
    if is_real() and os.fstat(root.null).st_rdev != NULL_DEVICE:  # something else was mounted on it
        close(root.null)
        root.null = _null_of_the_host()


def _null_of_the_host() -> int:
    """Return a mount of the host's null device for the masks, read-only: even its owner and mode are not the container's to change."""
    with because("what hides a path is the null device, and nothing that the container was given", "CVE-2025-31133", 6):
        tree = mount.open_tree(mount.AT_FDCWD, os.devnull, mount.OPEN_TREE_CLONE | mount.OPEN_TREE_CLOEXEC)
        if is_real() and os.fstat(tree).st_rdev != NULL_DEVICE:
            raise RuntimeFailure("cannot mask paths: /dev/null of this machine is not the null device")
        mount.mount_setattr(tree, "", mount.AT_EMPTY_PATH, mount.MOUNT_ATTR_RDONLY)
    return tree


def _make_device(root: Root, dev: int, device: Spec) -> None:
    path = str(device["path"])
    base, rest = beneath(root, path)
    if base != dev:
        return
    directory, _, name = rest.rpartition("/")
    parent = files.make_directories(dev, directory) if directory else dev
    mode, major, minor = int(device.get("fileMode", 0o666)), int(device.get("major", 0)), int(device.get("minor", 0))  # type: ignore[call-overload]
    kind = stat.S_IFBLK if device.get("type") == "b" else stat.S_IFCHR
    if root.in_userns:
        # mknod is refused in a user namespace whatever the capabilities (mknod(2), EPERM): the host's own node is bound instead.
        if path not in root.bound:  # the user's own goes before
            bind(root, path, path, Options(["bind"]))
    else:
        try:
            files.mknodat(parent, name, kind | mode, os.makedev(major, minor))
            files.fchmodat(parent, name, mode)
        except FileExistsError:  # a mount of the user's on this node
            pass
    if parent != dev:
        close(parent)


# ------------------------------------------------------------------------------------------------------- masks, read-only

def mask(root: Root, paths: list[str]) -> None:
    """Hide paths: a file under /dev/null, a directory under an empty read-only tmpfs. What is not there is left out."""
    with because("what of the kernel the container could misuse is hidden", "OCI runtime-spec, maskedPaths", 6):
        for path in paths:
            target = _present(root, path)
            if target < 0:
                continue
            if os.path.isdir(path) if not is_real() else stat.S_ISDIR(os.fstat(target).st_mode):
                empty = make_filesystem("tmpfs", "tmpfs", Options(["ro", "nr_blocks=1", "nr_inodes=1"]))
            else:
                empty = mount.open_tree(root.null, "", mount.AT_EMPTY_PATH | mount.OPEN_TREE_CLONE | mount.OPEN_TREE_CLOEXEC)
            mount.move_mount(empty, target)
            close(empty)
            close(target)


def _present(root: Root, path: str) -> int:
    """Return an O_PATH descriptor of what is to be hidden or guarded, -1 where it is not there. A plan asks this machine's own /proc and /sys."""
    if not is_real() and not os.path.exists(path):
        return -1
    base, rest = beneath(root, path)
    try:
        return files.openat2(base, rest, files.O_PATH)
    except (FileNotFoundError, NotADirectoryError, PermissionError):
        return -1


def make_readonly(root: Root, paths: list[str]) -> None:
    """Bind paths onto themselves, read-only. What is not there is left out."""
    with because("settings of the kernel may be read, not changed", "OCI runtime-spec, readonlyPaths", 6):
        for path in paths:
            target = _present(root, path)
            if target < 0:
                continue
            tree = mount.open_tree(target, "", mount.AT_EMPTY_PATH | mount.AT_RECURSIVE | mount.OPEN_TREE_CLONE | mount.OPEN_TREE_CLOEXEC)
            mount.mount_setattr(tree, "", mount.AT_EMPTY_PATH | mount.AT_RECURSIVE, mount.MOUNT_ATTR_RDONLY)
            mount.move_mount(tree, target)
            close(tree)
            close(target)


def write_sysctls(root: Root, values: dict[str, str]) -> None:
    """Set namespaced kernel parameters through the proc mounted here, not by a path of the image (CVE-2025-52881)."""
    proc = root.made_here("/proc")
    if values and proc < 0:
        raise RuntimeFailure("cannot set sysctls: the container has no /proc of its own")
    for key, value in values.items():
        with because(f"the container's own value of {key}", "sysctl(8), namespaces(7)", 6):
            try:
                files.write_file("sys/" + key.replace(".", "/"), str(value), proc)
            except OSError as error:
                raise RuntimeFailure(f"cannot set sysctl {key}: {(error.strerror or '').rpartition(': ')[2]}") from None


# ------------------------------------------------------------------------------------------------------------------ pivot

def pivot(root_fd: int) -> None:
    """Make the root the root, and let the host's tree go. Needs no directory for the old root: both are '.'. pivot_root(2), NOTES."""
    with because("the host's files leave the container's sight for good: unlike chroot there is no way back", "pivot_root(2)", 1):
        look_chdir(root_fd)
        mount.pivot_root(".", ".")
        # The old root now lies on top of the new one; slave first, so that taking it away is not told to the host.
        mount.mount(None, ".", None, mount.MS_SLAVE | mount.MS_REC, None)
        mount.umount2(".", mount.MNT_DETACH)
    if is_real():
        os.chdir("/")


def look_chdir(fd: int) -> None:
    """fchdir(2) in a real process."""
    if is_real():
        os.fchdir(fd)


def finish_root(root: Root, readonly: bool, propagation: str) -> None:
    """Make the root read-only and set its propagation, once nothing more has to be made in it."""
    if readonly:
        with because("the container asked for a root that cannot be written", "--read-only", 5):
            mount.mount_setattr(root.fd, "", mount.AT_EMPTY_PATH, mount.MOUNT_ATTR_RDONLY)
    options = Options([propagation] if propagation else [])
    if options.propagation and options.propagation[0] != mount.MS_PRIVATE:
        kind, deep = options.propagation
        with because("mounts made on the host later come in, as configured", "rootfsPropagation", 5):
            mount.mount_setattr(root.fd, "", mount.AT_EMPTY_PATH | (mount.AT_RECURSIVE if deep else 0), 0, 0, kind)
