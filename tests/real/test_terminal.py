"""A container at a terminal, and its streams when somebody is slow: size and resizing, detaching, raw mode, input that nobody reads, output that nobody takes; signals."""

import contextlib
import json
import os
import signal
import time

import pytest

from support.containers import STOCK, Seat, eventually, finish

MEGABYTE = 1 << 20


@contextlib.contextmanager
def started(box, *args, **more):
    """A command whose streams are pipes; whatever is open of them is closed at the end, and the command is over."""
    process = box.lane.popen(*args, **more)
    try:
        yield process
    finally:
        process.send_signal(signal.SIGCONT)
        process.kill()
        for stream in (process.stdin, process.stdout, process.stderr):
            with contextlib.suppress(BrokenPipeError):
                stream.close()
        process.wait()


def running(box, name):
    return box.inspect(name)["State"]["Running"]


def masks(lines):
    """Return a process's signals that are blocked and ignored, of lines of /proc/PID/status."""
    return {line.split(":")[0]: int(line.split()[1], 16) for line in lines}


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
    script = "tty; test -t 0 && test -t 1 && test -t 2 && echo all three; echo TERM=$TERM; ls -1 /dev/pts; stat -c %t:%T /dev/console; stat -c %u:%g:%a $(tty)"
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
        echoed = seat.see("one\r\n")
        assert echoed.count("echo") == 1 and echoed.endswith("echo o''ne\r\n")
        seat.see("# ")
        seat.type("sh -c 'echo a\"\"sleep; exec sleep 1000'\n")  # what is typed before that is said may be the line editor's
        seat.see("asleep")
        seat.type("\x03")
        seat.see("# ")
        seat.type("exit 9\n")
        assert seat.end() == 9
        assert seat.is_restored


def test_a_terminal_without_input_and_without_a_terminal_of_ours(box):
    assert box.run("sh", "-c", "test -t 1 && echo yes", options=["-t"]).out == "yes\r\n"


def test_control_c_reaches_a_container_that_has_a_terminal_but_no_input_of_ours(box):
    """There our terminal keeps its own mode, and its Ctrl-C is a signal that is passed on."""
    with Seat(box.lane, "run", "--rm", "-t", *STOCK, box.image, "sh", "-c", "trap 'exit 9' INT; echo ready; while true; do sleep 0.05; done") as seat:
        seat.see("ready")
        seat.type("\x03")
        assert seat.end() == 9
        assert seat.is_restored


def test_keys_reach_a_container_that_writes_without_end(box):
    seat, name = sit(box, "sh", "-c", "trap 'exit 9' INT; while true; do echo yyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyy; done")
    with seat:
        seat.see("yyy")
        seat.type("\x10\x11")
        assert seat.end() == 0
    assert running(box, name)
    with Seat(box.lane, "attach", name) as seat:
        seat.see("yyy")
        seat.type("\x03")
        assert seat.end() == 9
        assert seat.is_restored


def test_a_command_killed_at_its_terminal_does_not_take_the_container(box):
    seat, name = sit(box, "sh")
    with seat:
        seat.see("# ")
        seat.process.send_signal(signal.SIGKILL)
        seat.process.wait()
    assert box.lane("exec", name, "echo", "still", check=True).out == "still\n"


def test_the_terminal_is_restored_when_the_container_is_killed(box):
    seat, name = sit(box, "sh")
    with seat:
        seat.see("# ")
        with Seat(box.lane, "attach", name) as attached, Seat(box.lane, "exec", "-it", name, "sh") as inner:
            inner.see("# ")
            attached.type("echo w''ell\n")
            attached.see("well")
            assert not any(each.is_restored for each in (seat, attached, inner))
            box.lane("kill", name, check=True)
            assert [each.end() for each in (seat, attached, inner)] == [137, 137, 137]
            assert all(each.is_restored for each in (seat, attached, inner))


def test_the_terminal_is_restored_when_the_monitor_is_lost(box):
    seat, name = sit(box, "sh")
    with seat:
        seat.see("# ")
        with Seat(box.lane, "exec", "-it", name, "sh") as inner:
            inner.see("# ")
            with open(f"{box.lane.root}/containers/{box.inspect(name)['Id']}/state.json") as file:
                os.kill(json.load(file)["monitor"], signal.SIGKILL)
            assert [each.end() for each in (seat, inner)] == [137, 137]
            assert seat.is_restored and inner.is_restored
    assert box.inspect(name)["State"]["ExitCode"] == 137


