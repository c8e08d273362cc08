"""Device programs of control groups: where there is no v1 devices controller, a few instructions of eBPF say which device may be opened.

`device_program` compiles rules (OCI linux.resources.devices) to instructions, and is pure; `load` and `attach` are the two kernel calls. The kernel
drops the program with the group. bpf(2), BPF_PROG_TYPE_CGROUP_DEVICE; Documentation/bpf/standardization/instruction-set.
"""

from __future__ import annotations

from _struct import pack

from utsuwa.kernel import ffi as ctypes
from utsuwa.kernel.door import SYSCALLS, call_libc, libc, show

BPF_PROG_LOAD, BPF_PROG_ATTACH = 5, 8
BPF_PROG_TYPE_CGROUP_DEVICE, BPF_CGROUP_DEVICE, BPF_F_ALLOW_MULTI = 15, 6, 2
TYPES = {"b": 1, "c": 2}
ACCESS = {"m": 1, "r": 2, "w": 4}
_LOAD_WORD, _COPY, _AND, _SHIFT, _UNEQUAL, _SET, _EXIT = 0x61, 0xBF, 0x57, 0x77, 0x55, 0xB7, 0x95
_RESULT, _CONTEXT, _TYPE, _ACCESS, _MAJOR, _MINOR = 0, 1, 2, 3, 4, 5  # registers


def _instruction(code: int, register: int, *, source: int = 0, offset: int = 0, value: int = 0) -> bytes:
    return pack("<BBhi", code, source << 4 | register, offset, value)


def device_program(rules: list[dict[str, object]]) -> bytes:
    """Return the instructions for OCI device rules, of which the last that fits decides; what none fits is refused.

    The context is struct bpf_cgroup_dev_ctx: access << 16 | type, major, minor, 32 bits each.
    """
    code = [
        _instruction(_LOAD_WORD, _TYPE, source=_CONTEXT, offset=0), _instruction(_COPY, _ACCESS, source=_TYPE),
        _instruction(_AND, _TYPE, value=0xFFFF), _instruction(_SHIFT, _ACCESS, value=16),
        _instruction(_LOAD_WORD, _MAJOR, source=_CONTEXT, offset=4), _instruction(_LOAD_WORD, _MINOR, source=_CONTEXT, offset=8),
    ]
    for rule in reversed(rules):
        code += _rule(rule)
        if not _tests(rule):  # it decides all: what follows is never reached, and the kernel refuses such code
            return b"".join(code)
    return b"".join([*code, *_answer(0)])


def _answer(allow: int) -> list[bytes]:
    return [_instruction(_SET, _RESULT, value=allow), _instruction(_EXIT, 0)]


def _tests(rule: dict[str, object]) -> list[tuple[list[bytes], int, int]]:
    """Return what a rule looks at: instructions that go before, the register, what it must be."""
    kind, access = str(rule.get("type") or "a"), sum(ACCESS[letter] for letter in str(rule.get("access") or "rwm"))
    tests: list[tuple[list[bytes], int, int]] = []
    if kind != "a":
        tests.append(([], _TYPE, TYPES[kind]))
    if access != 7:  # all of what is wanted is in the rule's letters: nothing is left without them
        tests.append(([_instruction(_COPY, _CONTEXT, source=_ACCESS), _instruction(_AND, _CONTEXT, value=7 & ~access)], _CONTEXT, 0))
    for key, register in (("major", _MAJOR), ("minor", _MINOR)):
        if rule.get(key) not in (None, -1):
            tests.append(([], register, int(rule[key])))  # type: ignore[call-overload]
    return tests


def _rule(rule: dict[str, object]) -> list[bytes]:
    """Return the tests of one rule, each of which jumps past it, and its answer."""
    tests, answer = _tests(rule), _answer(int(bool(rule.get("allow"))))
    lengths = [len(before) + 1 for before, _, _ in tests]
    code = []
    for number, (before, register, value) in enumerate(tests):
        code += [*before, _instruction(_UNEQUAL, register, offset=sum(lengths[number + 1:]) + len(answer), value=value)]
    return [*code, *answer]


def load(program: bytes, text: str) -> int:
    """Load a device program; returns its descriptor. `text` says what it does. Raises OSError. bpf(2)."""
    code, license_ = ctypes.c_char_p(program), ctypes.c_char_p(b"Apache-2.0")
    attributes = ctypes.c_char_p(pack("<IIQQIIQII", BPF_PROG_TYPE_CGROUP_DEVICE, len(program) // 8, _address(code), _address(license_), 0, 0, 0, 0, 0))
    return call_libc("bpf", ("BPF_PROG_LOAD", "BPF_PROG_TYPE_CGROUP_DEVICE", text), text, _bpf, BPF_PROG_LOAD, attributes, 48, opens=True)


def attach(program: int, directory: int) -> None:
    """Attach a device program to the control group that `directory` stands for; those of its ancestors are asked as well. Raises OSError. bpf(2)."""
    attributes = ctypes.c_char_p(pack("<IIII", directory, program, BPF_CGROUP_DEVICE, BPF_F_ALLOW_MULTI))
    call_libc("bpf", ("BPF_PROG_ATTACH", "BPF_CGROUP_DEVICE", show(directory)), show(directory), _bpf, BPF_PROG_ATTACH, attributes, 16)


def _address(text: ctypes.c_char_p) -> int:
    """Return where the bytes lie, which `text` keeps alive."""
    import ctypes as whole

    return int(whole.cast(text, whole.c_void_p).value or 0)


def _bpf(command: int, attributes: ctypes.c_char_p, size: int) -> int:
    return int(libc.syscall(ctypes.c_long(SYSCALLS["bpf"]), ctypes.c_long(command), attributes, ctypes.c_long(size)))
