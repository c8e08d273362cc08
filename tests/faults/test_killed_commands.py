"""Other commands killed, monitors lost, machines rebooted: what the next command makes of it."""

import contextlib
import json
import os
import random
import signal
import sqlite3
import subprocess
import time

import pytest

from support import leaks
from support.containers import eventually, finish
from support.faults import KILLED, REMOVAL, Ground, Point, points
from support.registry import busybox_image, directory, entry, layer

RANDOM_KILLS = 25
DELAY = 0.25
"""Seconds within which a whole run ends."""


@pytest.fixture(scope="module")
def image(registry):
    return f"{registry.address}/busybox"


@pytest.fixture
def ground(lane, image, request):
    """A new state tree."""
    made = Ground(lane, f"g{os.urandom(2).hex()}", image, "none" if lane.rootless else "bridge")
    yield made
    made.lane("rm", "--force", "--volumes", *made.containers())
    made.quiet()
    if not lane.rootless:
        made.unmake_network()
    assert made.left() == []


def start(ground, *options, command=("sleep", "600")):
    """Start one that runs on; returns its id."""
    return ground.run(*command, options=("-d", *options)).out.strip()


def keep(ground, *options, command=("sleep", "600")):
    """The same without --rm."""
    arguments = [word for word in ground.arguments("-d", *options) if word != "--rm"]
    return ground.lane(*arguments, *command, check=True, env={"UTSUWA_MODULES": ground.lane.root + "/modules"}).out.strip()


def state(ground, container):
    with open(f"{ground.lane.root}/containers/{container}/state.json") as file:
        return json.load(file)


def shown(ground):
    return [tuple(line.split("|")) for line in ground.lane("ps", "--all", "--format", "{{.Names}}|{{.Status}}", check=True).lines]


def is_clean(ground):
    return ground.lane("system", "check") == (0, "", "", b"")


# ---- pull and rmi

PULL = ("pull:sync", "pull:blob", "pull:blob#2", "pull:blob#3", "pull:layer", "pull:rows")
RMI = ("rmi:blob", "rmi:blob#2", "rmi:blob#3", "rmi:layer", "rmi:trash")


def kill_at(ground, point, *arguments):
    done = ground.lane(*arguments, env={"UTSUWA_FAULT": f"engine:{point}=kill"})
    assert done.code == KILLED, (point, done)


@pytest.mark.parametrize("after", ["pull", "run"])
def test_a_killed_pull_is_done_again_by_the_next(ground, image, after):
    for point in PULL:
        ground.lane("rmi", image, check=True)
        kill_at(ground, point, "pull", image)
        assert ground.lane("images", "--quiet", check=True).out == "", point
        if after == "pull":
            ground.lane("pull", image, check=True)
        assert ground.next() + ground.left() == [], point


def test_a_killed_pull_is_swept_by_the_pull_of_another_image(ground, image, registry):
    other = registry.push("small", busybox_image(layer(entry("small"))))
    ground.lane("rmi", image, check=True)
    kill_at(ground, "pull:sync", "pull", image)
    ground.lane("pull", other, check=True)
    assert is_clean(ground) and ground.left() == []


@pytest.mark.parametrize("after", ["pull", "rmi"])
def test_a_killed_rmi_is_finished_by_the_next_command_on_images(ground, image, registry, after):
    other = registry.push("small", busybox_image(layer(entry("small"))))
    for point in RMI:
        ground.lane("pull", "--quiet", image, check=True)
        ground.lane("pull", "--quiet", other, check=True)
        ground.lane("rmi", other, check=True)  # layers are shared: so that the next one removes them all
        ground.lane("pull", "--quiet", "hello")
        kill_at(ground, point, "rmi", image)
        assert image not in ground.lane("images", check=True).out
        ground.lane(*(("pull", image) if after == "pull" else ("rmi", "hello")), check=True)
        assert is_clean(ground) and ground.left() == [], point


