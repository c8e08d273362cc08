"""The functions that a --format template may call: Go's own and Docker's (docker/cli, templates/templates.go).

Each is (signature, function). A signature has one letter an argument: s string, i int, a anything; a last `*` repeats the letter before it.
A function raises Failed with Go's words; the evaluator adds where.
"""

from __future__ import annotations

from utsuwa.cli import gofmt
from utsuwa.cli.gofmt import Map, Nil

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable


class Failed(Exception):
    """A function could not do it: `str()` says why."""


def truth(value: object) -> bool:
    """Whether {{if}} takes it: not false, 0, nil or empty."""
    return bool(value)


def index(value: object, *keys: object) -> object:
    for key in keys:
        if value is None:
            raise Failed("index of untyped nil")
        if isinstance(value, dict):
            if not isinstance(key, str):
                raise Failed(f"value has type {gofmt.kind(key)}; should be string")
            value = value.get(key, value.zero if isinstance(value, Map) else None)
        elif isinstance(value, Nil) and value.shown != "[]":
            value = None
        elif isinstance(value, (list, str, Nil)):
            value = _at(() if isinstance(value, Nil) else value, key)
        else:
            raise Failed(f"can't index item of type {gofmt.kind(value)}")
    return value


def _at(value: list[object] | str | tuple[()], key: object) -> object:
    if isinstance(key, bool) or not isinstance(key, int):
        raise Failed(f"cannot index slice/array with type {gofmt.kind(key)}")
    if not 0 <= key < len(value):
        raise Failed(f"index out of range: {key}")
    return ord(value[key]) if isinstance(value, str) else value[key]


def cut(value: object, *bounds: object) -> object:
    """Go's slice."""
    if not isinstance(value, (str, list)):
        raise Failed(f"can't slice item of type {gofmt.kind(value)}")
    if len(bounds) > 2:
        raise Failed("cannot 3-index slice a string" if isinstance(value, str) else f"too many slice indexes: {len(bounds)}")
    numbers = []
    for bound in bounds:
        if isinstance(bound, bool) or not isinstance(bound, int):
            raise Failed(f"cannot index slice/array with type {gofmt.kind(bound)}")
        if not 0 <= bound <= len(value):
            raise Failed(f"index out of range: {bound}")
        numbers.append(bound)
    start, end = [*numbers, *[0, len(value)][len(numbers):]]
    if start > end:
        raise Failed(f"invalid slice index: {start} > {end}")
    return value[start:end]


def length(value: object) -> int:
    if value is None:
        raise Failed("len of nil pointer")
    if isinstance(value, Nil) and value.shown != "<nil>":
        return 0
    if isinstance(value, str):
        return len(value.encode("utf-8", "surrogateescape"))
    if not isinstance(value, (list, tuple, dict)):
        raise Failed(f"len of type {gofmt.kind(value)}")
    return len(value)


def _basic(value: object) -> str:
    for name, types in (("bool", bool), ("int", int), ("float", float), ("string", str)):
        if isinstance(value, types):
            return name
    raise Failed("invalid type for comparison")


def equal(first: object, *others: object) -> bool:
    if not others:
        raise Failed("missing argument for comparison")
    return any(_same(first, other) for other in others)


def _same(first: object, other: object) -> bool:
    if first is None or other is None or isinstance(first, Nil) or isinstance(other, Nil):
        return (first is None or isinstance(first, Nil)) and (other is None or isinstance(other, Nil))
    if isinstance(first, (list, dict)) or isinstance(other, (list, dict)):
        raise Failed(f"non-comparable type {gofmt.text(first)}: {gofmt.kind(first)}")
    if _basic(first) != _basic(other):
        raise Failed("incompatible types for comparison")
    return first == other


def less(first: object, other: object) -> bool:
    if _basic(first) != _basic(other):
        raise Failed("incompatible types for comparison")
    if isinstance(first, bool):
        raise Failed("invalid type for comparison")
    return first < other  # type: ignore[operator, no-any-return]


def sprint(*values: object) -> str:
    """fmt.Sprint: a space between two values where neither is a string."""
    out = ""
    for position, value in enumerate(values):
        if position and not isinstance(value, str) and not isinstance(values[position - 1], str):
            out += " "
        out += gofmt.text(value)
    return out


def title(value: str) -> str:
    out, before = [], " "
    for letter in value:
        out.append(letter if before.isalnum() or before in "_'" else letter.title())
        before = letter
    return "".join(out)


def join(values: object, separator: str) -> str:
    if values is None or isinstance(values, Nil):
        return ""
    if isinstance(values, dict):
        return separator.join(sorted(map(gofmt.text, values.values())))
    if not isinstance(values, (list, tuple)):
        raise Failed(f"expected slice, got {gofmt.kind(values)}")
    return separator.join(map(gofmt.text, values))


def split(value: str, separator: str) -> list[str]:
    return value.split(separator) if separator else list(value)


def pad(value: str, before: int, after: int) -> str:
    if not 0 <= before <= 10_000 or not 0 <= after <= 10_000:
        raise Failed("strings: negative or too large Repeat count")
    return " " * before + value + " " * after if value else value


def _unreachable(*_values: object) -> object:
    raise AssertionError("and, or are the evaluator's: they stop early")


FUNCTIONS: dict[str, tuple[str, Callable[..., object]]] = {
    "and": ("aa*", _unreachable), "or": ("aa*", _unreachable), "not": ("a", lambda value: not truth(value)),
    "eq": ("aa*", equal), "ne": ("aa", lambda a, b: not _same(a, b)), "lt": ("aa", less), "gt": ("aa", lambda a, b: not less(a, b) and not _same(a, b)),
    "le": ("aa", lambda a, b: less(a, b) or _same(a, b)), "ge": ("aa", lambda a, b: not less(a, b)),
    "index": ("aa*", index), "slice": ("aa*", cut), "len": ("a", length),
    "print": ("a*", sprint), "println": ("a*", lambda *values: " ".join(map(gofmt.text, values)) + "\n"),
    "printf": ("sa*", lambda form, *values: gofmt.printf(form, list(values))),
    "json": ("a", gofmt.json), "split": ("ss", split), "join": ("as", join), "title": ("s", title), "lower": ("s", lambda value: value.lower()),
    "upper": ("s", lambda value: value.upper()), "pad": ("sii", pad), "truncate": ("si", lambda value, size: value[:max(size, 0)]),
}


def _keep(value: object, *_rest: object) -> object:
    return value


HEADER_FUNCTIONS = {**FUNCTIONS, **{name: (FUNCTIONS[name][0], _keep) for name in ("json", "split", "join", "title", "lower", "upper", "truncate")}}
"""In a table's header line these leave the column's name alone."""
