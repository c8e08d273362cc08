"""JSON text for plain data, without the 5 ms that importing `json` costs.

Writes only; reading JSON is off the hot path and uses the standard library. Covers what the engine writes: None, bool, int, str,
bytes (as text, undecodable bytes as surrogates), list, tuple and dict with str keys.
"""

from _json import encode_basestring_ascii as _quote


def dumps(value: object) -> str:
    """Return compact JSON for plain data. Raises TypeError for anything else. RFC 8259."""
    if value is None:
        return "null"
    if value is True:
        return "true"
    if value is False:
        return "false"
    kind = type(value)
    if kind is str:
        return _quote(value)  # type: ignore[arg-type]
    if kind is int:
        return int.__repr__(value)
    if isinstance(value, bytes):
        return _quote(value.decode("utf-8", "surrogateescape"))
    if isinstance(value, (list, tuple)):
        return "[" + ",".join([dumps(item) for item in value]) + "]"
    if isinstance(value, dict):
        return "{" + ",".join([_quote(key) + ":" + dumps(item) for key, item in value.items()]) + "}"
    if isinstance(value, int):
        return int.__repr__(value)
    if isinstance(value, str):
        return _quote(value)
    if isinstance(value, float):
        return float.__repr__(value)
    raise TypeError(f"{kind.__name__} is not plain data")
