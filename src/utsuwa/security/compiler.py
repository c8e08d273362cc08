"""From OCI's `linux.seccomp` object to the kernel's BPF, through libseccomp. Off the hot path: seccomp.py keeps what comes out.

libseccomp does not know the newest system calls. A filter would answer EPERM to them, and a C library that expects ENOSYS from an old
kernel would break instead of falling back. So a few instructions of ours come first: calls that the profile names and only the
table below knows get the profile's answer; calls newer than everything the profile names get ENOSYS (as runc does).
"""

from __future__ import annotations

import ctypes
import os
from typing import Any

from utsuwa.errors import DependencyMissing, SpecError

ACTIONS = {
    "SCMP_ACT_KILL": 0x00000000, "SCMP_ACT_KILL_THREAD": 0x00000000, "SCMP_ACT_KILL_PROCESS": 0x80000000, "SCMP_ACT_TRAP": 0x00030000,
    "SCMP_ACT_ERRNO": 0x00050000, "SCMP_ACT_TRACE": 0x7FF00000, "SCMP_ACT_ALLOW": 0x7FFF0000, "SCMP_ACT_LOG": 0x7FFC0000, "SCMP_ACT_NOTIFY": 0x7FC00000,
}
OPERATORS = {
    "SCMP_CMP_NE": 1, "SCMP_CMP_LT": 2, "SCMP_CMP_LE": 3, "SCMP_CMP_EQ": 4, "SCMP_CMP_GE": 5, "SCMP_CMP_GT": 6, "SCMP_CMP_MASKED_EQ": 7,
}
AUDIT_ARCH = {
    "SCMP_ARCH_X86_64": 0xC000003E, "SCMP_ARCH_X86": 0x40000003, "SCMP_ARCH_AARCH64": 0xC00000B7, "SCMP_ARCH_ARM": 0x40000028,
}
"""Where the newest calls have the numbers of the table below; elsewhere libseccomp's word is final."""
NEWEST = {  # asm-generic/unistd.h; libseccomp 2.5.4 ends at 450
    "cachestat": 451, "fchmodat2": 452, "map_shadow_stack": 453, "futex_wake": 454, "futex_wait": 455, "futex_requeue": 456, "statmount": 457,
    "listmount": 458, "lsm_get_self_attr": 459, "lsm_set_self_attr": 460, "lsm_list_modules": 461, "mseal": 462, "setxattrat": 463,
    "getxattrat": 464, "listxattrat": 465, "removexattrat": 466, "open_tree_attr": 467, "file_getattr": 468, "file_setattr": 469,
}
_ONLY_X86_64 = {"uretprobe": 335, "uprobe": 336}
_X32_BIT = 0x40000000
_EPERM, _ENOSYS, _EACCES, _EDOM, _EEXIST = 1, 38, 13, 33, 17
_CTL_NNP, _CTL_OPTIMIZE = 3, 8
_BINARY_TREE = 2
_LD_W_ABS, _JEQ, _JGT, _JGE, _RET = 0x20, 0x15, 0x25, 0x35, 0x06


class _ArgCmp(ctypes.Structure):
    """struct scmp_arg_cmp."""

    _fields_ = (("arg", ctypes.c_uint), ("op", ctypes.c_int), ("datum_a", ctypes.c_uint64), ("datum_b", ctypes.c_uint64))


def _library() -> ctypes.CDLL:
    try:
        lib = ctypes.CDLL("libseccomp.so.2")
    except OSError:
        raise DependencyMissing("cannot compile the seccomp filter: libseccomp.so.2 is not installed; install the package libseccomp2") from None
    pointer, number, text = ctypes.c_void_p, ctypes.c_uint32, ctypes.c_char_p
    lib.seccomp_init.argtypes, lib.seccomp_init.restype = (number,), pointer
    lib.seccomp_release.argtypes, lib.seccomp_release.restype = (pointer,), None
    lib.seccomp_attr_set.argtypes = (pointer, ctypes.c_int, number)
    lib.seccomp_arch_resolve_name.argtypes, lib.seccomp_arch_resolve_name.restype = (text,), number
    lib.seccomp_arch_add.argtypes = lib.seccomp_arch_remove.argtypes = (pointer, number)
    lib.seccomp_arch_native.restype = number
    lib.seccomp_syscall_resolve_name_arch.argtypes = (number, text)
    lib.seccomp_rule_add_array.argtypes = (pointer, number, ctypes.c_int, ctypes.c_uint, ctypes.POINTER(_ArgCmp))
    lib.seccomp_export_bpf.argtypes = (pointer, ctypes.c_int)
    return lib


