"""From a source to a stage: which manifest, then its layers, three at a time, unpacked while they come.

    source ──bytes──▶ download ──appends──▶ blob file ──reads──▶ unpack ──▶ layer directory
                      hashes the blob                  hashes the layer

A source is what `registry.Registry` is: `manifest(tag or digest)` and `blob(descriptor)`; the built-in image is another. The blob file
lies between the two threads: a slow disk does not hold up the network, a second layer of the same blob reads it too, and a
blob that is here already is unpacked by the same code. Leaves out publishing (store.py) and the database (engine.images).
"""

from __future__ import annotations

import hashlib
import os
import threading

from utsuwa.errors import ImageError, IntegrityError
from utsuwa.image import store
from utsuwa.image.compress import decompress
from utsuwa.image.document import Index, Manifest, choose, digest_of, parse_config, parse_manifest, verify
from utsuwa.image.registry import CHUNK, short
from utsuwa.image.tar import Stream
from utsuwa.image.unpack import is_opaque, read_file, unpack
from utsuwa.kernel.process import in_user_namespace

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from typing import Protocol

    from utsuwa.image.document import Configuration, Descriptor
    from utsuwa.spec.reference import Reference
    from utsuwa.state.paths import Paths

    class Source(Protocol):
        """Where an image comes from."""

        def manifest(self, what: str) -> tuple[bytes, str]: ...
        def blob(self, descriptor: Descriptor) -> Iterator[bytes]: ...

PARALLEL = 3
NESTED = 3
"""Indexes within indexes that are followed."""
ACCOUNTS_BYTES = 1 << 20
"""Bound on /etc/passwd and /etc/group of an image."""
PATIENCE = 2.0
"""Seconds that threads get to notice a failure; they are daemons, and what they still write is in a directory that goes."""


class Found:
    """What a reference stands for. `digest` is the tag's own (an index or the manifest); `documents` maps digests to their bytes."""

    __slots__ = ("configuration", "digest", "documents", "manifest", "manifest_digest")

    def __init__(self, digest: str, manifest_digest: str, manifest: Manifest, configuration: Configuration, documents: dict[str, bytes]) -> None:
        self.digest, self.manifest_digest, self.manifest = digest, manifest_digest, manifest
        self.configuration, self.documents = configuration, documents


def look_up(source: Source, reference: Reference, wanted: list[str]) -> Found:
    """Return the image for the first of the `wanted` platforms, every document verified. Raises ImageError, RegistryError, NotFound."""
    what = reference.familiar
    data, kind = source.manifest(reference.digest or reference.tag)
    digest = digest_of(data, reference.digest.partition(":")[0] or "sha256")
    if reference.digest and digest != reference.digest:
        raise IntegrityError(f"{what} is not what was promised: digest {digest}")
    documents, current = {digest: data}, digest
    document = parse_manifest(data, kind, what)
    for _ in range(NESTED):
        if isinstance(document, Manifest):
            break
        item = choose(document, wanted, what)
        data, kind = source.manifest(item.digest)
        verify(data, item, f"the manifest of {what} for {item.platform or 'this platform'}")
        if item.media_type and kind and kind != item.media_type:
            raise ImageError(f"{what} has two media types: {item.media_type!r} in the index, {kind[:100]!r} outside")
        documents[item.digest], current = data, item.digest
        document = parse_manifest(data, kind or item.media_type, what)
    if isinstance(document, Index):
        raise ImageError(f"{what} is an index of indexes; at most {NESTED} are followed")
    config = verify(b"".join(source.blob(document.config)), document.config, f"the configuration of {what}")
    documents[document.config.digest] = config
    return Found(digest, current, document, parse_config(config, len(document.layers), wanted, what), documents)


class Layer:
    """One layer to fetch: what the manifest and the configuration say of it, and what of it is here already."""

    __slots__ = ("chain", "descriptor", "diff", "has_layer")

    def __init__(self, descriptor: Descriptor, diff: str, chain: str, has_layer: bool) -> None:
        self.descriptor, self.diff, self.chain, self.has_layer = descriptor, diff, chain, has_layer


class Growing:
    """A file that one thread appends to and others read from the start, waiting for what is to come. Owns the descriptor.

    Closed with the last reference: a thread that was left behind must not write to a number that means another file by then.
    """

    def __init__(self, fd: int, size: int = 0, *, whole: bool = False) -> None:
        self._fd, self._size, self._whole = fd, size, whole
        self._error: BaseException | None = None
        self._changed = threading.Condition()

    def __del__(self) -> None:
        os.close(self._fd)

    def append(self, chunk: bytes) -> None:
        view = memoryview(chunk)
        while view:
            view = view[os.write(self._fd, view):]
        with self._changed:
            self._size += len(chunk)
            self._changed.notify_all()

    def finish(self, error: BaseException | None = None) -> None:
        """Say that this is all, or why there will be no more. The first word counts."""
        with self._changed:
            if not self._whole and self._error is None:
                self._whole, self._error = error is None, error
            self._changed.notify_all()

    def wait(self, at: int | None = None) -> int:
        """Return the size once it is more than `at` (None: once it is final). Raises the writer's error."""
        with self._changed:
            self._changed.wait_for(lambda: self._whole or self._error or (at is not None and self._size > at))
            if self._error:
                raise self._error
            return self._size

    def chunks(self) -> Iterator[bytes]:
        """Yield all of it. Raises the writer's error, if only at the very end: what was yielded before counts for nothing then."""
        at = 0
        while (size := self.wait(at)) > at:
            data = os.pread(self._fd, min(CHUNK, size - at), at)
            if not data:
                raise IntegrityError("a blob in the store is truncated")
            at += len(data)
            yield data


