"""What end-to-end tests of containers share: an image in the lane, waiting for something to be true, a terminal to sit at."""

import contextlib
import fcntl
import json
import os
import pty
import select
import signal
import struct
import subprocess
import termios
import time

STOCK = ("--network", "none")
"""Options of a container that needs no network: the default of an ordinary user, and quicker as root."""


def eventually(condition, seconds=10.0):
    """Return what `condition` returns, as soon as it is true; fail after `seconds`."""
    deadline = time.monotonic() + seconds
    while True:
        found = condition()
        if found:
            return found
        assert time.monotonic() < deadline, "it does not come true"
        time.sleep(0.01)


class Box:
    """A lane with busybox in it. `run(…)` runs a container without network; names are made by `name()`, and what is left of them is removed."""

    def __init__(self, lane, image):
        self.lane, self.image, self._names = lane, image, []
        if lane("images", "--quiet", image).out == "":
            lane("pull", "--quiet", image, check=True)

    def run(self, *args, options=(), check=True, **more):
        return self.lane("run", "--rm", *STOCK, *options, self.image, *args, check=check, **more)

    def start(self, *args, options=()):
        """Start one in the background; returns its name."""
        name = self.name()
        self.lane("run", "-d", "--name", name, *STOCK, *options, self.image, *args, check=True)
        return name

    def name(self):
        self._names.append(f"test-{os.urandom(4).hex()}")
        return self._names[-1]

    def inspect(self, name):
        return json.loads(self.lane("inspect", name, check=True).out)[0]

    def exists(self, name):
        return self.lane("inspect", name).code == 0

    def logs(self, name):
        return self.lane("logs", name, check=True).out

    def close(self):
        left = [name for name in self._names if self.exists(name)]
        if left:
            self.lane("rm", "--force", "--volumes", *left, check=True)


def one_line(result, *says, code=125):
    """Assert that a command failed with one clear line on standard error, nothing else said, and this exit code."""
    assert (result.code, result.out) == (code, ""), result
    assert result.err.startswith("utsuwa: ") and result.err.count("\n") == 1 and result.err.endswith("\n"), result.err
    assert "Traceback" not in result.err and "internal error" not in result.err, result.err
    for word in says:
        assert word in result.err, result.err


class Seat:
    """A command at a terminal of its own, as a user sits there: `type` and `see`. A context manager that ends the command."""

    def __init__(self, lane, *args, rows=24, columns=80):
        self.master, slave = pty.openpty()
        self.size(rows, columns)
        os.fchown(slave, lane.uid, -1)
        self.before = termios.tcgetattr(slave)
        self.slave = slave
        self.output = b""

        def sit():  # a session whose controlling terminal this is, so that Ctrl-C and resizing reach it
            os.setsid()
            fcntl.ioctl(0, termios.TIOCSCTTY, 0)

        self.process = lane.popen(*args, stdin=slave, stdout=slave, stderr=slave, preexec_fn=sit)

    def size(self, rows, columns):
        fcntl.ioctl(self.master, termios.TIOCSWINSZ, struct.pack("4H", rows, columns, 0, 0))

    def type(self, text):
        os.write(self.master, text if isinstance(text, bytes) else text.encode())

    def see(self, text, seconds=10.0):
        """Read until `text` has appeared; returns all that came before it and takes it off."""
        wanted = text if isinstance(text, bytes) else text.encode()
        deadline = time.monotonic() + seconds
        while wanted not in self.output:
            left = deadline - time.monotonic()
            assert left > 0, f"{wanted!r} does not appear in {self.output!r}"
            self._read(left)
        found, _, self.output = self.output.partition(wanted)
        return found.decode(errors="replace")

    def _read(self, seconds):
        if select.select([self.master], [], [], min(seconds, 0.2))[0]:
            with contextlib.suppress(OSError):  # EIO between two users of the terminal
                self.output += os.read(self.master, 65536)

    @property
    def is_restored(self):
        return termios.tcgetattr(self.slave) == self.before

    def end(self, seconds=20.0):
        """Wait for the command's end, reading on; returns its exit code."""
        deadline = time.monotonic() + seconds
        while self.process.poll() is None:
            assert time.monotonic() < deadline, f"it does not end: {self.output!r}"
            self._read(0.05)
        self._read(0.05)
        return self.process.returncode

    def __enter__(self):
        return self

    def __exit__(self, *_):
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGKILL)
        self.process.wait()
        os.close(self.master)
        os.close(self.slave)


def finish(process, seconds=20.0):
    """Wait for a started command; returns (exit code, output, errors)."""
    try:
        out, err = process.communicate(timeout=seconds)
    except subprocess.TimeoutExpired:
        process.send_signal(signal.SIGKILL)
        raise
    return process.returncode, out, err
