"""utsuwa inspect: containers and images as Docker's JSON, or through a --format template."""

from __future__ import annotations

import sys

from utsuwa.cli.flags import TEXT, Flag, parse
from utsuwa.errors import NotFound, NotSupported, UsageError, UtsuwaError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from utsuwa.cli.template import Template
    from utsuwa.engine.context import Context

    Spec = dict[str, object]

FLAGS = (
    Flag("format", "f", TEXT, "Format output using a custom template: 'json' or a Go template"),
    Flag("type", kind=TEXT, help="Only inspect objects of the given type: container or image"),
)
KINDS = ("container", "image")
LATER = ("config", "network", "node", "plugin", "secret", "service", "task", "volume")
SUMMARY = "Return low-level information on containers and images"


def main(argv: list[str]) -> int:
    """Show each object; what is not found is told on standard error, and the exit code is 1."""
    given, words = parse("inspect", "utsuwa inspect [OPTIONS] NAME|ID [NAME|ID...]", FLAGS, argv, least=1, unsupported=frozenset({"size", "s"}), summary=SUMMARY)
    kind = given.text("type")
    if "type" in given.given and kind not in KINDS:
        if kind in LATER:
            raise NotSupported(f"not yet supported: --type {kind}")
        raise UsageError(f'unknown type: "{kind}": must be one of "{", ".join(KINDS)}"')
    from utsuwa.cli import template
    from utsuwa.cli.main import context

    shape = given.text("format")
    filled = template.Template(shape) if shape not in ("", "json") else None
    found, failures = collect(context(), words, (kind,) if kind else KINDS)
    failures += show(found, shape, filled)
    for line in failures:
        print(line, file=sys.stderr)
    return 1 if failures else 0


def collect(where: Context, words: list[str], kinds: tuple[str, ...]) -> tuple[list[Spec], list[str]]:
    """Return the objects that were found, and a line for each that was not."""
    from utsuwa.engine import images
    from utsuwa.engine.inspect import container

    finders: dict[str, Callable[[Context, str], Spec]] = {"container": container, "image": images.inspect}
    found, failures = [], []
    for word in words:
        for kind in kinds:
            try:
                found.append(finders[kind](where, word))
                break
            except NotFound:
                continue
            except UtsuwaError as error:
                failures.append(f"Error: {error}")
                break
        else:
            failures.append(f"Error: No such {kinds[0] if len(kinds) == 1 else 'object'}: {word}")
    return found, failures


def show(found: list[Spec], shape: str, filled: Template | None) -> list[str]:
    """Print the objects: a JSON array, or one filled template a line; return a line for each that the template does not fit."""
    from json import dumps

    if filled is None:
        print(dumps(found, ensure_ascii=False, **({"separators": (",", ":")} if shape else {"indent": 4})))
        return []
    lines, failures = [], []
    for item in found:
        try:
            lines.append(filled.render(typed(item)))
        except UtsuwaError as error:
            failures.append(str(error))
    print("\n".join(lines))
    return failures


# Of which Go type a field is that may be nil, so that it prints as in Docker: `{{.Config.Entrypoint}}` is [] and not <no value>.
_SLICES = ("Aliases Args Binds CapAdd CapDrop Cmd DNSNames DeviceCgroupRules DeviceRequests Devices Dns DnsOptions DnsSearch Entrypoint Env ExecIDs ExtraHosts GroupAdd Links OnBuild "
           "SecondaryIPAddresses SecondaryIPv6Addresses SecurityOpt Shell VolumesFrom")
_MAPS = "DriverOpts ExposedPorts Labels Networks Options PortBindings Ports Volumes"
_POINTERS = "Health Healthcheck IPAMConfig MemorySwappiness OomKillDisable PidsLimit StopTimeout"
_SHOWN = {**dict.fromkeys(_SLICES.split(), "[]"), **dict.fromkeys(_MAPS.split(), "map[]"), **dict.fromkeys(_POINTERS.split(), "<nil>")}
_LEFT_OUT = {"State": ("Health",), "Config": ("Healthcheck", "ExposedPorts", "StopSignal", "StopTimeout", "Shell"), "Mounts": ("Name", "Driver")}
"""Fields that Docker leaves out of the JSON where they are empty; a template may ask for them all the same."""


def typed(value: object, name: str = "") -> object:
    """Return the same data with what Go's types know of it: maps, and nils of a type."""
    from utsuwa.cli.gofmt import Map, Nil

    if value is None and name in _SHOWN:
        return Nil(_SHOWN[name])
    if isinstance(value, dict):
        inner = {key: typed(each, key) for key, each in value.items()}
        if name in _MAPS.split():
            known = Map(inner)
            known.zero = Nil("[]") if name in ("Ports", "PortBindings") else "" if name == "Labels" else Nil("<nil>")
            return known
        return {**inner, **{key: Nil(_SHOWN.get(key, ""), omitempty=True) for key in _LEFT_OUT.get(name, ()) if key not in inner}}
    if isinstance(value, list):
        return [typed(each, name) for each in value]
    return value
