"""Parsing of Go's text/template, the part that --format uses: text to a list of nodes.

Left out: define, template and block, which one --format string has no use for. Grammar and wording: pkg.go.dev/text/template.
"""

from __future__ import annotations

import re

from utsuwa.cli.gofmt import quote
from utsuwa.errors import UsageError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

DEPTH_MAX = 100
"""Blocks and parentheses within each other: a bound for the recursion of parser and evaluator."""

_SPACE = " \t\r\n"
_KEYWORDS = frozenset({"block", "break", "continue", "define", "else", "end", "if", "nil", "range", "template", "with"})
_CONSTANTS = {"true": True, "false": False}
_TOKENS = re.compile(
    r"""(?P<space>[ \t\r\n]+)|(?P<declare>:=)|(?P<assign>=)|(?P<pipe>\|)|(?P<lparen>\()|(?P<rparen>\))|(?P<comma>,)
    |(?P<string>"(?:[^"\\\n]|\\.)*")|(?P<raw>`[^`]*`)|(?P<char>'(?:[^'\\\n]|\\.)+')
    |(?P<number>[+-]?\.?[0-9][0-9a-zA-Z_]*(?:\.[0-9a-zA-Z_]*)?(?:(?<=[eE])[+-][0-9]+)?)
    |(?P<field>\.[^\W\d]\w*)|(?P<dot>\.)|(?P<variable>\$\w*)|(?P<word>[^\W\d]\w*)""",
    re.VERBOSE,
)
_ENDS_WORD = frozenset(" \t\r\n.,|:)(")
_ESCAPES = {"a": "\a", "b": "\b", "f": "\f", "n": "\n", "r": "\r", "t": "\t", "v": "\v", "\\": "\\", "'": "'", '"': '"'}
_ESCAPE = re.compile(r"\\(x[0-9a-fA-F]{2}|u[0-9a-fA-F]{4}|U[0-9a-fA-F]{8}|[0-7]{3}|.)", re.DOTALL)


class Token:
    """`kind` is text, left, right, eof, keyword, constant, or a group of _TOKENS; `pos` an offset in characters."""

    __slots__ = ("kind", "pos", "text")

    def __init__(self, kind: str, text: str, pos: int) -> None:
        self.kind, self.text, self.pos = kind, text, pos


class Node:
    """A node: `kind` says which; `value`, `names` and `parts` are what that kind has. `str()` is its source, as error messages show it.

    text, literal   value (and text: the source)      dot, nil
    field, variable names                             function   names: its name
    chain           parts: [node], names              command    parts: arguments
    pipe            parts: commands, names: variables, value: True where they are declared, False where they are set
    action          parts: [pipe]
    if with range   parts: [pipe], body, orelse       break, continue
    """

    __slots__ = ("body", "kind", "names", "orelse", "parts", "pos", "text", "value")

    def __init__(self, kind: str, pos: int, *, text: str = "", value: object = None, names: list[str] | None = None, parts: list[Node] | None = None) -> None:
        self.kind, self.pos, self.text, self.value = kind, pos, text, value
        self.names, self.parts = names or [], parts or []
        self.body: list[Node] = []
        self.orelse: list[Node] = []

    def __str__(self) -> str:
        return _SOURCE.get(self.kind, _plain)(self)


def _plain(node: Node) -> str:
    return node.text


def _command_source(node: Node) -> str:
    return " ".join(f"({part})" if part.kind == "pipe" else str(part) for part in node.parts)


def _pipe_source(node: Node) -> str:
    variables = ", ".join(node.names) + (" := " if node.value else " = ") if node.names else ""
    return variables + " | ".join(map(str, node.parts))


_SOURCE: dict[str, Callable[[Node], str]] = {
    "field": lambda node: "".join("." + name for name in node.names),
    "variable": lambda node: ".".join(node.names),
    "function": lambda node: node.names[0],
    "chain": lambda node: (f"({node.parts[0]})" if node.parts[0].kind == "pipe" else str(node.parts[0])) + "".join("." + name for name in node.names),
    "command": _command_source,
    "pipe": _pipe_source,
    "dot": lambda _node: ".",
    "nil": lambda _node: "nil",
}


