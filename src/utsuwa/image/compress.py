"""Compressed layers as streams: gzip by isal, zstd by zstandard, told apart by their first bytes as Docker does.

Bounded on every side: a piece that comes out is at most PIECE bytes however much a few bytes expand to, and a zstd frame may ask for
no window larger than WINDOW. Leaves out what the pieces are (tar.py) and whether they are the right ones (the caller hashes).
"""

from __future__ import annotations

from utsuwa.errors import ImageError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

PIECE = 1 << 20
WINDOW = 1 << 27
"""128 MiB: what zstd's own command line accepts by default. A frame can ask for gigabytes."""

_GZIP, _ZSTD, _ZSTD_SKIPPABLE = b"\x1f\x8b", b"\x28\xb5\x2f\xfd", b"\x2a\x4d\x18"


def decompress(chunks: Iterator[bytes]) -> Iterator[bytes]:
    """Yield the layer unpacked, in pieces of at most PIECE bytes. Raises ImageError for a stream that is damaged or ends early."""
    first = b""
    for chunk in chunks:
        first += chunk
        if len(first) >= 4:
            break
    if first[:2] == _GZIP:
        return _gunzip(_chain(first, chunks))
    if first[:4] == _ZSTD or (first[1:4] == _ZSTD_SKIPPABLE and 0x50 <= first[0] <= 0x5F):
        return _unzstd(_chain(first, chunks))
    return _chain(first, chunks)


def _chain(first: bytes, rest: Iterator[bytes]) -> Iterator[bytes]:
    if first:
        yield first
    yield from rest


def _gunzip(chunks: Iterator[bytes]) -> Iterator[bytes]:
    """Members may follow one another, as in eStargz layers and from parallel compressors. RFC 1952, section 2.2."""
    from isal import igzip_lib

    # isal checks the checksum and the length at the end of each member.
    member, fresh = igzip_lib.IgzipDecompressor(flag=igzip_lib.DECOMP_GZIP), True
    try:
        for chunk in chunks:
            data = chunk
            while data or not (fresh or member.needs_input or member.eof):
                piece = member.decompress(data, PIECE)
                fresh, data = False, b""
                if piece:
                    yield piece
                if member.eof:
                    data = member.unused_data
                    member, fresh = igzip_lib.IgzipDecompressor(flag=igzip_lib.DECOMP_GZIP), True
    except igzip_lib.IsalError as error:  # type: ignore[misc]
        raise ImageError(f"the layer's gzip stream is damaged: {error}") from None
    if not fresh:
        raise ImageError("the layer's gzip stream is truncated")


class _File:
    """What zstandard reads from: the chunks, a piece at a time."""

    __slots__ = ("_chunks", "_rest")

    def __init__(self, chunks: Iterator[bytes]) -> None:
        self._chunks, self._rest = chunks, b""

    def read(self, size: int = -1) -> bytes:
        data = self._rest or next(self._chunks, b"")
        if size < 0:
            self._rest = b""
            return data
        self._rest = data[size:]
        return data[:size]


def _unzstd(chunks: Iterator[bytes]) -> Iterator[bytes]:
    import zstandard

    # Several frames: zstd:chunked layers end in skippable ones. That the last frame is whole, tar and the digest show.
    reader = zstandard.ZstdDecompressor(max_window_size=WINDOW).stream_reader(_File(chunks), read_size=1 << 17, read_across_frames=True)  # type: ignore[arg-type]
    try:
        while piece := reader.read(PIECE):
            yield piece
    except zstandard.ZstdError as error:
        raise ImageError(f"the layer's zstd stream is damaged: {error}") from None
