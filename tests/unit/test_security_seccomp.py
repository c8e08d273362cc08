"""The default seccomp profile: equal to Docker's in meaning, and what its compiled program answers, run in a BPF interpreter of ours."""

from __future__ import annotations

import ctypes
import json
import os
import pathlib
import stat

import pytest

from utsuwa.errors import DependencyMissing, SpecError
from utsuwa.security import capabilities, compiler, profile, seccomp

REFERENCE = pathlib.Path("/work/shared/reference/seccomp-default.json")
ALLOW, EPERM, ENOSYS, KILL = 0x7FFF0000, 0x50001, 0x50026, 0
X86_64, X86, AARCH64 = 0xC000003E, 0x40000003, 0xC00000B7
X32 = 0x40000000
ALL = capabilities.NAMES
NEWNS, NEWUSER, NEWNET = 0x20000, 0x10000000, 0x40000000

try:
    ctypes.CDLL("libseccomp.so.2")
    HAVE = True
except OSError:
    HAVE = False
needs_libseccomp = pytest.mark.skipif(not HAVE, reason="libseccomp.so.2 is not installed")
needs_reference = pytest.mark.skipif(not REFERENCE.exists(), reason="Docker's profile is not on this machine")


def run(program: bytes, number: int, args: tuple[int, ...] = (), arch: int = X86_64) -> int:
    """Return the verdict of a filter: a classic BPF machine with the instructions that seccomp(2) permits."""
    data = b"".join((number.to_bytes(4, "little"), arch.to_bytes(4, "little"), bytes(8), *((a & (2**64 - 1)).to_bytes(8, "little") for a in (*args, 0, 0, 0, 0, 0, 0)[:6])))
    code = [(int.from_bytes(program[i:i + 2], "little"), program[i + 2], program[i + 3], int.from_bytes(program[i + 4:i + 8], "little")) for i in range(0, len(program), 8)]
    accumulator = place = 0
    jumps = {0x15: lambda a, k: a == k, 0x25: lambda a, k: a > k, 0x35: lambda a, k: a >= k, 0x45: lambda a, k: bool(a & k)}
    while True:
        operation, true, false, value = code[place]
        place += 1
        if operation == 0x20:
            accumulator = int.from_bytes(data[value:value + 4], "little")
        elif operation == 0x54:
            accumulator &= value
        elif operation == 0x05:
            place += value
        elif operation == 0x06:
            return value
        else:
            place += true if jumps[operation](accumulator, value) else false


def number_of(name: str, token: int | None = None) -> int:
    library = ctypes.CDLL("libseccomp.so.2")
    library.seccomp_syscall_resolve_name_arch.argtypes = (ctypes.c_uint32, ctypes.c_char_p)
    library.seccomp_arch_native.restype = ctypes.c_uint32
    return int(library.seccomp_syscall_resolve_name_arch(library.seccomp_arch_native() if token is None else token, name.encode()))


@pytest.fixture(scope="module")
def default() -> bytes:
    return compiler.compile(seccomp.linux_seccomp(capabilities.DEFAULT, "x86_64"))


def reference(held: tuple[str, ...], machine: str) -> dict[str, object]:
    return seccomp.from_docker_profile(REFERENCE.read_text(), held, machine)


def flattened(document: dict[str, object]) -> set[tuple[object, ...]]:
    """One tuple for each name and condition; socket apart, which is told differently."""
    return {
        (name, call["action"], call.get("errnoRet"), tuple(sorted((a["index"], a["value"], a.get("valueTwo", 0), a["op"]) for a in call.get("args", ()))))
        for call in document["syscalls"] for name in call["names"] if name != "socket"  # type: ignore[attr-defined]
    }


@needs_reference
@pytest.mark.parametrize("machine", ["x86_64", "aarch64", "s390x", "riscv64", "ppc64le"])
@pytest.mark.parametrize("held", [(), capabilities.DEFAULT, ALL, *[(name,) for name in profile.DECIDING]])
def test_equals_dockers_profile(machine: str, held: tuple[str, ...]) -> None:
    ours, theirs = seccomp.linux_seccomp(held, machine), reference(held, machine)
    assert flattened(ours) == flattened(theirs)
    assert (ours["defaultAction"], ours["defaultErrnoRet"], ours["architectures"]) == (theirs["defaultAction"], theirs["defaultErrnoRet"], theirs["architectures"])


