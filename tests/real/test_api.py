"""The engine as a library: what a Python program gets from it, from any thread, and what it leaves behind. Both lanes; an ordinary user's calls go through a worker.

Each test is a program, run by the installed interpreter, that prints what it saw as JSON.
"""

import json
import os
import signal
import subprocess
import time

import pytest

from support.containers import eventually, finish

pytestmark = pytest.mark.usefixtures("nothing_left")

HEAD = """
import json, os, sys, threading, time
from utsuwa import Engine, errors

IMAGE = sys.argv[1]
engine = Engine()

def run(*args, **options):
    return engine.run(IMAGE, list(args), network="none", **options)

def children():
    found = []
    for task in os.listdir("/proc/self/task"):
        with open(f"/proc/self/task/{task}/children") as file:
            found += map(int, file.read().split())
    return found

def say(value):
    print(json.dumps(value, default=lambda data: data.decode("latin-1")), flush=True)

"""
BUSY = """
for _ in range(3):
    threading.Thread(target=lambda: [time.sleep(0.001) for _ in iter(int, 1)], daemon=True).start()
"""
"""A program that does other things too: threads that never end."""


@pytest.fixture
def program(box):
    """Callable: run a program with the image's name and further arguments; returns what it printed, a value a line."""
    def go(code, *args, env=None):
        done = box.lane.execute([box.lane.python, "-I", "-c", HEAD + code, box.image, *args], check=True, env=env)
        assert done.err == "", done.err
        return [json.loads(line) for line in done.lines]

    return go


# ---- results

def test_run_returns_code_output_and_both_streams(program):
    script = r"echo out; echo err >&2; printf \\377; exit 7"
    [result, listed] = program(f"say(run('sh', '-c', {script!r})); say(engine.containers())")
    code, output, stdout, stderr, ident = result
    assert (code, stdout, stderr) == (7, "out\n\xff", "err\n") and len(ident) == 64
    assert sorted(output) == sorted("out\nerr\n\ufffd")  # the streams are two pipes: which is read first is chance
    assert listed == []


def test_the_words_of_the_readme(program, box):
    [pair, named] = program("say(Engine().run(IMAGE, ['echo', 'hi'])[:2]); r = run('true'); say([r.exit_code, r.output, len(r.id)])")
    assert pair == [0, "hi\n"] and named == [0, "", 64]


def test_options_are_those_of_run(program, box, lane_dir):
    code = """
r = run("sh", "-c", "pwd; id -u; hostname; echo $GIVEN; cat /d/file; touch /x", env=["GIVEN=a b"], user="1000", workdir="/tmp", hostname="vessel", volumes=[sys.argv[2] + ":/d:ro"], read_only=True)
say([r.exit_code, r.stdout, r.stderr])
"""
    os.chmod(lane_dir, 0o755)  # noqa: S103 - user 1000 of the container looks in
    with open(f"{lane_dir}/file", "w") as file:
        file.write("of the host\n")
    [(code, out, err)] = program(code, lane_dir)
    assert (code, out) == (1, "/tmp\n1000\nvessel\na b\nof the host\n") and "Read-only file system" in err


def test_a_container_in_the_background_is_talked_to(program, box):
    code = """
name = sys.argv[2]
r = run("sh", "-c", "trap 'exit 9' TERM; while true; do sleep 0.1; done", detach=True, name=name)
say([r.exit_code, r.stdout])
say(engine.exec(name, ["sh", "-c", "id -u; echo oops >&2; exit 3"], user="1000"))
say([[c["id"] == r.id, c["name"], c["state"]["status"]] for c in engine.containers()])
engine.stop(r.id[:12]); engine.stop(name)
say([engine.wait(name), [c["state"]["status"] for c in engine.containers()]])
engine.remove(name)
say(engine.containers())
"""
    name = box.name()
    assert program(code, name) == [[None, ""], [3, "1000\noops\n", "1000\n", "oops\n"], [[True, name, "running"]], [9, ["stopped"]], []]


def test_kill_and_forced_removal(program, box):
    code = """
name = sys.argv[2]
run("sh", "-c", "trap 'exit 4' USR1; while true; do sleep 0.1; done", detach=True, name=name)
time.sleep(0.3)
engine.kill(name, 10); say(engine.wait(name)); engine.remove(name)
run("sleep", "100", detach=True, name=name); engine.remove(name, force=True); say(engine.containers())
"""
    assert program(code, box.name()) == [4, []]


