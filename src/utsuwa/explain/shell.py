"""A POSIX shell script that makes the same container by hand, out of the ledger alone: unshare, mount, ip, nft, setpriv.

The script runs itself twice: outside, where groups and network are made ready, and once more inside the new namespaces, where the root is
furnished and the host's files go out of sight. It has an upper layer of its own and removes what it made.
"""

from __future__ import annotations

import re
from shlex import quote

from utsuwa.explain.line import capability, descriptor, mask_names
from utsuwa.explain.replay import HOST, INIT, Step, Tree, replay

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from utsuwa.explain import Record

_NAMESPACES = {
    "CLONE_NEWNS": "--mount --propagation unchanged", "CLONE_NEWPID": "--pid", "CLONE_NEWUTS": "--uts", "CLONE_NEWIPC": "--ipc", "CLONE_NEWNET": "--net",
    "CLONE_NEWCGROUP": "--cgroup", "CLONE_NEWTIME": "--time", "CLONE_NEWUSER": "--user",
}
_JOIN = {"CLONE_NEWNET": "--net", "CLONE_NEWIPC": "--ipc", "CLONE_NEWUTS": "--uts", "CLONE_NEWPID": "--pid", "CLONE_NEWCGROUP": "--cgroup", "CLONE_NEWUSER": "--user"}
PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

_HEAD = """\
#!/bin/sh
# A container made by hand: written by `utsuwa explain --format shell` from the ledger of one that was made by system calls.
#
#     sh THIS_FILE [COMMAND [ARGUMENT…]]        as root, from a file: it runs itself again inside the new namespaces
#
# Needs util-linux, coreutils, hostname; iproute2 and nftables where it has a network. Two things no shell command can do:
# load a seccomp filter, and keep peers out of this process while it waits (PR_SET_DUMPABLE).
set -eu
"""
_PLAN = """\
# From a plan: nothing was made and nothing looked at, so that directories to mount on, and paths to hide, are only supposed to be there.
"""
_TOOLS = """\
# Once the host's files are out of sight, its programs still have to run: by their own loader and libraries, found from the host's root.
tools=$(for tool in mount umount setpriv env; do ldd "$(command -v $tool)"; done)
loader=$(readlink -f "$(printf '%s\\n' "$tools" | sed -n 's|^[[:space:]]*\\(/[^ ]*\\) (.*|\\1|p' | head -n 1)")
libraries=$(printf '%s\\n' "$tools" | sed -n 's|.* => \\(/.*\\)/[^/]* (.*|.\\1|p' | sort -u | paste -s -d : -)
host=".$loader --library-path $libraries"
mount=$(command -v mount) umount=$(command -v umount) setpriv=$(command -v setpriv) env=$(command -v env)
"""


def tell(lines: list[Record], *, color: bool = False, topic: int = 0) -> str:  # noqa: ARG001 - one signature for every format
    """Return the script."""
    script = Script()
    for step in replay(lines):
        script.add(step)
    text = script.text()
    return text if any(line["result"] is not None for line in lines) else text.replace("set -eu\n", _PLAN + "set -eu\n", 1)


class Part:
    """Some lines of the script, each reason told once above what it is the reason for."""

    def __init__(self) -> None:
        self.lines: list[str] = []
        self.reason = ""

    def add(self, step: Step, *commands: str) -> None:
        """Add commands, and above them the step's reason unless it was told just before."""
        last = step.lines[-1]
        if last.why != self.reason:
            self.reason = last.why
            self.lines += ["", _comment(f"# {last.why}" + (f"  [{last.ref}]" if last.ref else ""))]
        self.lines += [_comment(each) if each.startswith("#") else each for each in commands]


def _with_variable(text: str, container: str) -> str:
    """Write $id for the container's 64 digits, where a shell would expand it: not in a comment, in quotes, or in a here-document."""
    if not container or text.startswith(("#", "id=")) or "\n" in text:
        return text
    return " ".join(word if "'" in word else word.replace(container, "$id") for word in text.split(" "))


def _comment(text: str) -> str:
    """A comment must stay one: a line break, in a path or a reason, would end it."""
    return " ".join(text.splitlines())


