"""Manifests, indexes and configurations: JSON of a stranger, turned into plain checked data.

Everything that is used later is checked here: types, digests, sizes, media types, text without NUL. OCI image-spec, manifest.md,
image-index.md, config.md; Docker's schema 2 has the same shape under other media types. Leaves out: where the bytes come from.
"""

from __future__ import annotations

import hashlib
import json
import os

from utsuwa.errors import ImageError, IntegrityError
from utsuwa.spec.image import empty_config
from utsuwa.spec.reference import is_digest

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    Json = dict[str, object]

MANIFEST_BYTES = 4 << 20
"""Bound on a manifest, an index and a configuration; the distribution specification asks registries to take 4 MiB."""
LAYER_BYTES = 128 << 30
"""Bound on one layer, packed or unpacked."""
LAYERS = 500
"""overlayfs stacks no more lower directories (OVL_MAX_STACK)."""
ENTRIES = 1000

OCI, DOCKER = "application/vnd.oci.image.", "application/vnd.docker."
INDEX_TYPES = (OCI + "index.v1+json", DOCKER + "distribution.manifest.list.v2+json")
MANIFEST_TYPES = (OCI + "manifest.v1+json", DOCKER + "distribution.manifest.v2+json")
CONFIG_TYPES = (OCI + "config.v1+json", DOCKER + "container.image.v1+json")
LAYER_TYPES = (
    OCI + "layer.v1.tar", OCI + "layer.v1.tar+gzip", OCI + "layer.v1.tar+zstd", DOCKER + "image.rootfs.diff.tar", DOCKER + "image.rootfs.diff.tar.gzip",
    DOCKER + "image.rootfs.diff.tar.zstd", OCI + "layer.nondistributable.v1.tar", OCI + "layer.nondistributable.v1.tar+gzip", OCI + "layer.nondistributable.v1.tar+zstd",
)
"""Docker's `foreign` layers are not here: they are fetched from a URL of the manifest's choosing (CVE-2020-15157)."""

_MACHINES = {
    "x86_64": (("amd64", ""), ("386", "")), "aarch64": (("arm64", "v8"),), "armv7l": (("arm", "v7"), ("arm", "v6"), ("arm", "v5")), "armv6l": (("arm", "v6"), ("arm", "v5")),
    "riscv64": (("riscv64", ""),), "ppc64le": (("ppc64le", ""),), "s390x": (("s390x", ""),), "i686": (("386", ""),), "loongarch64": (("loong64", ""),),
}
_DEFAULT_VARIANT = {"amd64": "v1", "arm64": "v8", "arm": "v7"}


class Descriptor:
    """What a document says of another: `digest`, `size` in bytes, `media_type`, and `platform` (os/architecture/variant) where given."""

    __slots__ = ("digest", "media_type", "platform", "size")

    def __init__(self, digest: str, size: int, media_type: str, platform: str = "") -> None:
        self.digest, self.size, self.media_type, self.platform = digest, size, media_type, platform


class Manifest:
    """One image for one platform: its configuration and its layers, bottom first."""

    __slots__ = ("config", "layers")

    def __init__(self, config: Descriptor, layers: list[Descriptor]) -> None:
        self.config, self.layers = config, layers


class Index:
    """One image for several platforms."""

    __slots__ = ("manifests",)

    def __init__(self, manifests: list[Descriptor]) -> None:
        self.manifests = manifests


def digest_of(data: bytes, algorithm: str = "sha256") -> str:
    """Return `sha256:…` of the bytes."""
    return f"{algorithm}:{hashlib.new(algorithm, data).hexdigest()}"


def verify(data: bytes, descriptor: Descriptor, what: str) -> bytes:
    """Return `data` if its size and digest are the descriptor's. Raises IntegrityError."""
    if len(data) != descriptor.size:
        raise IntegrityError(f"{what} is not what was promised: {len(data)} bytes instead of {descriptor.size}")
    found = digest_of(data, descriptor.digest.partition(":")[0])
    if found != descriptor.digest:
        raise IntegrityError(f"{what} is not what was promised: digest {found} instead of {descriptor.digest}")
    return data


def parse_json(data: bytes, what: str) -> Json:
    """Return the JSON object in `data`. Raises ImageError for anything that is not one: also too deep, or a number of a million digits."""
    try:
        found = json.loads(data.decode())
    except (ValueError, RecursionError):
        raise ImageError(f"malformed answer: {what} is not JSON") from None
    if not isinstance(found, dict):
        raise ImageError(f"malformed answer: {what} is not a JSON object")
    return found


