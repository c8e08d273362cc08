"""utsuwa exec."""

from __future__ import annotations

import os

from utsuwa.cli.flags import BOOL, LIST, TEXT, Flag, parse
from utsuwa.errors import UsageError

FLAGS = (
    Flag("detach", "d", BOOL, "Detached mode: run command in the background"),
    Flag("detach-keys", kind=TEXT, help="Override the key sequence for detaching a container"),
    Flag("env", "e", LIST, "Set environment variables"),
    Flag("interactive", "i", BOOL, "Keep STDIN open even if not attached"),
    Flag("tty", "t", BOOL, "Allocate a pseudo-TTY"),
    Flag("user", "u", TEXT, "Username or UID (format: <name|uid>[:<group|gid>])"),
    Flag("workdir", "w", TEXT, "Working directory inside the container"),
)


def main(argv: list[str]) -> int:
    """Run a command in a running container; the exit code is its own, 126 or 127 where it cannot run, 1 where there is no such container or it does not run."""
    given, words = parse(
        "exec", "utsuwa exec [OPTIONS] CONTAINER COMMAND [ARG...]", FLAGS, argv, stop_at_first=True, least=2, unsupported=frozenset({"privileged", "env-file"}),
        summary="Execute a command in a running container",
    )
    from utsuwa.cli.main import context
    from utsuwa.engine import options as run_options
    from utsuwa.engine.exec import Exec, run
    from utsuwa.ledger import note_modules

    if given.on("tty") and given.on("interactive") and not given.on("detach") and not os.isatty(0):
        raise UsageError("the input device is not a TTY; leave out -t, or -i")
    wanted = Exec(
        words[0], words[1:], env=run_options.environment(given.many("env"), os.environ), user=given.text("user"), workdir=given.text("workdir"), terminal=given.on("tty"),
        interactive=given.on("interactive"), detach=given.on("detach"),
    )
    if "detach-keys" in given.given:
        from utsuwa.cli.run import detach_keys

        wanted.detach_keys = detach_keys(given.text("detach-keys"))
    code = run(context(), wanted, stdin=0, signals=True)
    note_modules("engine")
    return code
