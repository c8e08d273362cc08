"""The entries of a layer, from a stream: ustar, PAX and GNU headers.

One header is parsed by `tarfile.TarInfo.frombuf`; everything that spans headers (PAX records, long names, sparse maps) is done here
with bounds, because tarfile reads as much as a header asks for. Nothing here touches a file system: `extract` and `extractall` are
banned (CVE-2007-4559, CVE-2025-4517 and its family), and unpack.py writes beneath descriptors.
"""

from __future__ import annotations

import os
import struct
import sys
import tarfile

from utsuwa.errors import ImageError
from utsuwa.image.document import LAYER_BYTES

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

BLOCK = 512
HEADERS = 4_000_000
"""Bound on the headers of one layer, those of PAX records and long names included."""
EXTENSION_BYTES = 1 << 20
"""Bound on PAX records and long names, as in Go's archive/tar."""
NAME_BYTES = 4095
COMPONENT_BYTES = 255
SPARSE_PIECES = 65536
_ID_MAX = (1 << 32) - 2
_XATTR = "SCHILY.xattr."
_HEADER_ONLY = frozenset({tarfile.LNKTYPE, tarfile.SYMTYPE, tarfile.CHRTYPE, tarfile.BLKTYPE, tarfile.DIRTYPE, tarfile.FIFOTYPE})
_FILES = frozenset({tarfile.REGTYPE, tarfile.AREGTYPE, tarfile.CONTTYPE, tarfile.GNUTYPE_SPARSE})
_KNOWN = _FILES | _HEADER_ONLY


class Entry:
    """One entry. `kind` is a tar type byte; `size` counts the bytes that follow in the stream; `mtime` is in nanoseconds.

    `sparse` is None, or the (offset, length) of each piece of data in a file of `real_size` bytes.
    """

    __slots__ = ("device", "gid", "kind", "linkname", "mode", "mtime", "name", "real_size", "size", "sparse", "uid", "xattrs")

    def __init__(self, header: tarfile.TarInfo) -> None:
        self.name, self.linkname, self.kind = header.name, header.linkname, header.type
        self.size = self.real_size = 0 if header.type in _HEADER_ONLY else header.size
        self.mode, self.uid, self.gid = header.mode & 0o7777, header.uid, header.gid
        self.mtime = int(header.mtime) * 1_000_000_000
        self.device = (header.devmajor, header.devminor)
        self.xattrs: dict[str, bytes] | None = None
        self.sparse: list[tuple[int, int]] | None = None


class Stream:
    """The bytes of an unpacked layer, taken exactly; `position` counts them, `most` bounds how many there may be."""

    __slots__ = ("_at", "_chunk", "_chunks", "_left", "position")

    def __init__(self, chunks: Iterator[bytes], most: int = LAYER_BYTES) -> None:
        self._chunks, self._left, self.position = chunks, most, 0
        self._chunk, self._at = memoryview(b""), 0

    def _next(self) -> bool:
        for chunk in self._chunks:
            if chunk:
                self._left -= len(chunk)
                if self._left < 0:
                    raise ImageError("the layer is larger than a layer may be when unpacked")
                self._chunk, self._at = memoryview(chunk), 0
                return True
        return False

    def take(self, size: int) -> bytes:
        """Return the next `size` bytes, b"" at the very end. Raises ImageError where the stream ends in between."""
        end = self._at + size
        if end <= len(self._chunk):
            data = self._chunk[self._at:end].tobytes()
            self._at = end
            self.position += size
            return data
        if self._at == len(self._chunk) and not self._next():
            return b""
        return b"".join(self.pieces(size))

    def pieces(self, size: int) -> Iterator[memoryview]:
        """Yield the next `size` bytes as they lie in memory, uncopied. Raises ImageError where the stream ends before."""
        while size > 0:
            if self._at == len(self._chunk) and not self._next():
                raise ImageError("the layer is truncated")
            piece = self._chunk[self._at:self._at + size]
            self._at += len(piece)
            self.position += len(piece)
            size -= len(piece)
            yield piece

    def skip(self, size: int) -> None:
        """Pass over `size` bytes. Raises ImageError where the stream ends before."""
        for _ in self.pieces(size):
            pass

    def drain(self) -> None:
        """Read to the end: what follows the archive counts for the digest and for nothing else."""
        while self._next():
            pass


