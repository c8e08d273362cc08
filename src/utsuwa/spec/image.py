"""An image as `run` needs it: plain data, kept marshalled in the database so that no JSON is parsed on the hot path."""

from __future__ import annotations

from marshal import dumps, loads

CONFIG_DEFAULTS: tuple[tuple[str, object], ...] = (
    ("Env", ()), ("Cmd", None), ("Entrypoint", None), ("WorkingDir", ""), ("User", ""), ("ExposedPorts", None), ("Volumes", None),
    ("StopSignal", ""), ("Labels", None), ("Healthcheck", None), ("Shell", None), ("ArgsEscaped", False),
)
"""Keys of `config`, and what stands for an absent one (Env is then an empty list). OCI image-spec, config.md; the last three are Docker's."""

VERSION = 1


def empty_config() -> dict[str, object]:
    """Return a `config` in which nothing is set."""
    return {key: [] if default == () else default for key, default in CONFIG_DEFAULTS}


class ImageRecord:
    """One image for one platform.

    id        `sha256:…`, digest of the configuration; "" for the built-in `host`
    manifest  digest of the platform's manifest
    platform  `linux/amd64`, `linux/arm/v7`
    name      canonical reference it was found by, "" when found by id
    layers    chain ids, 64 hex digits each, bottom first
    config    the keys of CONFIG_DEFAULTS, always all of them
    passwd, group   content of /etc/passwd and /etc/group in the image, None where there is no such regular file
    host      the root is a copy-on-write view of the host's own
    """

    __slots__ = ("config", "group", "host", "id", "layers", "manifest", "name", "passwd", "platform")

    def __init__(
        self, id: str, manifest: str, platform: str, layers: list[str], config: dict[str, object],  # noqa: A002
        *, name: str = "", passwd: bytes | None = None, group: bytes | None = None, host: bool = False,
    ) -> None:
        self.id, self.manifest, self.platform, self.layers, self.config = id, manifest, platform, layers, config
        self.name, self.passwd, self.group, self.host = name, passwd, group, host

    def to_bytes(self) -> bytes:
        """Return the record marshalled; `name` is left out, it belongs to the reference and not to the image."""
        return dumps((VERSION, self.id, self.manifest, self.platform, self.layers, self.config, self.passwd, self.group, self.host))

    @classmethod
    def from_bytes(cls, data: bytes, name: str = "") -> ImageRecord:
        """Return the record that `to_bytes` wrote. Raises ValueError for another version."""
        version, *fields = loads(data)  # noqa: S302 - our own database, 0700
        if version != VERSION:
            raise ValueError(f"image record of version {version}")
        id_, manifest, platform, layers, config, passwd, group, host = fields
        return cls(id_, manifest, platform, layers, config, name=name, passwd=passwd, group=group, host=host)
