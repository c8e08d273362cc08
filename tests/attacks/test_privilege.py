"""Default privilege: what a program in a container is and may do, compared with a table, for run and for exec. Section B of the list of attacks, both lanes.

CVE-2022-24769 and its family (inheritable capabilities), 2022-36109 (supplementary groups), 2024-40635 (user id overflow), 2026-30892 (`exec -u 1`
taken for root), 2021-41091 (state readable by others), 2026-31431 (AF_ALG), 2024-21626 (leaked descriptor as work directory), 2016-9962 (a peer looks
into the process that enters), 2019-5736 (the interpreter overwritten).
"""

import contextlib
import errno
import os
import socket
import stat
import struct
import subprocess

import pytest

from support.containers import STOCK, Box, eventually, one_line
from support.registry import BUSYBOX, busybox_image, directory, entry, layer, symlink
from utsuwa.engine import launch
from utsuwa.engine.context import open_context
from utsuwa.engine.options import RunOptions
from utsuwa.engine.seed import Seed
from utsuwa.kernel.process import start_time
from utsuwa.state.paths import Paths

DEFAULT = 0xA80425FB
"""CapEff of a container of Docker's."""
DEFAULT_NAMES = "chown dac_override fowner fsetid kill setgid setuid setpcap net_bind_service net_raw sys_chroot mknod audit_write setfcap".split()
NET_ADMIN, NET_RAW, SYS_ADMIN, CHOWN = 1 << 12, 1 << 13, 1 << 21, 1 << 0
NNP = ["--security-opt", "no-new-privileges"]


# ---- /proc/self/status, the golden table

def everything(lane):
    """Return the mask of all that a container of this lane can have: what the tester has, or in a user namespace what the kernel has."""
    if lane.rootless:
        with open("/proc/sys/kernel/cap_last_cap") as file:
            return (1 << int(file.read()) + 1) - 1
    with open("/proc/self/status") as file:
        return next(int(line.split()[1], 16) for line in file if line.startswith("CapBnd:"))


def status(text):
    """Return the fields of /proc/PID/status that tell of privilege."""
    found = dict(line.split(":\t", 1) for line in text.splitlines() if ":\t" in line)
    caps = [int(found[name], 16) for name in ("CapBnd", "CapEff", "CapPrm", "CapInh", "CapAmb")]
    return caps, [found[name].strip() for name in ("NoNewPrivs", "Seccomp")], [found["Uid"].split(), found["Gid"].split()], sorted(map(int, found["Groups"].split()))


def golden(bounding, effective, uid=0, gid=0, groups=(), nnp=0, seccomp=2):
    """What `status` returns: inheritable and ambient are always empty, all four ids are one."""
    return [bounding, effective, effective, 0, 0], [str(nnp), str(seccomp)], [[str(uid)] * 4, [str(gid)] * 4], sorted({gid, *groups})


TABLE = [
    ([], golden(DEFAULT, DEFAULT)),
    (["-u", "1000"], golden(DEFAULT, 0, 1000, 1000, [2000])),
    (["-u", "user:nogroup"], golden(DEFAULT, 0, 1000, 65534)),
    (["-u", "4242"], golden(DEFAULT, 0, 4242, 0)),
    (["-u", "0:2000"], golden(DEFAULT, DEFAULT, 0, 2000)),
    (["--cap-add", "NET_ADMIN"], golden(DEFAULT | NET_ADMIN, DEFAULT | NET_ADMIN)),
    (["--cap-add", "net_admin", "-u", "1000"], golden(DEFAULT | NET_ADMIN, 0, 1000, 1000, [2000])),
    (["--cap-drop", "NET_RAW", "--cap-drop", "CAP_CHOWN"], golden(DEFAULT & ~NET_RAW & ~CHOWN, DEFAULT & ~NET_RAW & ~CHOWN)),
    (["--cap-drop", "ALL"], golden(0, 0)),
    (["--cap-drop", "ALL", "--cap-add", "CHOWN"], golden(CHOWN, CHOWN)),
    (["--cap-drop", "ALL", *NNP, "-u", "1000"], golden(0, 0, 1000, 1000, [2000], nnp=1)),
    (NNP, golden(DEFAULT, DEFAULT, nnp=1)),
    ([*NNP, "-u", "1000"], golden(DEFAULT, 0, 1000, 1000, [2000], nnp=1)),
    (["--security-opt", "seccomp=unconfined"], golden(DEFAULT, DEFAULT, seccomp=0)),
]


@pytest.mark.parametrize(("options", "wanted"), TABLE)
def test_privilege_of_run_and_exec_is_the_table_s(box, options, wanted):
    assert status(box.run("cat", "/proc/self/status", options=options).out) == wanted
    name = box.start("sleep", "100", options=options)
    for command in (["cat", "/proc/self/status"], ["cat", "/proc/1/status"]):
        assert status(box.lane("exec", name, *command, check=True).out) == wanted


