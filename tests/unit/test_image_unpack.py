"""A layer becomes a directory: kinds, owners, modes, times, attributes, whiteouts; whatever the pieces it comes in."""

import gzip
import io
import os
import stat
import struct
import subprocess
import tarfile

import pytest
import zstandard

from support.layers import tree, unpacked
from support.registry import directory, entry, layer, link, symlink
from utsuwa.errors import ImageError
from utsuwa.image import tar, unpack

pytestmark = pytest.mark.root_only("owners, device nodes and trusted attributes are root's to give; the rootless lane pulls in its own namespace")
CAPABILITY = struct.pack("<IIIII", 0x02000001, 1 << 13, 0, 0, 0)  # cap_net_raw+ep


@pytest.fixture
def target(tmp_path):
    return str(tmp_path / "fs")


@pytest.mark.parametrize("form", [tarfile.PAX_FORMAT, tarfile.GNU_FORMAT, tarfile.USTAR_FORMAT])
@pytest.mark.parametrize("pieces", [1, 511, 65536])
def test_kinds(target, form, pieces):
    data = layer(
        directory("d"), entry("d/file", b"x" * 1500), symlink("d/link", "/etc/passwd"), link("hard", "d/file"), entry("fifo", kind=tarfile.FIFOTYPE),
        entry("null", kind=tarfile.CHRTYPE, devmajor=1, devminor=3), entry("empty"), form=form,
    )
    assert unpacked(data, target, pieces=pieces) == 1500
    assert tree(target) == {"d": "dir", "d/file": b"x" * 1500, "d/link": "-> /etc/passwd", "hard": b"x" * 1500, "fifo": "fifo", "null": "c 1:3", "empty": b""}
    assert os.path.samefile(target + "/hard", target + "/d/file")


def test_owners_modes_and_times(target):
    before = os.umask(0o077)
    try:
        unpacked(layer(
            directory("./", mode=0o711, mtime=5), directory("sticky", mode=0o1777, mtime=1_000_000_000), entry("sticky/suid", b"x", mode=0o4755, uid=1000, gid=2000, mtime=1_500_000_000),
            directory("closed", mode=0o000), entry("closed/inside", b"y", mode=0o444), symlink("link", "nowhere"), entry("implied/deep/file"), entry("old", mtime=-5), entry("late", mtime=1 << 40),
        ), target)
    finally:
        os.umask(before)
    status = os.stat(target + "/sticky/suid")
    assert (stat.S_IMODE(status.st_mode), status.st_uid, status.st_gid, status.st_mtime) == (0o4755, 1000, 2000, 1_500_000_000)
    assert (stat.S_IMODE(os.stat(target).st_mode), os.stat(target).st_mtime) == (0o711, 5)
    assert (stat.S_IMODE(os.stat(target + "/sticky").st_mode), os.stat(target + "/sticky").st_mtime) == (0o1777, 1_000_000_000)
    assert (stat.S_IMODE(os.stat(target + "/closed").st_mode), stat.S_IMODE(os.stat(target + "/closed/inside").st_mode)) == (0, 0o444)
    assert stat.S_IMODE(os.stat(target + "/implied/deep").st_mode) == 0o755
    assert os.stat(target + "/old").st_mtime == 0 and os.stat(target + "/late").st_mtime > 1 << 33


def test_times_to_the_nanosecond_and_long_names(target):
    long = "d" * 90 + "/" + "n" * 250
    unpacked(layer(entry(long, b"1", mtime=1_600_000_000.25, pax_headers={"mtime": "1600000000.123456789"}), symlink("l", "t" * 300)), target)
    assert os.stat(f"{target}/{long}").st_mtime_ns == 1_600_000_000_123_456_789
    assert os.readlink(target + "/l") == "t" * 300


