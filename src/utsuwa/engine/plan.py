"""`run --dry-run`: the same code with a kernel door that does nothing; what it records is the plan."""

from __future__ import annotations

import json

from utsuwa import ledger
from utsuwa.engine import images, launch
from utsuwa.engine.seed import Seed
from utsuwa.kernel import door
from utsuwa.runtime import create

TYPE_CHECKING = False
if TYPE_CHECKING:
    from utsuwa.engine.context import Context
    from utsuwa.engine.options import RunOptions

    Spec = dict[str, object]


def plan(context: Context, options: RunOptions) -> list[Spec]:
    """Return the ledger that `run` would write, as parsed lines with result null. Makes nothing; a missing image is pulled all the same."""
    images.resolve(context, options.image)
    door.use_backend("dry")
    try:
        seed = Seed()
        this = launch.Launch(context, options, seed)
        with ledger.recording(seed.book):
            this.image = images.resolve(context, options.image)
            launch.decide(this)
            this.sandbox.plan()
            launch.make_groups(this)
        with ledger.recording(ledger.Ledger("monitor", seed.held)):
            create.adopt_orphans()
            create.retire(door.FAKE)
            create.create(this.config, this.bundle, ())
            create.shelter(this.config)
        lines = [json.loads(line) for line in seed.held.lines]
        seed.sock.close()
    finally:
        door.use_backend("real")
    return lines