def test_all_capabilities_are_those_there_are(box):
    most = everything(box.lane)
    assert status(box.run("cat", "/proc/self/status", options=["--cap-add", "ALL"]).out) == golden(most, most)
    less = most & ~SYS_ADMIN
    name = box.start("sleep", "100", options=["--cap-add", "ALL", "--cap-drop", "SYS_ADMIN"])
    assert status(box.lane("exec", name, "cat", "/proc/self/status", check=True).out) == golden(less, less)


@pytest.mark.parametrize(("user", "wanted"), [
    ("1", golden(DEFAULT, 0, 1, 0)), ("1000", golden(DEFAULT, 0, 1000, 1000, [2000])), ("user:extra", golden(DEFAULT, 0, 1000, 2000)), ("0", golden(DEFAULT, DEFAULT)), ("root", golden(DEFAULT, DEFAULT)),
])
@pytest.mark.parametrize("of", ["0", "1000"])
def test_cve_2026_30892_exec_as_somebody_else(box, of, user, wanted):
    """Whoever the container is: its own user's privilege is neither kept nor lost on the way."""
    name = box.start("sleep", "100", options=["-u", of])
    assert status(box.lane("exec", "-u", user, name, "cat", "/proc/self/status", check=True).out) == wanted


def capable(name, permitted, inheritable, effective):
    """A cat with file capabilities: struct vfs_cap_data, version 2. capabilities(7)"""
    data = struct.pack("<5I", 0x02000000 | effective, permitted, inheritable, 0, 0).decode()
    with open(BUSYBOX, "rb") as file:
        return entry(name, file.read(), mode=0o755, pax_headers={"SCHILY.xattr.security.capability": data})


def test_cve_2022_24769_a_file_s_inheritable_capabilities_give_nothing(box, registry):
    """They would give what is inheritable in the process, so that must be empty. What a file gives by itself is bounded, and with no_new_privs it gives nothing."""
    text = registry.push("capable", busybox_image(layer(directory("i"), capable("i/cat", 0, CHOWN | NET_RAW, 1), directory("p"), capable("p/cat", CHOWN, 0, 1))))
    run, nobody = ("run", "--rm", *STOCK, "-u", "1000"), (1000, 1000, [2000])
    assert status(box.lane(*run, text, "/i/cat", "/proc/self/status", check=True).out) == golden(DEFAULT, 0, *nobody)
    assert status(box.lane(*run, text, "/p/cat", "/proc/self/status", check=True).out) == golden(DEFAULT, CHOWN, *nobody)
    assert status(box.lane(*run, *NNP, text, "/p/cat", "/proc/self/status", check=True).out) == golden(DEFAULT, 0, *nobody, nnp=1)
    box.lane("rmi", text, check=True)


@pytest.mark.parametrize(("user", "says"), [
    ("2147483648", "uid must be 0 to 2147483647"), ("4294967296", "uid must be"), ("-1", "uid must be"), ("0:-1", "gid must be"), ("18446744073709551616", "uid must be"), ("9" * 5000, "uid must be"),
    ("nowhere", "unable to find user nowhere"), ("0:nowhere", "unable to find group nowhere"), ("٣", "unable to find user ٣"),
])
def test_cve_2024_40635_user_ids_out_of_range(box, user, says):
    one_line(box.run("id", options=[f"--user={user}"], check=False), says)
    name = box.start("sleep", "100")
    one_line(box.lane("exec", f"--user={user}", name, "id"), says, code=1)


@pytest.mark.parametrize("user", ["4294967296", "-1", "1000:4294967296", "9" * 5000, "nowhere"])
def test_cve_2024_40635_user_ids_out_of_range_in_the_image(box, registry, user):
    text = registry.push("ids", busybox_image(config={"Cmd": ["id"], "User": user}), f"u{len(user)}{user[0]}".replace("-", "m"))
    done = box.lane("run", "--rm", *STOCK, text)
    assert done.code == 125 and "uid=" not in done.out and [line for line in done.err.splitlines() if line.startswith("utsuwa: ")] == done.err.splitlines()[-1:], done
    box.lane("rmi", text, check=True)


@pytest.mark.rootless_only("root has all ids")
def test_ids_that_the_user_does_not_have(box):
    name = box.start("sleep", "100")
    for words in (("run", "--rm", *STOCK, "-u", "1000000", box.image, "id"), ("exec", "-u", "1000000", name, "id"), ("exec", "-u", "0:1000000", name, "id")):
        one_line(box.lane(*words), "it is not among the subordinate ids of this user", code=125 if words[0] == "run" else 1)


