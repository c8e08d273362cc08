"""Setting up the root file system: images and mount sources that are made to lead out of it. Section A of the list of attacks, both lanes.

CVE-2019-16884, 2019-19921, 2023-27561, 2023-28642, 2025-52881 (something over /proc), 2023-25809 (writable cgroupfs), 2024-21626 (leaked descriptor as work
directory), 2024-45310 (empty files on the host), 2025-31133 (/dev/null swapped), 2025-52565 (/dev/console, /dev/pts), 2026-41579 (/dev a symlink),
2019-5736 (the runtime as program). What needs a second container that races is in test_root_races.py.
"""

import os
import stat
import tarfile

import pytest

from support.containers import STOCK, one_line
from support.hostile import UNMASKED, Scene, interpreted_by, mounts
from support.registry import directory, entry, symlink

PLACES = ("dev", "proc", "sys", "etc")
UP = "../" * 12
DANGLES, LOOPS, IN_PROC = "no such file or directory", "too many levels of symbolic links", "is inside /proc, which is the container's own"
WRITE = "for p in / /dev /dev/pts /proc /sys /etc /data /work .; do { echo pwned > $p/pwned; } 2>&-; done; echo started"


@pytest.fixture
def scene(utsuwa, registry, lane_dir):
    made = Scene(utsuwa, registry, lane_dir)
    yield made
    made.close()


# ---- directories of the root as symlinks

@pytest.mark.parametrize(("place", "target", "says"), [
    *((place, "{victim}", DANGLES) for place in PLACES), *((place, "/proc/1/root{victim}", LOOPS) for place in PLACES),
    ("dev", UP + "{victim}/dev", DANGLES), ("proc", "proc", LOOPS), ("sys", "/proc/self/root", LOOPS), ("etc", "/proc/self/fd/5", LOOPS),
])
def test_a_system_directory_that_is_a_symlink_out_is_refused(scene, place, target, says):
    scene.plant(symlink(place, target.format(victim=scene.host.victim)))
    scene.ends(says, WRITE)


@pytest.mark.parametrize("options", [[], ["-t"], ["--read-only"]])
def test_cve_2026_41579_symlinks_are_followed_inside_the_root(scene, options):
    """The image has directories where the host has the victim's: all mounts and all writes land in those, and the masks are where the mounts are."""
    victim = scene.host.victim
    scene.plant(*(symlink(name, f"{victim}/{name}") for name in (*PLACES, "data", "work")), *(directory(f"{victim[1:]}/{name}") for name in (*PLACES, "data", "work")))
    done = scene.ends("", f"cat /proc/self/mountinfo; {UNMASKED}; {WRITE}", ["-v", "/data", "-w", "/work", *options])
    assert "unmasked" not in done.out
    found = {point: kind for point, _, kind in mounts("\n".join(line for line in done.lines if " - " in line))}
    assert [found.get(f"{victim}/{name}") for name in ("dev", "dev/pts", "dev/shm", "proc", "sys")] == ["tmpfs", "devpts", "tmpfs", "proc", "sysfs"]
    assert {f"{victim}/{name}" for name in ("data", "etc/hosts", "etc/hostname", "etc/resolv.conf", "proc/keys")} <= found.keys()


@pytest.mark.parametrize("kind", [tarfile.REGTYPE, tarfile.FIFOTYPE])
@pytest.mark.parametrize("place", PLACES)
def test_a_file_where_a_system_directory_is_due_is_refused(scene, place, kind):
    scene.plant(entry(place, kind=kind))
    scene.ends("not a directory", WRITE)


# ---- the work directory and mount targets

TARGETS = [
    ("absolute", "{victim}", DANGLES), ("up", UP + "{victim}", DANGLES), ("root1", "/proc/1/root{victim}", LOOPS),
    ("rootself", "/proc/self/root", LOOPS), ("cwd", "/proc/self/cwd", LOOPS),
    ("fd", "/proc/self/fd/5", LOOPS), ("task", "/proc/self/task/1/root", LOOPS), ("loop", "loop", LOOPS), ("file", "/etc/passwd", "not a directory"), ("chain", "up/dir", DANGLES),
]


