"""Capabilities: root's power cut into 41 pieces, and which of them a container keeps. capabilities(7).

Names, numbers, Docker's default fourteen and the arithmetic of `--cap-add` and `--cap-drop`. Leaves out: setting them (kernel/credential.py,
in the order that runtime/ decides).
"""

from __future__ import annotations

from utsuwa.errors import UsageError

NAMES = tuple(f"CAP_{name}" for name in (  # the index is the number in linux/capability.h
    "CHOWN", "DAC_OVERRIDE", "DAC_READ_SEARCH", "FOWNER", "FSETID", "KILL", "SETGID", "SETUID", "SETPCAP", "LINUX_IMMUTABLE",
    "NET_BIND_SERVICE", "NET_BROADCAST", "NET_ADMIN", "NET_RAW", "IPC_LOCK", "IPC_OWNER", "SYS_MODULE", "SYS_RAWIO", "SYS_CHROOT", "SYS_PTRACE",
    "SYS_PACCT", "SYS_ADMIN", "SYS_BOOT", "SYS_NICE", "SYS_RESOURCE", "SYS_TIME", "SYS_TTY_CONFIG", "MKNOD", "LEASE", "AUDIT_WRITE",
    "AUDIT_CONTROL", "SETFCAP", "MAC_OVERRIDE", "MAC_ADMIN", "SYSLOG", "WAKE_ALARM", "BLOCK_SUSPEND", "AUDIT_READ", "PERFMON", "BPF",
    "CHECKPOINT_RESTORE",
))
NUMBERS = {name: number for number, name in enumerate(NAMES)}

DEFAULT = (
    "CAP_CHOWN", "CAP_DAC_OVERRIDE", "CAP_FSETID", "CAP_FOWNER", "CAP_MKNOD", "CAP_NET_RAW", "CAP_SETGID", "CAP_SETUID", "CAP_SETFCAP", "CAP_SETPCAP",
    "CAP_NET_BIND_SERVICE", "CAP_SYS_CHROOT", "CAP_KILL", "CAP_AUDIT_WRITE",
)
"""What Docker leaves a container: enough to install packages and drop to a user, nothing that reaches past its namespaces."""


def last() -> int:
    """Return the highest capability number of the running kernel; that of our table where /proc does not say."""
    try:
        with open("/proc/sys/kernel/cap_last_cap", "rb") as file:
            return int(file.read())
    except (OSError, ValueError):
        return len(NAMES) - 1


def everything() -> list[str]:
    """Return the names that this table and the running kernel know and that are not gone from our own bounding set, in order of number.

    What is gone from ours, on a machine that is itself a container, nobody can give: ALL and --privileged go without it, as in Docker.
    """
    ours = -1
    try:
        with open("/proc/self/status", "rb") as file:
            for line in file:
                if line.startswith(b"CapBnd:"):
                    ours = int(line[7:], 16)
    except (OSError, ValueError):
        pass
    return [name for number, name in enumerate(NAMES[: last() + 1]) if ours >> number & 1]


def normalise(name: str) -> str:
    """Return `CAP_NET_ADMIN` for net_admin, NET_ADMIN or cap_net_admin; `ALL` for all. Raises UsageError: `unknown capability: "FOO"`."""
    upper = name.upper()
    if upper == "ALL":
        return upper
    full = upper if upper.startswith("CAP_") else "CAP_" + upper
    if full not in NUMBERS:
        raise UsageError(f'unknown capability: "{name}"')
    return full


def resolve(add: list[str], drop: list[str], privileged: bool = False) -> list[str]:
    """Return the capabilities a container keeps, as Docker computes them.

    `--cap-add ALL` starts from all that the kernel has, `--cap-drop ALL` from none; then what is added is added and what is dropped is dropped.
    With both ALL, or a name both added and dropped, Docker's answers hold: `add ALL` is asked first, and an explicit name in `add` survives
    `drop ALL` but not its own drop. Privileged means everything, whatever else is said. Raises UsageError for a name that does not exist.
    """
    added, dropped = [normalise(name) for name in add], [normalise(name) for name in drop]
    if privileged:
        return everything()
    if "ALL" in added:
        return [name for name in everything() if name not in dropped]
    if "ALL" in dropped:
        return _unique([name for name in added if name != "ALL"])
    return _unique([name for name in DEFAULT if name not in dropped] + added)


def _unique(names: list[str]) -> list[str]:
    return list(dict.fromkeys(names))


def mask(names: list[str] | tuple[str, ...]) -> int:
    """Return the 64-bit mask that capset(2) wants. Raises UsageError for a name that does not exist."""
    value = 0
    for name in names:
        value |= 1 << NUMBERS[normalise(name)]
    return value


def names(value: int) -> list[str]:
    """Return the names of a mask, the numbers beyond our table as CAP_41 and so on; the inverse of `mask`."""
    return [NAMES[bit] if bit < len(NAMES) else f"CAP_{bit}" for bit in range(value.bit_length()) if value >> bit & 1]
