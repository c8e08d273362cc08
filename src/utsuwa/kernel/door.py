"""The one crossing into the kernel: errno becomes OSError, every call lands in the ledger, faults strike here.

Three backends behind one switch: `real`; `recording` (unit tests look at `recorded`, nothing happens); `dry` (the ledger gets the
plan with result null, nothing happens). Backends that do nothing hand out made-up descriptors from FAKE upward.

Leaves out: which call means what (the modules beside it), and reading, which needs no reason (`look`).
"""

from __future__ import annotations

import os

from utsuwa import ledger
from utsuwa.kernel import ffi as ctypes

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from utsuwa.ledger import Argument

FAKE = 1000
"""First made-up descriptor of the backends that do nothing."""

libc = ctypes.CDLL(None, use_errno=True)
libc.syscall.restype = ctypes.c_long

recorded: list[tuple[str, tuple[Argument, ...]]] = []
labels: dict[int, str] = {}
_mode = "real"
_next_fake = FAKE


def use_backend(mode: str) -> None:
    """Switch the whole process: "real", "recording" or "dry". Clears what was recorded."""
    global _mode, _next_fake
    if mode not in ("real", "recording", "dry"):
        raise ValueError(mode)
    _mode, _next_fake = mode, FAKE
    recorded.clear()


def is_real() -> bool:
    """Whether calls reach the kernel."""
    return _mode == "real"


def show(descriptor: int) -> str:
    """Return how a descriptor is recorded: `7</proc>`, as strace -y shows it, or AT_FDCWD."""
    if descriptor == -100:
        return "AT_FDCWD"
    label = labels.get(descriptor)
    return f"{descriptor}<{label}>" if label is not None else str(descriptor)


def label(descriptor: int, path: str) -> int:
    """Say which path a descriptor stands for; returns the descriptor."""
    labels[descriptor] = path
    return descriptor


def close(descriptor: int) -> None:
    """close(2), and forget its label. Never raises for a made-up descriptor."""
    labels.pop(descriptor, None)
    if _mode == "real" or descriptor < FAKE:
        os.close(descriptor)


def _pretend(call: str, shown: tuple[Argument, ...], opens: bool) -> int:
    global _next_fake
    recorded.append((call, shown))
    ledger.record(call, shown, None)
    if not opens:
        return 0
    _next_fake += 1
    return _next_fake


def call_libc(call: str, shown: tuple[Argument, ...], what: object, function: Callable[..., int], *arguments: object, opens: bool = False) -> int:
    """Make one state-changing call through a ctypes function.

    `shown` is what the ledger says of the arguments, `what` the object the error names, `opens` whether it returns a descriptor.
    Raises OSError(errno, "call what: reason").
    """
    if _mode != "real":
        return _pretend(call, shown, opens)
    ledger.fault(call)
    result = function(*arguments)
    if result < 0:
        number = ctypes.get_errno()
        ledger.record(call, shown, -number)
        raise OSError(number, f"{call} {what}: {os.strerror(number).lower()}")
    ledger.record(call, shown, result)
    return result


def call_os(call: str, shown: tuple[Argument, ...], what: object, function: Callable[..., object], *arguments: object, opens: bool = False) -> int:
    """Make one state-changing call through a function of `os` that raises OSError itself. Returns its int result, or 0."""
    if _mode != "real":
        return _pretend(call, shown, opens)
    ledger.fault(call)
    try:
        result = function(*arguments)
    except OSError as error:
        number = error.errno or 0
        ledger.record(call, shown, -number)
        raise OSError(number, f"{call} {what}: {os.strerror(number).lower()}") from None
    value = result if isinstance(result, int) else 0
    ledger.record(call, shown, value)
    return value


def announce(call: str, shown: tuple[Argument, ...]) -> bool:
    """Record the intent of a call that does not return to us (execve, fork). Returns whether to go on and make it."""
    if _mode != "real":
        recorded.append((call, shown))
        ledger.record(call, shown, None)
        return False
    ledger.fault(call)
    ledger.record(call, shown, None)
    return True


def look(function: Callable[..., int], *arguments: object, what: object = "") -> int:
    """Make a call that only looks or opens: not recorded. Made-up descriptor where the backend does nothing. Raises OSError."""
    global _next_fake
    if _mode != "real":
        _next_fake += 1
        return _next_fake
    result = function(*arguments)
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{what}: {os.strerror(number).lower()}")
    return result


def flag_names(value: int, table: dict[str, int]) -> str:
    """Return the names of a bit mask, `MS_RDONLY|MS_NOSUID`, as a manual page writes them; 0 is "0"."""
    if not value:
        return "0"
    names = []
    for name, bits in table.items():
        if bits and value & bits == bits:
            names.append(name)
            value &= ~bits
    if value:
        names.append(hex(value))
    return "|".join(names)


# ---- system calls without a wrapper in every libc: one prototype, numbers by architecture

_MACHINE = os.uname().machine
_SAME_EVERYWHERE = {  # asm-generic/unistd.h: all architectures share the numbers from 424 up
    "open_tree": 428, "move_mount": 429, "fsopen": 430, "fsconfig": 431, "fsmount": 432, "fspick": 433, "pidfd_open": 434,
    "clone3": 435, "close_range": 436, "openat2": 437, "mount_setattr": 442, "pidfd_send_signal": 424,
}
_BY_MACHINE = {
    "x86_64": {"pivot_root": 155, "seccomp": 317, "rt_sigaction": 13, "bpf": 321},
    "aarch64": {"pivot_root": 41, "seccomp": 277, "rt_sigaction": 134, "bpf": 280},
}
SYSCALLS: dict[str, int] = {**_SAME_EVERYWHERE, **_BY_MACHINE.get(_MACHINE, {})}


def syscall(name: str) -> Callable[..., int]:
    """Return a function that makes the named system call; integers are passed as 64-bit. Raises KeyError for an unknown machine."""
    number = ctypes.c_long(SYSCALLS[name])
    raw = libc.syscall

    def call(*arguments: object) -> int:
        return int(raw(number, *[ctypes.c_long(a) if isinstance(a, int) else a for a in arguments]))

    return call


def prototype(name: str, *argtypes: object) -> Callable[..., int]:
    """Bind a libc function's argument types once and return it. Raises AttributeError where libc has none."""
    function = getattr(libc, name)
    function.argtypes = argtypes
    function.restype = ctypes.c_int
    return function  # type: ignore[no-any-return]