def test_a_work_directory_that_leads_out_is_refused(scene):
    scene.plant(*(symlink(name, target.format(victim=scene.host.victim)) for name, target, _ in TARGETS))
    for name, _, says in TARGETS:
        scene.ends(says, WRITE, ["-w", f"/{name}"])
        scene.ends(says, WRITE, ["-w", f"/{name}/new"])


def test_a_mount_target_that_leads_out_is_refused(scene):
    mine = scene.directory("mine")
    scene.plant(*(symlink(name, target.format(victim=scene.host.victim)) for name, target, _ in TARGETS))
    for name, _, says in TARGETS:
        scene.ends(says, WRITE, ["-v", f"{mine}:/{name}"])
        scene.ends(says, WRITE, ["-v", f"/{name}/new"])
    assert os.listdir(mine) == []


def test_a_file_on_a_directory_and_a_directory_on_a_file_are_refused(scene):
    scene.plant(directory("d"), entry("f"), entry("p", kind=tarfile.FIFOTYPE))
    scene.ends("it is a directory there, and a file here", options=["-v", f"{scene.host.file}:/d"])
    for name in ("f", "p", "f/new"):
        scene.ends("not a directory", options=["-v", f"{scene.host.directory}:/{name}"])
    assert scene.ends("", "cat /p; echo started", ["-v", f"{scene.host.file}:/p"]).out == "the host's\nstarted\n"


# ---- /etc/hosts and its like

@pytest.mark.parametrize(("name", "target", "says"), [
    ("hosts", "{file}", ""), ("hosts", "/proc/1/root{file}", LOOPS), ("hosts", "/proc/self/fd/5", LOOPS), ("hosts", "/proc/sys/kernel/core_pattern", IN_PROC),
    ("resolv.conf", UP + "{file}", ""), ("resolv.conf", "/proc/self/cwd/file", LOOPS), ("resolv.conf", "resolv.conf", LOOPS), ("resolv.conf", "/proc/self/status", IN_PROC),
])
def test_a_file_of_names_that_is_a_symlink_is_written_inside_or_not_at_all(scene, name, target, says):
    scene.plant(symlink(f"etc/{name}", target.format(file=scene.host.file)))
    done = scene.ends(says, f"echo pwned >> /etc/{name}; cat /etc/{name}; echo started")
    assert says or ("localhost" if name == "hosts" else "# Generated by utsuwa") in done.out


@pytest.mark.parametrize("name", ["hosts", "resolv.conf", "hostname"])
def test_a_directory_where_a_file_of_names_is_due_is_refused(scene, name):
    scene.plant(directory(f"etc/{name}"))
    scene.ends(f"on /etc/{name}: it is a directory there, and a file here")


# ---- over /proc

@pytest.mark.parametrize("path", ["/proc", "/proc/", "/x/../proc", "/proc/sys", "/proc/sys/net/ipv4", "/proc/self/attr"])
def test_cve_2023_28642_an_image_s_volume_over_proc_is_refused(scene, path):
    """With it the engine's own writes to /proc/sys would go to the symlink, and so to the host."""
    value = "sys/net/ipv4/ip_unprivileged_port_start"
    below = os.path.relpath(f"/proc/{value}", os.path.normpath(path))
    links = [symlink(f"proc/{value}", scene.host.file)] if not below.startswith("..") else []
    scene.plant(directory("proc/sys/net/ipv4"), *links, symlink("proc/sys/net/ipv4/ping_group_range", scene.host.file), volumes=[path])
    scene.ends(IN_PROC, WRITE)
    assert os.listdir(scene.lane.root + "/containers") == []