def test_a_command_that_cannot_run_leaves_the_terminal_as_it_was(box):
    seat, name = sit(box, "no-such-program")
    with seat:
        assert seat.end() == 127
        assert seat.is_restored
        assert b"executable file not found" in seat.output
    assert not box.exists(name)
    with Seat(box.lane, "exec", "-it", box.start("sleep", "1000"), "no-such-program") as seat:
        assert seat.end() == 127
        assert seat.is_restored


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
    assert running(box, name)
    with Seat(box.lane, "attach", name, rows=50, columns=90) as seat:
        seat.type("echo $x; stty size\n")
        seat.see("kept")
        seat.see("50 90")
        seat.type("exit 4\n")
        assert seat.end() == 4
        assert seat.is_restored
    assert box.inspect(name)["State"]["ExitCode"] == 4


def test_keys_that_only_begin_like_the_detach_keys_reach_the_container(box):
    seat, _ = sit(box, "sh", "-c", "stty raw -echo; echo ready; head -c 5 | od -An -tx1", options=["--rm"])
    with seat:
        seat.see("ready")
        seat.type("\x10x\x10\x10z")
        seat.see("10 78 10 10 7a")
        assert seat.end() == 0


def test_attach_lets_the_program_draw_its_screen_again(box):
    """A terminal of the same size as before is resized to and fro: else a prompt would only come with the next key."""
    seat, name = sit(box, "sh", "-c", "trap 'stty size' WINCH; echo ready; while true; do sleep 0.05; done")
    with seat:
        seat.see("ready")
        seat.type("\x10\x11")
        assert seat.end() == 0
    with Seat(box.lane, "attach", name) as seat:
        seat.see("24 80")
        seat.type("\x10\x11")
        assert seat.end() == 0


def test_a_signal_to_attach_at_a_terminal_ends_attach_alone(box):
    seat, name = sit(box, "sh")
    with seat:
        seat.see("# ")
        seat.type("\x10\x11")
        assert seat.end() == 0
    with Seat(box.lane, "attach", name) as seat:
        seat.type("echo w''ell\n")
        seat.see("well")
        seat.process.send_signal(signal.SIGTERM)
        assert seat.end() == 143
        assert seat.is_restored
    assert running(box, name)


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
        seat.type("while true; do echo on; echo > /on; done\n")
        seat.see("on\r\n")
        seat.type("\x18")
        assert seat.end() == 0
        assert seat.is_restored
    assert running(box, name)
    # What exec started goes on too, though nobody takes what it writes.
    box.lane("exec", name, "rm", "/on", check=True)
    eventually(lambda: box.lane("exec", name, "test", "-e", "/on").code == 0)


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
        seat.type("sh -c 'echo a\"\"sleep; exec sleep 1000'\n")  # what is typed before that is said may be the line editor's
        seat.see("asleep")
        seat.type("\x03")
        seat.see("$ ")
        seat.type("exit 6\n")
        assert seat.end() == 6
        assert seat.is_restored


# ---- input

@pytest.mark.parametrize("verb", ["run", "exec"])
def test_much_input_reaches_a_container_that_reads_slowly(box, verb):
    script = "sleep 0.3; dd bs=50000 count=2 2> /dev/null | wc -c; sleep 0.3; wc -c"
    data = os.urandom(3 * MEGABYTE)
    if verb == "run":
        done = box.run("sh", "-c", script, options=["-i"], input=data)
    else:
        done = box.lane("exec", "-i", box.start("sleep", "1000"), "sh", "-c", script, input=data, check=True)
    early, late = map(int, done.out.split())
    assert early > 0 and early + late == len(data)


def test_bytes_pass_unchanged_both_ways(box):
    data = os.urandom(2 * MEGABYTE)
    assert box.run("cat", options=["-i"], input=data).raw == data
    assert box.lane("exec", "-i", box.start("sleep", "1000"), "cat", input=data, check=True).raw == data


def test_a_container_that_does_not_read_stops_nobody_but_its_writer(box):
    name = box.name()
    with started(box, "run", "-i", "--name", name, *STOCK, box.image, "sleep", "1000") as writer:
        os.set_blocking(writer.stdin.fileno(), False)
        written = idle = 0
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


def test_a_container_that_closes_its_input_lets_the_writer_finish(box):
    done = box.run("sh", "-c", "exec < /dev/null; sleep 0.3; echo done", options=["-i"], input=bytes(MEGABYTE))
    assert done.out == "done\n"


def test_input_that_stays_open_does_not_hold_the_end_back(box):
    with started(box, "run", "-i", "--rm", *STOCK, box.image, "true") as process:
        assert process.wait(10) == 0
    with started(box, "exec", "-i", box.start("sleep", "1000"), "sh", "-c", "exit 3") as process:
        assert process.wait(10) == 3


