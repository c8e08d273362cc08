"""Values as Go prints them: fmt's verbs, encoding/json, and the two kinds of value that Python lacks, a typed nil and a map.

Used by --format alone, so that a script written for Docker reads the same text here.
"""

from __future__ import annotations

import re

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator


class Nil:
    """A nil whose type is known: Go prints a nil slice as `[]`, a nil map as `map[]`, a nil pointer as `<nil>`. JSON: null, or left out (omitempty)."""

    __slots__ = ("omitempty", "shown")

    def __init__(self, shown: str, *, omitempty: bool = False) -> None:
        self.shown, self.omitempty = shown, omitempty

    def __bool__(self) -> bool:
        return False


class Map(dict[str, object]):
    """A Go map, in which a missing key is no error as a missing field of a struct is: `index` finds `zero`."""

    zero: object = ""


NO_VALUE = "<no value>"
EXPONENT_FROM = 6
_KINDS = {str: "string", bool: "bool", int: "int", float: "float64", list: "[]interface {}", dict: "map[string]interface {}", Map: "map[string]string", type(None): "<nil>"}


def kind(value: object) -> str:
    """Return the name of the Go type that a value stands for."""
    return _KINDS.get(type(value), type(value).__name__)


def text(value: object) -> str:
    """Return what %v prints."""
    if isinstance(value, str):
        return value
    if value is True or value is False:
        return "true" if value else "false"
    if value is None:
        return "<nil>"
    if isinstance(value, Nil):
        return value.shown
    if isinstance(value, float):
        return _float(value)
    if isinstance(value, dict):
        return "map[" + " ".join(f"{key}:{text(value[key])}" for key in sorted(value) if not callable(value[key])) + "]"
    if isinstance(value, (list, tuple)):
        return "[" + " ".join(map(text, value)) + "]"
    return str(value)


def _float(value: float) -> str:
    """%v of a float64: the fewest digits that say it, with an exponent below 1e-04 and from 1e+06 up."""
    digits, _, power = repr(value).partition("e")
    exponent = int(power or f"{value:.16e}".partition("e")[2])
    if -5 < exponent < EXPONENT_FROM:
        return str(int(value)) if value == int(value) else repr(value)
    bare = digits.replace(".", "").lstrip("-0").rstrip("0") or "0"
    return f"{'-' if value < 0 else ''}{bare[0]}{'.' + bare[1:] if bare[1:] else ''}e{exponent:+03d}"


def json(value: object) -> str:
    """Return compact JSON as encoding/json writes it, without HTML escapes. The order of keys is the caller's."""
    from json import dumps

    shown = dumps(_bare(value), ensure_ascii=False, separators=(",", ":"))
    return shown.replace("\u2028", "\\u2028").replace("\u2029", "\\u2029").encode("utf-8", "replace").decode()


def _bare(value: object) -> object:
    """A value without what JSON does not know: typed nils, methods."""
    if isinstance(value, Nil):
        return None
    if isinstance(value, dict):
        return {key: _bare(each) for key, each in value.items() if not callable(each) and not (isinstance(each, Nil) and each.omitempty)}
    if isinstance(value, (list, tuple)):
        return [_bare(each) for each in value]
    return value


def quote(value: str) -> str:
    """Return what %q and strconv.Quote print."""
    out = []
    for letter in value:
        if letter in _QUOTED:
            out.append(_QUOTED[letter])
        elif letter.isprintable():
            out.append(letter)
        else:
            code = ord(letter)
            out.append(f"\\x{code:02x}" if code < 0x80 else f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}")
    return '"' + "".join(out) + '"'


_QUOTED = {"\a": "\\a", "\b": "\\b", "\f": "\\f", "\n": "\\n", "\r": "\\r", "\t": "\\t", "\v": "\\v", "\\": "\\\\", '"': '\\"'}

# ----------------------------------------------------------------------------------------------------------------- printf

