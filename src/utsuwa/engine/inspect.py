"""What `inspect` shows: the engine's plain data in the shape of Docker's API, so that what reads Docker's reads ours. Only looks.

Fields that stand for something not built yet have the value that Docker gives when it is not used.
"""

from __future__ import annotations

import time

TYPE_CHECKING = False
if TYPE_CHECKING:
    from utsuwa.engine.context import Context

    Spec = dict[str, object]
    Port = tuple[str, str, int, int]  # protocol, host address ("" for all), host port, container port

NEVER = "0001-01-01T00:00:00Z"
SHM_SIZE = 67_108_864
_STATUS = {"creating": "created", "stopped": "exited"}


def container(context: Context, text: str) -> Spec:
    """Return one container as GET /containers/ID/json does. Raises NotFound, Conflict."""
    from utsuwa.engine import containers

    return describe(containers.details(context, containers.find(context, text).id))


def describe(known: Spec) -> Spec:
    """Return Docker's shape of what `engine.containers.details` knows."""
    config, directory = _dict(known, "config"), str(known["directory"])
    args = [str(word) for word in _dict(config, "process").get("args") or [""]]  # type: ignore[attr-defined]
    return {
        "Id": known["id"], "Created": stamp(known["created"]), "Path": args[0], "Args": args[1:], "State": _state(_dict(known, "state")), "Image": known["image"],
        "ResolvConfPath": directory + "/resolv.conf", "HostnamePath": directory + "/hostname", "HostsPath": directory + "/hosts", "LogPath": directory + "/log",
        "Name": "/" + str(known["name"]), "RestartCount": 0, "Driver": "overlay2", "Platform": "linux", "MountLabel": "", "ProcessLabel": "", "AppArmorProfile": "",
        "ExecIDs": None, "HostConfig": _host_config(known), "GraphDriver": _graph_driver(known), "Mounts": _mounts(known), "Config": _config(known),
        "NetworkSettings": _network_settings(known),
    }


def _dict(known: Spec, key: str) -> Spec:
    return known.get(key) or {}  # type: ignore[return-value]


