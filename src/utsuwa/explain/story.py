"""The ledger as a story: by topic, each reason once, and beneath it what was done for it and by which calls."""

from __future__ import annotations

import re
from shlex import join
from textwrap import wrap

from utsuwa.explain.line import TOPICS, Line, capability, descriptor, errno_name, mask_names
from utsuwa.explain.replay import Step, replay

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from utsuwa.explain import Record

    Reason = tuple[int, str]
    Told = dict[Reason, tuple[list[str], list[tuple[str, str]]]]  # a reason's references, and what was done for it

WIDTH = 120
FEW = 4
"""How many of many alike are shown when the whole story is told; a story of one topic shows all."""
_BOLD, _DIM, _YELLOW, _PLAIN = "\x1b[1m", "\x1b[2m", "\x1b[33m", "\x1b[0m"
_SHELLS = frozenset({"sh", "ash", "dash", "bash", "ksh", "mksh", "zsh"})


def tell(lines: list[Record], *, color: bool = False, topic: int = 0) -> str:
    """Return the story, and a warning where a shell at PID 1 would swallow SIGTERM."""
    steps = replay(lines)
    told: Told = {}
    for step in steps:
        _file(step, told)
    out: list[str] = []
    for number, (name, promise) in TOPICS.items():
        reasons = {reason: items for reason, items in told.items() if reason[0] == number}
        if not reasons or (topic and number != topic):
            continue
        out.append(f"{_paint(f'{number:02} {name}', _BOLD, color)}: {promise}")
        for (_, why), (refs, items) in reasons.items():
            out += _reason(why, "; ".join(refs), items, many=10**6 if topic else FEW, color=color)
        out.append("")
    warning = swallows(steps) if topic in (0, 1) else ""
    if warning:
        out += [*[_paint(part, _YELLOW, color) for part in wrap("warning: " + warning, WIDTH)], ""]
    if not topic and lines:
        out.append(_paint(f"{len(lines)} kernel calls; each of them: --format strace. To make it by hand: --format shell.", _DIM, color))
    return "\n".join(out).rstrip("\n") + "\n" if out else ""


def swallows(steps: list[Step]) -> str:
    """Return a warning if the program is a shell with -c at PID 1, "" otherwise."""
    for step in steps:
        if step.kind != "execve" or step.phase != "init":
            continue
        path, *argv = step.words
        flag = next((index for index, word in enumerate(argv[1:-1], 1) if re.fullmatch("-[a-z]*c", word)), 0)
        if path.rpartition("/")[2] not in _SHELLS or not flag or not _stays(argv[flag + 1]):
            return ""
        command = argv[flag + 1] if len(argv[flag + 1]) < 40 else argv[flag + 1][:37] + "…"
        return (
            f"{path} is PID 1 and has no handler for SIGTERM, which the kernel then drops for PID 1; nor does it pass it on to what `{command}` starts. "
            "`utsuwa stop` waits its whole grace period and kills. Write the command as a list (exec form), or put `exec` before it. "
            "[pid_namespaces(7), signals and the init process]"
        )
    return ""


def _stays(command: str) -> bool:
    """Whether a shell remains while its -c command runs. One simple command replaces it (bash, dash, busybox), and so does an exec at the end."""
    simple = not re.search(r"[;&|()\n]|^\s*(if|for|while|until|case|\{)\b", command.strip())
    return not (simple or "trap " in command or re.search(r"(^|[;&|\n])\s*exec\s[^;&|\n]*$", command.rstrip()))


def _paint(text: str, code: str, color: bool) -> str:
    return f"{code}{text}{_PLAIN}" if color else text


def _file(step: Step, told: Told) -> None:
    """Put a step under the reason of its last line; under an earlier line's other reason only the calls made for that."""
    parts: dict[Reason, list[Line]] = {}
    for each in step.lines:
        parts.setdefault((each.topic, each.why), []).append(each)
    last = step.lines[-1]
    for reason, lines in parts.items():
        whole = reason == (last.topic, last.why)
        text = _SAY.get(step.kind, _plain)(step) if whole or step.tree is None else _detached(step)
        refs, items = told.setdefault(reason, ([], []))
        refs += [ref for ref in dict.fromkeys(each.ref for each in lines) if ref and ref not in refs]
        items.append((_calls(lines), _shorten(text)))


def _calls(lines: list[Line]) -> str:
    """Return `fsopen fsconfig×3 fsmount`."""
    runs: list[list[object]] = []
    for each in lines:
        if runs and runs[-1][0] == each.call:
            runs[-1][1] += 1  # type: ignore[operator]
        else:
            runs.append([each.call, 1])
    return " ".join(f"{call}×{count}" if count != 1 else str(call) for call, count in runs)


def _shorten(text: str) -> str:
    """Cut 64-digit ids to twelve, as `utsuwa ps` shows them; keep control characters off the terminal."""
    text = re.sub(r"\b([0-9a-f]{12})[0-9a-f]{52}\b", r"\1", text)
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in text.replace("/./", "/"))


