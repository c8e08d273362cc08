"""What a test session makes outside the checkout: a directory, a venv with a wheel of the checkout, an ordinary user.

Everything hangs on one directory, /var/tmp/utsuwa-test-XXXXXX, whose `lock` the session holds as long as it lives. A session that was
killed has let go of its lock: the next one finds the directory, and the user whose comment names it, and removes both.
"""

import contextlib
import fcntl
import marshal
import os
import pwd
import secrets
import signal
import sqlite3
import subprocess
import sys
import tempfile
import time
from collections.abc import Collection, Iterator

from support import leaks

CHECKOUT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
PREFIX = "utsuwa-test-"
PARENTS = ("/var/tmp", "/opt")
"""Where the session's directory may lie: persistent file systems (an overlay's upper layer), open to other users."""


def tool(*argv: str, **options) -> subprocess.CompletedProcess:
    """Run a program of the house; its failure is a failure of the session, with what it said."""
    done = subprocess.run(argv, capture_output=True, text=True, stdin=subprocess.DEVNULL, **options)
    if done.returncode:
        raise RuntimeError(f"{' '.join(argv)}: exit code {done.returncode}\n{done.stdout}{done.stderr}")
    return done


class House:
    """The session's directory. `close` removes all that is in it, and every process that still works in it."""

    def __init__(self) -> None:
        with open_directory(_parent()) as parent:
            fcntl.flock(parent, fcntl.LOCK_EX)  # one at a time: a directory whose lock is not taken yet would look dead to another session
            sweep()
            self.path = tempfile.mkdtemp(prefix=PREFIX, dir=_parent())
            os.chmod(self.path, 0o755)  # noqa: S103 - the other lane's user passes through
            self._lock = os.open(self.path + "/lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            fcntl.flock(self._lock, fcntl.LOCK_EX)

    def close(self) -> None:
        remove(self.path)
        os.close(self._lock)


@contextlib.contextmanager
def open_directory(path: str) -> Iterator[int]:
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        yield fd
    finally:
        os.close(fd)


def _parent() -> str:
    """Return the first directory where scripts may be executed and that everybody may enter."""
    for path in PARENTS:
        if os.access(path, os.W_OK) and os.stat(path).st_mode & 0o005 and not os.statvfs(path).f_flag & os.ST_NOEXEC:
            return path
    raise RuntimeError(f"none of {', '.join(PARENTS)} can hold a program that another user runs: is each mounted noexec or closed?")


def sweep() -> None:
    """Remove what this user's killed sessions left: users first, since their processes hold the directories."""
    for entry in pwd.getpwall() if os.geteuid() == 0 else ():
        if os.path.basename(entry.pw_gecos).startswith(PREFIX) and _is_dead(entry.pw_gecos):
            remove_user(entry.pw_name)
    for parent in PARENTS:
        for name in os.listdir(parent) if os.path.isdir(parent) else ():
            if name.startswith(PREFIX) and os.stat(f"{parent}/{name}").st_uid == os.geteuid() and _is_dead(f"{parent}/{name}"):
                remove(f"{parent}/{name}")


def others(mine: str) -> list[str]:
    """Return the directories of other sessions that are alive; `mine` is this one's, or ""."""
    paths = [f"{parent}/{name}" for parent in PARENTS if os.path.isdir(parent) for name in os.listdir(parent) if name.startswith(PREFIX)]
    return [path for path in paths if path != mine and not _is_dead(path)]


def _is_dead(path: str) -> bool:
    try:
        lock = os.open(path + "/lock", os.O_RDWR | os.O_CLOEXEC)
    except FileNotFoundError:
        return True
    except PermissionError:  # another user's
        return False
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    finally:
        os.close(lock)
    return True


def remove(path: str) -> None:
    """Kill who works beneath `path`, unmount what is mounted beneath it, remove it."""
    kill(leaks.workers(path))
    for mount in reversed(leaks.mount_points()):
        if mount.startswith(path + "/"):
            subprocess.run(["umount", "--lazy", mount], check=False)
    remove_networks(path)
    # rm does not follow links and, told so, does not enter another file system.
    subprocess.run(["rm", "-rf", "--one-file-system", path], check=False)


def remove_networks(path: str) -> None:
    """Remove the bridges that engines beneath `path` made, and what nftables knows of them: no command does yet."""
    from utsuwa.network import firewall
    from utsuwa.spec.network import NetworkRecord

    for directory, _, names in os.walk(path + "/lane"):
        if "state.db" not in names or os.geteuid() != 0:
            continue
        with contextlib.closing(sqlite3.connect(f"file:{directory}/state.db?mode=ro", uri=True)) as database:
            rows = database.execute("SELECT record FROM network").fetchall()
        for (record,) in rows:
            network = NetworkRecord(*marshal.loads(record))
            with contextlib.suppress(OSError):  # gone already, which an interval set calls EINVAL
                firewall.remove(network)
            subprocess.run(["ip", "link", "delete", network.link], check=False, stderr=subprocess.DEVNULL)


def kill(pids: Collection[int]) -> None:
    """SIGKILL each and wait until it is gone."""
    for pid in pids:
        try:
            os.kill(pid, signal.SIGKILL)
        except ProcessLookupError:
            continue
    deadline = time.monotonic() + 5
    while any(leaks.is_alive(pid) for pid in pids) and time.monotonic() < deadline:
        time.sleep(0.01)


# ---- the ordinary user


def make_user(house: str) -> pwd.struct_passwd:
    """Add a user of a made-up name with subordinate ids; its comment names the session's directory, so that a sweep knows it."""
    name = "utsuwa-" + secrets.token_hex(3)
    for attempt in range(20):
        try:
            tool("useradd", "--comment", house, "--no-create-home", "--home-dir", house + "/lane/rootless", "--shell", "/bin/sh", name)
            break
        except RuntimeError as error:
            if "cannot lock" not in str(error) or attempt == 19:  # somebody else is adding a user just now
                raise
            time.sleep(0.1)
    for path, option in (("/etc/subuid", "--add-subuids"), ("/etc/subgid", "--add-subgids")):
        if not any(owner == name for owner, _, _ in sub_ids(path)):  # Debian's useradd adds them when the file is there
            first = max([100000, *(start + count for _, start, count in sub_ids(path))])
            tool("usermod", option, f"{first}-{first + 65535}", name)
    return pwd.getpwnam(name)


def sub_ids(path: str) -> list[tuple[str, int, int]]:
    """Return (user, first, count) of each range in /etc/subuid or /etc/subgid. subuid(5)."""
    try:
        with open(path) as file:
            fields = [line.strip().split(":") for line in file if line.count(":") == 2]
    except FileNotFoundError:
        return []
    return [(name, int(start), int(count)) for name, start, count in fields]


def remove_user(name: str) -> None:
    """Kill what runs under the user's ids, its subordinate ones too, and remove the user with them. Idempotent."""
    try:
        uid = pwd.getpwnam(name).pw_uid
    except KeyError:
        return
    ranges = [range(start, start + count) for owner, start, count in sub_ids("/etc/subuid") if owner == name]
    kill({pid for pid in leaks.pids() if (owner := leaks.owner(pid)) == uid or any(owner in ids for ids in ranges)})
    tool("userdel", "--force", name)


# ---- the installation


def install(house: str) -> str:
    """Build a wheel of the checkout, install it into a venv in `house` that everybody can read; return the venv's path."""
    python, venv = _base_python(), house + "/venv"
    pip = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check"]
    tool(*pip, "wheel", "--no-deps", "--no-build-isolation", "--wheel-dir", house + "/wheel", CHECKOUT, umask=0o022)
    [wheel] = os.listdir(house + "/wheel")
    tool(python, "-m", "venv", "--without-pip", venv, umask=0o022)
    # The checkout's pip installs into the new venv (pip >= 22.3): that saves installing a pip, and there is no setuptools to slow each start.
    tool(*pip, "--python", venv + "/bin/python", "install", "--root-user-action", "ignore", f"{house}/wheel/{wheel}", umask=0o022)
    return venv


def _base_python() -> str:
    """Return an interpreter that everybody can execute: ours when it is one, else Debian's."""
    base = os.path.realpath(sys._base_executable)
    return base if os.geteuid() != 0 or base.startswith("/usr/") else "/usr/bin/python3"
