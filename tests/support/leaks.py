"""What the engine could leave behind, as sets of words: a snapshot before and after, and the difference is named.

Left out on purpose, because they stay by design: the group `utsuwa` at the top of each cgroup hierarchy, with nothing but its `monitors`, bridges and what nftables knows
of them, pulled images, and the rootless holder.
"""

import json
import os
import re
import subprocess
import time

BRIDGE = re.compile(r"utsuwa\d+")
CGROUP, MONITORS = "utsuwa", "monitors"
HOLDER = "utsuwa-holder"
"""Word in the arguments of the rootless holder, one for each user, which outlives its commands."""
NFT = "/usr/sbin/nft"
SETTLE_SECONDS = 5.0
"""How long a clean-up that outlives its command may take before what it still holds counts as left."""

Snapshot = dict[str, frozenset[str]]


class Watch:
    """Where to look. `states` hold ROOT and RUNROOT of engines, engines work beneath `places`, `ids` are user ids whose
    processes are all ours, `house` is the session's directory once it is there."""

    def __init__(self, states: list[str], places: list[str], ids: list[range]) -> None:
        self.states, self.places, self.ids, self.house = states, places, ids, ""

    def snapshot(self) -> Snapshot:
        return {
            "mount": frozenset(_mounts()),
            "link": frozenset(name for name in os.listdir("/sys/class/net") if not BRIDGE.fullmatch(name)),
            "nft": frozenset(_nft()),
            "cgroup": frozenset(_cgroups()),
            "process": frozenset(text for text in self._processes().values() if HOLDER not in text),
            "state": frozenset(path for state in self.states for path in _state(state)),
        }

    def _processes(self) -> dict[int, str]:
        found = {pid: describe(pid) for pid in pids() if any(owner(pid) in ids for ids in self.ids) and is_alive(pid)}
        for place in self.places:
            found |= engines(place)
        return found

    def settle(self, before: Snapshot, alone: bool) -> list[str]:
        """Return what differs from `before` once clean-ups under way have had their time; unless `alone`, of this session's own things only."""
        deadline = time.monotonic() + SETTLE_SECONDS
        while True:
            lines = [line for line in difference(before, self.snapshot()) if alone or line.split()[1] not in SHARED]
            if not lines or time.monotonic() > deadline:
                return lines
            time.sleep(0.05)


SHARED = ("mount", "link", "nft", "cgroup")
"""Kinds that belong to the whole machine: while another test session runs, a difference there says nothing about this one."""


def difference(before: Snapshot, after: Snapshot) -> list[str]:
    """Return a line for each thing that is there after and was not before, or that is gone though it was not the module's."""
    lines = [f"left: {kind} {name}" for kind in before for name in sorted(after[kind] - before[kind])]
    return lines + [f"gone: {kind} {name}" for kind in ("mount", "link", "nft") for name in sorted(before[kind] - after[kind])]


def mount_points() -> list[str]:
    with open("/proc/self/mountinfo") as file:
        return [line.split()[4].encode().decode("unicode_escape") for line in file]


def _mounts() -> list[str]:
    with open("/proc/self/mountinfo") as file:
        rows = [line.split() for line in file]
    return [f"{row[4]} ({row[row.index('-') + 1]}, id {row[0]})" for row in rows]


def _cgroups() -> list[str]:
    found = []
    tops = ["/sys/fs/cgroup", *(entry.path for entry in os.scandir("/sys/fs/cgroup") if entry.is_dir(follow_symlinks=False))]
    for top in tops:
        for entry in os.scandir(top):
            if entry.name.startswith(CGROUP) and entry.is_dir(follow_symlinks=False):
                inner = [path for path, _, _ in os.walk(entry.path)]
                found += [path for path in inner[1:] if path != f"{entry.path}/{MONITORS}"] if entry.name == CGROUP else inner
    return found


def _nft() -> list[str]:
    """Return rules, and elements of sets and maps. Of utsuwa's own tables the published ports alone: the rest is there as long as a bridge is."""
    if os.geteuid() != 0 or not os.path.exists(NFT):
        return []
    done = subprocess.run([NFT, "-j", "list", "ruleset"], capture_output=True, text=True, check=True)
    words = []
    for item in json.loads(done.stdout)["nftables"]:
        (kind, body), = item.items()
        ours = str(body.get("table" if kind != "table" else "name", "")).startswith("utsuwa")
        if kind == "metainfo" or (ours and not body.get("name", "").startswith("ports")):
            continue
        words += [f"{body['family']} {body['table']} {body['name']} {json.dumps(element)}" for element in body.pop("elem", [])]
        if not ours and "utsuwa" not in json.dumps(body):  # the rule that lets a bridge pass a foreign FORWARD stays with the bridge
            words.append(f"{kind} {_without_counters(body)}")
    return words


def _without_counters(body: dict) -> str:
    body.pop("handle", None)
    if "expr" in body:
        body["expr"] = [{"counter": None} if "counter" in part else part for part in body["expr"]]
    return json.dumps(body)


def _state(place: str) -> list[str]:
    """Return what engines beneath `place` know of containers, and what they were in the middle of writing."""
    found = []
    for path, names, _ in os.walk(place):
        kind = os.path.basename(path)
        if kind in ("containers", "netns", "trash"):
            found += [f"{path}/{name}" for name in os.listdir(path)]
            names.clear()
        elif kind in ("layers", "blobs"):
            found += [f"{path}/{name}" for name in os.listdir(path) if name.startswith(".tmp-")]
            names.clear()
    return found


# ---- processes


def pids() -> list[int]:
    return [int(name) for name in os.listdir("/proc") if name.isdigit()]


def is_alive(pid: int) -> bool:
    """A zombie is dead: somebody else reaps it."""
    try:
        with open(f"/proc/{pid}/stat") as file:
            return file.read().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False


def owner(pid: int) -> int:
    try:
        return os.stat(f"/proc/{pid}").st_uid
    except OSError:
        return -1


def describe(pid: int) -> str:
    return f"{pid} {_read(f'/proc/{pid}/cmdline').replace(bytes(1), b' ').decode(errors='replace').strip()}"


def engines(place: str) -> dict[int, str]:
    """Return {pid: description} of commands and monitors whose state lies beneath `place`: by UTSUWA_ROOT, or the container's lock held open."""
    found = {}
    for pid in pids():
        environ = _read(f"/proc/{pid}/environ")
        at_work = any(f"{name}={place}/".encode() in environ for name in ("UTSUWA_ROOT", "UTSUWA_RUNROOT"))
        if pid != os.getpid() and (at_work or any("/containers/" in path for path in _open_files(pid, place))) and is_alive(pid):
            found[pid] = describe(pid)
    return found


def workers(place: str) -> list[int]:
    """Return pids of every process that works beneath `place`: by environment, arguments, or an open file."""
    needle = place.encode() + b"/"
    return [
        pid for pid in pids()
        if pid != os.getpid() and (needle in _read(f"/proc/{pid}/environ") or needle in _read(f"/proc/{pid}/cmdline") or _open_files(pid, place))
    ]


def _read(path: str) -> bytes:
    try:
        with open(path, "rb") as file:
            return file.read()
    except OSError:
        return b""


def _open_files(pid: int, place: str) -> list[str]:
    try:
        paths = [os.readlink(f"/proc/{pid}/fd/{fd}") for fd in os.listdir(f"/proc/{pid}/fd")]
    except OSError:  # it has ended, or is not ours to look at
        return []
    return [path for path in paths if path.startswith(place + "/")]