def test_layers_of_an_image_that_is_gone_go_with_the_last_container_on_it(ground, image):
    keep(ground, command=("true",))
    for point in ("remove:files", "remove:rows", "remove:layer"):
        ground.quiet()
        ground.lane("rmi", "--force", image, check=True)
        assert len(os.listdir(ground.lane.root + "/layers")) == len(ground.rows("SELECT * FROM layer")) > 0, point
        kill_at(ground, point, "rm", ground.name)
        assert shown(ground) == []  # and has been finished by that
        assert (os.listdir(ground.lane.root + "/layers"), ground.rows("SELECT * FROM layer")) == ([], []), point
        assert is_clean(ground) and ground.left() == [], point
        keep(ground, command=("true",))  # pulled again


# ---- rm and stop

@pytest.mark.parametrize("command", [("sleep", "600"), ("true",)], ids=["running", "exited"])
def test_rm_killed_anywhere_is_finished_by_the_next_command(ground, command):
    def kept():
        container = keep(ground, "-v", "/etc", command=command)
        if command == ("true",):
            ground.quiet()  # settled: what rm has to do is then files and rows alone
        return container

    container = kept()
    ground.lane("rm", "--force", "--volumes", ground.name, check=True)
    places = [place for place in points(ground.lines(container)) if place.who == "cleanup" and command != ("true",)]
    assert places or ground.network == "none" or command == ("true",)
    for place in [*places, *(Point("engine", step, 1) for step in REMOVAL)]:
        kept()
        kill_at(ground, f"{place.call}#{place.number}", "rm", "--force", "--volumes", ground.name)
        ground.quiet()  # the monitor's own clean-up looks at the same container
        assert shown(ground) == [], place
        assert ground.next() + ground.left() == [], place


def test_many_commands_at_once_finish_what_one_has_left(ground):
    for step in REMOVAL:
        keep(ground, "-v", "/etc")
        kill_at(ground, step, "rm", "--force", "--volumes", ground.name)
        others = [ground.lane.popen("ps", "--all", "--quiet") for _ in range(4)]
        assert [(code, err) for code, _, err in map(finish, others)] == [(0, b"")] * 4, step
        assert shown(ground) == []
        assert is_clean(ground) and ground.left() == [], step


def test_stop_killed_at_any_time_leaves_a_container_that_can_be_stopped(ground):
    dice = random.Random(2)
    for _ in range(4):
        keep(ground, command=("sleep", "600"))  # PID 1 that ignores SIGTERM
        stopping = ground.lane.popen("stop", "--time", "60", ground.name)
        time.sleep(dice.uniform(0, DELAY))  # the moment is what is tried, not waited for
        stopping.kill()
        finish(stopping)
        assert shown(ground)[0][1].startswith("Up ")
        ground.lane("stop", "--time", "0", ground.name, check=True)
        assert shown(ground)[0][1].startswith("Exited (137) ")
        ground.lane("rm", ground.name, check=True)
        assert is_clean(ground) and ground.left() == []


# ---- at any time

@pytest.fixture
def busy(ground, registry):
    """A ground whose runs take their time, by a volume that is filled: no fault point is in there."""
    full = busybox_image(layer(directory("data"), *(entry(f"data/{number}", b"x") for number in range(400))))
    ground.image = registry.push("full", full)
    ground.lane("pull", "--quiet", ground.image, check=True)
    return ground


@pytest.mark.timeout(180)
def test_run_killed_at_any_time(busy):
    ground, dice, killed = busy, random.Random(1), 0
    for _ in range(RANDOM_KILLS):
        with ground.lane.popen(*ground.arguments("-v", "/data"), "true", env={"UTSUWA_MODULES": ground.lane.root + "/modules"}) as running:
            time.sleep(dice.uniform(0, DELAY))  # the moment is what is tried, not waited for
            running.kill()
            code, *_ = finish(running)
        killed += code == KILLED
        ground.quiet()
        assert ground.next() + ground.left() == []
    assert killed > RANDOM_KILLS // 2


