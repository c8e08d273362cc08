"""A state tree of its own in which commands are killed, and an independent look at what is left of them.

`Ground` knows nothing of how the engine cleans up: it looks at the kernel, at files and at rows itself. The points to strike at come from the
ledger of a clean run.
"""

import contextlib
import json
import marshal
import os
import re
import socket
import sqlite3
import subprocess
import threading
from collections import Counter
from queue import Empty, SimpleQueue
from typing import NamedTuple

from support import leaks
from support.containers import eventually
from support.lanes import Lane

QUIET_SECONDS = 20.0
KILLED = -9
TABLES = {"container": "id, name, phase, pid", "container_layer": "*", "sandbox": "*", "lease": "*", "port": "*", "volume": "name"}
tried: list[str] = []
"""What each walk tried, for the session's summary."""
LAUNCH = ("reserve", "make_sandbox", "make_directories", "make_groups", "create", "start", "leave")
REMOVAL = ("remove:files", "remove:rows")
"""Points that are steps of the engine and no calls: `ledger.fault(` in engine/."""
HANDED_OVER = ("start", "leave")
"""Steps at which the monitor has the container: it cleans up by itself when its caller dies."""


class Point(NamedTuple):
    """Where to strike: the `number`th `call` of `who`, of which a clean run makes `most`."""

    who: str
    call: str
    number: int

    def __str__(self):
        return f"{self.who}:{self.call}#{self.number}"


class Line(NamedTuple):
    """One line of a ledger."""

    who: str
    call: str
    text: str


class Ground:
    """One engine's state beneath a lane's home, with an image in it. `name` and `port` are what each run asks for, so that what is left of one is in the next one's way."""

    def __init__(self, lane, word, image, network):
        venv = os.path.dirname(os.path.dirname(lane.program))
        self.lane = Lane(lane.name, f"{lane.home}/{word}", venv, lane.uid, lane.gid)
        self.image, self.network, self.name, self.port = image, network, f"struck-{word}", free_port()
        self.ids: set[str] = set()
        self.lane("pull", "--quiet", image, check=True)

    # ---- commands

    def arguments(self, *options):
        publish = () if self.network == "none" else ("-p", f"{self.port}:80")
        return ("run", "--rm", "--name", self.name, "--network", self.network, *publish, *options, self.image)

    def run(self, *command, fault="", options=("-d",)):
        """The command that is struck: its monitors are known by their environment."""
        env = {"UTSUWA_MODULES": self.lane.root + "/modules", **({"UTSUWA_FAULT": fault} if fault else {})}
        return self.lane(*self.arguments(*options), *(command or ("true",)), env=env)

    def next(self):
        """What comes after: the same name and port, in the foreground. Then a look by the engine itself. Returns what is wrong."""
        found = []
        for result in (self.lane(*self.arguments(), "echo", "works"), self.lane("system", "check")):
            if (result.code, result.out) not in ((0, "works\n"), (0, "")):
                found.append(f"afterwards: {result}")
        return found

    # ---- looking

    def workers(self):
        """Processes of ours, monitors and clean-ups among them; init too, until it is the container's program."""
        needle = self.lane.home.encode() + b"/"
        return [pid for pid in leaks.pids() if needle in leaks._read(f"/proc/{pid}/environ") and leaks.HOLDER not in leaks.describe(pid) and leaks.is_alive(pid)]

    def quiet(self):
        """Wait until what outlives a killed command has done its work: seen twice, since a monitor that becomes the clean-up has no environment for a moment."""
        looks: list[bool] = []
        eventually(lambda: looks.append(not self.workers()) or looks[-2:] == [True, True], QUIET_SECONDS)

    def rows(self, sql):
        with contextlib.closing(sqlite3.connect(f"file:{self.lane.root}/state.db?mode=ro", uri=True)) as database:
            return database.execute(sql).fetchall()

    def containers(self):
        return [row[0] for row in self.rows("SELECT id FROM container")]

    def seen(self):
        """Ids of every container that has got as far as a ledger."""
        now = {name.removesuffix(".jsonl") for name in os.listdir(self.lane.root + "/ledgers")} | set(os.listdir(self.lane.root + "/containers"))
        self.ids |= now
        return now

    def lines(self, container):
        """The ledger of a container, whether it is there or gone; a killed writer's last line may be torn."""
        for path in (f"{self.lane.root}/ledgers/{container}.jsonl", f"{self.lane.root}/containers/{container}/ledger.jsonl"):
            if os.path.exists(path):
                with open(path) as file:
                    known = [json.loads(line) for line in file if line.endswith("\n")]
                return [Line(each["who"], each["call"], f"{each['seq']}") for each in known]
        return []

    def left(self):
        """Everything of a container that is anywhere, one line each."""
        self.seen()
        root, run = self.lane.root, self.lane.run
        found = [f"row {table} {row}" for table, columns in TABLES.items() for row in self.rows(f"SELECT {columns} FROM {table}")]  # noqa: S608 - the engine's tables
        found += [f"file {base}/{name}" for base in (root + "/containers", root + "/trash", root + "/volumes", run + "/containers", run + "/netns", run + "/locks") for name in os.listdir(base)]
        found += [f"file {base}/{name}" for base in (root + "/layers", root, run, run + "/networks") for name in os.listdir(base) if ".tmp" in name or ".new" in name]
        found += [f"mount {point}" for point in leaks.mount_points() if point.startswith(self.lane.home + "/")]
        found += [f"process {leaks.describe(pid)}" for pid in [*self.workers(), *self.monitors()]]
        found += [f"cgroup {path}" for path in leaks._cgroups() if path.rpartition("/")[2] in self.ids]
        return found + (self._left_of_networks() if self.network == "bridge" else [])

    def monitors(self):
        """Processes that hold a container's lock: a look at every descriptor there is."""
        return [pid for pid in leaks.pids() if pid != os.getpid() and any("/containers/" in path for path in leaks._open_files(pid, self.lane.home))]

    def unmake_network(self):
        """Take the bridge away and what nftables knows of it, as a reboot does; the database keeps its record."""
        from utsuwa.network import bridge
        from utsuwa.spec.network import NetworkRecord

        for (record,) in self.rows("SELECT record FROM network"):
            bridge.remove(NetworkRecord(*marshal.loads(record)), self.lane.run)

    def _left_of_networks(self):
        short = {container[:12] for container in self.ids}
        found = [f"link {name}" for name in os.listdir("/sys/class/net") if name.removeprefix("uts") in short]
        listed = subprocess.run([leaks.NFT, "list", "table", "ip", "utsuwa"], capture_output=True, text=True)
        return found + [f"nft {line.strip()}" for line in listed.stdout.splitlines() if f" . {self.port} " in line or any(each in line for each in short)]

    # ---- the points

    def record(self, *command, options=("-d",)):
        """Points of every line of a clean run, and of its removal, which is the cleanup's where the run is detached."""
        before = self.seen()
        done = self.run(*command, options=options)
        assert done.code == 0, done
        self.quiet()
        [container] = self.seen() - before
        return points(self.lines(container))


