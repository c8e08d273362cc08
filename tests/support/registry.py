"""Images and registries for tests: Debian's docker-registry on a free loopback port, and a fake one that answers as it is told.

    with registry.Registry() as served:                    # real; served.address + "/busybox" can be pulled
        served.push("other", Image(layer(entry("file"))))  # and whatever else is pushed
    with registry.FakeRegistry() as fake:                  # hostile: fake.routes[path] is an Answer or a function
        fake.add("busybox", busybox_image())
"""

import gzip
import hashlib
import http.server
import io
import json
import os
import pathlib
import re
import shutil
import signal
import subprocess
import tarfile
import tempfile
import threading
import time

BUSYBOX = "/bin/busybox"
OCI = "application/vnd.oci.image."
MACHINE = {"x86_64": "amd64", "aarch64": "arm64"}.get(os.uname().machine, os.uname().machine)


def digest(data):
    return "sha256:" + hashlib.sha256(data).hexdigest()


def entry(name, data=b"", kind=tarfile.REGTYPE, **fields):
    """One entry for `layer`: a TarInfo and its data."""
    info = tarfile.TarInfo(name)
    info.type, info.size, info.mode = kind, len(data), 0o755 if kind == tarfile.DIRTYPE else 0o644
    for key, value in fields.items():
        setattr(info, key, value)
    return info, data


def directory(name, **fields):
    return entry(name, kind=tarfile.DIRTYPE, **fields)


def symlink(name, target):
    return entry(name, kind=tarfile.SYMTYPE, linkname=target)


def link(name, target):
    return entry(name, kind=tarfile.LNKTYPE, linkname=target)


def layer(*entries, form=tarfile.PAX_FORMAT):
    """A layer as an uncompressed tar."""
    target = io.BytesIO()
    with tarfile.open(fileobj=target, mode="w", format=form) as archive:
        for info, data in entries:
            archive.addfile(info, io.BytesIO(data) if data else None)
    return target.getvalue()


class Image:
    """Blobs, manifest and configuration of one image, made from uncompressed layers."""

    def __init__(self, *layers, config=None, packed=None, architecture=MACHINE, **fields):
        self.diffs = [digest(data) for data in layers]
        blobs = [gzip.compress(data, 1, mtime=0) for data in layers] if packed is None else packed
        self.config = json.dumps({
            "architecture": architecture, "os": "linux", "created": "2024-01-02T03:04:05Z", "config": config or {},
            "rootfs": {"type": "layers", "diff_ids": self.diffs}, **fields,
        }).encode()
        self.layer_blobs = blobs
        self.manifest_dict = {
            "schemaVersion": 2, "mediaType": OCI + "manifest.v1+json",
            "config": {"mediaType": OCI + "config.v1+json", "digest": digest(self.config), "size": len(self.config)},
            "layers": [{"mediaType": OCI + "layer.v1.tar+gzip", "digest": digest(blob), "size": len(blob)} for blob in blobs],
        }

    @property
    def manifest(self):
        return json.dumps(self.manifest_dict).encode()

    @property
    def blobs(self):
        return {digest(blob): blob for blob in (*self.layer_blobs, self.config)}

    def descriptor(self, architecture=MACHINE):
        return {"mediaType": OCI + "manifest.v1+json", "digest": digest(self.manifest), "size": len(self.manifest), "platform": {"os": "linux", "architecture": architecture}}


def index(*descriptors, **fields):
    return json.dumps({"schemaVersion": 2, "mediaType": OCI + "index.v1+json", "manifests": list(descriptors), **fields}).encode()


def busybox_image(*more, config=None):
    """Busybox with a symlink for each applet, /etc/passwd and the usual directories; further layers on top."""
    applets = subprocess.run([BUSYBOX, "--list"], check=True, capture_output=True, text=True).stdout.split()
    base = layer(
        *(directory(name) for name in ("bin", "dev", "etc", "home", "proc", "root", "sys", "tmp", "usr", "var")),
        entry("bin/busybox", pathlib.Path(BUSYBOX).read_bytes(), mode=0o755),
        *(symlink(f"bin/{name}", "busybox") for name in applets if name != "busybox"),
        entry("etc/passwd", b"root:x:0:0:root:/root:/bin/sh\nnobody:x:65534:65534:nobody:/home:/bin/false\nuser:x:1000:1000:user:/home:/bin/sh\n"),
        entry("etc/group", b"root:x:0:\nnogroup:x:65534:\nuser:x:1000:\nextra:x:2000:user\n"),
    )
    return Image(base, *more, config=config or {"Cmd": ["sh"], "Env": ["PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"]})


def write_layout(where, image, name):
    """Write an OCI image layout with one image, for skopeo."""
    blobs = pathlib.Path(where) / "blobs" / "sha256"
    blobs.mkdir(parents=True, exist_ok=True)
    for key, data in {**image.blobs, digest(image.manifest): image.manifest}.items():
        (blobs / key[7:]).write_bytes(data)
    (pathlib.Path(where) / "oci-layout").write_text('{"imageLayoutVersion": "1.0.0"}')
    named = {**image.descriptor(), "annotations": {"org.opencontainers.image.ref.name": name}}
    (pathlib.Path(where) / "index.json").write_bytes(index(named))


