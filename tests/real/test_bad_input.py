"""What a user can do wrong, and what the world can: one clear line, the right exit code, nothing left. Both lanes.

What a registry may answer is tested closer to the code in tests/attacks; here is the way through the command line.
"""

import contextlib
import os
import re
import signal
import socket
import struct
import subprocess
import threading
import time

import pytest

from support.containers import STOCK, Box, one_line
from support.registry import MACHINE, Answer, FakeRegistry, Image, busybox_image, digest, directory, entry, index, layer
from utsuwa.cli.run import UNSUPPORTED

pytestmark = pytest.mark.usefixtures("nothing_left")

LIMITED = pytest.mark.root_only("an ordinary user may make no control group here, and is told that first")
BRIDGED = pytest.mark.root_only("an ordinary user has no bridge yet")
AT_ONCE = 6
"""Commands beside each other where there are many: the machine has two processors."""


TOLD = re.compile(r"Unable to find image |\S+: Pulling from |[0-9a-f]{12}: |Digest: sha256:|Status: ")
"""Lines that tell of a pull of an image that is not here; Docker writes them to standard error too."""


def refused(result, *says, code=125):
    """As `one_line`, but for what is told of a pull."""
    one_line(result._replace(err=without_progress(result.err)), *says, code=code)


def without_progress(text):
    return "".join(line for line in text.splitlines(keepends=True) if not TOLD.match(line))


# ---- the command line

@pytest.mark.parametrize(("code", "args", "says"), [
    (1, ["frobnicate"], "unknown command: frobnicate"), (125, ["--frobnicate"], "unknown flag: --frobnicate"), (1, ["run"], "'utsuwa run' takes at least 1 argument"),
    (125, ["run", "--frobnicate", "IMAGE"], "unknown flag: --frobnicate"), (125, ["run", "-Z", "IMAGE"], "unknown flag: -Z"), (125, ["run", "-itZ", "IMAGE"], "unknown flag: -Z"),
    (125, ["run", "--name"], "flag needs an argument: --name"), (125, ["run", "--rm=maybe", "IMAGE"], "invalid argument 'maybe' for --rm"),
    (125, ["run", "--pids-limit", "x", "IMAGE"], "invalid argument 'x' for --pids-limit"), (125, ["run", "--pids-limit", "1_0", "IMAGE"], "expected a whole number"),
    (125, ["run", "--pids-limit", "9" * 30, "IMAGE"], "expected a whole number"), (125, ["run", "-it", "IMAGE"], "the input device is not a TTY"),
    (125, ["run", "--detach-keys", "ctrl-1", "IMAGE"], "invalid detach keys"), (125, ["run", "--dry-run", "--format", "nonsense", "IMAGE"], "nonsense"),
    (1, ["ps", "word"], "at most 0 argument"), (1, ["ps", "--format", "{{.Nope"], "unclosed action"), (1, ["logs"], "exactly 1 argument"), (1, ["kill", "-s", "NOPE", "x"], "Invalid signal: NOPE"),
    (125, ["stop", "-t", "soon", "x"], "invalid argument 'soon' for -t"), (1, ["system"], "system"), (1, ["system", "frobnicate"], "frobnicate"),
])
def test_a_command_line_that_makes_no_sense(box, code, args, says):
    """125 for a wrong flag and for whatever `run` was asked, 1 for the rest, as Docker's command line ends."""
    one_line(box.lane(*[box.image if word == "IMAGE" else word for word in args]), says, code=code)


def test_every_flag_of_docker_that_is_not_built_is_refused_by_name(box):
    """For each the command is run: nothing is ignored in silence."""
    names = sorted(UNSUPPORTED)
    assert len(names) > 80
    shown = ["-" + name if len(name) == 1 else "--" + name for name in names]
    for batch in (shown[at:at + AT_ONCE] for at in range(0, len(shown), AT_ONCE)):
        with contextlib.ExitStack() as stack:
            running = [(flag, stack.enter_context(box.lane.popen("run", "--rm", flag, box.image, "true"))) for flag in batch]
            for flag, process in running:
                out, err = process.communicate(timeout=60)
                assert (process.returncode, out, err.decode()) == (125, b"", f"utsuwa: not yet supported: {flag}\n")


