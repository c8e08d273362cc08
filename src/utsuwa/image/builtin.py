"""The two images that need no registry: `hello`, which this module writes byte by byte, and `host`, the host's own root.

`hello` is a real image: a manifest, a configuration and a layer with one file in it, which goes through fetch, unpack and store as any
other; afterwards nothing knows where it came from. `host` has no layers: its record says that the root is a copy-on-write view of the
host's. A local image of the same name wins over both (engine.images).
"""

from __future__ import annotations

import os
import struct

from utsuwa.errors import ImageError, NotFound
from utsuwa.spec.image import ImageRecord, empty_config

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

    from utsuwa.image.document import Descriptor

HELLO, HOST = "docker.io/library/hello:latest", "docker.io/library/host:latest"
PATH = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

TEXT = """
Hello from utsuwa. This is process 1 of a container that was made just for it:

  namespaces    processes, mounts, network, host name, IPC and cgroups of its own
  cgroup        what it uses is counted and bounded, if root started it
  root          an overlay: this image read-only below, a writable layer on top
  capabilities  fourteen of root's powers, the others are gone
  seccomp       a filter decides which system calls it may make

No daemon was asked, and no registry: utsuwa wrote this program, a few hundred
bytes of ELF, and started it with system calls. See each of them and its reason:

  utsuwa explain --last

Then a shell in a copy-on-write view of your own machine:

  utsuwa run --rm -it host bash

"""
"""What `hello` prints."""

_BASE = 0x400000
_HEADERS = 64 + 56

# write(1, text, length); exit(0). Arguments: x86-64 rdi, rsi, rdx and the number in rax; AArch64 x0, x1, x2 and the number in x8.
_X86_64 = (
    b"\xb8\x01\x00\x00\x00"  # mov eax, 1 (write)
    b"\xbf\x01\x00\x00\x00"  # mov edi, 1
    b"\xbe%b"                # mov esi, text
    b"\xba%b"                # mov edx, length
    b"\x0f\x05"              # syscall
    b"\xb8\x3c\x00\x00\x00"  # mov eax, 60 (exit)
    b"\x31\xff"              # xor edi, edi
    b"\x0f\x05"              # syscall
)
_MACHINES = {"x86_64": ("amd64", 62), "aarch64": ("arm64", 183)}
"""uname -m → the platform's name, and ELF's e_machine."""


def _code_x86_64(address: int, length: int) -> bytes:
    return _X86_64 % (struct.pack("<I", address), struct.pack("<I", length))


def _code_aarch64(address: int, length: int) -> bytes:
    def movz(register: int, value: int, high: bool = False) -> int:
        return (0xF2A00000 if high else 0xD2800000) | (value & 0xFFFF) << 5 | register

    svc = 0xD4000001
    words = (
        movz(8, 64), movz(0, 1), movz(1, address), movz(1, address >> 16, high=True), movz(2, length), svc,  # write
        movz(8, 93), movz(0, 0), svc,  # exit
    )
    return struct.pack(f"<{len(words)}I", *words)


_CODE = {"x86_64": _code_x86_64, "aarch64": _code_aarch64}


def program(machine: str, text: bytes) -> bytes:
    """Return a static ELF executable that writes `text` and exits with 0: one header, one segment, the code, the text. elf(5).

    Raises KeyError for a machine that is not in the table.
    """
    size = len(_CODE[machine](0, 0))
    start = _BASE + _HEADERS
    code = _CODE[machine](start + size, len(text))
    whole = _HEADERS + size + len(text)
    ident = b"\x7fELF\x02\x01\x01".ljust(16, b"\0")  # 64 bit, little-endian
    header = ident + struct.pack("<HHIQQQIHHHHHH", 2, _MACHINES[machine][1], 1, start, 64, 0, 0, 64, 56, 1, 0, 0, 0)
    segment = struct.pack("<IIQQQQQQ", 1, 5, 0, _BASE, _BASE, whole, whole, 0x1000)  # PT_LOAD, readable and executable
    return header + segment + code + text


class Hello:
    """A source (fetch.Source) that holds one image for this machine, made up on the spot and the same every time."""

    def __init__(self, machine: str = "") -> None:
        import json
        import tarfile

        from utsuwa.image import document

        machine = machine or os.uname().machine
        if machine not in _CODE:
            raise ImageError(f"the built-in image hello cannot be written for {machine}; pull one from a registry")
        elf = program(machine, TEXT.encode())
        header = tarfile.TarInfo("hello")
        header.size, header.mode = len(elf), 0o755
        layer = header.tobuf(tarfile.USTAR_FORMAT) + elf.ljust(-(-len(elf) // 512) * 512, b"\0") + bytes(1024)
        config = json.dumps({
            "architecture": _MACHINES[machine][0], "os": "linux", "created": "1970-01-01T00:00:00Z", "config": {"Cmd": ["/hello"], "Env": [PATH]},
            "rootfs": {"type": "layers", "diff_ids": [document.digest_of(layer)]}, "history": [{"created_by": "utsuwa, built in"}],
        }).encode()
        self._blobs = {document.digest_of(data): data for data in (layer, config)}

        def descriptor(kind: str, data: bytes) -> dict[str, object]:
            return {"mediaType": kind, "digest": document.digest_of(data), "size": len(data)}

        self._manifest = json.dumps({
            "schemaVersion": 2, "mediaType": document.MANIFEST_TYPES[0],
            "config": descriptor(document.CONFIG_TYPES[0], config), "layers": [descriptor(document.LAYER_TYPES[0], layer)],
        }).encode()

    def manifest(self, what: str) -> tuple[bytes, str]:
        """Return (manifest, media type); there is but one tag."""
        if what != "latest":
            raise NotFound(f"no built-in image hello:{what}")
        return self._manifest, ""

    def blob(self, descriptor: Descriptor) -> Iterator[bytes]:
        """Yield the blob."""
        yield self._blobs[descriptor.digest]


def host() -> ImageRecord:
    """Return the record of `host`: the shell is bash where the host has it, else sh."""
    config = empty_config()
    config["Cmd"] = ["bash"] if any(os.access(f"{directory}/bash", os.X_OK) for directory in ("/bin", "/usr/bin")) else ["sh"]
    config["Env"] = [PATH]
    machine = os.uname().machine
    return ImageRecord("", "", f"linux/{_MACHINES.get(machine, (machine, 0))[0]}", [], config, name=HOST, passwd=_accounts("passwd"), group=_accounts("group"), host=True)


def _accounts(name: str) -> bytes | None:
    """Return this machine's own /etc/passwd or group, None where there is none to read."""
    try:
        with open("/etc/" + name, "rb") as file:
            return file.read(1 << 20)
    except OSError:
        return None