@needs_reference
def test_the_deciding_capabilities_are_all_that_the_profile_asks_for() -> None:
    asked = {name for call in json.loads(REFERENCE.read_text())["syscalls"] for part in ("includes", "excludes") for name in call.get(part, {}).get("caps", ())}
    assert asked == set(profile.DECIDING)


@needs_reference
@needs_libseccomp
def test_sockets_as_in_dockers_profile_for_every_family_of_32_bits(default: bytes) -> None:
    theirs = compiler.compile(reference(capabilities.DEFAULT, "x86_64"))
    families = [*range(300), *(1 << bit for bit in range(32)), *(1 << bit | 38 for bit in range(6, 32)), 2**31 - 1, 2**32 - 1]
    for arch, number in ((X86_64, 41), (X86, 359)):
        assert [run(default, number, (f,), arch) for f in families] == [run(theirs, number, (f,), arch) for f in families]


@needs_libseccomp
@pytest.mark.parametrize("family", [profile.AF_ALG, profile.AF_VSOCK])
def test_af_alg_and_af_vsock_are_refused_whatever_the_upper_half_of_the_register(default: bytes, family: int) -> None:
    # The kernel takes 32 bits of the argument; Docker's range rule compares 64 and lets 1<<32|38 through.
    assert {run(default, 41, (high << 32 | family,)) for high in (0, 1, 2**31, 2**32 - 1)} == {EPERM}


@needs_libseccomp
@pytest.mark.parametrize("family", [1, 2, 10, 16, 17, 36, 37, 39, 41, 44, 45, 2**32 - 1])
def test_other_families_are_allowed(default: bytes, family: int) -> None:
    assert run(default, 41, (family,)) == ALLOW


@needs_libseccomp
@pytest.mark.parametrize("name, args, verdict", [
    ("read", (), ALLOW), ("openat", (), ALLOW), ("execve", (), ALLOW), ("chroot", (), ALLOW), ("clone", (0x11,), ALLOW), ("clone", (0x3D0F00,), ALLOW),
    ("clone", (NEWUSER | 17,), EPERM), ("clone", (NEWNS,), EPERM), ("clone", (NEWNET,), EPERM), ("clone3", (), ENOSYS), ("unshare", (NEWUSER,), EPERM),
    ("setns", (), EPERM), ("mount", (), EPERM), ("umount2", (), EPERM), ("open_tree", (), EPERM), ("keyctl", (), EPERM), ("add_key", (), EPERM),
    ("bpf", (), EPERM), ("perf_event_open", (), EPERM), ("kexec_load", (), EPERM), ("init_module", (), EPERM), ("userfaultfd", (), EPERM),
    ("io_uring_setup", (), EPERM), ("swapon", (), EPERM), ("open_by_handle_at", (), EPERM), ("clock_settime", (), EPERM), ("reboot", (), EPERM),
    ("ptrace", (), ALLOW), ("process_vm_writev", (), ALLOW), ("personality", (0,), ALLOW), ("personality", (0xFFFFFFFF,), ALLOW),
    ("personality", (0x40000,), EPERM), ("arch_prctl", (), ALLOW), ("modify_ldt", (), ALLOW), ("landlock_restrict_self", (), ALLOW), ("futex_waitv", (), ALLOW),
])
def test_verdicts_of_the_default_profile(default: bytes, name: str, args: tuple[int, ...], verdict: int) -> None:
    assert run(default, number_of(name, X86_64), args) == verdict


@needs_libseccomp
def test_the_other_architectures_of_the_kernel_are_judged_too(default: bytes) -> None:
    assert run(default, 3, (), X86) == ALLOW                       # read
    assert run(default, 21, (), X86) == EPERM                      # mount
    assert run(default, 0 | X32) == ALLOW
    assert run(default, 165 | X32) == EPERM
    assert run(default, 0, (), AARCH64) == KILL                    # not an architecture of this kernel