def killed_soon(ground, dice, *arguments):
    """Start a command and kill it at a random moment; returns its exit code."""
    running = ground.lane.popen(*arguments)
    time.sleep(dice.uniform(0.02, DELAY))  # the moment is what is tried, not waited for
    running.kill()
    return finish(running)[0]


def test_pull_killed_at_any_time_while_another_waits_for_it(busy):
    dice, codes = random.Random(5), []
    for _ in range(8):
        busy.lane("rmi", busy.image, check=True)
        with busy.lane.popen("pull", "--quiet", busy.image) as second:
            codes.append(killed_soon(busy, dice, "pull", "--quiet", busy.image))
            assert finish(second)[0] == 0
        busy.lane("pull", "--quiet", busy.image, check=True)  # sweeps, whichever of the two was first
        assert busy.next() + busy.left() == []
    assert KILLED in codes


def test_rm_and_rmi_killed_at_any_time(busy):
    dice, codes = random.Random(6), []
    for _ in range(8):
        keep(busy, "-v", "/data")
        codes.append(killed_soon(busy, dice, "rm", "--force", "--volumes", busy.name))
        busy.lane("rm", "--force", "--volumes", busy.name, check=True)
        busy.quiet()
        codes.append(killed_soon(busy, dice, "rmi", busy.image))
        busy.lane("pull", "--quiet", busy.image, check=True)
        assert busy.next() + busy.left() == []
    assert KILLED in codes


@pytest.mark.timeout(120)
def test_many_runs_at_once_killed_at_any_time(ground):
    dice = random.Random(3)
    publish = () if ground.network == "none" else ("-p", "80")
    for _ in range(5):
        running = [
            ground.lane.popen("run", "--rm", *publish, "--network", ground.network, ground.image, "true", env={"UTSUWA_MODULES": ground.lane.root + "/modules"})
            for _ in range(6)
        ]
        for each in running:
            time.sleep(dice.uniform(0, DELAY / 6))  # the moment is what is tried, not waited for
            each.kill()
        assert {finish(each)[0] for each in running} <= {0, KILLED}
        ground.quiet()
        assert ground.next() + ground.left() == []


@pytest.mark.timeout(120)
def test_run_interrupted_at_any_time_says_no_more_than_a_line_and_leaves_nothing(busy):
    ground, dice, codes = busy, random.Random(4), []
    for _ in range(RANDOM_KILLS):
        with ground.lane.popen(*ground.arguments("-v", "/data"), "true", env={"UTSUWA_MODULES": ground.lane.root + "/modules"}) as running:
            time.sleep(dice.uniform(0.03, DELAY))  # Python's own start, until it has a handler, ends by the signal
            running.send_signal(signal.SIGINT)
            code, _, err = finish(running)
        codes.append(code)
        assert code in (0, 130, -signal.SIGINT) and b"Traceback" not in err and err.count(b"\n") <= 1, (code, err.decode())
        ground.quiet()
        assert ground.left() == []
    assert codes.count(130) > 3
    assert ground.next() + ground.left() == []


# ---- monitors lost

@pytest.mark.parametrize("options", [(), ("-u", "1000"), ("-t",)], ids=["plain", "another user", "terminal"])
def test_a_lost_monitor_takes_its_container_with_it_and_the_exit_is_137(ground, options):
    container = keep(ground, *options, command=("sh", "-c", "sleep 600 & exec sleep 600"))
    known = state(ground, container)
    with open(f"/proc/{known['pid']}/task/{known['pid']}/children") as file:
        inside = [known["pid"], *map(int, file.read().split())]
    os.kill(known["monitor"], 9)
    eventually(lambda: not any(leaks.is_alive(pid) for pid in inside))
    [(name, status)] = shown(ground)
    assert name == ground.name and status.startswith("Exited (137) ")
    found = json.loads(ground.lane("inspect", ground.name, check=True).out)[0]["State"]
    assert (found["Status"], found["ExitCode"], found["Error"], found["Pid"]) == ("exited", 137, "monitor lost", 0)
    assert not [line for line in ground.left() if not line.startswith(("row container", f"file {ground.lane.root}/containers"))]
    assert is_clean(ground)
    ground.lane("rm", ground.name, check=True)
    assert ground.next() + ground.left() == []