def action(name: object, errno: object, where: str) -> int:
    """Return libseccomp's (and the kernel's) value of an action; ERRNO and TRACE carry `errno`, EPERM unless it is given. Raises SpecError."""
    if not isinstance(name, str) or name not in ACTIONS:
        raise SpecError(f"linux.seccomp.{where}: unknown action {name}")
    if name not in ("SCMP_ACT_ERRNO", "SCMP_ACT_TRACE"):
        if errno:
            raise SpecError(f"linux.seccomp.{where}: errnoRet has no meaning with {name}")
        return ACTIONS[name]
    value = _EPERM if errno is None else errno
    if not isinstance(value, int) or not 0 <= value <= 0xFFFF:
        raise SpecError(f"linux.seccomp.{where}: errnoRet must be 0 to 65535, not {value!r}")
    return ACTIONS[name] | value


def compile(seccomp: dict[str, Any]) -> bytes:  # noqa: A001 - what it does
    """Return the BPF program (struct sock_filter[], 8 bytes each) for a `linux.seccomp` object.

    Raises SpecError naming what is wrong in the object, DependencyMissing without libseccomp. seccomp_init(3), seccomp_export_bpf(3)
    """
    default = action(seccomp.get("defaultAction"), seccomp.get("defaultErrnoRet"), "defaultAction")
    lib = _library()
    context = lib.seccomp_init(default)
    if not context:
        raise SpecError("linux.seccomp.defaultAction: libseccomp refuses it")
    try:
        # We load the program ourselves, before or after no_new_privs as the container wants it: libseccomp shall not set it.
        lib.seccomp_attr_set(context, _CTL_NNP, 0)
        # A tree of comparisons: the kernel walks the filter once for every call number when it is loaded, so length costs start time.
        lib.seccomp_attr_set(context, _CTL_OPTIMIZE, _BINARY_TREE)
        architectures = _add_architectures(lib, context, seccomp.get("architectures") or [])
        for place, call in enumerate(seccomp.get("syscalls") or []):
            _add_call(lib, context, call, default, f"syscalls[{place}]")
        body = _export(lib, context)
    finally:
        lib.seccomp_release(context)
    return _newest(lib, seccomp, default, architectures) + body


def _add_architectures(lib: ctypes.CDLL, context: int, names: list[str]) -> list[tuple[str, int]]:
    """Make the filter's architectures exactly `names` (the native one where none is named). Returns (name, libseccomp's token)."""
    found: list[tuple[str, int]] = []
    for name in names:
        token = lib.seccomp_arch_resolve_name(str(name).removeprefix("SCMP_ARCH_").lower().encode())
        if not token:
            raise SpecError(f"linux.seccomp.architectures: unknown architecture {name}")
        result = lib.seccomp_arch_add(context, token)
        if result < 0 and result != -_EEXIST:
            raise SpecError(f"linux.seccomp.architectures: {name} cannot be added: {os.strerror(-result).lower()}")
        found.append((name, token))
    native = lib.seccomp_arch_native()
    if not found:
        found = [(name, token) for name in AUDIT_ARCH if (token := lib.seccomp_arch_resolve_name(name[10:].lower().encode())) == native]
    elif native not in [token for _, token in found]:
        lib.seccomp_arch_remove(context, native)
    return found


def _add_call(lib: ctypes.CDLL, context: int, call: dict[str, Any], default: int, where: str) -> None:
    """Add one entry: each name with all the conditions at once; where one argument has several, each is a rule of its own (any of them)."""
    value = action(call.get("action"), call.get("errnoRet"), where + ".action")
    if value == default:  # libseccomp refuses rules that say nothing
        return
    conditions = [_condition(argument, f"{where}.args[{place}]") for place, argument in enumerate(call.get("args") or [])]
    indices = [condition.arg for condition in conditions]
    groups = [[condition] for condition in conditions] if len(set(indices)) < len(indices) else [conditions]
    for name in call.get("names") or []:
        number = lib.seccomp_syscall_resolve_name_arch(lib.seccomp_arch_native(), str(name).encode())
        if number == -1:  # __NR_SCMP_ERROR: newer than libseccomp (see _newest), or of no architecture of ours
            continue
        for group in groups:
            array = (_ArgCmp * len(group))(*group)
            result = lib.seccomp_rule_add_array(context, value, number, len(group), array)
            if result < 0 and result not in (-_EDOM, -_EEXIST):  # EDOM: the architecture does not have it
                raise SpecError(f"linux.seccomp.{where}: {name} cannot be added: {os.strerror(-result).lower()}")