def test_cve_2019_19921_mounts_over_proc_are_refused_by_any_name(scene):
    scene.plant(symlink("data", "/proc"), symlink("sys-of", "proc/sys"), symlink("value", "/proc/sys/net/ipv4/ip_unprivileged_port_start"))
    mine = scene.directory("mine")
    for target in ("/proc", "/proc/1", "/proc/self/fd", "/proc/thread-self/attr", "/dev/../proc/fs", "/proc/sys/kernel", "/data", "/data/sys", "/sys-of/net"):
        for source in (mine, "v" + os.urandom(4).hex()):
            scene.ends(IN_PROC, options=["-v", f"{source}:{target}"])
    for target in ("/proc/kcore", "/proc/sys/kernel/core_pattern", "/data/cpuinfo", "/value"):
        scene.ends(IN_PROC, options=["-v", f"{scene.host.file}:{target}"])
    assert os.listdir(mine) == []


def test_a_figure_of_proc_may_be_replaced(scene):
    assert scene.ends("", "cat /proc/cpuinfo; echo started", ["-v", f"{scene.host.file}:/proc/cpuinfo:ro"]).out == "the host's\nstarted\n"


def test_cve_2025_52881_the_engine_s_writes_to_proc_reach_the_kernel(scene):
    """A file of the host's that the container's user may not write, bound where the image has a symlink to a setting that the engine writes."""
    scene.plant(symlink("localtime", "/proc/sys/net/ipv4/ip_unprivileged_port_start"), User="1000")
    scene.ends(IN_PROC, options=["-v", f"{scene.host.file}:/localtime"])


@pytest.mark.parametrize("path", ["/p", "/q"])
def test_cve_2019_16884_a_volume_around_a_proc_that_is_a_symlink(scene, path):
    """On the symlink's target it is refused; above that it hides proc from the container, and the engine does not look there."""
    value = "sys/net/ipv4/ip_unprivileged_port_start"
    fake = [symlink(f"q/p/{value}", scene.host.file), symlink("q/p/self", scene.host.directory), symlink("q/p/keys", scene.host.file)]
    scene.plant(symlink("proc", "/p"), symlink("p", "q/p"), directory("q/p/sys/net/ipv4"), *fake, volumes=[path])
    scene.ends(IN_PROC if path == "/p" else "", "{ echo pwned > /proc/keys; } 2>&-; echo started")


# ---- /dev

def hostile_dev(victim):
    """Entries of a /dev whose every name leads to the victim."""
    return [symlink(f"dev/{name}", f"{victim}/dev/{name}") for name in ("null", "zero", "console", "tty", "ptmx", "fd", "pts", "shm", "mqueue", "pwned")]


@pytest.mark.parametrize("options", [[], ["-t"]])
def test_cve_2025_31133_an_image_s_own_dev_is_covered(scene, options):
    scene.plant(*hostile_dev(scene.host.victim))
    done = scene.ends("", f"stat -c '%n %t:%T' /dev/null /dev/zero; echo pwned > /dev/null; {UNMASKED}; tty; echo started", options)
    assert done.lines == ["/dev/null 1:3", "/dev/zero 1:5", "/dev/pts/0" if options else "not a tty", "started"]


@pytest.mark.parametrize("names", [("null", "zero", "console"), ("pts",), ("null", "shm", "mqueue")])
def test_cve_2025_31133_a_volume_on_dev_is_left_alone_and_the_masks_hold(scene, names):
    scene.plant(*(item for item in hostile_dev(scene.host.victim) if item[0].name[4:] in names), volumes=["/dev"])
    done = scene.ends("", f"ls /dev; {UNMASKED}; {WRITE}")
    assert done.lines == [*sorted(names), "started"]


def test_a_bind_on_dev_is_left_alone(scene):
    """Not a node, not a directory, not a console is made in the caller's directory, and no link there is followed."""
    empty, planted = scene.directory("empty"), scene.directory("planted")
    for item, _ in hostile_dev(scene.host.victim):
        os.symlink(item.linkname, f"{planted}/{item.name[4:]}")
    before = sorted(os.listdir(planted))
    for path in (empty, planted):
        scene.ends("", f"{UNMASKED}; echo started", ["-v", f"{path}:/dev"])
        scene.ends("no /dev/pts of its own", options=["-v", f"{path}:/dev", "-t"])
        name = scene.start("sleep", "100", options=["-v", f"{path}:/dev"])
        one_line(scene.lane("exec", "-t", name, "true"), "cannot", code=1)
        scene.host.unchanged()
    assert (os.listdir(empty), sorted(os.listdir(planted))) == ([], before)


