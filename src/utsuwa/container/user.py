"""Who a container's process is: `-u` and the image's USER, by the container's own /etc/passwd and /etc/group. passwd(5), group(5).

Text of the files is given; no name service is ever asked (it would load libraries of the container, CVE-2019-14271).
"""

from __future__ import annotations

from utsuwa.errors import UsageError

MAX_ID = 2**31 - 1
SHOWN = 80
"""Characters of a user's name that an error repeats."""


class User:
    """`uid`, `gid`, `groups` (the primary one first, then the supplementary ones), `home`."""

    __slots__ = ("gid", "groups", "home", "uid")

    def __init__(self, uid: int, gid: int, groups: list[int], home: str) -> None:
        self.uid, self.gid, self.groups, self.home = uid, gid, groups, home


def resolve(text: str, passwd: bytes | None, group: bytes | None) -> User:
    """Return the user that `NAME|UID[:GROUP|GID]` stands for; "" is root. Raises UsageError for a name that is not in the files.

    A number is an id, 0 to 2³¹-1, in ASCII digits (CVE-2024-40635); it is looked up for its group and home as well.
    """
    name, _, group_name = text.partition(":")
    number = _number(name, "uid", text) if name else 0
    entry = _find(passwd, name if number is None else "", number)
    if entry is None:
        if number is None:
            raise UsageError(f"unable to find user {name}: no matching entries in passwd file")
        uid, gid, home, login = number, 0, "/", ""
    else:
        login, uid, gid, home = entry
    rows = list(_groups(group))
    if group_name:
        gid = _group(group_name, rows, text)
        return User(uid, gid, [gid], home)
    supplementary = [row_gid for _, row_gid, members in rows if login and login in members and row_gid != gid]
    return User(uid, gid, [gid, *supplementary], home)


def _number(name: str, kind: str, text: str) -> int | None:
    if not (name.isascii() and name.removeprefix("-").isdigit()):
        return None
    value = _id(name)
    if value is None:
        shown = text if len(text) <= SHOWN else text[:SHOWN] + "…"
        raise UsageError(f"invalid user {shown!r}: {kind} must be 0 to {MAX_ID}")
    return value


def _id(text: str) -> int | None:
    """Return the id that ASCII digits stand for, None where they are none or too large. An image's own files may say anything, at any length."""
    digits = text.lstrip("0") or text[:1]
    if not (digits.isascii() and digits.isdigit()) or len(digits) > len(str(MAX_ID)):
        return None
    return int(digits) if int(digits) <= MAX_ID else None


def _lines(data: bytes | None, fields: int) -> list[list[str]]:
    rows = []
    for line in (data or b"").decode("utf-8", "surrogateescape").split("\n"):  # not splitlines, which takes eight other characters for a line's end
        parts = line.strip().split(":")
        if len(parts) >= fields and not line.startswith("#"):
            rows.append(parts)
    return rows


def _find(passwd: bytes | None, name: str, number: int | None) -> tuple[str, int, int, str] | None:
    for parts in _lines(passwd, 6):
        uid, gid = _id(parts[2]), _id(parts[3])
        if uid is not None and gid is not None and (parts[0] == name if number is None else uid == number):
            return parts[0], uid, gid, parts[5] or "/"
    return None


def _groups(group: bytes | None) -> list[tuple[str, int, list[str]]]:
    rows = [(parts[0], _id(parts[2]), parts[3].split(",")) for parts in _lines(group, 4)]
    return [(name, gid, members) for name, gid, members in rows if gid is not None]


def _group(name: str, rows: list[tuple[str, int, list[str]]], text: str) -> int:
    number = _number(name, "gid", text)
    for row_name, gid, _ in rows:
        if (gid == number) if number is not None else (row_name == name):
            return gid
    if number is None:
        raise UsageError(f"unable to find group {name}: no matching entries in group file")
    return number
