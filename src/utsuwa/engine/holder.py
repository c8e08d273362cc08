"""The rootless holder: one user namespace and one mount namespace per user, that every command joins first of all (design.md, section 2).

    command                                     middle                            holder
      │ record names a living holder? join it, done (0.5 ms)
      │ flock; look again; else through any living monitor; else
      │ fork ─────────────────────────────────────▶ unshare user, mount
      │ ◀──────────────────────────── UNSHARED ──── (without subordinate ids it maps itself)
      │ newuidmap, newgidmap
      │ MAPPED ───────────────────────────────────▶ slave mounts; fork ───────────▶ setsid
      │ ◀─────────────────────────────────────────────────────────── PID(pid) ──── waits
      │ record written
      │ GO ───────────────────────────────────────────────────────────────────────▶ execve: 100 bytes of program that only waits
      │ ◀──────────────────────────────────────────────────────────── end of file (execve happened)
      │ join it

A command killed anywhere leaves nothing: the holder leaves too unless GO came, and a record of a dead process is recognised by pid, start time and boot id.
The holder stays when the last container has gone, as Podman's pause process does; SIGTERM ends it, and the next command makes another.
"""

from __future__ import annotations

import os
import stat

from utsuwa.errors import PermissionDenied, RuntimeFailure
from utsuwa.kernel import credential, namespace, process
from utsuwa.kernel.door import close
from utsuwa.ledger import because

TYPE_CHECKING = False
if TYPE_CHECKING:
    from socket import socket

    from utsuwa.engine.subids import Ranges
    from utsuwa.state.paths import Paths

    Record = tuple[int, int, str]

ROOTLESS = "UTSUWA_ROOTLESS"
"""As in engine/context.py, which is not imported here: it brings the database, and a monitor can be spawned before that is needed."""
RECORD, LOCK = "holder", "holder.lock"
_BOTH = namespace.CLONE_NEWUSER | namespace.CLONE_NEWNS


def enter(paths: Paths) -> None:
    """Join the user's namespaces, made where they are missing, and be 0 in them. First of all, in a process with one thread.

    Sets UTSUWA_ROOTLESS, UTSUWA_ROOT and UTSUWA_RUNROOT: from here on getuid() is 0, and what is started must still find this user's places.
    The supplementary groups stay, so that files the user may read by a group can still be mounted; a container's program drops them.
    Raises PermissionDenied, DependencyMissing, RuntimeFailure.
    """
    uid, gid = os.geteuid(), os.getegid()
    if not _join_recorded(paths):
        _make(paths, uid, gid)
    with because("inside the namespace the user is 0", "user_namespaces(7)", 1):
        credential.setresgid(0)
        credential.setresuid(0)
    os.environ.update({ROOTLESS: str(uid), "UTSUWA_ROOT": paths.root, "UTSUWA_RUNROOT": paths.run})


def _join_recorded(paths: Paths, must: bool = False) -> bool:
    pidfd = recorded(paths)
    if pidfd < 0:
        return False
    try:
        return _join(pidfd, must)
    finally:
        close(pidfd)


def _join(pidfd: int, must: bool) -> bool:
    """Join both namespaces at once, and come back to the current directory. False where that process is gone (a zombie too).

    With `must` any other refusal is an error; without, it is False as well: a holder between its record and its execve may not be looked into yet.
    """
    directory = _current_directory()
    with because("the user's own user and mount namespace, kept by the holder: root's powers in it, and none outside", "setns(2), user_namespaces(7)", 1):
        try:
            namespace.setns(pidfd, _BOTH)
        except OSError as error:
            if must and not isinstance(error, ProcessLookupError):
                raise PermissionDenied(
                    f"cannot join this user's namespaces: {error.strerror}; is this a program with threads, or inside another container? (from Python use utsuwa.Engine)"
                ) from None
            return False
    try:
        os.chdir(directory)  # setns went to the root of the mount namespace
    except OSError as error:
        reason = (error.strerror or "").lower()
        raise RuntimeFailure(f"cannot use the current directory {directory} in this user's namespaces: {reason}; was it mounted after the first command? go elsewhere") from None
    return True


def _current_directory() -> str:
    try:
        return os.getcwd()
    except OSError:  # removed beneath us
        return "/"


# ----------------------------------------------------------------------------------------------------------- the record

def parse(text: str) -> Record | None:
    """Return (pid, start time, boot id) of a record's text, or None where it is not one."""
    words = text.split()
    if len(words) != 3 or not (words[0].isascii() and words[0].isdigit() and words[1].isascii() and words[1].isdigit()):
        return None
    pid, start = int(words[0]), int(words[1])
    return (pid, start, words[2]) if 0 < pid < 1 << 22 and start > 0 else None


def recorded(paths: Paths) -> int:
    """Return a pidfd of the recorded holder, or -1: no record, not ours, another boot's, or its pid is somebody else's by now."""
    record = parse(_read_record(paths.run))
    return -1 if record is None or record[2] != process.boot_id() else _open_process(record[0], record[1])


