"""The caller's side of a container, over a socketpair with the test as its monitor: detach keys, flow control, signals, the terminal's mode."""

import contextlib
import fcntl
import os
import pty
import select
import signal
import struct
import termios
import threading

import pytest

from utsuwa.engine import foreground
from utsuwa.engine.foreground import Relay, _Detach, raw, wait_ready, write_all
from utsuwa.runtime import handshake

CTRL_P_Q = b"\x10\x11"


@pytest.fixture
def ends():
    ours, theirs = handshake.pair()
    yield ours, theirs
    ours.close()
    theirs.close()


@pytest.fixture
def pipe():
    """(reading, writing); a test may close either."""
    fds = os.pipe2(os.O_CLOEXEC)
    yield fds
    for fd in fds:
        with contextlib.suppress(OSError):
            os.close(fd)


@pytest.fixture
def terminal():
    """(master, slave) of a pseudo-terminal; a test may close either."""
    fds = pty.openpty()
    yield fds
    for fd in fds:
        with contextlib.suppress(OSError):
            os.close(fd)


def within(sock, seconds=5.0):
    """Return (kind, body) of the next message, None where none comes."""
    if not select.select([sock], [], [], seconds)[0]:
        return None
    message = handshake.receive(sock)
    return message and message[:2]


@contextlib.contextmanager
def beside(function, *args):
    """Run `function` in a thread; what it raises is raised here at the end."""
    failures = []

    def body():
        try:
            function(*args)
        except BaseException as error:  # noqa: BLE001 - carried to the test
            failures.append(error)

    thread = threading.Thread(target=body)
    thread.start()
    yield
    thread.join(10)
    assert not thread.is_alive()
    if failures:
        raise failures[0]


def fill(fd):
    """Fill a pipe; returns how much it took."""
    os.set_blocking(fd, False)
    taken = 0
    with contextlib.suppress(BlockingIOError):
        while True:
            taken += os.write(fd, bytes(4096))
    os.set_blocking(fd, True)
    return taken


# ---- detach keys

@pytest.mark.parametrize(("keys", "chunks", "sent", "detached"), [
    (CTRL_P_Q, [b"abc"], b"abc", False),
    (CTRL_P_Q, [b"ab\x10\x11cd"], b"ab", True),
    (CTRL_P_Q, [b"ab\x10", b"\x11"], b"ab", True),
    (CTRL_P_Q, [b"\x10"], b"", False),
    (CTRL_P_Q, [b"\x10", b"x"], b"\x10x", False),
    (CTRL_P_Q, [b"\x10\x10\x10", b"\x11"], b"\x10\x10", True),
    (CTRL_P_Q, [b"\x11\x10"], b"\x11", False),
    (b"aab", [b"aaa", b"b"], b"a", True),
    (b"abac", [b"ababac"], b"ab", True),
    (b"z", [b"xyz"], b"xy", True),
    (b"", [b"\x10\x11"], b"\x10\x11", False),
])
def test_detach_keys_are_found_across_reads_and_nothing_else_is_lost(keys, chunks, sent, detached):
    detach = _Detach(keys)
    answers = [detach.feed(chunk) for chunk in chunks]
    assert b"".join(out for out, _ in answers) == sent
    assert answers[-1][1] is detached
    assert not any(found for _, found in answers[:-1])


# ---- writing and waiting

def test_write_all_writes_more_than_a_pipe_holds(pipe):
    reading, writing = pipe
    data, got = os.urandom(300_000), bytearray()

    def read():
        while len(got) < len(data):
            got.extend(os.read(reading, 7000))

    with beside(read):
        write_all(writing, data)
    assert got == data


def test_write_all_waits_where_the_pipe_does_not_block(pipe):
    reading, writing = pipe
    size = fill(writing)
    os.set_blocking(writing, False)
    got = bytearray()

    def read():
        while len(got) < size + 9:
            got.extend(os.read(reading, 65536))

    with beside(read):
        write_all(writing, b"the whole")
    assert got[size:] == b"the whole"


