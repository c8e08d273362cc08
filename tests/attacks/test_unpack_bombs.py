"""Layers that are more than they seem, or less: CVE-2022-23648's kin of unbounded reads, CVE-2026-47262, CVE-2025-25186's like."""

import gzip
import random
import resource
import struct
import subprocess
import tarfile
import time

import pytest
import zstandard

from support.layers import unpacked
from support.registry import directory, entry, layer
from utsuwa.errors import ImageError
from utsuwa.image import compress, tar

pytestmark = pytest.mark.root_only("an attack on root's unpacking")


@pytest.fixture
def refused(tmp_path):
    """Callable: unpack bytes that must be refused; returns the error. It takes neither long nor much memory."""

    def go(data, **options):
        before, started = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.monotonic()
        with pytest.raises(ImageError) as caught:
            unpacked(data, str(tmp_path / "fs"), **options)
        assert time.monotonic() - started < 5
        assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 200_000
        assert "\n" not in str(caught.value)
        return str(caught.value)

    return go


def raw_header(size=0, kind=b"0", name=b"x", size_field=None):
    block = bytearray(512)
    block[:len(name)] = name
    block[100:108], block[108:116], block[116:124] = b"0000644\0", b"0000000\0", b"0000000\0"
    block[124:136] = size_field or b"%011o\0" % size
    block[136:148], block[156:157], block[257:265] = b"00000000000\0", kind, b"ustar\x0000"
    block[148:156] = b" " * 8
    block[148:156] = b"%06o\0 " % sum(block)
    return bytes(block)


@pytest.mark.parametrize("kind", [b"x", b"L", b"K", b"X"])
def test_a_billion_byte_header(refused, kind):
    assert "extended header of 1000000000 bytes" in refused(raw_header(1_000_000_000, kind) + bytes(2048))


@pytest.mark.parametrize("field", [b"\x80" + b"\xff" * 11, b"\xff" * 12, b"\x80" + bytes(3) + b"\x7f" + b"\xff" * 7], ids=["2**88", "negative", "2**62"])
@pytest.mark.parametrize("kind", [b"0", b"x", b"g", b"V", b"L"])
def test_sizes_beyond_measure(refused, kind, field):
    assert "bytes; at most" in refused(raw_header(kind=kind, size_field=field))


def pax(**records):
    text = b"".join(record(key, value) for key, value in records.items())
    return raw_header(len(text), b"x") + text + bytes(-len(text) % 512)


def record(key, value):
    body = f" {key}={value}\n".encode()
    length = len(body)
    while length != len(str(length)) + len(body):
        length = len(str(length)) + len(body)
    return str(length).encode() + body


@pytest.mark.parametrize("records", [{"size": "-1"}, {"size": "9" * 30}, {"size": "9" * 5000}, {"size": "x"}, {"uid": "-1"}, {"uid": "4294967296"}, {"gid": "1" * 40}, {"mtime": "nan"}, {"mtime": "1e99"}])
def test_pax_numbers(refused, records):
    assert refused(pax(**records) + raw_header(5) + b"hello".ljust(512, b"\0"))


@pytest.mark.parametrize("text", [b"5 a=b\n", b"999999 a=b\n", b"0 a=b\n", b"-6 a=b\n", b"6 ab\n\n", b"\n", b"1234567890123 a=b\n", b"6 a=bc", b"6 a=b\n7 b=", b"4 =\n\n"])
def test_malformed_pax_records(refused, text):
    assert "malformed PAX header" in refused(raw_header(len(text), b"x") + text.ljust(512, b"\0") + raw_header())


def test_a_million_extended_headers(refused):
    assert "more than 5000 headers" in refused(pax(comment="x") * 6000, headers=5000)


def test_a_million_entries(refused):
    assert "more than 5000 headers" in refused(raw_header(0, b"0") * 6000, headers=5000)


@pytest.mark.parametrize("records", [
    {"GNU.sparse.major": "1", "GNU.sparse.minor": "0", "GNU.sparse.name": "x", "GNU.sparse.realsize": "9" * 18},
    {"GNU.sparse.map": "0,1,0,1", "GNU.sparse.size": "10", "GNU.sparse.name": "x"},
    {"GNU.sparse.map": "0,99999999999999999999", "GNU.sparse.size": "10"},
    {"GNU.sparse.map": "5,10", "GNU.sparse.size": "5"},
    {"GNU.sparse.map": "-5,2", "GNU.sparse.size": "5"},
    {"GNU.sparse.map": "0,2,1", "GNU.sparse.size": "5"},
    {"GNU.sparse.map": ",".join(["1,0"] * 70_000), "GNU.sparse.size": "5"},
    {"GNU.sparse.map": "x", "GNU.sparse.size": "5"},
    {"GNU.sparse.realsize": "-1", "GNU.sparse.major": "1"},
])
def test_sparse_bombs(refused, records):
    assert refused(pax(**records) + raw_header(512) + b"1\n0\n512\n".ljust(512, b"\0") + bytes(2048))


