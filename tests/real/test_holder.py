"""The rootless holder, for real: an ordinary user's commands meet in one pair of namespaces, whatever is killed."""

import json
import os
import signal
import subprocess
import time

import pytest

pytestmark = pytest.mark.rootless_only("root needs no user namespace of its own")

ENTER = """
import json, os, sys
from utsuwa.engine import holder, subids
from utsuwa.state.paths import Paths
{before}
paths = Paths(sys.argv[1] + "/root", sys.argv[1] + "/run")
holder.enter(paths)
def read(path):
    with open(path) as file:
        return file.read().split()
print(json.dumps({{
    "user": os.readlink("/proc/self/ns/user"), "mount": os.readlink("/proc/self/ns/mnt"), "map": read("/proc/self/uid_map"), "groups": read("/proc/self/setgroups"),
    "ids": (*os.getresuid(), *os.getresgid()), "cwd": os.getcwd(), "environ": {{k: v for k, v in os.environ.items() if k.startswith("UTSUWA_")}},
    "record": read(paths.run + "/holder"), "propagation": [line for line in open("/proc/self/mountinfo") if " shared:" in line],
}}), flush=True)
{after}
"""
MONITOR = """
import fcntl  # stands for utsuwa.monitor.main, which the look at its command line wants
os.makedirs(paths.root + "/containers/c")
lock = os.open(paths.root + "/containers/c/lock", os.O_RDWR | os.O_CREAT, 0o600)
fcntl.flock(lock, fcntl.LOCK_EX)
from utsuwa.kernel.process import boot_id
with open(paths.root + "/containers/c/state.json", "w") as file:
    json.dump({"monitor": os.getpid(), "boot": boot_id()}, file)
print("ready", flush=True)
sys.stdin.read()
"""


class Place:
    """A state of its own in the lane, so that the lane's own holder is left alone."""

    def __init__(self, lane, path):
        self.lane, self.path = lane, path

    def argv(self, before="", after=""):
        return [self.lane.python, "-I", "-c", ENTER.format(before=before, after=after), self.path]

    def enter(self, before="", **options):
        done = self.lane.execute(self.argv(before), **options)
        assert done.code == 0, done.err
        return {**json.loads(done.out), "err": done.err}

    def start(self, after=""):
        return self.lane._popen(self.argv(after=after), None, {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE})

    def pids(self):
        """Processes that have this place in their arguments."""
        return [pid for pid in os.listdir("/proc") if pid.isdigit() and self.path.encode() in arguments(pid)]

    def kill(self):
        try:
            with open(self.path + "/run/holder") as file:
                pid = file.read().split()[0]
        except FileNotFoundError:
            return
        if holds(pid):
            os.kill(int(pid), signal.SIGKILL)
            wait(lambda: not holds(pid))


def arguments(pid):
    try:
        with open(f"/proc/{pid}/cmdline", "rb") as file:
            return file.read()
    except OSError:
        return b""


def holds(pid):
    return arguments(pid) == b"utsuwa-holder\0"


def holders(namespace):
    """Holders alive in a user namespace. Only root may look at everybody's; an ordinary tester at its own."""
    found = []
    for pid in filter(str.isdigit, os.listdir("/proc")):
        try:
            if holds(pid) and os.readlink(f"/proc/{pid}/ns/user") == namespace:
                found.append(pid)
        except OSError:
            continue
    return found


def wait(condition, seconds=5.0):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.005)


@pytest.fixture
def place(lane, lane_dir):
    made = Place(lane, lane_dir)
    yield made
    made.kill()


def test_every_command_finds_the_same_namespaces(place, lane):
    first, second = place.enter(), place.enter()
    for key in ("user", "mount", "record"):
        assert first[key] == second[key]
    assert first["user"] != os.readlink("/proc/self/ns/user")
    assert first["ids"] == [0] * 6 and first["cwd"] == lane.home and first["propagation"] == []
    assert first["environ"] == {"UTSUWA_ROOTLESS": str(lane.uid), "UTSUWA_ROOT": place.path + "/root", "UTSUWA_RUNROOT": place.path + "/run"}
    assert first["map"][:3] == ["0", str(lane.uid), "1"] and first["map"][3] == "1" and first["map"][5] == "65536" and first["groups"] == ["allow"]
    assert os.stat(place.path + "/run/holder").st_mode & 0o777 == 0o600


def test_the_holder_is_small_deaf_to_the_terminal_and_holds_nothing_open(place):
    pid = place.enter()["record"][0]
    with open(f"/proc/{pid}/smaps_rollup") as file:
        size = next(int(line.split()[1]) for line in file if line.startswith("Pss:"))
    assert size < 64  # kB
    with open(f"/proc/{pid}/status") as file:
        ignored = next(int(line.split()[1], 16) for line in file if line.startswith("SigIgn:"))
    assert all(ignored >> number - 1 & 1 for number in (signal.SIGHUP, signal.SIGINT, signal.SIGQUIT)) and not ignored >> signal.SIGTERM - 1 & 1
    assert [os.readlink(f"/proc/{pid}/fd/{fd}") for fd in os.listdir(f"/proc/{pid}/fd")] == ["/dev/null"] * 3
    assert os.readlink(f"/proc/{pid}/cwd") == "/" and os.getsid(int(pid)) == int(pid)