@needs_libseccomp
def test_aarch64() -> None:
    program = compiler.compile(seccomp.linux_seccomp(capabilities.DEFAULT, "aarch64"))
    verdicts = {name: run(program, number, args, AARCH64) for name, number, args in (
        ("read", 63, ()), ("mount", 40, ()), ("clone", 220, (17,)), ("clone user", 220, (NEWUSER,)), ("alg", 198, (38,)), ("inet", 198, (2,)), ("mseal", 462, ()))}
    assert verdicts == {"read": ALLOW, "mount": EPERM, "clone": ALLOW, "clone user": EPERM, "alg": EPERM, "inet": ALLOW, "mseal": ALLOW}


@needs_libseccomp
def test_sys_admin_opens_namespaces_and_mounts() -> None:
    program = compiler.compile(seccomp.linux_seccomp(["CAP_SYS_ADMIN"], "x86_64"))
    assert [run(program, number_of(name, X86_64), (NEWUSER,)) for name in ("clone", "clone3", "unshare", "mount", "keyctl")] == [ALLOW, ALLOW, ALLOW, ALLOW, EPERM]


@needs_libseccomp
def test_calls_newer_than_libseccomp(default: bytes) -> None:
    for arch in (X86_64, X86):
        assert [run(default, number, (), arch) for number in (451, 452, 457, 462, 466)] == [ALLOW] * 5   # cachestat … removexattrat: named
        assert run(default, 459, (), arch) == EPERM                                                     # lsm_get_self_attr: wants CAP_SYS_ADMIN
        assert [run(default, number, (), arch) for number in (467, 500, 9999)] == [ENOSYS] * 3          # newer than all that is named
    assert run(default, 335) == ALLOW                                                                   # uretprobe, x86_64 only


@needs_libseccomp
def test_every_call_gets_the_verdict_the_table_says(default: bytes) -> None:
    """The whole program against the table, call by call: the tree that libseccomp builds has no holes."""
    calls = seccomp.linux_seccomp(capabilities.DEFAULT, "x86_64")["syscalls"]
    plain = {name for call in calls if call["action"] == "SCMP_ACT_ALLOW" and "args" not in call for name in call["names"]}  # type: ignore[attr-defined]
    numbers = {number for name in plain if (number := number_of(name, X86_64)) >= 0} | {compiler.NEWEST[name] for name in plain if name in compiler.NEWEST} | {335}
    conditional = {number_of(name, X86_64) for name in ("socket", "personality", "clone", "clone3")}
    wrong = [n for n in range(467) if n not in conditional and (run(default, n) == ALLOW) != (n in numbers)]
    assert wrong == []


@needs_libseccomp
def test_actions_flags_and_conditions() -> None:
    document = {
        "defaultAction": "SCMP_ACT_ALLOW", "architectures": ["SCMP_ARCH_X86_64"], "flags": ["SECCOMP_FILTER_FLAG_LOG", "SECCOMP_FILTER_FLAG_SPEC_ALLOW"],
        "syscalls": [
            {"names": ["getpid"], "action": "SCMP_ACT_ERRNO", "errnoRet": 7}, {"names": ["getppid"], "action": "SCMP_ACT_KILL_PROCESS"},
            {"names": ["gettid"], "action": "SCMP_ACT_TRACE", "errnoRet": 9}, {"names": ["getuid"], "action": "SCMP_ACT_LOG"},
            {"names": ["getgid"], "action": "SCMP_ACT_TRAP"}, {"names": ["getegid"], "action": "SCMP_ACT_NOTIFY"}, {"names": ["geteuid"], "action": "SCMP_ACT_KILL"},
            {"names": ["dup2"], "action": "SCMP_ACT_ERRNO", "args": [{"index": 0, "value": 5, "op": "SCMP_CMP_GE"}, {"index": 1, "value": 3, "op": "SCMP_CMP_NE"}]},
            {"names": ["dup"], "action": "SCMP_ACT_ERRNO", "args": [{"index": 0, "value": 5, "op": "SCMP_CMP_EQ"}, {"index": 0, "value": 9, "op": "SCMP_CMP_EQ"}]},
            {"names": ["no_such_call"], "action": "SCMP_ACT_ERRNO"},
        ],
    }
    program = compiler.compile(document)
    assert [run(program, number_of(n, X86_64)) for n in ("getpid", "getppid", "gettid", "getuid", "getgid", "getegid", "geteuid")] == [
        0x50007, 0x80000000, 0x7FF00009, 0x7FFC0000, 0x30000, 0x7FC00000, 0]
    assert [run(program, 33, args) for args in ((5, 4), (5, 3), (4, 4), (2**40, 4))] == [EPERM, ALLOW, ALLOW, EPERM]
    assert [run(program, 32, (first,)) for first in (5, 9, 6)] == [EPERM, EPERM, ALLOW]    # two conditions on one argument: any of them
    assert run(program, 9999) == ALLOW
    assert seccomp.filter_flags(document) == 6


