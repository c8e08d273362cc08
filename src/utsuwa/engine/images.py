"""Use cases of images: pull, resolve, list, inspect, remove. Puts image/ (documents, files) and state.images (rows) in order.

`resolve` of a local image is on the hot path of `run`: one look into the database, no import. Everything else is imported inside.
"""

from __future__ import annotations

from utsuwa.errors import Conflict, ImageError, NotFound
from utsuwa.spec.reference import is_digest, parse
from utsuwa.state import images

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from utsuwa.engine.context import Context
    from utsuwa.image.fetch import Found, Layer, Source
    from utsuwa.image.store import Stage
    from utsuwa.spec.image import ImageRecord
    from utsuwa.spec.reference import Reference
    from utsuwa.state.images import ImageRow, LayerRow

    Progress = Callable[[str], None]

_HELLO, _HOST = "docker.io/library/hello:latest", "docker.io/library/host:latest"
"""image.builtin's names, spelled here so that `run` of a local image need not import it."""
ROUNDS = 3
"""A pull whose files a removal takes away at the last moment starts over so often."""


def resolve(context: Context, text: str, progress: Progress | None = None) -> ImageRecord:
    """Return the image that `text` names: a local one, else a built-in, else pulled (lines of progress go to `progress`).

    Idempotent. Raises UsageError for a name that is none, Conflict for an ambiguous id, ImageError and its kin for a pull that fails.
    """
    found = images.find(context.db, text)
    if found is not None:
        return found
    if is_digest(text):
        raise NotFound(f"no such image: {text}")
    reference = parse(text)
    if reference.name == _HOST:
        from utsuwa.image import builtin

        return builtin.host()
    if progress is not None and reference.name != _HELLO:
        progress(f"Unable to find image '{reference.familiar}' locally")
    return _pull(context, reference, "", progress, reuse=True)


def pull(context: Context, text: str, *, platform: str = "", progress: Progress | None = None) -> ImageRecord:
    """Fetch an image and point its name at it. Idempotent; atomic: until the last moment nothing but a private directory changes.

    Two pulls of one image at once: the second waits. After a crash the next pull removes what the first left. `platform` is
    OS/ARCHITECTURE[/VARIANT], "" for this machine. Raises UsageError, ImageError, RegistryError, IntegrityError, NotFound.
    """
    return _pull(context, parse(text), platform, progress, reuse=False)


def _pull(context: Context, reference: Reference, platform: str, progress: Progress | None, *, reuse: bool) -> ImageRecord:
    import hashlib

    from utsuwa.image import document, store

    # The built-in image comes from nowhere: there is no progress to tell.
    say = progress if progress is not None and reference.name != _HELLO else lambda _: None
    wanted = document.wanted_platforms(platform)
    try:
        with store.Lock(context.paths, "image-" + hashlib.sha256(reference.name.encode()).hexdigest()[:32]) as lock:
            if reuse and lock.waited:  # whoever held it may just have pulled what we want
                found = images.find(context.db, reference.name)
                if found is not None:
                    return found
            store.sweep_stages(context.paths)
            with _source(reference) as source:
                return _install(context, reference, source, wanted, say)
    except OSError as error:
        import os

        raise ImageError(f"cannot pull {reference.familiar}: {os.strerror(error.errno or 0).lower()} in {context.paths.root}") from error


class _source:  # noqa: N801 - reads as a sentence
    """The registry, or the built-in image of that name; closed at the end."""

    def __init__(self, reference: Reference) -> None:
        self._reference = reference

    def __enter__(self) -> Source:
        if self._reference.name == _HELLO:
            from utsuwa.image.builtin import Hello

            self._close: Callable[[], None] = lambda: None
            return Hello()
        from utsuwa.image.registry import Registry

        registry = Registry(self._reference)
        self._close = registry.close
        return registry

    def __exit__(self, *_: object) -> None:
        self._close()


