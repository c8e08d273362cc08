"""The part of ctypes that the hot path needs, straight from its C half: `import ctypes` costs 3 ms of every start, `_ctypes` 0.3 (docs/adr/0004).

Used as `from utsuwa.kernel import ffi as ctypes`; same names, same meaning. What is not here (pointers, callbacks, searching for libraries) is off the hot
path and uses ctypes itself. A future interpreter whose C half looks different gets ctypes instead.
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from ctypes import CDLL, Structure, byref, c_char_p, c_int, c_long, c_size_t, c_uint, c_uint32, c_uint64, c_ulong, c_ushort, c_void_p, get_errno, sizeof
else:
    try:
        from _ctypes import FUNCFLAG_CDECL, FUNCFLAG_USE_ERRNO, CFuncPtr, Structure, _SimpleCData, byref, dlopen, get_errno, sizeof
    except ImportError:
        from ctypes import CDLL, Structure, byref, c_char_p, c_int, c_long, c_size_t, c_uint, c_uint32, c_uint64, c_ulong, c_ushort, c_void_p, get_errno, sizeof
    else:

        class c_int(_SimpleCData):  # noqa: N801
            _type_ = "i"

        class c_uint(_SimpleCData):  # noqa: N801
            _type_ = "I"

        class c_ushort(_SimpleCData):  # noqa: N801
            _type_ = "H"

        class c_long(_SimpleCData):  # noqa: N801
            _type_ = "l"

        class c_ulong(_SimpleCData):  # noqa: N801
            _type_ = "L"

        class c_char_p(_SimpleCData):  # noqa: N801
            _type_ = "z"

        class c_void_p(_SimpleCData):  # noqa: N801
            _type_ = "P"

        c_uint32, c_uint64, c_size_t = c_uint, c_ulong, c_ulong  # Linux on 64-bit machines: int is 32 bits, long and size_t are 64

        class _Function(CFuncPtr):
            _flags_ = FUNCFLAG_CDECL | FUNCFLAG_USE_ERRNO
            _restype_ = c_int

        class CDLL:
            """A loaded library; its functions are attributes, and keep errno for get_errno(). `None` is what the interpreter itself has loaded."""

            def __init__(self, name: str | None, use_errno: bool = True) -> None:  # noqa: ARG002 - always on
                self._handle = dlopen(name, 0)

            def __getattr__(self, name: str) -> _Function:
                function = _Function((name, self))
                setattr(self, name, function)
                return function


__all__ = ["CDLL", "Structure", "byref", "c_char_p", "c_int", "c_long", "c_size_t", "c_uint", "c_uint32", "c_uint64", "c_ulong", "c_ushort", "c_void_p", "get_errno", "sizeof"]