class Script:
    """The script while it is written: parts in the order in which they will stand."""

    def __init__(self) -> None:
        self.outside, self.entering, self.inside, self.walls = Part(), Part(), Part(), Part()
        self.unshare: list[str] = []
        self.nsenter: list[str] = []
        self.setpriv: list[str] = []
        self.groups: list[str] = []
        self.undo: list[str] = []
        self.dropped: list[str] = []
        self.argv: list[str] = []
        self.cwd = "/"
        self.session = False
        self.id = ""
        self.sources: list[str] = []

    def add(self, step: Step) -> None:
        """Take one step into the part that it belongs to. What came after the program started is no part of making it."""
        handler = _STEPS.get(step.kind)
        if step.phase in (HOST, INIT) and handler is not None:
            handler(self, step)

    def text(self) -> str:
        """Return the whole script."""
        if self.dropped:
            self.setpriv.insert(0, "--bounding-set=" + ",".join("-" + name for name in self.dropped))
        enter = [*(["nsenter", *self.nsenter] if self.nsenter else []), "unshare", *dict.fromkeys(self.unshare), "--fork", *(["setsid"] if self.session else [])]
        lines = [
            _HEAD, 'if [ "${1-}" != --inside ]; then', *self._prepare(), *self.outside.lines,
            "", "# A child of this shell enters the groups, leaves for new namespaces, and runs the second part there.", "(", *self.entering.lines, "",
            f'exec {" ".join(enter)} sh "$0" --inside "$@"', ")", "exit", "fi", "shift", "",
            "# ---------------------------------------------------------------- inside the new namespaces", "", _TOOLS.rstrip(),
            *self.inside.lines, *self.walls.lines, "", *self._program(), "",
        ]
        return "\n".join(_with_variable(each, self.id) for each in lines)

    def _prepare(self) -> list[str]:
        """The command, a place of our own for the root, and what undoes everything at the end."""
        check = [f'[ ! -e {quote(self.groups[-1])} ] || {{ echo "it still has its control groups: stop the container first" >&2; exit 1; }}'] if self.groups else []
        if self.sources:
            words = " ".join(quote(path) for path in self.sources)
            check.append(f'for path in {words}; do [ -e "$path" ] || {{ echo "$path is gone: the files of a removed container went with it" >&2; exit 1; }}; done')
        undo = [*self.undo, *[f"rmdir {quote(group)}" for group in reversed(self.groups)]]
        return [
            f"[ $# -gt 0 ] || set -- {' '.join(quote(word) for word in self.argv) or 'sh'}", *([f"id={self.id}"] if self.id else []), *check,
            "here=$(mktemp -d)", 'root="$here/merged"', "export here root id" if self.id else "export here root", 'mkdir "$here/merged" "$here/upper" "$here/work"',
            "clean_up() {", *[f"    {each} 2>/dev/null || true" for each in undo], '    rm -rf --one-file-system "$here"', "}", "trap clean_up EXIT", "trap 'exit 130' INT TERM",
        ]

    def _program(self) -> list[str]:
        """The last line: setpriv puts the walls up and becomes env, which leaves the host's directory and becomes the program."""
        run = f'$host ".$env" -i -C {quote(self.cwd)} "PATH={PATH}" "TERM=${{TERM:-xterm}}" "$@"'
        if not self.setpriv:
            return ["exec " + run]
        return ['exec $host ".$setpriv" \\', *[f"    {word} \\" for word in self.setpriv], "    " + run]

    def part(self, step: Step) -> Part:
        """Return where a step's commands go."""
        return self.outside if step.phase == HOST else self.inside if step.inside or step.kind in ("root", "propagation", "mount", "pivot_root") else self.entering


# ---- one function a kind of step

def _path(step: Step, path: str, *, inside: bool | None = None) -> str:
    """Return a path as the script must write it: the container's lies below $root until the pivot."""
    if not (step.inside if inside is None else inside) or step.pivoted:
        return quote(path)
    return '"$root"' + (quote(path) if path != "/" else "")


def _mount(script: Script, step: Step) -> None:
    tree = step.tree
    assert tree is not None  # noqa: S101 - the replay gives every mount its tree
    target = '"$root"' if step.kind == "root" else _path(step, tree.target)
    tool = '$host ".$mount"' if step.pivoted else "mount"
    propagation = [f"--make-{tree.propagation}"] if tree.propagation else []
    if tree.fstype:
        options = _options(tree)
        script.part(step).add(step, " ".join([tool, "-t", tree.fstype, *(["-o", options] if options else []), *propagation, quote(tree.source or "none"), target]))
        return
    source = _path(step, tree.source, inside=tree.source_inside)
    if not tree.source_inside and not step.pivoted:
        script.sources.append(tree.source)
    bind = " ".join([tool, "--rbind" if tree.recursive else "--bind", *propagation, source, target])
    if step.pivoted:  # the one mount made after the pivot: the container's terminal, which by hand is the shell's own
        script.part(step).add(step, "# " + bind)
        return
    attributes = [*tree.attributes, *tree.whole_tree]
    # Two lines, not --bind -o ro: that would set ro and clear the nosuid, nodev and noexec which the source has.
    more = [f"{tool} -o remount,bind,{','.join(attributes)} {target}"] if attributes else []
    if tree.whole_tree:
        more.insert(0, "# for mounts below it as well: mount(8) of util-linux 2.39 has ro=recursive")
    script.part(step).add(step, bind, *more)


