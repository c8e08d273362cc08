"""utsuwa explain: how a container was made, told from its ledger."""

from __future__ import annotations

import os

from utsuwa.cli.flags import BOOL, INT, TEXT, Flag, parse
from utsuwa.errors import Conflict, NotFound, UsageError

FLAGS = (
    Flag("format", kind=TEXT, help="How to tell it: story, json, strace, or shell (a script that makes it by hand)", default="story"),
    Flag("last", "l", BOOL, "The container that was made last, running or removed"),
    Flag("topic", kind=INT, help="One topic in full: 1 container, 2 runtime, 3 image, 4 network, 5 storage, 6 security, 7 compose", meta="number"),
)
USAGE = "utsuwa explain [OPTIONS] CONTAINER"
SUMMARY = "Tell how a container was made: every kernel call, by topic, and why. The ledgers of the last removed containers are kept: name those by id."


def main(argv: list[str]) -> int:
    """Print one container's ledger in the form asked for."""
    given, words = parse("explain", USAGE, FLAGS, argv, most=1, summary=SUMMARY)
    if given.on("last") == bool(words):
        raise UsageError("say which container, or --last; see 'utsuwa explain --help'")
    if given.number("topic") not in range(8) or ("topic" in given.given and not given.number("topic")):
        raise UsageError(f"invalid --topic {given.number('topic')}: topics are 1 to 7")
    from utsuwa.explain import ledgers, render

    name = _last() if given.on("last") else _of(words[0])
    try:
        lines = ledgers.read(name)
    except FileNotFoundError:
        lines = []
    text = render(lines, given.text("format"), color=_is_terminal(), topic=given.number("topic"))
    _out(text)
    return 0


def _last() -> str:
    from utsuwa.cli.main import context
    from utsuwa.explain import ledgers

    name = ledgers.newest(context().paths.root)
    if not name:
        raise NotFound("no container has been made yet: there is no ledger")
    return name


def _of(word: str) -> str:
    """Return the path of a container's ledger: by id, name or prefix; a removed one by id or prefix."""
    from utsuwa.cli.main import context
    from utsuwa.engine import containers
    from utsuwa.explain import ledgers

    where = context()
    try:
        return ledgers.path(where.paths.root, containers.find(where, word).id)
    except NotFound:
        found = ledgers.removed(where.paths.root, word) if word.isalnum() else []
        if len(found) > 1:
            raise Conflict(f"cannot choose a ledger for {word}: several removed containers begin so; give more digits") from None
        if not found:
            raise
        return found[0]


def _is_terminal() -> bool:
    return os.isatty(1) and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"


def _out(text: str) -> None:
    """Write it all: a pipe may take it in pieces."""
    view = memoryview(text.encode(errors="surrogateescape"))
    while view:
        view = view[os.write(1, view):]
