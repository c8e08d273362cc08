"""Containers that race with the engine while it sets up or enters another: exchanges of names in what they share, looks at what enters. Section A, both lanes.

CVE-2021-30465 and 2024-45310 (mount target swapped), 2025-31133 (/dev/null swapped before masking), 2025-52565 (/dev/pts swapped), 2024-21626 (work directory
swapped), 2019-5736 (the runtime's program opened, or made the program), 2016-9962 (a peer looks into what enters).
"""

import contextlib
import os

import pytest

from support.containers import STOCK, eventually, finish, one_line
from support.hostile import UNMASKED, Scene, mounts
from support.lanes import Result

UP = "../" * 12
SHOW = "echo pwned > /data/sub/pwned; echo pwned > /data/sub; cat /proc/self/mountinfo; echo started"


@pytest.fixture
def scene(utsuwa, registry, lane_dir):
    made = Scene(utsuwa, registry, lane_dir)
    yield made
    made.close()


def volume(scene, script):
    """Return a new volume, filled by a script that finds it at /d."""
    name = scene.name()
    scene.run("sh", "-c", f"cd /d; {script}", options=["-v", f"{name}:/d"])
    return name


def outcomes(scene, each, count, together=3):
    """Run `each(number)`, the words of a run, `count` times, some together; returns what came of them. The host is looked at after each group."""
    found = []
    for first in range(0, count, together):
        with contextlib.ExitStack() as stack:
            started = [stack.enter_context(scene.lane.popen("run", "--rm", *STOCK, *each(number))) for number in range(first, min(first + together, count))]
            ended = [finish(process, 60) for process in started]
        found += [Result(code, out.decode(), err.decode(), out) for code, out, err in ended]
        scene.host.unchanged()
    return found


def settled(results, *says):
    """Assert that each ran to its end or was refused in one clear line; returns the outputs of those that ran."""
    for done in results:
        if done.code:
            one_line(done, *says)
    return [done.out for done in results if not done.code]


# ---- mount targets

@pytest.mark.parametrize("target", ["{victim}/dir", UP + "{victim}/dir", "/proc/1/root{victim}/dir", ".."])
def test_cve_2021_30465_a_mount_target_swapped_for_a_symlink(scene, target):
    """Another volume's mount beneath the shared one is in the shared one, by whichever name, or nowhere."""
    shared, inner = volume(scene, f"mkdir sub; ln -s {target.format(victim=scene.host.victim)} link"), scene.name()
    with scene.swapping(shared, "sub", "link"):
        ran = settled(outcomes(scene, lambda _: ("-v", f"{shared}:/data", "-v", f"{inner}:/data/sub", scene.image, "sh", "-c", SHOW), 12))
    for out in ran:
        points = [point for point, root, _ in mounts("\n".join(line for line in out.splitlines() if " - " in line)) if inner in root]
        assert set(points) <= {"/data/sub", "/data/link", "/data"} and points, points


def test_cve_2024_45310_files_and_directories_to_mount_on_are_not_made_on_the_host(scene):
    """A file's bind, a new directory's, a new work directory: each beneath a name that is swapped for a link into the victim's."""
    shared = volume(scene, f"mkdir sub; ln -s {scene.host.directory}/sub link")
    options = [("-v", f"{scene.host.file}:/data/sub/new:ro"), ("-v", "/data/sub/deep/new"), ("-w", "/data/sub/work/new")]
    with scene.swapping(shared, "sub", "link"):
        results = outcomes(scene, lambda number: ("-v", f"{shared}:/data", *options[number % 3], scene.image, "true"), 15)
    settled([done for done in results if done.code != 126], "cannot ")
    for done in results:
        if done.code == 126:  # the work directory was made under the other name
            one_line(done, "cannot change to work directory /data/sub/work/new", code=126)
    assert os.listdir(f"{scene.host.directory}/sub") == []


# ---- /dev

@pytest.mark.parametrize("name", ["null", "pts"])
def test_cve_2025_31133_a_dev_that_is_swapped_masks_nothing_with_it(scene, name):
    """A shared /dev whose null device or terminals lead to the victim, by turns with a file or directory: what masks is not looked up there."""
    shared = volume(scene, f"{'touch' if name == 'null' else 'mkdir'} {name}; ln -s {scene.host.victim}/dev/{name} link; ln -s {scene.host.file} console")
    with scene.swapping(shared, name, "link"):
        ran = settled(outcomes(scene, lambda _: ("-v", f"{shared}:/dev", scene.image, "sh", "-c", f"{UNMASKED}; cat /proc/keys; echo pwned > /dev/console; echo started"), 6))
        ran += settled(outcomes(scene, lambda _: ("-t", "-v", f"{shared}:/dev", scene.image, "sh", "-c", "echo started"), 3), "no /dev/pts of its own")
    assert ran == ["started\n"] * 6


# ---- what exec runs, and where

