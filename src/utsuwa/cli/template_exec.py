"""Evaluating a parsed --format template on one value. Dictionaries stand for Go's structs: a missing key is an error, except in a gofmt.Map."""

from __future__ import annotations

from utsuwa.cli import gofmt
from utsuwa.cli.gofmt import NO_VALUE, Map, Nil
from utsuwa.cli.template_functions import FUNCTIONS, Failed, truth
from utsuwa.errors import UsageError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from utsuwa.cli.template_parse import Node

_LETTERS: dict[str, tuple[type, str]] = {"s": (str, "string"), "i": (int, "int")}


class _Jump(Exception):
    """Control flow of {{break}} and {{continue}}."""


class Run:
    """One execution. `lenient` makes a missing field `<no value>`, as the header line of an empty table needs."""

    __slots__ = ("_functions", "_lenient", "_out", "_text", "_variables")

    def __init__(self, text: str, functions: dict[str, tuple[str, Callable[..., object]]] | None = None, lenient: bool = False) -> None:
        self._text, self._functions, self._lenient = text, functions or FUNCTIONS, lenient
        self._out: list[str] = []
        self._variables: list[tuple[str, object]] = []

    def run(self, nodes: list[Node], value: object) -> str:
        """Return the text. Raises UsageError in Go's words."""
        self._variables = [("$", value)]
        self._walk(nodes, value)
        return "".join(self._out)

    def _bad(self, node: Node, why: str) -> UsageError:
        before = self._text[:node.pos]
        column = len(before.rpartition("\n")[2].encode("utf-8", "surrogateescape"))
        return UsageError(f'template parsing error: template: :{1 + before.count(chr(10))}:{column}: executing "" at <{node}>: {why}')

    # ---- statements

    def _walk(self, nodes: list[Node], dot: object) -> None:
        for node in nodes:
            _STATEMENTS[node.kind](self, node, dot)

    def _say(self, node: Node, _dot: object) -> None:
        self._out.append(node.text)

    def _action(self, node: Node, dot: object) -> None:
        pipe = node.parts[0]
        value = self._pipe(pipe, dot)
        if not pipe.names:
            self._out.append(NO_VALUE if value is None else gofmt.text(value))

    def _if(self, node: Node, dot: object) -> None:
        known = len(self._variables)
        value = self._pipe(node.parts[0], dot)
        inside = value if node.kind == "with" else dot
        if truth(value):
            self._walk(node.body, inside)
        else:
            self._walk(node.orelse, dot)
        del self._variables[known:]

    def _range(self, node: Node, dot: object) -> None:
        pipe, known = node.parts[0], len(self._variables)
        names = pipe.names
        empty = True
        for key, value in self._pairs(node, self._value_of(pipe, dot)):
            empty = False
            bindings = [] if not names else [(names[0], value)] if len(names) == 1 else [(names[0], key), (names[1], value)]
            for name, each in bindings:
                self._bind(name, each, bool(pipe.value))
            try:
                self._walk(node.body, value)
            except _Jump as jump:
                if jump.args[0] == "break":
                    break
            finally:
                del self._variables[known:]
        if empty:
            self._walk(node.orelse, dot)

    def _pairs(self, node: Node, value: object) -> Iterator[tuple[object, object]]:
        if value is None or isinstance(value, Nil):
            return iter(())
        if isinstance(value, dict):
            return iter([(key, value[key]) for key in sorted(value)])
        if isinstance(value, (list, tuple)):
            return iter(enumerate(value))
        if isinstance(value, int) and not isinstance(value, bool):
            return ((number, number) for number in range(value))
        raise self._bad(node.parts[0], f"range can't iterate over {gofmt.text(value)}")

    def _jump(self, node: Node, _dot: object) -> None:
        raise _Jump(node.kind)

    # ---- variables

    def _bind(self, name: str, value: object, declare: bool) -> None:
        if declare:
            self._variables.append((name, value))
            return
        for place in range(len(self._variables) - 1, -1, -1):
            if self._variables[place][0] == name:
                self._variables[place] = (name, value)
                return

    def _lookup(self, name: str) -> object:
        return next(value for known, value in reversed(self._variables) if known == name)  # the parser has seen to it

    # ---- values

    def _pipe(self, pipe: Node, dot: object) -> object:
        value = self._value_of(pipe, dot)
        for name in pipe.names:
            self._bind(name, value, bool(pipe.value))
        return value

    def _value_of(self, pipe: Node, dot: object) -> object:
        final: tuple[object, ...] = ()
        for command in pipe.parts:
            final = (self._command(command, dot, final),)
        return final[0]

    def _command(self, command: Node, dot: object, final: tuple[object, ...]) -> object:
        first, rest = command.parts[0], command.parts[1:]
        if first.kind == "function":
            return self._call(first.names[0], command, rest, dot, final)
        if first.kind in ("field", "variable", "chain"):
            receiver, names = self._start(first, dot)
            return self._fields(first, receiver, names, [*(self._value(each, dot) for each in rest), *final], called=bool(rest or final))
        if first.kind == "pipe" and not rest and not final:
            return self._value_of(first, dot)
        if rest or final:
            raise self._bad(first, f"can't give argument to non-function {first}")
        if first.kind == "nil":
            raise self._bad(first, "nil is not a command")
        return self._value(first, dot)

    def _value(self, node: Node, dot: object) -> object:
        """Evaluate an operand that stands for itself: as an argument, or alone."""
        if node.kind == "literal":
            return node.value
        if node.kind == "dot":
            return dot
        if node.kind == "nil":
            return None
        if node.kind == "pipe":
            return self._value_of(node, dot)
        if node.kind == "function":
            return self._call(node.names[0], node, [], dot, ())
        receiver, names = self._start(node, dot)
        return self._fields(node, receiver, names, [], called=False)

    def _start(self, node: Node, dot: object) -> tuple[object, list[str]]:
        if node.kind == "variable":
            return self._lookup(node.names[0]), node.names[1:]
        if node.kind == "chain":
            return self._value(node.parts[0], dot), node.names
        return dot, node.names

    def _fields(self, node: Node, value: object, names: list[str], arguments: list[object], *, called: bool) -> object:
        if called and not names:
            raise self._bad(node, f"can't give argument to non-function {node}")
        for place, name in enumerate(names):
            last = place == len(names) - 1
            value = self._field(node, value, name, arguments if last else [], called=called and last)
        return value

    def _field(self, node: Node, receiver: object, name: str, arguments: list[object], *, called: bool) -> object:
        if receiver is None or isinstance(receiver, Nil):
            raise self._bad(node, f"nil pointer evaluating interface {{}}.{name}")
        if not isinstance(receiver, dict):
            if self._lenient:
                return NO_VALUE
            raise self._bad(node, f"can't evaluate field {name} in type {gofmt.kind(receiver)}")
        if name not in receiver:
            if self._lenient or isinstance(receiver, Map):
                return NO_VALUE if self._lenient else None
            raise self._bad(node, f'map has no entry for key "{name}"')
        found = receiver[name]
        if callable(found):
            try:
                return found(*arguments)
            except TypeError:
                raise self._bad(node, f"wrong number of args for {name}: got {len(arguments)}") from None
        if called:
            raise self._bad(node, f"{name} is not a method but has arguments")
        return found

    def _call(self, name: str, node: Node, rest: list[Node], dot: object, final: tuple[object, ...]) -> object:
        signature, function = self._functions[name]
        least = len(signature.replace("*", "")) - signature.count("*")
        given = len(rest) + len(final)
        if given < least or ("*" not in signature and given > least):
            where = node.parts[0] if node.kind == "command" else node
            raise self._bad(where, f"wrong number of args for {name}: want {'at least ' if '*' in signature else ''}{least} got {given}")
        if name in ("and", "or"):
            return self._early(name, rest, dot, final)
        arguments: list[object] = []
        for place in range(given):
            value = self._value(rest[place], dot) if place < len(rest) else final[0]
            letter = signature.replace("*", "")[min(place, len(signature.replace("*", "")) - 1)]
            wanted = _LETTERS.get(letter)
            if wanted and (not isinstance(value, wanted[0]) or (wanted[0] is int and isinstance(value, bool))) and not self._lenient:
                where = rest[place] if place < len(rest) else node
                why = f"expected {wanted[1]}; found {where}" if where.kind == "literal" else f"wrong type for value; expected {wanted[1]}; got {gofmt.kind(value)}"
                raise self._bad(where, why)
            arguments.append(value)
        try:
            return function(*arguments)
        except Failed as error:
            raise self._bad(node, f"error calling {name}: {error}") from None

    def _early(self, name: str, rest: list[Node], dot: object, final: tuple[object, ...]) -> object:
        value: object = None
        for node in rest:
            value = self._value(node, dot)
            if truth(value) is (name == "or"):
                return value
        return final[0] if final else value


_STATEMENTS: dict[str, Callable[[Run, Node, object], None]] = {
    "text": Run._say, "action": Run._action, "if": Run._if, "with": Run._if, "range": Run._range, "break": Run._jump, "continue": Run._jump,  # noqa: SLF001 - its own table
}
