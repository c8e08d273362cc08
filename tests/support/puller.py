"""An engine's images in a temporary directory, and the assertion that a failed pull left nothing."""

import os

import pytest

from utsuwa.engine import images
from utsuwa.engine.context import Context
from utsuwa.image import store
from utsuwa.state.db import Database
from utsuwa.state.paths import Paths


class Puller:
    def __init__(self, where):
        self.paths = Paths(f"{where}/root", f"{where}/run")
        self.paths.make()
        self.db = Database(self.paths.database)
        self.context = Context(self.paths, self.db)
        self.lines = []

    def pull(self, reference, **options):
        self.lines = []
        return images.pull(self.context, reference, progress=self.lines.append, **options)

    def fails(self, reference, kind, why, **options):
        """The pull fails with one clear line of that type, and nothing is left. Returns the line."""
        before = self.files()
        with pytest.raises(kind) as caught:
            self.pull(reference, **options)
        text = str(caught.value)
        assert type(caught.value) is kind and why in text and "\n" not in text and len(text) < 600, repr(caught.value)
        assert self.files() == before
        return text

    def files(self):
        """Every file and directory of the store, but for the database."""
        skipped = ("state.db", "index.json", "oci-layout")
        return sorted(os.path.join(base, name) for top in (self.paths.root, self.paths.run) for base, directories, files in os.walk(top) for name in directories + files if not name.startswith(skipped))

    def clean(self):
        return store.leftovers(self.paths, self.db) == [] and not os.listdir(self.paths.run + "/locks")

    def close(self):
        self.db.close()