def _install(context: Context, reference: Reference, source: Source, wanted: list[str], say: Progress) -> ImageRecord:
    """Fetch, stage, publish, enter. Steps that a removal undid in between are done again."""
    from utsuwa.image import fetch, store

    found = fetch.look_up(source, reference, wanted)
    say(f"{reference.digest or reference.tag}: Pulling from {reference.repository}")
    before = context.db.read("SELECT image FROM reference WHERE name=?", reference.name)
    new = before != [(found.manifest.config.digest,)] or not _is_whole(context, found)
    for _ in range(ROUNDS):
        record = _stage(context, reference, source, found, say if new else lambda _: None)
        if record is not None:
            break
    else:
        raise ImageError(f"cannot pull {reference.familiar}: its files are removed as fast as they come; is an rmi running?")
    store.write_index(context.paths, context.db)
    say(f"Digest: {found.digest}")
    say(f"Status: {'Downloaded newer image' if new else 'Image is up to date'} for {reference.familiar}")
    return record


def _is_whole(context: Context, found: Found) -> bool:
    from utsuwa.image import store

    blobs = [*found.documents, *(layer.digest for layer in found.manifest.layers)]
    return all(store.has_blob(context.paths, digest) for digest in blobs) and all(store.has_layer(context.paths, chain) for chain in found.configuration.chains)


def _stage(context: Context, reference: Reference, source: Source, found: Found, say: Progress) -> ImageRecord | None:
    """One round: fetch what is missing into a stage, then publish files and rows in one transaction. None where something was removed meanwhile."""
    from contextlib import ExitStack

    from utsuwa import ledger
    from utsuwa.image import fetch, registry, store

    with ExitStack() as held:
        layers = []
        for descriptor, diff, chain in zip(found.manifest.layers, found.configuration.diffs, found.configuration.chains, strict=True):
            if not store.has_layer(context.paths, chain):
                # Bottom first, as everybody: images that share layers share the lowest ones, so nobody waits in a circle.
                held.enter_context(store.Lock(context.paths, "layer-" + chain))
            layers.append(fetch.Layer(descriptor, diff, chain, store.has_layer(context.paths, chain)))
        stage = held.enter_context(store.Stage(context.paths))

        def told(layer: Layer, what: str) -> None:
            say(f"{registry.short(layer.descriptor.digest)}: {what}")

        fetch.Fetch(context.paths, stage, source, told).run(layers)
        for digest, data in found.documents.items():
            stage.write_blob(digest, data)
        record, rows = _record(reference, found, layers, stage)
        ledger.fault("pull:sync")
        stage.sync()

        def publish() -> list[str]:
            missing = stage.publish([*found.documents, *(layer.descriptor.digest for layer in layers)], found.configuration.chains)
            ledger.fault("pull:rows")
            return missing

        return None if images.insert(context.db, record, rows, found.configuration.created, found.digest, publish) else record


def _record(reference: Reference, found: Found, layers: list[Layer], stage: Stage) -> tuple[ImageRecord, list[LayerRow]]:
    from utsuwa.image import fetch
    from utsuwa.spec.image import ImageRecord
    from utsuwa.state.images import LayerRow

    configuration = found.configuration
    used, accounts = fetch.survey(stage, configuration.chains)
    record = ImageRecord(
        found.manifest.config.digest, found.manifest_digest, configuration.platform, used, configuration.config,
        name=reference.name, passwd=accounts.get("passwd"), group=accounts.get("group"),
    )
    parents = [None, *configuration.chains]
    rows = [LayerRow(layer.chain, layer.diff, parent, stage.layer_size(layer.chain), layer.descriptor.digest) for layer, parent in zip(layers, parents, strict=False)]
    return record, rows


def listing(context: Context) -> list[ImageRow]:
    """Return all local images, newest first, with their references."""
    return images.every(context.db)


def local(context: Context, text: str) -> ImageRecord:
    """Return a local image. Raises NotFound, Conflict."""
    found = images.find(context.db, text)
    if found is None:
        raise NotFound(f"no such image: {text}")
    return found


def inspect(context: Context, text: str) -> dict[str, object]:
    """Return what `docker image inspect` shows of a local image. Raises NotFound, Conflict."""
    record = local(context, text)
    row = next(row for row in images.every(context.db) if row.id == record.id)
    names = [parse(name) for name, _ in row.references]
    system, architecture, variant = (record.platform + "//").split("/")[:3]
    return {
        "Id": record.id, "RepoTags": [name.familiar for name in names if not name.digest],
        "RepoDigests": sorted({f"{name.familiar_base}@{digest}" for name, (_, digest) in zip(names, row.references, strict=True)}),
        "Parent": "", "Created": row.created, "Architecture": architecture, **({"Variant": variant} if variant else {}), "Os": system, "Size": row.size,
        "Config": record.config, "GraphDriver": {"Name": "overlay2", "Data": {"LowerDir": ":".join(context.paths.layer(chain) for chain in reversed(record.layers))}},
        "RootFS": {"Type": "layers", "Layers": [layer.diff for layer in images.layers(context.db, record.id)]},
    }


