"""A container at a terminal, and its streams when somebody is slow: size and resizing, detaching, raw mode, input that nobody reads, output that nobody takes."""

import contextlib
import os
import signal
import time

import pytest

from support.containers import STOCK, Box, Seat, eventually, finish

MEGABYTE = 1 << 20


@pytest.fixture
def box(utsuwa, registry):
    made = Box(utsuwa, f"{registry.address}/busybox")
    yield made
    made.close()


def sit(box, *args, options=(), **more):
    """A shell of a new container at a terminal; returns (seat, the container's name)."""
    name = box.name()
    return Seat(box.lane, "run", "-it", "--name", name, *STOCK, *options, box.image, *args, **more), name


# ---- the terminal itself

def test_a_terminal_has_our_size_from_the_first_and_follows_it(box):
    seat, _ = sit(box, "sh", "-c", "stty size; trap 'stty size' WINCH; echo ready; while true; do sleep 0.05; done", options=["--rm"], rows=33, columns=101)
    with seat:
        assert seat.see("ready").split() == ["33", "101"]
        seat.size(44, 123)
        seat.see("44 123")
        seat.type("\x03")
        assert seat.end() == 130
        assert seat.is_restored


def test_a_terminal_is_complete(box):
    script = "tty; test -t 0 && test -t 1 && test -t 2 && echo all three; echo TERM=$TERM; ls /dev/pts; stat -c %t:%T /dev/console; stat -c %u:%g:%a $(tty)"
    seat, _ = sit(box, "sh", "-c", script, options=["--rm", "-u", "1000"])
    with seat:
        assert seat.end() == 0
        said = seat.output.decode().split("\r\n")
    assert said[:5] == ["/dev/pts/0", "all three", "TERM=xterm", "0", "ptmx"]
    assert said[5] == "88:0" and said[6] == "1000:5:620"


def test_what_is_typed_comes_back_once_and_control_c_is_the_containers(box):
    seat, _ = sit(box, "sh", options=["--rm"])
    with seat:
        seat.see("# ")
        seat.type("echo o''ne\n")
        assert seat.see("one\r\n") == "echo o''ne\r\n"
        seat.see("# ")
        seat.type("sleep 1000\n")
        seat.see("sleep 1000")
        seat.type("\x03")
        seat.see("# ")
        seat.type("exit 9\n")
        assert seat.end() == 9
        assert seat.is_restored


def test_a_terminal_without_input_and_without_a_terminal_of_ours(box):
    assert box.run("sh", "-c", "test -t 1 && echo yes", options=["-t"]).out == "yes\r\n"


def test_a_terminal_killed_with_its_session_does_not_take_the_container(box):
    seat, name = sit(box, "sh")
    with seat:
        seat.see("# ")
        seat.process.send_signal(signal.SIGKILL)
        seat.process.wait()
    assert box.lane("exec", name, "echo", "still", check=True).out == "still\n"


# ---- detach and attach

def test_detach_attach_and_the_exit_code(box):
    seat, name = sit(box, "sh")
    with seat:
        seat.see("# ")
        seat.type("x=kept\n")
        seat.see("# ")
        seat.type("\x10")  # a Ctrl-P alone waits for what comes
        seat.type("\x11")
        assert seat.end() == 0
        assert seat.is_restored
    assert box.inspect(name)["State"]["Running"]
    with Seat(box.lane, "attach", name, rows=50, columns=90) as seat:
        seat.type("echo $x; stty size\n")
        seat.see("kept")
        seat.see("50 90")
        seat.type("exit 4\n")
        assert seat.end() == 4
        assert seat.is_restored
    assert box.inspect(name)["State"]["ExitCode"] == 4


def test_keys_that_only_begin_like_the_detach_keys_reach_the_container(box):
    seat, name = sit(box, "sh", "-c", "stty raw -echo; echo ready; head -c 4 | od -An -tx1", options=["--rm"])
    with seat:
        seat.see("ready")
        seat.type("\x10x\x10\x10\x10\x11")
        assert seat.end() == 0
    assert not box.exists(name) or box.inspect(name)["State"]["Running"]


