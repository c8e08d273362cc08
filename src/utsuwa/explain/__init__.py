"""Telling how a container was made, from its ledger alone. Reads; calls no kernel, knows no engine.

Reading order: `line.py` (a ledger line), `replay.py` (lines become steps: what the calls amounted to), then the four ways to tell them:
`story.py` (by topic, with reasons), `shell.py` (a script that makes the container by hand), `strace.py`, and JSON.
"""

from __future__ import annotations

from utsuwa.errors import UsageError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    Record = dict[str, object]

_MODULES = {"story": "story", "json": "records", "strace": "strace", "shell": "shell"}
FORMATS = tuple(_MODULES)


def render(lines: list[Record], fmt: str = "story", *, color: bool = False, topic: int = 0) -> str:
    """Return ledger lines told in one of FORMATS, ending in a newline. `topic` 1-7 keeps that topic alone (not for shell).

    `lines` are ledger lines as parsed from JSON, in the order of the file; a plan (`--dry-run`, results null) is told alike.
    Raises UsageError: `unknown format "x": expected story, json, strace or shell`.
    """
    if fmt not in FORMATS:
        raise UsageError(f'unknown format "{fmt}": expected {", ".join(FORMATS[:-1])} or {FORMATS[-1]}')
    if fmt == "shell" and topic:
        raise UsageError("a script needs every topic: leave out --topic with --format shell")
    from importlib import import_module

    tell: Callable[..., str] = import_module("utsuwa.explain." + _MODULES[fmt]).tell
    return tell(lines, color=color, topic=topic)