@pytest.mark.parametrize("args", [
    ["run", "--gpus=all", "IMAGE"], ["run", "--rm", "-dq", "IMAGE"], ["run", "--security-opt", "label=disable", "IMAGE"], ["run", "--network", "container:x", "IMAGE"], ["exec", "--privileged", "x", "true"],
    ["ps", "--filter", "name=x"], ["ps", "-s"], ["rm", "--link", "x"], ["inspect", "--size", "x"], ["inspect", "--type", "network", "x"], ["pull", "-a", "IMAGE"], ["images", "--filter", "x"],
    ["rmi", "--no-prune", "x"], ["logs", "--details", "x"],
])
def test_what_is_not_built_elsewhere_is_refused_by_name_too(box, args):
    one_line(box.lane(*[box.image if word == "IMAGE" else word for word in args]), "not yet supported: ")


@pytest.mark.parametrize(("name", "says"), [
    ("a", "two characters"), ("-a", "invalid container name (-a)"), ("a/b", "only [a-zA-Z0-9][a-zA-Z0-9_.-] are allowed"), ("a b", "invalid container name"), ("é1", "invalid container name"),
    ("a\nb", "invalid container name"), ("..", "invalid container name"), ("x" * 256, "256 characters, 255 are allowed"),
])
def test_a_bad_name(box, name, says):
    one_line(box.run("true", options=[f"--name={name}"], check=False), says)


def test_the_name_of_a_stopped_container_is_taken_until_it_is_removed(box):
    name = box.start("true")
    box.lane("wait", name, check=True)
    one_line(box.run("true", options=["--name", name], check=False), "is already in use by container", box.inspect(name)["Id"])
    box.lane("rm", name, check=True)
    box.run("true", options=["--name", name])


@pytest.mark.parametrize(("options", "says"), [
    (["-u", "2147483648"], "uid must be 0 to 2147483647"), (["-u", "-1"], "uid must be 0 to 2147483647"), (["-u", "0:4294967296"], "gid must be 0 to 2147483647"), (["-u", "9" * 5000], "uid must be"), (["-u", "--1"], "unable to find user --1"),
    (["-u", "nowhere"], "unable to find user nowhere"), (["-u", "user:nowhere"], "unable to find group nowhere"), (["-u", "²"], "unable to find user"), (["-u", "1 "], "unable to find user"),
    (["-e", ""], "invalid environment variable"), (["-e", "=x"], "invalid environment variable: '=x'"),
    (["-w", "relative"], "the working directory 'relative' is invalid"), (["-w", "/etc/passwd"], "cannot use work directory /etc/passwd: "),
    (["-w", "/etc/passwd/below"], "cannot use work directory /etc/passwd/below"), (["-w", "/proc/nowhere"], "cannot use work directory /proc/nowhere"), (["-w", "/" + "x" * 300], "file name too long"),
    (["--hostname", "x" * 65], "invalid hostname"), (["--hostname", "-a"], "invalid hostname"), (["--hostname", "a/b"], "invalid hostname"), (["--cap-add", "NOPE"], 'unknown capability: "NOPE"'), (["--cap-drop", "NOPE"], "unknown capability"),
    (["-m", "x"], "invalid size: 'x'"), (["-m", "-1"], "invalid size"), (["-m", "1q"], "invalid suffix: 'q'"), (["-m", "9" * 30], "invalid size"), (["--cpus", "x"], "--cpus"), (["--cpus", "-1"], "--cpus"),
    (["--cpus", "0.0000000001"], "too precise"), (["--network", "nowhere"], "not yet supported: --network nowhere"),
])
def test_a_value_that_cannot_be(box, options, says):
    one_line(box.run("true", options=options, check=False), says)


@LIMITED
@pytest.mark.parametrize(("options", "says"), [
    (["-m", "5m"], "minimum memory limit allowed is 6MB"), (["--cpus", "0.001"], "range of CPUs is from 0.01"), (["--cpus", "100000"], "CPUs available"),
    (["--pids-limit", "4194305"], "invalid --pids-limit 4194305"),
])
def test_a_limit_that_cannot_be(box, options, says):
    one_line(box.run("true", options=options, check=False), says)


@pytest.mark.parametrize(("spec", "says"), [
    ("", "invalid empty volume spec"), (":/x", "empty section between colons"), ("/a:relative", "mount path must be absolute"), ("/a:/", "destination can't be '/'"), ("/a:/b:nope", "invalid mode: nope"),
    ("/a:/b:ro,rw", "invalid mode: ro,rw"), ("a:/b:c:d", "invalid volume specification"), ("-a:/b", "includes invalid characters for a local volume name"), ("a:/b", "volume name is too short"),
    ("/proc/nowhere:/x", "error while creating mount source path '/proc/nowhere'"), ("/etc/hostname/below:/x", "not a directory"), ("/etc/hostname:/bin", "/bin"), ("/etc:/bin/busybox", "/bin/busybox"),
])
def test_a_bad_volume(box, spec, says):
    one_line(box.run("true", options=["-v", spec], check=False), says)


