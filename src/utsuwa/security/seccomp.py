"""seccomp: which system calls a container may make, as OCI's `linux.seccomp` object and as a loaded-once, cached BPF program. seccomp(2).

Hot path. The program for a profile is compiled once (compiler.py, through libseccomp) and kept under the digest of all that decides it; a warm
start reads 10 kB. Leaves out: the table (profile.py) and loading it into a process (kernel/credential.py).
"""

from __future__ import annotations

import os

from utsuwa.errors import SpecError
from utsuwa.ledger.encode import dumps
from utsuwa.security import profile
from utsuwa.security.capabilities import NUMBERS

try:  # the builtin: hashlib would load OpenSSL, 2 ms
    from _sha256 import sha256  # type: ignore[import-not-found,unused-ignore]
except ImportError:
    try:
        from _sha2 import sha256  # type: ignore[import-not-found,no-redef,unused-ignore]
    except ImportError:
        from hashlib import sha256  # type: ignore[assignment,no-redef,unused-ignore]

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

UNCONFINED = "unconfined"
FLAGS = {"SECCOMP_FILTER_FLAG_TSYNC": 1, "SECCOMP_FILTER_FLAG_LOG": 2, "SECCOMP_FILTER_FLAG_SPEC_ALLOW": 4, "SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV": 32}
_LIBRARIES = ("/usr/lib/{}-linux-gnu/libseccomp.so.2", "/usr/lib64/libseccomp.so.2", "/usr/lib/libseccomp.so.2", "/lib/libseccomp.so.2")


def machine(arch: str = "") -> tuple[str, str]:
    """Return (libseccomp's name, Go's name) of a machine as uname -m calls it, `arch` or this one. Raises SpecError for one we have no table for."""
    name = arch or os.uname().machine
    try:
        return profile.MACHINES[name]
    except KeyError:
        raise SpecError(f"cannot make a seccomp filter for the architecture {name}: not in the table; run with --security-opt seccomp=unconfined") from None


def kernel_version(release: str = "") -> tuple[int, int]:
    """Return (major, minor) of a kernel release such as 6.18.5-amd64, this machine's by default."""
    numbers = [0, 0]
    for place, part in enumerate((release or os.uname().release).split(".")[:2]):
        digits = ""
        for letter in part:
            if not letter.isdigit():
                break
            digits += letter
        numbers[place] = int(digits or "0")
    return numbers[0], numbers[1]


def linux_seccomp(capabilities: Iterable[str], arch: str = "") -> dict[str, object]:
    """Return Docker's default profile for a container that holds `capabilities`, as config.json's `linux.seccomp`. OCI runtime-spec, config-linux."""
    native, go = machine(arch)
    held, kernel = frozenset(capabilities), kernel_version()
    calls: list[dict[str, object]] = []
    for rule in profile.rules():
        if rule.kernel > kernel or (rule.arches and go not in rule.arches) or go in rule.not_arches:
            continue
        if any(name not in held for name in rule.caps) or any(name in held for name in rule.without):
            continue
        call: dict[str, object] = {"names": list(rule.names), "action": "SCMP_ACT_ERRNO" if rule.errno else "SCMP_ACT_ALLOW"}
        if rule.errno:
            call["errnoRet"] = rule.errno
        if rule.args:
            call["args"] = [{"index": index, "value": value, "valueTwo": second, "op": op} for index, value, op, second in rule.args]
        calls.append(call)
    return {"defaultAction": "SCMP_ACT_ERRNO", "defaultErrnoRet": 1, "architectures": [native, *profile.ARCHITECTURES.get(native, ())], "syscalls": calls}


def from_docker_profile(text: str, capabilities: Iterable[str], arch: str = "") -> dict[str, object]:
    """Return a custom profile (`--security-opt seccomp=FILE`, Docker's JSON format) as config.json's `linux.seccomp`.

    Conditions (includes, excludes) are decided here; the older form with one `name` per entry is understood. Raises SpecError naming the
    JSON path. Off the hot path.
    """
    from utsuwa.security.docker_profile import parse

    return parse(text, frozenset(capabilities), machine(arch), kernel_version())


def filter_flags(seccomp: dict[str, object]) -> int:
    """Return the flags argument of seccomp(2) for the object's `flags`. Raises SpecError for a flag that does not exist."""
    value = 0
    for name in seccomp.get("flags") or ():  # type: ignore[attr-defined]
        if name not in FLAGS:
            raise SpecError(f"linux.seccomp.flags: unknown flag {name}")
        value |= FLAGS[name]
    return value


# ---------------------------------------------------------------------------------------------------------------- the cache


def _surroundings(arch: str) -> str:
    """What a program depends on besides its profile: our table's revision, the kernel and the libseccomp that compiled it."""
    where = arch or os.uname().machine
    library = ""
    for pattern in _LIBRARIES:
        try:
            library = os.readlink(pattern.format(where))  # libseccomp.so.2.5.4: the version without loading it
            break
        except OSError:
            continue
    return f"{profile.REVISION} {where} {kernel_version()} {library}"


def program(seccomp: dict[str, object], cache_dir: str) -> bytes:
    """Return the BPF program (struct sock_filter[], 8 bytes each) for a `linux.seccomp` object, from the cache or compiled into it.

    Idempotent; a torn or foreign cache file is never used, and replaced. Raises SpecError for a bad object, DependencyMissing without libseccomp.
    """
    key = sha256((dumps(seccomp) + _surroundings("")).encode()).hexdigest()

    def compile_it() -> bytes:
        from utsuwa.security import compiler

        return compiler.compile(seccomp)

    return _cached(f"{cache_dir}/{key}.bpf", compile_it)


def default_program(capabilities: Iterable[str], cache_dir: str, arch: str = "") -> bytes:
    """Return the program of Docker's default profile: as `program(linux_seccomp(capabilities))`, without building that object on a warm start."""
    held = frozenset(capabilities)
    deciding = 0
    for name in profile.DECIDING:
        if name in held:
            deciding |= 1 << NUMBERS[name]
    key = sha256(f"default {deciding:x} {_surroundings(arch)}".encode()).hexdigest()

    def compile_it() -> bytes:
        from utsuwa.security import compiler

        return compiler.compile(linux_seccomp(held, arch))

    return _cached(f"{cache_dir}/{key}.bpf", compile_it)


def _cached(path: str, make: Callable[[], bytes]) -> bytes:
    found = _load(path)
    if found is None:
        found = make()
        _store(path, found)
    return found


def _load(path: str) -> bytes | None:
    """The cached program, or None where there is none that can be trusted: ours alone to write, whole, and its checksum right."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
    except OSError:
        return None
    try:
        info = os.fstat(fd)
        data = os.read(fd, 1 << 20) if info.st_uid == os.geteuid() and not info.st_mode & 0o077 else b""
    finally:
        os.close(fd)
    body, checksum = data[:-32], data[-32:]
    if not body or len(body) % 8 or sha256(body).digest() != checksum:
        return None
    return body


def _store(path: str, body: bytes) -> None:
    """Keep a program for the next start: written beside and renamed. What cannot be kept (a full disk) is compiled again next time."""
    beside = f"{path}.{os.getpid()}.tmp"
    try:
        os.makedirs(os.path.dirname(path), 0o700, exist_ok=True)
        fd = os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        try:
            os.write(fd, body + sha256(body).digest())
        finally:
            os.close(fd)
        os.rename(beside, path)
    except OSError:
        try:
            os.unlink(beside)
        except OSError:
            return