# ---- state and sockets

def open_to_others(top):
    """Return what lies beneath a state directory, where containers' own files begin left out, that others may enter, read or write."""
    own = ("upper", "work", "merged", "layers", "_data")
    found = []
    for base, names, files in os.walk(top):
        names[:] = [name for name in names if name not in own]
        found += [path for path in (base, *(f"{base}/{name}" for name in files)) if stat.S_IMODE(os.lstat(path).st_mode) & 0o077]
    return found


def test_cve_2021_41091_state_is_its_user_s_alone(box):
    """0700 for directories, 0600 for sockets and files; the three files that a container's users read lie in a directory that nobody else enters."""
    name = box.start("sleep", "100", options=["-v", "/data"])
    ident = box.inspect(name)["Id"]
    found = open_to_others(box.lane.root) + open_to_others(box.lane.run)
    assert sorted(os.path.basename(path) for path in found) == ["hostname", "hosts", "resolv.conf"]
    sockets = [f"{base}/{file}" for base, _, files in os.walk(box.lane.run) for file in files if stat.S_ISSOCK(os.lstat(f"{base}/{file}").st_mode)]
    assert sockets == [f"{box.lane.run}/containers/{ident}/monitor.sock"]
    assert [stat.S_IMODE(os.lstat(path).st_mode) for path in (*sockets, box.lane.root, box.lane.run, box.lane.root + "/layers", box.lane.root + "/volumes")] == [0o600, *[0o700] * 4]


def test_cve_2020_15257_no_socket_is_abstract(box):
    box.start("sleep", "100")
    with open("/proc/net/unix") as file:
        names = [line.split()[7] for line in file if len(line.split()) > 7]
    assert [name for name in names if name.startswith("@") and (box.lane.run in name or "utsuwa" in name or "monitor" in name)] == []


# ---- sockets of protocols that reach across containers

FAMILIES = 'for (@ARGV) { my ($f, $t) = split ","; print socket(my $s, $f, $t, 0) ? "ok " : ($! + 0)." " }'
WANTED = [(socket.AF_UNIX, socket.SOCK_STREAM), (socket.AF_INET, socket.SOCK_STREAM), (socket.AF_INET6, socket.SOCK_DGRAM), (socket.AF_NETLINK, socket.SOCK_RAW)]
BANNED = [(socket.AF_ALG, socket.SOCK_SEQPACKET), (socket.AF_VSOCK, socket.SOCK_STREAM), (socket.AF_VSOCK, socket.SOCK_DGRAM)]


@pytest.mark.parametrize("options", [[], ["--cap-add", "ALL"], ["-u", "65533"], NNP])
def test_cve_2026_31431_af_alg_and_af_vsock_are_refused(utsuwa, options):
    """EPERM is the filter's answer: the kernel's own would be another where it lacks the protocol."""
    pairs = [f"{int(family)},{int(kind)}" for family, kind in (*WANTED, *BANNED)]
    run = ("run", "--rm", *STOCK)
    assert utsuwa(*run, *options, "host", "perl", "-e", FAMILIES, *pairs, check=True).out.split() == ["ok"] * len(WANTED) + [str(errno.EPERM)] * len(BANNED)
    unfiltered = utsuwa(*run, "--security-opt", "seccomp=unconfined", "host", "perl", "-e", FAMILIES, *pairs, check=True).out.split()
    assert unfiltered[:len(WANTED)] == ["ok"] * len(WANTED) and str(errno.EPERM) not in unfiltered


# ---- descriptors, work directory

def test_no_descriptor_of_the_caller_or_the_monitor_reaches_exec(box):
    """`ls` itself opens the directory: 3."""
    name = box.start("sleep", "100")
    for options in ([], ["-i"], ["-t"], ["-u", "1000"]):
        assert box.lane("exec", *options, name, "ls", "/proc/self/fd", check=True).out.split() == ["0", "1", "2", "3"]
    assert box.lane("exec", name, "ls", "/proc/1/fd", check=True).out.split() == ["0", "1", "2"]
    assert box.run("ls", "/proc/self/fd", options=["-t"]).out.split() == ["0", "1", "2", "3"]


@pytest.mark.parametrize("verb", ["run", "exec"])
def test_what_the_caller_left_open_stays_outside(box, verb, lane_dir):
    words = ["run", "--rm", *STOCK, box.image] if verb == "run" else ["exec", box.start("sleep", "100")]
    with contextlib.ExitStack() as stack:
        fds = [os.open("/", os.O_RDONLY | os.O_DIRECTORY) for _ in range(3)]
        for fd in fds:
            stack.callback(os.close, fd)
        process = stack.enter_context(box.lane.popen(*words, "ls", "/proc/self/fd", pass_fds=fds, stdin=subprocess.DEVNULL))
        out, err = process.communicate(timeout=30)
    assert (process.returncode, out.split(), err) == (0, [b"0", b"1", b"2", b"3"], b"")