_VERB = re.compile(r"%([-+# 0]*)(\*|[0-9]+)?(?:\.(\*|[0-9]*))?(.)?", re.DOTALL)
_WIDTH_MAX = 1_000_000  # fmt's own bound: tooLarge
_INTEGER = {"d": "d", "b": "b", "o": "o", "x": "x", "X": "X"}


def printf(form: str, values: list[object]) -> str:
    """Return what fmt.Sprintf returns; its mistakes are shown in the text, as there: `%!d(string=x)`, `%!s(MISSING)`."""
    rest = iter(values)
    used: list[object] = []

    def take(match: re.Match[str]) -> str:
        flags, width, precision, verb = match.groups()
        if verb == "%":
            return "%"
        if verb is None:
            return "%!(NOVERB)"
        wide, exact = _number(width, rest, used), _number(precision, rest, used)
        try:
            value = next(rest)
        except StopIteration:
            return f"%!{verb}(MISSING)"
        used.append(value)
        return _pad(_verb(verb, flags, exact, value), flags, wide, verb, value)

    shown = _VERB.sub(take, form)
    extra = values[len(used):]
    return shown + (f"%!(EXTRA {', '.join(f'{kind(v)}={text(v)}' for v in extra)})" if extra else "")


def _number(shown: str | None, rest: Iterator[object], used: list[object]) -> int | None:
    if shown == "*":
        value = next(rest, None)
        used.append(value)
        return min(value, _WIDTH_MAX) if isinstance(value, int) else None
    return None if shown is None else min(int(shown or "0"), _WIDTH_MAX)


def _pad(shown: str, flags: str, width: int | None, verb: str, value: object) -> str:
    if width is None:
        return shown
    if "-" in flags or width < 0:
        return shown.ljust(abs(width))
    if "0" in flags and isinstance(value, (int, float)) and verb not in "sqT":
        return shown.zfill(width)
    return shown.rjust(width)


def _verb(verb: str, flags: str, precision: int | None, value: object) -> str:
    if verb == "T":
        return kind(value)
    if verb == "v":
        return _signed(text(value), flags, value)
    if isinstance(value, list) and verb in "sqdxX":
        return "[" + " ".join(_verb(verb, flags, precision, each) for each in value) + "]"
    if isinstance(value, bool):
        return text(value) if verb == "t" else _wrong(verb, value)
    if isinstance(value, int):
        return _int_verb(verb, flags, value)
    if isinstance(value, float) and verb in "eEfFgG":
        digits = 6 if precision is None and verb in "eEfF" else precision
        return _signed(text(value) if digits is None else f"{value:.{digits}{verb}}", flags, value)
    if isinstance(value, str):
        short = value if precision is None else value[:precision]
        if verb == "s":
            return short
        if verb == "q":
            return quote(short)
        if verb in "xX":
            shown = short.encode("utf-8", "surrogateescape").hex()
            return shown.upper() if verb == "X" else shown
    return _wrong(verb, value)


def _signed(shown: str, flags: str, value: object) -> str:
    plain = isinstance(value, (int, float)) and not isinstance(value, bool) and value >= 0
    return ("+" if "+" in flags else " " if " " in flags else "") + shown if plain else shown


def _int_verb(verb: str, flags: str, value: int) -> str:
    if verb in _INTEGER:
        prefix = {"x": "0x", "X": "0X", "o": "0", "b": "0b"}.get(verb, "") if "#" in flags else ""
        return ("-" if value < 0 else "") + _signed(prefix + format(abs(value), _INTEGER[verb]), flags, value)
    if verb in ("c", "q", "U") and 0 <= value < 0x110000:
        return {"c": chr(value), "q": f"'{chr(value)}'", "U": f"U+{value:04X}"}[verb]
    return _wrong(verb, value)


def _wrong(verb: str, value: object) -> str:
    return f"%!{verb}({kind(value)}={text(value)})" if value is not None else f"%!{verb}(<nil>)"