# --------------------------------------------------------------------------------------------------------------- remove

def remove(context: Context, text: str, force: bool = False) -> list[str]:
    """Remove a name, and the image with its last one; return the lines that `docker rmi` prints, `Untagged: …` and `Deleted: …`.

    Atomic: rows go in one transaction, files after it. Raises NotFound, and Conflict where a container or another name stands in the way.
    """
    from utsuwa.image import store

    record = local(context, text)
    lines: list[str] = []
    files = None
    with context.db.write():
        references = images.references(context.db, record.id)
        by_id = not record.name
        going = _names_to_go(context, text, record, references, by_id, force)
        rest = [name for name, _ in references if name not in going]
        images.untag(context.db, going)
        lines += _untagged([(name, digest) for name, digest in references if name in going], rest)
        if not rest and not (by_id is False and _is_running(context, record)):
            files = images.forget(context.db, record.id)
    if files is not None:
        lines += [f"Deleted: {record.id}", *(f"Deleted: sha256:{chain}" for chain in files.chains)]
        store.collect(context.paths, context.db, files.blobs, files.chains)
    store.write_index(context.paths, context.db)
    return lines


def _names_to_go(context: Context, text: str, record: ImageRecord, references: list[tuple[str, str]], by_id: bool, force: bool) -> list[str]:
    """Return the names that a removal takes away, after the checks of dockerd's image_delete.go."""
    shown = record.id.removeprefix("sha256:")[:12]
    bases = {parse(name).base for name, _ in references}
    tags = [name for name, _ in references if "@" not in name.rpartition("/")[2]]
    single = len(tags) <= 1 and len(bases) <= 1
    users = images.users(context.db, record.id)
    if not by_id:
        if not force and single and users:
            raise Conflict(f'conflict: unable to remove repository reference "{text}" (must force) - container {users[0][:12]} is using its referenced image {shown}')
        name = parse(text)
        going = [key for key, digest in references if key == name.name or (name.digest and digest == name.digest and parse(key).base == name.base)]
        if not any(tag not in going and parse(tag).base == name.base for tag in tags):
            going += [key for key, _ in references if "@" in key and parse(key).base == name.base and key not in going]
        return going
    if not single and not force:
        raise Conflict(f"conflict: unable to delete {shown} (must be forced) - image is referenced in multiple repositories")
    running = [user for user in users if _is_alive(context, user)]
    if running:
        raise Conflict(f"conflict: unable to delete {shown} (cannot be forced) - image is being used by running container {running[0][:12]}")
    if users and not force:
        raise Conflict(f"conflict: unable to delete {shown} (must be forced) - image is being used by stopped container {users[0][:12]}")
    return [name for name, _ in references]


def _untagged(going: list[tuple[str, str]], rest: list[str]) -> list[str]:
    """Return the lines for names that went; with the last tag of a repository goes its digest, which Docker counts as a name of its own."""
    lines = []
    digests: dict[str, None] = {}
    bases = {parse(name).base for name in rest}
    for name, digest in going:
        reference = parse(name)
        lines.append(f"Untagged: {reference.familiar}")
        if not reference.digest and reference.base not in bases:
            digests[f"Untagged: {reference.familiar_base}@{digest}"] = None
    return lines + [line for line in digests if line not in lines]


def _is_running(context: Context, record: ImageRecord) -> bool:
    return any(_is_alive(context, user) for user in images.users(context.db, record.id))


def _is_alive(context: Context, container: str) -> bool:
    """Whether a container's monitor lives: it holds the container's lock for life."""
    import fcntl
    import os

    try:
        fd = os.open(context.paths.container(container) + "/lock", os.O_RDWR | os.O_CLOEXEC)
    except FileNotFoundError:
        return False
    try:
        fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(fd)
    return False
