"""Where the ledgers are: one beside each container, and those of the last removed ones. design.md, section 4."""

from __future__ import annotations

import json
import os

TYPE_CHECKING = False
if TYPE_CHECKING:
    from utsuwa.explain import Record


def path(root: str, container: str) -> str:
    """Return the ledger of a container that is not removed, by its full id; the file may not be there yet."""
    return f"{root}/containers/{container}/ledger.jsonl"


def removed(root: str, prefix: str) -> list[str]:
    """Return the ledgers of removed containers whose id begins with `prefix`."""
    try:
        return sorted(f"{root}/ledgers/{name}" for name in os.listdir(root + "/ledgers") if name.endswith(".jsonl") and name.startswith(prefix))
    except FileNotFoundError:
        return []


def newest(root: str) -> str:
    """Return the ledger of the container that was made last, removed or not; "" where there is none."""
    try:
        kept = [path(root, name) for name in os.listdir(root + "/containers")]
    except FileNotFoundError:
        kept = []
    return max(((_begun(each), each) for each in [*kept, *removed(root, "")]), default=(0, ""))[1]


def _begun(name: str) -> int:
    """Return when a ledger's first line was written, in ns since the epoch; 0 for none. Lines have the clock of a boot, the file that of the world."""
    try:
        lines = read(name)
        return os.stat(name).st_mtime_ns - (int(lines[-1]["t"]) - int(lines[0]["t"])) if lines else 0  # type: ignore[call-overload]
    except OSError:
        return 0


def read(name: str) -> list[Record]:
    """Return the lines of a ledger. A last line that is being written just now, or was torn by a full disk, is left out. Raises OSError."""
    found: list[Record] = []
    with open(name, encoding="utf-8", errors="surrogateescape") as file:
        for text in file:
            try:
                found.append(json.loads(text))
            except ValueError:
                continue
    return found