def entries(stream: Stream) -> Iterator[Entry]:
    """Yield each entry in turn; the consumer takes `size` bytes from the stream or fewer, the rest is skipped.

    Raises ImageError for anything that is not a well-formed archive within the bounds.
    """
    records: dict[str, bytes] = {}
    for _ in range(HEADERS):
        block = stream.take(BLOCK)
        header = _header(block, stream)
        if header is None:
            stream.drain()
            return
        if header.type in _EXTENSIONS:
            records.update(_extension(stream, header))
            continue
        if header.type in _KNOWN:
            entry = Entry(header)
            _apply(entry, records)
            if header.type == tarfile.GNUTYPE_SPARSE:
                _gnu_sparse(stream, entry, block)
            end = stream.position + _padded(entry.size)
            if "GNU.sparse.realsize" in records or "GNU.sparse.map" in records:
                _pax_sparse(stream, entry, records)
            yield entry
        else:  # a global header (git archive's comment), a volume label: Docker ignores them too
            end = stream.position + _padded(header.size)
        stream.skip(end - stream.position)
        records = {}
    raise ImageError(f"the layer has more than {HEADERS} headers")


def _header(block: bytes, stream: Stream) -> tarfile.TarInfo | None:
    """Return the header; None at the end: two blocks of zeros, or as Go's reader has it, none or one and nothing more."""
    if not block:
        return None
    header = _plain_header(block)
    if header is not None:
        return header
    try:
        # Names are kept as the file system's own encoding would give them: whatever bytes they are, they come back out.
        return tarfile.TarInfo.frombuf(block, sys.getfilesystemencoding(), "surrogateescape")
    except tarfile.EOFHeaderError:  # type: ignore[attr-defined]
        if stream.take(BLOCK).strip(b"\0"):
            raise ImageError("the layer is not a tar archive: data after a block of zeros") from None
        return None
    except (tarfile.HeaderError, ValueError, OverflowError) as error:
        raise ImageError(f"the layer is not a tar archive: {error}") from None


_FIELDS_OF = struct.Struct("100s8s8s8s12s12s8sc100s").unpack_from  # up to linkname; ustar(5)
_PLAIN = frozenset({tarfile.REGTYPE, tarfile.DIRTYPE, tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.XHDTYPE})


def _plain_header(block: bytes) -> tarfile.TarInfo | None:
    """Return what TarInfo.frombuf would, in a third of its time; None for whatever is not the plainest of headers, which is then frombuf's.

    A layer has tens of thousands, and all threads of a pull wait while one parses: that is the greater part of what Python costs here.
    """
    name, mode, uid, gid, size, mtime, checksum, kind, linkname = _FIELDS_OF(block)
    if kind not in _PLAIN or block[345]:  # a prefix
        return None
    try:
        if sum(block) - sum(checksum) + 256 != int(checksum[:6], 8):
            return None
        header = tarfile.TarInfo(os.fsdecode(name.partition(b"\0")[0]))
        header.mode, header.uid, header.gid = int(mode[:7], 8), int(uid[:7], 8), int(gid[:7], 8)
        header.size, header.mtime = int(size[:11], 8), int(mtime[:11], 8)
    except ValueError:
        return None
    header.type, header.linkname = kind, os.fsdecode(linkname.partition(b"\0")[0])
    if kind == tarfile.DIRTYPE:
        header.name = header.name.rstrip("/")
    return header