def test_write_all_says_that_its_reader_has_gone(pipe):
    os.close(pipe[0])
    with pytest.raises(BrokenPipeError):
        write_all(pipe[1], b"x")


def test_a_terminal_that_has_hung_up_is_a_reader_that_has_gone(terminal):
    os.close(terminal[0])
    with pytest.raises(BrokenPipeError):
        write_all(terminal[1], b"x")


def test_another_error_of_writing_is_told(pipe):
    with pytest.raises(OSError, match="Bad file descriptor"):
        write_all(pipe[0], b"x")


def test_output_goes_to_the_stream_of_its_name(capfdbinary):
    foreground.to_streams("stdout", b"out")
    foreground.to_streams("stderr", b"err")
    assert capfdbinary.readouterr() == (b"out", b"err")


def test_wait_ready_names_what_is_ready(pipe):
    reading, writing = pipe
    assert wait_ready([reading], (), 0) == set()
    assert wait_ready([reading], (writing,), 0) == {writing}
    os.write(writing, b"x")
    assert wait_ready([reading], (), 0) == {reading}
    fill(writing)
    assert wait_ready([reading], (writing,), 0) == {reading}


def test_wait_ready_takes_an_ended_stream_for_ready(pipe):
    os.close(pipe[1])
    assert wait_ready([pipe[0]], (), 0) == {pipe[0]}


def test_wait_ready_watches_a_descriptor_both_ways(ends):
    ours, theirs = ends
    fd = ours.fileno()
    assert wait_ready([fd], (fd,), 0) == {fd}
    handshake.send(theirs, handshake.TAKEN)
    assert wait_ready([fd], (), 0) == {fd}


# ---- the terminal's mode

def test_raw_takes_editing_and_signals_from_the_terminal_and_puts_them_back(terminal):
    before = termios.tcgetattr(terminal[1])
    with raw(terminal[1]):
        mode = termios.tcgetattr(terminal[1])
        assert not mode[3] & (termios.ECHO | termios.ICANON | termios.ISIG | termios.IEXTEN)
        assert not mode[0] & (termios.ICRNL | termios.IXON) and not mode[1] & termios.OPOST
        assert (mode[6][termios.VMIN], mode[6][termios.VTIME]) == (1, 0)
    assert termios.tcgetattr(terminal[1]) == before


def test_raw_puts_the_terminal_back_after_an_error(terminal):
    before = termios.tcgetattr(terminal[1])
    with pytest.raises(KeyError), raw(terminal[1]):
        raise KeyError
    assert termios.tcgetattr(terminal[1]) == before


def test_raw_leaves_alone_what_is_no_terminal(pipe):
    with raw(-1), raw(pipe[0]):
        os.write(pipe[1], b"x")
    assert os.read(pipe[0], 9) == b"x"


def test_raw_survives_a_terminal_that_hangs_up(terminal):
    with raw(terminal[1]):
        os.close(terminal[0])
    with pytest.raises(termios.error):
        termios.tcgetattr(terminal[1])


def test_the_size_of_a_terminal_and_of_what_is_none(terminal, pipe):
    fcntl.ioctl(terminal[1], termios.TIOCSWINSZ, struct.pack("4H", 33, 300, 0, 0))
    assert foreground.window(terminal[1]) == (33, 300)
    assert foreground.window(pipe[0]) == (0, 0)


# ---- the relay

def test_output_and_the_exit_code_are_passed_on(ends):
    ours, theirs = ends
    got = []
    handshake.send(theirs, handshake.OUTPUT, ("stdout", b"one"))
    handshake.send(theirs, handshake.OUTPUT, ("stderr", b"two"))
    handshake.send(theirs, handshake.EXITED, (7, True))
    outcome = Relay(ours, output=lambda *part: got.append(part)).run()
    assert (outcome.code, outcome.oom, outcome.detached, outcome.lost) == (7, True, False, False)
    assert got == [("stdout", b"one"), ("stderr", b"two")]