def test_two_volumes_at_one_place(box, lane_dir):
    one_line(box.run("true", options=["-v", f"{lane_dir}:/x", "-v", "/x/"], check=False), "Duplicate mount point: /x")


@BRIDGED
@pytest.mark.parametrize(("port", "says"), [
    ("99999:80", "invalid hostPort: 99999"), ("80:0", "invalid containerPort: 0"), ("a:b", "invalid containerPort: b"), ("", "no port specified"), ("80/icmp", "invalid proto: icmp"),
    ("1.2.3:80:80", "invalid IP address: 1.2.3"), ("8000-8001:80-82", "invalid ranges"), ("[::1]:80:80", "not yet supported: -p [::1]:80:80"), ("192.0.2.1:80:80", "this host does not have the address 192.0.2.1"),
])
def test_a_bad_port(box, port, says):
    one_line(box.lane("run", "--rm", "-p", port, box.image, "true"), says)


@BRIDGED
def test_a_port_in_use_by_a_program_of_the_host_names_it(box):
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        with open("/proc/self/comm") as file:
            name = file.read().strip()
        one_line(box.lane("run", "--rm", "-p", f"127.0.0.1:{port}:80", box.image, "true"), f"cannot publish port 127.0.0.1:{port}/tcp: address in use by {name} (pid {os.getpid()})", "choose another")


@BRIDGED
def test_a_port_in_use_by_another_container_names_it(box):
    name = box.name()
    box.lane("run", "-d", "--name", name, "-p", "127.0.0.1:0:80", box.image, "sleep", "100", check=True)
    port = box.inspect(name)["NetworkSettings"]["Ports"]["80/tcp"][0]["HostPort"]
    one_line(box.lane("run", "--rm", "-p", f"127.0.0.1:{port}:8080", box.image, "true"), f"cannot publish port 127.0.0.1:{port}/tcp: address in use by container {name}")
    box.lane("rm", "-f", name, check=True)
    box.lane("run", "--rm", "-p", f"127.0.0.1:{port}:8080", box.image, "true", check=True)


# ---- privilege

@pytest.mark.rootless_only("root may")
@pytest.mark.parametrize(("options", "says"), [
    (["--network", "bridge"], "cannot use --network bridge: an ordinary user"), (["--network", "bridge", "-p", "80"], "cannot use --network bridge"), (["-p", "8080:80"], "cannot publish ports: an ordinary user's containers have no network of their own"),
    (["--network", "none", "-v", "/root/new:/x"], "permission denied"), (["--network", "none", "-u", "1000000"], "cannot run as uid 1000000: it is not among the subordinate ids"),
    (["--network", "none", "-u", "0:1000000"], "cannot run as gid 1000000"),
])
def test_what_an_ordinary_user_may_not(box, options, says):
    one_line(box.lane("run", "--rm", *options, box.image, "true"), says)


@pytest.mark.parametrize(("root", "says"), [("/proc/here", "cannot make the state directory /proc/here"), ("relative", "both must be absolute paths"), ("/dev/null", "/dev/null")])
def test_state_that_cannot_be_kept_there(utsuwa, root, says):
    for code, command in ((1, ["ps"]), (125, ["run", "--rm", "hello"])):
        one_line(utsuwa(*command, env={"UTSUWA_ROOT": root}), says, code=code)


@pytest.mark.rootless_only("root may go everywhere")
def test_state_of_somebody_else_is_refused(utsuwa, house):
    one_line(utsuwa("ps", env={"UTSUWA_ROOT": house.path + "/of-root"}), "cannot make the state directory", "permission denied", code=1)


def test_a_damaged_database_is_said(utsuwa, lane_dir):
    """The engine does not build a new one over it."""
    place = {"UTSUWA_ROOT": lane_dir + "/root"}
    utsuwa("ps", check=True, env=place)
    for name in ("state.db-wal", "state.db-shm"):
        with contextlib.suppress(FileNotFoundError):
            os.unlink(f"{lane_dir}/root/{name}")
    with open(lane_dir + "/root/state.db", "r+b") as file:
        file.write(b"not a database" * 1000)
    one_line(utsuwa("ps", env=place), "database", code=1)


# ---- the command in the container

