"""attach, stop, kill, wait, rm, and the monitor's own _cleanup. Several names at once: each is tried, failures are told, exit 1."""

from __future__ import annotations

import os

from utsuwa.cli.flags import BOOL, INT, TEXT, Flag, parse
from utsuwa.errors import NotFound, UtsuwaError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable


def _each(words: list[str], act: Callable[[str], None]) -> int:
    """Do `act` for each word; tell failures one line each. Returns 1 when one failed."""
    from utsuwa.cli.main import tell

    code = 0
    for word in words:
        try:
            act(word)
        except UtsuwaError as error:
            code = 1
            tell(str(error))
    return code


def attach(argv: list[str]) -> int:
    """Attach to a running container; the exit code is the container's, 0 after the detach keys, 1 where there is no such container or it does not run."""
    flags = (Flag("detach-keys", kind=TEXT, help="Override the key sequence for detaching a container"), Flag("no-stdin", kind=BOOL, help="Do not attach STDIN"),
             Flag("sig-proxy", kind=BOOL, help="Proxy all received signals to the process", default=True))
    given, words = parse("attach", "utsuwa attach [OPTIONS] CONTAINER", flags, argv, least=1, most=1, summary="Attach local standard input, output, and error streams to a running container")
    from utsuwa.cli.main import context
    from utsuwa.cli.run import detach_keys
    from utsuwa.engine import containers, control

    where = context()
    keys = detach_keys(given.text("detach-keys")) if "detach-keys" in given.given else b"\x10\x11"
    row = containers.find(where, words[0])
    outcome = control.attach(where, row.id, stdin=-1 if given.on("no-stdin") else 0, keys=keys, signals=True, proxy=given.on("sig-proxy"))
    return 0 if outcome.detached else outcome.code


def stop(argv: list[str]) -> int:
    """Stop containers: their stop signal, a grace period, SIGKILL."""
    flags = (Flag("time", "t", INT, "Seconds to wait before killing the container", default=10), Flag("timeout", kind=INT, help="The same"), Flag("signal", "s", TEXT, "Signal to send to the container"))
    given, words = parse("stop", "utsuwa stop [OPTIONS] CONTAINER [CONTAINER...]", flags, argv, least=1, summary="Stop one or more running containers")
    from utsuwa.cli.main import context
    from utsuwa.engine import containers, control

    where = context()
    signal = control.signal_number(given.text("signal")) if given.text("signal") else None
    seconds = given.number("timeout") if "timeout" in given.given else given.number("time")

    def act(word: str) -> None:
        control.stop(where, containers.find(where, word).id, seconds, signal)
        print(word, flush=True)

    return _each(words, act)


def kill(argv: list[str]) -> int:
    """Signal containers, SIGKILL by default."""
    given, words = parse("kill", "utsuwa kill [OPTIONS] CONTAINER [CONTAINER...]", (Flag("signal", "s", TEXT, "Signal to send to the container", default="KILL"),), argv, least=1, summary="Kill one or more running containers")
    from utsuwa.cli.main import context
    from utsuwa.engine import containers, control

    where = context()
    number = control.signal_number(given.text("signal"))

    def act(word: str) -> None:
        row = containers.find(where, word)
        control.kill(where, row.id, number)
        if number == 9:
            control.wait(where, row.id)
        print(word, flush=True)

    return _each(words, act)


def wait(argv: list[str]) -> int:
    """Wait for containers to end and print their exit codes."""
    _, words = parse("wait", "utsuwa wait CONTAINER [CONTAINER...]", (), argv, least=1, summary="Block until one or more containers stop, then print their exit codes")
    from utsuwa.cli.main import context
    from utsuwa.engine import containers, control

    where = context()
    return _each(words, lambda word: print(control.wait(where, containers.find(where, word).id), flush=True))


def rm(argv: list[str]) -> int:
    """Remove containers."""
    flags = (Flag("force", "f", BOOL, "Force the removal of a running container (uses SIGKILL)"), Flag("volumes", "v", BOOL, "Remove anonymous volumes associated with the container"))
    given, words = parse("rm", "utsuwa rm [OPTIONS] CONTAINER [CONTAINER...]", flags, argv, least=1, unsupported=frozenset({"link", "l"}), summary="Remove one or more containers")
    from utsuwa.cli.main import context
    from utsuwa.engine import containers, control, recover

    where = context()
    recover.recover(where)
    force = given.on("force")

    def act(word: str) -> None:
        try:
            row = containers.find(where, word)
        except NotFound:
            if force:  # as Docker: nothing to remove is what was wanted, but it is said
                os.write(2, f"Error: No such container: {word}\n".encode(errors="surrogateescape"))
                return
            raise
        control.remove(where, row.id, force=force, volumes=given.on("volumes"))
        print(word, flush=True)

    return _each(words, act)


def cleanup(argv: list[str]) -> int:
    """`utsuwa _cleanup ID`: what a monitor becomes when its container has ended and no caller cleans up."""
    from utsuwa.cli.main import context
    from utsuwa.engine import recover

    recover.cleanup(context(), argv[0])
    return 0
