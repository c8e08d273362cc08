"""run, flag by flag, with what each does to the kernel looked at from inside and from outside. Both lanes where an ordinary user may."""

import contextlib
import json
import os
import re
import signal
import socket
import subprocess
import time

import pytest

from support.containers import eventually, one_line

KINDS = ("pid", "mnt", "uts", "ipc", "cgroup", "net")
LIMITED = pytest.mark.root_only("no control group can be made by an ordinary user here")
BRIDGED = pytest.mark.root_only("an ordinary user has no bridge yet")


# ---- the whole

def test_output_streams_and_exit_code_are_the_containers(box):
    done = box.run("sh", "-c", "echo out; echo err >&2; exit 7", check=False)
    assert done == (7, "out\n", "err\n", b"out\n")


def test_the_images_own_command_runs(box):
    assert box.run(options=["-i"], input="echo from stdin\n").out == "from stdin\n"


def test_a_missing_image_is_pulled_and_the_output_stays_clean(box, registry):
    text = f"{registry.address}/busybox:again"
    from support.registry import busybox_image

    registry.push("busybox", busybox_image(), "again")
    done = box.lane("run", "--rm", "--network", "none", text, "echo", "hi", check=True)
    assert done.out == "hi\n"
    box.lane("rmi", text, check=True)


def test_namespaces_are_its_own(box):
    ls = box.run("sh", "-c", "cd /proc/self/ns; for each in *; do readlink $each; done").lines
    inside = {line.partition(":")[0]: line for line in ls}
    outside = {kind: os.readlink(f"/proc/self/ns/{kind}") for kind in (*KINDS, "user")}
    assert [kind for kind in KINDS if inside[kind] == outside[kind]] == []
    assert (inside["user"] != outside["user"]) == box.lane.rootless


def test_it_is_pid_1_and_sees_nobody_else(box):
    assert [line.split()[0] for line in box.run("sh", "-c", "echo $$; ps -o pid; true").lines] == ["1", "PID", "1", "2"]


def test_no_descriptor_is_left_open_in_it(box):
    # ls itself opens the directory: 3.
    assert box.run("ls", "/proc/self/fd").out.split() == ["0", "1", "2", "3"]


@pytest.mark.parametrize(("code", "script"), [(0, "true"), (1, "false"), (255, "exit 255"), (129, "trap 'exit 129' HUP; kill -HUP $$")])
def test_exit_codes(box, code, script):
    assert box.run("sh", "-c", script, check=False) == (code, "", "", b"")


@pytest.mark.parametrize(("code", "argv", "says"), [
    (127, ["no-such-program"], "executable file not found in $PATH"), (127, ["/no/such/program"], "no such file or directory"),
    (126, ["/etc/passwd"], "permission denied"), (126, ["/etc"], "permission denied"),
])
@pytest.mark.parametrize("verb", ["run", "exec"])
def test_a_command_that_cannot_run_is_one_line_and_its_code(box, verb, code, argv, says):
    if verb == "run":
        one_line(box.run(*argv, check=False), argv[0], says, code=code)
    else:
        one_line(box.lane("exec", box.start("sleep", "1000"), *argv), argv[0], says, code=code)


@pytest.mark.parametrize("verb", [("exec", "true"), ("attach",)])
def test_a_container_that_is_not_there_or_does_not_run_is_1(box, verb):
    name = box.name()
    one_line(box.lane(verb[0], name, *verb[1:]), "No such container", code=1)
    box.lane("run", "--name", name, "--network", "none", box.image, "true", check=True)
    one_line(box.lane(verb[0], name, *verb[1:]), "not running" if verb[0] == "exec" else "cannot attach to a stopped container", code=1)


@pytest.mark.parametrize("name", ["KILL", "SEGV", "TERM"])
def test_a_program_killed_by_a_signal_has_128_and_its_number(box, name):
    number = signal.Signals[f"SIG{name}"]
    where = box.start("sleep", "1000")
    assert box.lane("exec", where, "sh", "-c", f"kill -{name} $$").code == 128 + number
    assert box.run("sh", "-c", f"sh -c 'kill -{name} $$'; exit $?", check=False).code == 128 + number
    box.lane("kill", where, check=True)
    assert box.inspect(where)["State"]["ExitCode"] == 137


