"""The `host` image inside a user namespace: the machine's own root, one overlay for each of its directories.

As root one overlay over "/" does. In a user namespace the kernel refuses that: what is mounted below "/" is locked there, so that nobody uncovers what lies
beneath (mount_namespaces(7), "Restrictions on mount namespaces"), and a lower directory with a locked mount below it is EINVAL. So the root is a skeleton of empty
directories and links, and every directory that holds no mount point is an overlay of its own. What is itself a mount point stays empty, as it does for root.
Left out: files that lie beside mount points (the top level has none on an ordinary machine), and names that overlay's options cannot spell.
"""

from __future__ import annotations

import os

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable

    Spec = dict[str, object]


def points(mountinfo: str) -> frozenset[str]:
    """Return the mount points that a mountinfo text names, as paths. proc_pid_mountinfo(5)"""
    escaped = (line.split(" ", 5)[4] for line in mountinfo.splitlines() if line)
    return frozenset(os.fsdecode(os.fsencode(path).decode("unicode_escape").encode("latin-1")) for path in escaped)


def parts(mounted: Iterable[str], top: str = "/") -> tuple[list[tuple[str, str, int]], list[str]]:
    """Return (skeleton, overlays): (path, link target or "", mode) of what is made empty, outer first; and the directories that get an overlay each."""
    skeleton: list[tuple[str, str, int]] = []
    overlays: list[str] = []
    try:
        entries = sorted(os.scandir(top), key=lambda entry: entry.name)
    except PermissionError:
        return skeleton, overlays
    for entry in entries:
        if entry.is_symlink():
            skeleton.append((entry.path, os.readlink(entry.path), 0))
        elif entry.is_dir(follow_symlinks=False):
            skeleton.append((entry.path, "", entry.stat(follow_symlinks=False).st_mode & 0o7777))
            if entry.path in mounted or any(c in entry.path for c in ":,\\"):
                continue
            if any(point.startswith(entry.path + "/") for point in mounted):
                inner, more = parts(mounted, entry.path)
                skeleton += inner
                overlays += more
            elif os.access(entry.path, os.R_OK | os.X_OK):  # the host's /root stays empty: beneath an overlay of it not even our own files could be reached
                overlays.append(entry.path)
    return skeleton, overlays


def mounted() -> frozenset[str]:
    """Return the mount points of this process's mount namespace."""
    with open("/proc/self/mountinfo", encoding="utf-8", errors="surrogateescape") as file:
        return points(file.read())


def mounts(overlay: dict[str, object]) -> list[Spec]:
    """Return one OCI mount for each of `overlay`'s parts, none where it has none. They come before every other mount."""
    directory = os.path.dirname(str(overlay["upper"])) + "/parts"
    parts: list[str] = overlay.get("parts") or []  # type: ignore[assignment]
    return [
        {"destination": path, "type": "overlay", "source": "overlay",
         "options": [f"lowerdir={path}", f"upperdir={directory}/{number}/upper", f"workdir={directory}/{number}/work", "userxattr"]}
        for number, path in enumerate(parts)
    ]


def make(overlay: dict[str, object]) -> None:
    """Make the skeleton, and the writable half of every part with the mode of the original. Beneath a directory that exists."""
    skeleton: list[tuple[str, str, int]] = overlay["skeleton"]  # type: ignore[assignment]
    parts: list[str] = overlay["parts"]  # type: ignore[assignment]
    base = str(overlay["lower"][0])  # type: ignore[index]
    directory = os.path.dirname(base) + "/parts"
    os.mkdir(base, 0o755)
    for path, target, mode in skeleton:
        if target:
            os.symlink(target, base + path)
        else:
            os.mkdir(base + path, 0o700)
            os.chmod(base + path, mode | 0o700)  # past the umask
    for number, path in enumerate(parts):
        os.makedirs(f"{directory}/{number}/work", 0o700)
        os.mkdir(f"{directory}/{number}/upper", 0o700)
        os.chmod(f"{directory}/{number}/upper", os.stat(path).st_mode & 0o7777 | 0o700)