def test_the_input_ends_with_the_command_that_gave_it(box):
    name = box.name()
    with started(box, "run", "-i", "--name", name, *STOCK, box.image, "sh", "-c", "cat; echo ended; exit 4") as process:
        process.stdin.write(b"one\n")
        process.stdin.flush()
        assert process.stdout.readline() == b"one\n"
        process.kill()
    eventually(lambda: not running(box, name))
    assert (box.inspect(name)["State"]["ExitCode"], box.logs(name)) == (4, "one\nended\n")


def test_input_by_attach_leaves_the_input_open_for_the_next(box):
    name = box.start("sh", "-c", "read a; read b; echo $a $b; exit 4", options=["-i"])
    with started(box, "attach", name) as process:
        process.stdin.write(b"one\n")
        process.stdin.close()
        time.sleep(0.2)
        process.kill()
    assert box.lane("attach", name, input="two\n") == (4, "one two\n", "", b"one two\n")


def test_without_i_there_is_no_input(box):
    assert box.run("cat", input="nobody reads this").out == ""
    assert box.lane("exec", box.start("sleep", "1000"), "cat", input="nor this", check=True).out == ""


# ---- output

@pytest.mark.parametrize("verb", ["run", "exec"])
def test_large_output_is_complete(box, verb):
    script = "i=0; while [ $i -lt 64 ]; do head -c 65536 /dev/zero; i=$((i+1)); done; echo end >&2"
    done = box.run("sh", "-c", script) if verb == "run" else box.lane("exec", box.start("sleep", "1000"), "sh", "-c", script, check=True)
    assert (len(done.raw), done.err) == (4 * MEGABYTE, "end\n")


@pytest.mark.parametrize("verb", ["run", "exec"])
def test_a_reader_that_pauses_loses_nothing(box, verb):
    """The pause is longer than what is waited for at the end of a container, and there is more than fits on the way."""
    script = "head -c 3000000 /dev/zero; echo -n end"
    argv = ("run", "--rm", *STOCK, box.image) if verb == "run" else ("exec", box.start("sleep", "1000"))
    with started(box, *argv, "sh", "-c", script) as process:
        time.sleep(3.5)
        code, out, _ = finish(process)
    assert (code, len(out), out[-3:]) == (0, 3000003, b"end")


def test_what_a_container_wrote_before_its_end_is_there_for_a_reader_that_comes_late(box):
    name = box.name()
    with started(box, "run", "--name", name, *STOCK, box.image, "sh", "-c", "yes | head -c 1000000; exit 3") as process:
        eventually(lambda: box.exists(name) and not running(box, name))
        assert len(box.lane("logs", name, check=True).out) == 1000000
        code, out, err = finish(process)
    assert (code, len(out), err) == (3, 1000000, b"")


def test_a_stopped_attached_reader_holds_back_the_output_alone(box):
    name = box.start("sh", "-c", "read x; while true; do head -c 65536 /dev/zero; done", options=["-i"])
    with started(box, "attach", name) as reader:
        reader.stdin.write(b"go\n")
        reader.stdin.flush()
        assert reader.stdout.read(65536)
        reader.send_signal(signal.SIGSTOP)
        log = f"{box.lane.root}/containers/{box.inspect(name)['Id']}/log"
        eventually(lambda: (before := os.stat(log).st_size, time.sleep(0.3), os.stat(log).st_size == before)[2])
        assert box.lane("exec", name, "echo", "hi", check=True, timeout=10).out == "hi\n"
        assert box.lane("logs", "--tail", "0", name, check=True, timeout=10).out == ""
        box.lane("kill", name, check=True, timeout=10)
        assert box.lane("wait", name, check=True, timeout=10).out == "137\n"
        written = len(box.lane("logs", name, check=True).raw)
        box.lane("rm", name, check=True, timeout=10)
        # The container is gone, its name is free; the reader still gets what it had not taken.
        reader.send_signal(signal.SIGCONT)
        code, out, err = finish(reader)
    assert (code, 65536 + len(out), err) == (137, written, b"")


@pytest.mark.parametrize("verb", ["run", "exec", "attach"])
def test_a_signal_gets_through_while_nobody_takes_the_output(box, verb):
    """The command is stuck in writing to a full pipe; SIGTERM reaches the container all the same."""
    name = box.name()
    loop = f"trap 'kill $!; echo > /{name}; exit 5' TERM; yes {'a' * 69} & while true; do sleep 0.05; done"
    other = box.start("sleep", "1000") if verb == "exec" else box.start("sh", "-c", loop) if verb == "attach" else ""
    argv = {"run": ("run", "--name", name, *STOCK, box.image, "sh", "-c", loop), "exec": ("exec", other, "sh", "-c", loop), "attach": ("attach", other)}[verb]
    with started(box, *argv) as process:
        assert process.stdout.read(1)
        time.sleep(0.5)  # so that it is stuck
        process.send_signal(signal.SIGTERM)
        if verb == "exec":
            eventually(lambda: box.lane("exec", other, "test", "-e", f"/{name}").code == 0)
        else:
            eventually(lambda: not running(box, other or name))
        assert process.poll() is None
        assert finish(process)[0] == 5