# ---- environment, user, directory

def test_the_environment_has_docker_s_defaults_and_no_more(box):
    entries = dict(line.split("=", 1) for line in box.run("env", options=["--hostname", "vessel"]).lines)
    assert entries == {"PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "HOSTNAME": "vessel", "HOME": "/root"}


def test_env_passes_through_overrides_and_leaves_out(box):
    options = ["-e", "GIVEN", "-e", "MISSING", "-e", "SET=a b=c", "-e", "EMPTY=", "-e", "PATH=/bin", "-e", "HOME=/elsewhere"]
    entries = dict(line.split("=", 1) for line in box.run("env", options=options, env={"GIVEN": "passed"}).lines)
    assert {key: entries.get(key) for key in ("GIVEN", "MISSING", "SET", "EMPTY", "PATH", "HOME")} == {
        "GIVEN": "passed", "MISSING": None, "SET": "a b=c", "EMPTY": "", "PATH": "/bin", "HOME": "/elsewhere",
    }


def test_an_environment_that_is_no_utf_8_passes(box):
    assert b"X=\xff\n" in box.run("env", options=["-e", "X=\udcff"]).raw


@pytest.mark.parametrize(("user", "words"), [
    ("1000", "uid=1000(user) gid=1000(user) groups=2000(extra),1000(user) /home"), ("user", "uid=1000(user) gid=1000(user) groups=2000(extra),1000(user) /home"),
    ("1000:2000", "uid=1000(user) gid=2000(extra) groups=2000(extra) /home"), ("nobody:user", "uid=65534(nobody) gid=1000(user) groups=1000(user) /home"),
    ("4242", "uid=4242 gid=0(root) groups=0(root) /"), ("4242:4243", "uid=4242 gid=4243 groups=4243 /"),
])
def test_user(box, user, words):
    said = box.run("sh", "-c", "echo $(id) $HOME", options=["-u", user]).out.split()
    groups = sorted(said[2].removeprefix("groups=").split(","))
    wanted = words.split()
    assert (said[:2], groups, said[3]) == (wanted[:2], sorted(wanted[2].removeprefix("groups=").split(",")), wanted[3])


def test_a_missing_work_directory_is_made(box):
    assert box.run("sh", "-c", "pwd; stat -c %a:%u .", options=["-w", "/made/here"]).lines == ["/made/here", "755:0"]


def test_entrypoint_replaces_and_clears(box, registry):
    from support.registry import busybox_image

    text = registry.push("entry", busybox_image(config={"Entrypoint": ["echo", "entry"], "Cmd": ["cmd"]}))
    run = ("run", "--rm", "--network", "none")
    assert box.lane(*run, text, check=True).out == "entry cmd\n"
    assert box.lane(*run, text, "mine", check=True).out == "entry mine\n"
    assert box.lane(*run, "--entrypoint", "/bin/ls", text, "-d", "/etc", check=True).out == "/etc\n"
    one_line(box.lane(*run, "--entrypoint", "", text), "no command specified")
    assert box.lane(*run, "--entrypoint=", text, "echo", "bare", check=True).out == "bare\n"
    box.lane("rmi", text, check=True)


# ---- names it has of itself

def test_hostname_and_the_three_files(box):
    script = "hostname; cat /etc/hostname; grep -c nameserver /etc/resolv.conf; grep -w vessel /etc/hosts; grep localhost /etc/hosts | head -n 1"
    said = box.run("sh", "-c", script, options=["--hostname", "vessel"], check=False).lines
    assert said[:2] == ["vessel", "vessel"]
    assert int(said[2]) >= 1
    assert said[-1].split() == ["127.0.0.1", "localhost"]


def test_the_default_host_name_is_the_id(box):
    name = box.start("sleep", "100")
    assert box.lane("exec", name, "hostname", check=True).out.strip() == box.inspect(name)["Id"][:12]


def test_network_host_shares_network_names_and_hostname(box):
    said = box.lane("run", "--rm", "--network", "host", box.image, "sh", "-c", "readlink /proc/self/ns/net; hostname; cat /sys/class/net/lo/ifindex", check=True).lines
    assert said == [os.readlink("/proc/self/ns/net"), os.uname().nodename, "1"]


def test_network_none_has_a_loopback_that_works_and_no_more(box):
    said = box.run("sh", "-c", "ls /sys/class/net; ping -c 1 -W 1 127.0.0.1 | grep -c ttl=; ip route", check=False)
    assert said.out == "lo\n1\n"


@pytest.mark.rootless_only("as root the default is a bridge")
def test_an_ordinary_user_is_told_of_the_default_network(box):
    done = box.lane("run", "--rm", box.image, "ls", "/sys/class/net", check=True)
    assert done.out == "lo\n"
    assert done.err.count("\n") == 1 and "--network none" in done.err


@BRIDGED
def test_a_bridge_has_an_address_a_way_out_and_published_ports(box):
    name = box.name()
    serve = "echo -e 'HTTP/1.0 200 OK\\r\\n\\r\\nhello' > /r; while true; do nc -l -p 80 < /r > /dev/null; done"
    box.lane("run", "-d", "--name", name, "-p", "127.0.0.1:0:80", box.image, "sh", "-c", serve, check=True)
    known = box.inspect(name)
    port = int(known["NetworkSettings"]["Ports"]["80/tcp"][0]["HostPort"])
    address = known["NetworkSettings"]["IPAddress"]
    assert address in box.lane("exec", name, "ip", "-o", "-4", "address", "show", "eth0", check=True).out
    assert box.lane("exec", name, "grep", "-w", name and known["Config"]["Hostname"], "/etc/hosts", check=True).out.split()[0] == address
    gateway = known["NetworkSettings"]["Gateway"]
    assert box.lane("exec", name, "ping", "-c", "1", "-W", "2", gateway, check=True).out.count("ttl=") == 1
    for where in (("127.0.0.1", port), (address, 80)):
        assert b"hello" in eventually(lambda where=where: fetch(where))
    box.lane("rm", "-f", name, check=True)
    with contextlib.closing(socket.socket()) as free:
        free.bind(("127.0.0.1", port))


def fetch(where):
    try:
        with socket.create_connection(where, timeout=2) as sock:
            sock.sendall(b"GET / HTTP/1.0\r\n\r\n")
            return b"".join(iter(lambda: sock.recv(4096), b""))
    except OSError:
        return b""


# ---- mounts

def test_a_directory_and_a_file_of_the_host_are_bound(box, lane_dir):
    with open(f"{lane_dir}/file", "w") as file:
        file.write("from the host\n")
    os.chown(f"{lane_dir}/file", box.lane.uid, box.lane.gid)
    said = box.run(
        "sh", "-c", "cat /d/file; echo inside > /d/new; echo more >> /f; cat /ro/file; echo x > /ro/x; echo y > /ro/file",
        options=["-v", f"{lane_dir}:/d", "-v", f"{lane_dir}/file:/f", "-v", f"{lane_dir}:/ro:ro"], check=False,
    )
    assert said.out == "from the host\nfrom the host\nmore\n" and said.err.count("Read-only file system") == 2 and said.code == 1
    with open(f"{lane_dir}/new") as file:
        assert file.read() == "inside\n"
    assert os.stat(f"{lane_dir}/new").st_uid == box.lane.uid


def test_a_named_volume_stays_and_an_anonymous_one_goes(box):
    name = box.name()
    box.run("sh", "-c", "echo kept > /data/x", options=["-v", f"{name}:/data"])
    assert box.run("cat", "/data/x", options=["-v", f"{name}:/data"]).out == "kept\n"
    before = os.listdir(box.lane.root + "/volumes")
    assert name in before
    box.run("sh", "-c", "echo gone > /data/x", options=["-v", "/data"])
    assert os.listdir(box.lane.root + "/volumes") == before


def test_read_only_refuses_writes_but_for_memory_and_volumes(box):
    script = "echo x > /x; echo x > /etc/x; echo x > /dev/shm/x && echo x > /data/x && echo x > /dev/null && echo ok; mkdir /tmp/x"
    done = box.run("sh", "-c", script, options=["--read-only", "-v", "/data"], check=False)
    assert (done.out, done.err.count("Read-only file system")) == ("ok\n", 3)


def test_the_host_image_is_copy_on_write(box):
    probe = f"/etc/utsuwa-{os.urandom(4).hex()}"
    done = box.lane("run", "--rm", "--network", "none", "host", "sh", "-c", f"echo mine > {probe}; cat {probe} /etc/debian_version; rm /etc/debian_version; ls /sys/fs/cgroup > /dev/null", check=True)
    with open("/etc/debian_version") as file:
        assert done.out == "mine\n" + file.read()
    assert not os.path.exists(probe)


def test_the_host_image_knows_the_host_s_users(box):
    run = ("run", "--rm", "--network", "none")
    assert box.lane(*run, "host", "sh", "-c", "echo $HOME", check=True).out == "/root\n"
    if not box.lane.rootless:  # nobody's id is beyond the 65536 subordinate ones
        assert box.lane(*run, "-u", "nobody", "host", "id", "-un", check=True).out == "nobody\n"


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can mount a file system on the host")
def test_the_host_image_shows_other_file_systems_empty(box, lane_dir):
    os.makedirs(f"{lane_dir}/below/kept")
    subprocess.run(["mount", "-t", "tmpfs", "-o", "mode=755", "tmpfs", f"{lane_dir}/below/kept"], check=True)
    try:
        with open(f"{lane_dir}/below/kept/secret", "w") as file:
            file.write("x")
        done = box.lane("run", "--rm", "--network", "none", "host", "sh", "-c", f"find {lane_dir}/below")
        assert done.lines == [f"{lane_dir}/below", f"{lane_dir}/below/kept"]
    finally:
        subprocess.run(["umount", f"{lane_dir}/below/kept"], check=True)


# ---- limits, as the kernel has them and as it enforces them

def groups(lane, name):
    """Return controller → directory of a running container's control groups."""
    pid = json.loads(lane("inspect", name, check=True).out)[0]["State"]["Pid"]
    with open(f"/proc/{pid}/cgroup") as file:
        rows = [line.strip().split(":", 2) for line in file]
    found = {}
    for _, controllers, path in rows:
        for controller in controllers.split(","):
            top = "/sys/fs/cgroup" if os.path.exists("/sys/fs/cgroup/cgroup.controllers") and not controller else f"/sys/fs/cgroup/{controllers or 'unified'}"
            found[controller] = top + path
    return found


def read(path):
    with open(path) as file:
        return file.read().strip()


def value(found, *choices):
    """Return the text of the first file that this machine has: (controller of v1, file), … with "" for v2."""
    for controller, file in choices:
        if os.path.exists(f"{found.get(controller, '/nowhere')}/{file}"):
            return read(f"{found[controller]}/{file}")
    raise AssertionError(f"none of {choices} is there")


@LIMITED
def test_limits_are_in_its_control_groups(box):
    name = box.start("sleep", "100", options=["--memory", "64m", "--cpus", "0.5", "--pids-limit", "20"])
    found = groups(box.lane, name)
    assert value(found, ("memory", "memory.limit_in_bytes"), ("", "memory.max")) == str(64 << 20)
    assert value(found, ("pids", "pids.max"), ("", "pids.max")) == "20"
    assert value(found, ("cpu", "cpu.cfs_quota_us"), ("", "cpu.max")).split()[0] == "50000"
    memsw = found.get("memory", "") + "/memory.memsw.limit_in_bytes"
    assert not os.path.exists(memsw) or read(memsw) == str(128 << 20)
    host = box.inspect(name)["HostConfig"]
    assert (host["Memory"], host["NanoCpus"], host["PidsLimit"]) == (64 << 20, 500_000_000, 20)
    box.lane("rm", "-f", name, check=True)
    assert [path for path in found.values() if os.path.exists(path)] == []


@LIMITED
def test_a_fork_bomb_is_bounded(box):
    done = box.run("sh", "-c", "n=0; while [ $n -lt 100 ]; do sleep 20 & n=$((n+1)); done; echo reached", options=["--pids-limit", "15"], check=False)
    assert "reached" not in done.out and "can't fork" in done.err


@LIMITED
def test_a_memory_eater_is_killed_and_inspect_says_so(box):
    name = box.name()
    done = box.lane("run", "--name", name, "--network", "none", "--memory", "16m", box.image, "sh", "-c", "exec tail /dev/zero", check=False)
    assert done.code == 137
    state = box.inspect(name)["State"]
    assert (state["OOMKilled"], state["ExitCode"], state["Status"]) == (True, 137, "exited")


@LIMITED
def test_a_processor_quota_is_in_force(box):
    spin = "end=$(($(date +%s)+2)); while [ $(date +%s) -lt $end ]; do i=0; while [ $i -lt 2000 ]; do i=$((i+1)); done; done; cat /proc/self/schedstat > /dev/null; times"
    done = box.run("sh", "-c", spin, options=["--cpus", "0.1"])
    used = sum(float(seconds) + 60 * int(minutes) for minutes, seconds in re.findall(r"(\d+)m([\d.]+)s", done.out))
    assert used < 0.6


@pytest.mark.rootless_only("as root the limits are set")
@pytest.mark.parametrize("option", [("--memory", "64m"), ("--cpus", "0.5"), ("--pids-limit", "20")])
def test_a_limit_that_cannot_be_is_refused_not_forgotten(box, option):
    one_line(box.run("true", options=option, check=False), option[0], "run as root")


# ---- names, ids, the background

def test_detached_prints_the_id_and_nothing_else(box):
    name = box.name()
    started = time.monotonic()
    done = box.lane("run", "-d", "--name", name, "--network", "none", box.image, "sh", "-c", "sleep 100", check=True)
    assert time.monotonic() - started < 20 and done.err == ""
    assert re.fullmatch(r"[0-9a-f]{64}\n", done.out)
    assert box.inspect(name)["Id"] == done.out.strip()


def test_a_name_is_made_up_and_a_taken_one_is_refused(box):
    ident = box.lane("run", "-d", "--network", "none", box.image, "sleep", "100", check=True).out.strip()
    name = box.inspect(ident)["Name"]
    assert re.fullmatch(r"/[a-z]+_[a-z]+\d*", name)
    one_line(box.lane("run", "--name", name, box.image, "true"), "is already in use by container", ident)
    box.lane("rm", "-f", ident, check=True)
    assert not box.exists(ident)


def test_rm_leaves_nothing_and_without_it_the_container_stays(box):
    name = box.name()
    box.lane("run", "--rm", "--name", name, "--network", "none", box.image, "true", check=True)
    assert not box.exists(name)
    box.lane("run", "--name", name, "--network", "none", box.image, "sh", "-c", "exit 3")
    assert box.inspect(name)["State"]["ExitCode"] == 3
    assert box.lane("ps", "-a", "--filter", "x").code == 125  # as Docker has it, not built: said, not ignored


def test_twenty_at_once(box):
    names = [box.name() for _ in range(20)]
    started = [box.lane.popen("run", "--rm", "--name", name, *("--network", "none"), box.image, "sh", "-c", "hostname; sleep 0.5; exit 5") for name in names]
    ended = []
    for process in started:
        with process:
            out, err = process.communicate(timeout=60)
            ended.append((process.returncode, len(out), err))
    assert ended == [(5, 13, b"")] * 20


def test_a_container_that_stops_what_enters_it_does_not_stop_its_monitor(box):
    """Its root may signal whatever appears in its pid namespace, exec's process before the program runs too."""
    name = box.start("sh", "-c", "while true; do kill -STOP -1; done")
    entering = [box.lane.popen("exec", name, "true") for _ in range(4)]
    time.sleep(0.5)
    box.lane("kill", name, check=True, timeout=10)
    assert box.lane("wait", name, check=True, timeout=10).out == "137\n"
    for process in entering:
        with process:
            assert process.wait(10) in (0, 125, 137)
