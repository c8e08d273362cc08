"""pull, images and rmi against Debian's docker-registry, as root and as an ordinary user, by the command line."""

import json
import os
import re
import signal
import subprocess
import time

import pytest

from support.registry import FakeRegistry, Image, directory, entry, layer, symlink

DIGEST = r"sha256:[0-9a-f]{64}"


def within(lane, code):
    """Run Python in the lane, with `where` as the engine's context; returns what it printed."""
    head = f"import os, sys; sys.path.insert(0, {os.path.dirname(lane.package)!r}); from utsuwa.cli.main import context; where = context()\n"
    return lane.execute([lane.python, "-I", "-c", head + code], check=True).out.strip()


def leftovers(lane):
    return within(lane, "from utsuwa.image import store; print(store.leftovers(where.paths, where.db))")


@pytest.fixture
def tidy(utsuwa):
    """No image before; after it those of the test are removed, and nothing else was left."""
    remove_images(utsuwa)
    yield utsuwa
    remove_images(utsuwa)
    assert leftovers(utsuwa) == "[]"


def remove_images(lane):
    names = lane("images", "-q", "--no-trunc", check=True).lines
    if names:
        lane("rmi", "-f", *names, check=True)


def test_pull_says_what_docker_says(tidy, registry):
    name = f"{registry.address}/busybox"
    first = tidy("pull", name, check=True)
    assert first.lines[0] == "Using default tag: latest" and first.lines[1] == "latest: Pulling from busybox" and first.err == ""
    assert re.fullmatch(r"[0-9a-f]{12}: Pulling fs layer", first.lines[2]) and first.lines[3] == first.lines[2].replace("Pulling fs layer", "Pull complete")
    assert re.fullmatch("Digest: " + DIGEST, first.lines[4])
    assert first.lines[5:] == [f"Status: Downloaded newer image for {name}:latest", f"{name}:latest"]
    again = tidy("pull", name + ":latest", check=True)
    assert again.lines == ["latest: Pulling from busybox", first.lines[4], f"Status: Image is up to date for {name}:latest", f"{name}:latest"]
    digest = first.lines[4].removeprefix("Digest: ")
    by_digest = tidy("pull", "-q", f"{name}@{digest}", check=True)
    assert by_digest.lines == [f"{name}@{digest}"]


def test_images_lists_them(tidy, registry):
    name = f"{registry.address}/busybox"
    tidy("pull", "-q", name, check=True)
    head, line = tidy("images", check=True).lines
    assert head.split() == ["REPOSITORY", "TAG", "IMAGE", "ID", "CREATED", "SIZE"]
    assert re.fullmatch(re.escape(name) + r" +latest +[0-9a-f]{12} +\d+ (years|months) ago +[\d.]+MB", line)
    [full] = tidy("images", "-q", "--no-trunc", check=True).lines
    assert re.fullmatch(DIGEST, full) and tidy("images", "-q", check=True).lines == [full[7:19]]
    assert tidy("images", "--format", "{{.Repository}}:{{.Tag}} {{.ID}}", check=True).lines == [f"{name}:latest {full[7:19]}"]
    assert json.loads(tidy("images", "--format", "json", check=True).out)["Tag"] == "latest"
    assert re.search(DIGEST, tidy("images", "--digests", name, check=True).lines[1])
    assert tidy("images", "nothing", check=True).lines == [head] or len(tidy("images", "nothing", check=True).lines) == 1


def test_rmi(tidy, registry):
    name = f"{registry.address}/busybox:latest"
    tidy("pull", "-q", name, check=True)
    gone = tidy("rmi", name, check=True)
    assert [line.partition(" ")[0] for line in gone.lines] == ["Untagged:", "Untagged:", "Deleted:", "Deleted:"]
    again = tidy("rmi", name)
    assert (again.code, again.out, again.err) == (1, "", f"utsuwa: no such image: {name}\n")
    assert tidy("images", "-q", check=True).lines == []