def parse_manifest(data: bytes, media_type: str, what: str) -> Manifest | Index:
    """Return what a registry gave for a tag or digest. `media_type` is the answer's, "" where it has none.

    Raises ImageError. A document that can be read as both an image and an index is refused: two readers would see two images under one
    digest (GHSA-5j5w-g665-5m35).
    """
    found = parse_json(data, what)
    if "fsLayers" in found or found.get("schemaVersion") == 1:
        raise ImageError(f"{what} is of Docker's schema 1, which is no longer supported; push the image again with a current tool")
    is_index = "manifests" in found
    if is_index and ("layers" in found or "config" in found):
        raise ImageError(f"{what} is both an image and an index; refused, since two readers would see two images")
    if not is_index and "layers" not in found:
        raise ImageError(f"malformed answer: {what} has neither layers nor manifests")
    kinds = INDEX_TYPES if is_index else MANIFEST_TYPES
    for said in (media_type, found.get("mediaType", "")):
        if said and said not in kinds:
            raise ImageError(f"{what} has the wrong media type: it holds {'manifests' if is_index else 'layers'} but says {str(said)[:100]!r}")
    if media_type and found.get("mediaType") and found["mediaType"] != media_type:
        raise ImageError(f"{what} has two media types: {str(found['mediaType'])[:100]!r} inside, {media_type!r} outside")
    if is_index:
        return Index([_descriptor(item, what, None) for item in _list(found, "manifests", ENTRIES, what)])
    config = _descriptor(found.get("config"), what, CONFIG_TYPES)
    layers = [_descriptor(item, what, LAYER_TYPES) for item in _list(found, "layers", LAYERS, what)]
    if config.size > MANIFEST_BYTES:
        raise ImageError(f"{what} has a configuration of {config.size} bytes; at most {MANIFEST_BYTES} are taken")
    return Manifest(config, layers)


def _list(found: Json, key: str, most: int, what: str) -> list[object]:
    items = found.get(key)
    if not isinstance(items, list):
        raise ImageError(f"malformed answer: {key} of {what} is not a list")
    if len(items) > most:
        raise ImageError(f"{what} has {len(items)} {key}; at most {most} are taken")
    return items


def _descriptor(item: object, what: str, kinds: tuple[str, ...] | None) -> Descriptor:
    if not isinstance(item, dict):
        raise ImageError(f"malformed answer: a descriptor in {what} is not an object")
    digest, size, media_type = item.get("digest"), item.get("size"), item.get("mediaType", "")
    # A digest becomes a file name: nothing but the two known shapes passes (CVE-2024-3727).
    if not isinstance(digest, str) or not is_digest(digest):
        raise ImageError(f"malformed answer: {str(digest)[:100]!r} in {what} is not a digest")
    if type(size) is not int or not 0 <= size <= LAYER_BYTES:
        raise ImageError(f"malformed answer: size {str(size)[:30]} in {what} is not a number of bytes up to {LAYER_BYTES}")
    if not isinstance(media_type, str) or (kinds is not None and media_type not in kinds):
        kind = "layer" if kinds is LAYER_TYPES else "configuration"
        raise ImageError(f"{what} is not a container image that can be used here: a {kind} has the media type {str(media_type)[:100]!r}")
    return Descriptor(digest, size, media_type, _platform(item.get("platform")))


def _platform(item: object) -> str:
    if not isinstance(item, dict):
        return ""
    parts = [item.get(key) for key in ("os", "architecture", "variant")]
    return "/".join(part for part in parts if isinstance(part, str) and part)


# ------------------------------------------------------------------------------------------------------------- platform

def wanted_platforms(text: str = "", machine: str = "") -> list[str]:
    """Return the platforms that will do, best first, normalized: `linux/amd64`, `linux/arm/v7`. `text` is --platform, "" for this machine.

    Raises ImageError for text that is no platform.
    """
    if text:
        parts = text.split("/")
        if len(parts) == 1:
            parts = ["linux", *parts]
        if len(parts) > 3 or not all(part and part.replace("_", "").isalnum() and part.isascii() for part in parts):
            raise ImageError(f"{text[:80]!r} is not a platform; expected OS/ARCHITECTURE[/VARIANT], as in linux/arm64")
        return [normalize("/".join(parts))]
    machine = machine or os.uname().machine
    return [normalize(f"linux/{architecture}/{variant}".rstrip("/")) for architecture, variant in _MACHINES.get(machine, ((machine, ""),))]


def normalize(platform: str) -> str:
    """Return the platform without the variant that goes without saying: linux/arm64/v8 is linux/arm64. OCI image-spec, "Platform Variants"."""
    parts = platform.split("/")
    if len(parts) == 3 and parts[2] == _DEFAULT_VARIANT.get(parts[1]) and parts[1] != "arm":
        return "/".join(parts[:2])
    if len(parts) == 2 and parts[1] == "arm":
        return platform + "/v7"
    return platform


def choose(index: Index, wanted: list[str], what: str) -> Descriptor:
    """Return the index's entry for the first platform of `wanted` that it has. Raises ImageError naming those that it has."""
    usable = [item for item in index.manifests if item.media_type in ("", *MANIFEST_TYPES, *INDEX_TYPES)]
    for platform in wanted:
        for item in usable:
            if item.platform and normalize(item.platform) == platform:
                return item
    if len(usable) == 1 and not usable[0].platform:  # allowed: then the configuration says for whom it is
        return usable[0]
    have = sorted({item.platform for item in usable if item.platform and "unknown" not in item.platform})
    raise _no_image(wanted, what, ", ".join(have)[:200] or "none that is named")