def free_port():
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return sock.getsockname()[1]


def points(lines):
    """Number the calls of each who. Where the engine's lines begin again at 1, another process goes on: the cleanup."""
    counts: Counter[tuple[str, str]] = Counter()
    found, last, second = [], 0, False
    for who, call, seq in lines:
        if who == "engine":
            second, last = second or int(seq) <= last, int(seq)
        name = "cleanup" if who == "engine" and second else who
        counts[name, call] += 1
        found.append(Point(name, call, counts[name, call]))
    return found


def steps(who, names):
    return [Point(who, name, 1) for name in names]


def struck(ground, point, result, new):
    """Say so if a kill did not happen: a walk must not pass without killing anything."""
    if point.who == "engine":
        return [] if result.code == KILLED else [f"the engine was not killed: {result}"]
    if point.who == "cleanup":
        return [] if result.code == 0 and ground.containers() else [f"the clean-up was not killed: {result}"]
    if len(new) != 1:
        return [f"one ledger was expected: {new}"]
    calls = sum((line.who, line.call) == (point.who, point.call) for line in ground.lines(*new))
    if calls != point.number - 1:
        return [f"{calls} calls were made, {point.number - 1} expected before the kill: {result}"]
    return []


def fail(ground, point, excused):
    """Let that call fail with EIO: one clear line, and everything is undone at once. `excused` maps (who, call) to other exit codes, and why."""
    result = ground.run(fault=f"{point}=EIO")
    ground.quiet()
    found = [f"left at once: {line}" for line in ground.left()]
    codes, _ = excused.get((point.who, point.call), ((125,), ""))
    clear = result.err == "" if result.code == 0 else re.fullmatch(r"utsuwa: (?!internal).*input/output error.*\n", result.err, re.IGNORECASE)
    if result.code not in codes or not clear or (result.code and result.out):
        found.append(f"exit code {codes} and one clear line were expected: {result}")
    return found + ground.next() + ground.left()


def strike(ground, point, options=("-d",)):
    """Kill there, run the next command, look. Returns what is wrong."""
    before = ground.seen()
    result = ground.run(fault=f"{point}=kill", options=options)
    ground.quiet()
    found = struck(ground, point, result, ground.seen() - before)
    if result.code == 125 or (point.who == "engine" and (point.call in HANDED_OVER or not options)):  # the caller lived and undid it, or the monitor took over
        found += [f"left at once: {line}" for line in ground.left()]
    found += ground.next() + ground.left()
    if found:
        ground.lane("rm", "--force", ground.name)
        ground.lane("system", "check", "--repair")
    return found


def walk(grounds, places, act):
    """Do `act(ground, point)` at every place, one ground a thread. Returns {point: what is wrong}; gives up after a dozen."""
    queue, wrong = SimpleQueue(), {}
    for place in places:
        queue.put(place)

    def work(ground):
        with contextlib.suppress(Empty):
            while len(wrong) < 12:
                place = queue.get_nowait()
                try:
                    found = act(ground, place)
                except Exception as error:  # noqa: BLE001 - told with its place
                    found = [repr(error)]
                if found:
                    wrong[str(place)] = found

    workers = [threading.Thread(target=work, args=(ground,)) for ground in grounds]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    return wrong


def told(wrong):
    return "\n".join(f"{place}:\n    " + "\n    ".join(found) for place, found in wrong.items())
