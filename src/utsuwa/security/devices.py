"""Device nodes of a container's /dev, and which devices its cgroup lets it open. OCI runtime-spec, default devices.

Plain OCI objects; runtime/ makes the nodes, and container/ enforces the rules (a v1 devices group, or an eBPF program on v2).
"""

from __future__ import annotations

DEFAULT: tuple[tuple[str, int, int], ...] = (  # path, major, minor: all character devices, mode 0666
    ("/dev/null", 1, 3), ("/dev/zero", 1, 5), ("/dev/full", 1, 7), ("/dev/random", 1, 8), ("/dev/urandom", 1, 9), ("/dev/tty", 5, 0),
)

_ALLOWED: tuple[tuple[str, int | None, int | None, str], ...] = (
    ("c", None, None, "m"),    # making a node is harmless: opening it is what is refused
    ("b", None, None, "m"),
    ("c", 1, 3, "rwm"), ("c", 1, 5, "rwm"), ("c", 1, 7, "rwm"), ("c", 1, 8, "rwm"), ("c", 1, 9, "rwm"),
    ("c", 5, 0, "rwm"),        # tty
    ("c", 5, 1, "rwm"),        # console
    ("c", 136, None, "rwm"),   # the container's ptys
    ("c", 5, 2, "rwm"),        # ptmx
)


def nodes() -> list[dict[str, object]]:
    """Return the default nodes as OCI `linux.devices` objects. /dev/console is not among them: it is the container's pty, bound."""
    return [{"path": path, "type": "c", "major": major, "minor": minor, "fileMode": 0o666, "uid": 0, "gid": 0} for path, major, minor in DEFAULT]


def rules(privileged: bool = False) -> list[dict[str, object]]:
    """Return OCI `linux.resources.devices`: everything refused, then the default devices allowed; with `privileged` everything allowed.

    The order counts: the last rule that fits decides.
    """
    if privileged:
        return [{"allow": True, "access": "rwm"}]
    found: list[dict[str, object]] = [{"allow": False, "access": "rwm"}]
    for kind, major, minor, access in _ALLOWED:
        rule: dict[str, object] = {"allow": True, "type": kind, "access": access}
        if major is not None:
            rule["major"] = major
        if minor is not None:
            rule["minor"] = minor
        found.append(rule)
    return found
