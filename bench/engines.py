"""The engines side by side: how each is set up on a private directory, and the command lines that do the same thing in each.

Every one runs the same image with the same limits: 64 MiB, 100 processes, the descriptors and processes that this project's test machine
allows podman and docker (machine.md), Docker's default seccomp profile, and a log written to a file. runc has neither images, logs nor
networks: it runs docker's own configuration of such a container, and stands here as the floor of what an engine built on it can reach.
"""

import json
import os
import shutil
import sqlite3
import subprocess
import sys
import time

import world

LIMITS = ("--memory", "64m", "--pids-limit", "100", "--ulimit", "nofile=1024:1024", "--ulimit", "nproc=1000:1000")
SLEEPER = "sleeper"


def call(argv, environ):
    """Run to the end and return the output; what went wrong is shown as the program said it."""
    done = subprocess.run(argv, env=environ, stdin=subprocess.DEVNULL, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"bench: {' '.join(argv)}: exit code {done.returncode}\n{done.stdout}{done.stderr}")
    return done.stdout.strip()


class Engine:
    """One engine. `parent` is the control group its containers live beneath; `networks` the kinds it can run."""

    name = ""
    networks = ("none", "bridge")

    def __init__(self, directory, image, tag):
        self.directory, self.image = f"{directory}/{self.name}", image
        self.parent = f"/bench-{tag}-{self.name}"
        self.environ = {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "HOME": directory, "LANG": "C.UTF-8"}
        self.base = []
        os.mkdir(self.directory, 0o700)

    def set_up(self):
        """Start what has to run, and bring the image in."""

    def version(self):
        return call([*self.base, "--version"], self.environ).splitlines()[0]

    def run(self, network):
        """Return the argv of one foreground run of `true`."""
        raise NotImplementedError

    def start_sleeper(self):
        call(self.sleeper(), self.environ)

    def sleeper(self):
        raise NotImplementedError

    def exec(self):
        """Return the argv of one foreground exec of `true` in the sleeper."""
        return [*self.base, "exec", SLEEPER, "true"]

    def stop_sleeper(self):
        call([*self.base, "rm", "--force", SLEEPER], self.environ)

    def groups(self):
        """Return the control groups of its containers."""
        return world.groups(self.parent)

    def leases(self):
        """Return the addresses that are taken, where the engine keeps them in something that can be looked at while it runs."""
        return []

    def tear_down(self):
        """Stop what set_up started."""


class Docker(Engine):
    """dockerd on a private root, with a private containerd below it."""

    name = "docker"
    daemons = ()

    def set_up(self):
        d = self.directory
        self.environ["DOCKER_HOST"] = f"unix://{d}/docker.sock"
        self.base = ["docker"]
        with open(d + "/containerd.toml", "w") as file:
            file.write(f'version = 2\nroot = "{d}/containerd"\nstate = "{d}/state"\ndisabled_plugins = ["io.containerd.grpc.v1.cri"]\n[grpc]\naddress = "{d}/containerd.sock"\n')
        self.daemons = [self._daemon("containerd", "--config", d + "/containerd.toml", "--log-level", "error")]
        _await(d + "/containerd.sock", d)
        self.daemons.append(self._daemon(
            "dockerd", "--data-root", d + "/data", "--exec-root", d + "/exec", "--pidfile", d + "/docker.pid", "--host", self.environ["DOCKER_HOST"],
            "--containerd", d + "/containerd.sock", "--cgroup-parent", self.parent, "--storage-driver", "overlay2", "--log-level", "error"))
        _await(d + "/docker.sock", d)
        call(["docker", "pull", "--quiet", self.image], self.environ)

    def _daemon(self, *argv):
        with open(f"{self.directory}/daemons.log", "ab") as log:
            return subprocess.Popen(argv, env=self.environ, stdin=subprocess.DEVNULL, stdout=log, stderr=log)

    def run(self, network):
        return ["docker", "run", "--rm", *LIMITS, "--log-driver", "json-file", "--network", network, self.image, "true"]

    def sleeper(self):
        return ["docker", "run", "-d", "--name", SLEEPER, *LIMITS, "--network", "none", self.image, "sleep", "1000"]

    def tear_down(self):
        for daemon in reversed(self.daemons):
            daemon.terminate()
            try:
                daemon.wait(10)
            except subprocess.TimeoutExpired:
                daemon.kill()
                daemon.wait()

    def bundle(self):
        """Return the config.json that docker made for the sleeper: what runc is given too."""
        identity = call(["docker", "inspect", "--format", "{{.Id}}", SLEEPER], self.environ)
        with open(f"{self.directory}/state/io.containerd.runtime.v2.task/moby/{identity}/config.json") as file:
            return json.load(file)


def _await(path, directory):
    deadline = time.monotonic() + 30
    while not os.path.exists(path):
        if time.monotonic() > deadline:
            with open(directory + "/daemons.log") as file:
                raise SystemExit(f"bench: {path} does not appear\n{file.read()[-2000:]}")
        time.sleep(0.05)