def _options(tree: Tree) -> str:
    """Return what follows -o. An overlay's layers become one lowerdir, its writable layer the script's own."""
    words = [quote(word) for word in tree.attributes]
    lower = [_layer(value) for key, value in tree.options if key == "lowerdir+" and value]
    if lower:
        words.append("lowerdir=" + ":".join(lower))
    for key, value in tree.options:
        if key in ("upperdir", "workdir"):
            words.append(f'{key}="$here"/{key.removesuffix("dir")}')
        elif key != "lowerdir+":
            words.append(quote(key if value is None else f"{key}={value}"))
    return ",".join(words)


def _layer(path: str) -> str:
    return quote(path.replace("\\", "\\\\").replace(":", "\\:").replace(",", "\\,"))


def _attributes(script: Script, step: Step) -> None:
    tool = '$host ".$mount"' if step.pivoted else "mount"
    script.part(step).add(step, f"{tool} -o remount,bind,{step.words[1]} {_path(step, step.words[0])}")


def _propagation(script: Script, step: Step) -> None:
    tool = '$host ".$mount"' if step.pivoted else "mount"
    script.part(step).add(step, f"{tool} --make-{step.words[1]} {_path(step, step.words[0])}")


def _nothing(script: Script, step: Step) -> None:
    script.part(step).add(step, f"# {step.words[0]}")


def _pivot(script: Script, step: Step) -> None:
    script.part(step).add(step, 'cd "$root"', "pivot_root . .", "cd -P /..        # the old root lies on top of the new one: this leads into it")


def _umount(script: Script, step: Step) -> None:
    script.part(step).add(step, f'$host ".$umount" --no-canonicalize --lazy {quote(step.words[0])}')


def _mkdir(script: Script, step: Step) -> None:
    path, _ = step.words
    if step.phase == HOST and path.endswith("/monitors"):  # a script has none
        return
    if step.phase == HOST and path.startswith("/sys/fs/cgroup/"):
        script.groups.append(path)
        script.id = script.id or next(iter(re.findall(r"/([0-9a-f]{64})$", path)), "")
    script.part(step).add(step, f"mkdir -p {_path(step, path)}")


def _mknod(script: Script, step: Step) -> None:
    path, kind, mode, major, minor = step.words
    target = _path(step, path)
    make = {"f": f": > {target}", "p": f"mkfifo -m {mode} {target}"}.get(kind, f"mknod -m {mode} {target} {kind} {major} {minor}")
    script.part(step).add(step, make)


def _symlink(script: Script, step: Step) -> None:
    script.part(step).add(step, f"ln -s {quote(step.words[0])} {_path(step, step.words[1])}")


def _write(script: Script, step: Step) -> None:
    path, text = step.words
    if step.phase == HOST and path.endswith(("/cgroup.procs", "/tasks")):  # a process of then
        return
    script.part(step).add(step, f"echo {quote(text)} > {_path(step, path)}")  # one write(2), as these files want it


def _hostname(script: Script, step: Step) -> None:
    script.part(step).add(step, f"hostname {quote(step.words[0])}")


def _namespaces(script: Script, step: Step) -> None:
    flags = step.lines[0].flags(0)
    if step.kind == "clone" and len(step.words) > 2:  # it is born in a control group; a shell has to go there
        group = quote(descriptor(step.words[2])[1])
        script.entering.add(step, f"echo 0 > {group}/cgroup.procs")
    if step.phase == INIT or "init" in step.words:
        script.entering.add(step, "#     unshare " + " ".join(_NAMESPACES[flag] for flag in flags if flag in _NAMESPACES))
        script.unshare += [_NAMESPACES[flag] for flag in flags if flag in _NAMESPACES]


def _setns(script: Script, step: Step) -> None:
    _, path = descriptor(step.words[0])
    words = [f"{_JOIN[flag]}={quote(path)}" for flag in step.lines[0].flags(1) if flag in _JOIN]
    if step.phase == INIT:
        script.entering.add(step, "#     nsenter " + " ".join(words))
        script.nsenter += words


def _setsid(script: Script, step: Step) -> None:
    script.session = script.session or step.phase == INIT


def _netns(script: Script, step: Step) -> None:
    path = quote(step.words[0])
    script.part(step).add(step, f": > {path}", f"unshare --net={path} true")
    script.undo += [f"umount --lazy {path}", f"rm -f {path}"]


