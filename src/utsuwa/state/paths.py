"""Where things are kept, and that nobody else can read them (design.md, section 4)."""

from __future__ import annotations

import os
import stat

from utsuwa.errors import PermissionDenied

_LASTING = ("containers", "layers", "blobs", "volumes", "trash", "seccomp", "ledgers")
_PASSING = ("containers", "netns", "networks", "locks")


class Paths:
    """Directories of one engine: `root` lasts, `run` is for this boot. Both 0700 and ours.

    `UTSUWA_ROOT` and `UTSUWA_RUNROOT` move them; that is what tests and a second engine use.
    """

    __slots__ = ("root", "run")

    def __init__(self, root: str = "", run: str = "", uid: int | None = None) -> None:
        uid = os.getuid() if uid is None else uid
        environ = os.environ
        self.root = root or environ.get("UTSUWA_ROOT", "") or _default_root(uid, environ.get("HOME", "/"))
        self.run = run or environ.get("UTSUWA_RUNROOT", "") or _default_run(uid)
        if not (self.root.startswith("/") and self.run.startswith("/")):
            raise PermissionDenied(f"cannot keep state in {self.root} and {self.run}: both must be absolute paths; check UTSUWA_ROOT and UTSUWA_RUNROOT")

    @property
    def database(self) -> str:
        return self.root + "/state.db"

    def container(self, container_id: str) -> str:
        return f"{self.root}/containers/{container_id}"

    def container_run(self, container_id: str) -> str:
        return f"{self.run}/containers/{container_id}"

    def layer(self, chain_id: str) -> str:
        """`chain_id` is 64 hex digits, checked where it came in."""
        return f"{self.root}/layers/{chain_id}/fs"

    def make(self) -> None:
        """Make both trees. Idempotent. Raises PermissionDenied when one belongs to somebody else or others can read it."""
        for base, parts in ((self.root, _LASTING), (self.run, _PASSING)):
            _own(base)
            for part in parts:
                try:
                    os.mkdir(f"{base}/{part}", 0o700)
                except FileExistsError:
                    continue


def _own(path: str) -> None:
    try:
        os.makedirs(path, 0o700, exist_ok=True)
        info = os.lstat(path)
    except OSError as error:
        raise PermissionDenied(f"cannot make the state directory {path}: {(error.strerror or '').lower()}; set UTSUWA_ROOT and UTSUWA_RUNROOT") from None
    if not stat.S_ISDIR(info.st_mode) or info.st_uid not in (os.geteuid(), os.getuid()):
        raise PermissionDenied(f"cannot use {path}: it is not a directory of user {os.geteuid()}; remove it or set UTSUWA_RUNROOT")
    if info.st_mode & 0o077:
        if os.listdir(path) and not os.path.isdir(path + "/containers"):  # one of the machine's own, given by mistake
            raise PermissionDenied(f"cannot use {path}: others can read it, and it holds something else; set UTSUWA_ROOT and UTSUWA_RUNROOT to directories of their own")
        os.chmod(path, 0o700)


def _default_root(uid: int, home: str) -> str:
    return "/var/lib/utsuwa" if uid == 0 else (os.environ.get("XDG_DATA_HOME") or home + "/.local/share") + "/utsuwa"


def _default_run(uid: int) -> str:
    if uid == 0:
        return "/run/utsuwa"
    runtime = os.environ.get("XDG_RUNTIME_DIR", "")
    if runtime and os.access(runtime, os.W_OK):
        return runtime + "/utsuwa"
    return f"{os.environ.get('TMPDIR', '/tmp')}/utsuwa-{uid}"  # noqa: S108 - 0700 and owner are checked in _own
