"""--format: Go templates, as far as Docker's users write them, and Docker's tables.

`render` is what `inspect --format` does with one object, `table` what `ps --format` does with rows. Left out of text/template: define,
template, block, html, js, urlquery, call. The parts: template_parse (text to nodes), template_exec (nodes to text), template_functions, gofmt.
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from utsuwa.cli.template_parse import Node

MIN_WIDTH, PADDING = 10, 3
"""Docker's tabwriter.NewWriter(out, 10, 1, 3, ' ', 0)."""


def render(template: str, row: object) -> str:
    """Return the template filled in from a value, without a newline after it.

    A dictionary stands for a struct: a missing key is an error. In a gofmt.Map it is none. Raises UsageError in Docker's words,
    `template parsing error: template: :1:2: executing "" at <.Foo>: map has no entry for key "Foo"`.
    """
    return Template(template).render(row)


class Template:
    """A template parsed once, for many rows. Raises UsageError when made."""

    __slots__ = ("_nodes", "_text")

    def __init__(self, text: str) -> None:
        from utsuwa.cli.template_functions import FUNCTIONS
        from utsuwa.cli.template_parse import Parser

        self._text = text
        self._nodes: list[Node] = Parser(text, frozenset(FUNCTIONS)).parse()

    def render(self, row: object) -> str:
        from utsuwa.cli.template_exec import Run

        return Run(self._text).run(self._nodes, row)

    def header(self, names: Mapping[str, str]) -> str:
        """Return the header line: the template filled with the columns' names."""
        from utsuwa.cli.template_exec import Run
        from utsuwa.cli.template_functions import HEADER_FUNCTIONS

        return Run(self._text, HEADER_FUNCTIONS, lenient=True).run(self._nodes, {**names, "Label": _label})


def _label(name: str) -> str:
    return name.rpartition(".")[2].replace("-", " ").replace("_", " ")


def table(fmt: str, rows: Sequence[Mapping[str, object]], default: str, headers: Mapping[str, str]) -> str:
    r"""Return rows as Docker prints them, each line with its newline; "" where there is nothing to print.

    `fmt` is what the user gave: "" or `table` (the default), `json`, `table {{.A}}\t{{.B}}`, or a plain template; `\t` and `\n` written
    out are understood. A row is field → value; a callable value is a method (`.Label "x"`). `headers` are the columns' names.
    Raises UsageError.
    """
    if fmt in ("", "table"):
        fmt = default
    is_table = fmt.startswith("table")
    text = "{{json .}}" if fmt == "json" else (fmt.removeprefix("table") if is_table else fmt).strip(" ").replace("\\t", "\t").replace("\\n", "\n")
    template = Template(text)
    # Docker marshals a row as a map, and Go's maps come out sorted.
    lines = "".join(_fill(template, {key: row[key] for key in sorted(row)}) + "\n" for row in rows)
    return columns(template.header(headers) + "\n" + lines) if is_table else lines


def _fill(template: Template, row: dict[str, object]) -> str:
    from utsuwa.errors import UsageError

    try:
        return template.render(row)
    except UsageError as error:
        if "map has no entry" not in str(error):
            raise
        raise UsageError(f"{error}; the fields are {', '.join(row)}") from None


def width(text: str) -> int:
    """Return how many places a terminal needs: two for a wide East Asian letter, none for a combining one."""
    if text.isascii():
        return len(text)
    from unicodedata import combining, east_asian_width

    return sum(0 if combining(letter) else 2 if east_asian_width(letter) in "WF" else 1 for letter in text)


def columns(text: str) -> str:
    r"""Return text with tab-terminated cells set in columns, as Go's text/tabwriter does.

    A column is a run of lines that have a cell there and another after it; it is as wide as its widest cell and 3, but 10 at least.
    """
    lines = [line.split("\t") for line in text.split("\n")]
    out: list[list[str]] = [[] for _ in lines]
    _columns(lines, out, 0, 0, len(lines))
    return "\n".join("".join(cells) for cells in out)


def _columns(lines: list[list[str]], out: list[list[str]], column: int, first: int, end: int) -> None:
    here = first
    while here < end:
        if column >= len(lines[here]) - 1:
            out[here].append(lines[here][column] if column < len(lines[here]) else "")
            here += 1
            continue
        stop = here
        while stop < end and column < len(lines[stop]) - 1:
            stop += 1
        wide = max(MIN_WIDTH, *(width(lines[line][column]) + PADDING for line in range(here, stop)))
        for line in range(here, stop):
            out[line].append(lines[line][column] + " " * (wide - width(lines[line][column])))
        _columns(lines, out, column + 1, here, stop)
        here = stop
