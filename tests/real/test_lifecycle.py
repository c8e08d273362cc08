"""A container's life after `run -d`: seen, read, asked to end, waited for, removed; and what becomes of it when its caller or its monitor dies. Both lanes."""

import contextlib
import json
import os
import re
import signal
import time

import pytest

from support.containers import STOCK, Box, eventually, finish, one_line
from support.registry import busybox_image

pytestmark = pytest.mark.usefixtures("nothing_left")

OBEYS = "trap 'exit 7' TERM; echo ready; while true; do sleep 0.1; done"
DEAF = "trap '' TERM; echo ready; while true; do sleep 0.1; done"


def ready(box, script, options=()):
    """Start a script in the background; returns its name once it has said that it is ready."""
    name = box.start("sh", "-c", script, options=options)
    eventually(lambda: "ready" in box.logs(name))
    return name


def ended(box, script, code=0):
    """Return the name of a container that has run a script and stopped with this code."""
    name = box.start("sh", "-c", script)
    assert box.lane("wait", name, check=True).out == f"{code}\n"
    return name


def state(box, name):
    return box.inspect(name)["State"]


def monitor(box, name):
    """Return the pid of a container's monitor."""
    with open(f"{box.lane.root}/containers/{box.inspect(name)['Id']}/state.json") as file:
        return json.load(file)["monitor"]


# ---- ps

def test_ps_lists_the_running_and_with_a_all(box):
    running, stopped = box.start("sleep", "100"), ended(box, "exit 3", 3)
    ids = {name: box.inspect(name)["Id"] for name in (running, stopped)}
    assert box.lane("ps", "-q", check=True).lines == [ids[running][:12]]
    assert box.lane("ps", "-aq", check=True).lines == [ids[stopped][:12], ids[running][:12]]  # newest first
    assert box.lane("ps", "-aq", "--no-trunc", check=True).lines == [ids[stopped], ids[running]]
    assert box.lane("ps", "-lq", check=True).lines == box.lane("ps", "-n", "1", "-q", check=True).lines == [ids[stopped][:12]]
    head, line = box.lane("ps", check=True).lines
    assert re.split(" {2,}", head.strip()) == ["CONTAINER ID", "IMAGE", "COMMAND", "CREATED", "STATUS", "PORTS", "NAMES"]
    fields = re.split(" {2,}", line.strip())
    assert (fields[0], fields[1], fields[2], fields[-1]) == (ids[running][:12], box.image, '"sleep 100"', running)
    assert re.fullmatch(r"(Less than a|\d+) seconds? ago", fields[3]) and re.fullmatch(r"Up (Less than a|\d+) seconds?", fields[4])
    status = box.lane("ps", "-a", "--format", "{{.Names}} {{.State}} {{.Status}}", check=True).lines
    assert re.fullmatch(rf"{stopped} exited Exited \(3\) (Less than a|\d+) seconds? ago", status[0]) and status[1].startswith(f"{running} running Up ")


def test_ps_shows_the_command_and_the_mounts_as_docker_does(box, lane_dir):
    name = box.name()
    box.lane("run", "-d", "--name", name, *STOCK, "-v", f"{lane_dir}:/a", "-v", "/b", "-v", f"{name}:/c", box.image, "sh", "-c", 'echo "a\n\tb"; sleep 100', check=True)
    shown = box.lane("ps", "--no-trunc", "--format", "{{.Command}} {{.LocalVolumes}} {{.Networks}}", check=True).out
    assert shown == "\"sh -c 'echo \\\"a\\n\\tb\\\"; sleep 100'\" 2 none\n"
    assert box.lane("ps", "--format", "{{.Command}}", check=True).out == "\"sh -c 'echo \\\"a\\n\\tb\\\";…\"\n"
    mounts = box.lane("ps", "--format", "{{.Mounts}}", check=True).out.rstrip().split(",")
    assert mounts[0] == lane_dir[:14] + "…" and mounts[2] == name and re.fullmatch("[0-9a-f]{14}…", mounts[1])


def test_ps_as_json(box):
    name = box.start("sleep", "100")
    row = json.loads(box.lane("ps", "--format", "json", check=True).out)
    assert (row["Names"], row["Image"], row["State"], row["ID"]) == (name, box.image, "running", box.inspect(name)["Id"][:12])


