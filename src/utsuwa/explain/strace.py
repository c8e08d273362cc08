"""The ledger as strace(1) would show it: one call a line, process by process."""

from __future__ import annotations

from utsuwa.explain.line import Line, errno_name, line

TYPE_CHECKING = False
if TYPE_CHECKING:
    from utsuwa.explain import Record

_STRINGS = {  # which arguments are strings; everything else is a flag, a number or a descriptor, and stands bare
    "mount": {0, 1, 2, 4}, "umount2": {0}, "pivot_root": {0, 1}, "open_tree": {1}, "move_mount": {1, 3}, "fsopen": {0}, "fsconfig": {2, 3},
    "mount_setattr": {1}, "sethostname": {0}, "write": {0, 1}, "mkdir": {0}, "rmdir": {0}, "mknodat": {0}, "symlinkat": {0, 1}, "chdir": {0},
    "clone": {1}, "fork": {0}, "netlink": {0}, "nft": {0}, "bind": {0, 1}, "seccomp": {2},
}
_ALL = frozenset(range(1000))  # execve, posix_spawn: every word of them
_ROLES = {"engine": "the command that was typed", "monitor": "the container's parent", "init": "what became PID 1"}


def tell(lines: list[Record], *, color: bool = False, topic: int = 0) -> str:
    """Return the calls grouped by process, each in its own order."""
    out: list[str] = []
    for name, calls in processes([line(record) for record in lines]).items():
        kept = [each for each in calls if not topic or each.topic == topic]
        if kept:
            head = f"--- {name}: {_ROLES.get(name, 'one more process in the container')}"
            out += [f"\x1b[1m{head}\x1b[0m" if color else head, *[call(each) for each in kept]]
    return "\n".join(out) + "\n" if out else ""


def processes(lines: list[Line]) -> dict[str, list[Line]]:
    """Split lines by process. What init's name writes after its execve are exec sessions, each of which ends in an execve of its own."""
    found: dict[str, list[Line]] = {}
    executed = 0
    for each in lines:
        name = each.who
        if name == "init":
            name = f"exec {executed}" if executed else name
            executed += each.call == "execve"
        found.setdefault(name, []).append(each)
    return {name: found[name] for name in sorted(found, key=_order)}


def _order(name: str) -> tuple[int, str]:
    known = ("engine", "monitor", "init")
    return (known.index(name), "") if name in known else (len(known), f"{name[5:]:>9}")


def call(each: Line) -> str:
    """Return `mount("overlay", "/x", …) = 0`; a failure as `= -1 ENOENT (No such file or directory)`, an unseen return as `= ?`."""
    strings = _ALL if each.call in ("execve", "posix_spawn") else _STRINGS.get(each.call, frozenset())
    args = ", ".join(_argument(value, index in strings) for index, value in enumerate(each.args))
    result = "?" if each.result is None else f"-1 {errno_name(each.result)}" if each.result < 0 else str(each.result)
    return f"{each.call}({args}) = {result}"


def _argument(value: str | int | None, is_string: bool) -> str:
    if value is None:
        return "NULL"
    if not is_string or isinstance(value, int):
        return str(value)
    escaped = value.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n").replace("\t", "\\t")
    return '"' + "".join(c if c.isprintable() else "".join(f"\\x{b:02x}" for b in c.encode("utf-8", "surrogateescape")) for c in escaped) + '"'