def test_other_detach_keys(box):
    seat, name = sit(box, "sh", options=["--detach-keys", "ctrl-a,d"])
    with seat:
        seat.see("# ")
        seat.type("\x10\x11")
        seat.type("echo he''re\n")
        seat.see("here")
        seat.type("\x01d")
        assert seat.end() == 0
    with Seat(box.lane, "attach", "--detach-keys", "z", name) as seat:
        seat.type("\n")
        seat.see("# ")
        seat.type("z")
        assert seat.end() == 0
    with Seat(box.lane, "exec", "-it", "--detach-keys", "ctrl-x", name, "sh") as seat:
        seat.see("# ")
        seat.type("\x18")
        seat.end()
        assert seat.is_restored
    assert box.inspect(name)["State"]["Running"]


# ---- exec at a terminal

def test_exec_at_a_terminal(box):
    name = box.start("sleep", "1000")
    with Seat(box.lane, "exec", "-it", "-u", "1000", "-w", "/tmp", "-e", "X=given", name, "sh", rows=20, columns=70) as seat:
        seat.see("$ ")
        seat.type("stty size; echo $X $TERM $HOME; pwd; id -u; tty\n")
        seat.see("20 70\r\ngiven xterm /home\r\n/tmp\r\n1000\r\n/dev/pts/0")
        seat.size(21, 71)
        seat.type("stty size\n")
        seat.see("21 71")
        seat.type("sleep 1000\n")
        seat.see("sleep 1000")
        seat.type("\x03")
        seat.see("$ ")
        seat.type("exit 6\n")
        assert seat.end() == 6
        assert seat.is_restored


# ---- input

@pytest.mark.parametrize("verb", ["run", "exec"])
def test_much_input_reaches_a_container_that_reads_slowly(box, verb):
    script = "sleep 0.3; head -c 100000 | wc -c; sleep 0.3; wc -c"
    data = os.urandom(3 * MEGABYTE)
    if verb == "run":
        done = box.run("sh", "-c", script, options=["-i"], input=data)
    else:
        done = box.lane("exec", "-i", box.start("sleep", "1000"), "sh", "-c", script, input=data, check=True)
    assert done.out.split() == ["100000", str(len(data) - 100000)]


def test_bytes_pass_unchanged_both_ways(box):
    data = os.urandom(2 * MEGABYTE)
    assert box.run("cat", options=["-i"], input=data).raw == data
    assert box.lane("exec", "-i", box.start("sleep", "1000"), "cat", input=data, check=True).raw == data


def test_a_container_that_does_not_read_stops_nobody_but_its_writer(box):
    name = box.name()
    with box.lane.popen("run", "-i", "--name", name, *STOCK, box.image, "sleep", "1000") as writer:
        os.set_blocking(writer.stdin.fileno(), False)
        written = 0
        idle = 0
        while idle < 20:  # until nothing has been taken for a while
            try:
                written += os.write(writer.stdin.fileno(), bytes(65536))
                idle = 0
            except BlockingIOError:
                idle += 1
                time.sleep(0.02)
        assert written < 4 * MEGABYTE  # held back, not gathered in somebody's memory
        assert box.lane("exec", name, "echo", "hi", check=True, timeout=10).out == "hi\n"
        box.lane("stop", "-t", "0", name, check=True, timeout=10)
        assert writer.wait(10) == 137
        for stream in (writer.stdin, writer.stdout, writer.stderr):
            with contextlib.suppress(BrokenPipeError):
                stream.close()


def test_a_container_that_closes_its_input_lets_the_writer_finish(box):
    done = box.run("sh", "-c", "exec < /dev/null; sleep 0.3; echo done", options=["-i"], input=bytes(MEGABYTE))
    assert done.out == "done\n"


def test_input_that_stays_open_does_not_hold_the_end_back(box):
    with box.lane.popen("run", "-i", "--rm", *STOCK, box.image, "true") as process:
        assert process.wait(10) == 0
        for stream in (process.stdin, process.stdout, process.stderr):
            stream.close()
    with box.lane.popen("exec", "-i", box.start("sleep", "1000"), "sh", "-c", "exit 3") as process:
        assert process.wait(10) == 3
        for stream in (process.stdin, process.stdout, process.stderr):
            stream.close()