class Podman(Engine):
    """Debian's podman over runc: its crun refuses the hybrid hierarchy of the test machine."""

    name = "podman"

    def set_up(self):
        d = self.directory
        os.makedirs(d + "/net")
        self.base = ["podman", "--root", d + "/root", "--runroot", d + "/run", "--tmpdir", d + "/tmp", "--network-config-dir", d + "/net", "--cgroup-manager", "cgroupfs",
                     "--runtime", "runc", "--storage-driver", "overlay", "--events-backend", "none"]
        call([*self.base, "pull", "--quiet", "--tls-verify=false", self.image], self.environ)

    def _options(self, network):
        kind = {"none": ["--network", "none"], "bridge": []}[network]
        return [*LIMITS, "--cgroup-parent", self.parent, "--log-driver", "k8s-file", *kind]

    def run(self, network):
        return [*self.base, "run", "--rm", *self._options(network), self.image, "true"]

    def sleeper(self):
        return [*self.base, "run", "-d", "--name", SLEEPER, *self._options("none"), self.image, "sleep", "1000"]

    def leases(self):
        try:
            return [name for name in os.listdir("/var/lib/cni/networks/podman") if name[0].isdigit()]
        except FileNotFoundError:
            return []


class Runc(Engine):
    """The runtime alone, on docker's configuration of the same container and the same files."""

    name = "runc"
    networks = ("none",)

    def __init__(self, directory, image, tag, docker):
        super().__init__(directory, image, tag)
        self.docker, self.base, self.count = docker, ["runc", "--root", self.directory + "/state"], 0

    def set_up(self):
        """Needs docker's sleeper to be running: it is what is copied."""
        config = self.docker.bundle()
        self._bundle(config, "sleep", ["sleep", "1000"])
        self._bundle(config, "true", ["true"])
        os.mkdir(self.directory + "/rootfs")
        # A pipe of two programs, neither of which follows what the image says: the image is our own.
        export = subprocess.Popen(["docker", "export", SLEEPER], env=self.docker.environ, stdout=subprocess.PIPE)
        subprocess.run(["tar", "-x", "-C", self.directory + "/rootfs"], stdin=export.stdout, check=True)
        export.stdout.close()
        if export.wait():
            raise SystemExit("bench: docker export failed")

    def _bundle(self, config, name, args):
        config = json.loads(json.dumps(config))
        config["process"]["args"] = args
        config["root"] = {"path": self.directory + "/rootfs"}
        config["hooks"] = {}
        config["mounts"] = [mount for mount in config["mounts"] if mount["type"] != "bind"]
        config["linux"]["cgroupsPath"] = f"{self.parent}/{name}"
        for namespace in config["linux"]["namespaces"]:
            namespace.pop("path", None)
        os.mkdir(f"{self.directory}/{name}")
        with open(f"{self.directory}/{name}/config.json", "w") as file:
            json.dump(config, file)

    def run(self, network):  # noqa: ARG002 - it has one kind
        self.count += 1
        return [*self.base, "run", "--bundle", self.directory + "/true", f"true-{self.count}"]

    def start_sleeper(self):
        # runc leaves the container with its caller's streams: a pipe would never see its end.
        subprocess.run([*self.base, "run", "--detach", "--bundle", self.directory + "/sleep", SLEEPER], env=self.environ, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, check=True)

    def stop_sleeper(self):
        call([*self.base, "delete", "--force", SLEEPER], self.environ)


class Utsuwa(Engine):
    """Ours, as installed beside the interpreter that runs the bench."""

    name = "utsuwa"

    def __init__(self, directory, image, tag):
        super().__init__(directory, image, tag)
        self.parent = "/utsuwa"
        self.environ |= {"UTSUWA_ROOT": self.directory + "/root", "UTSUWA_RUNROOT": self.directory + "/run"}
        self.base, self.database = [os.path.dirname(sys.executable) + "/utsuwa"], None

    def set_up(self):
        call([*self.base, "pull", self.image], self.environ)
        self.database = sqlite3.connect(f"file:{self.directory}/root/state.db?mode=ro", uri=True, isolation_level=None)

    def run(self, network):
        return [*self.base, "run", "--rm", "--memory", "64m", "--pids-limit", "100", "--network", network, self.image, "true"]

    def sleeper(self):
        return [*self.base, "run", "-d", "--name", SLEEPER, "--memory", "64m", "--pids-limit", "100", "--network", "none", self.image, "sleep", "1000"]

    def groups(self):
        """Return those of containers that this state directory knows or knew: the parent is shared with every other utsuwa of the machine."""
        ours = {name.partition(".")[0] for part in ("containers", "ledgers") for name in os.listdir(f"{self.directory}/root/{part}")}
        return [path for path in world.groups(self.parent) if os.path.basename(path) in ours]

    def leases(self):
        return self.database.execute("SELECT network, address FROM lease").fetchall()

    def tear_down(self):
        if self.database is not None:
            self.database.close()


def missing():
    """Return the programs that are not there."""
    return [name for name in ("podman", "dockerd", "containerd", "docker", "runc") if shutil.which(name, path="/usr/sbin:/usr/bin:/sbin:/bin") is None]