def test_an_old_sparse_map_without_end(refused):
    head = bytearray(raw_header(0, b"S"))
    head[386:410], head[482], head[483:495] = b"00000000000\x0000000000000\0", 1, b"00000000000\0"
    head[148:156] = b" " * 8
    head[148:156] = b"%06o\0 " % sum(head)
    more = (b"00000000000\0" * 42 + b"\1").ljust(512, b"\0")
    assert "malformed sparse" in refused(bytes(head) + more * 8000)


def test_a_gzip_bomb_is_bounded(refused):
    packed = gzip.compress(raw_header(1 << 33) + bytes(64 << 20), 9)
    assert len(packed) < 100_000
    assert "larger than a layer may be" in refused(packed, most=16 << 20)
    assert max(map(len, compress.decompress(iter([packed])))) <= compress.PIECE


def test_gzip_with_a_lying_length(refused):
    packed = gzip.compress(layer(entry("a", b"1")))
    assert "gzip stream is damaged" in refused(packed[:-4] + b"\1\0\0\0")


def test_gzip_with_a_lying_checksum(refused):
    packed = gzip.compress(layer(entry("a", b"1")))
    assert "gzip stream is damaged" in refused(packed[:-8] + b"\1\2\3\4" + packed[-4:])


@pytest.mark.parametrize("cut", [1, 5, 9, 30])
def test_truncated_gzip(refused, cut):
    assert "truncated" in refused(gzip.compress(layer(entry("a", b"1")))[:-cut])


def test_gzip_with_rubbish_after_it(refused):
    assert "gzip stream is damaged" in refused(gzip.compress(layer(entry("a", b"1"))) + b"rubbish that is not a member")


def test_a_zstd_window_bomb(refused):
    frame = b"\x28\xb5\x2f\xfd\x00" + bytes([(31 - 10) << 3]) + struct.pack("<I", 1)[:3] + b"x"  # a window of 2 GiB
    assert "zstd stream is damaged" in refused(frame + bytes(100))


def test_damaged_zstd(refused):
    packed = zstandard.ZstdCompressor(write_checksum=True).compress(layer(entry("a", b"1" * 5000)))
    assert "zstd stream is damaged" in refused(packed[:-10] + b"0123456789")


def test_truncated_zstd(refused):
    """Cut within the archive it is the archive that is truncated; cut at an entry's end the layer's digest tells (test_registry_blobs.py)."""
    data = layer(entry("a", random.Random(1).randbytes(500_000)))
    assert "truncated" in refused(zstandard.ZstdCompressor().compress(data)[:300_000])


@pytest.mark.parametrize("cut", [100, 512, 600, 1023])
def test_truncated_archives(refused, cut):
    data = layer(directory("d"), entry("d/a", b"1" * 600), form=tarfile.USTAR_FORMAT)
    assert "truncated" in refused(data[:512 + cut])


def test_trailing_data_counts_for_nothing(tmp_path):
    data = layer(entry("a", b"1"), form=tarfile.USTAR_FORMAT)
    unpacked(data + raw_header(0, name=b"hidden") + b"rubbish" * 1000, str(tmp_path / "fs"))
    assert [path.name for path in (tmp_path / "fs").iterdir()] == ["a"]


@pytest.mark.parametrize("data", [b"not a tar at all" * 100, b"\x7fELF" + bytes(2000), bytes(512) + b"x" * 512, b"x", raw_header()[:-1]])
def test_what_is_no_archive(refused, data):
    assert refused(data).startswith("the layer is")


def test_names_of_every_length_and_link_chains_stay_cheap(tmp_path):
    """Ten thousand replacements in one directory take no quadratic time."""
    started = time.monotonic()
    unpacked(layer(*[entry("d/x", b"1") for _ in range(5000)], *[directory(f"d{number}") for number in range(2000)], form=tarfile.USTAR_FORMAT), str(tmp_path / "fs"))
    assert time.monotonic() - started < 10


def test_no_code_of_the_project_extracts():
    found = subprocess.run(["grep", "-rnE", r"\.extract(all)?\(", tar.__file__.rpartition("/image/")[0], "--include=*.py"], check=False, capture_output=True, text=True)
    assert found.stdout == ""