def _no_image(wanted: list[str], what: str, have: str) -> ImageError:
    return ImageError(f"no image for {wanted[0]} in {what}: it has {have!s}")


# -------------------------------------------------------------------------------------------------------- configuration

class Configuration:
    """What is kept of an image's configuration. `chains` are chain ids, 64 hex digits each, bottom first. OCI image-spec, config.md."""

    __slots__ = ("chains", "config", "created", "diffs", "platform")

    def __init__(self, config: Json, diffs: list[str], platform: str, created: str) -> None:
        self.config, self.diffs, self.platform, self.created = config, diffs, platform, created
        self.chains = chain_ids(diffs)


def chain_ids(diffs: list[str]) -> list[str]:
    """Return the chain id of each layer in turn: a layer together with all those beneath it. OCI image-spec, config.md, "Layer ChainID"."""
    chains: list[str] = []
    for diff in diffs:
        digest = digest_of(f"sha256:{chains[-1]} {diff}".encode()) if chains else diff if diff.startswith("sha256:") else digest_of(diff.encode())
        chains.append(digest.removeprefix("sha256:"))
    return chains


def parse_config(data: bytes, layers: int, wanted: list[str], what: str) -> Configuration:
    """Return the checked configuration of an image with so many layers. Raises ImageError."""
    found = parse_json(data, f"the configuration of {what}")
    rootfs = found.get("rootfs")
    diffs = rootfs.get("diff_ids") if isinstance(rootfs, dict) else None
    if not isinstance(diffs, list) or not all(isinstance(diff, str) and is_digest(diff) for diff in diffs):
        raise ImageError(f"malformed answer: the configuration of {what} has no list of layer digests")
    if len(diffs) != layers:
        raise ImageError(f"malformed answer: {what} has {layers} layers, and its configuration {len(diffs)}")
    platform = normalize(_platform(found))
    if platform not in wanted:
        raise _no_image(wanted, what, platform[:60] or "no platform")
    created = found.get("created")
    created = created if isinstance(created, str) and len(created) <= 40 and created.isascii() and created.isprintable() else ""
    return Configuration(_settings(found.get("config"), what), diffs, platform, created)


def _settings(config: object, what: str) -> Json:
    """Return a `config` with the known keys only, each of its type: metadata of a stranger is data, never a setting of the engine's."""
    settings = empty_config()
    if config is None:
        return settings
    if not isinstance(config, dict):
        raise ImageError(f"malformed answer: the configuration of {what} is not an object")
    for key in settings:
        value = config.get(key)
        if value is None:
            continue
        expected, check = _CHECKS[key]
        if not check(value):
            raise ImageError(f"the configuration of {what} is malformed: {key} is not {expected}")
        settings[key] = value
    return settings


def _is_text(value: object) -> bool:
    """Whether the kernel could take it as a string: no NUL, no half of a surrogate pair (JSON can spell both)."""
    if not isinstance(value, str) or "\0" in value:
        return False
    try:
        value.encode()
    except UnicodeEncodeError:
        return False
    return True


def _is_texts(value: object) -> bool:
    return isinstance(value, list) and all(map(_is_text, value))


def _is_environment(value: object) -> bool:
    return _is_texts(value) and all(item.find("=") != 0 for item in value)  # type: ignore[attr-defined]


def _is_set(value: object) -> bool:
    return isinstance(value, dict) and all(map(_is_text, value))


def _is_labels(value: object) -> bool:
    return _is_set(value) and all(map(_is_text, value.values()))  # type: ignore[attr-defined]


def _is_healthcheck(value: object) -> bool:
    return _is_set(value) and (value.get("Test") is None or _is_texts(value["Test"]))  # type: ignore[attr-defined,index]


_TEXT: tuple[str, Callable[[object], bool]] = ("text", _is_text)
_TEXTS: tuple[str, Callable[[object], bool]] = ("a list of texts", _is_texts)
_SET: tuple[str, Callable[[object], bool]] = ("an object", _is_set)
_CHECKS: dict[str, tuple[str, Callable[[object], bool]]] = {
    "Env": ("a list of NAME=VALUE", _is_environment), "Cmd": _TEXTS, "Entrypoint": _TEXTS, "Shell": _TEXTS, "WorkingDir": _TEXT, "User": _TEXT,
    "StopSignal": _TEXT, "ExposedPorts": _SET, "Volumes": _SET, "Labels": ("an object of texts", _is_labels),
    "Healthcheck": ("an object with a list of texts as Test", _is_healthcheck), "ArgsEscaped": ("true or false", lambda value: isinstance(value, bool)),
}
