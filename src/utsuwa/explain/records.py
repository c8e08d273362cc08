"""The ledger as a JSON array, one line of it a line of the array."""

from __future__ import annotations

from utsuwa.ledger.encode import dumps

TYPE_CHECKING = False
if TYPE_CHECKING:
    from utsuwa.explain import Record


def tell(lines: list[Record], *, color: bool = False, topic: int = 0) -> str:  # noqa: ARG001 - one signature for every format
    """Return the lines as they are, those of one topic if asked."""
    kept = [line for line in lines if not topic or line["topic"] == topic]
    return "[\n" + ",\n".join(dumps(line) for line in kept) + "\n]\n" if kept else "[]\n"