@pytest.mark.parametrize("place", ["/proc/self/fd/{}", "/proc/1/fd/{}", "/proc/self/fd/{}/../../..", "/opt/link{}"])
def test_cve_2024_21626_the_work_directory_is_inside(box, registry, place):
    """As option, by the image's symlink, and for exec: it fails, or the program starts below the container's root."""
    text = registry.push("links", busybox_image(layer(directory("opt"), *(symlink(f"opt/link{n}", f"/proc/self/fd/{n}") for n in range(14)))))
    other = Box(box.lane, text)
    name = other.start("sleep", "100")
    for number in range(3, 14):
        for words in (("run", "--rm", *STOCK, "-w", place.format(number), text), ("exec", "-w", place.format(number), name)):
            done = box.lane(*words, "pwd")
            assert done.code in (125, 126, 127) or (done.out.startswith("/") and "unreachable" not in done.out), (words, done)
            assert done.code == 0 or (done.out, done.err.count("\n")) == ("", 1), (words, done)
    other.close()
    box.lane("rmi", text, check=True)


# ---- the process that enters

PEER = "while true; do for p in /proc/[0-9]*; do readlink $p/exe; (: < $p/mem) 2>/dev/null && echo $p >> /mem; done >> /seen 2>/dev/null; done"


def test_cve_2016_9962_a_peer_cannot_look_into_the_process_that_enters(box):
    """A program in the container with the same capabilities looks at every process it can see, while others enter."""
    name = box.start("sh", "-c", PEER)
    eventually(lambda: "busybox" in box.lane("exec", name, "cat", "/seen").out)
    for _ in range(15):
        box.lane("exec", name, "true", check=True)
    seen = set(box.lane("exec", name, "cat", "/seen", check=True).lines)
    assert {os.path.basename(path) for path in seen} == {"busybox"}


@pytest.fixture
def waiting(tmp_path):
    """A container of ours in state created: yields (pid of its init, pid of its monitor)."""
    paths = Paths(f"{tmp_path}/root", f"{tmp_path}/run")
    context = open_context(paths)
    seed = Seed()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(launch, "STEPS", tuple(step for step in launch.STEPS if step is not launch.start))
        this = launch.Launch(context, RunOptions("hello", network="none"), seed)
        launch.launch(this)
    try:
        with open(f"/proc/{this.init_pid}/status") as file:
            yield this.init_pid, next(int(line.split()[1]) for line in file if line.startswith("PPid:"))
    finally:
        launch.undo(this)
        seed.drop()
        context.db.close()
    assert start_time(this.init_pid) == 0 and os.listdir(f"{tmp_path}/root/containers") == os.listdir(f"{tmp_path}/run/containers") == []


def peer(*command):
    """Run a command as root without the capabilities that let it look anywhere: then being dumpable decides. ptrace(2), access mode checking"""
    return subprocess.run(["setpriv", "--bounding-set", "-sys_ptrace,-sys_admin,-perfmon", *command], capture_output=True, text=True)


@pytest.mark.root_only("works in this process")
def test_cve_2016_9962_init_is_not_dumpable_while_it_waits(waiting):
    init, _ = waiting
    for file in ("exe", "root", "cwd", "fd/0"):
        assert "Permission denied" in peer("readlink", "-v", f"/proc/{init}/{file}").stderr
    for file in ("mem", "environ", "maps"):
        assert "Permission denied" in peer("head", "-c", "1", f"/proc/{init}/{file}").stderr
    with subprocess.Popen(["setpriv", "--bounding-set", f"-all,+{',+'.join(DEFAULT_NAMES)}", "sleep", "100"]) as control:
        try:  # the same privilege in a process that is dumpable: it may be looked into
            eventually(lambda: peer("readlink", f"/proc/{control.pid}/exe").stdout.endswith("sleep\n"))
        finally:
            control.kill()


@pytest.mark.root_only("works in this process")
def test_cve_2019_5736_the_interpreter_cannot_be_written_through_init_or_monitor(waiting):
    """The mount that they run from is read-only: the kernel says EROFS as soon as it no longer says that the file is busy."""
    for pid in waiting:
        assert os.statvfs(f"/proc/{pid}/exe").f_flag & os.ST_RDONLY
        with pytest.raises(OSError, match=r"Text file busy|Read-only file system"):
            os.close(os.open(f"/proc/{pid}/exe", os.O_WRONLY))
    assert not os.statvfs("/proc/self/exe").f_flag & os.ST_RDONLY
