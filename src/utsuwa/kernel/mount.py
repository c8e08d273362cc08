"""Mounts: mount(2), umount2(2), pivot_root(2) and the descriptor-based calls of mount_api (fsopen … mount_setattr)."""

from __future__ import annotations

import os

from utsuwa.kernel import ffi as ctypes
from utsuwa.kernel.door import SYSCALLS, call_libc, flag_names, label, labels, libc, prototype, show

AT_FDCWD, AT_EMPTY_PATH, AT_RECURSIVE, AT_SYMLINK_NOFOLLOW, AT_NO_AUTOMOUNT = -100, 0x1000, 0x8000, 0x100, 0x800
OPEN_TREE_CLONE, OPEN_TREE_CLOEXEC = 1, os.O_CLOEXEC
FSOPEN_CLOEXEC = FSMOUNT_CLOEXEC = 1
FSCONFIG_SET_FLAG, FSCONFIG_SET_STRING, FSCONFIG_SET_FD, FSCONFIG_CMD_CREATE = 0, 1, 5, 6
MOVE_MOUNT_F_EMPTY_PATH, MOVE_MOUNT_T_EMPTY_PATH = 0x4, 0x40
MNT_DETACH, UMOUNT_NOFOLLOW = 2, 8
MOUNT_ATTR_RDONLY, MOUNT_ATTR_NOSUID, MOUNT_ATTR_NODEV, MOUNT_ATTR_NOEXEC = 0x1, 0x2, 0x4, 0x8
MOUNT_ATTR_NOATIME, MOUNT_ATTR_STRICTATIME, MOUNT_ATTR_NODIRATIME, MOUNT_ATTR_IDMAP, MOUNT_ATTR_NOSYMFOLLOW = 0x10, 0x20, 0x80, 0x100000, 0x200000
MS_REC, MS_UNBINDABLE, MS_PRIVATE, MS_SLAVE, MS_SHARED = 0x4000, 1 << 17, 1 << 18, 1 << 19, 1 << 20

ATTRIBUTES = {
    "MOUNT_ATTR_RDONLY": 0x1, "MOUNT_ATTR_NOSUID": 0x2, "MOUNT_ATTR_NODEV": 0x4, "MOUNT_ATTR_NOEXEC": 0x8, "MOUNT_ATTR_NOATIME": 0x10,
    "MOUNT_ATTR_STRICTATIME": 0x20, "MOUNT_ATTR_NODIRATIME": 0x80, "MOUNT_ATTR_IDMAP": 0x100000, "MOUNT_ATTR_NOSYMFOLLOW": 0x200000,
}
_MS = {
    "MS_RDONLY": 1, "MS_NOSUID": 2, "MS_NODEV": 4, "MS_NOEXEC": 8, "MS_REMOUNT": 32, "MS_BIND": 4096, "MS_REC": MS_REC,
    "MS_UNBINDABLE": MS_UNBINDABLE, "MS_PRIVATE": MS_PRIVATE, "MS_SLAVE": MS_SLAVE, "MS_SHARED": MS_SHARED,
}
_TREE = {"OPEN_TREE_CLONE": 1, "OPEN_TREE_CLOEXEC": OPEN_TREE_CLOEXEC, "AT_EMPTY_PATH": AT_EMPTY_PATH, "AT_RECURSIVE": AT_RECURSIVE,
         "AT_SYMLINK_NOFOLLOW": AT_SYMLINK_NOFOLLOW}
_MOVE = {"MOVE_MOUNT_F_EMPTY_PATH": 4, "MOVE_MOUNT_T_EMPTY_PATH": 0x40}
_UMOUNT = {"MNT_DETACH": 2, "UMOUNT_NOFOLLOW": 8}

_mount = prototype("mount", ctypes.c_char_p, ctypes.c_char_p, ctypes.c_char_p, ctypes.c_ulong, ctypes.c_char_p)
_umount2 = prototype("umount2", ctypes.c_char_p, ctypes.c_int)
_syscall = libc.syscall
_long = ctypes.c_long


class _MountAttr(ctypes.Structure):
    """struct mount_attr of mount_setattr(2): four 64-bit fields."""

    _fields_ = (("attr_set", ctypes.c_uint64), ("attr_clr", ctypes.c_uint64), ("propagation", ctypes.c_uint64), ("userns_fd", ctypes.c_uint64))


def _bytes(path: str | None) -> bytes | None:
    return None if path is None else os.fsencode(path)


def mount(source: str | None, target: str, fstype: str | None, flags: int, data: str | None) -> None:
    """Attach a file system or change one. `flags` is a bit mask of MS_*. Raises OSError naming the target. mount(2)."""
    call_libc("mount", (source, target, fstype, flag_names(flags, _MS), data), target, _mount, _bytes(source), _bytes(target), _bytes(fstype), flags, _bytes(data))