def test_a_lost_monitor_is_137(ends):
    ours, theirs = ends
    got = []
    handshake.send(theirs, handshake.OUTPUT, ("stdout", b"last"))
    theirs.close()
    outcome = Relay(ours, output=lambda *part: got.append(part)).run()
    assert (outcome.code, outcome.lost) == (137, True)
    assert got == [("stdout", b"last")]


def test_a_monitor_that_leaves_before_it_has_read_all_is_still_heard(ends, pipe):
    """Its end comes as ECONNRESET then, before what it had sent. unix(7)"""
    ours, theirs = ends
    handshake.send(ours, handshake.INPUT, b"never read")
    handshake.send(theirs, handshake.OUTPUT, ("stdout", b"out"))
    handshake.send(theirs, handshake.EXITED, (3, False))
    theirs.close()
    got = []
    outcome = Relay(ours, output=lambda *part: got.append(part)).run()
    assert (outcome.code, outcome.lost, got) == (3, False, [("stdout", b"out")])


def test_input_goes_one_chunk_at_a_time_and_its_end_last(ends, pipe):
    ours, theirs = ends
    data = os.urandom(3 * foreground.INPUT_CHUNK)
    got = []

    def monitor():
        for _ in range(3):
            got.append(within(theirs))
            assert within(theirs, 0.05) is None  # nothing before TAKEN
            handshake.send(theirs, handshake.TAKEN)
        got.append(within(theirs))
        handshake.send(theirs, handshake.EXITED, (0, False))

    os.write(pipe[1], data)
    os.close(pipe[1])
    with beside(monitor):
        assert Relay(ours, stdin=pipe[0]).run().code == 0
    assert [kind for kind, _ in got] == [handshake.INPUT] * 3 + [handshake.END_INPUT]
    assert b"".join(body for _, body in got[:3]) == data


def test_output_comes_while_the_container_does_not_take_its_input(ends, pipe):
    ours, theirs = ends
    os.write(pipe[1], bytes(2 * foreground.INPUT_CHUNK))
    got = []

    def monitor():
        assert within(theirs)[0] == handshake.INPUT
        handshake.send(theirs, handshake.OUTPUT, ("stdout", b"busy"))
        handshake.send(theirs, handshake.EXITED, (5, False))

    with beside(monitor):
        assert Relay(ours, stdin=pipe[0], output=lambda *part: got.append(part)).run().code == 5
    assert got == [("stdout", b"busy")] and within(theirs, 0) is None


def test_input_is_heard_while_output_never_pauses(ends, terminal):
    """The keys are typed at the first output, and there is always more of that to take."""
    ours, theirs = ends
    count = 0

    def output(_stream, _data):
        nonlocal count
        count += 1
        handshake.send(theirs, handshake.OUTPUT, ("stdout", b"y"))
        if count == 1:
            os.write(terminal[0], CTRL_P_Q)
        assert count < 10_000

    handshake.send(theirs, handshake.OUTPUT, ("stdout", b"y"))
    assert Relay(ours, stdin=terminal[1], output=output, terminal=True, keys=CTRL_P_Q).run().detached


def test_the_detach_keys_let_go_after_what_came_before_them(ends, terminal):
    ours, theirs = ends
    before = termios.tcgetattr(terminal[1])
    fcntl.ioctl(terminal[1], termios.TIOCSWINSZ, struct.pack("4H", 30, 100, 0, 0))

    def user():
        while termios.tcgetattr(terminal[1]) == before:  # raw from here on: nothing is edited
            continue
        os.write(terminal[0], b"x\x10\x11y")

    with beside(user):
        outcome = Relay(ours, stdin=terminal[1], terminal=True, keys=CTRL_P_Q).run()
    assert (outcome.detached, outcome.code, outcome.lost) == (True, 0, False)
    assert termios.tcgetattr(terminal[1]) == before
    theirs.setblocking(False)
    messages = iter(lambda: within(theirs, 0), None)
    assert [body for kind, body in messages if kind == handshake.INPUT] == [b"x"]