# ---- logs

def test_logs_keep_both_streams_apart(box):
    done = box.lane("logs", ended(box, "echo one; echo two >&2; echo three; printf last"), check=True)
    assert (done.out, done.err) == ("one\nthree\nlast", "two\n")


def test_parts_of_a_log(box):
    name = ended(box, "echo one; echo two; echo three; printf last")
    assert box.lane("logs", "--tail", "2", name, check=True).out == "three\nlast"
    assert box.lane("logs", "-n", "0", name, check=True).out == ""
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{9}Z three\n\S+Z last", box.lane("logs", "-t", "--tail=2", name, check=True).out)
    assert box.lane("logs", "--since", "1h", name, check=True).out == "one\ntwo\nthree\nlast" and box.lane("logs", "--until", "1h", name, check=True).out == ""


def test_logs_of_nothing_and_of_nobody(box):
    assert box.lane("logs", ended(box, "true"), check=True) == (0, "", "", b"")
    one_line(box.lane("logs", "nobody"), "No such container: nobody", code=1)


def test_logs_follow_until_the_container_ends(box):
    name = ready(box, "echo ready; trap 'echo bye; exit 0' TERM; while true; do sleep 0.1; done")
    with box.lane.popen("logs", "-f", name) as follower, box.lane.popen("logs", "-f", "--tail", "0", name) as late:
        assert follower.stdout.readline() == b"ready\n"
        box.lane("exec", name, "sh", "-c", "echo more > /proc/1/fd/1", check=True)
        assert follower.stdout.readline() == b"more\n"
        assert follower.poll() is None
        box.lane("stop", name, check=True)
        assert finish(follower) == (0, b"bye\n", b"")
        code, out, err = finish(late)
        assert (code, err) == (0, b"") and out.endswith(b"bye\n") and b"ready" not in out
    assert box.lane("logs", "-f", name, check=True).out == "ready\nmore\nbye\n"  # stopped already


def test_logs_follow_ends_when_the_container_is_removed(box):
    name = ready(box, "echo ready; sleep 100")
    with box.lane.popen("logs", "-f", name) as follower:
        assert follower.stdout.readline() == b"ready\n"
        box.lane("rm", "-f", name, check=True)
        assert finish(follower)[:2] == (0, b"")


# ---- stop, kill

def test_stop_asks_first_and_prints_what_it_was_given(box):
    name = ready(box, OBEYS)
    assert box.lane("stop", name, check=True) == (0, f"{name}\n", "", f"{name}\n".encode())
    assert (state(box, name)["ExitCode"], state(box, name)["Status"], state(box, name)["Running"]) == (7, "exited", False)
    assert box.lane("stop", name, check=True).out == f"{name}\n"  # it is what was wanted


def test_stop_kills_what_does_not_listen(box):
    name = ready(box, DEAF)
    box.lane("stop", "-t", "1", name, check=True)
    assert state(box, name)["ExitCode"] == 137
    other = ready(box, DEAF)
    box.lane("stop", "--timeout", "0", other, check=True)
    assert state(box, other)["ExitCode"] == 137


def test_stop_without_end_waits_for_the_container(box):
    name = ready(box, "trap 'sleep 1; exit 5' TERM; echo ready; while true; do sleep 0.1; done")
    box.lane("stop", "-t", "-1", name, check=True)
    assert state(box, name)["ExitCode"] == 5


def test_stop_sends_the_images_own_signal_or_the_one_given(box, registry):
    text = registry.push("stopping", busybox_image(config={"Cmd": ["sh"], "Env": ["PATH=/bin"], "StopSignal": "SIGUSR1"}))
    other = Box(box.lane, text)
    script = "trap 'exit 7' TERM; trap 'exit 9' USR1; trap 'exit 11' HUP; echo ready; while true; do sleep 0.1; done"
    first, second = ready(other, script), ready(other, script)
    box.lane("stop", first, check=True)
    box.lane("stop", "-s", "HUP", second, check=True)
    assert (state(box, first)["ExitCode"], state(box, second)["ExitCode"]) == (9, 11)
    assert box.inspect(first)["Config"]["StopSignal"] == "SIGUSR1"
    other.close()
    box.lane("rmi", text, check=True)