def test_cve_2025_52565_the_console_and_terminals_are_of_devpts_alone(scene):
    """Volumes on /dev/pts, with a node, a FIFO or a link where the multiplexer is; and a file of the host's on the console."""
    scene.plant(directory("dev/pts"), entry("dev/pts/ptmx", kind=tarfile.FIFOTYPE), symlink("dev/pts/0", scene.host.file), symlink("c", "/dev/console"), volumes=["/dev/pts"])
    scene.ends("no /dev/pts of its own", options=["-t"])
    name = scene.start("sleep", "100")
    one_line(scene.lane("exec", "-t", name, "true"), "is not a terminal multiplexer", code=1)
    scene.plant(symlink("c", "/dev/console"), symlink("dev/console", scene.host.file), symlink("p", "/dev/pts"))
    done = scene.ends("", "echo written > /dev/console; tty; echo started", ["-t", "-v", f"{scene.host.file}:/c", "-v", "/p"])
    assert "written" in done.out


def test_files_of_the_host_on_device_nodes_are_not_what_masks(scene):
    """Whatever the user binds on /dev/null, straight or by a link of the image, /proc is masked by the null device."""
    scene.plant(symlink("n", "/dev/null"))
    for target in ("/dev/null", "/n"):
        done = scene.ends("", f"{UNMASKED}; cat /proc/keys /proc/timer_list; echo started", ["-v", f"{scene.host.file}:{target}"])
        assert done.out == "started\n"


# ---- /sys

def test_cve_2023_25809_control_groups_cannot_be_written(scene):
    """Whatever the network: with the host's, the rootless container's /sys is a bind of the host's."""
    writes = "mkdir $p/pwned; echo 0 > $p/cgroup.procs; echo 1 > $p/cgroup.subtree_control; echo x > $p/release_agent"
    script = f"for p in /sys/fs/cgroup /sys/fs/cgroup/*/; do {{ {writes}; }} 2>&1; done; cat /proc/self/mountinfo"
    for network in ("none", "host"):
        lines = scene.lane("run", "--rm", "--network", network, scene.image, "sh", "-c", script, check=True).lines
        rows = [line.split() for line in lines if " - " in line and line.split()[4].startswith("/sys")]
        assert rows and [row[4] for row in rows if "ro" not in row[5].split(",")] == []
        said = [line for line in lines if " - " not in line]
        assert said and [line for line in said if "Read-only file system" not in line and "nonexistent" not in line and "Permission denied" not in line] == []
        scene.host.unchanged()


def test_volumes_on_sys_do_not_lead_out(scene):
    victim = scene.host.victim
    links = [symlink(f"sys/{name}", f"{victim}/sys") for name in ("firmware", "devices", "fs")]
    for count, says in ((2, ""), (3, DANGLES)):
        scene.plant(*links[:count], symlink("dev/shm", f"{victim}/dev"), volumes=["/sys", "/dev/shm", "/dev/mqueue"])
        scene.ends(says, WRITE)
    scene.plant(directory("sys/fs/cgroup"), symlink("sys/fs/cgroup/pwned", victim), volumes=["/sys/fs/cgroup"])
    scene.ends("", "ls /sys/firmware; echo started")


# ---- nothing is made on the host

def test_cve_2024_45310_nothing_is_made_through_a_link_in_a_mount(scene):
    """A directory of the user's, shared with containers: what they leave there leads the engine of the next one nowhere."""
    shared, victim = scene.directory("shared"), scene.host.victim
    links = {"absolute": f"{victim}/dir", "up": "../victim/dir", "root": f"/proc/1/root{victim}/dir", "deep": f"{UP}{victim}/dir"}
    for name, target in links.items():
        os.symlink(target, f"{shared}/{name}")
    for name in links:
        for mount in ("-v", f"/data/{name}/new"), ("-v", f"{scene.host.file}:/data/{name}/new"), ("-w", f"/data/{name}/new"):
            done = scene.run("true", options=["-v", f"{shared}:/data", *mount], check=False)
            one_line(done, "no such file or directory")
            scene.host.unchanged()
    assert sorted(os.listdir(shared)) == sorted(links)