def test_without_a_terminal_the_detach_keys_are_input(ends, pipe):
    ours, theirs = ends
    os.write(pipe[1], CTRL_P_Q)

    def monitor():
        assert within(theirs) == (handshake.INPUT, CTRL_P_Q)
        handshake.send(theirs, handshake.EXITED, (0, False))

    with beside(monitor):
        assert not Relay(ours, stdin=pipe[0], keys=CTRL_P_Q).run().detached


def test_a_reader_that_has_gone_ends_the_relay_and_the_terminal_is_put_back(ends, terminal):
    ours, theirs = ends
    before = termios.tcgetattr(terminal[1])
    handshake.send(theirs, handshake.OUTPUT, ("stdout", b"x"))

    def output(_stream, _data):
        raise BrokenPipeError

    with pytest.raises(BrokenPipeError):
        Relay(ours, stdin=terminal[1], output=output, terminal=True).run()
    assert termios.tcgetattr(terminal[1]) == before


# ---- signals

def test_signals_are_passed_on_and_their_handlers_put_back(ends):
    ours, theirs = ends
    before = {number: signal.getsignal(number) for number in signal.valid_signals()}

    def output(_stream, data):
        os.kill(os.getpid(), int(data))

    for number in (signal.SIGUSR1, signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGWINCH):
        handshake.send(theirs, handshake.OUTPUT, ("stdout", b"%d" % number))
    handshake.send(theirs, handshake.EXITED, (0, False))
    assert Relay(ours, output=output, signals=True).run().code == 0
    heard = [within(theirs, 0) for _ in range(5)]
    assert heard == [(handshake.SIGNAL, number) for number in (signal.SIGUSR1, signal.SIGINT, signal.SIGTERM, signal.SIGHUP)] + [None]
    assert {number: signal.getsignal(number) for number in signal.valid_signals()} == before
    assert signal.set_wakeup_fd(-1) == -1


def test_a_signal_gets_through_while_the_output_is_stuck(ends, pipe):
    ours, theirs = ends
    reading, writing = pipe
    fill(writing)
    handshake.send(theirs, handshake.OUTPUT, ("stdout", b"more"))

    def monitor():
        while True:  # until it comes in the middle of the writing
            os.kill(os.getpid(), signal.SIGUSR2)
            if within(theirs, 0.05):
                break
        os.kill(os.getpid(), signal.SIGTERM)
        while within(theirs) != (handshake.SIGNAL, signal.SIGTERM):
            continue
        os.read(reading, 1 << 20)
        handshake.send(theirs, handshake.EXITED, (143, False))

    previous = signal.signal(signal.SIGUSR2, signal.SIG_IGN)
    try:
        with beside(monitor):
            assert Relay(ours, output=lambda _, data: write_all(writing, data), signals=True).run().code == 143
    finally:
        signal.signal(signal.SIGUSR2, previous)


def test_a_signal_that_is_not_passed_on_ends_the_relay(ends):
    ours, theirs = ends
    handshake.send(theirs, handshake.OUTPUT, ("stdout", b"x"))
    outcome = Relay(ours, output=lambda *_: os.kill(os.getpid(), signal.SIGTERM), signals=True, proxy=False).run()
    assert (outcome.code, outcome.lost) == (143, False)
    assert within(theirs, 0) is None


def test_a_resized_terminal_is_told(ends, terminal, monkeypatch):
    ours, theirs = ends
    sizes = iter([(24, 80), (50, 132)])
    monkeypatch.setattr(foreground, "screen", lambda: next(sizes))
    handshake.send(theirs, handshake.OUTPUT, ("stdout", b"x"))
    handshake.send(theirs, handshake.EXITED, (0, False))
    Relay(ours, stdin=terminal[1], output=lambda *_: os.kill(os.getpid(), signal.SIGWINCH), terminal=True, signals=True).run()
    assert [within(theirs, 0) for _ in range(3)] == [(handshake.RESIZE, (24, 80)), (handshake.RESIZE, (50, 132)), None]