def test_pull_returns_the_images_id(program, box):
    [ident] = program("say(engine.pull(IMAGE))")
    assert ident in box.lane("images", "-q", "--no-trunc", check=True).lines


def test_state_can_be_named_instead_of_the_environment(program, box):
    code = "del os.environ['UTSUWA_ROOT'], os.environ['UTSUWA_RUNROOT']; e = Engine(sys.argv[2], sys.argv[3]); say(e.run(IMAGE, ['echo', 'there'], network='none').stdout)"
    assert program(code, box.lane.root, box.lane.run) == ["there\n"]


# ---- errors

def test_errors_are_typed_and_worded(program, box):
    code = """
name = sys.argv[2]
run("sleep", "100", detach=True, name=name)
def fails(function, *args, **options):
    try:
        function(*args, **options)
    except errors.UtsuwaError as error:
        return [type(error).__name__, error.exit_code, str(error)]
say([
    fails(run, "nowhere"), fails(run, "/etc/passwd"), fails(run, "true", name="a/b"), fails(run, "true", name=name), fails(run, "true", nonsense=1), fails(run, "true", user="nowhere"),
    fails(engine.run, IMAGE, ["true"], network="nowhere"), fails(engine.run, "127.0.0.1:1/x", ["true"]), fails(engine.run, "UPPER", ["true"]), fails(engine.pull, "127.0.0.1:1/x"),
    fails(engine.exec, "nobody", ["true"]), fails(engine.exec, name, ["nowhere"]), fails(engine.stop, "nobody"), fails(engine.wait, "nobody"), fails(engine.remove, name), fails(engine.kill, "nobody"),
])
engine.kill(name)
engine.wait(name)
say([fails(engine.kill, name), fails(engine.exec, name, ["true"])])
engine.remove(name)
say(len(engine.containers()))
"""
    found, stopped, left = program(code, box.name())
    assert [line[:2] for line in found] == [
        ["CommandError", 127], ["CommandError", 126], ["UsageError", 125], ["Conflict", 125], ["UsageError", 125], ["UsageError", 125],
        ["NotSupported", 125], ["RegistryError", 125], ["UsageError", 125], ["RegistryError", 125],
        ["NotFound", 125], ["CommandError", 127], ["NotFound", 125], ["NotFound", 125], ["Conflict", 125], ["NotFound", 125],
    ]
    assert [line[0] for line in stopped] == ["Conflict", "Conflict"] and left == 0
    words = ["executable file not found", "permission denied", "invalid container name", "already in use", "unknown option 'nonsense'", "unable to find user nowhere", "not yet supported: --network nowhere",
             "cannot reach registry", "must be lowercase", "cannot reach registry", "No such container", "executable file not found", "No such container", "No such container", "container is running", "No such container"]
    assert [word in line[2] for word, line in zip(words, found, strict=True)] == [True] * len(words), found


# ---- threads, forks, what is left

def test_ten_threads_at_once_among_others(program):
    code = BUSY + """
found = {}
def go(n):
    r = run("sh", "-c", f"echo out {n}; echo err {n} >&2; exit {n}")
    found[n] = [r.exit_code, r.stdout, r.stderr]
threads = [threading.Thread(target=go, args=(n,)) for n in range(10)]
for each in threads: each.start()
for each in threads: each.join()
say(sorted(found.items()))
say(len(engine.containers()))
engine.close()
say(children())
"""
    found, left, helpers = program(code)
    assert found == [[n, [n, f"out {n}\n", f"err {n}\n"]] for n in range(10)]
    assert left == 0 and helpers == []


def test_one_thread_waits_while_others_work(program, box):
    code = """
name = sys.argv[2]
run("sh", "-c", "while [ ! -e /go ]; do sleep 0.1; done; sleep 1; exit 6", detach=True, name=name)
codes = []
waiting = [threading.Thread(target=lambda: codes.append(engine.wait(name))) for _ in range(3)]
for each in waiting: each.start()
say([run("echo", "meanwhile").stdout, engine.exec(name, ["touch", "/go"]).exit_code])
for each in waiting: each.join()
say(codes)
engine.remove(name)
"""
    assert program(code, box.name()) == [["meanwhile\n", 0], [6, 6, 6]]