@pytest.mark.parametrize("signal_text", ["USR1", "SIGUSR1", "sigusr1", "10"])
def test_kill_sends_any_signal(box, signal_text):
    name = ready(box, "trap 'echo caught' USR1; echo ready; while true; do sleep 0.1; done")
    assert box.lane("kill", "-s", signal_text, name, check=True).out == f"{name}\n"
    eventually(lambda: "caught" in box.logs(name))
    assert state(box, name)["Running"]
    assert box.lane("kill", name, check=True).out == f"{name}\n"
    assert (state(box, name)["ExitCode"], state(box, name)["Running"]) == (137, False)
    one_line(box.lane("kill", name), "is not running", code=1)


@pytest.mark.parametrize("command", ["stop", "kill", "wait", "rm"])
def test_one_that_is_missing_does_not_hold_up_the_others(box, command):
    first, second = (ready(box, OBEYS) for _ in range(2)) if command in ("stop", "kill") else (ended(box, "exit 7", 7) for _ in range(2))
    done = box.lane(command, first, "nobody", second)
    assert (done.code, done.err) == (1, "utsuwa: No such container: nobody\n")
    assert done.lines == (["7", "7"] if command == "wait" else [first, second])
    assert [box.exists(name) for name in (first, second)] == [command != "rm"] * 2
    assert command == "rm" or not any(state(box, name)["Running"] for name in (first, second))


# ---- wait, exit codes

def test_wait_prints_the_codes_in_order_of_the_words(box):
    slow, quick = box.start("sh", "-c", "sleep 1; exit 3"), box.start("sh", "-c", "exit 4")
    assert box.lane("wait", slow, quick, slow, check=True).lines == ["3", "4", "3"]


def test_many_wait_for_one(box):
    name = ready(box, OBEYS)
    with contextlib.ExitStack() as stack:
        waiting = [stack.enter_context(box.lane.popen("wait", name)) for _ in range(5)]
        assert [process.poll() for process in waiting] == [None] * 5
        box.lane("stop", name, check=True)
        assert [finish(process) for process in waiting] == [(0, b"7\n", b"")] * 5


# ---- rm

def test_rm_refuses_what_runs_unless_forced(box):
    name = box.start("sleep", "100")
    one_line(box.lane("rm", name), f"cannot remove container {box.inspect(name)['Id'][:12]}", "container is running", code=1)
    assert state(box, name)["Running"]
    assert box.lane("rm", "-f", name, check=True).out == f"{name}\n"
    assert not box.exists(name)
    done = box.lane("rm", "-f", name)
    assert (done.code, done.out, done.err) == (0, "", f"Error: No such container: {name}\n")


def test_rm_takes_anonymous_volumes_when_told(box):
    before = os.listdir(box.lane.root + "/volumes")
    names = [box.name() for _ in range(2)]
    for name in names:
        box.lane("run", "--name", name, *STOCK, "-v", "/data", box.image, "true", check=True)
    assert len(os.listdir(box.lane.root + "/volumes")) == len(before) + 2
    kept = box.inspect(names[0])["Mounts"][0]["Name"]
    box.lane("rm", names[0], check=True)
    box.lane("rm", "-v", names[1], check=True)
    assert set(os.listdir(box.lane.root + "/volumes")) == {*before, kept}
    box.lane("run", "--rm", *STOCK, "-v", f"{kept}:/data", box.image, "true", check=True)


# ---- inspect, names, ids

def test_inspect_finds_by_name_id_and_prefix(box):
    name = box.start("sleep", "100")
    known = box.inspect(name)
    for word in (name, "/" + name, known["Id"], known["Id"][:12], known["Id"][:20]):
        assert box.inspect(word)["Id"] == known["Id"]
    assert (known["Name"], known["Path"], known["Args"], known["State"]["Status"], known["Config"]["Image"]) == ("/" + name, "sleep", ["100"], "running", box.image)
    assert os.path.exists(f"/proc/{known['State']['Pid']}")
    form = "{{.Name}} {{.State.Running}} {{index .Config.Cmd 1}} {{json .HostConfig.NetworkMode}}"
    assert box.lane("inspect", "-f", form, name, check=True).out == f'/{name} true 100 "none"\n'
    image = json.loads(box.lane("inspect", box.image, check=True).out)[0]
    assert image["Id"] == known["Image"] and f"{box.image}:latest" in image["RepoTags"]