def umount2(target: str, flags: int) -> None:
    """Detach a mount. Raises OSError naming it. umount2(2)."""
    call_libc("umount2", (target, flag_names(flags, _UMOUNT)), target, _umount2, _bytes(target), flags)


def pivot_root(new_root: str, put_old: str) -> None:
    """Make `new_root` the root of this mount namespace. Raises OSError. pivot_root(2)."""
    call_libc("pivot_root", (new_root, put_old), new_root, _syscall, _long(SYSCALLS["pivot_root"]), _bytes(new_root), _bytes(put_old))


def open_tree(dirfd: int, path: str, flags: int) -> int:
    """Return a descriptor of a mount, or with OPEN_TREE_CLONE of a detached copy of it. Raises OSError naming it. open_tree(2)."""
    name = path or labels.get(dirfd, "")
    fd = call_libc("open_tree", (show(dirfd), path, flag_names(flags, _TREE)), name, _syscall, _long(SYSCALLS["open_tree"]), _long(dirfd), _bytes(path), _long(flags), opens=True)
    return label(fd, name)


def move_mount(from_fd: int, to_fd: int, to_path: str = "") -> None:
    """Attach the mount that `from_fd` stands for, on `to_fd` itself or on `to_path` beneath it. Raises OSError. move_mount(2)."""
    flags = MOVE_MOUNT_F_EMPTY_PATH | (0 if to_path else MOVE_MOUNT_T_EMPTY_PATH)
    what = to_path or labels.get(to_fd, "")
    call_libc("move_mount", (show(from_fd), "", show(to_fd), to_path, flag_names(flags, _MOVE)), what, _syscall, _long(SYSCALLS["move_mount"]), _long(from_fd), b"", _long(to_fd), _bytes(to_path), _long(flags))


def fsopen(fstype: str) -> int:
    """Open a configuration context for a new file system of this type. Raises OSError. fsopen(2)."""
    fd = call_libc("fsopen", (fstype, "FSOPEN_CLOEXEC"), fstype, _syscall, _long(SYSCALLS["fsopen"]), os.fsencode(fstype), _long(FSOPEN_CLOEXEC), opens=True)
    return label(fd, fstype)


def fsconfig(fd: int, command: int, key: str | None = None, value: str | None = None, aux: int = 0) -> None:
    """Set one parameter (FSCONFIG_SET_FLAG, _STRING, _FD) or create the superblock (FSCONFIG_CMD_CREATE). Raises OSError. fsconfig(2)."""
    name = {0: "FSCONFIG_SET_FLAG", 1: "FSCONFIG_SET_STRING", 5: "FSCONFIG_SET_FD", 6: "FSCONFIG_CMD_CREATE"}.get(command, str(command))
    shown_aux = show(aux) if command == FSCONFIG_SET_FD else aux
    what = f"{labels.get(fd, fd)} {key + '=' + value if key and value else key or 'create'}"
    call_libc("fsconfig", (show(fd), name, key, value, shown_aux), what, _syscall, _long(SYSCALLS["fsconfig"]), _long(fd), _long(command), _bytes(key), _bytes(value), _long(aux))


def fsmount(fd: int, attributes: int) -> int:
    """Return a descriptor of a detached mount of the configured file system. `attributes` is a mask of MOUNT_ATTR_*. fsmount(2)."""
    shown = (show(fd), "FSMOUNT_CLOEXEC", flag_names(attributes, ATTRIBUTES))
    name = labels.get(fd, str(fd))
    return label(call_libc("fsmount", shown, name, _syscall, _long(SYSCALLS["fsmount"]), _long(fd), _long(FSMOUNT_CLOEXEC), _long(attributes), opens=True), name)


def mount_setattr(fd: int, path: str, flags: int, attr_set: int, attr_clr: int = 0, propagation: int = 0, userns_fd: int = 0) -> None:
    """Change attributes or propagation of a mount; AT_RECURSIVE in `flags` takes the tree. Raises OSError. mount_setattr(2)."""
    attr = _MountAttr(attr_set, attr_clr, propagation, userns_fd)
    shown = (show(fd), path, flag_names(flags, _TREE), flag_names(attr_set, ATTRIBUTES), flag_names(attr_clr, ATTRIBUTES), flag_names(propagation, _MS))
    what = path or labels.get(fd, str(fd))
    call_libc("mount_setattr", shown, what, _syscall, _long(SYSCALLS["mount_setattr"]), _long(fd), _bytes(path), _long(flags), ctypes.byref(attr), _long(ctypes.sizeof(attr)))