def _open_process(pid: int, start: int) -> int:
    try:
        pidfd = process.pidfd_open(pid)
    except OSError:
        return -1
    if process.start_time(pid) == start:  # after pidfd_open, which pins the process: no reuse can slip in between
        return pidfd
    close(pidfd)
    return -1


def _read_record(directory: str) -> str:
    """Read RUN/holder, "" where there is none. In the temporary folder somebody else may have made the directory: owner and links are checked."""
    try:
        dirfd = os.open(directory, os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except OSError:
        return ""
    try:
        if os.fstat(dirfd).st_uid != os.geteuid():
            return ""
        fd = os.open(RECORD, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=dirfd)
    except OSError:
        return ""
    finally:
        os.close(dirfd)
    try:
        info = os.fstat(fd)
        ours = stat.S_ISREG(info.st_mode) and info.st_uid == os.geteuid() and not info.st_mode & 0o022
        return os.read(fd, 256).decode("ascii", "replace") if ours else ""
    finally:
        os.close(fd)


def _write_record(directory: str, pid: int) -> None:
    """Replace RUN/holder in one rename. Only under the lock."""
    fd = os.open(f"{directory}/{RECORD}.tmp", os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    try:
        os.write(fd, f"{pid} {process.start_time(pid)} {process.boot_id()}\n".encode())
    finally:
        os.close(fd)
    os.rename(f"{directory}/{RECORD}.tmp", f"{directory}/{RECORD}")


# ------------------------------------------------------------------------------------------------------------ making one

def _make(paths: Paths, uid: int, gid: int) -> None:
    """Under the lock: join what somebody else has made meanwhile, else what a monitor still keeps (and hold that), else new ones."""
    import fcntl

    paths.make()
    try:
        lock = os.open(f"{paths.run}/{LOCK}", os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise PermissionDenied(f"cannot lock {paths.run}/{LOCK}: {(error.strerror or '').lower()}; remove it, or set UTSUWA_RUNROOT") from None
    try:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if _join_recorded(paths, must=True):
            return
        from utsuwa.engine import stand_in

        monitor = stand_in.find(paths, uid)
        if monitor >= 0:
            joined = _join(monitor, must=True)
            close(monitor)
            if joined:
                _start_holder(paths, None)
                return
        _start_new(paths, uid, gid)
        if not _join_recorded(paths, must=True):
            raise RuntimeFailure("cannot make this user's namespaces: their holder was killed before it was ready; try again")
    finally:
        os.close(lock)


def _start_new(paths: Paths, uid: int, gid: int) -> None:
    from utsuwa.engine import subids

    ranges = subids.of_user(uid)
    if ranges is None:
        name = subids.user_name(uid) or str(uid)
        note = (
            f"utsuwa: {name} has no subordinate ids in {subids.SUBUID} and {subids.SUBGID}: files and processes of a container can belong to its root only; "
            f"root can change that with: usermod --add-subuids 100000-165535 --add-subgids 100000-165535 {name}\n"
        )
        os.write(2, note.encode())
    else:
        for tool in ("newuidmap", "newgidmap"):
            subids.find_helper(tool)  # before anything is made
    _start_holder(paths, (uid, gid, ranges))


def _start_holder(paths: Paths, ids: tuple[int, int, Ranges | None] | None) -> None:
    """Start a holder and record it: of new namespaces mapped to `ids`, or with None of those we are in. Returns when it holds them."""
    from utsuwa.engine import pause, subids
    from utsuwa.runtime import handshake

    ours, theirs = handshake.pair()
    with because("a process that does nothing keeps the namespaces alive between commands", "namespaces(7), namespace lifetime", 1):
        middle = process.fork("holder", lambda: pause.middle(ours, theirs, ids))
    theirs.close()
    try:
        if ids is not None:
            _expect(ours, pause.UNSHARED)
            uid, gid, ranges = ids
            if ranges is not None:
                subids.write_maps(middle, uid, gid, ranges)
            handshake.send(ours, pause.MAPPED)
        pid: int = _expect(ours, pause.PID)  # type: ignore[assignment]
        _write_record(paths.run, pid)
        handshake.send(ours, pause.GO)
        while handshake.receive(ours) is not None:  # until execve closes the other end
            continue
    except BrokenPipeError:
        raise RuntimeFailure("cannot make this user's namespaces: their holder was killed before it was ready; try again") from None
    finally:
        ours.close()
        try:
            os.waitpid(middle, 0)
        except ChildProcessError:  # whoever started us ignores SIGCHLD, and so do we
            pass


def _expect(sock: socket, kind: str) -> object:
    from utsuwa.engine import pause
    from utsuwa.runtime import handshake

    message = handshake.receive(sock)
    if message is None:
        raise RuntimeFailure("cannot make this user's namespaces: a process of theirs was killed before they were ready; try again")
    if message[0] == pause.REFUSED:
        reason: tuple[int, str] = message[1]  # type: ignore[assignment]
        raise pause.refusal(*reason)
    if message[0] != kind:
        raise RuntimeFailure(f"cannot make this user's namespaces: {message[0]} came instead of {kind}")
    return message[1]
