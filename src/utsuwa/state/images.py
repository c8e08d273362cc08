"""Images in the database: looked up by what a user types, inserted and removed in one transaction.

Leaves out the files: `image.store` owns blobs and layers, `engine.images` the order in which both change.
"""

from __future__ import annotations

from utsuwa.errors import Conflict, UsageError
from utsuwa.spec.image import ImageRecord
from utsuwa.spec.reference import is_digest, is_hex, parse

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from utsuwa.state.db import Database


class LayerRow:
    """One layer of an image: `chain` 64 hex digits, `diff` and `blob` digests, `parent` a chain or None, `size` in bytes unpacked."""

    __slots__ = ("blob", "chain", "diff", "parent", "size")

    def __init__(self, chain: str, diff: str, parent: str | None, size: int, blob: str) -> None:
        self.chain, self.diff, self.parent, self.size, self.blob = chain, diff, parent, size, blob


class ImageRow:
    """One image as `images` lists it; `references` holds (canonical name, digest) pairs."""

    __slots__ = ("created", "id", "manifest", "platform", "references", "size")

    def __init__(self, id: str, manifest: str, platform: str, created: str, size: int) -> None:  # noqa: A002
        self.id, self.manifest, self.platform, self.created, self.size = id, manifest, platform, created, size
        self.references: list[tuple[str, str]] = []


def find(db: Database, text: str) -> ImageRecord | None:
    """Return the image that `text` names: a reference, with or without digest, an id, or a unique prefix of one; None when there is none.

    A reference wins over an id prefix of the same spelling, as in Docker. Raises Conflict for an ambiguous prefix.
    """
    if is_digest(text):
        return _one(db.read("SELECT record FROM image WHERE id=?", text))
    try:
        reference = parse(text)
    except UsageError:
        reference = None
    if reference is not None:
        found = _by_reference(db, reference.name, reference.base, reference.digest)
        if found is not None:
            return found
    prefix = text.removeprefix("sha256:")
    if len(prefix) <= 64 and is_hex(prefix):
        return _by_prefix(db, text, prefix)
    return None


def _by_reference(db: Database, name: str, base: str, digest: str) -> ImageRecord | None:
    if not digest:
        return _one(db.read("SELECT i.record FROM reference r JOIN image i ON i.id=r.image WHERE r.name=?", name), name)
    # What a tag was pulled as can be asked for by its digest too; both are names in the same repository.
    sql = "SELECT i.record FROM reference r JOIN image i ON i.id=r.image WHERE (r.digest=?1 OR i.manifest=?1) AND (substr(r.name,1,?2)=?3 OR r.name=?4) LIMIT 1"
    return _one(db.read(sql, digest, len(base) + 1, base + ":", name), name)


def _by_prefix(db: Database, text: str, prefix: str) -> ImageRecord | None:
    rows = db.read("SELECT record FROM image WHERE id>=? AND id<? LIMIT 2", "sha256:" + prefix, "sha256:" + prefix + "g")
    if len(rows) > 1:
        raise Conflict(f"cannot choose an image for {text}: several ids begin so; give more digits")
    return _one(rows)


def _one(rows: list[tuple[str | int | bytes | float | None, ...]], name: str = "") -> ImageRecord | None:
    if not rows:
        return None
    data = rows[0][0]
    return ImageRecord.from_bytes(data, name)  # type: ignore[arg-type]


def every(db: Database) -> list[ImageRow]:
    """Return all images, newest first, each with its references in the order of their names."""
    images: dict[str, ImageRow] = {}
    for row in db.read("SELECT id, manifest, platform, created, size FROM image ORDER BY created DESC, id"):
        images[str(row[0])] = ImageRow(*row)  # type: ignore[arg-type]
    for name, image, digest in db.read("SELECT name, image, digest FROM reference ORDER BY name"):
        if str(image) in images:
            images[str(image)].references.append((str(name), str(digest)))
    return list(images.values())


def layers(db: Database, image: str) -> list[LayerRow]:
    """Return the layers of an image id, bottom first."""
    rows = db.read("SELECT l.chain, l.diff, l.parent, l.size, b.blob FROM image_layer b JOIN layer l ON l.chain=b.chain WHERE b.image=? ORDER BY b.position", image)
    return [LayerRow(*row) for row in rows]  # type: ignore[arg-type]


