"""From ledger lines to steps: what a run of calls amounted to.

A mount made by descriptors is five calls or more (fsopen, fsconfig, fsmount, move_mount, mount_setattr), spread over processes. `replay`
follows each descriptor from the call that returned it to the one that used it, so that they become one step, as mount(8) would say it.
A failed call changed nothing: a step of kind `failed`. What it leaves out: how a step is told (shell.py, story.py).
"""

from __future__ import annotations

from utsuwa.explain.line import Line, descriptor, line

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from utsuwa.explain import Record

HOST, INIT, LATER = "host", "init", "later"
"""Phases: engine and monitor before init's program runs; init until then; everything after."""

_ATTRIBUTES = {
    "MOUNT_ATTR_RDONLY": "ro", "MOUNT_ATTR_NOSUID": "nosuid", "MOUNT_ATTR_NODEV": "nodev", "MOUNT_ATTR_NOEXEC": "noexec", "MOUNT_ATTR_NOATIME": "noatime",
    "MOUNT_ATTR_STRICTATIME": "strictatime", "MOUNT_ATTR_NODIRATIME": "nodiratime", "MOUNT_ATTR_NOSYMFOLLOW": "nosymfollow",
    "MS_RDONLY": "ro", "MS_NOSUID": "nosuid", "MS_NODEV": "nodev", "MS_NOEXEC": "noexec",
}
_CLEARED = {"ro": "rw", "nosuid": "suid", "nodev": "dev", "noexec": "exec", "nosymfollow": "symfollow"}
_PROPAGATION = {"MS_PRIVATE": "private", "MS_SLAVE": "slave", "MS_SHARED": "shared", "MS_UNBINDABLE": "unbindable"}


class Tree:
    """A mount while it is followed. `fstype` is "" for a bind of `source`; `target` "" until it is attached; `options` as mount(8) writes them."""

    __slots__ = ("attributes", "fstype", "inside", "lines", "options", "propagation", "recursive", "source", "source_inside", "step", "target", "whole_tree")

    def __init__(self, fstype: str, source: str, first: Line) -> None:
        self.fstype, self.source, self.target = fstype, source, ""
        self.options: list[tuple[str, str | None]] = []
        self.attributes: list[str] = []
        self.whole_tree: list[str] = []
        self.propagation = ""
        self.recursive = self.inside = self.source_inside = False
        self.lines = [first]
        self.step: Step | None = None


class Step:
    """One thing done: `kind`, its `phase`, the `lines` that did it, and what they said: `words`, or `tree` for a mount.

    `inside`: its path is the container's, not the host's. `pivoted`: it came after pivot_root, when the host's files were out of sight.
    """

    __slots__ = ("inside", "kind", "lines", "phase", "pivoted", "tree", "words")

    def __init__(self, kind: str, phase: str, lines: list[Line], words: tuple[str, ...] = (), tree: Tree | None = None, *, inside: bool = False, pivoted: bool = False) -> None:
        self.kind, self.phase, self.lines, self.words, self.tree = kind, phase, lines, words, tree
        self.inside, self.pivoted = inside, pivoted


