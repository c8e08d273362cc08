"""What -v and VOLUME say: Docker's grammar, Docker's words."""

import os

import pytest

from utsuwa.errors import UsageError
from utsuwa.state.paths import Paths
from utsuwa.storage import request, volumes


@pytest.mark.parametrize(("text", "kind", "source", "destination", "readonly"), [
    ("data:/d", "volume", "data", "/d", False), ("data:/d:ro", "volume", "data", "/d", True), ("/h:/d", "bind", "/h", "/d", False), ("/h//x/../y:/d/./e/:ro,z", "bind", "/h/y", "/d/e", True),
    ("/d", "volume", "", "/d", False), ("data://d//e:rw,nocopy", "volume", "data", "/d/e", False), ("/h:/d:ro,rslave,Z", "bind", "/h", "/d", True), ("data:/d:U", "volume", "data", "/d", False),
])
def test_what_is_meant(text, kind, source, destination, readonly):
    found = request.parse(text)
    assert (found.kind, found.source, found.destination, found.readonly) == (kind, source, destination, readonly)


def test_a_relative_source_is_the_callers():
    assert request.parse("./x:/d").source == os.path.abspath("x")
    assert request.parse(".:/d").source == os.getcwd()


@pytest.mark.parametrize(("text", "why"), [
    ("", "invalid empty volume spec"), (":/x", "invalid spec: :/x: empty section between colons"), ("/x:", "invalid spec: /x:: empty section between colons"),
    ("a::b", "invalid spec: a::b: empty section between colons"), ("a:/b:c:d", "invalid volume specification: 'a:/b:c:d'"), ("/a:ro", "invalid volume specification: '/a:ro'"),
    ("/x:/y:foo", "invalid mode: foo"), ("/x:/y:ro,rw", "invalid mode: ro,rw"), ("/x:/y:z,Z", "invalid mode: z,Z"), ("/x:/y:ro,", "invalid mode: ro,"),
    ("ab:b", "invalid volume specification: 'ab:b': invalid mount config for type \"volume\": invalid mount path: 'b' mount path must be absolute"),
    ("/a:/", "invalid volume specification: '/a:/': invalid mount config for type \"bind\": invalid specification: destination can't be '/'"),
    ("/a:/b/..", "invalid volume specification: '/a:/b/..': invalid mount config for type \"bind\": invalid specification: destination can't be '/'"),
    ("x", "invalid volume specification: 'x': invalid mount config for type \"volume\": invalid mount path: 'x' mount path must be absolute"),
    ("ab:/d:shared", "invalid volume specification: 'ab:/d:shared': invalid mount config for type \"volume\": field BindOptions must not be specified"),
    ("a:/d", "create a: volume name is too short, names should be at least two alphanumeric characters"),
    ("rel/x:/y", 'create rel/x: "rel/x" includes invalid characters for a local volume name, only "[a-zA-Z0-9][a-zA-Z0-9_.-]" are allowed. If you intended to pass a host directory, use absolute path'),
    ("-a:/y", 'create -a: "-a" includes invalid characters for a local volume name, only "[a-zA-Z0-9][a-zA-Z0-9_.-]" are allowed. If you intended to pass a host directory, use absolute path'),
])
def test_what_is_refused(text, why):
    with pytest.raises(UsageError) as caught:
        request.parse(text)
    assert str(caught.value) == why


@pytest.mark.parametrize("text", ["a\0b:/d", "/h\0:/d", "ab:/d\0/x", "ab:/" + "x" * 5000, "x" * 300 + ":/d", "ab:/d:ro\0"])
def test_hostile_text_is_refused(text):
    with pytest.raises(UsageError):
        request.parse(text)


def test_the_image_s_volumes_are_anonymous_unless_the_user_mounts_there():
    found = request.collect(["data:/d"], ["/d/", "/e", "/e/f"])
    assert [(each.destination, each.source) for each in found] == [("/d", "data"), ("/e", ""), ("/e/f", "")]


@pytest.mark.parametrize("path", ["", "relative", "/", "/..", "/x\0y", "../etc"])
def test_a_hostile_image_s_volume_is_refused(path):
    with pytest.raises(UsageError, match="in the image"):
        request.collect([], [path])


def test_two_mounts_at_one_place():
    with pytest.raises(UsageError, match=r"^Duplicate mount point: /d$"):
        request.collect(["aa:/d", "/h:/d/"], [])


def test_the_plan_is_mounts_for_any_runtime(tmp_path):
    paths = Paths(f"{tmp_path}/root", f"{tmp_path}/run")
    mounts, points = volumes.plan(paths, ["/h:/d/e:ro,rslave", "data:/d"], ["/v"])
    assert mounts[0] == {"destination": "/d", "type": "bind", "source": f"{tmp_path}/root/volumes/data/_data", "options": ["rbind", "rprivate"]}
    assert mounts[-1] == {"destination": "/d/e", "type": "bind", "source": "/h", "options": ["rbind", "rslave", "rro"]}
    anonymous = next(point for point in points if point["destination"] == "/v")
    assert anonymous["anonymous"] and len(anonymous["name"]) == 64 and anonymous["copy"] and anonymous["driver"] == "local"
    assert not os.path.exists(f"{tmp_path}/root")
