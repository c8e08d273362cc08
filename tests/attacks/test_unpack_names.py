"""Layers whose names lead elsewhere: CVE-2021-32760, CVE-2025-47290, CVE-2025-4517 and its family, CVE-2021-29136.

Each plants the attack beside a directory that stands for the host, unpacks, and asserts that the host is as it was.
"""

import os
import tarfile

import pytest

from support.layers import snapshot, tree, unpacked
from support.registry import directory, entry, layer, link, symlink
from utsuwa.errors import ImageError

pytestmark = pytest.mark.root_only("an attack on root's unpacking")


@pytest.fixture
def attack(tmp_path):
    """Callable: unpack the entries; returns (tree or None, error text). The host beside it must not change."""
    host = tmp_path / "host"
    (host / "etc").mkdir(parents=True)
    (host / "etc" / "passwd").write_text("root")
    (host / "etc" / "passwd").chmod(0o600)
    (host / "victim").write_text("precious")
    before = snapshot(host)
    target = str(tmp_path / "a" / "fs")
    os.mkdir(tmp_path / "a")

    def go(*entries, form=tarfile.PAX_FORMAT):
        error = ""
        try:
            unpacked(layer(*entries, form=form), target)
        except ImageError as caught:
            error = str(caught)
        assert snapshot(host) == before
        assert os.listdir(tmp_path / "a") == ["fs"]
        return tree(target), error

    go.host = str(host)
    yield go
    assert snapshot(host) == before


@pytest.mark.parametrize("name", ["../../host/etc/passwd", "/../../host/etc/passwd", "a/../../../host/etc/passwd", "./../x", ".."])
def test_dotdot_names(attack, name):
    assert "leads outside" in attack(entry(name, b"evil"))[1]


def test_absolute_names_are_the_layers_own(attack):
    found, error = attack(entry("/etc/passwd", b"image"), entry(attack.host + "/etc/passwd", b"image"))
    assert not error and found["etc/passwd"] == b"image" and found[attack.host[1:] + "/etc/passwd"] == b"image"


@pytest.mark.parametrize("name", ["", ".", "/", "./", "a/.."])
def test_empty_and_dot_names(attack, name):
    assert "only a directory can have" in attack(entry(name, b"x"), form=tarfile.GNU_FORMAT)[1]
    os.rmdir(os.path.dirname(attack.host) + "/a/fs")
    assert attack(directory(name), form=tarfile.GNU_FORMAT) == ({}, "")


@pytest.mark.parametrize("target", ["{host}", "../../host", "/../../../../../../{host}", "/proc/self/root{host}", "/proc/self/cwd"])
def test_write_through_a_symlink_of_the_same_layer(attack, target):
    found, _ = attack(symlink("out", target.format(host=attack.host)), entry("out/etc/passwd", b"evil"), entry("out/new", b"evil"))
    assert found["out"].startswith("-> ")


def test_a_file_replaces_a_symlink_and_does_not_follow_it(attack):
    found, error = attack(symlink("passwd", attack.host + "/etc/passwd"), entry("passwd", b"mine"))
    assert (found, error) == ({"passwd": b"mine"}, "")


@pytest.mark.parametrize("kind", [tarfile.DIRTYPE, tarfile.FIFOTYPE, tarfile.CHRTYPE])
def test_nodes_replace_a_symlink_and_do_not_follow_it(attack, kind):
    found, error = attack(symlink("x", attack.host + "/etc"), entry("x", kind=kind, mode=0o777, uid=5, devmajor=1, devminor=3))
    assert not error and found == {"x": {tarfile.DIRTYPE: "dir", tarfile.FIFOTYPE: "fifo", tarfile.CHRTYPE: "c 1:3"}[kind]}


def test_a_directory_entry_does_not_chmod_through_a_symlink(attack):
    """CVE-2021-32760: the mode and owner of an entry, given to what a symlink points at."""
    found, error = attack(directory("d", mode=0o777, uid=7), entry("d/f"), symlink("d", attack.host), directory("d", mode=0o777, uid=7), symlink("d", attack.host))
    assert not error and found == {"d": "-> " + attack.host}


@pytest.mark.parametrize("target", ["{host}/victim", "../../host/victim", "/{host}/victim", "out/victim"])
def test_hard_link_to_the_host(attack, target):
    """The linked file would be written by a later entry, or have its owner changed."""
    _, error = attack(symlink("out", attack.host), link("mine", target.format(host=attack.host)), entry("mine", b"evil"))
    assert "hard link" in error or "leads outside" in error