def test_names_are_bytes(target):
    header, data = entry("x", b"1")
    raw = layer((header, data), form=tarfile.USTAR_FORMAT)
    name = b"caf\xe9\xff"
    block = bytearray(raw[:512])
    block[:len(name)] = name
    block[148:156] = b" " * 8
    block[148:156] = b"%06o\0 " % sum(block)
    unpacked(bytes(block) + raw[512:], target)
    assert os.listdir(os.fsencode(target)) == [name]


def test_attributes(target):
    fields = {"SCHILY.xattr.user.note": "hi", "SCHILY.xattr.trusted.overlay.redirect": "/etc", "SCHILY.xattr.user.overlay.opaque": "y", "SCHILY.xattr.security.selinux": "x", "SCHILY.xattr.trusted.x": "1"}
    raw = {**fields, "SCHILY.xattr.security.capability": CAPABILITY.decode("latin-1")}
    unpacked(layer(entry("file", b"x", pax_headers=fields), entry("cap", b"x", uid=5, pax_headers={k: v for k, v in raw.items() if v.isascii()})), target)
    assert os.listxattr(target + "/file") == ["user.note"]
    assert os.getxattr(target + "/cap", "security.capability")[4:8] == CAPABILITY[4:8]


def test_whiteouts_are_written_down_for_overlayfs(target):
    unpacked(layer(directory("d"), entry("d/.wh.gone"), entry(".wh.also"), directory("o"), entry("o/.wh..wh..opq"), entry("o/new", b"1"), entry(".wh..wh.plnk"), entry(".wh..wh.aufs")), target)
    assert tree(target) == {"d": "dir", "d/gone": "c 0:0", "also": "c 0:0", "o": "dir", "o/new": b"1"}
    assert os.getxattr(target + "/o", "trusted.overlay.opaque") == b"y"


@pytest.mark.parametrize("first", ["whiteout", "thing"])
def test_a_whiteout_concerns_the_layers_below_only(target, first):
    """OCI image-spec, layer.md: whatever the order, what this layer has stays, and of what was below nothing shines through."""
    mark, things = [entry(".wh.d"), entry(".wh.f")], [directory("d"), entry("d/new", b"1"), entry("f", b"2")]
    unpacked(layer(*(mark + things if first == "whiteout" else things + mark)), target)
    assert tree(target) == {"d": "dir", "d/new": b"1", "f": b"2"}
    assert os.getxattr(target + "/d", "trusted.overlay.opaque") == b"y"


def test_overlayfs_agrees(tmp_path):
    """Three layers, stacked by the kernel: what was deleted is gone, what was replaced is new."""
    stack = [
        layer(directory("a"), entry("a/1", b"1"), entry("a/2", b"2"), directory("b"), entry("b/x", b"x"), entry("f", b"f"), symlink("s", "a"), directory("t"), entry("t/in", b"t")),
        layer(directory("a"), entry("a/.wh.1"), directory("b"), entry("b/.wh..wh..opq"), entry("b/y", b"y"), entry(".wh.s"), entry("t", b"now a file")),
        layer(directory("f"), entry("f/deep", b"now a directory")),
    ]
    for number, data in enumerate(stack):
        unpacked(data, f"{tmp_path}/{number}")
    os.mkdir(f"{tmp_path}/merged")
    script = f"mount -t overlay overlay -o lowerdir={tmp_path}/2:{tmp_path}/1:{tmp_path}/0 {tmp_path}/merged && tar -C {tmp_path}/merged -cf - ."
    done = subprocess.run(["unshare", "-m", "sh", "-c", script], check=True, capture_output=True)
    with tarfile.open(fileobj=io.BytesIO(done.stdout)) as archive:
        assert sorted(member.name for member in archive) == [".", "./a", "./a/2", "./b", "./b/y", "./f", "./f/deep", "./t"]


def test_a_user_namespace_has_its_own_attribute_and_no_devices(target):
    unpacked(layer(directory("o"), entry("o/.wh..wh..opq"), entry("null", kind=tarfile.CHRTYPE, devmajor=1, devminor=3), entry("p", kind=tarfile.FIFOTYPE), entry(".wh.x")), target, in_userns=True)
    assert tree(target) == {"o": "dir", "p": "fifo", "x": "c 0:0"}
    assert os.listxattr(target + "/o") == ["user.overlay.opaque"]
    assert not unpack.in_user_namespace()


