"""run: make and start a container; in the foreground follow it to its end and clean up after it."""

from __future__ import annotations

import _signal as signal  # `signal` itself imports enum, 2 ms

from utsuwa import ledger
from utsuwa.engine import foreground, launch, recover
from utsuwa.engine.seed import Seed
from utsuwa.runtime import handshake
from utsuwa.state import lifecycle

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from utsuwa.engine.context import Context
    from utsuwa.engine.options import RunOptions


class Result:
    """What became of a `run`: the container's `id`, and its exit `code` where it was followed to the end (None: it runs on)."""

    __slots__ = ("code", "id", "oom")

    def __init__(self, id: str, code: int | None, *, oom: bool = False) -> None:  # noqa: A002
        self.id, self.code, self.oom = id, code, oom


def run(
    context: Context, options: RunOptions, seed: Seed | None = None, *,
    stdin: int = -1, output: Callable[[str, bytes], None] = foreground.to_streams, signals: bool = False, progress: Callable[[str], None] | None = None,
    started: Callable[[str], None] | None = None,
) -> Result:
    """Run a container. Detached: returns once its program runs. Else: follows it, and removes or settles it at the end.

    `stdin` is a descriptor to feed it from, `output` takes (stream, bytes), `signals` whether this process's signals are passed on (main thread only),
    `progress` takes the lines that tell of a pull, `started` the id of a detached container.
    Raises UtsuwaError with everything undone.
    """
    this: launch.Launch | None = None
    seed = seed or Seed()
    try:
        recover.recover(context)
        this = launch.Launch(context, options, seed)
        launch.launch(this, progress)
        if options.detach:
            _leave(context, this.id)
            if started is not None:
                started(this.id)
                signal.sigtimedwait((signal.SIGINT,), 0)  # one that came since the start came too late
            return Result(this.id, None)
        if not signals:
            _let_go(this)
        relay = foreground.Relay(seed.sock, stdin=stdin if options.interactive else -1, output=output, terminal=options.terminal, keys=options.detach_keys, signals=signals)
        outcome = relay.run()
        if outcome.detached:
            _leave(context, this.id)
            return Result(this.id, None)
        with ledger.recording(seed.book):
            recover.cleanup(context, this.id, ended=not outcome.lost)
        _done(seed)
        return Result(this.id, outcome.code, oom=outcome.oom)
    finally:
        ledger.note_modules("engine")
        seed.drop()
        if this is not None:
            _let_go(this)


def _let_go(this: launch.Launch) -> None:
    """Take signals as before the start. Idempotent; one that was held back comes now."""
    if this.mask is not None:
        mask, this.mask = this.mask, None
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)


def _leave(context: Context, container: str) -> None:
    """Hand the container over for good: its row is no longer ours."""
    ledger.fault("leave")
    with context.db.write():
        lifecycle.move(context.db, container, lifecycle.UP)


def _done(seed: Seed) -> None:
    try:
        handshake.send(seed.sock, handshake.DONE)
    except OSError:  # lost: the clean-up was ours all the same
        return