class Registry:
    """Debian's docker-registry (`distribution`) on a free port of loopback, with `busybox` in it.

    `address` is "127.0.0.1:PORT". Its files are in `directory`, which is made and removed; a temporary one by default.
    """

    def __init__(self, directory=""):
        self.directory = directory or tempfile.mkdtemp(prefix="utsuwa-registry-")
        os.makedirs(self.directory, exist_ok=True)
        config = {
            "version": "0.1", "log": {"level": "info", "accesslog": {"disabled": True}}, "http": {"addr": "127.0.0.1:0"},
            "storage": {"filesystem": {"rootdirectory": self.directory + "/data"}, "delete": {"enabled": True}},
        }
        pathlib.Path(self.directory, "config.yml").write_text(json.dumps(config))  # JSON is YAML
        self._log = pathlib.Path(self.directory, "log")
        with self._log.open("wb") as log:
            self.process = subprocess.Popen(["docker-registry", "serve", self.directory + "/config.yml"], stdout=log, stderr=log, start_new_session=True)
        self.address = f"127.0.0.1:{self._port()}"
        self.push("busybox", busybox_image())

    def _port(self):
        deadline = time.monotonic() + 20
        while time.monotonic() < deadline:
            found = re.search(rb"listening on 127\.0\.0\.1:(\d+)", self._log.read_bytes())
            if found:
                return int(found[1])
            if self.process.poll() is not None:
                break
            time.sleep(0.02)
        self.close()
        raise RuntimeError(f"docker-registry does not start: {self._log.read_text() if self._log.exists() else ''}")

    def push(self, name, image, tag="latest"):
        """Fill it by skopeo; returns the reference to pull."""
        with tempfile.TemporaryDirectory() as where:
            write_layout(where, image, tag)
            target = f"docker://{self.address}/{name}:{tag}"
            subprocess.run(["skopeo", "--insecure-policy", "copy", "--quiet", "--dest-tls-verify=false", f"oci:{where}:{tag}", target], check=True, capture_output=True)
        return f"{self.address}/{name}:{tag}"

    def close(self):
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGKILL)
        self.process.wait()
        shutil.rmtree(self.directory, ignore_errors=True)  # noqa: TID251 - this process's own temporary directory

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()


class Answer:
    """What the fake registry says to one path. `body` is bytes, or an iterator of chunks sent until the client has enough."""

    def __init__(self, body=b"", status=200, length=None, **headers):
        self.body, self.status = body, status
        self.headers = {key.replace("_", "-"): value for key, value in headers.items()}
        if length is not None or isinstance(body, bytes):
            self.headers["Content-Length"] = str(len(body) if length is None else length)


class _Server(http.server.ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, *_):
        pass


class _Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    fake: "FakeRegistry"

    def log_message(self, *_):
        pass

    def do_GET(self):
        self.fake.seen.append((self.path, dict(self.headers)))
        found = self.fake.routes.get(self.path.partition("?")[0], Answer(b'{"errors":[{"code":"NAME_UNKNOWN","message":"not here"}]}', 404))
        answer = found(self) if callable(found) else found
        if answer is None:
            self.close_connection = True
            return
        self.send_response(answer.status)
        for key, value in answer.headers.items():
            self.send_header(key, value)
        length = answer.headers.get("Content-Length")
        if length is None or (isinstance(answer.body, bytes) and int(length) != len(answer.body)):
            self.send_header("Connection", "close")
            self.close_connection = True
        self.end_headers()
        try:
            for chunk in [answer.body] if isinstance(answer.body, bytes) else answer.body:
                self.wfile.write(chunk)
        except OSError:
            self.close_connection = True


class FakeRegistry:
    """Answers GETs from `routes` (path → Answer or function of the request); `seen` holds (path, headers) of every request."""

    def __init__(self):
        self.routes, self.seen = {}, []
        self.server = _Server(("127.0.0.1", 0), type("Handler", (_Handler,), {"fake": self}))
        self.address = f"127.0.0.1:{self.server.server_address[1]}"
        self.thread = threading.Thread(target=self.server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
        self.thread.start()

    def add(self, name, image, tag="latest", manifest=None, media_type=OCI + "manifest.v1+json"):
        """Serve an image; `manifest` overrides its bytes. Returns the reference to pull."""
        data = image.manifest if manifest is None else manifest
        for key in (tag, digest(data)):
            self.routes[f"/v2/{name}/manifests/{key}"] = Answer(data, Content_Type=media_type)
        for key, blob in image.blobs.items():
            self.routes[f"/v2/{name}/blobs/{key}"] = Answer(blob)
        return f"{self.address}/{name}:{tag}"

    def close(self):
        self.server.shutdown()
        self.server.server_close()
        self.thread.join()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()
