"""utsuwa version, info, and system check."""

from __future__ import annotations

from utsuwa.cli.flags import BOOL, TEXT, Flag, parse
from utsuwa.errors import UsageError

TYPE_CHECKING = False
if TYPE_CHECKING:
    Spec = dict[str, object]

_FORMAT = Flag("format", "f", TEXT, "Format output using a custom template: 'json' or a Go template")


def version(argv: list[str]) -> int:
    """Show the version; needs neither state nor privilege."""
    given, _ = parse("version", "utsuwa version [OPTIONS]", (_FORMAT, Flag("short", kind=BOOL, help="One line")), argv, most=0, summary="Show the version")
    from utsuwa.engine import system as engine

    known = engine.version()
    client: Spec = known["Client"]  # type: ignore[assignment]
    if given.on("short"):
        print(f"utsuwa version {client['Version']}")
    elif given.text("format"):
        print(_filled(given.text("format"), known))
    else:
        rows = (("Version", client["Version"]), ("API version", client["ApiVersion"]), ("Python version", client["PythonVersion"]), ("OS/Arch", f"{client['Os']}/{client['Arch']}"))
        print("Client:")
        for name, value in rows:
            print(f" {name + ':':<18} {value}")
    return 0


def info(argv: list[str]) -> int:
    """Show what this engine and this machine are."""
    given, _ = parse("info", "utsuwa info [OPTIONS]", (_FORMAT,), argv, most=0, summary="Display system-wide information")
    from utsuwa.cli.main import context
    from utsuwa.engine import system as engine

    known = engine.info(context())
    print(_filled(given.text("format"), known) if given.text("format") else told(known, engine.version()["Client"]))  # type: ignore[arg-type]
    return 0


def _filled(shape: str, known: Spec) -> str:
    from utsuwa.cli import gofmt, template

    return gofmt.json(known) if shape == "json" else template.render(shape, known)


def told(known: Spec, client: Spec) -> str:
    """Return what `info` prints, laid out as Docker's."""
    from utsuwa.cli import units

    status: list[list[str]] = known["DriverStatus"]  # type: ignore[assignment]
    lines = ["Client:", f" Version:    {client['Version']}", "", "Server:", f" Containers: {known['Containers']}"]
    lines += [f"  {name}: {known['Containers' + name]}" for name in ("Running", "Paused", "Stopped")]
    lines += [f" Images: {known['Images']}", f" Server Version: {known['ServerVersion']}", f" Storage Driver: {known['Driver']}", *(f"  {name}: {value}" for name, value in status)]
    lines += [f" {label}: {known[key]}" for label, key in (("Logging Driver", "LoggingDriver"), ("Cgroup Driver", "CgroupDriver"), ("Cgroup Version", "CgroupVersion"))]
    lines += [" Runtimes: " + " ".join(known["Runtimes"]), f" Default Runtime: {known['DefaultRuntime']}", " Security Options:"]  # type: ignore[arg-type]
    for option in known["SecurityOptions"]:  # type: ignore[attr-defined]
        name, *rest = [part.partition("=")[2] for part in option.split(",")]
        lines += [f"  {name}", *(f"   Profile: {value}" for value in rest)]
    labels = (("Kernel Version", "KernelVersion"), ("Operating System", "OperatingSystem"), ("OSType", "OSType"), ("Architecture", "Architecture"), ("CPUs", "NCPU"))
    lines += [f" {label}: {known[key]}" for label, key in labels]
    lines += [f" Total Memory: {units.bytes_size(known['MemTotal'])}", f" Name: {known['Name']}", f" Root Dir: {known['DockerRootDir']}", f" Run Dir: {known['RunRoot']}"]  # type: ignore[arg-type]
    return "\n".join([*lines, f" Rootless: {str(known['Rootless']).lower()}", *known["Warnings"]])  # type: ignore[misc]


def system(argv: list[str]) -> int:
    """`system check [--repair]`: tell what is left on this machine that belongs to no container. Exit code 1 where something is and stays."""
    usage = "utsuwa system check [--repair]"
    flags = (Flag("repair", kind=BOOL, help="Remove it"),)
    given, words = parse("system", usage, flags, argv, most=1, summary="Check that nothing is left behind")
    if words != ["check"]:
        raise UsageError(f"unknown command: system {' '.join(words)}".rstrip() + f"; usage: {usage}")
    from utsuwa.cli.main import context
    from utsuwa.engine import leftovers

    found = leftovers.check(context(), repair=given.on("repair"))
    for line in found:
        print(("removed: " if given.on("repair") else "left: ") + line)
    return 1 if found and not given.on("repair") else 0
