"""The command line: a table of commands, so that help loads none of them. A door: it translates and decides nothing."""

from __future__ import annotations

import os
import sys

import _signal as signal  # `signal` itself imports enum, 2 ms

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from utsuwa.engine.context import Context

COMMANDS: dict[str, tuple[str, str]] = {
    "run": ("utsuwa.cli.run:main", "Create and run a new container from an image"),
    "exec": ("utsuwa.cli.exec:main", "Execute a command in a running container"),
    "ps": ("utsuwa.cli.ps:main", "List containers"),
    "logs": ("utsuwa.cli.logs:main", "Fetch the logs of a container"),
    "attach": ("utsuwa.cli.containers:attach", "Attach local standard input, output, and error streams to a running container"),
    "stop": ("utsuwa.cli.containers:stop", "Stop one or more running containers"),
    "kill": ("utsuwa.cli.containers:kill", "Kill one or more running containers"),
    "wait": ("utsuwa.cli.containers:wait", "Block until one or more containers stop, then print their exit codes"),
    "rm": ("utsuwa.cli.containers:rm", "Remove one or more containers"),
    "inspect": ("utsuwa.cli.inspect:main", "Return low-level information on containers and images"),
    "explain": ("utsuwa.cli.explain:main", "Tell how a container was made: every kernel call, and why"),
    "pull": ("utsuwa.cli.images:pull", "Download an image from a registry"),
    "images": ("utsuwa.cli.images:images", "List images"),
    "rmi": ("utsuwa.cli.images:rmi", "Remove one or more images"),
    "system": ("utsuwa.cli.system:system", "Check that nothing is left behind: `system check [--repair]`"),
    "version": ("utsuwa.cli.system:version", "Show the version"),
    "info": ("utsuwa.cli.system:info", "Display system-wide information"),
    "_cleanup": ("utsuwa.cli.containers:cleanup", ""),
}
"""name -> (module:function, summary); one without a summary is ours alone."""


def context() -> Context:
    """Return the engine's context; as an ordinary user the holder's namespaces are joined first."""
    from utsuwa.engine.context import open_context
    from utsuwa.state.paths import Paths

    paths = Paths()
    if os.geteuid() != 0:
        from utsuwa.engine import holder

        holder.enter(paths)
    return open_context(paths)


def main(argv: list[str] | None = None) -> None:
    """Run one command and exit with its code. Never returns; an error of ours is one line, never a traceback."""
    argv = sys.argv[1:] if argv is None else argv
    code = 125
    if signal.getsignal(signal.SIGINT) == signal.SIG_DFL:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    sys.unraisablehook = _interrupt_again
    while (fd := os.open("/dev/null", os.O_RDWR)) < 3:  # a stream that the caller closed: its number must not become something else's
        os.set_inheritable(fd, True)
    os.close(fd)
    try:
        code = dispatch(argv)
        sys.stdout.flush()
    except KeyboardInterrupt:
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        code = 130
    except BrokenPipeError:
        os.dup2(os.open("/dev/null", os.O_WRONLY), 1)  # nobody reads: the flush at exit must not complain
        code = 141
    except Exception as error:  # noqa: BLE001 - the door: whatever it is, a user reads one line
        code = report(error, argv[0] if argv else "")
    try:
        sys.stdout.flush()
    finally:
        # Not sys.exit: there is nothing to tear down, and the interpreter's own way out takes 3 ms.
        os._exit(code)


def _interrupt_again(unraisable: sys.UnraisableHookArgs) -> None:
    """Ctrl-C that came in a place where an exception gets lost (a callback of a weak reference, an import's among them) comes once more; the rest as ever."""
    if isinstance(unraisable.exc_value, KeyboardInterrupt):
        from _thread import start_new_thread

        start_new_thread(_interrupt_soon, ())  # raised in here it would be lost as well
    else:
        sys.__unraisablehook__(unraisable)


def _interrupt_soon() -> None:
    from _thread import interrupt_main
    from time import sleep

    sleep(0.01)
    interrupt_main()


def dispatch(argv: list[str]) -> int:
    """Find the command and run it. Returns its exit code."""
    if argv[:1] == ["help"] and len(argv) > 1:
        argv = [argv[1], "--help"]
    if not argv or argv[0] in ("help", "--help", "-h"):
        print(usage())
        return 0
    if argv[0] in ("--version", "-v"):
        argv = ["version", "--short"]
    found = COMMANDS.get(argv[0])
    if found is None:
        from utsuwa.errors import UsageError

        if argv[0].startswith("-"):
            from utsuwa.cli.flags import FlagError

            raise FlagError(f"unknown flag: {argv[0]}; see 'utsuwa --help'")
        raise UsageError(f"unknown command: {argv[0]}; see 'utsuwa --help'")
    return function(found[0])(argv[1:])


def function(target: str) -> Callable[[list[str]], int]:
    """Import `module:function`."""
    module, _, name = target.partition(":")
    __import__(module)
    return getattr(sys.modules[module], name)  # type: ignore[no-any-return]


def report(error: Exception, command: str) -> int:
    """Print one line for an error and return the exit code: as in Docker 125 for `run` and for a wrong flag, 1 for other commands."""
    from utsuwa.cli.flags import FlagError, Help
    from utsuwa.errors import NotSupported, UtsuwaError

    if isinstance(error, Help):
        print(error)
        return 0
    if os.environ.get("UTSUWA_DEBUG"):
        import traceback

        traceback.print_exc()
    if isinstance(error, UtsuwaError):
        text, code = str(error), error.exit_code
    elif isinstance(error, OSError):
        text, code = f"{error.strerror or error}{': ' + str(error.filename) if error.filename else ''}".lower(), 125
    else:
        text, code = f"internal error: {type(error).__name__}: {error}; set UTSUWA_DEBUG=1 and report the traceback", 125
    if code == 125 and command != "run" and not isinstance(error, FlagError | NotSupported):
        code = 1
    tell(text)
    return code


def tell(text: str) -> None:
    """Say one line about an error, where somebody listens."""
    try:
        os.write(2, f"utsuwa: {printable(text)}\n".encode(errors="surrogateescape"))
    except OSError:
        return


def printable(text: str) -> str:
    """Return a message as one line that a terminal may be given: images and users have put words in it."""
    return "".join(letter if letter.isprintable() or "\udc80" <= letter <= "\udcff" else letter.encode("unicode_escape").decode() for letter in text)


def usage() -> str:
    """Return the text of `utsuwa --help`."""
    rows = "\n".join(f"  {name:<10} {summary}" for name, (_, summary) in COMMANDS.items() if summary)
    return f"Usage:  utsuwa COMMAND\n\nA container engine without a daemon that gives a reason for every kernel call\n\nCommands:\n{rows}\n\nRun 'utsuwa COMMAND --help' for more on a command."