def test_without_i_there_is_no_input(box):
    assert box.run("cat", input="nobody reads this").out == ""
    assert box.lane("exec", box.start("sleep", "1000"), "cat", input="nor this", check=True).out == ""


# ---- output

@pytest.mark.parametrize("verb", ["run", "exec"])
def test_large_output_is_complete(box, verb):
    script = "i=0; while [ $i -lt 64 ]; do head -c 65536 /dev/zero; i=$((i+1)); done; echo end >&2"
    done = box.run("sh", "-c", script) if verb == "run" else box.lane("exec", box.start("sleep", "1000"), "sh", "-c", script, check=True)
    assert (len(done.raw), done.err) == (4 * MEGABYTE, "end\n")


def test_a_reader_that_pauses_loses_nothing(box):
    """The container has long ended when its reader goes on: what it wrote is still there."""
    with box.lane.popen("run", "--rm", *STOCK, box.image, "sh", "-c", "head -c 3000000 /dev/zero; echo -n end") as process:
        time.sleep(3.5)
        code, out, _ = finish(process)
    assert (code, len(out), out[-3:]) == (0, 3000003, b"end")


def test_a_stopped_attached_reader_holds_back_the_output_alone(box):
    name = box.start("sh", "-c", "read x; while true; do head -c 65536 /dev/zero; done", options=["-i"])
    with box.lane.popen("attach", name) as reader:
        reader.stdin.write(b"go\n")
        reader.stdin.flush()
        assert reader.stdout.read(65536)
        reader.send_signal(signal.SIGSTOP)
        try:
            log = f"{box.lane.root}/containers/{box.inspect(name)['Id']}/log"
            eventually(lambda: (before := os.stat(log).st_size, time.sleep(0.3), os.stat(log).st_size == before)[2])
            assert box.lane("exec", name, "echo", "hi", check=True, timeout=10).out == "hi\n"
            assert box.lane("logs", "--tail", "0", name, check=True, timeout=10).out == ""
            box.lane("kill", name, check=True, timeout=10)
            assert box.lane("wait", name, check=True, timeout=10).out == "137\n"
            box.lane("rm", name, check=True, timeout=10)
        finally:
            reader.send_signal(signal.SIGCONT)
            reader.send_signal(signal.SIGKILL)
        for stream in (reader.stdin, reader.stdout, reader.stderr):
            with contextlib.suppress(BrokenPipeError):
                stream.close()


@pytest.mark.parametrize("verb", ["run", "exec", "attach"])
def test_a_signal_gets_through_while_nobody_takes_the_output(box, verb):
    """The command is stuck in writing to a full pipe; SIGTERM must reach the container all the same."""
    loop = "trap 'exit 5' TERM; while true; do echo aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa; done"
    if verb == "run":
        argv = ("run", "--rm", *STOCK, box.image, "sh", "-c", loop)
    elif verb == "exec":
        argv = ("exec", box.start("sleep", "1000"), "sh", "-c", loop)
    else:
        argv = ("attach", box.start("sh", "-c", loop))
    with box.lane.popen(*argv) as process:
        time.sleep(1)
        process.send_signal(signal.SIGTERM)
        time.sleep(0.5)
        assert finish(process)[0] == 5


def test_a_reader_that_goes_away_ends_the_writing_not_the_container(box):
    name = box.name()
    with box.lane.popen("run", "--name", name, *STOCK, box.image, "sh", "-c", "yes | head -c 1000000; echo done >&2; exit 3") as process:
        process.stdout.close()
        assert process.stderr.read() == b"done\n"
        assert process.wait(10) == 3
        process.stdin.close()
    assert box.inspect(name)["State"]["ExitCode"] == 3


def test_output_of_a_grandchild_that_holds_the_pipe_ends_with_the_container(box):
    started = time.monotonic()
    assert box.run("sh", "-c", "(sleep 1000; echo never) & echo now").out == "now\n"
    assert box.lane("exec", box.start("sleep", "1000"), "sh", "-c", "sleep 1000 & echo now", check=True).out == "now\n"
    assert time.monotonic() - started < 8