def insert(db: Database, record: ImageRecord, rows: list[LayerRow], created: str, digest: str, missing: Callable[[], list[str]]) -> list[str]:
    """Add or renew an image and point `record.name` at it, in one transaction. Idempotent.

    `missing` is asked inside the transaction which files are not there (any more): `rmi` removes files under the same lock, so that an
    image is never left without them. Where something is missing nothing is written and the list is returned; [] means done.
    """
    with db.write():
        gone = missing()
        if gone:
            return gone
        size = sum(row.size for row in rows)
        db.do(
            "INSERT INTO image VALUES (?,?,?,?,?,?) ON CONFLICT(id) DO UPDATE SET manifest=excluded.manifest, platform=excluded.platform, record=excluded.record",
            record.id, record.manifest, record.platform, created, size, record.to_bytes(),
        )
        db.do("DELETE FROM image_layer WHERE image=?", record.id)
        for position, row in enumerate(rows):
            db.do("INSERT OR IGNORE INTO layer VALUES (?,?,?,?)", row.chain, row.diff, row.parent, row.size)
            db.do("INSERT INTO image_layer VALUES (?,?,?,?)", record.id, position, row.chain, row.blob)
        if record.name:
            db.do("INSERT OR REPLACE INTO reference VALUES (?,?,?)", record.name, record.id, digest)
    return []


def references(db: Database, image: str) -> list[tuple[str, str]]:
    """Return (canonical name, digest) of every reference to an image id."""
    return [(str(name), str(digest)) for name, digest in db.read("SELECT name, digest FROM reference WHERE image=? ORDER BY name", image)]


def users(db: Database, image: str) -> list[str]:
    """Return the ids of the containers made from an image id."""
    return [str(row[0]) for row in db.read("SELECT id FROM container WHERE image=? ORDER BY created", image)]


class Files:
    """What may be removed from disk: `blobs` are digests, `chains` 64 hex digits."""

    __slots__ = ("blobs", "chains")

    def __init__(self, blobs: set[str], chains: list[str]) -> None:
        self.blobs, self.chains = blobs, chains


def untag(db: Database, names: list[str]) -> None:
    """Remove references by canonical name. Call inside `with db.write():`."""
    for name in names:
        db.do("DELETE FROM reference WHERE name=?", name)


def forget(db: Database, image: str) -> Files:
    """Remove an image's rows; return what only it needed. Call inside `with db.write():`. Layers of living containers stay."""
    rows = layers(db, image)
    found = db.read("SELECT manifest FROM image WHERE id=?", image)
    blobs = {image, *(row.blob for row in rows), *(str(row[0]) for row in found), *(digest for _, digest in references(db, image))}
    db.do("DELETE FROM reference WHERE image=?", image)
    db.do("DELETE FROM image_layer WHERE image=?", image)
    db.do("DELETE FROM image WHERE id=?", image)
    chains = []
    for row in reversed(rows):
        if not _chain_used(db, row.chain):
            db.do("DELETE FROM layer WHERE chain=?", row.chain)
            chains.append(row.chain)
    return Files(blobs, chains)


def forget_layers(db: Database, chains: list[str]) -> list[str]:
    """Remove the rows of those layers that no image and no container uses; return them. Call inside `with db.write():`."""
    free = [chain for chain in chains if not _chain_used(db, chain)]
    for chain in free:
        db.do("DELETE FROM layer WHERE chain=?", chain)
    return free


def _chain_used(db: Database, chain: str) -> bool:
    return bool(db.read("SELECT 1 FROM image_layer WHERE chain=?1 UNION ALL SELECT 1 FROM container_layer WHERE chain=?1 LIMIT 1", chain))


def known_chain(db: Database, chain: str) -> bool:
    """Whether a layer has a row; inside a write transaction the answer holds until its end."""
    return bool(db.read("SELECT 1 FROM layer WHERE chain=?", chain))


def known_blob(db: Database, digest: str) -> bool:
    """Whether an image, a layer of one, or a reference needs this blob."""
    sql = "SELECT 1 FROM image WHERE id=?1 OR manifest=?1 UNION ALL SELECT 1 FROM image_layer WHERE blob=?1 UNION ALL SELECT 1 FROM reference WHERE digest=?1 LIMIT 1"
    return bool(db.read(sql, digest))
