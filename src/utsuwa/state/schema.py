"""The tables of state.db. Applied once, when the file is new; `db.VERSION` grows with each change."""

TABLES = """
CREATE TABLE image (
    id TEXT PRIMARY KEY,              -- digest of the configuration: sha256:…
    manifest TEXT NOT NULL,           -- digest of the platform's manifest
    platform TEXT NOT NULL,           -- linux/amd64
    created TEXT NOT NULL,            -- RFC 3339, as the configuration says
    size INTEGER NOT NULL,            -- bytes unpacked, all layers
    record BLOB NOT NULL              -- marshalled spec.image record: what `run` needs, without parsing JSON
);
CREATE TABLE reference (
    name TEXT PRIMARY KEY,            -- docker.io/library/busybox:latest
    image TEXT NOT NULL REFERENCES image(id),
    digest TEXT NOT NULL              -- digest of what the name resolved to: index or manifest
);
CREATE TABLE layer (
    chain TEXT PRIMARY KEY,           -- 64 hex digits
    diff TEXT NOT NULL,               -- sha256:… of the uncompressed layer
    parent TEXT,
    size INTEGER NOT NULL
);
CREATE TABLE image_layer (
    image TEXT NOT NULL REFERENCES image(id),
    position INTEGER NOT NULL,        -- 0 is the bottom
    chain TEXT NOT NULL REFERENCES layer(chain),
    blob TEXT NOT NULL,               -- digest of the compressed layer
    PRIMARY KEY (image, position)
);
CREATE TABLE container (
    id TEXT PRIMARY KEY,              -- 64 hex digits
    name TEXT NOT NULL UNIQUE,
    image TEXT NOT NULL,              -- image.id, '' for a built-in
    image_name TEXT NOT NULL,         -- as the user typed it
    created INTEGER NOT NULL,         -- ns since the epoch
    phase TEXT NOT NULL,              -- state.lifecycle: creating, up, removing
    pid INTEGER NOT NULL,             -- the process that owns a phase in flight, its start time and boot
    start INTEGER NOT NULL,
    boot TEXT NOT NULL,
    record BLOB NOT NULL              -- marshalled: the options and what was derived from them
);
CREATE INDEX container_phase ON container(phase);
CREATE TABLE container_layer (
    container TEXT NOT NULL REFERENCES container(id),
    chain TEXT NOT NULL REFERENCES layer(chain),
    PRIMARY KEY (container, chain)
);
CREATE TABLE sandbox (
    id TEXT PRIMARY KEY,              -- the first container's id
    userns TEXT NOT NULL,             -- owning user namespace: 'host' or the container's own
    network TEXT NOT NULL,            -- none, host, a network's name
    users INTEGER NOT NULL            -- reference count
);
CREATE TABLE network (
    name TEXT PRIMARY KEY,
    record BLOB NOT NULL              -- marshalled spec.network record
);
CREATE TABLE lease (
    network TEXT NOT NULL,
    address INTEGER NOT NULL,         -- IPv4 address as a number
    sandbox TEXT NOT NULL,
    PRIMARY KEY (network, address)
);
CREATE TABLE port (
    protocol TEXT NOT NULL,
    address TEXT NOT NULL,            -- '' for all
    port INTEGER NOT NULL,
    sandbox TEXT NOT NULL,
    target INTEGER NOT NULL,          -- the container's port
    PRIMARY KEY (protocol, address, port)
);
CREATE TABLE volume (
    name TEXT PRIMARY KEY,
    created INTEGER NOT NULL,
    record BLOB NOT NULL
);
"""
