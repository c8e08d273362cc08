"""Killed or failing at every line of a run's ledger and at every step: the next command works and nothing is left (issue 2; design.md, 5)."""

import os
from collections import Counter

import pytest

from support.faults import KILLED, LAUNCH, REMOVAL, Ground, fail, steps, strike, told, tried, walk

LEAST, LEAST_ROOTLESS = 80, 25
BRIDGED = pytest.mark.root_only("an ordinary user has no bridge yet")
EXCUSED = {
    ("monitor", "rmdir"): ((0,), "the container has ended by then: the clean-up, a process of its own, tries again"),
    ("init", "execve"): ((126,), "what execve says is the command's matter, as at Docker"),
}
"""(who, call) whose failure ends otherwise than in 125: the exit codes, and why."""


@pytest.fixture(scope="module")
def image(registry):
    return f"{registry.address}/busybox"


@pytest.fixture(scope="module")
def grounds(_root_lane, image):
    """Two state trees, so that two points are struck at once. Their bridges stand."""
    made = [Ground(_root_lane, word, image, "bridge") for word in ("one", "two")]
    for ground in made:
        ground.record()
    return made


def report(places, wrong, least):
    tried.append(f"{os.environ['PYTEST_CURRENT_TEST'].rpartition('::')[2]}: {len(places)} points tried: " + ", ".join(f"{who} {count}" for who, count in Counter(place.who for place in places).items()))
    assert len(places) >= least
    assert not wrong, told(wrong)


@BRIDGED
@pytest.mark.timeout(240)
def test_killed_at_every_line_of_a_detached_run(grounds):
    places = [*grounds[0].record(), *steps("engine", LAUNCH), *steps("cleanup", REMOVAL)]
    assert {place.who for place in places} == {"engine", "monitor", "init", "cleanup"}
    report(places, walk(grounds, places, strike), LEAST)


@BRIDGED
@pytest.mark.timeout(120)
def test_killed_while_it_makes_the_bridge(grounds):
    def first(ground, point):
        ground.unmake_network()
        return strike(ground, point)

    standing = grounds[0].record()
    grounds[0].unmake_network()
    places = [place for place in grounds[0].record() if place.who == "engine"]
    assert len(places) > sum(place.who == "engine" for place in standing)
    report(places, walk(grounds, places, first), 20)


@BRIDGED
def test_a_caller_in_the_foreground_killed_while_it_cleans_up(grounds):
    detached = grounds[0].record()
    places = [place for place in grounds[0].record(options=()) if place.who == "engine" and place not in detached] + steps("engine", REMOVAL)
    report(places, walk(grounds, places, lambda ground, point: strike(ground, point, options=())), 4)


@BRIDGED
@pytest.mark.timeout(240)
def test_a_call_that_fails_is_one_clear_line_and_undone_at_once(grounds):
    places = [*grounds[0].record(), *steps("engine", LAUNCH[:6])]
    # Nobody is there to hear of a clean-up that fails, or cannot begin: that is the next command's, as after a kill.
    places = [place for place in places if place.who != "cleanup" and (place.who, place.call) != ("monitor", "execve")]
    places = [place for place in places if place.who == "engine" or place.number % 3 == 1]
    report(places, walk(grounds, places, lambda ground, point: fail(ground, point, EXCUSED)), 60)


@pytest.mark.rootless_only("the root lane has the whole walk")
@pytest.mark.timeout(240)
def test_killed_at_every_few_lines_as_an_ordinary_user(lane, image):
    grounds = [Ground(lane, word, image, "none") for word in ("one", "two")]
    places = grounds[0].record()
    places = [*(place for place in places if place.who != "init"), *[place for place in places if place.who == "init"][::5], *steps("engine", LAUNCH), *steps("cleanup", REMOVAL)]
    report(places, walk(grounds, places, strike), LEAST_ROOTLESS)


@BRIDGED
@pytest.mark.timeout(120)
def test_killed_at_every_few_lines_of_a_run_with_more_of_everything(grounds):
    options = ("-d", "-t", "-u", "1000", "--memory", "64m", "--pids-limit", "50", "-v", "/etc", "--read-only")
    places = grounds[0].record(options=options)
    report(places[::4], walk(grounds, places[::4], lambda ground, point: strike(ground, point, options)), 60)


@BRIDGED
def test_a_container_whose_caller_was_killed_at_the_last_step_runs_on(grounds):
    ground = grounds[0]
    assert ground.run("sleep", "600", fault="engine:leave#1=kill").code == KILLED
    for _ in range(2):  # whoever comes next leaves it alone
        assert ground.lane("ps", "--format", "{{.Names}}", check=True).lines == [ground.name]
    assert ground.lane("exec", ground.name, "echo", "alive", check=True).out == "alive\n"
    ground.lane("rm", "--force", ground.name, check=True)
    ground.quiet()
    assert ground.next() + ground.left() == []
