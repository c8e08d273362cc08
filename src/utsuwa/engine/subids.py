"""Which ids an ordinary user may have in a user namespace, and writing them there. subuid(5), subgid(5), user_namespaces(7).

Inside, 0 is the user and 1 … N the first subordinate range. Where the user has none, 0 is all there is ("single id").
Left out: ranges of a network directory (nsswitch's `subid`), which only newuidmap itself can see.
"""

from __future__ import annotations

import os

from utsuwa.errors import DependencyMissing, PermissionDenied
from utsuwa.kernel import files, userns
from utsuwa.ledger import because

TYPE_CHECKING = False
if TYPE_CHECKING:
    Range = tuple[int, int]  # first id outside, count
    Ranges = tuple[Range, Range]  # user ids, group ids

SUBUID, SUBGID = "/etc/subuid", "/etc/subgid"
MOST = 0x7FFFFFFE
"""Ids end at 2^31 - 1 in the engine (attacks.md, B), and 0 is the user's own."""
HELPER_PATH = "/usr/bin:/usr/sbin:/bin:/sbin:/usr/local/bin"


def first_range(text: str, name: str, uid: int) -> Range | None:
    """Return the first range of `text` (lines `NAME-OR-UID:FIRST:COUNT`) that belongs to the user. Malformed lines are passed over, as shadow does."""
    for line in text.splitlines():
        words = line.strip().split(":")
        if len(words) != 3 or words[0] not in (name or str(uid), str(uid)):
            continue
        if not (words[1].isascii() and words[1].isdigit() and words[2].isascii() and words[2].isdigit()):
            continue
        first, count = int(words[1]), int(words[2])
        if first > 0 and count > 0 and first + count <= 1 << 32:
            return first, min(count, MOST)
    return None


def of_user(uid: int) -> Ranges | None:
    """Return the user's subordinate user and group ids; None where either is missing."""
    name = user_name(uid)
    users, groups = (first_range(_read(path), name, uid) for path in (SUBUID, SUBGID))
    return (users, groups) if users and groups else None


def user_name(uid: int) -> str:
    """Return the login name, "" where the host knows none."""
    import pwd

    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return ""


def _read(path: str) -> str:
    try:
        with open(path, encoding="utf-8", errors="replace") as file:
            return file.read()
    except OSError:
        return ""


def write_maps(pid: int, uid: int, gid: int, ranges: Ranges) -> None:
    """Map ids into the user namespace of `pid` with newuidmap and newgidmap. Raises DependencyMissing, PermissionDenied."""
    for tool, own, (first, count) in (("newuidmap", uid, ranges[0]), ("newgidmap", gid, ranges[1])):
        path = find_helper(tool)
        with because(f"inside, 0 is the user and 1 to {count} are subordinate ids; only a privileged helper may map those", f"user_namespaces(7), {tool}(1)", 1):
            status, text = userns.spawn_and_wait([path, str(pid), "0", str(own), "1", "1", str(first), str(count)])
        if status:
            raise PermissionDenied(f"cannot map the subordinate ids of user {uid}: {_reason(path, text or f'{tool} ended with status {status}')}")


def write_single(uid: int, gid: int) -> None:
    """Map 0 to the user alone, in the user namespace of the caller. Raises OSError."""
    with because("the user has no subordinate ids: 0 inside is the user, and nobody else exists", "user_namespaces(7), uid_map", 1):
        # Without a helper the kernel wants setgroups off first: a group that takes rights away could be dropped. CVE-2014-8989
        files.write_file("/proc/self/setgroups", "deny")
        files.write_file("/proc/self/uid_map", f"0 {uid} 1")
        files.write_file("/proc/self/gid_map", f"0 {gid} 1")


def find_helper(tool: str) -> str:
    """Return the path of newuidmap or newgidmap. Raises DependencyMissing naming the package."""
    for directory in f"{os.environ.get('PATH', '')}:{HELPER_PATH}".split(":"):
        path = f"{directory}/{tool}"
        if directory.startswith("/") and os.access(path, os.X_OK):
            return path
    raise DependencyMissing(f"cannot map the subordinate ids of this user: {tool} is not installed; install the package uidmap")


def _reason(path: str, text: str) -> str:
    """Say why the helper was refused, where it can be known."""
    last = text.splitlines()[-1]
    if "NoNewPrivs:\t1" in _read("/proc/self/status"):
        return f"{last}; this process has no_new_privs set, so {path} cannot gain the privilege it needs: start utsuwa from a plain session"
    if not os.stat(path).st_mode & 0o4000 and not _has_capabilities(path):
        return f"{last}; {path} is neither set-user-id nor has file capabilities: reinstall the package uidmap"
    return f"{last}; check the lines of this user in {SUBUID} and {SUBGID}"


def _has_capabilities(path: str) -> bool:
    try:
        return bool(os.getxattr(path, "security.capability"))
    except OSError:
        return False