def _reason(why: str, ref: str, items: list[tuple[str, str]], *, many: int, color: bool) -> list[str]:
    """Return a reason, and beneath it a line or two for each kind of call made for it: what it came to, then the calls."""
    cited = f"  [{ref}]" if ref else ""
    out = ["", *["  " + part for part in wrap(why + cited, WIDTH - 2)]]
    if color and out[-1].endswith(cited) and cited:
        out[-1] = out[-1].removesuffix(cited) + _paint(cited, _DIM, color)
    groups: dict[str, list[tuple[str, str]]] = {}
    for calls, text in items:
        groups.setdefault(re.sub("×[0-9]+", "", calls), []).append((calls, text))
    for same in groups.values():
        calls = same[0][0] + (f", {len(same)} times" if len(same) > 1 else "")
        for part in wrap(f"{_together([text for _, text in same], many)} · {calls}", WIDTH - 6, subsequent_indent="  ", break_on_hyphens=False):
            head, dot, tail = part.rpartition(" · ")
            out.append("      " + (head + _paint(dot + tail, _DIM, color) if dot else part))
    return out


def _together(texts: list[str], many: int) -> str:
    """Return many texts as one: `/dev/{null, zero}`, what they share told once."""
    if len(texts) == 1:
        return texts[0]
    start = _common(texts)
    start = start[: max(start.rfind("/"), start.rfind(" ")) + 1]
    end = _common([text[len(start):][::-1] for text in texts])[::-1]
    cuts = [end.find(mark) for mark in "/ " if mark in end]
    end = end[min(cuts):] if cuts else ""
    middles = list(dict.fromkeys(text[len(start): len(text) - len(end)] for text in texts))
    shown = middles if len(middles) <= many + 1 or len(start) + len(end) > 5 else [*middles[:many], f"{len(middles) - many} more"]
    return f"{start}{{{', '.join(shown)}}}{end}" if start or end else ", ".join(shown)


def _common(texts: list[str]) -> str:
    """Return what all of them begin with."""
    least, most = min(texts), max(texts)
    return next((least[:index] for index, letter in enumerate(least) if letter != most[index]), least)


# ---- one phrase a kind of step

def _plain(step: Step) -> str:
    return " ".join(word for word in step.words if word)


def _mount(step: Step) -> str:
    tree = step.tree
    if tree is None:
        return _plain(step)
    what = tree.fstype or ("/dev/null" if tree.source == "/dev/null" else tree.source)
    options = [*tree.attributes, *(f"r{word}" for word in tree.whole_tree), *[key if value is None else f"{key}={value}" for key, value in tree.options]]
    words = ",".join([*options, *([tree.propagation] if tree.propagation else [])])
    if step.kind == "root":  # its layers were told where it was made
        return f"{what} on / ({tree.propagation})" if tree.propagation else f"{what} on /"
    return f"{what} on {tree.target}" + (f" ({words})" if words else "")


def _detached(step: Step) -> str:
    tree = step.tree
    if tree is None:
        return _plain(step)
    options = " ".join([*tree.attributes, *[key if value is None else f"{key}={value}" for key, value in tree.options]])
    return f"{tree.fstype or tree.source}, not attached anywhere" + (f" ({options})" if options else "")


def _namespaces(step: Step) -> str:
    return "new: " + " ".join(flag.removeprefix("CLONE_NEW").lower().replace("ns", "mount") for flag in step.lines[0].flags(0))


def _setns(step: Step) -> str:
    return descriptor(step.words[0])[1] or step.words[0]


def _write(step: Step) -> str:
    return f"{step.words[0]} ← {step.words[1]}"


def _prctl(step: Step) -> str:
    name, number = step.words[0], step.lines[0].number(1)
    if name == "PR_CAP_AMBIENT":
        return "none ambient" if number == 4 else "ambient: " + capability(step.lines[0].number(2))
    return "without " + capability(number) if name == "PR_CAPBSET_DROP" else f"{name} {number}"


def _capset(step: Step) -> str:
    effective, _, inheritable = (mask_names(word) for word in step.words)
    return f"effective and permitted: {' '.join(effective) or 'none'}; inheritable: {' '.join(inheritable) or 'none'}"


def _nft(step: Step) -> str:
    lines = step.words[0].splitlines()
    return "; ".join(lines[:FEW] + ([f"and {len(lines) - FEW} lines more"] if len(lines) > FEW else []))


def _failed(step: Step) -> str:
    return f"{_plain(step)}: {errno_name(step.lines[0].result or 0)}"


_SAY: dict[str, Callable[[Step], str]] = {
    "root": _mount, "mount": _mount, "detached": _detached, "clone": _namespaces, "unshare": _namespaces, "setns": _setns, "write": _write, "netns_write": _write,
    "netns": lambda step: f"new: net, pinned to {step.words[0]}", "prctl": _prctl,
    "capset": _capset, "nft": _nft, "failed": _failed, "symlinkat": lambda step: f"{step.words[1]} → {step.words[0]}", "execve": lambda step: join(step.words),
    "attributes": lambda step: f"{step.words[0]}: {step.words[1]}", "propagation": lambda step: f"{step.words[0]}: {step.words[1]}",
    "setgroups": lambda step: f"supplementary groups: {step.words[0] or 'none'}", "setresgid": lambda step: f"group {step.words[0]}",
    "setresuid": lambda step: f"user {step.words[0]}", "seccomp": lambda step: f"filter: {step.words[2]}", "umount2": lambda step: f"detach {step.words[0]}",
    "setsid": lambda _step: "a new session", "pivot_root": lambda _step: "the container's root becomes /, the host's lies on top of it",
    "mknodat": lambda step: f"{step.words[0]} {step.words[1]} {step.words[3]}:{step.words[4]}", "mkdir": lambda step: step.words[0],
}
