"""Volumes: hostile images and hostile neighbours. The host stays as it was (attacks.md, C and D)."""

import contextlib
import os
import stat

import pytest

from utsuwa.errors import RuntimeFailure, UsageError
from utsuwa.state.db import Database
from utsuwa.state.paths import Paths
from utsuwa.storage import copyup, volumes

LOW = "a" * 64
as_root = pytest.mark.skipif(os.geteuid() != 0, reason="needs root: what root may do to the host is the attack")


class Scene:
    """An engine, an image of one layer, and a file of the host that must stay `secret`."""

    def __init__(self, place):
        self.paths = Paths(f"{place}/root", f"{place}/run")
        self.paths.make()
        self.db = Database(self.paths.database)
        self.image = self.paths.layer(LOW)
        os.makedirs(self.image)
        self.host = f"{place}/host"
        os.makedirs(f"{self.host}/dir")
        with open(f"{self.host}/dir/secret", "w") as file:
            file.write("secret")
        os.chmod(f"{self.host}/dir/secret", 0o600)

    def make(self, spec, volumes_of_image=()):
        _, points = volumes.plan(self.paths, [spec] if spec else [], list(volumes_of_image))
        volumes.make(self.db, self.paths, points, [LOW])
        return points[0]["source"]

    def untouched(self):
        with open(f"{self.host}/dir/secret") as file:
            text = file.read()
        info = os.stat(f"{self.host}/dir/secret")
        return text == "secret" and stat.S_IMODE(info.st_mode) == 0o600 and info.st_nlink == 1 and os.listdir(f"{self.host}/dir") == ["secret"]


@pytest.fixture
def scene(tmp_path):
    made = Scene(tmp_path)
    yield made
    made.db.close()
    assert made.untouched()


def below(top):
    return sorted(os.path.relpath(os.path.join(path, name), top) for path, folders, names in os.walk(top) for name in folders + names)


@pytest.mark.parametrize("climb", ["{host}/dir", "../../../../../../../../../../../{host}/dir", "/proc/self/root{host}/dir", "/proc/self/cwd", "/proc/1/root"])
def test_cve_2020_1726_the_volume_s_place_is_a_symlink_to_the_host(scene, climb):
    os.symlink(climb.format(host=scene.host), f"{scene.image}/d")
    assert os.listdir(scene.make("vol:/d")) == []


def test_a_symlink_that_stays_in_the_image_is_followed_there(scene):
    os.makedirs(f"{scene.image}/real")
    open(f"{scene.image}/real/x", "w").close()
    os.symlink("/real", f"{scene.image}/d")
    assert os.listdir(scene.make("vol:/d")) == ["x"]


def test_links_below_are_copied_not_followed(scene):
    os.makedirs(f"{scene.image}/d/sub")
    os.symlink(f"{scene.host}/dir", f"{scene.image}/d/dir")
    os.symlink(f"{scene.host}/dir/secret", f"{scene.image}/d/sub/file")
    os.symlink("/proc/self/root", f"{scene.image}/d/root")
    made = scene.make("vol:/d")
    assert below(made) == ["dir", "root", "sub", "sub/file"]
    assert os.path.islink(made + "/dir") and os.path.islink(made + "/sub/file") and os.path.islink(made + "/root")


def test_cve_2020_1726_a_volume_with_content_is_never_written(scene):
    made = scene.make("vol:/none")
    with open(made + "/passwd", "w") as file:
        file.write("mine")
    os.makedirs(f"{scene.image}/d")
    with open(f"{scene.image}/d/passwd", "w") as file:
        file.write("theirs")
    scene.make("vol:/d")
    with open(made + "/passwd") as file:
        assert file.read() == "mine"


def test_a_fifo_where_a_file_was_does_not_hang_the_engine(scene):
    os.makedirs(f"{scene.image}/d")
    os.mkfifo(f"{scene.image}/d/passwd")
    assert stat.S_ISFIFO(os.stat(scene.make("vol:/d") + "/passwd").st_mode)


@pytest.mark.parametrize("path", ["/../../../../etc", "/d/../../../../etc"])
def test_a_path_that_climbs_stays_in_the_image(scene, path):
    os.makedirs(f"{scene.image}/etc")
    open(f"{scene.image}/etc/of-the-image", "w").close()
    assert os.listdir(scene.make("", [path])) == ["of-the-image"]