def test_commands_that_race_make_one_holder(place):
    running = [place.start() for _ in range(6)]
    found = [json.loads(process.communicate(timeout=30)[0]) for process in running]
    assert len({(one["user"], one["mount"], *one["record"]) for one in found}) == 1
    assert holders(found[0]["user"]) == [found[0]["record"][0]]


def test_a_killed_holder_is_remade(place):
    first = place.enter()
    place.kill()
    second = place.enter()
    assert first["record"] != second["record"] and holders(second["user"]) == [second["record"][0]]


def test_a_killed_holder_is_replaced_in_the_namespaces_that_a_monitor_keeps(place):
    with place.start(MONITOR) as monitor:
        first = json.loads(monitor.stdout.readline())
        assert monitor.stdout.readline() == b"ready\n"
        place.kill()
        second = place.enter()
        monitor.stdin.close()
    third = place.enter()  # the stand-in is gone: what it handed over must last
    for key in ("user", "mount"):
        assert first[key] == second[key] == third[key]
    assert first["record"] != second["record"] == third["record"] and holders(third["user"]) == [third["record"][0]]


POINTS = ("fork#1", "unshare#1", "posix_spawn#1", "posix_spawn#2", "setresgid#1", "setresuid#1", "mount#1", "fork#2", "setsid#1", "execve#1", "setns#1")


@pytest.mark.parametrize("point", POINTS)
def test_killed_at_any_step_nothing_stays_and_the_next_command_works(place, lane, point):
    # A fault in one of the two children kills that child; the command then says so. In the command itself, it is gone.
    done = lane.execute(place.argv(before="os.dup2(1, 2)"), env={"UTSUWA_FAULT": f"engine:{point}=kill"})
    assert done.code != 0 and not done.out.startswith("{"), "the fault did not strike"
    wait(lambda: not place.pids())
    found = place.enter()
    assert holders(found["user"]) == [found["record"][0]]


def test_a_user_without_subordinate_ids_has_one_id_and_is_told_once(place, lane):
    nothing = "subids.SUBUID = subids.SUBGID = '/dev/null'"
    first, second = place.enter(nothing), place.enter(nothing)
    assert first["map"] == ["0", str(lane.uid), "1"] and first["groups"] == ["deny"] and first["user"] == second["user"]
    assert first["err"].count("\n") == 1 and "has no subordinate ids" in first["err"] and second["err"] == ""


@pytest.mark.parametrize(("before", "words"), [
    ("subids.HELPER_PATH = os.environ['PATH'] = '/nowhere'", "install the package uidmap"),
    ("subids.of_user = lambda uid: ((1, 65536), (1, 65536))", "cannot map the subordinate ids of user"),
    ("os.mkdir(sys.argv[1] + '/run', 0o700); os.symlink(sys.argv[1], sys.argv[1] + '/run/holder.lock')", "PermissionDenied: cannot lock "),
    ("import threading; threading.Thread(target=sys.stdin.read, daemon=True).start()", "is this a program with threads"),
])
def test_what_stands_in_the_way_is_said_and_nothing_stays(place, lane, before, words):
    process = lane._popen(place.argv(before=before), None, {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE})
    try:
        process.stdout.read()
        error = process.stderr.read().decode()
    finally:
        process.stdin.close()
        process.wait(10)
        process.stdout.close()
        process.stderr.close()
    assert process.returncode and words in error
    wait(lambda: not place.pids())


def test_a_directory_that_somebody_else_planted_is_refused(place, lane):
    if os.geteuid() != 0:
        pytest.skip("only root can plant a directory of another user")
    os.mkdir(place.path + "/run", 0o755)
    with open(place.path + "/run/holder", "w") as file:
        file.write("1 1 x")
    done = lane.execute(place.argv())
    assert done.code and "PermissionDenied" in done.err and "is not a directory of user" in done.err


WORKER = """
import json, os, sys, threading
from utsuwa.engine import worker
from utsuwa.state.paths import Paths
worker._BOOT = '''
import os, sys, types
sys.path.append(sys.argv[1])
api = types.ModuleType("utsuwa.engine.api")
class Engine:
    def where(self, number):
        return number, os.geteuid(), os.readlink("/proc/self/ns/user"), os.environ["UTSUWA_ROOT"]
api.Engine = Engine
sys.modules["utsuwa.engine.api"] = api
from utsuwa.engine.worker import main
main(int(sys.argv[2]), sys.argv[3], sys.argv[4], sys.argv[5:])
'''
remote = worker.Remote(Paths(sys.argv[1] + "/root", sys.argv[1] + "/run"))
found = []
threads = [threading.Thread(target=lambda n=n: found.append(remote.call("where", number=n))) for n in range(8)]
for thread in threads: thread.start()
for thread in threads: thread.join()
print(json.dumps(found))
"""


def test_a_program_with_threads_reaches_the_engine_through_a_worker(place, lane):
    done = lane.execute([lane.python, "-I", "-c", WORKER, place.path], check=True)
    here = place.enter()["user"]
    assert sorted(json.loads(done.out)) == [[n, 0, here, place.path + "/root"] for n in range(8)]
    wait(lambda: not place.pids())  # the worker ends with its program