def _padded(size: int) -> int:
    """Return the size in whole blocks. Raises ImageError for one that no layer can have: negative, or 2**95 by base-256 digits."""
    if not 0 <= size <= LAYER_BYTES:
        raise ImageError(f"the layer has an entry of {size} bytes; at most {LAYER_BYTES} are taken")
    return -(-size // BLOCK) * BLOCK


# ------------------------------------------------------------------------------------------ headers that describe the next

def _extension(stream: Stream, header: tarfile.TarInfo) -> dict[str, bytes]:
    if not 0 <= header.size <= EXTENSION_BYTES:
        raise ImageError(f"the layer has an extended header of {header.size} bytes; at most {EXTENSION_BYTES} are taken")
    data = b"".join(stream.pieces(_padded(header.size)))
    return _EXTENSIONS[header.type](data[:header.size])


def _pax(data: bytes) -> dict[str, bytes]:
    r"""Return the records `LENGTH KEY=VALUE\\n`. pax(1), "pax Extended Header"."""
    records: dict[str, bytes] = {}
    at = 0
    while at < len(data) and data[at]:
        space = data.find(b" ", at, at + 9)
        digits = data[at:space] if space > 0 else b""
        end = at + int(digits) if digits.isdigit() else 0
        key, equals, value = data[space + 1:end - 1].partition(b"=")
        if end <= space + 1 or end > len(data) or data[end - 1] != ord("\n") or not equals or not key:
            raise ImageError("the layer has a malformed PAX header")
        records[os.fsdecode(key)] = value
        at = end
    return records


def _long(key: str) -> Callable[[bytes], dict[str, bytes]]:
    return lambda data: {key: data.partition(b"\0")[0]}


_EXTENSIONS: dict[bytes, Callable[[bytes], dict[str, bytes]]] = {
    tarfile.XHDTYPE: _pax, tarfile.SOLARIS_XHDTYPE: _pax, tarfile.GNUTYPE_LONGNAME: _long("path"), tarfile.GNUTYPE_LONGLINK: _long("linkpath"),
}


def _nanoseconds(value: bytes) -> int:
    whole, _, fraction = value.decode("ascii").partition(".")
    return int(whole) * 1_000_000_000 + int((fraction + "000000000")[:9])


_FIELDS: dict[str, tuple[str, Callable[[bytes], object]]] = {
    "path": ("name", os.fsdecode), "GNU.sparse.name": ("name", os.fsdecode), "linkpath": ("linkname", os.fsdecode),
    "uid": ("uid", int), "gid": ("gid", int), "size": ("size", int), "mtime": ("mtime", _nanoseconds),
}


def _apply(entry: Entry, records: dict[str, bytes]) -> None:
    """Let the records that came before overrule the header, and check what no file could have."""
    try:
        for key, value in records.items():
            if key in _FIELDS:
                attribute, convert = _FIELDS[key]
                setattr(entry, attribute, convert(value))
            elif key.startswith(_XATTR):
                entry.xattrs = entry.xattrs or {}
                entry.xattrs[key[len(_XATTR):]] = value
    except ValueError:
        raise ImageError("the layer has a malformed PAX header") from None
    if entry.kind in _HEADER_ONLY:
        entry.size = 0
    entry.real_size = entry.size
    for name in (entry.name, entry.linkname):
        if "\0" in name or (len(name) > NAME_BYTES // 4 and len(os.fsencode(name)) > NAME_BYTES):
            raise ImageError(f"the layer has a name that no file can have: {name[:60]!r}, {len(name)} characters")
    if not (0 <= entry.uid <= _ID_MAX and 0 <= entry.gid <= _ID_MAX):
        raise ImageError(f"the layer has an owner that no file can have: {entry.uid}:{entry.gid} of {entry.name[:200]!r}")


# --------------------------------------------------------------------------------------------------------------- sparse

def _gnu_sparse(stream: Stream, entry: Entry, block: bytes) -> None:
    """The old GNU form: four pieces in the header, 21 in each block that follows it. tar manual, "Old GNU Format"."""
    try:
        entry.real_size = tarfile.nti(block[483:495])  # type: ignore[attr-defined]
        numbers: list[int] = []
        area, more = block[386:482], block[482]
        while True:
            numbers += [tarfile.nti(area[at:at + 12]) for at in range(0, len(area), 12) if area[at]]  # type: ignore[attr-defined]
            if not more or len(numbers) > 2 * SPARSE_PIECES:
                break
            area = stream.take(BLOCK)
            area, more = area[:504], area[504]
    except (tarfile.HeaderError, IndexError):
        raise _bad_sparse(entry) from None
    _sparse(entry, numbers)


def _pax_sparse(stream: Stream, entry: Entry, records: dict[str, bytes]) -> None:
    """GNU's sparse files in PAX: version 0.1 has the map in a record, 1.0 at the start of the data. tar manual, "PAX sparse"."""
    try:
        entry.real_size = int(records.get("GNU.sparse.realsize") or records["GNU.sparse.size"])
        text = records.get("GNU.sparse.map")
        numbers = _map_in_data(stream, entry) if text is None else [int(number) for number in text.split(b",") if number]
    except (KeyError, ValueError):
        raise _bad_sparse(entry) from None
    _sparse(entry, numbers)


def _map_in_data(stream: Stream, entry: Entry) -> list[int]:
    numbers: list[int] = []
    rest, wanted = b"", 1
    while len(numbers) < wanted:
        block = stream.take(BLOCK)
        entry.size -= len(block)
        *lines, rest = (rest + block).split(b"\n")
        numbers += map(int, lines)
        if not block or entry.size < 0 or len(rest) > BLOCK or not numbers or not 0 <= numbers[0] <= SPARSE_PIECES:
            raise ValueError
        wanted = 1 + 2 * numbers[0]
    return numbers[1:]


def _sparse(entry: Entry, numbers: list[int]) -> None:
    """Check that the pieces ascend, do not overlap, lie in the file, and are what the archive holds."""
    _padded(entry.real_size)
    if len(numbers) % 2 or len(numbers) > 2 * SPARSE_PIECES:
        raise _bad_sparse(entry)
    entry.sparse = list(zip(numbers[::2], numbers[1::2], strict=True))
    at = total = 0
    for offset, length in entry.sparse:
        if offset < at or length < 0:
            raise _bad_sparse(entry)
        at, total = offset + length, total + length
    if at > entry.real_size or total != entry.size:
        raise _bad_sparse(entry)


def _bad_sparse(entry: Entry) -> ImageError:
    return ImageError(f"the layer has a malformed sparse file: {entry.name[:200]!r}")