@pytest.mark.parametrize("verb", ["run", "attach", "exec"])
def test_a_reader_that_goes_away_ends_the_command_not_the_container(box, verb):
    """As Docker's client does: `run … | head` ends with head, and the container runs on."""
    name = box.name() if verb == "run" else box.start("sh", "-c", "while true; do echo y; done")
    argv = {"run": ("run", "--name", name, *STOCK, box.image, "sh", "-c", "while true; do echo y; done"), "attach": ("attach", name), "exec": ("exec", name, "yes")}[verb]
    with started(box, *argv) as process:
        assert process.stdout.read(2) == b"y\n"
        process.stdout.close()
        assert (process.wait(10), process.stderr.read()) == (141, b"")
    assert running(box, name)
    box.lane("kill", name, check=True)
    assert box.inspect(name)["State"]["ExitCode"] == 137
    box.lane("rm", name, check=True)


def test_output_of_a_grandchild_that_holds_the_pipe_ends_with_the_container(box):
    assert box.run("sh", "-c", "(sleep 1000; echo never) & echo now", timeout=10).out == "now\n"
    assert box.lane("exec", box.start("sleep", "1000"), "sh", "-c", "sleep 1000 & echo now", check=True, timeout=10).out == "now\n"


# ---- signals

@pytest.mark.parametrize("name", ["TERM", "INT", "HUP", "USR1", "QUIT"])
@pytest.mark.parametrize("verb", ["run", "attach"])
def test_signals_are_passed_on_without_a_terminal(box, verb, name):
    number = signal.Signals[f"SIG{name}"]
    script = f"trap 'exit {128 + number}' {name}; echo ready; while true; do sleep 0.05; echo; done"
    argv = ("run", "--rm", *STOCK, box.image, "sh", "-c", script) if verb == "run" else ("attach", box.start("sh", "-c", script))
    with started(box, *argv) as process:
        assert process.stdout.readline()
        process.send_signal(number)
        assert finish(process)[0] == 128 + number


@pytest.mark.parametrize("name", ["TERM", "INT", "HUP", "USR1"])
def test_a_signal_to_exec_ends_what_it_runs(box, name):
    """Docker leaves the program behind; here it does not outlive the command that was told to end."""
    where = box.start("sleep", "1000")
    number = signal.Signals[f"SIG{name}"]
    with started(box, "exec", where, "sh", "-c", "echo $$; exec sleep 2000") as process:
        pid = process.stdout.readline().decode().strip()
        process.send_signal(number)
        assert finish(process)[0] == 128 + number
    assert box.lane("exec", where, "test", "-e", f"/proc/{pid}").code == 1


def test_the_first_process_is_not_ended_by_a_signal_it_does_not_handle(box):
    """Nor with Docker: the kernel spares PID 1 of a pid namespace. pid_namespaces(7)"""
    with started(box, "run", "--rm", "-i", *STOCK, box.image, "sh", "-c", "echo ready; read x; exit 6") as process:
        assert process.stdout.readline() == b"ready\n"
        process.send_signal(signal.SIGTERM)
        process.stdin.write(b"\n")
        process.stdin.close()
        assert process.wait(10) == 6


def test_attach_without_sig_proxy_ends_alone(box):
    name = box.start("sh", "-c", "trap 'exit 5' TERM; while true; do sleep 0.05; echo on; done")
    with started(box, "attach", "--sig-proxy=false", name) as process:
        assert process.stdout.readline() == b"on\n"
        process.send_signal(signal.SIGTERM)
        assert finish(process)[0] == 143
    assert running(box, name)


def test_no_signal_is_ignored_or_blocked_in_the_container(box):
    """Whatever its caller had: a shell could not trap what is ignored at its start."""
    def careless():
        for number in (signal.SIGINT, signal.SIGQUIT, signal.SIGHUP, signal.SIGUSR1):
            signal.signal(number, signal.SIG_IGN)
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGUSR2, signal.SIGTERM})

    name = box.name()
    with started(box, "run", "-d", "--name", name, *STOCK, box.image, "sleep", "1000", preexec_fn=careless) as process:
        assert finish(process)[0] == 0
    clear = {"SigBlk": 0, "SigIgn": 0}
    look = ("exec", name, "grep", "-E", "Sig(Blk|Ign)")
    assert masks(box.lane(*look, "/proc/1/status", check=True).lines) == clear
    with started(box, *look, "/proc/self/status", preexec_fn=careless) as process:
        assert masks(finish(process)[1].decode().splitlines()) == clear