@pytest.mark.parametrize("name", ["..", "../x", "a/../../b", "_data/..", ".tmp-x", "x\n", "a\0b", "%2e%2e"])
def test_a_volume_s_name_is_no_path(scene, name):
    if not name.startswith("."):  # with a dot it is a path of the caller's, as in Docker
        with pytest.raises(UsageError):
            scene.make(f"{name}:/d")
    with pytest.raises(UsageError):
        volumes.remove(scene.db, scene.paths, name)
    assert os.listdir(scene.paths.root + "/volumes") == []


def test_a_volume_s_directory_swapped_for_a_link_is_refused(scene):
    os.makedirs(f"{scene.paths.root}/volumes/vol")
    os.symlink(f"{scene.host}/dir", f"{scene.paths.root}/volumes/vol/_data")
    os.makedirs(f"{scene.image}/d/x")
    with pytest.raises(RuntimeFailure, match="cannot make the volume vol"):
        scene.make("vol:/d")


def test_removal_follows_no_link(scene):
    made = scene.make("vol:/d")
    os.symlink(f"{scene.host}/dir", made + "/link")
    os.makedirs(made + "/closed/in")
    os.chmod(made + "/closed", 0)
    os.link(f"{scene.host}/dir/secret", made + "/hard")
    assert volumes.remove(scene.db, scene.paths, "vol")
    assert os.listdir(scene.paths.root + "/volumes") == os.listdir(scene.paths.root + "/trash") == []


@as_root
@pytest.mark.parametrize(("call", "link"), [("mknod", "{host}/dir/secret"), ("mkdir", "{host}/dir"), ("symlink", "{host}/dir/secret")])
def test_a_neighbour_that_swaps_what_was_just_made_reaches_nothing_outside(scene, monkeypatch, call, link):
    """A container that has the (empty) volume puts a link to the host in the place of what the engine has just made there, at the worst instant."""
    os.makedirs(f"{scene.image}/d/dir")
    with open(f"{scene.image}/d/dir/secret", "w") as file:
        file.write("theirs")
    os.mkfifo(f"{scene.image}/d/fifo")
    os.chmod(f"{scene.image}/d/fifo", 0o666)  # noqa: S103 - what would show on the host
    os.symlink("x", f"{scene.image}/d/link")
    os.chown(f"{scene.image}/d/link", 7, 7, follow_symlinks=False)
    made = scene.make("vol:/none")
    genuine, symlink = getattr(os, call), os.symlink
    swapped = []

    def swapping(*args, dir_fd, **kw):
        genuine(*args, dir_fd=dir_fd, **kw)
        name = args[1] if call == "symlink" else args[0]
        if os.readlink(f"/proc/self/fd/{dir_fd}") == made:
            os.rename(name, name + ".was", src_dir_fd=dir_fd, dst_dir_fd=dir_fd)
            symlink(link.format(host=scene.host), name, dir_fd=dir_fd)
            swapped.append(name)

    monkeypatch.setattr(os, call, swapping)
    with contextlib.suppress(RuntimeFailure):
        scene.make("vol:/d")
    monkeypatch.undo()
    assert swapped and scene.untouched() and os.stat(f"{scene.host}/dir/secret").st_uid == 0


def test_a_hard_link_s_first_name_swapped_for_a_link(scene, monkeypatch):
    os.makedirs(f"{scene.image}/d/one")
    open(f"{scene.image}/d/one/secret", "w").close()
    os.link(f"{scene.image}/d/one/secret", f"{scene.image}/d/two")
    made = scene.make("vol:/none")
    real = copyup._Copy._link

    def swapping(self, info, target, name):
        if self._links and not os.path.islink(made + "/one"):
            os.rename(made + "/one", made + "/was")
            os.symlink(f"{scene.host}/dir", made + "/one")
        return real(self, info, target, name)

    monkeypatch.setattr(copyup._Copy, "_link", swapping)
    monkeypatch.setattr(os, "listdir", lambda path, listed=os.listdir: sorted(listed(path)))  # one before two
    with pytest.raises(RuntimeFailure, match="cannot make the volume vol"):
        scene.make("vol:/d")
    assert not os.path.exists(made + "/two")


def test_more_links_than_the_descriptors_allow_cost_none(scene):
    os.makedirs(f"{scene.image}/d")
    open(f"{scene.image}/d/first", "w").close()
    for number in range(2000):
        os.link(f"{scene.image}/d/first", f"{scene.image}/d/{number}")
    before = len(os.listdir("/proc/self/fd"))
    made = scene.make("vol:/d")
    assert os.stat(made + "/first").st_nlink == 2001 and len(os.listdir("/proc/self/fd")) == before