def stamp(ns: object) -> str:
    """Return RFC 3339 with as many digits as are needed, as Go's RFC3339Nano; the zero time for none."""
    if not isinstance(ns, int) or not ns:
        return NEVER
    fraction = f".{ns % 1_000_000_000:09d}".rstrip("0").rstrip(".")
    return time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(ns // 1_000_000_000)) + fraction + "Z"


def _state(state: Spec) -> Spec:
    status = str(state.get("status") or "creating")
    status = "paused" if state.get("paused") and status == "running" else _STATUS.get(status, status)
    return {
        "Status": status, "Running": status in ("running", "paused"), "Paused": status == "paused", "Restarting": False, "OOMKilled": bool(state.get("oom")), "Dead": False,
        "Pid": state.get("pid") or 0, "ExitCode": state.get("exit_code") or 0, "Error": state.get("error") or "", "StartedAt": stamp(state.get("started")),
        "FinishedAt": stamp(state.get("finished")),
    }


# ------------------------------------------------------------------------------------------------------------ HostConfig

def _host_config(known: Spec) -> Spec:
    options, linux = _dict(known, "options"), _dict(_dict(known, "config"), "linux")
    security = (["no-new-privileges"] if options.get("no_new_privs") else []) + ([f"seccomp={options['seccomp']}"] if options.get("seccomp") else [])
    pids = options.get("pids_limit") or 0
    memory = options.get("memory") or 0
    return {
        "Binds": list(_named(known)) or None, "ContainerIDFile": "", "LogConfig": {"Type": "cri", "Config": {}}, "NetworkMode": options.get("network") or "",
        "PortBindings": _bindings(_ports(known), ""), "RestartPolicy": {"Name": "no", "MaximumRetryCount": 0}, "AutoRemove": bool(options.get("remove")), "VolumeDriver": "",
        "VolumesFrom": None, "ConsoleSize": [0, 0], "CapAdd": options.get("cap_add") or None, "CapDrop": options.get("cap_drop") or None, "CgroupnsMode": "private",
        "Dns": [], "DnsOptions": [], "DnsSearch": [], "ExtraHosts": None, "GroupAdd": None, "IpcMode": "private", "Cgroup": "", "Links": None, "OomScoreAdj": 0, "PidMode": "",
        "Privileged": False, "PublishAllPorts": False, "ReadonlyRootfs": bool(options.get("read_only")), "SecurityOpt": security or None, "UTSMode": "", "UsernsMode": "",
        "ShmSize": SHM_SIZE, "Runtime": "utsuwa", "Isolation": "", "CpuShares": 0, "Memory": memory, "NanoCpus": round(float(options.get("cpus") or 0) * 1e9),  # type: ignore[arg-type]
        "CgroupParent": str(linux.get("cgroupsPath") or "").rpartition("/")[0], "BlkioWeight": 0, "BlkioWeightDevice": [], "BlkioDeviceReadBps": [], "BlkioDeviceWriteBps": [],
        "BlkioDeviceReadIOps": [], "BlkioDeviceWriteIOps": [], "CpuPeriod": 0, "CpuQuota": 0, "CpuRealtimePeriod": 0, "CpuRealtimeRuntime": 0, "CpusetCpus": "", "CpusetMems": "",
        "Devices": [], "DeviceCgroupRules": None, "DeviceRequests": None, "MemoryReservation": 0, "MemorySwap": 2 * memory, "MemorySwappiness": None,  # type: ignore[operator]
        "OomKillDisable": False, "PidsLimit": pids if pids > 0 else None, "Ulimits": [], "CpuCount": 0, "CpuPercent": 0,  # type: ignore[operator]
        "IOMaximumIOps": 0, "IOMaximumBandwidth": 0, "MaskedPaths": linux.get("maskedPaths") or [], "ReadonlyPaths": linux.get("readonlyPaths") or [],
    }


def _named(known: Spec) -> list[str]:
    """Return the mounts that the user asked for by a source, as Docker's Binds has them."""
    options = _dict(known, "options")
    return [spec for spec in options.get("volumes") or () if ":" in spec]  # type: ignore[attr-defined]


def _ports(known: Spec) -> list[Port]:
    return _dict(known, "network").get("ports") or []  # type: ignore[return-value]


def _bindings(ports: list[Port], everywhere: str) -> dict[str, list[dict[str, str]]]:
    found: dict[str, list[dict[str, str]]] = {}
    for protocol, address, outer, inner in ports:
        found.setdefault(f"{inner}/{protocol}", []).append({"HostIp": address or everywhere, "HostPort": str(outer)})
    return found


# ----------------------------------------------------------------------------------------------------------------- Config

def _config(known: Spec) -> Spec:
    options, image, process = _dict(known, "options"), _dict(known, "image_config"), _dict(_dict(known, "config"), "process")
    exposed: Spec = {**_dict(image, "ExposedPorts"), **{port: {} for port in _bindings(_ports(known), "")}}
    attached = not options.get("detach")
    replaced = options.get("entrypoint") is not None
    command = options.get("args") or (None if replaced else image.get("Cmd"))
    anonymous = {spec: {} for spec in options.get("volumes") or () if ":" not in spec}  # type: ignore[attr-defined,var-annotated]
    found: Spec = {
        "Hostname": _dict(known, "config").get("hostname") or "", "Domainname": "", "User": options.get("user") or image.get("User") or "",
        "AttachStdin": attached and bool(options.get("interactive")), "AttachStdout": attached, "AttachStderr": attached, "ExposedPorts": exposed,
        "Tty": bool(process.get("terminal")), "OpenStdin": bool(options.get("interactive")), "StdinOnce": attached and bool(options.get("interactive")),
        "Env": _environment(options.get("env") or [], image.get("Env") or []), "Cmd": command, "Image": known["image_name"],  # type: ignore[arg-type]
        "Volumes": {**_dict(image, "Volumes"), **anonymous} or None, "WorkingDir": options.get("workdir") or image.get("WorkingDir") or "",
        "Entrypoint": options["entrypoint"] if replaced else image.get("Entrypoint"), "OnBuild": None, "Labels": image.get("Labels") or {},
        "StopSignal": image.get("StopSignal") or "",
    }
    if not exposed:
        del found["ExposedPorts"]
    if not found["StopSignal"]:
        del found["StopSignal"]
    return found


def _environment(given: list[str], image: list[str]) -> list[str]:
    """Return the user's entries, then those of the image that they do not replace."""
    names = {entry.partition("=")[0] for entry in given}
    return [*given, *(entry for entry in image if entry.partition("=")[0] not in names)]


# -------------------------------------------------------------------------------------------- file systems and network

def _graph_driver(known: Spec) -> Spec:
    overlay = _dict(_dict(known, "bundle"), "overlay")
    data = {
        "ID": known["id"], "LowerDir": ":".join(overlay.get("lower") or []), "MergedDir": f"{known['directory']}/merged",  # type: ignore[arg-type]
        "UpperDir": overlay.get("upper") or "", "WorkDir": overlay.get("work") or "",
    }
    return {"Data": data, "Name": "overlay2"}


def _mounts(known: Spec) -> list[Spec]:
    points: list[Spec] = known.get("volumes") or []  # type: ignore[assignment]
    return [
        {
            "Type": point["type"], **({"Name": point["name"]} if point["name"] else {}), "Source": point["source"], "Destination": point["destination"],
            **({"Driver": point["driver"]} if point["driver"] else {}), "Mode": point["mode"], "RW": point["rw"], "Propagation": point["propagation"],
        }
        for point in points
    ]


def _network_settings(known: Spec) -> Spec:
    network, mode = _dict(known, "network"), str(_dict(known, "options").get("network") or "")
    running = _dict(known, "state").get("status") == "running"
    ports: dict[str, object] = {}
    if running and mode not in ("host", "none"):
        ports = {**dict.fromkeys(_dict(_dict(known, "image_config"), "ExposedPorts")), **_bindings(_ports(known), "0.0.0.0")}  # noqa: S104 - shown, not bound
    end = _endpoint(network if running else {})
    return {
        "Bridge": "", "SandboxID": known["id"] if running else "", "SandboxKey": (network.get("netns") or "") if running else "", "Ports": ports,
        "HairpinMode": False, "LinkLocalIPv6Address": "", "LinkLocalIPv6PrefixLen": 0, "SecondaryIPAddresses": None, "SecondaryIPv6Addresses": None, "EndpointID": "",
        **{key: end[key] for key in ("Gateway", "GlobalIPv6Address", "GlobalIPv6PrefixLen", "IPAddress", "IPPrefixLen", "IPv6Gateway", "MacAddress")},
        "Networks": {mode: end} if mode else {},
    }


def _endpoint(network: Spec) -> Spec:
    return {
        "IPAMConfig": None, "Links": None, "Aliases": None, "MacAddress": network.get("mac") or "", "DriverOpts": None, "GwPriority": 0, "NetworkID": "", "EndpointID": "",
        "Gateway": network.get("gateway") or "", "IPAddress": network.get("address") or "", "IPPrefixLen": network.get("prefix") or 0, "IPv6Gateway": "",
        "GlobalIPv6Address": "", "GlobalIPv6PrefixLen": 0, "DNSNames": None,
    }