class Fetch:
    """The layers of one image on their way into a stage. `say` takes (layer, what happened)."""

    def __init__(self, paths: Paths, stage: store.Stage, source: Source, say: Callable[[Layer, str], None]) -> None:
        self._paths, self._stage, self._source, self._say = paths, stage, source, say
        self._in_userns = in_user_namespace()
        self._blobs: dict[str, Growing] = {}
        self._lock = threading.Lock()
        self._error: BaseException | None = None
        self._stop = threading.Event()
        self._busy = 0

    def run(self, layers: list[Layer]) -> None:
        """Fetch and unpack what is missing. Raises the first error, after telling the other threads to stop."""
        waiting = list(reversed(layers))
        self._busy = min(PARALLEL, len(layers))
        workers = [threading.Thread(target=self._work, args=(waiting,), daemon=True) for _ in range(self._busy)]
        try:
            for worker in workers:
                worker.start()
            if workers:
                self._stop.wait()
        finally:  # the end, the first error, or Ctrl-C
            self._stop.set()
            for blob in list(self._blobs.values()):
                blob.finish(ImageError("the pull was stopped"))
            for worker in workers:
                worker.join(PATIENCE)
        if self._error is not None:
            raise self._error

    def _work(self, waiting: list[Layer]) -> None:
        try:
            while not self._stop.is_set():
                with self._lock:
                    if not waiting:
                        break
                    layer = waiting.pop()
                self._fetch(layer)
        except BaseException as error:  # noqa: BLE001 - carried to the caller's thread
            with self._lock:
                self._error = self._error or error
            self._stop.set()
        with self._lock:
            self._busy -= 1
            if not self._busy:
                self._stop.set()

    def _fetch(self, layer: Layer) -> None:
        if layer.has_layer and store.has_blob(self._paths, layer.descriptor.digest):
            self._say(layer, "Already exists")
            return
        self._say(layer, "Pulling fs layer")
        blob = self._blob(layer.descriptor)
        if not layer.has_layer:
            self._unpack(layer, blob)
        blob.wait()
        self._say(layer, "Pull complete")

    def _blob(self, descriptor: Descriptor) -> Growing:
        """Return the blob's file: the store's, one that is on its way already, or a new one with a thread that fills it."""
        with self._lock:
            blob = self._blobs.get(descriptor.digest)
            if blob is not None:
                return blob
            if store.has_blob(self._paths, descriptor.digest):
                fd = os.open(store.blob_path(self._paths, descriptor.digest), os.O_RDONLY | os.O_CLOEXEC)
                blob = Growing(fd, os.fstat(fd).st_size, whole=True)
            else:
                blob = Growing(self._stage.create_blob(descriptor.digest))
                threading.Thread(target=self._download, args=(descriptor, blob), daemon=True).start()
            self._blobs[descriptor.digest] = blob
            return blob

    def _download(self, descriptor: Descriptor, blob: Growing) -> None:
        algorithm = descriptor.digest.partition(":")[0]
        digest = hashlib.new(algorithm)
        try:
            for chunk in self._source.blob(descriptor):
                if self._stop.is_set():
                    raise ImageError("the pull was stopped")
                digest.update(chunk)
                blob.append(chunk)
            if f"{algorithm}:{digest.hexdigest()}" != descriptor.digest:
                raise IntegrityError(f"layer {short(descriptor.digest)} is not what was promised: digest {algorithm}:{digest.hexdigest()} instead of {descriptor.digest}")
        except BaseException as error:  # noqa: BLE001 - carried to the thread that reads
            blob.finish(error)
        else:
            blob.finish()

    def _unpack(self, layer: Layer, blob: Growing) -> None:
        algorithm = layer.diff.partition(":")[0]
        digest = hashlib.new(algorithm)

        def pieces() -> Iterator[bytes]:
            for piece in decompress(blob.chunks()):
                if self._stop.is_set():
                    raise ImageError("the pull was stopped")
                digest.update(piece)
                yield piece

        root = self._stage.create_layer(layer.chain)
        try:
            size = unpack(Stream(pieces()), root, in_userns=self._in_userns)
        except ImageError:
            blob.wait()  # a wrong blob is told as such, not by what its bytes happened to look like
            raise
        finally:
            os.close(root)
        self._stage.finish_layer(layer.chain, size)
        if f"{algorithm}:{digest.hexdigest()}" != layer.diff:
            raise IntegrityError(f"layer {short(layer.descriptor.digest)} is not what was promised: unpacked, its digest is {algorithm}:{digest.hexdigest()} instead of {layer.diff}")


def survey(stage: store.Stage, chains: list[str]) -> tuple[list[str], dict[str, bytes | None]]:
    """Return (the chains that matter, {"passwd": …, "group": …}) of an image whose layers are all staged or published.

    A layer whose root is opaque hides all those below it; overlayfs does not look for that on a root, so they are left out of the stack.
    """
    accounts: dict[str, bytes | None] = {}
    used: list[str] = []
    for chain in reversed(chains):
        fd = os.open(stage.layer_path(chain), os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
        try:
            used.insert(0, chain)
            for name in ("passwd", "group"):
                if name not in accounts:
                    decided, content = read_file(fd, f"etc/{name}", ACCOUNTS_BYTES)
                    if decided:
                        accounts[name] = content
            if is_opaque(fd):
                break
        finally:
            os.close(fd)
    return used, accounts