def bad(text: str, pos: int, why: str) -> UsageError:
    """Return the error of a template that cannot be read, in Go's words: with the line alone."""
    return UsageError(f"template parsing error: template: :{1 + text.count(chr(10), 0, pos)}: {why}")


# ----------------------------------------------------------------------------------------------------------------- tokens

def tokens(text: str) -> list[Token]:
    """Split a template. Raises UsageError."""
    found: list[Token] = []
    pos = 0
    while True:
        start = text.find("{{", pos)
        if start < 0:
            found.append(Token("text", text[pos:], pos))
            found.append(Token("eof", "EOF", len(text)))
            return found
        before, inside = text[pos:start], start + 2
        if text[inside:inside + 1] == "-" and text[inside + 1:inside + 2] in _SPACE and inside + 1 < len(text):
            before, inside = before.rstrip(_SPACE), inside + 2
        found.append(Token("text", before, pos))
        pos = _comment(text, inside) if text.startswith("/*", inside) else _action(text, inside, start, found)


def _close(text: str, pos: int) -> int:
    """Return where text goes on after a right delimiter at `pos`, or -1 where there is none."""
    if text.startswith("}}", pos):
        return pos + 2
    if text[pos:pos + 1] and text[pos] in _SPACE and text.startswith("-}}", pos + 1):
        after = text[pos + 4:]
        return len(text) - len(after.lstrip(_SPACE))
    return -1


def _comment(text: str, inside: int) -> int:
    end = text.find("*/", inside)
    if end < 0:
        raise bad(text, inside, "unclosed comment")
    after = _close(text, end + 2)
    if after < 0:
        raise bad(text, inside, "comment ends before closing delimiter")
    return after


def _action(text: str, pos: int, start: int, found: list[Token]) -> int:
    found.append(Token("left", "{{", start))
    depth = 0
    while True:
        after = _close(text, pos)
        if after >= 0:
            if depth:
                raise bad(text, pos, "unclosed left paren")
            found.append(Token("right", "}}", pos))
            return after
        token = _token(text, pos)
        depth += {"lparen": 1, "rparen": -1}.get(token.kind, 0)
        if depth < 0:
            raise bad(text, pos, "unexpected right paren")
        found.append(token)
        pos += len(token.text)


def _token(text: str, pos: int) -> Token:
    match = _TOKENS.match(text, pos)
    if match is None:
        if pos >= len(text) or text[pos] == "\n":
            raise bad(text, pos, "unclosed action")
        what = {'"': "unterminated quoted string", "`": "unterminated raw quoted string", "'": "unterminated character constant"}.get(text[pos])
        raise bad(text, pos, what or f'unexpected "{text[pos]}" in {"operand" if text[pos] == "}" else "command"}')
    kind, word = str(match.lastgroup), match.group()
    if kind == "space" and len(word) > 1 and text.startswith("-}}", match.end()):
        word = word[:-1]  # the last one belongs to the trim marker
    if kind in ("field", "variable", "word"):
        after = text[match.end():match.end() + 1]
        if after and after not in _ENDS_WORD and not text.startswith("}}", match.end()):
            raise bad(text, pos, f"bad character U+{ord(after):04X} {after!r}")
        if kind == "word":
            kind = "keyword" if word in _KEYWORDS else "constant" if word in _CONSTANTS else kind
    return Token(kind, word, pos)


# ----------------------------------------------------------------------------------------------------------------- parser

