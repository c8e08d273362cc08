"""One line of a ledger as a value, and what can be read out of its arguments."""

from __future__ import annotations

import errno
import os
from typing import NamedTuple

TYPE_CHECKING = False
if TYPE_CHECKING:
    from utsuwa.explain import Record

TOPICS = {
    1: ("container", "a process with its own view of the machine"),
    2: ("runtime", "the steps every container runtime takes"),
    3: ("image", "the files it starts from"),
    4: ("network", "its own network stack, and the way out"),
    5: ("storage", "what it writes, and what lasts"),
    6: ("security", "the walls around it"),
    7: ("compose", "many containers from one file"),
}
CAPABILITIES = (  # the index is the number in linux/capability.h; setpriv(1) spells them so
    "chown", "dac_override", "dac_read_search", "fowner", "fsetid", "kill", "setgid", "setuid", "setpcap", "linux_immutable", "net_bind_service",
    "net_broadcast", "net_admin", "net_raw", "ipc_lock", "ipc_owner", "sys_module", "sys_rawio", "sys_chroot", "sys_ptrace", "sys_pacct",
    "sys_admin", "sys_boot", "sys_nice", "sys_resource", "sys_time", "sys_tty_config", "mknod", "lease", "audit_write", "audit_control", "setfcap",
    "mac_override", "mac_admin", "syslog", "wake_alarm", "block_suspend", "audit_read", "perfmon", "bpf", "checkpoint_restore",
)


class Line(NamedTuple):
    """A ledger line: `result` is a return value, a negative errno, or None where it was not seen (execve, a plan)."""

    seq: int
    who: str
    topic: int
    call: str
    args: tuple[str | int | None, ...]
    result: int | None
    why: str
    ref: str

    def text(self, index: int) -> str:
        """Return argument `index` as text, "" where it is missing or NULL."""
        value = self.args[index] if index < len(self.args) else None
        return "" if value is None else str(value)

    def number(self, index: int) -> int:
        """Return argument `index` as a number, 0 where it is none."""
        value = self.args[index] if index < len(self.args) else None
        return value if isinstance(value, int) else 0

    def flags(self, index: int) -> list[str]:
        """Return the names in a mask, `MS_REC|MS_SLAVE`."""
        return [name for name in self.text(index).split("|") if name not in ("", "0")]

    @property
    def failed(self) -> bool:
        return self.result is not None and self.result < 0


def line(record: Record) -> Line:
    """Return the value of one parsed ledger line."""
    return Line(
        int(record["seq"]), str(record["who"]), int(record["topic"]), str(record["call"]), tuple(record["args"]),  # type: ignore[arg-type,call-overload]
        record["result"], str(record["why"]), str(record["ref"]),  # type: ignore[arg-type]
    )


def descriptor(shown: str) -> tuple[int, str]:
    """Return number and path of a recorded descriptor, `7</proc>`; (-1, "") for AT_FDCWD."""
    number, _, rest = shown.partition("<")
    return (int(number), rest.removesuffix(">")) if number.isdigit() else (-1, "")


def capability(number: int) -> str:
    """Return the name of a capability as setpriv(1) spells it."""
    return CAPABILITIES[number] if number < len(CAPABILITIES) else f"cap_{number}"


def mask_names(text: str) -> list[str]:
    """Return the capabilities of a recorded mask, `0xa80425fb`."""
    value = int(text, 16)
    return [capability(bit) for bit in range(value.bit_length()) if value >> bit & 1]


def errno_name(result: int) -> str:
    """Return `ENOENT (No such file or directory)` for a negative result."""
    return f"{errno.errorcode.get(-result, str(-result))} ({os.strerror(-result)})"
