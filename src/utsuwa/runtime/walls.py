"""The last steps before the container's program: who it is and what it may still do. The same for run and exec.

Order, no_new_privs off: bounding set, seccomp, ids, capabilities; loading a filter needs CAP_SYS_ADMIN, so it comes while it is there.
With no_new_privs on: bounding set, ids, capabilities, seccomp last, so that the filter judges as little of ours as possible. seccomp(2).
"""

from __future__ import annotations

import os
import resource

from utsuwa.errors import RuntimeFailure
from utsuwa.kernel import credential
from utsuwa.ledger import because

TYPE_CHECKING = False
if TYPE_CHECKING:
    Process = dict[str, object]


def _groups_are_fixed() -> bool:
    """Whether our user namespace denies setgroups: one that maps a single id, made without a helper. user_namespaces(7), /proc/PID/setgroups"""
    try:
        with open("/proc/self/setgroups", "rb") as file:
            return file.read(4) == b"deny"
    except OSError:
        return False


_groups_fixed = _groups_are_fixed()
"""Looked up in the monitor: after the fork, /proc is the container's."""


def build(process: Process, masks: dict[str, int], filter_program: bytes, filter_text: str, last_capability: int, *, leash: bool = False) -> None:
    """Put every wall up around the calling process. `masks`: bounding, effective, permitted, inheritable, ambient as 64-bit masks.

    `leash` renews PR_SET_PDEATHSIG, which the kernel clears when ids change: for init, whose parent is the monitor.
    Raises RuntimeFailure naming the wall that could not be put up.
    """
    user: dict[str, object] = process.get("user") or {}  # type: ignore[assignment]
    no_new_privs = bool(process.get("noNewPrivileges"))
    try:
        if no_new_privs:
            with because("no program it executes gains privilege: set-user-id and file capabilities are ignored", "prctl(2), PR_SET_NO_NEW_PRIVS", 6):
                credential.prctl(credential.PR_SET_NO_NEW_PRIVS, 1)
        _drop_bounding(masks["bounding"], last_capability)
        if not no_new_privs:
            _load_filter(filter_program, filter_text)
        _become(user, masks, leash)
        if no_new_privs:
            _load_filter(filter_program, filter_text)
    except OSError as error:
        raise RuntimeFailure(f"cannot put up the container's walls: {error.strerror}") from None


def _drop_bounding(keep: int, last_capability: int) -> None:
    with because("the container can never regain a capability outside its set", "capabilities(7), bounding set", 6):
        for number in range(last_capability + 1):
            if not keep >> number & 1:
                credential.prctl(credential.PR_CAPBSET_DROP, number)


def _load_filter(program: bytes, text: str) -> None:
    if not program:
        return
    with because("system calls that containers do not need are refused by the kernel itself", "seccomp(2)", 6):
        credential.seccomp(program, 0, text)


def _become(user: dict[str, object], masks: dict[str, int], leash: bool) -> None:
    uid, gid = int(user.get("uid", 0)), int(user.get("gid", 0))  # type: ignore[call-overload]
    groups: list[int] = user.get("additionalGids") or []  # type: ignore[assignment]
    with because("the program runs as its user, with its groups and no other", "credentials(7)", 6):
        # Keep the permitted set across the change of ids: it is set exactly just below. capabilities(7), "Effect of user ID changes".
        credential.prctl(credential.PR_SET_KEEPCAPS, 1)
        if not _groups_fixed:  # a group gives rights, it takes none: a container without its image's groups can do less
            credential.setgroups(groups)
        credential.setresgid(gid)
        credential.setresuid(uid)
        credential.prctl(credential.PR_SET_KEEPCAPS, 0)
        if leash:
            credential.prctl(credential.PR_SET_PDEATHSIG, 9)
    with because("exactly the capabilities it was given; the inheritable set stays empty", "capabilities(7); CVE-2022-24769", 6):
        credential.capset(masks["effective"], masks["permitted"], masks["inheritable"])
        credential.prctl(credential.PR_CAP_AMBIENT, credential.PR_CAP_AMBIENT_CLEAR_ALL)
        for number in range(64):
            if masks["ambient"] >> number & 1:
                credential.prctl(credential.PR_CAP_AMBIENT, credential.PR_CAP_AMBIENT_RAISE, number)


def set_limits(process: Process) -> None:
    """Apply rlimits and umask. A hard limit above ours is clamped where we may not raise it."""
    limits: list[dict[str, object]] = process.get("rlimits") or []  # type: ignore[assignment]
    for limit in limits:
        number = getattr(resource, str(limit["type"]), None)
        if number is None:
            raise RuntimeFailure(f"cannot set {limit['type']}: this kernel or interpreter does not know it")
        soft, hard = int(limit["soft"]), int(limit["hard"])  # type: ignore[call-overload]
        try:
            resource.setrlimit(number, (_signed(soft), _signed(hard)))
        except (ValueError, OSError):
            _, most = resource.getrlimit(number)
            resource.setrlimit(number, (min(soft, most), min(hard, most)))
    user: dict[str, object] = process.get("user") or {}  # type: ignore[assignment]
    os.umask(int(user.get("umask", 0o022)))  # type: ignore[call-overload]


def _signed(value: int) -> int:
    return -1 if value >= 1 << 63 else value