def _netns_write(script: Script, step: Step) -> None:
    path, text, netns = step.words
    script.part(step).add(step, f"nsenter --net={quote(netns)} sh -c {quote(f'echo {quote(text)} > {quote(path)}')}")


def _netlink(script: Script, step: Step) -> None:
    """The ledger has ip(8)'s words, behind nsenter(1)'s where it is not the host's namespace. The host's bridge may be there already."""
    text, alias, name = step.words[0].partition(" alias ")
    words = [quote(word) for word in text.split()] + (["alias", quote(name)] if alias else [])
    command = " ".join(words)
    if words[:2] + words[-2:] == ["ip", "link", "type", "bridge"]:
        command = f"ip link show {words[3]} > /dev/null 2>&1 || {command}"
    elif words[:3] == ["ip", "address", "add"]:
        command = command.replace(" add ", " replace ", 1)
    if words[:3] == ["ip", "link", "add"] and "veth" in words:
        script.undo.append(f"ip link delete {words[3]}")
    (script.inside if step.phase == INIT else script.outside).add(step, command)


def _nft(script: Script, step: Step) -> None:
    """The text as it is. Elements are the container's own and go with it; the table is the engine's and stays."""
    text = step.words[0].rstrip("\n")
    script.part(step).add(step, f"nft -f - <<'NFT'\n{text}\nNFT")
    if all(each.startswith("add element ") for each in text.splitlines()):
        script.undo += [f"nft {quote(each.replace('add', 'delete', 1))}" for each in text.splitlines()]


def _bind(script: Script, step: Step) -> None:
    script.part(step).add(step, f"# held by a socket, so that nobody else takes it: {' '.join(step.words)}")


# ---- the walls: arguments of setpriv(1), gathered

def _wall(script: Script, step: Step, *words: str) -> None:
    script.setpriv += words
    script.walls.add(step, *[f"#     {word}" for word in words])


def _prctl(script: Script, step: Step) -> None:
    name, number = step.words[0], step.lines[0].number(1)
    if step.phase == HOST:
        return
    if name == "PR_CAPBSET_DROP":
        script.dropped.append(capability(number))
        script.walls.add(step)
    elif name == "PR_SET_PDEATHSIG":
        script.unshare.append("--kill-child")
        if any(word.startswith("--reuid") for word in script.setpriv):  # a change of ids cleared it. prctl(2)
            _wall(script, step, "--pdeathsig=KILL")
    elif name == "PR_SET_NO_NEW_PRIVS":
        _wall(script, step, "--no-new-privs")
    elif name == "PR_CAP_AMBIENT" and number == 2:
        _wall(script, step, "--ambient-caps=+" + capability(step.lines[0].number(2)))


def _seccomp(script: Script, step: Step) -> None:
    script.walls.add(step, f"#     no shell command loads a seccomp filter: here the script has one wall less ({step.words[2]})")


def _groups(script: Script, step: Step) -> None:
    _wall(script, step, f"--groups={step.words[0]}" if step.words[0] else "--clear-groups")


def _gid(script: Script, step: Step) -> None:
    _wall(script, step, f"--regid={step.words[0]}")


def _uid(script: Script, step: Step) -> None:
    _wall(script, step, f"--reuid={step.words[0]}")


def _capset(script: Script, step: Step) -> None:
    # Permitted and effective need no word: at execve root gets what its bounding set holds, and another user nothing. capabilities(7)
    kept = mask_names(step.words[2])
    _wall(script, step, "--inh-caps=-all" + "".join(f",+{name}" for name in kept))


def _execve(script: Script, step: Step) -> None:
    if step.phase == INIT:
        script.argv = [step.words[0], *step.words[2:]]
        script.walls.add(step)


def _chdir(script: Script, step: Step) -> None:
    script.cwd = step.words[0] if step.phase == INIT else script.cwd


_STEPS: dict[str, Callable[[Script, Step], None]] = {
    "root": _mount, "mount": _mount, "attributes": _attributes, "propagation": _propagation, "nothing": _nothing, "pivot_root": _pivot, "umount2": _umount,
    "mkdir": _mkdir, "mknodat": _mknod, "symlinkat": _symlink, "write": _write, "sethostname": _hostname, "clone": _namespaces, "unshare": _namespaces,
    "setns": _setns, "netns": _netns, "netns_write": _netns_write, "setsid": _setsid, "netlink": _netlink, "nft": _nft, "bind": _bind, "prctl": _prctl,
    "seccomp": _seccomp, "setgroups": _groups,
    "setresgid": _gid, "setresuid": _uid, "capset": _capset, "execve": _execve, "chdir": _chdir,
}