def sparse(form, tmp_path):
    with open(f"{tmp_path}/hole", "wb") as file:
        for at in range(6):
            file.seek(at * 100_000)
            file.write(b"data%d" % at)
        file.truncate(700_000)
    return subprocess.run(["tar", "-C", tmp_path, "-S", *form, "-cf", "-", "hole"], check=True, capture_output=True).stdout


@pytest.mark.parametrize("form", [["--format=gnu"], ["--format=pax", "--sparse-version=1.0"], ["--format=pax", "--sparse-version=0.1"]], ids=["gnu", "pax1.0", "pax0.1"])
def test_sparse_files(target, tmp_path, form):
    data = sparse(form, str(tmp_path))
    assert len(data) < 200_000
    assert unpacked(data, target, pieces=700) == 700_000
    with open(f"{tmp_path}/hole", "rb") as one, open(target + "/hole", "rb") as other:
        assert one.read() == other.read()
    assert os.stat(target + "/hole").st_blocks * 512 < 300_000


@pytest.mark.parametrize("pack", [
    gzip.compress, lambda data: gzip.compress(data[:700]) + gzip.compress(data[700:]), zstandard.ZstdCompressor().compress,
    lambda data: b"\x50\x2a\x4d\x18\4\0\0\0abcd" + zstandard.ZstdCompressor().compress(data[:700]) + zstandard.ZstdCompressor().compress(data[700:]) + b"\x5f\x2a\x4d\x18\0\0\0\0",
], ids=["gzip", "gzip-members", "zstd", "zstd-frames"])
@pytest.mark.parametrize("pieces", [1, 4096])
def test_compressions(target, pack, pieces):
    unpacked(pack(layer(entry("a", b"a" * 3000), entry("b", b"b"))), target, pieces=pieces)
    assert tree(target) == {"a": b"a" * 3000, "b": b"b"}


def test_a_plain_header_is_read_as_tarfile_reads_it():
    data = layer(directory("d/", mode=0o1777), entry("f" * 100, b"x", uid=7, gid=8, mtime=9), symlink("s", "t" * 100), entry("ä", b""), form=tarfile.USTAR_FORMAT)
    for at in (0, 512, 1536, 2048):
        block = data[at:at + 512]
        mine, theirs = tar._plain_header(block), tarfile.TarInfo.frombuf(block, "utf-8", "surrogateescape")
        assert mine.get_info() == {**theirs.get_info(), "chksum": 0}


@pytest.mark.parametrize("ending", [b"", bytes(512), bytes(1024), bytes(10240)])
def test_endings(target, ending):
    data = layer(entry("a", b"1"), form=tarfile.USTAR_FORMAT)[:1024]
    unpacked(data + ending, target)
    assert tree(target) == {"a": b"1"}


def test_accounts_are_read_from_regular_files_only(target):
    unpacked(layer(directory("etc"), entry("etc/passwd", b"root"), symlink("etc/group", "passwd"), entry("etc/.wh.shadow")), target)
    fd = os.open(target, os.O_RDONLY)
    try:
        assert unpack.read_file(fd, "etc/passwd", 100) == (True, b"root")
        assert unpack.read_file(fd, "etc/passwd", 3) == (True, None)
        assert unpack.read_file(fd, "etc/group", 100) == (True, None)
        assert unpack.read_file(fd, "etc/shadow", 100) == (True, None)
        assert unpack.read_file(fd, "etc/other", 100) == (False, None)
        assert unpack.read_file(fd, "usr/passwd", 100) == (False, None)
    finally:
        os.close(fd)


def test_an_error_names_the_entry(target):
    with pytest.raises(ImageError, match=r"^the layer has a hard link to what is not in it: 'a' to 'b'$"):
        unpacked(layer(link("a", "b")), target)