def test_hard_link_to_a_symlink(attack):
    found, error = attack(symlink("s", attack.host + "/victim"), link("h", "s"), entry("h", b"own"))
    assert not error and found == {"s": "-> " + attack.host + "/victim", "h": b"own"}


@pytest.mark.parametrize("target", ["h", "d", ".", "missing/x", "f/x"])
def test_hard_link_to_itself_a_directory_or_nothing(attack, target):
    _, error = attack(directory("d"), entry("f", b"1"), link("h", target))
    assert error.startswith(("the layer has a hard link", "cannot unpack 'h'"))


def test_a_hard_link_does_not_replace_a_tree_of_the_host(attack):
    found, error = attack(symlink("d", attack.host), entry("f", b"1"), link("d", "f"))
    assert not error and found == {"d": b"1", "f": b"1"}


@pytest.mark.parametrize("name", [".wh.", ".wh..", ".wh...", "d/.wh..", "d/.wh..."])
def test_whiteout_of_nothing_or_of_the_parent(attack, name):
    assert "whiteout of nothing" in attack(directory("d"), entry(name))[1]


def test_whiteout_over_a_symlink(attack):
    found, error = attack(symlink("s", attack.host + "/victim"), entry(".wh.s"))
    assert (found, error) == ({"s": "-> " + attack.host + "/victim"}, "")


@pytest.mark.parametrize("name", ["out/.wh.victim", "out/etc/.wh.passwd", "out/.wh..wh..opq"])
def test_whiteout_through_a_symlink(attack, name):
    found, error = attack(symlink("out", attack.host), entry(name))
    assert "leads nowhere" in error and found == {"out": "-> " + attack.host}


def test_opaque_marker_in_the_root(attack):
    found, error = attack(entry(".wh..wh..opq"), entry("x", b"1"))
    assert (found, error) == ({"x": b"1"}, "")


def test_duplicate_entries_and_changes_of_type(attack):
    found, error = attack(
        entry("x", b"1"), entry("x", b"2"), directory("x"), entry("x/deep/file", b"3"), symlink("x", "y"), directory("x"), entry("x/last", b"4"),
        directory("x", mode=0o700), entry("y", b"5"), link("y2", "y"), entry("y", b"6"),
    )
    assert not error and found == {"x": "dir", "x/last": b"4", "y": b"6", "y2": b"5"}


def test_a_tree_is_removed_without_following_its_links(attack):
    found, error = attack(directory("d"), symlink("d/out", attack.host), symlink("d/file", attack.host + "/victim"), entry("d", b"now a file"))
    assert (found, error) == ({"d": b"now a file"}, "")


def test_a_parent_that_is_a_file_or_a_dangling_link(attack):
    assert "cannot unpack" in attack(entry("f", b"1"), entry("f/x", b"2"))[1]
    os.unlink(os.path.dirname(attack.host) + "/a/fs/f")
    os.rmdir(os.path.dirname(attack.host) + "/a/fs")
    assert "leads nowhere" in attack(symlink("l", "nowhere"), entry("l/x", b"2"))[1]


def test_symlink_loops_end(attack):
    assert "cannot unpack" in attack(symlink("a", "b"), symlink("b", "a"), entry("a/x", b"1"))[1]


def test_names_that_no_file_can_have(attack):
    for name, why in (("n" * 256, "longer than 255"), ("d/" * 300 + "f", "more than 256 components"), ("x" * 5000, "no file can have")):
        assert why in attack(entry(name, b"1"))[1]
        os.rmdir(os.path.dirname(attack.host) + "/a/fs")
    header, _ = entry("x", b"", pax_headers={"path": "a\0b"})
    assert "no file can have" in attack((header, b""))[1]


def test_owners_that_no_file_can_have(attack):
    """CVE-2024-40635: a user id beyond 32 bits becomes 0."""
    assert "owner that no file can have" in attack(entry("x", b"", uid=1 << 32), form=tarfile.GNU_FORMAT)[1]
    os.rmdir(os.path.dirname(attack.host) + "/a/fs")
    assert "owner that no file can have" in attack(entry("x", b"", uid=-1), form=tarfile.GNU_FORMAT)[1]


def test_overlay_attributes_cannot_be_planted(attack):
    """A redirect or a metacopy marker would make overlayfs take a directory's content from elsewhere in the stack."""
    planted = {f"SCHILY.xattr.{space}.overlay.{name}": "/etc" for space in ("trusted", "user") for name in ("redirect", "metacopy", "origin", "opaque", "whiteout")}
    attack(entry("f", b"1", pax_headers=planted), directory("d", pax_headers=planted))
    fs = os.path.dirname(attack.host) + "/a/fs"
    assert os.listxattr(fs + "/f") == os.listxattr(fs + "/d") == []
