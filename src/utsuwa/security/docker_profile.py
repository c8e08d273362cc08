"""Custom seccomp profiles in Docker's JSON format, resolved for one container into OCI's `linux.seccomp`. Off the hot path.

Docker's format is OCI's with conditions: `includes` and `excludes` by capability, architecture and kernel, and `archMap` in place of
`architectures`.
"""

from __future__ import annotations

import json
from typing import Any

from utsuwa.errors import SpecError

_KEPT = ("defaultErrnoRet", "flags", "listenerPath", "listenerMetadata")


def parse(text: str, capabilities: frozenset[str], machine: tuple[str, str], kernel: tuple[int, int]) -> dict[str, object]:
    """Return the `linux.seccomp` object. `machine` is (libseccomp's, Go's) name, `kernel` (major, minor). Raises SpecError with the JSON path."""
    try:
        document = json.loads(text)
    except ValueError as error:
        raise SpecError(f"seccomp profile is not JSON: {str(error).lower()}") from None
    if not isinstance(document, dict):
        raise SpecError("seccomp profile: expected an object with defaultAction")
    if not isinstance(document.get("defaultAction"), str):
        raise SpecError("seccomp profile: defaultAction: missing or not a string")
    result: dict[str, object] = {"defaultAction": document["defaultAction"]}
    result.update({key: document[key] for key in _KEPT if document.get(key)})
    result["architectures"] = _architectures(document, machine[0])
    entries = document.get("syscalls")
    entries = [] if entries is None else entries
    if not isinstance(entries, list):
        raise SpecError("seccomp profile: syscalls: expected an array")
    calls = [_call(entry, f"syscalls[{place}]") for place, entry in enumerate(entries) if _applies(entry, f"syscalls[{place}]", capabilities, machine[1], kernel)]
    result["syscalls"] = calls
    return result


def _architectures(document: dict[str, Any], native: str) -> list[str]:
    plain, mapped = document.get("architectures"), document.get("archMap")
    if plain and mapped:
        raise SpecError("seccomp profile: use either architectures or archMap, not both")
    if plain:
        return list(plain)
    for entry in mapped or []:
        if entry.get("architecture") == native:
            return [native, *(entry.get("subArchitectures") or [])]
    return [native]


def _applies(entry: Any, where: str, capabilities: frozenset[str], go: str, kernel: tuple[int, int]) -> bool:
    if not isinstance(entry, dict):
        raise SpecError(f"seccomp profile: {where}: expected an object")
    includes, excludes = entry.get("includes") or {}, entry.get("excludes") or {}
    if includes.get("arches") and go not in includes["arches"]:
        return False
    if any(name not in capabilities for name in includes.get("caps") or []):
        return False
    if includes.get("minKernel") and kernel < _version(includes["minKernel"], where):
        return False
    if go in (excludes.get("arches") or []) or any(name in capabilities for name in excludes.get("caps") or []):
        return False
    return not (excludes.get("minKernel") and kernel >= _version(excludes["minKernel"], where))


def _version(text: str, where: str) -> tuple[int, int]:
    try:
        major, minor = text.split(".")[:2]
        return int(major), int(minor)
    except ValueError:
        raise SpecError(f"seccomp profile: {where}.minKernel: expected MAJOR.MINOR, not {text!r}") from None


def _call(entry: dict[str, Any], where: str) -> dict[str, object]:
    if entry.get("name") and entry.get("names"):
        raise SpecError(f"seccomp profile: {where}: use either name or names, not both")
    names = entry.get("names") or ([entry["name"]] if entry.get("name") else [])
    if not names or not isinstance(entry.get("action"), str):
        raise SpecError(f"seccomp profile: {where}: names and action are both needed")
    call: dict[str, object] = {"names": list(names), "action": entry["action"]}
    if entry.get("errnoRet") is not None:
        call["errnoRet"] = entry["errnoRet"]
    if entry.get("args"):
        call["args"] = entry["args"]
    return call