@needs_libseccomp
@pytest.mark.parametrize("change, text", [
    ({"defaultAction": "SCMP_ACT_MAYBE"}, "linux.seccomp.defaultAction: unknown action SCMP_ACT_MAYBE"),
    ({"architectures": ["SCMP_ARCH_VAX"]}, "linux.seccomp.architectures: unknown architecture SCMP_ARCH_VAX"),
    ({"syscalls": [{"names": ["read"], "action": "SCMP_ACT_ALLOW", "errnoRet": 1}]}, "linux.seccomp.syscalls[0].action: errnoRet has no meaning with SCMP_ACT_ALLOW"),
    ({"syscalls": [{"names": ["read"], "action": "SCMP_ACT_ALLOW", "args": [{"index": 6, "value": 0, "op": "SCMP_CMP_EQ"}]}]}, "linux.seccomp.syscalls[0].args[0].index: must be 0 to 5, not 6"),
    ({"syscalls": [{"names": ["read"], "action": "SCMP_ACT_ALLOW", "args": [{"index": 0, "value": 0, "op": "=="}]}]}, "linux.seccomp.syscalls[0].args[0].op: unknown operator =="),
])
def test_a_bad_object_is_named(change: dict[str, object], text: str) -> None:
    with pytest.raises(SpecError) as error:
        compiler.compile({"defaultAction": "SCMP_ACT_ERRNO", **change})
    assert str(error.value) == text


def test_an_unknown_flag_is_named() -> None:
    with pytest.raises(SpecError, match=r"linux\.seccomp\.flags: unknown flag FAST"):
        seccomp.filter_flags({"flags": ["FAST"]})