def test_nothing_of_it_stays_in_the_program(program):
    """No zombie, no descriptor, no thread; of an ordinary user's engine the worker alone, and not after `close`, which may be called twice and is no end."""
    code = """
run("true")
def seen():
    states = []
    for pid in children():
        with open(f"/proc/{pid}/stat") as file:
            states.append(file.read().rpartition(")")[2].split()[0])
    return [len(os.listdir("/proc/self/fd")), threading.active_count(), states.count("Z"), len(states)]
before = seen()
for n in range(5):
    run("true")
    try: run("nowhere")
    except errors.CommandError: pass
deadline = time.monotonic() + 10
while seen() != before and time.monotonic() < deadline: time.sleep(0.05)
say([before, seen()])
engine.close(); engine.close()
say([children(), run("echo", "again").stdout])
engine.close()
"""
    [[before, after], [helpers, again]] = program(code)
    assert before == after and before[2] == 0 and before[3] <= 1 and helpers == [] and again == "again\n"


def test_a_fork_of_the_program_uses_the_engine_beside_it(program):
    code = """
say(run("echo", "before").stdout)
pid = os.fork()
if not pid:
    try:
        for n in range(3): say(run("echo", f"child {n}").stdout)
    finally:
        os._exit(0)
mine = [run("echo", f"parent {n}").stdout for n in range(3)]
os.waitpid(pid, 0)
say(mine)
"""
    found = program(code)
    assert found[0] == "before\n" and found[1:4] == [f"child {n}\n" for n in range(3)] and found[4] == [f"parent {n}\n" for n in range(3)]


@pytest.mark.rootless_only("root's engine has no worker")
def test_a_killed_worker_fails_the_call_and_is_replaced_by_the_next(program, box):
    code = """
run("true")
[worker] = children()
failures = []
def go():
    try: run("sleep", "100", name=sys.argv[2])
    except errors.UtsuwaError as error: failures.append([type(error).__name__, str(error)])
thread = threading.Thread(target=go)
thread.start()
while not [c for c in engine.containers() if c["state"]["status"] == "running"]: time.sleep(0.05)
os.kill(worker, 9)
thread.join()
say(failures)
say([run("echo", "again").stdout, len(children()), worker in children()])
engine.remove(sys.argv[2], force=True)
"""
    failures, after = program(code, box.name())
    assert failures == [["RuntimeFailure", "cannot finish run: the engine's worker was killed; what it left is cleaned up by the next command"]]
    assert after == ["again\n", 1, False]


LOOP = """
threads = [threading.Thread(target=lambda: [run("true") for _ in range(1000)], daemon=True) for _ in range(3)]
for each in threads: each.start()
say("started")
time.sleep(60)
"""


@pytest.mark.parametrize("moment", range(8))
def test_a_program_killed_in_the_middle_leaves_nothing(box, moment):
    """Containers that had started end by themselves and are removed; half made ones are undone by the next command."""
    lane = box.lane
    with lane._popen([lane.python, "-I", "-c", HEAD + LOOP, box.image], None, {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}) as process:
        assert process.stdout.readline() == b'"started"\n'
        time.sleep(0.1 + moment * 0.013)
        process.send_signal(signal.SIGKILL)
        assert finish(process)[0] == -signal.SIGKILL
    assert box.run("echo", "next").out == "next\n"
    eventually(lambda: lane("ps", "-aq", check=True).out == "")
    eventually(lambda: os.listdir(lane.run + "/containers") == [] and os.listdir(lane.root + "/containers") == [])


def test_a_program_that_ends_while_a_container_runs_leaves_it_to_its_monitor(program, box):
    name = box.name()
    program("threading.Thread(target=lambda: run('sh', '-c', 'while [ ! -e /go ]; do sleep 0.1; done; sleep 1', name=sys.argv[2]), daemon=True).start()\n"
            "while not [c for c in engine.containers() if c['state']['status'] == 'running']: time.sleep(0.05)\nos._exit(0)\n", name)
    box.lane("exec", name, "touch", "/go", check=True)
    eventually(lambda: not box.exists(name))
    assert box.lane("ps", "-aq", check=True).out == ""
