"""What every use case starts from: where things are, the database, and whether we live in a user namespace."""

from __future__ import annotations

import os

from utsuwa.kernel.process import in_user_namespace
from utsuwa.state.db import Database
from utsuwa.state.paths import Paths

ROOTLESS = "UTSUWA_ROOTLESS"
"""Set by the holder's join to the caller's own user id, for our own children: inside the holder everybody is 0."""


class Context:
    """One engine's state. `rootless` is true inside the holder's user namespace; `owner` is then the user's id outside, else 0."""

    __slots__ = ("db", "owner", "paths", "rootless")

    def __init__(self, paths: Paths, db: Database, owner: int = 0, rootless: bool = False) -> None:
        self.paths, self.db, self.owner, self.rootless = paths, db, owner, rootless


def open_context(paths: Paths | None = None) -> Context:
    """Open the engine's state, made where missing. Call after the holder has been joined. Raises UtsuwaError."""
    paths = paths or Paths()
    if not (os.path.isdir(paths.run + "/locks") and os.path.isdir(paths.root + "/ledgers")):  # the last ones that `make` makes
        paths.make()
    db = Database(paths.database)
    owner = os.environ.get(ROOTLESS, "")
    if owner and not in_user_namespace():  # left in the environment of somebody who is root after all
        owner = ""
    return Context(paths, db, int(owner or "0"), bool(owner))
