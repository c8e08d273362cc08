"""The ledger is complete: strace beside a run sees no state-changing call of engine, monitor or init that it does not tell, and it tells none that was not made.

kernel/calls.py says which calls count. Both sides become the same words: `mount`, `prctl PR_SET_DUMPABLE`, `write cgroup.procs`, `netlink`.
"""

import json
import os
import pwd
import re
import shutil
import socket
import subprocess
from collections import Counter
from typing import NamedTuple

import pytest

from utsuwa.kernel.calls import COMPOSED, PRCTL, STATE_CHANGING

pytestmark = pytest.mark.skipif(not shutil.which("strace"), reason="strace is not installed: scripts/test-deps.sh strace")
root_only = pytest.mark.root_only("an ordinary user has no bridge and no limits yet")

UNTOLD = {
    "monitor": Counter({"fork": 1, "setsid": 1}),  # its own daemonising: before CREATE it does not know whose ledger to write
    "engine": Counter(),
    "init": Counter(),
}
JOINING = Counter({"setns": 1, "setresgid": 1, "setresuid": 1})
"""The rootless engine joins the user's namespaces before it knows of any container."""
FORKS = "clone,clone3,?fork,?vfork"
FILES = "?openat2,openat,?open,mkdirat,?mkdir,?rmdir,unlinkat,symlinkat,?symlink"
SOCKETS = "bind,ioctl,sendto,sendmsg"


class Call(NamedTuple):
    """One line of strace: `result` is None where the call did not return."""

    name: str
    args: str
    result: int | None


def read(path):
    """The calls of one process, in order, from its file (strace -ff)."""
    with open(path, errors="replace") as file:
        found = [re.match(r"(\w+)\((.*)\)\s+= (\?|-?\d+)", line) for line in file]
    return [Call(each[1], each[2], None if each[3] == "?" else int(each[3])) for each in found if each]


def is_fork(call):
    return call.name in ("clone", "clone3", "fork", "vfork")


def by_process(directory):
    """engine, monitor, init → their calls: followed from parent to child. init's end where the container's program begins, and an exec session's count as init's.

    A monitor that nobody waits for becomes, by execve, the engine that cleans up.
    """
    traces = {int(name.partition(".")[2]): read(f"{directory}/{name}") for name in os.listdir(directory)}
    children = {call.result: pid for pid, calls in traces.items() for call in calls if is_fork(call) and call.result}
    flags = {call.result: call.args for calls in traces.values() for call in calls if is_fork(call) and call.result}

    def who(pid):
        if pid not in children:
            return "engine"
        parent = who(children[pid])
        if "CLONE_NEWPID" in flags[pid]:
            return "init"
        if parent == "engine" and is_spawned(pid):
            return "monitor"
        return "init" if parent == "monitor" and not is_spawned(children[pid]) else parent

    def is_spawned(pid):
        return any(call.name == "execve" and "/proc/self/fd/" in call.args for call in traces[pid])

    found = {"engine": [], "monitor": [], "init": []}
    for pid in sorted(traces):
        name, calls = who(pid), traces[pid]
        programs = [index for index, call in enumerate(calls) if call.name == "execve" and call.result == 0]
        if name == "init":
            calls = calls[: programs[0] + 1] if programs else calls
        elif programs and name == "monitor" and not is_spawned(pid):
            found["engine"] += calls[programs[0] + 1:]
            calls = calls[: programs[0] + 1]
        elif programs:  # what made it this program was its parent's doing, and is told as posix_spawn
            calls = calls[programs[-1] + 1:]
        found[name] += calls
    return found


def path(args):
    """The path of an …at call with -y, `5</a/b>, "c", …`, or of one without."""
    base, name = re.match(r'(?:(?:\w+)<([^>]*)>, )?"((?:[^"\\]|\\.)*)"', args).groups()
    return os.path.normpath(os.path.join(base or "", name))


def messages(args):
    """The words for what is sent over netlink: every request of ours for a change wants an answer, looking does not; libnftables sends one batch a transaction.

    Of a socket that it cannot find, in another network namespace or just made, strace does not know the protocol and shows types as numbers: 0x10 is
    RTM_NEWLINK, or the begin of a batch of nftables, whose messages are 0xa00 and up.
    """
    if "NFNL_MSG_BATCH" in args:
        return ["nft"] * args.count("NFNL_MSG_BATCH_BEGIN")
    if re.search(r"nlmsg_type=0xa[0-9a-f]{2} /", args):
        return ["nft"] * len(re.findall(r"nlmsg_type=0x10 /", args))
    return ["netlink"] * len(re.findall(r"nlmsg_type=(?!NFNL)[^,]*, nlmsg_flags=[^,}]*NLM_F_ACK", args))