def test_mounts_do_not_reach_the_host_whatever_their_propagation(scene):
    mine = scene.directory("mine")
    os.mkdir(f"{mine}/sub")
    for mode in ("rprivate", "rslave", "rshared", "shared"):
        scene.ends("", options=["-v", f"{mine}:/data:{mode}", "-v", "/data/sub"])
        assert [point for point, _, _ in mounts() if point.startswith(mine)] == []


# ---- descriptors as work directory, the runtime as program

@pytest.mark.parametrize("verb", ["run", "exec"])
def test_cve_2024_21626_no_descriptor_is_a_work_directory(scene, verb):
    """Neither one of the engine's nor one that the caller left open; what begins nevertheless is inside."""
    name = scene.start("sleep", "100")
    left = [os.open("/", os.O_RDONLY | os.O_DIRECTORY) for _ in range(4)]
    try:
        for number in range(3, 31):
            words = ("run", "--rm", *STOCK, "-w", f"/proc/self/fd/{number}", scene.image) if verb == "run" else ("exec", "-w", f"/proc/self/fd/{number}", name)
            with scene.lane.popen(*words, "ls", pass_fds=left) as process:
                out, err = process.communicate(timeout=60)
            assert (process.returncode in (125, 126), out, err.count(b"\n")) == (True, b"", 1) and err.startswith(b"utsuwa: "), (number, out, err)
    finally:
        for fd in left:
            os.close(fd)


PROGRAMS = {
    "link": ("/proc/self/exe", b""), "script": ("", b"#!/proc/self/exe\nprint('pwned')\n"),
    "by-link": ("", b"#! /x/link -I\nprint('pwned')\n"), "nested": ("", b"#!/x/script\nprint('pwned')\n"),
    "elf": ("", interpreted_by("/proc/self/exe")), "elf-by-link": ("", interpreted_by("/x/link")),
}


def test_cve_2019_5736_the_interpreter_is_no_container_s_program(scene):
    """By a magic link; by a symlink to it; as a script's interpreter, and that one's; as an ELF program's interpreter. The image has all that a Python needs."""
    mine = scene.directory("mine")
    for name, (target, content) in PROGRAMS.items():
        if target:
            os.symlink(target, f"{mine}/{name}")
        else:
            with open(f"{mine}/{name}", "wb") as file:
                file.write(content)
            os.chmod(f"{mine}/{name}", 0o755)  # noqa: S103 - what may be executed is the point
    name, options = scene.name(), [*STOCK, "-v", f"{mine}:/x"]
    scene.lane("run", "-d", "--name", name, *options, "host", "sleep", "100", check=True)
    for program in ("/proc/self/exe", "/proc/1/exe", "/proc/thread-self/exe", "/proc/self/map_files/0-1", *(f"/x/{name}" for name in PROGRAMS)):
        for words in (("run", "--rm", *options, "host", program, "-c", "print('pwned')"), ("exec", name, program, "-c", "print('pwned')")):
            if program != "/proc/1/exe" or words[0] == "run":  # for exec that is sleep
                one_line(scene.lane(*words), "cannot run", code=127 if "map_files" in program else 126)
    scene.host.unchanged()


def test_the_victim_could_be_reached_if_it_were_mounted(scene):
    """The control: a container that is given the victim writes it, so that the tests above look at what matters."""
    before = scene.host.state()
    scene.run("sh", "-c", "echo pwned > /data/dir/pwned; rm /data/dir/pwned", options=["-v", f"{scene.host.victim}:/data"])
    assert scene.host.state() != before
    assert stat.S_ISCHR(os.stat("/dev/null").st_mode)
    scene.host.rest()