@pytest.mark.parametrize("target", ["/proc/self/fd/3", "/proc/self/fd/5", "/proc/self/fd/7", "/proc/1/cwd"])
def test_cve_2024_21626_a_work_directory_swapped_for_a_descriptor(scene, target):
    """The container that exec enters exchanges it: what begins is inside, at a path that the kernel can name."""
    shared = volume(scene, f"mkdir sub; ln -s {target} link")
    with scene.swapping(shared, "sub", "link") as name:
        for _ in range(8):
            done = scene.lane("exec", "-w", "/d/sub", name, "sh", "-c", "pwd -P; ls /proc/self/fd | wc -l")
            if done.code:
                one_line(done, "cannot change to work directory", code=done.code)
                assert done.code in (1, 126)
            else:
                assert done.lines in (["/d/sub", "4"], ["/d/link", "4"], ["/", "4"]), done


def test_cve_2019_5736_a_program_swapped_for_the_interpreter(scene):
    """Between the look at a program and its execve there is time to exchange it: the kernel refuses to execute the interpreter by then too."""
    shared = volume(scene, "cp /bin/busybox echo; ln -s /proc/self/exe link")
    words = ("-c", "print('pw' + 'ned')")
    with scene.swapping(shared, "echo", "link") as name:
        for _ in range(25):
            done = scene.lane("exec", name, "/d/echo", *words)
            if done.code:
                one_line(done, "cannot run '/d/echo'", code=126)
            else:
                assert done.out == " ".join(words) + "\n"
    scene.host.unchanged()


# ---- what enters, seen from inside

PEER = r"""
$| = 1; my (%seen, @held); sub see { print "$_[0]\n" unless $seen{$_[0]}++ }
while (1) {
    opendir my $d, "/proc" or die;
    for my $p (grep /^\d+$/ && $_ != $$, readdir $d) {
        for (qw(exe cwd root)) { my $l = readlink "/proc/$p/$_"; see("$_ $l") if defined $l }
        if (open my $m, "<", "/proc/$p/maps") { while (<$m>) { see("maps $1") if m{ (/.*)} } }
        if (opendir my $f, "/proc/$p/fd") { for (readdir $f) { my $l = readlink "/proc/$p/fd/$_"; see("fd $l") if defined $l } }
        next unless (readlink("/proc/$p/exe") // "") =~ m{^/$|python};
        see("written") if open my $w, "+<", "/proc/$p/exe";
        if (@held < 50 && open my $r, "<", "/proc/$p/exe") { push @held, $r if readlink("/proc/self/fd/" . fileno $r) =~ m{^/$|python}; see("held") }
    }
    for (@held) { my $n = fileno $_; see("reopened") if open my $w, "+<", "/proc/self/fd/$n" }
}
"""
"""Looks at every process again and again, keeps what it can open of the interpreter, and tries to open that for writing: while it runs, and when it no longer does.

The interpreter's path is `/`: it is all that is on its mount.
"""


def watched(scene, *options):
    """Enter a container where PEER runs, 20 times, as exec, with a terminal, as another user; returns what it saw."""
    name = scene.name()
    scene.lane("run", "-d", "--name", name, *STOCK, *options, "host", "perl", "-e", PEER, check=True)
    for number in range(20):
        scene.lane("exec", *([], ["-t"], ["-u", "1000"], ["-i"])[number % 4], name, "sleep", "0.05", check=True, input="")
        scene.host.unchanged()
    eventually(lambda: "sleep" in scene.logs(name))
    return set(scene.logs(name).splitlines())


def test_cve_2016_9962_a_peer_sees_nothing_of_what_enters(scene):
    """It has the same capabilities, and sees the program that was asked for. Before that: no memory, no descriptor, no program of the engine's."""
    seen = watched(scene)
    assert {line for line in seen if line.split()[0] not in ("fd", "maps")} == {"exe /usr/bin/sleep", "cwd /", "root /"}
    assert "maps /usr/bin/sleep" in seen and [line for line in seen if line.startswith("maps") and ("python" in line or line == "maps /")] == []
    allowed = ("pipe:[", "/dev/", "/proc/", "/etc/", "/usr/", "/lib")  # a program's own streams, and what its loader opens
    assert [line for line in seen if line.startswith("fd ") and not line[3:].startswith(allowed)] == []


def test_cve_2019_5736_who_may_trace_cannot_write_the_interpreter_either(scene):
    """With CAP_SYS_PTRACE the peer does look into what enters. What it finds there is on a read-only mount, opened for writing neither at once nor later."""
    seen = watched(scene, "--cap-add", "SYS_PTRACE")
    assert {"exe /", "held"} <= seen and not {"written", "reopened"} & seen
    allowed = ("pipe:[", "socket:[", "anon_inode:[pidfd]", "/memfd:ledger", "/dev/", "/proc/", "/etc/", "/usr/", "/lib")
    assert [line for line in seen if line.startswith("fd ") and not line[3:].startswith(allowed)] == []