def _condition(argument: dict[str, Any], where: str) -> _ArgCmp:
    index, operator, value, second = argument.get("index"), argument.get("op"), argument.get("value"), argument.get("valueTwo", 0)
    if operator not in OPERATORS:
        raise SpecError(f"linux.seccomp.{where}.op: unknown operator {operator}")
    if not isinstance(index, int) or not 0 <= index <= 5:
        raise SpecError(f"linux.seccomp.{where}.index: must be 0 to 5, not {index!r}")
    if not all(isinstance(number, int) and 0 <= number < 1 << 64 for number in (value, second)):
        raise SpecError(f"linux.seccomp.{where}.value: must be an unsigned 64-bit number")
    return _ArgCmp(index, OPERATORS[operator], value, second)


def _export(lib: ctypes.CDLL, context: int) -> bytes:
    fd = os.memfd_create("seccomp", os.MFD_CLOEXEC)
    try:
        result = lib.seccomp_export_bpf(context, fd)
        if result < 0:
            raise SpecError(f"linux.seccomp: libseccomp cannot compile the profile: {os.strerror(-result).lower()}")
        return os.pread(fd, os.fstat(fd).st_size, 0)
    finally:
        os.close(fd)


# ---------------------------------------------------------------------------------------------------------------- what libseccomp does not know


def instruction(code: int, jump_true: int, jump_false: int, value: int) -> bytes:
    """Return one struct sock_filter. Jumps count instructions from the next one. bpf(2), classic."""
    return code.to_bytes(2, "little") + bytes((jump_true, jump_false)) + value.to_bytes(4, "little")


def _newest(lib: ctypes.CDLL, seccomp: dict[str, Any], default: int, architectures: list[tuple[str, int]]) -> bytes:
    """Return the instructions before libseccomp's: one block for each architecture, skipped by the others."""
    program = b""
    for name, token in architectures:
        if name not in AUDIT_ARCH:
            continue
        answers, highest = _unknown(lib, seccomp, name, token)
        block = b"".join(instruction(_JEQ, 0, 1, number) + instruction(_RET, 0, 0, value) for number, value in answers.items())
        if highest and default & 0xFFFF0000 not in (ACTIONS["SCMP_ACT_ALLOW"], ACTIONS["SCMP_ACT_LOG"], ACTIONS["SCMP_ACT_TRACE"], ACTIONS["SCMP_ACT_NOTIFY"]):
            block += instruction(_JGT, 0, 1, highest) + instruction(_RET, 0, 0, ACTIONS["SCMP_ACT_ERRNO"] | _ENOSYS)
        if block:
            # x32 shares x86_64's architecture, told by a bit in the number: its calls are left to libseccomp.
            block = instruction(_LD_W_ABS, 0, 0, 0) + instruction(_JGE, len(block) // 8, 0, _X32_BIT) + block
            program += instruction(_LD_W_ABS, 0, 0, 4) + instruction(_JEQ, 0, len(block) // 8, AUDIT_ARCH[name]) + block
    return program


def _unknown(lib: ctypes.CDLL, seccomp: dict[str, Any], arch: str, token: int) -> tuple[dict[int, int], int]:
    """Return {number: action} for the profile's calls that only our table knows, and the highest number the profile names."""
    ours = {**NEWEST, **(_ONLY_X86_64 if arch == "SCMP_ARCH_X86_64" else {})}
    answers: dict[int, int] = {}
    highest = 0
    for place, call in enumerate(seccomp.get("syscalls") or []):
        for name in call.get("names") or []:
            number = lib.seccomp_syscall_resolve_name_arch(token, str(name).encode())
            if number < 0 and name in ours:
                number = ours[name]
                if not call.get("args"):  # a condition on a call this new would be skipped: refused, the safe side
                    answers.setdefault(number, action(call.get("action"), call.get("errnoRet"), f"syscalls[{place}].action"))
            highest = max(highest, number)
    return answers, highest