def seen(call, state):
    """The words for a call that strace saw; [] for one that does not count. `state` are the engine's own directories."""
    name, args = call.name, call.args
    if is_fork(call):
        kind = None if "CLONE_THREAD" in args else "posix_spawn" if "CLONE_VFORK" in args or name == "vfork" else "clone" if "CLONE_NEW" in args else "fork"
        return [kind] if kind else []
    if name == "prctl":
        return [f"prctl {args.partition(',')[0]}"] if args.partition(",")[0] in PRCTL else []
    if name in ("openat", "openat2", "open"):
        where = path(args)
        return [f"write {os.path.basename(where)}"] if re.search("O_WRONLY|O_RDWR", args) and re.search("/proc/|^/sys/", where) else []
    if name in ("mkdir", "mkdirat", "rmdir", "unlinkat"):
        where, kind = path(args), "mkdir" if name.startswith("mkdir") else "rmdir"
        return [] if (where.startswith(state) and "/merged/" not in where) or (kind == "rmdir" and not where.startswith("/sys/")) else [f"{kind} {os.path.basename(where)}"]
    if name in ("symlink", "symlinkat"):
        where = path(args.partition(", ")[2])  # after the target
        return [] if where.startswith(state) and "/merged/" not in where else ["symlinkat"]
    if name in ("sendto", "sendmsg"):
        return messages(args)
    if name == "ioctl":
        return ["netlink"] if "SIOCSIFFLAGS" in args else []
    if name == "bind":
        return ["bind"] if "AF_INET" in args else []
    if name == "kill" and args.endswith(", 0"):
        return []
    return [name] if name in STATE_CHANGING else []


def told(line):
    """The words for a line of the ledger."""
    call, args = line["call"], line["args"]
    if call == "prctl":
        return f"prctl {args[0]}"
    return f"{call} {os.path.basename(args[0])}" if call in ("write", "mkdir", "rmdir") else call


def prepare(lane, directory):
    """Return (the strace command, the directory its files come to)."""
    lane("run", "--rm", "--network", "none", "hello", check=True)  # what is made once and for all is made: seccomp's cache, cgroup parents
    out = f"{directory}/trace"
    os.mkdir(out)
    calls = ",".join((*(f"?{name}" for name in sorted(STATE_CHANGING)), "prctl", FORKS, FILES, SOCKETS))
    user = ["-u", pwd.getpwuid(lane.uid).pw_name] if lane.uid != os.geteuid() else []  # traced by the user himself, newuidmap would lose its privilege
    return ["strace", *user, "-ff", "-y", "-v", "-s", "4096", "-o", f"{out}/t", "-e", f"trace={calls}"], out


@pytest.fixture
def traced(utsuwa, lane_dir):
    """Callable: run with these options under strace; returns (calls by process, ledger lines)."""
    def go(*options):
        strace, out = prepare(utsuwa, lane_dir)
        subprocess.run([*strace, utsuwa.program, "run", "--rm", *options, "hello"], env=utsuwa.environ(), cwd=utsuwa.home, stdin=subprocess.DEVNULL, check=True, timeout=60)
        return by_process(out), json.loads(utsuwa("explain", "--last", "--format", "json", check=True).out)

    return go


def free_port():
    with socket.create_server(("127.0.0.1", 0)) as server:
        return server.getsockname()[1]


def compare(calls, ledger, lane):
    """Assert for each process that what was made and what is told are the same."""
    for who in ("engine", "monitor", "init"):
        made = Counter(word for call in calls[who] for word in seen(call, (lane.root, lane.run)))
        made -= UNTOLD[who] + (JOINING if lane.rootless and who == "engine" else Counter())
        lines = Counter(told(line) for line in ledger if line["who"] == who)
        assert made - lines == Counter(), f"{who} made calls that the ledger does not tell"
        assert lines - made == Counter(), f"the ledger tells calls that {who} did not make"
    assert sum(len(each) for each in calls.values()) > len(ledger) > 100


@pytest.mark.parametrize("options", [("--network", "none"), ("--network", "none", "--read-only", "--user", "1:1", "--security-opt", "no-new-privileges")], ids=" ".join)
def test_the_ledger_tells_what_strace_sees(traced, utsuwa, options):
    compare(*traced(*options), utsuwa)


@root_only
@pytest.mark.parametrize("options", [("--network", "bridge"), ("-p", "127.0.0.1:{port}:80", "--memory", "64m", "--pids-limit", "50", "--cpus", "0.5")], ids=" ".join)
def test_the_ledger_tells_networks_and_limits(traced, utsuwa, options):
    compare(*traced(*[word.format(port=free_port()) for word in options]), utsuwa)


@root_only
def test_every_line_is_of_a_kind_that_counts(traced):
    _, ledger = traced("-p", f"127.0.0.1:{free_port()}:80")
    assert {line["call"] for line in ledger} - STATE_CHANGING - COMPOSED.keys() == {"prctl"}


def test_a_detached_life_is_told_to_its_end(utsuwa, lane_dir):
    """run -d, an exec, a stop, and the clean-up that the monitor becomes: strace follows the monitor, and ends when it does."""
    strace, out = prepare(utsuwa, lane_dir)
    options = ["--network", "none"] if utsuwa.rootless else ["-p", f"127.0.0.1:{free_port()}:80", "-v", "/data"]
    command = [*strace, utsuwa.program, "run", "-d", "--rm", *options, "host", "sleep", "1000"]
    with subprocess.Popen(command, env=utsuwa.environ(), cwd=utsuwa.home, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True) as process:
        name = process.stdout.readline().strip()
        utsuwa("exec", name, "true", check=True)
        utsuwa("exec", "--user", "1", "--workdir", "/tmp", name, "true", check=True)
        utsuwa("stop", "--time", "5", name, check=True)
        assert process.wait(60) == 0
    ledger = json.loads(utsuwa("explain", "--last", "--format", "json", check=True).out)
    compare(by_process(out), ledger, utsuwa)
    assert sum(line["call"] == "execve" for line in ledger) == 4  # the program, two sessions, and the monitor that becomes the clean-up