def test_owners_links_and_whiteouts_arrive(tidy, registry):
    """In the rootless lane the owners are subordinate ids; the container sees the image's own."""
    base = layer(directory("d", uid=1000, gid=1000), entry("d/suid", b"x", mode=0o4755), entry("d/gone", b"x"), symlink("d/link", "/d/suid"), entry("d/high", b"x", uid=2000, gid=60000))
    registry.push("layers", Image(base, layer(directory("d", uid=1000, gid=1000), entry("d/.wh.gone"), directory("o"), entry("o/.wh..wh..opq"))))
    tidy("pull", "-q", f"{registry.address}/layers", check=True)
    code = (
        f"from utsuwa.engine import images; record = images.resolve(where, {registry.address + '/layers'!r}); low, high = map(where.paths.layer, record.layers)\n"
        "see = lambda path: (oct(os.lstat(path).st_mode), os.lstat(path).st_uid, os.lstat(path).st_gid, os.lstat(path).st_rdev)\n"
        "print([see(low + '/d/suid'), see(low + '/d/high'), see(low + '/d'), os.readlink(low + '/d/link'), see(high + '/d/gone'), os.listxattr(high + '/o')])"
    )
    attribute = "user.overlay.opaque" if tidy.rootless else "trusted.overlay.opaque"
    assert within(tidy, code) == str([
        ("0o104755", 0, 0, 0), ("0o100644", 2000, 60000, 0), ("0o40755", 1000, 1000, 0), "/d/suid", ("0o20000", 0, 0, 0), [attribute],
    ])


def test_errors_are_one_line(tidy, registry):
    other = Image(layer(entry("a")), architecture="s390x")
    registry.push("foreign", other)
    for name, why in (
        (f"{registry.address}/nothing", "manifest for .* not found: manifest unknown"), (f"{registry.address}/busybox:nope", "not found"), ("127.0.0.1:1/x", "connection refused"),
        (f"{registry.address}/foreign", "no image for linux/"), (f"{registry.address}/busybox@sha256:" + "0" * 64, "not found"),
    ):
        failed = tidy("pull", name)
        assert failed.code == 1 and re.search(why, failed.err), failed
        assert failed.err.startswith("utsuwa: ") and failed.err.count("\n") == 1
    assert tidy("images", "-q", check=True).lines == []
    bad = tidy("pull", "BAD//name")
    assert bad.code == 1 and bad.err.startswith("utsuwa: invalid reference format") and bad.err.count("\n") == 1


@pytest.fixture
def slow():
    """A registry whose only layer stalls half-way."""
    data = layer(entry("big", b"x" * 3_000_000))
    image = Image(data, packed=[data])
    with FakeRegistry() as fake:
        reference = fake.add("slow", image)
        [path] = [path for path in fake.routes if path.endswith(image.manifest_dict["layers"][0]["digest"])]

        def stall():
            yield data[:1_500_000]
            time.sleep(30)

        fake.whole = fake.routes[path]
        fake.path, fake.reference = path, reference
        from support.registry import Answer

        fake.routes[path] = lambda request: Answer(stall(), length=len(data))
        yield fake


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_stopped_in_the_middle_the_next_pull_works(tidy, slow, number):
    with tidy.popen("pull", slow.reference) as pull:
        line = b""
        while b"Pulling fs layer" not in line:
            line = pull.stdout.readline()
            assert line
        time.sleep(0.1)
        pull.send_signal(number)
        out, err = pull.communicate(timeout=10)
    assert pull.returncode == (130 if number == signal.SIGINT else -number), (out, err)
    assert b"Traceback" not in err
    if number == signal.SIGINT:
        assert leftovers(tidy) == "[]"
    slow.routes[slow.path] = slow.whole
    assert tidy("pull", slow.reference, check=True).lines[-1] == slow.reference
    assert leftovers(tidy) == "[]"


def test_two_pulls_at_once(tidy, registry):
    name = f"{registry.address}/busybox:latest"
    with tidy.popen("pull", name) as one, tidy.popen("pull", name) as other:
        results = [process.communicate(timeout=30) for process in (one, other)]
    assert [one.returncode, other.returncode] == [0, 0], results
    said = [line for out, _ in results for line in out.decode().splitlines() if line.startswith("Status: ")]
    assert sorted(said) == [f"Status: Downloaded newer image for {name}", f"Status: Image is up to date for {name}"]


@pytest.mark.root_only("mounts a small file system")
def test_a_full_disk(tidy, registry, lane_dir):
    registry.push("big", Image(layer(*[entry(f"f{number}", os.urandom(500_000)) for number in range(12)])))
    script = f"mount -t tmpfs -o size=4m tmpfs {lane_dir} && export UTSUWA_ROOT={lane_dir}/root && {{ {tidy.program} pull -q {registry.address}/big; echo code $?; {tidy.program} images -q; cd {lane_dir}/root && find layers trash blobs -mindepth 1; }}"
    done = subprocess.run(["unshare", "-m", "sh", "-c", script], check=False, capture_output=True, text=True, env=tidy.environ())
    assert done.stderr.count("\n") == 1 and done.stderr.startswith("utsuwa: cannot ") and "no space left on device" in done.stderr, done
    assert done.stdout == "code 1\n"