def elf(machine):
    """An executable of another machine: header and one segment that nobody will load."""
    return struct.pack("<16sHHIQQQIHHHHHH", b"\x7fELF\x02\x01\x01", 2, machine, 1, 0x400078, 64, 0, 0, 64, 56, 1, 0, 0, 0) + struct.pack("<IIQQQQQQ", 1, 5, 0, 0x400000, 0x400000, 120, 120, 4096)


@pytest.fixture(scope="module")
def programs(registry):
    """Reference of an image with programs that cannot run."""
    return registry.push("programs", busybox_image(layer(
        directory("opt"), entry("opt/foreign", elf(22 if MACHINE != "s390x" else 62), mode=0o755), entry("opt/text", b"echo no shebang\n", mode=0o755), entry("opt/empty", b"", mode=0o755),
        entry("opt/lost", b"#!/nowhere/sh\n", mode=0o755), entry("opt/closed", b"#!/bin/sh\n", mode=0o700), entry("opt/plain", b"#!/bin/sh\n", mode=0o644),
    )))


@pytest.mark.parametrize(("words", "code", "says"), [
    (["nowhere"], 127, "cannot run 'nowhere': executable file not found in $PATH"), (["/nowhere"], 127, "cannot run '/nowhere': no such file or directory"), (["/etc/passwd/below"], 127, "not a directory"),
    ([""], 127, "cannot run ''"), (["/opt/lost"], 127, "cannot run '/opt/lost'"), (["/opt/plain"], 126, "cannot run '/opt/plain': permission denied"), (["/etc"], 126, "cannot run '/etc': permission denied"),
    (["/opt/foreign"], 126, "cannot run '/opt/foreign': exec format error"), (["/opt/text"], 126, "exec format error"), (["/opt/empty"], 126, "exec format error"), (["x" * 300 + "/y"], 126, "file name too long"),
    (["a\nb"], 127, "cannot run 'a\\nb'"),
])
def test_a_command_that_cannot_run(utsuwa, registry, programs, words, code, says):
    run = ("run", "--rm", *STOCK)
    refused(utsuwa(*run, programs, *words), says, code=code)
    box = Box(utsuwa, programs)
    name = box.start("sleep", "100")
    one_line(utsuwa("exec", name, *words), says, code=code)
    box.close()


def test_a_program_that_this_user_may_not_execute(utsuwa, programs):
    refused(utsuwa("run", "--rm", *STOCK, "-u", "1000", programs, "/opt/closed"), "cannot run '/opt/closed': permission denied", code=126)


def test_a_command_that_cannot_run_in_the_background(utsuwa, programs):
    """Docker leaves the container behind as created; here a failed start leaves nothing, with and without --rm."""
    refused(utsuwa("run", "-d", *STOCK, programs, "nowhere"), "executable file not found", code=127)
    refused(utsuwa("run", *STOCK, programs, "/opt/foreign"), "exec format error", code=126)


# ---- images

@pytest.mark.parametrize(("name", "says"), [
    ("", "no repository name"), ("x/UPPER", "must be lowercase"), ("x y", "invalid reference format"), ("x:a b", "tag 'a b'"), ("x@sha256:12", "digest 'sha256:12'"), ("a//b", "invalid reference format"),
    ("localhost:99999/x", "is not a host name with an optional port"), ("sha256:" + "0" * 64, "no such image"),
])
def test_a_bad_image_name(utsuwa, name, says):
    one_line(utsuwa("run", "--rm", *STOCK, name, "true"), says)


def test_an_image_that_is_not_there(box, registry):
    refused(box.lane("run", "--rm", *STOCK, f"{registry.address}/nowhere", "true"), "not found: manifest unknown")
    one_line(box.lane("rmi", f"{registry.address}/nowhere"), "no such image", code=1)


def test_a_registry_that_cannot_be_reached(utsuwa):
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))  # taken, but nobody listens
        place = f"127.0.0.1:{bound.getsockname()[1]}"
        refused(utsuwa("run", "--rm", *STOCK, f"{place}/x", "true"), f"cannot reach registry {place}", "connection refused")
    refused(utsuwa("run", "--rm", *STOCK, "nowhere.invalid/x", "true"), "cannot reach registry nowhere.invalid")


