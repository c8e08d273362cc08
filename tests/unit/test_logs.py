"""Reading a log that the monitor's own writer has written."""

import os
import threading
import time

import pytest

from utsuwa.cli import logs as command, main
from utsuwa.engine import containers, logs
from utsuwa.engine.context import Context
from utsuwa.errors import NotFound, UsageError
from utsuwa.monitor.log import PARTIAL_LIMIT, Log
from utsuwa.state.paths import Paths


@pytest.fixture
def place(tmp_path):
    """A context, and the log of its container `c`."""
    context = Context(Paths(f"{tmp_path}/root", f"{tmp_path}/run"), None)
    os.makedirs(context.paths.container("c"))
    return context, f"{context.paths.container('c')}/log"


def write(path, *parts):
    log = Log(path)
    for stream, data in parts:
        log.write(stream, data)
    log.close()


def lines(context, **kw):
    return [(record.stream, record.text) for record in logs.read(context, "c", **kw) if record is not None]


def test_lines_come_back_as_written(place):
    context, path = place
    write(path, ("stdout", b"one\ntw"), ("stderr", b"bad \xff\n"), ("stdout", b"o\n\n  three"))
    assert lines(context) == [("stdout", b"one\n"), ("stderr", b"bad \xff\n"), ("stdout", b"two\n"), ("stdout", b"\n"), ("stdout", b"  three")]


def test_a_container_without_a_log(place):
    assert lines(place[0]) == []


def test_a_long_line_is_joined(place, capfdbinary):
    context, path = place
    long = b"x" * (3 * PARTIAL_LIMIT + 5) + b"\n"
    write(path, ("stdout", long), ("stdout", b"y" * (PARTIAL_LIMIT + 1)), ("stdout", b"z\nend\n"))
    command.copy(logs.read(context, "c"), stamps=False)
    assert capfdbinary.readouterr().out == long + b"y" * (PARTIAL_LIMIT + 1) + b"z\nend\n"
    command.copy(logs.read(context, "c", tail=2), stamps=True)
    first, second = capfdbinary.readouterr().out.splitlines()
    assert len(first) == 31 + PARTIAL_LIMIT + 2 and first[29:32] == b"Z y" and second.endswith(b"Z end")


@pytest.mark.parametrize("count", [0, 1, 2, 3, 499, 500, 501, 1000])
def test_tail(place, count):
    context, path = place
    write(path, *[("stderr" if number % 3 else "stdout", b"%d " % number + b"x" * (number * 7 % 400) + b"\n") for number in range(500)])
    assert lines(context, tail=count) == (lines(context)[-count:] if count else [])


def test_tail_counts_an_unfinished_line(place):
    context, path = place
    write(path, ("stdout", b"1\n2\n3"))
    assert lines(context, tail=1) == [("stdout", b"3")] and lines(context, tail=2) == [("stdout", b"2\n"), ("stdout", b"3")]


def test_tail_of_a_torn_or_foreign_file(place):
    context, path = place
    with open(path, "wb") as file:
        file.write(b"\n\ngarbage\n2026-01-01T00:00:00.000000001Z stdout F a\n2026-01-01T00:00:00.0000000")
    assert lines(context) == lines(context, tail=1) == lines(context, tail=9) == [("stdout", b"a\n")]


def test_since_and_until(place):
    context, path = place
    with open(path, "w") as file:
        file.writelines(f"1970-01-01T00:00:0{second}.000000000Z stdout F {second}\n" for second in range(10))
    assert [text for _, text in lines(context, since=4 * 10**9, until=6 * 10**9)] == [b"4\n", b"5\n", b"6\n"]
    assert lines(context, since=10**30) == [] and len(lines(context, since=-5)) == 10


def test_streams_go_where_they_came_from_and_stamps_are_the_log_s(place, capfdbinary):
    context, path = place
    with open(path, "w") as file:
        file.write("1970-01-01T00:00:00.000000001Z stdout F out\n1970-01-01T00:00:00.000000002Z stderr F err\n")
    command.copy(logs.read(context, "c"), stamps=True)
    shown = capfdbinary.readouterr()
    assert shown.out == b"1970-01-01T00:00:00.000000001Z out\n" and shown.err == b"1970-01-01T00:00:00.000000002Z err\n"


def test_follow_ends_with_the_container(place, monkeypatch):
    context, path = place
    running = threading.Event()
    running.set()
    monkeypatch.setattr(containers, "is_running", lambda _context, _id: running.is_set())
    monkeypatch.setattr(logs, "STATE_SECONDS", 0.0)
    log = Log(path)
    log.write("stdout", b"first\n")

    def later():
        time.sleep(0.1)
        log.write("stdout", b"second\nlast words")
        log.close()
        running.clear()

    thread = threading.Thread(target=later)
    thread.start()
    found = [record and record.text for record in logs.read(context, "c", follow=True)]
    thread.join()
    assert [text for text in found if text] == [b"first\n", b"second\n", b"last words"]
    assert found[1] is None  # what there is can be shown before it waits


def test_a_log_that_is_a_link_is_not_followed(place, tmp_path):
    context, path = place
    (tmp_path / "secret").write_text("1970-01-01T00:00:00.000000001Z stdout F secret\n")
    os.symlink(tmp_path / "secret", path)
    with pytest.raises(OSError, match="symbolic links"):
        lines(context)


def test_bad_arguments(monkeypatch):
    with pytest.raises(UsageError, match="invalid --tail x"):
        command.main(["--tail", "x", "c"])
    with pytest.raises(UsageError, match="cannot read the time"):
        command.main(["--since", "x", "c"])

    def nothing(_context, text):
        raise NotFound(f"No such container: {text}")

    monkeypatch.setattr("utsuwa.cli.main.context", lambda: None)
    monkeypatch.setattr(containers, "find", nothing)
    with pytest.raises(NotFound) as caught:
        command.main(["nope"])
    assert main.report(caught.value, "logs") == 1