class Parser:
    """One pass over the tokens. `functions` are the names that may be called."""

    __slots__ = ("_at", "_depth", "_functions", "_loops", "_text", "_tokens", "_variables")

    def __init__(self, text: str, functions: frozenset[str]) -> None:
        self._text, self._functions = text, functions
        self._tokens, self._at, self._depth, self._loops = tokens(text), 0, 0, 0
        self._variables = ["$"]

    def parse(self) -> list[Node]:
        """Return the template's nodes. Raises UsageError."""
        nodes, end = self._list()
        if end:
            raise self._bad(f"unexpected {{{{{end}}}}}")
        return nodes

    def _bad(self, why: str) -> UsageError:
        return bad(self._text, self._tokens[min(self._at, len(self._tokens) - 1)].pos, why)

    def _peek(self) -> Token:
        return self._tokens[self._at]

    def _next(self) -> Token:
        token = self._tokens[self._at]
        self._at += 1
        return token

    def _skip_space(self) -> Token:
        """Return the next token that is not space, without taking it."""
        while self._peek().kind == "space":
            self._at += 1
        return self._peek()

    def _deeper(self) -> None:
        self._depth += 1
        if self._depth > DEPTH_MAX:
            raise self._bad(f"more than {DEPTH_MAX} blocks or parentheses within each other")

    def _list(self) -> tuple[list[Node], str]:
        """Read nodes up to the end, {{end}} or {{else}}; return them and which word ended them ("" at the end)."""
        nodes: list[Node] = []
        while True:
            token = self._next()
            if token.kind == "text":
                if token.text:
                    nodes.append(Node("text", token.pos, text=token.text))
                continue
            if token.kind == "eof":
                self._at -= 1
                return nodes, ""
            first = self._skip_space()
            if first.kind == "keyword" and first.text in ("end", "else"):
                self._at += 1
                return nodes, first.text
            nodes.append(self._statement(first))

    def _statement(self, first: Token) -> Node:
        if first.kind != "keyword" or first.text == "nil":
            return Node("action", first.pos, parts=[self._pipe("command", "right")])
        self._at += 1
        if first.text in ("if", "with", "range"):
            return self._branch(first.text, first.pos)
        if first.text in ("break", "continue"):
            if not self._loops:
                raise self._bad(f"{{{{{first.text}}}}} outside {{{{range}}}}")
            self._end_action(first.text)
            return Node(first.text, first.pos)
        raise self._bad(f"{{{{{first.text}}}}} is not supported in --format")

    def _end_action(self, context: str) -> None:
        token = self._skip_space()
        if token.kind != "right":
            raise self._bad(f"unexpected {_shown(token)} in {context}")
        self._at += 1

    def _branch(self, kind: str, pos: int) -> Node:
        self._deeper()
        known = len(self._variables)
        node = Node(kind, pos, parts=[self._pipe(kind, "right")])
        self._loops += kind == "range"
        node.body, end = self._list()
        self._loops -= kind == "range"
        if end == "else":
            node.orelse, end = self._else(kind)
        if end != "end":
            raise self._bad(f"expected end; found {{{{{end}}}}}" if end else "unexpected EOF")
        if self._tokens[self._at - 1].text == "end":  # an {{else if}} has taken its own
            self._end_action("end")
        del self._variables[known:]
        self._depth -= 1
        return node

    def _else(self, kind: str) -> tuple[list[Node], str]:
        token = self._skip_space()
        if token.kind == "keyword" and token.text == kind and kind != "range":
            self._at += 1
            return [self._branch(kind, token.pos)], "end"
        self._end_action("else")
        return self._list()

    def _pipe(self, context: str, closing: str) -> Node:
        """Read a pipeline and its closing token, "right" or "rparen"."""
        pos = self._skip_space().pos
        names, declares = self._variables_of(context)
        pipe = Node("pipe", pos, names=names, value=declares)
        while True:
            token = self._skip_space()
            if token.kind == closing:
                self._at += 1
                break
            if not self._starts_operand(token):
                raise self._bad(f"unexpected {_shown(token)} in {context}")
            pipe.parts.append(self._command())
        self._check(pipe, context)
        if declares:
            self._variables.extend(names)
        return pipe

    def _check(self, pipe: Node, context: str) -> None:
        if not pipe.parts:
            raise self._bad(f"missing value for {context}")
        for stage, command in enumerate(pipe.parts[1:], 2):
            if command.parts[0].kind in ("literal", "dot", "nil"):
                raise self._bad(f"non executable command in pipeline stage {stage}")

    def _variables_of(self, context: str) -> tuple[list[str], bool]:
        """Read `$x :=`, `$x =` or `$k, $v :=` where it stands; else take nothing."""
        start = self._at
        names: list[str] = []
        while self._skip_space().kind == "variable":
            names.append(self._next().text)
            token = self._skip_space()
            if token.kind in ("declare", "assign"):
                self._at += 1
                if len(names) > (2 if context == "range" else 1):
                    raise self._bad(f"too many declarations in {context}")
                for name in names if token.kind == "assign" else ():
                    self._known(name)
                return names, token.kind == "declare"
            if token.kind != "comma":
                break
            self._at += 1
        self._at = start
        return [], False

    def _known(self, name: str) -> None:
        if name not in self._variables:
            raise self._bad(f'undefined variable "{name}"')

    @staticmethod
    def _starts_operand(token: Token) -> bool:
        return token.kind in ("field", "dot", "variable", "word", "constant", "number", "string", "raw", "char", "lparen") or token.text == "nil"

    def _command(self) -> Node:
        command = Node("command", self._skip_space().pos)
        while True:
            token = self._skip_space()
            if self._starts_operand(token):
                command.parts.append(self._operand())
                if self._peek().kind == "space":
                    continue
            token = self._peek()
            if token.kind == "pipe":
                self._at += 1
            elif token.kind not in ("right", "rparen"):
                raise self._bad(f"unexpected {_shown(token)} in operand")
            return command

    def _operand(self) -> Node:
        node = self._term()
        token = self._peek()
        if token.kind != "field":
            return node
        names = []
        while self._peek().kind == "field":
            names.append(self._next().text[1:])
        if node.kind in ("field", "variable"):
            return Node(node.kind, token.pos, names=node.names + names)  # Go counts the position from the second name
        if node.kind in ("literal", "dot", "nil"):
            raise self._bad(f"unexpected . after term {quote(str(node))}")
        return Node("chain", token.pos, parts=[node], names=names)

    def _term(self) -> Node:
        token = self._next()
        if token.kind == "lparen":
            self._deeper()
            pipe = self._pipe("parenthesized pipeline", "rparen")
            self._depth -= 1
            return pipe
        if token.kind == "field":
            return Node("field", token.pos, names=[token.text[1:]])
        if token.kind == "variable":
            self._known(token.text)
            return Node("variable", token.pos, names=[token.text])
        if token.kind in ("dot", "keyword"):
            return Node("dot" if token.kind == "dot" else "nil", token.pos)
        if token.kind == "word":
            if token.text not in self._functions:
                raise self._bad(f'function "{token.text}" not defined')
            return Node("function", token.pos, names=[token.text])
        return Node("literal", token.pos, text=token.text, value=self._literal(token))

    def _literal(self, token: Token) -> object:
        if token.kind == "constant":
            return _CONSTANTS[token.text]
        if token.kind == "raw":
            return token.text[1:-1]
        if token.kind == "number":
            return self._number(token.text)
        text = self._unquote(token.text)
        if token.kind == "char":
            if len(text) != 1:
                raise self._bad(f"malformed character constant: {token.text}")
            return ord(text)
        return text

    def _number(self, text: str) -> int | float:
        for convert in (_integer, float):
            try:
                return convert(text)
            except ValueError:
                continue
        raise self._bad(f'bad number syntax: "{text}"')

    def _unquote(self, quoted: str) -> str:
        def one(match: re.Match[str]) -> str:
            code = match.group(1)
            if code[0] in "xuU" and len(code) > 1:
                return chr(int(code[1:], 16))
            if len(code) == 3:
                return chr(int(code, 8))
            if code not in _ESCAPES:
                raise self._bad(f"invalid escape \\{code} in {quoted}")
            return _ESCAPES[code]

        try:
            return _ESCAPE.sub(one, quoted[1:-1])
        except (ValueError, OverflowError):
            raise self._bad(f"invalid escape in {quoted}") from None


def _integer(text: str) -> int:
    bare = text.lstrip("+-")
    if len(bare) > 1 and bare[0] == "0" and bare.replace("_", "").isdigit():
        return int(text, 8)  # as in Go: 010 is eight
    value = int(text, 0)
    if not -(1 << 63) <= value < 1 << 64:
        raise ValueError(text)
    return value


def _shown(token: Token) -> str:
    if token.kind in ("eof", "right"):
        return "EOF" if token.kind == "eof" else '"}}"'
    return f"<{token.text}>" if token.kind in ("keyword", "field", "variable") else f'"{token.text}"'