def test_inspect_shows_what_there_is_and_says_what_is_missing(box):
    name = box.start("sleep", "100")
    done = box.lane("inspect", "nobody", name)
    assert done.code == 1 and [item["Name"] for item in json.loads(done.out)] == ["/" + name] and done.err == "Error: No such object: nobody\n"
    assert box.lane("inspect", "--type", "image", name).code == 1


def test_an_ambiguous_prefix_is_refused(box):
    seen = {}
    for _ in range(17):  # sixteen digits: two share one at the latest then
        name = box.name()
        box.lane("run", "--name", name, *STOCK, box.image, "true", check=True)
        digit = box.inspect(name)["Id"][0]
        if digit in seen:
            break
        seen[digit] = name
    for command in ("rm", "stop", "wait"):
        one_line(box.lane(command, digit), f"cannot choose a container for {digit}: several ids begin so", code=1)
    assert box.exists(name) and box.exists(seen[digit])


def test_a_name_wins_over_the_prefix_of_an_id(box):
    first = box.start("sleep", "100")
    prefix = box.inspect(first)["Id"][:10]
    box.lane("run", "-d", "--name", prefix, *STOCK, box.image, "sleep", "100", check=True)
    assert box.inspect(prefix)["Name"] == "/" + prefix
    box.lane("rm", "-f", prefix, check=True)
    assert box.inspect(prefix)["Name"] == "/" + first


# ---- images in use

def test_an_image_in_use_is_not_removed(box, registry):
    text = registry.push("used", busybox_image(config={"Cmd": ["sleep", "100"], "Env": ["PATH=/bin"], "Labels": {"used": "yes"}}))
    other = Box(box.lane, text)
    name = other.start()
    image = box.inspect(name)["Image"]
    one_line(box.lane("rmi", text), "must force", box.inspect(name)["Id"][:12], code=1)
    one_line(box.lane("rmi", "-f", image), "cannot be forced", "running container", code=1)
    assert [line.partition(" ")[0] for line in box.lane("rmi", "-f", text, check=True).lines] == ["Untagged:", "Untagged:"]
    assert box.lane("exec", name, "echo", "alive", check=True).out == "alive\n"
    box.lane("stop", "-t", "0", name, check=True)
    one_line(box.lane("rmi", image), "must be forced", "stopped container", code=1)
    box.lane("rm", name, check=True)
    box.lane("rmi", image, check=True)
    assert image not in box.lane("images", "-q", "--no-trunc", check=True).lines


def test_an_image_forced_away_from_a_stopped_container_leaves_the_container_whole(box, registry):
    text = registry.push("forced", busybox_image(config={"Cmd": ["true"], "Env": ["PATH=/bin"], "Labels": {"forced": "yes"}}))
    other = Box(box.lane, text)
    name = other.start()
    box.lane("wait", name, check=True)
    box.lane("rmi", "-f", text, check=True)
    assert box.inspect(name)["Config"]["Image"] == text
    box.lane("rm", name, check=True)


# ---- who dies first

def foreground(box, options, script):
    """Start a container in the foreground; returns (its command, its name) once its script has said that it is ready."""
    name = box.name()
    process = box.lane.popen("run", "--name", name, *options, *STOCK, box.image, "sh", "-c", script)
    assert process.stdout.readline() == b"ready\n", process.stderr.read()
    return process, name


def leaves_no_trace(box, ident):
    return not any(os.path.exists(f"{top}/containers/{ident}") for top in (box.lane.root, box.lane.run))


def test_a_container_outlives_its_killed_caller_and_is_removed_at_its_end(box):
    process, name = foreground(box, ["--rm"], "echo ready; while [ ! -e /go ]; do sleep 0.1; done; sleep 1; echo late")
    with process:
        ident = box.inspect(name)["Id"]
        process.send_signal(signal.SIGKILL)
        process.wait()
        assert state(box, name)["Running"]
        box.lane("exec", name, "touch", "/go", check=True)
        eventually(lambda: leaves_no_trace(box, ident))
    assert not box.exists(name) and box.lane("ps", "-aq", check=True).out == ""