@contextlib.contextmanager
def speaker(words):
    """A server that says the same to everybody and hangs up."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        def serve():
            with contextlib.suppress(OSError):
                while True:
                    with server.accept()[0] as sock:
                        sock.recv(4096)
                        sock.sendall(words)

        thread = threading.Thread(target=serve)
        thread.start()
        try:
            yield f"127.0.0.1:{server.getsockname()[1]}"
        finally:
            server.shutdown(socket.SHUT_RDWR)
            thread.join()


@pytest.mark.parametrize("words", [b"", b"SSH-2.0-OpenSSH_9.2\r\n", b"HTTP/1.1 200 OK\r\nContent-Length: many\r\n\r\n", b"HTTP/1.1 200 OK\r\n" + b"X: y\r\n" * 200, b"\x15\x03\x03\x00\x02\x02\x28"])
def test_something_that_is_no_registry(utsuwa, words):
    with speaker(words) as place:
        refused(utsuwa("run", "--rm", *STOCK, f"{place}/x", "true"), place)
        one_line(utsuwa("pull", "-q", f"{place}/x"), place, code=1)


def _served(fake, what):
    """Serve an image with one thing wrong; returns the reference."""
    image = Image(layer(entry("a", os.urandom(1000))))
    if what == "no JSON":
        return fake.add("x", image, manifest=b'{"schemaVersion": 2')
    if what == "no manifest":
        return fake.add("x", image, manifest=b'{"schemaVersion": 2, "layers": "none"}')
    if what == "another platform":
        return fake.add("x", image, manifest=index(image.descriptor("s390x" if MACHINE != "s390x" else "amd64")), media_type="application/vnd.oci.image.index.v1+json")
    if what == "another architecture":
        return fake.add("x", Image(layer(entry("a")), architecture="s390x" if MACHINE != "s390x" else "amd64"))
    text = fake.add("x", image)
    blob = digest(image.config if what == "a wrong configuration" else image.layer_blobs[0])
    data = image.blobs[blob]
    fake.routes[f"/v2/x/blobs/{blob}"] = Answer(data[:-1] + bytes([data[-1] ^ 1]))
    return text


@pytest.mark.parametrize(("what", "says"), [
    ("no JSON", ""), ("no manifest", ""), ("another platform", "no image for linux/"), ("another architecture", "no image for linux/"), ("a wrong configuration", "digest"), ("a wrong layer", "digest"),
])
def test_an_image_that_cannot_be_used(utsuwa, what, says):
    with FakeRegistry() as fake:
        text = _served(fake, what)
        refused(utsuwa("run", "--rm", *STOCK, text, "true"), says)
        one_line(utsuwa("pull", "-q", text), says, code=1)
    assert text not in utsuwa("images", "--format", "{{.Repository}}:{{.Tag}}", check=True).lines


def test_a_platform_that_is_none(utsuwa, registry):
    one_line(utsuwa("pull", "-q", "--platform", "linux/vax", f"{registry.address}/busybox"), "linux/vax", code=1)
    one_line(utsuwa("pull", "-q", "--platform", "/", f"{registry.address}/busybox"), "platform", code=1)


# ---- a full disk

FULL = """set -e; mount -t tmpfs -o size={size},mode=700 tmpfs {where}; export UTSUWA_ROOT={where}/root
{before}
set +e; {command}; echo code $?
mount -o remount,size=200m {where}; rm -f {where}/ballast
{program} run --rm --network none {image} echo well; {program} ps -aq; {program} system check; echo check $?
"""
PULL_SIZES = ["16k", "64k", "112k", "144k", "160k", "200k", "256k", "1m", "1500k", "2m", "2500k", "3m", "3500k"]
NO_SPACE = re.compile("no space left on device|disk is full|disk I/O error", re.IGNORECASE)
ROOM = [0, 4, 8, 12, 16, 20, 24, 28, 32, 40, 48, 64, 96, 128]


def full(lane, lane_dir, image, size, before, command):
    """Run a command on a small file system of its own, seen by it alone, and look again when there is room. Returns (exit code, output, errors)."""
    script = FULL.format(size=size, where=lane_dir, before=before, command=command, program=lane.program, image=image)
    done = subprocess.run(["unshare", "-m", "sh", "-c", script], capture_output=True, text=True, env=lane.environ(), timeout=90)
    first, code, rest = done.stdout.partition("code ")
    exit_code, _, later = rest.partition("\n")
    assert code and later == "well\ncheck 0\n", done
    return int(exit_code), first, done.stderr


@pytest.mark.root_only("mounts a small file system")
@pytest.mark.parametrize("size", PULL_SIZES)
def test_a_full_disk_while_an_image_is_pulled(utsuwa, registry, lane_dir, size):
    image = f"{registry.address}/busybox"
    code, out, err = full(utsuwa, lane_dir, image, size, "", f"{utsuwa.program} run --rm --network none {image} echo ran")
    errors = without_progress(err).splitlines()
    assert (code, out, len(errors)) in ((125, "", 1), (0, "ran\n", 0)), (code, out, err)
    assert "Traceback" not in err and "internal error" not in err, err
    assert code == 0 or NO_SPACE.search(err), err


@pytest.mark.root_only("mounts a small file system")
@pytest.mark.parametrize("room", ROOM)
def test_a_full_disk_while_a_container_is_made(utsuwa, registry, lane_dir, room):
    image = f"{registry.address}/busybox"
    before = f"{utsuwa.program} pull -q {image} >/dev/null; cat /dev/zero > {lane_dir}/ballast 2>/dev/null || true; truncate -s -{room}k {lane_dir}/ballast"
    code, out, err = full(utsuwa, lane_dir, image, "8m", before, f"{utsuwa.program} run --rm --network none {image} sh -c 'echo ran; exit 7'")
    assert (code, out) in ((125, ""), (7, "ran\n")), (code, out, err)
    assert err.count("\n") == (code == 125) and "internal error" not in err and (code == 7 or err.startswith("utsuwa: ")), err
    assert code == 7 or NO_SPACE.search(err), err


# ---- Ctrl-C

def interrupted(lane, seconds, *args):
    """Start a command in a group of its own, send SIGINT to the group after a while as a terminal does, again until it ends; returns (exit code, output, errors)."""
    with lane.popen(*args, stdin=subprocess.DEVNULL, process_group=0) as process:
        time.sleep(seconds)
        deadline = time.monotonic() + 30
        while process.poll() is None:
            assert time.monotonic() < deadline, "it does not end"
            os.killpg(process.pid, signal.SIGINT)
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(0.3)
        return process.returncode, process.stdout.read().decode(), process.stderr.read().decode()


def in_time(code, err):
    """Whether a command that was interrupted ended as by SIGINT, with nothing told but of a pull. The interpreter's own start, before any line of ours, is not ours to keep quiet."""
    if err.startswith("Traceback") and '/bin/utsuwa"' not in err:
        return True
    return code in (130, -signal.SIGINT) and without_progress(err) == ""


