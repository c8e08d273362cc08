"""exec: one more process in a running container. Runs in a fork of the monitor; imports nothing.

The middle process joins by the container's pidfd and forks once more, since a pid namespace is entered by children only.
"""

from __future__ import annotations

import os

from utsuwa import ledger
from utsuwa.container import cgroup
from utsuwa.errors import UtsuwaError
from utsuwa.kernel import credential, files, mount, namespace, process
from utsuwa.ledger import because
from utsuwa.runtime import handshake, init, terminal, walls

TYPE_CHECKING = False
if TYPE_CHECKING:
    from socket import socket

    Spec = dict[str, object]


_JOIN = {"pid": namespace.CLONE_NEWPID, "mount": namespace.CLONE_NEWNS, "uts": namespace.CLONE_NEWUTS, "ipc": namespace.CLONE_NEWIPC,
         "network": namespace.CLONE_NEWNET, "cgroup": namespace.CLONE_NEWCGROUP}


def namespaces(config: Spec) -> int:
    """Return the mask of the namespaces that a container has of its own, or joined."""
    flags = 0
    for item in config["linux"]["namespaces"]:  # type: ignore[index]
        flags |= _JOIN[item["type"]]
    return flags


class Entry:
    """What an exec needs: `spec` an OCI `process`, the container's own `bundle` for its walls, `flags` the namespaces to join, `pidfd` of its init."""

    __slots__ = ("book_fd", "directories", "flags", "pidfd", "process", "sock", "stdio", "walls")

    def __init__(self, spec: Spec, bundle: Spec, flags: int, pidfd: int, directories: dict[str, str], stdio: tuple[int, ...], sock: socket, book_fd: int) -> None:
        self.process, self.walls = spec, bundle
        self.flags, self.pidfd, self.directories, self.stdio, self.sock, self.book_fd = flags, pidfd, directories, stdio, sock, book_fd


def _masks(entry: Entry) -> dict[str, int]:
    """Return the capability sets: the container's bounding set, and all of it in force for root alone, as Docker has it."""
    bounding: int = entry.walls["masks"]["bounding"]  # type: ignore[index]
    user: dict[str, int] = entry.process.get("user") or {}  # type: ignore[assignment]
    effective = 0 if user.get("uid") else bounding
    return {"bounding": bounding, "effective": effective, "permitted": effective, "inheritable": 0, "ambient": 0}


def main(entry: Entry) -> None:
    """Join, fork, report the pid, leave. A failure goes up the pipe."""
    ledger.use(ledger.Ledger("init", ledger.to_memory(entry.book_fd)))
    try:
        _join(entry)
    except UtsuwaError as error:
        handshake.send(entry.sock, handshake.FAILED, (type(error).__name__, str(error), error.exit_code))
    except OSError as error:
        handshake.send(entry.sock, handshake.FAILED, ("RuntimeFailure", f"cannot enter the container: {error.strerror}", 125))


def _join(entry: Entry) -> None:
    with because("until the program runs, nobody in the container may look into this process", "CVE-2016-9962", 6):
        credential.prctl(credential.PR_SET_DUMPABLE, 0)
    init.keep_only({*entry.stdio, entry.pidfd, entry.book_fd, entry.sock.fileno()})
    if entry.directories:
        cgroup.enter(entry.directories, born=True)
    with because("see what the container sees: all of its namespaces at once", "setns(2), pidfd", 1):
        namespace.setns(entry.pidfd, entry.flags)
    with because("a pid namespace is entered by children only", "pid_namespaces(7)", 1):
        pid = process.fork("exec", lambda: _inside(entry))
    handshake.send(entry.sock, handshake.PID, pid)


def _inside(entry: Entry) -> None:
    try:
        with because("a session of its own", "setsid(2)", 1):
            process.setsid()
        terminal.reset_signals()
        if entry.process.get("terminal"):
            devpts = files.openat2(mount.AT_FDCWD, "/dev/pts", files.O_PATH | os.O_DIRECTORY, 0, files.RESOLVE_NO_MAGICLINKS)
            master, slave = terminal.open_pair(devpts, entry.process)
            handshake.send(entry.sock, handshake.TTY, None, (master,))
            os.close(master)
            os.close(devpts)
            terminal.take(slave)
        else:
            terminal.use_streams(entry.stdio, entry.process)
        walls.set_limits(entry.process)
        wall = entry.walls
        walls.build(entry.process, _masks(entry), wall["filter"], str(wall["filter_text"]), int(wall["last_capability"]))  # type: ignore[arg-type,call-overload]
        os.close(entry.pidfd)
        init.run_program(entry.process)
    except UtsuwaError as error:
        handshake.send(entry.sock, handshake.FAILED, (type(error).__name__, str(error), error.exit_code))
    except OSError as error:
        handshake.send(entry.sock, handshake.FAILED, ("RuntimeFailure", f"cannot enter the container: {error.strerror}", 125))