def test_a_container_without_rm_outlives_its_killed_caller_and_keeps_its_code_and_log(box):
    process, name = foreground(box, [], "echo ready; while [ ! -e /go ]; do sleep 0.1; done; sleep 1; yes | head -c 300000; exit 5")
    with process:
        process.send_signal(signal.SIGKILL)
        process.wait()
        box.lane("exec", name, "touch", "/go", check=True)
        assert box.lane("wait", name, check=True).out == "5\n"
        assert box.logs(name) == "ready\n" + "y\n" * 150000  # nobody reads, and it is not held up


def test_a_lost_monitor_takes_the_container_along_and_is_recorded(box):
    name = ready(box, OBEYS)
    ident, pid = box.inspect(name)["Id"], state(box, name)["Pid"]
    with box.lane.popen("exec", name, "sleep", "100") as session, box.lane.popen("wait", name) as waiting, box.lane.popen("logs", "-f", name) as follower:
        eventually(lambda: "sleep" in box.lane("exec", name, "ps").out)
        os.kill(monitor(box, name), signal.SIGKILL)
        assert finish(waiting)[:2] == (0, b"137\n")
        assert finish(session)[0] == 137
        assert finish(follower)[:2] == (0, b"ready\n")
    eventually(lambda: not os.path.exists(f"/proc/{pid}"))
    known = state(box, name)
    assert (known["Status"], known["ExitCode"], known["Error"], known["Pid"]) == ("exited", 137, "monitor lost", 0)
    assert box.lane("ps", "-a", "--format", "{{.Names}} {{.Status}}", check=True).out.startswith(f"{name} Exited (137) ")
    assert not os.path.exists(f"{box.lane.run}/containers/{ident}")  # ps has settled it
    assert state(box, name)["Error"] == "monitor lost"
    one_line(box.lane("exec", name, "true"), "is not running", code=1)
    box.lane("rm", name, check=True)
    assert leaves_no_trace(box, ident)


@pytest.mark.parametrize("options", [["--rm"], []])
def test_a_caller_whose_monitor_is_lost_ends_with_137(box, options):
    process, name = foreground(box, options, OBEYS)
    with process:
        ident = box.inspect(name)["Id"]
        os.kill(monitor(box, name), signal.SIGKILL)
        code, _, err = finish(process)
        assert code == 137 and b"Traceback" not in err
    if options:
        assert not box.exists(name) and leaves_no_trace(box, ident)
    else:
        assert (state(box, name)["ExitCode"], state(box, name)["Error"]) == (137, "monitor lost")


def test_caller_and_monitor_lost_together_the_next_command_cleans_up(box):
    process, name = foreground(box, ["--rm"], OBEYS)
    with process:
        ident, pid, keeper = box.inspect(name)["Id"], state(box, name)["Pid"], monitor(box, name)
        process.send_signal(signal.SIGSTOP)  # so that it cannot act on the other's death
        os.kill(keeper, signal.SIGKILL)
        process.send_signal(signal.SIGKILL)
        process.wait()
    eventually(lambda: not os.path.exists(f"/proc/{pid}"))
    assert box.run("echo", "next").out == "next\n"
    assert leaves_no_trace(box, ident) and not box.exists(name)


def test_init_killed_from_outside_is_an_exit_like_others(box):
    name = ready(box, OBEYS)
    os.kill(state(box, name)["Pid"], signal.SIGKILL)
    assert box.lane("wait", name, check=True).out == "137\n"
    assert (state(box, name)["Error"], state(box, name)["OOMKilled"]) == ("", False)


def test_twenty_are_stopped_and_removed_at_once(box):
    names = [box.start("sh", "-c", OBEYS) for _ in range(20)]
    eventually(lambda: all("ready" in box.logs(name) for name in names))
    started = time.monotonic()
    with contextlib.ExitStack() as stack:
        running = [stack.enter_context(box.lane.popen("rm", "-f", name)) for name in names]
        assert [finish(process, 60)[0] for process in running] == [0] * 20
    assert time.monotonic() - started < 60 and box.lane("ps", "-aq", check=True).out == ""