WAITS = "trap 'exit 130' INT; sleep 100 & wait"


@pytest.mark.parametrize("moment", range(24))
def test_control_c_at_any_moment_of_run(box, moment):
    options = [[], ["-d"], ["-v", "/data"]][moment % 3]
    code, out, err = interrupted(box.lane, 0.02 + moment * 0.006, "run", "--rm", *STOCK, *options, box.image, "sh", "-c", WAITS)
    if options == ["-d"] and code == 0:  # it had started
        assert box.lane("rm", "-f", out.strip()).code == 0
        return
    assert in_time(code, err) and out == "", (code, out, err)


@BRIDGED
@pytest.mark.parametrize("moment", range(16))
def test_control_c_at_any_moment_of_a_run_with_a_bridge(box, moment):
    code, out, err = interrupted(box.lane, 0.02 + moment * 0.009, "run", "--rm", "-p", "127.0.0.1:0:80", box.image, "sh", "-c", WAITS)
    assert in_time(code, err) and out == "", (code, out, err)


@pytest.mark.parametrize("moment", range(24))
def test_control_c_at_any_moment_of_a_pull(utsuwa, registry, moment):
    """A pull that was in time is whole; one that was interrupted has left no image, and the next one works."""
    big = registry.push("big", Image(layer(*[entry(f"f{number}", bytes([number]) * 300_000) for number in range(40)])))
    code, out, err = interrupted(utsuwa, 0.02 + moment * 0.012, "pull", big)
    assert in_time(code, err) or (code, err) == (0, ""), (code, out, err)
    assert (utsuwa("images", "-q", big, check=True).out != "") >= (code == 0)
    utsuwa("pull", "-q", big, check=True)
    utsuwa("rmi", big, check=True)


def test_control_c_of_a_run_that_pulls(utsuwa, registry):
    big = registry.push("other", Image(layer(*[entry(f"f{number}", bytes([number]) * 300_000) for number in range(40)])))
    for moment in range(6):
        code, out, err = interrupted(utsuwa, 0.1 + moment * 0.05, "run", "--rm", *STOCK, big, "/nowhere")
        assert (in_time(code, err) and out == "") or code == 127, (code, out, err)
    utsuwa("rmi", "-f", big)
    assert utsuwa("images", "-q", big, check=True).out == ""
