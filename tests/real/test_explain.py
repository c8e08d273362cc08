"""The script of `explain --format shell` makes the same container: run both, look from inside, compare. And no mount line of it is idle."""

import json
import os
import re
import subprocess

import pytest

by_root = pytest.mark.root_only("the script is run by hand as root; the ledger it comes from is written by the same code in both lanes")

IMAGE = "host"
PROBE = """
echo == mounts; cat /proc/self/mountinfo
echo == status; grep -E '^(Cap|Uid|Gid|Groups|NoNewPrivs)' /proc/self/status
echo == hostname; hostname
echo == pid; echo $$
echo == namespaces; ls -l /proc/self/ns
echo == devices; ls -l /dev /dev/pts
echo == sysctl; cat /proc/sys/net/ipv4/ip_unprivileged_port_start /proc/sys/net/ipv4/ping_group_range
echo == address
for link in lo eth0; do [ ! -e /sys/class/net/$link ] || { ip -o address show dev $link; ip route show dev $link; cat /sys/class/net/$link/address; }; done
echo == limits
for file in memory/memory.limit_in_bytes memory/memory.memsw.limit_in_bytes cpu/cpu.cfs_quota_us cpu/cpu.cfs_period_us pids/pids.max memory.max cpu.max pids.max; do
    [ ! -e /sys/fs/cgroup/$file ] || echo $file $(cat /sys/fs/cgroup/$file)
done
cat /proc/self/cgroup
echo == end
"""
LIMITS = ("--memory", "64m", "--cpus", "0.5", "--pids-limit", "60")


def facts(text):
    """What the probe saw, without what differs from one container to the next: numbers of mounts, of namespaces, of links, hours."""
    found = dict(part.split("\n", 1) for part in text.split("== ")[1:])
    assert "end" in found, text
    host = {name: os.readlink(f"/proc/self/ns/{name}") for name in os.listdir("/proc/self/ns")}
    found["namespaces"] = {name: target == host[name] for name, target in re.findall(r"(\w+) -> (\S+)", found["namespaces"])}
    found["mounts"] = [mount(line) for line in found["mounts"].splitlines()]
    found["devices"] = re.sub(r"\w{3} +\d+ +[\d:]+ |^total.*$", "", found["devices"], flags=re.MULTILINE)
    found["address"] = re.sub(r"^\d+: |@if\d+|valid_lft.*$", "", found["address"], flags=re.MULTILINE)
    return found


def mount(line):
    """(mount point, what of the file system, its type, the mount's own options, whether it is a peer or a slave of another)."""
    left, _, right = line.partition(" - ")
    source, point, options, *tags = left.split()[3:]
    return point, source, right.split()[0], tuple(sorted(options.split(","))), tuple(tag.partition(":")[0] for tag in tags)


class Made:
    """A container that has run and is kept: what it saw, and the script made of its ledger."""

    def __init__(self, lane, *options):
        self.lane = lane
        done = lane("run", "--name", "model", *LIMITS, *options, IMAGE, "sh", "-c", PROBE, check=True)
        self.facts, self.script = facts(done.out), lane("explain", "--format", "shell", "model", check=True).out

    def by_hand(self, directory, script=""):
        """Run the script where / is shared, so that a mount that escapes is seen; returns its result, and whether the host's mounts changed."""
        path = f"{directory}/by-hand.sh"
        with open(path, "w") as file:
            file.write(script or self.script)
        outside = 'mount --make-rshared /; cat /proc/self/mountinfo > "$1.before"; sh "$1"; code=$?; cat /proc/self/mountinfo > "$1.after"; exit $code'
        argv = ["unshare", "--mount", "--propagation", "private", "sh", "-c", outside, "sh", path]
        done = subprocess.run(argv, env={**self.lane.environ(), "TMPDIR": directory}, capture_output=True, text=True, stdin=subprocess.DEVNULL, timeout=60)
        with open(path + ".before") as before, open(path + ".after") as after:
            # More than before: fewer is another test's namespace, whose file is gone from here as well.
            return done, bool({mount(line) for line in after} - {mount(line) for line in before})

    def is_same(self, directory, script):
        done, escaped = self.by_hand(directory, script)
        return done.returncode == 0 and not escaped and facts(done.stdout) == self.facts


@pytest.fixture
def made(utsuwa):
    """Callable: run the probe with these options in a container that is kept until the test is over."""
    yield lambda *options: Made(utsuwa, *options)
    utsuwa("rm", "--force", "model")


@by_root
@pytest.mark.parametrize("options", [
    ("--network", "none"), ("--network", "bridge"), ("--network", "host"), ("--network", "none", "--read-only", "--hostname", "vessel"),
    ("--network", "none", "--user", "1000:1000", "--security-opt", "no-new-privileges", "--cap-add", "NET_ADMIN", "--workdir", "/tmp"),
], ids=" ".join)
def test_the_script_makes_the_same_container(made, lane_dir, options):
    model = made(*options)
    done, escaped = model.by_hand(lane_dir)
    assert done.returncode == 0, done.stderr
    assert facts(done.stdout) == model.facts
    assert not escaped
    assert (groups := _groups(model.script)) and not [path for path in groups if os.path.exists(path)]


@by_root
def test_a_volume_is_the_same_directory(made, lane_dir):
    os.mkdir(f"{lane_dir}/shared")
    model = made("--network", "none", "-v", f"{lane_dir}/shared:/mnt:ro")
    assert ("/mnt", True) in {(point, "ro" in options) for point, _, _, options, _ in model.facts["mounts"]}
    assert model.is_same(lane_dir, model.script)


