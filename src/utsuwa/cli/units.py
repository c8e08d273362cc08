"""Sizes and times as Docker reads and prints them (docker/go-units), and the values of --memory, --cpus and --since."""

from __future__ import annotations

from utsuwa.errors import UsageError

DECIMAL = ("B", "kB", "MB", "GB", "TB", "PB", "EB", "ZB", "YB")
BINARY = ("B", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB", "ZiB", "YiB")
_POWERS = {"k": 1, "m": 2, "g": 3, "t": 4, "p": 5}
INT64_MAX = (1 << 63) - 1


def _scaled(size: float, base: float, units: tuple[str, ...], digits: int) -> str:
    place = 0
    while size >= base and place < len(units) - 1:
        size, place = size / base, place + 1
    return f"{size:.{digits}g}{units[place]}"


def human_size(size: float, digits: int = 4) -> str:
    """Return bytes in powers of 1000: 4260000 is `4.26MB`."""
    return _scaled(size, 1000.0, DECIMAL, digits)


def bytes_size(size: float) -> str:
    """Return bytes in powers of 1024: 2048 is `2KiB`."""
    return _scaled(size, 1024.0, BINARY, 4)


def duration(seconds: float) -> str:
    """Return a rough length of time: `3 minutes`, `About an hour`, `Less than a second`. Rounded where Docker rounds."""
    whole, minutes, hours = int(seconds), int(seconds / 60), int(seconds / 3600 + 0.5)
    for below, text in (
        (whole < 1, "Less than a second"), (whole == 1, "1 second"), (whole < 60, f"{whole} seconds"),
        (minutes == 1, "About a minute"), (minutes < 60, f"{minutes} minutes"),
        (hours == 1, "About an hour"), (hours < 48, f"{hours} hours"),
        (hours < 24 * 14, f"{hours // 24} days"), (hours < 24 * 60, f"{hours // 168} weeks"), (hours < 24 * 730, f"{hours // 720} months"),
    ):
        if below:
            return text
    return f"{int(seconds / 3600) // 24 // 365} years"


def ago(then_ns: int, now_ns: int) -> str:
    """Return `3 minutes ago` for two times in ns since the epoch."""
    return duration((now_ns - then_ns) / 1e9) + " ago"


def parse_size(text: str, flag: str) -> int:
    """Return the bytes that `512m`, `1.5GiB` or `10 kB` says, in powers of 1024. Raises UsageError naming the flag.

    `invalid argument "x" for "-m, --memory" flag: invalid size: 'x'`, as Docker says it.
    """
    number, space, suffix = text.partition(" ")
    if not space:
        end = max(map(text.rfind, "0123456789.")) + 1
        if not end:
            raise _bad(text, flag, f"invalid size: '{text}'")
        number, suffix = text[:end], text[end:]
    try:
        size = _go_float(number)
    except ValueError:
        raise _bad(text, flag, f'strconv.ParseFloat: parsing "{number}": invalid syntax') from None
    if size < 0:
        raise _bad(text, flag, f"invalid size: '{text}'")
    unit = suffix.lower()
    if unit not in ("", "b"):
        if unit[0] not in _POWERS or unit[1:] not in ("", "b", "ib"):
            raise _bad(text, flag, f"invalid suffix: '{unit if len(suffix) <= 3 else suffix}'")
        size *= 1024 ** _POWERS[unit[0]]
    if size > INT64_MAX:
        raise _bad(text, flag, f"invalid size: '{text}'")
    return int(size)


def _go_float(text: str) -> float:
    # Python's float takes spaces, underscores, inf and nan; a size is none of these.
    if not text or not set("0123456789.+-eE").issuperset(text):
        raise ValueError(text)
    return float(text)


def _bad(text: str, flag: str, why: str) -> UsageError:
    return UsageError(f'invalid argument "{text}" for "{flag}" flag: {why}')


def parse_memory(text: str) -> int:
    """Return the bytes of --memory, 0 for none. Raises UsageError; whether it is enough to start in is the engine's to say."""
    return parse_size(text, "-m, --memory")


def parse_cpus(text: str) -> float:
    """Return the processors that --cpus says, 0 for no limit; Docker keeps nine digits after the point. Raises UsageError."""
    whole, _, fraction = text.partition(".")
    if not (whole + fraction).isascii() or not (whole + fraction).isdigit():
        raise UsageError(f'invalid argument "{text}" for "--cpus" flag: failed to parse {text} as a rational number')
    if len(fraction.rstrip("0")) > 9:
        raise UsageError(f'invalid argument "{text}" for "--cpus" flag: value is too precise')
    return float(text)


_DURATION = {"ns": 1, "us": 1_000, "µs": 1_000, "ms": 1_000_000, "s": 1_000_000_000, "m": 60_000_000_000, "h": 3600_000_000_000}


def parse_duration(text: str) -> int:
    """Return the ns of a Go duration, `1h30m`, `-1.5s`. Raises ValueError."""
    rest, sign = (text[1:], -1 if text[0] == "-" else 1) if text[:1] in ("-", "+") else (text, 1)
    if rest == "0":
        return 0
    total = 0
    if not rest:
        raise ValueError(text)
    while rest:
        digits = len(rest) - len(rest.lstrip("0123456789."))
        number, rest = rest[:digits], rest[digits:]
        letters = len(rest) - len(rest.lstrip("nuµmsh"))
        unit, rest = rest[:letters], rest[letters:]
        whole, _, fraction = number.partition(".")
        if unit not in _DURATION or not (whole + fraction).isdigit():
            raise ValueError(text)
        total += int(whole or "0") * _DURATION[unit] + (int(fraction) * _DURATION[unit] // 10 ** len(fraction) if fraction else 0)
    return sign * total


def parse_time(text: str, now_ns: int) -> int:
    """Return ns since the epoch of --since or --until: a Go duration before now, a UNIX time, or RFC 3339 (shortened too). Raises UsageError."""
    from datetime import datetime

    try:
        return now_ns - parse_duration(text)
    except ValueError:
        pass
    whole, dot, fraction = text.partition(".")
    if text.isascii() and whole.removeprefix("-").isdigit() and (not dot or fraction.isdigit()):
        return int(whole) * 1_000_000_000 + int(fraction[:9].ljust(9, "0") if dot else "0")
    try:
        # Parts of a second are kept apart: datetime knows microseconds only.
        head, _, tail = text.partition(".")
        digits = tail[:len(tail) - len(tail.lstrip("0123456789"))]
        moment = datetime.fromisoformat(head + tail[len(digits):])
        moment = moment if moment.tzinfo else moment.astimezone()
        return int(moment.timestamp()) * 1_000_000_000 + int(digits[:9].ljust(9, "0") if digits else "0")
    except (ValueError, OverflowError, OSError):
        raise UsageError(f'cannot read the time "{text}": expected a duration (10m), a UNIX time, or 2026-01-02T15:04:05Z') from None