class Replay:
    """The state of following a ledger: open descriptors by process, and where init has got to."""

    def __init__(self, lines: list[Line]) -> None:
        self.steps: list[Step] = []
        self.trees: dict[tuple[str, int], Tree] = {}
        self.pending: list[Tree] = []  # made by calls whose result was not seen: a plan
        self.root: Tree | None = None
        self.attached = self.pivoted = self.executed = self.born = False
        self.slaves: set[str] = set()
        self.netns: Step | None = None  # the network namespace that the engine makes and pins to a file
        self.split = any(each.who == "init" for each in lines)
        for each in lines:
            self.take(each)

    def take(self, each: Line) -> None:
        """Follow one line."""
        handler = None if self.executed else _HANDLERS.get(each.call)
        if each.failed:
            self.step("failed", each)
        elif handler is None:
            self.step(each.call, each)
        else:
            handler(self, each)

    def phase(self, each: Line) -> str:
        """Return the phase of a line. A plan is written by the engine alone: there everything after the birth of init is init's."""
        if self.executed:
            return LATER
        return INIT if each.who == "init" or (self.born and not self.split) else HOST

    def step(self, kind: str, each: Line, *words: str, tree: Tree | None = None, lines: list[Line] | None = None, inside: bool | None = None) -> Step:
        """Add a step. Without `words` it says the line's arguments."""
        phase = self.phase(each)
        within = phase == INIT and self.attached if inside is None else inside
        found = Step(kind, phase, lines or [each], words or tuple(each.text(i) for i in range(len(each.args))), tree, inside=within, pivoted=self.pivoted and phase == INIT)
        self.steps.append(found)
        return found

    # ---- descriptors

    def opened(self, each: Line, tree: Tree) -> None:
        """Remember what a call returned a descriptor of. Until it is attached, if it ever is, it is a step of its own."""
        if tree.step is None:
            tree.step = self.step("detached", each, tree=tree, lines=tree.lines)
        if each.result is None:
            self.pending.append(tree)
        else:
            self.trees[each.who, each.result] = tree

    def tree(self, each: Line, shown: str) -> Tree | None:
        """Return what a descriptor stands for. init inherits the monitor's; in a plan the newest that was opened is the one."""
        number, _ = descriptor(shown)
        for who in (each.who, "monitor"):
            if (who, number) in self.trees:
                return self.trees[who, number]
        if self.pending and number >= 0:
            self.trees[each.who, number] = self.pending.pop()
            return self.trees[each.who, number]
        return None

    # ---- one method a call

    def fsopen(self, each: Line) -> None:
        self.opened(each, Tree(each.text(0), "", each))

    def fsconfig(self, each: Line) -> None:
        tree = self.tree(each, each.text(0))
        if tree is None:
            return
        tree.lines.append(each)
        key, value = each.text(2), each.args[3]
        if key == "source":
            tree.source = each.text(3)
        elif key:
            tree.options.append((key, None if value is None else str(value)))

    def fsmount(self, each: Line) -> None:
        tree = self.tree(each, each.text(0))
        if tree is not None:
            tree.lines.append(each)
            tree.attributes += _options(each.flags(2))
            self.opened(each, tree)

    def open_tree(self, each: Line) -> None:
        _, beneath = descriptor(each.text(0))
        path = each.text(1)
        tree = Tree("", f"{beneath.rstrip('/')}/{path}" if beneath and path else path or beneath, each)
        tree.recursive = "AT_RECURSIVE" in each.flags(2)
        tree.source_inside = bool(beneath) and self.attached and self.phase(each) == INIT
        self.opened(each, tree)

    def move_mount(self, each: Line) -> None:
        tree = self.tree(each, each.text(0))
        _, target = descriptor(each.text(2))
        path = each.text(3)
        if tree is None:
            self.step("move_mount", each)
            return
        if tree.step is not None:
            self.steps.remove(tree.step)
        tree.lines.append(each)
        tree.target = f"{target.rstrip('/')}/{path}" if target and path else path or target
        is_root = self.phase(each) == INIT and not self.attached
        tree.inside = self.attached and self.phase(each) == INIT
        self.step("root" if is_root else "mount", each, tree.target, tree=tree, lines=tree.lines, inside=tree.inside)
        if is_root:
            self.attached, self.root = True, tree

    def mount_setattr(self, each: Line) -> None:
        tree = self.tree(each, each.text(0))
        if tree is None:
            self.step("mount_setattr", each)
            return
        on, off = _options(each.flags(3)), [_CLEARED.get(name, name) for name in _options(each.flags(4))]
        kind = next((_PROPAGATION[name] for name in each.flags(5) if name in _PROPAGATION), "")
        deep = "AT_RECURSIVE" in each.flags(2)
        if not tree.target or (kind and not on and not off and self.steps[-1].tree is tree):
            # Still detached, or just attached: one mount(8) says it all.
            tree.lines.append(each)
            tree.attributes += [] if deep and not self._is_one(tree) else on + off
            tree.whole_tree += on if deep and not self._is_one(tree) else []
            tree.propagation = ("r" if deep and kind else "") + kind if kind else tree.propagation
            return
        where, inside = ("/", True) if tree is self.root else (tree.target, tree.inside)
        if on or off:
            self.step("attributes", each, where, ",".join(on + off), inside=inside)
        if kind:
            self.step("propagation", each, where, ("r" if deep else "") + kind, inside=inside)

    def _is_one(self, tree: Tree) -> bool:
        """Whether a bind is of a file system made here: nothing is mounted below, so that recursive and not are the same."""
        return not tree.fstype and tree.source_inside

    def mount(self, each: Line) -> None:
        flags, target = each.flags(3), each.text(1)
        kind = next((_PROPAGATION[name] for name in flags if name in _PROPAGATION), "")
        if kind:
            if target == "." and self.pivoted and self.slaves:
                self.step("nothing", each, "the old root is a slave already: its mounts were cut off from the host's at the start")
                return
            self.slaves |= {target} if kind == "slave" else set()
            self.step("propagation", each, target, ("r" if "MS_REC" in flags else "") + kind)
            return
        if "MS_REMOUNT" in flags:
            self.step("attributes", each, target, ",".join(_options(flags)))
            return
        if each.text(0).endswith("/ns/net") and self.netns is not None and self.phase(each) == HOST:
            self.netns.lines.append(each)
            self.netns.words = (target,)
            return
        tree = Tree("" if "MS_BIND" in flags else each.text(2), each.text(0), each)
        tree.target, tree.attributes, tree.recursive = target, _options(flags), "MS_REC" in flags
        tree.options = [(key, value if equals else None) for key, equals, value in (word.partition("=") for word in each.text(4).split(",") if word)]
        tree.inside = self.attached and self.phase(each) == INIT
        self.step("mount", each, target, tree=tree, inside=tree.inside)

    def pivot_root(self, each: Line) -> None:
        self.step("pivot_root", each)
        self.pivoted = True

    def born_as(self, each: Line) -> None:
        self.step(each.call, each)
        self.born = self.born or "init" in each.args

    def unshare(self, each: Line) -> None:
        if self.phase(each) == HOST and each.flags(0) == ["CLONE_NEWNET"]:
            self.netns = self.step("netns", each)
        else:
            self.step("unshare", each)

    def write(self, each: Line) -> None:
        # After its unshare the engine's thread sees the new namespace's /proc/sys/net, and has no more to do with the host's. network/sandbox.py
        inside = self.netns is not None and self.phase(each) == HOST and each.who == "engine" and each.text(0).startswith("/proc/sys/net/")
        self.step("netns_write" if inside else "write", each, each.text(0), each.text(1), *(self.netns.words if inside and self.netns else ()))

    def execve(self, each: Line) -> None:
        self.step("execve", each)
        self.executed = self.phase(each) == INIT

    def mkdir(self, each: Line) -> None:
        self.step("mkdir", each, each.text(0).replace("/./", "/"), each.text(1))


_HANDLERS: dict[str, Callable[[Replay, Line], None]] = {
    "fsopen": Replay.fsopen, "fsconfig": Replay.fsconfig, "fsmount": Replay.fsmount, "open_tree": Replay.open_tree, "move_mount": Replay.move_mount,
    "mount_setattr": Replay.mount_setattr, "mount": Replay.mount, "pivot_root": Replay.pivot_root, "clone": Replay.born_as, "fork": Replay.born_as,
    "execve": Replay.execve, "mkdir": Replay.mkdir, "unshare": Replay.unshare, "write": Replay.write,
}


def _options(flags: list[str]) -> list[str]:
    return [_ATTRIBUTES[name] for name in flags if name in _ATTRIBUTES]


def replay(records: list[Record]) -> list[Step]:
    """Return the steps of a ledger, in the order in which they took effect."""
    return Replay([line(record) for record in records]).steps