def _groups(script):
    container = re.search("^id=(.*)$", script, re.MULTILINE)[1]
    return [path.replace("$id", container) for path in re.findall(r"^mkdir -p (/sys/fs/cgroup/\S+/\$id)$", script, re.MULTILINE)]


@by_root
def test_every_mount_line_is_needed(made, lane_dir):
    model = made("--network", "none")
    lines = model.script.splitlines(keepends=True)
    mounts = [index for index, line in enumerate(lines) if re.match(r'(mount|pivot_root|umount|\$host "\.\$u?mount") ', line) and not line.startswith("mount=")]
    assert len(mounts) >= len(model.facts["mounts"])
    idle = [lines[index] for index in mounts if model.is_same(lane_dir, "".join(lines[:index] + lines[index + 1:]))]
    assert idle == []


@by_root
def test_another_command_can_be_given(made, lane_dir):
    model = made("--network", "none")
    with open(f"{lane_dir}/by-hand.sh", "w") as file:
        file.write(model.script)
    done = subprocess.run(["sh", f"{lane_dir}/by-hand.sh", "sh", "-c", "echo $1; exit 7", "sh", "a b"], env=model.lane.environ(), capture_output=True, text=True, stdin=subprocess.DEVNULL)
    assert (done.returncode, done.stdout) == (7, "a b\n"), done.stderr


@by_root
def test_the_script_of_a_removed_container_says_what_it_lacks(utsuwa, lane_dir):
    utsuwa("run", "--rm", "--network", "none", IMAGE, "true", check=True)
    with open(f"{lane_dir}/by-hand.sh", "w") as file:
        file.write(utsuwa("explain", "--last", "--format", "shell", check=True).out)
    done = subprocess.run(["sh", f"{lane_dir}/by-hand.sh"], capture_output=True, text=True, stdin=subprocess.DEVNULL)
    assert (done.returncode, done.stdout) == (1, "") and "the files of a removed container went with it" in done.stderr


# ---- the command


def test_a_running_and_a_removed_container_are_explained(utsuwa):
    name = utsuwa("run", "-d", "--network", "none", IMAGE, "sleep", "60", check=True).out.strip()
    try:
        out = utsuwa("explain", name[:12], check=True).out
        assert "01 container" in out and "06 security" in out and "\x1b" not in out
        assert utsuwa("explain", "--last", check=True).out == out
    finally:
        utsuwa("rm", "--force", name, check=True)
    told = utsuwa("explain", name[:12], check=True).out
    assert "somebody signals the container" in told
    assert ("the container is gone" in told) != utsuwa.rootless  # whose containers have neither control groups nor a network to take down
    assert utsuwa("explain", "--last", "--topic", "6", check=True).out.startswith("06 security")


def test_the_forms_agree_on_the_calls(utsuwa):
    utsuwa("run", "--rm", "--network", "none", "hello", check=True)
    lines = json.loads(utsuwa("explain", "--last", "--format", "json", check=True).out)
    calls = [text for text in utsuwa("explain", "--last", "--format", "strace", check=True).out.splitlines() if not text.startswith("---")]
    assert len(lines) == len(calls) > 100
    assert {line["who"] for line in lines} == {"engine", "monitor", "init"}
    assert all(line["why"] for line in lines)


@pytest.mark.parametrize(("args", "says"), [
    (("explain",), "say which container, or --last"), (("explain", "nobody"), "No such container: nobody"), (("explain", "--last", "--topic", "9"), "topics are 1 to 7"),
    (("explain", "--last", "--format", "yaml"), 'unknown format "yaml"'),
])
def test_bad_input_is_one_clear_line(utsuwa, args, says):
    utsuwa("run", "--rm", "--network", "none", "hello", check=True)
    done = utsuwa(*args)
    assert (done.code, done.out) == (1, "") and says in done.err and done.err.count("\n") == 1


# ---- the plan

def test_the_plan_is_the_ledger_before_anything_is_made(utsuwa):
    options = ["--network", "none"] if utsuwa.rootless else ["-p", "127.0.0.1::80", "--memory", "64m", "--pids-limit", "50"]
    utsuwa("run", "--rm", *options, "host", "true", check=True)  # the bridge and the parents of the groups are made
    planned = json.loads(utsuwa("run", "--dry-run", "--format", "json", *options, "host", "sleep", "60", check=True).out)
    assert utsuwa("ps", "--all", "--quiet", check=True).out == ""
    assert {line["result"] for line in planned} == {None}
    name = utsuwa("run", "-d", *options, "host", "sleep", "60", check=True).out.strip()
    try:
        made = json.loads(utsuwa("explain", name, "--format", "json", check=True).out)
    finally:
        utsuwa("rm", "--force", name, check=True)
    for who in ("engine", "monitor", "init"):
        # The address and the descriptors are others; the calls, their order and their reasons are the same. The network is made in a thread of its own.
        assert calls(planned, who) == calls(made, who)
    assert [line["seq"] for line in planned if line["who"] == "init"] == list(range(1, 1 + len(calls(planned, "init"))))


def calls(lines, who):
    told = [(line["call"], line["why"]) for line in lines if line["who"] == who]
    return sorted(told) if who == "engine" else told


def test_a_plan_makes_nothing_and_a_form_needs_one(utsuwa):
    out = utsuwa("run", "--dry-run", "--network", "none", "hello", check=True).out
    assert "01 container" in out and "Hello from utsuwa" not in out
    assert utsuwa("ps", "--all", "--quiet", check=True).out == ""
    done = utsuwa("run", "--format", "json", "hello")
    assert (done.code, done.err) == (125, "utsuwa: --format is the form of --dry-run; leave it out, or add --dry-run\n")