def test_a_missing_libseccomp_names_the_package(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> ctypes.CDLL:
        raise OSError(name)

    monkeypatch.setattr(ctypes, "CDLL", missing)
    with pytest.raises(DependencyMissing, match="install the package libseccomp2"):
        compiler.compile({"defaultAction": "SCMP_ACT_ERRNO"})


def test_an_unknown_machine_says_what_to_do() -> None:
    with pytest.raises(SpecError, match=r"architecture vax.*seccomp=unconfined"):
        seccomp.linux_seccomp((), "vax")


# ---------------------------------------------------------------------------------------------------------------- the cache


def entries(path: pathlib.Path) -> list[pathlib.Path]:
    return sorted(path.iterdir())


@needs_libseccomp
def test_the_cache_is_used_and_private(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = seccomp.default_program(capabilities.DEFAULT, str(tmp_path / "seccomp"))
    (only,) = entries(tmp_path / "seccomp")
    assert stat.S_IMODE(os.stat(only).st_mode) == 0o600
    monkeypatch.setattr(compiler, "compile", lambda _: pytest.fail("compiled again"))
    assert seccomp.default_program([*capabilities.DEFAULT, "CAP_NET_ADMIN"], str(tmp_path / "seccomp")) == first   # decides nothing in the profile
    assert len(first) % 8 == 0


@needs_libseccomp
def test_both_ways_give_the_same_program(tmp_path: pathlib.Path) -> None:
    assert seccomp.program(seccomp.linux_seccomp(capabilities.DEFAULT), str(tmp_path)) == seccomp.default_program(capabilities.DEFAULT, str(tmp_path))
    assert seccomp.default_program(["CAP_SYS_ADMIN"], str(tmp_path)) != seccomp.default_program([], str(tmp_path))
    assert len(entries(tmp_path)) == 4


@needs_libseccomp
@pytest.mark.parametrize("damage", ["torn", "flipped", "empty", "readable", "link"])
def test_a_cache_file_that_cannot_be_trusted_is_replaced(tmp_path: pathlib.Path, damage: str) -> None:
    cache = tmp_path / "seccomp"
    good = seccomp.default_program((), str(cache))
    (only,) = entries(cache)
    data = only.read_bytes()
    allow_all = compiler.instruction(0x06, 0, 0, ALLOW)
    if damage == "readable":
        only.chmod(0o644)
    elif damage == "link":
        (tmp_path / "elsewhere").write_bytes(data)
        only.unlink()
        only.symlink_to(tmp_path / "elsewhere")
    else:
        only.write_bytes({"torn": data[:-8], "flipped": allow_all + data[8:], "empty": b""}[damage])
    assert seccomp.default_program((), str(cache)) == good
    assert [(p.name, stat.S_IMODE(p.lstat().st_mode), p.read_bytes()) for p in entries(cache)] == [(only.name, 0o600, data)]


@needs_libseccomp
def test_a_cache_that_cannot_be_written_costs_only_time(tmp_path: pathlib.Path) -> None:
    (tmp_path / "file").write_text("")
    assert seccomp.default_program((), str(tmp_path / "file" / "seccomp")) == compiler.compile(seccomp.linux_seccomp(()))


# --------------------------------------------------------------------------------------------------------- custom profiles


def custom(**keys: object) -> str:
    return json.dumps({"defaultAction": "SCMP_ACT_ERRNO", **keys})


def test_conditions_of_a_custom_profile_are_decided(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(seccomp, "kernel_version", lambda: (5, 10))
    text = custom(syscalls=[
        {"names": ["a"], "action": "SCMP_ACT_ALLOW", "includes": {"caps": ["CAP_BPF", "CAP_SYSLOG"]}}, {"names": ["b"], "action": "SCMP_ACT_ALLOW", "includes": {"caps": ["CAP_BPF"]}},
        {"names": ["c"], "action": "SCMP_ACT_ALLOW", "excludes": {"caps": ["CAP_BPF"]}}, {"names": ["d"], "action": "SCMP_ACT_ALLOW", "includes": {"minKernel": "5.11"}},
        {"names": ["e"], "action": "SCMP_ACT_ALLOW", "includes": {"minKernel": "4.8"}}, {"name": "f", "action": "SCMP_ACT_LOG", "includes": {"arches": ["arm64"]}},
        {"name": "g", "action": "SCMP_ACT_LOG", "excludes": {"arches": ["arm64"]}, "errnoRet": None, "args": []},
    ], archMap=[{"architecture": "SCMP_ARCH_X86_64", "subArchitectures": ["SCMP_ARCH_X86"]}])
    found = seccomp.from_docker_profile(text, ["CAP_BPF"], "x86_64")
    assert found == {
        "defaultAction": "SCMP_ACT_ERRNO", "architectures": ["SCMP_ARCH_X86_64", "SCMP_ARCH_X86"],
        "syscalls": [{"names": ["b"], "action": "SCMP_ACT_ALLOW"}, {"names": ["e"], "action": "SCMP_ACT_ALLOW"}, {"names": ["g"], "action": "SCMP_ACT_LOG"}],
    }


@pytest.mark.parametrize("text, message", [
    ("{", "seccomp profile is not JSON"), ("[]", "expected an object with defaultAction"), ("{}", "defaultAction: missing"),
    (custom(syscalls={}), "syscalls: expected an array"), (custom(syscalls=[3]), r"syscalls\[0\]: expected an object"),
    (custom(syscalls=[{"names": ["a"], "name": "b", "action": "SCMP_ACT_LOG"}]), r"syscalls\[0\]: use either name or names"),
    (custom(syscalls=[{"names": []}]), r"syscalls\[0\]: names and action are both needed"),
    (custom(architectures=["SCMP_ARCH_X86"], archMap=[{}]), "use either architectures or archMap"),
    (custom(syscalls=[{"names": ["a"], "action": "SCMP_ACT_LOG", "includes": {"minKernel": "new"}}]), r"syscalls\[0\].minKernel: expected MAJOR.MINOR, not 'new'"),
])
def test_a_bad_custom_profile_is_named(text: str, message: str) -> None:
    with pytest.raises(SpecError, match=message):
        seccomp.from_docker_profile(text, ())


@pytest.mark.parametrize("release, version", [("6.18.5-amd64", (6, 18)), ("5.10", (5, 10)), ("6.1rc3", (6, 1)), ("7", (7, 0)), ("odd", (0, 0))])
def test_kernel_versions(release: str, version: tuple[int, int]) -> None:
    assert seccomp.kernel_version(release) == version
