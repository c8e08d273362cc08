"""The options of one mount, split as the kernel wants them. OCI runtime-spec, config.md, "Mounts"; mount(8)."""

from __future__ import annotations

# Attributes of the mount itself: name -> (set, clear) of MOUNT_ATTR_*; numbers as in mount_setattr(2).
_RDONLY, _NOSUID, _NODEV, _NOEXEC, _NOATIME, _STRICTATIME, _NODIRATIME, _NOSYMFOLLOW = 0x1, 0x2, 0x4, 0x8, 0x10, 0x20, 0x80, 0x200000
_ATIME = 0x70
ATTRIBUTES = {
    "ro": (_RDONLY, 0), "rw": (0, _RDONLY), "nosuid": (_NOSUID, 0), "suid": (0, _NOSUID), "nodev": (_NODEV, 0), "dev": (0, _NODEV),
    "noexec": (_NOEXEC, 0), "exec": (0, _NOEXEC), "noatime": (_NOATIME, _ATIME), "atime": (0, _ATIME), "relatime": (0, _ATIME),
    "norelatime": (0, _ATIME), "strictatime": (_STRICTATIME, _ATIME), "nostrictatime": (0, _ATIME), "nodiratime": (_NODIRATIME, 0),
    "diratime": (0, _NODIRATIME), "nosymfollow": (_NOSYMFOLLOW, 0), "symfollow": (0, _NOSYMFOLLOW),
}
PROPAGATION = {
    "private": (1 << 18, False), "rprivate": (1 << 18, True), "slave": (1 << 19, False), "rslave": (1 << 19, True),
    "shared": (1 << 20, False), "rshared": (1 << 20, True), "unbindable": (1 << 17, False), "runbindable": (1 << 17, True),
}
PROC_FILES = frozenset({
    "/proc/cpuinfo", "/proc/diskstats", "/proc/meminfo", "/proc/stat", "/proc/swaps", "/proc/uptime", "/proc/loadavg", "/proc/slabinfo", "/proc/net/dev",
    "/proc/sys/kernel/ns_last_pid", "/proc/sys/crypto/fips_enabled",
})
"""What may be bound over in /proc: figures that nothing of ours depends on, as with runc."""
_IGNORED = frozenset({"defaults", "async", "sync", "bind", "rbind", "loud", "silent", "nolazytime", "norelatime"})


class Options:
    """`set` and `clear` are masks of MOUNT_ATTR_*; `data` the file system's own parameters, (key, value or None)."""

    __slots__ = ("bind", "clear", "data", "propagation", "recursive", "recursive_set", "set")

    def __init__(self, options: list[str]) -> None:
        self.set = self.clear = self.recursive_set = 0
        self.bind = self.recursive = False
        self.data: list[tuple[str, str | None]] = []
        self.propagation: tuple[int, bool] | None = None
        for option in options:
            self._take(option)

    def _take(self, option: str) -> None:
        if option in ("bind", "rbind"):
            self.bind, self.recursive = True, option == "rbind"
        elif option in ATTRIBUTES:
            on, off = ATTRIBUTES[option]
            self.set, self.clear = (self.set & ~off) | on, (self.clear & ~on) | off
        elif option in PROPAGATION:
            self.propagation = PROPAGATION[option]
        elif option.startswith("r") and option[1:] in ATTRIBUTES:  # rro, rnosuid …: the whole tree below
            self.recursive_set |= ATTRIBUTES[option[1:]][0]
        elif option not in _IGNORED and option:
            key, equals, value = option.partition("=")
            self.data.append((key, value if equals else None))
