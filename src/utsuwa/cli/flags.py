"""Flags as Docker's command line has them (Go's pflag): `-it`, `-p80:80`, `--name=x`, `--rm=false`, no abbreviations.

A table, not argparse: argparse guesses abbreviations, cannot say `--rm=false`, and costs the hot path 6 ms (docs/adr/0001).
"""

from __future__ import annotations

from utsuwa.errors import NotSupported, UsageError

BOOL, TEXT, LIST, INT = "bool", "string", "list", "int"


class Flag:
    """One flag: `name` long, `short` one letter or "", `kind` one of BOOL TEXT LIST INT, `help` a short sentence, `meta` the value's name."""

    __slots__ = ("default", "help", "kind", "meta", "name", "short")

    def __init__(self, name: str, short: str = "", kind: str = BOOL, help: str = "", meta: str = "", default: object = None) -> None:  # noqa: A002
        self.name, self.short, self.kind, self.help, self.meta = name, short, kind, help, meta
        self.default = default if default is not None else {BOOL: False, TEXT: "", LIST: None, INT: 0}[kind]


class FlagError(UsageError):
    """A flag that does not exist, or whose value cannot be: exit code 125 for every command, as in Docker."""


class Help(Exception):
    """--help was given: `str()` is the text to print."""


class Options(dict[str, object]):
    """Flag name → value, a default where it was not given; `given` holds the names that were."""

    def __init__(self) -> None:
        super().__init__()
        self.given: set[str] = set()

    def text(self, name: str) -> str:
        return self[name]  # type: ignore[return-value]

    def on(self, name: str) -> bool:
        return bool(self[name])

    def number(self, name: str) -> int:
        return self[name]  # type: ignore[return-value]

    def many(self, name: str) -> list[str]:
        return self[name]  # type: ignore[return-value]


def parse(command: str, usage: str, flags: tuple[Flag, ...], argv: list[str], *, stop_at_first: bool = False, least: int = 0, most: int | None = None, unsupported: frozenset[str] = frozenset(), summary: str = "") -> tuple[Options, list[str]]:
    """Return (options, positional arguments).

    `stop_at_first` ends flags at the first positional (docker run IMAGE CMD…); `least` and `most` bound the positionals; a name in
    `unsupported` is one of Docker's that is not built yet. Raises UsageError, NotSupported, or Help.
    """
    long = {flag.name: flag for flag in flags}
    short = {flag.short: flag for flag in flags if flag.short}
    options = Options()
    for flag in flags:
        options[flag.name] = [] if flag.kind == LIST else flag.default
    rest: list[str] = []
    words = iter(argv)
    for word in words:
        if word == "--":
            rest.extend(words)
        elif word.startswith("--"):
            name, equals, value = word[2:].partition("=")
            if name == "help":
                raise Help(help_text(usage, summary, flags))
            _take(command, long.get(name), "--" + name, value if equals else None, words, options, unsupported)
        elif word.startswith("-") and word != "-":
            if word == "-h" and "h" not in short:
                raise Help(help_text(usage, summary, flags))
            _short(command, word, short, words, options, unsupported)
        else:
            rest.append(word)
            if stop_at_first:
                rest.extend(words)
    if len(rest) < least or (most is not None and len(rest) > most):
        wanted = f"at least {least}" if most is None else f"at most {most}" if least == 0 else f"exactly {least}" if least == most else f"{least} to {most}"
        error = UsageError(f"'utsuwa {command}' takes {wanted} argument{'' if wanted.endswith(' 1') else 's'}; usage: {usage}; see 'utsuwa {command} --help'")
        error.exit_code = 1  # as Docker's
        raise error
    return options, rest


def _short(command: str, word: str, short: dict[str, Flag], words: object, options: Options, unsupported: frozenset[str]) -> None:
    letters = word[1:]
    while letters:
        letter, letters = letters[0], letters[1:]
        flag = short.get(letter)
        if flag is not None and flag.kind == BOOL and not letters.startswith("="):
            _take(command, flag, "-" + letter, None, words, options, unsupported)
            continue
        _take(command, flag, "-" + letter, letters.removeprefix("=") if letters else None, words, options, unsupported)
        return


def _take(command: str, flag: Flag | None, shown: str, value: str | None, words: object, options: Options, unsupported: frozenset[str]) -> None:
    if flag is None:
        if shown.lstrip("-") in unsupported:
            raise NotSupported(f"not yet supported: {shown}")
        raise FlagError(f"unknown flag: {shown}; see 'utsuwa {command} --help'")
    if value is None:
        value = "true" if flag.kind == BOOL else next(words, None)  # type: ignore[call-overload]
        if value is None:
            raise FlagError(f"flag needs an argument: {shown}; see 'utsuwa {command} --help'")
    options.given.add(flag.name)
    if flag.kind == BOOL:
        if value.lower() not in ("true", "false", "1", "0", "t", "f"):
            raise FlagError(f"invalid argument {value!r} for {shown}: expected true or false")
        options[flag.name] = value.lower() in ("true", "1", "t")
    elif flag.kind == INT:
        options[flag.name] = _whole(value, shown)
    elif flag.kind == LIST:
        options.many(flag.name).append(value)
    else:
        options[flag.name] = value


def _whole(value: str, shown: str) -> int:
    # Python's int takes spaces, underscores and any script's digits, of any length; Go's has 64 bits.
    digits = value[1:] if value[:1] in ("-", "+") else value
    if digits.isascii() and digits.isdigit() and len(digits) <= 19 and -(1 << 63) <= int(value) < 1 << 63:
        return int(value)
    raise FlagError(f"invalid argument {value!r} for {shown}: expected a whole number")


def help_text(usage: str, summary: str, flags: tuple[Flag, ...]) -> str:
    """Return the text of --help."""
    rows = []
    for flag in sorted(flags, key=lambda f: f.name):
        left = f"{'-' + flag.short + ',' if flag.short else '   '} --{flag.name}"
        if flag.kind != BOOL:
            left += " " + (flag.meta or flag.kind)
        rows.append((left, flag.help))
    width = max([len(left) for left, _ in rows], default=0)
    body = "\n".join(f"  {left:<{width}}   {text}" for left, text in rows)
    return f"Usage:  {usage}\n\n{summary}\n" + (f"\nOptions:\n{body}\n" if rows else "")