def test_a_container_to_be_removed_goes_with_the_next_command_after_its_monitor_was_lost(ground):
    os.kill(state(ground, start(ground, "-v", "/etc"))["monitor"], 9)
    assert shown(ground) == []
    assert ground.next() + ground.left() == []


def test_a_command_that_is_killed_while_it_finishes_for_another_is_finished_by_the_next(ground):
    container = start(ground, "-v", "/etc")
    os.kill(state(ground, container)["monitor"], 9)
    assert shown(ground) == []
    places = [f"{place.call}#{place.number}" for place in points(ground.lines(container)) if place.who == "cleanup"]
    for place in [*places, *REMOVAL]:
        container = start(ground, "-v", "/etc")
        os.kill(state(ground, container)["monitor"], 9)
        kill_at(ground, place, "ps")
        assert shown(ground) == [], place
        assert ground.next() + ground.left() == [], place


def test_a_caller_in_the_foreground_whose_monitor_is_lost_cleans_up(ground):
    with ground.lane.popen(*ground.arguments(), "sh", "-c", "echo up; exec sleep 600") as running:
        assert running.stdout.readline() == b"up\n"
        [container] = ground.containers()
        os.kill(state(ground, container)["monitor"], 9)
        code, _, err = finish(running)
    assert (code, ground.left()) == (137, []), err


# ---- reboot

def age(ground, container):
    """End it without a word, and let its monitor's record be another boot's."""
    known = state(ground, container)
    if known["status"] == "running":
        os.kill(known["monitor"], 9)
        eventually(lambda: not leaks.is_alive(known["pid"]))
    with open(f"{ground.lane.root}/containers/{container}/state.json", "r+") as file:
        file.write(json.dumps({**known, "boot": "another"}))
        file.truncate()


def reboot(ground):
    """Make the tree look as after one: no process, no mount, no link, no group, no run directory, and another boot's id in what was written down."""
    for container in ground.containers():
        with contextlib.suppress(FileNotFoundError):
            age(ground, container)
    with contextlib.closing(sqlite3.connect(f"{ground.lane.root}/state.db")) as database:
        database.execute("UPDATE container SET boot='another'")
        database.commit()
    ground.seen()
    for path in sorted((path for path in leaks._cgroups() if path.rpartition("/")[2] in ground.ids), reverse=True):
        os.rmdir(path)
    for point in leaks.mount_points():
        if point.startswith(ground.lane.run + "/"):
            subprocess.run(["umount", "--lazy", point], check=True)
    if ground.network == "bridge":
        ground.unmake_network()
    subprocess.run(["rm", "-rf", "--one-file-system", ground.lane.run], check=True)


def test_after_a_reboot_what_ran_has_ended_with_137_and_the_rest_is_as_it_was(ground):
    for name, options, command in (("ended", (), ("sh", "-c", "exit 3")), ("ran", (), ("sleep", "600")), ("goes", ("--rm",), ("sleep", "600"))):
        ground.lane("run", "-d", "--name", name, "--network", ground.network, *options, ground.image, *command, check=True, env={"UTSUWA_MODULES": ground.lane.root + "/modules"})
    ground.lane("wait", "ended", check=True)
    assert ground.run(fault="engine:make_directories#1=kill").code == KILLED
    reboot(ground)
    assert [(name, status.split(" ")[:2]) for name, status in shown(ground)] == [("ran", ["Exited", "(137)"]), ("ended", ["Exited", "(3)"])]
    assert not [line for line in ground.left() if not line.startswith(("row container", f"file {ground.lane.root}/containers"))]
    assert is_clean(ground)
    ground.lane("rm", "ran", "ended", check=True)
    assert ground.next() + ground.left() == []
