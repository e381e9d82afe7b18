"""A request's path, where it can be read in one way only.

What stands behind the gateway may decode, merge slashes, resolve dots or cut parameters before it routes. A path that
could become another one by any of that names no resource: it is refused, whatever it would have been.
"""

from __future__ import annotations

import re
from urllib.parse import unquote_plus

_MOST_SEGMENTS = 64
_MOST_PARAMETERS = 200
_LONGEST = 8_192

# An escape stands for itself only where nobody could have left it out, and where it hides nothing: not a letter, digit
# or one of - _ ~ (RFC 3986, 6.2.2.2), nor . / \ % ; ? # or a control character.
_HIDING = {*map(ord, "./\\%;?#-_~"), *range(0x20), 0x7F, *(byte for byte in range(0x80) if chr(byte).isalnum())}
_ESCAPES = frozenset(f"%{byte:02X}" for byte in range(0x100) if byte not in _HIDING)
_ESCAPE = re.compile(r"%..?")
_SEGMENT = r"(?!\.{1,2}(?:/|\Z))(?:[A-Za-z0-9._~!$&'()*+,=:@-]|%[0-9A-Fa-f]{2})+"
_PATH = re.compile(rf"/(?:{_SEGMENT}/)*(?:{_SEGMENT})?", re.ASCII)


def segments(uri: str) -> tuple[str, ...] | None:
    """Return the segments of an origin-form target's path; None: it could be read in more than one way."""
    path = uri.partition("?")[0]
    if len(path) > _LONGEST or _PATH.fullmatch(path) is None:
        return None
    if any(escape.upper() not in _ESCAPES for escape in _ESCAPE.findall(path)):
        return None
    parts = path.strip("/").split("/") if path != "/" else []
    return tuple(parts) if len(parts) <= _MOST_SEGMENTS else None


def parameter(uri: str, name: str) -> str | None:
    """Return the value of a query parameter; None: there is none. Several become one that is no key.

    Its name counts as it is written only: one with escapes would not be taken out by the gateway, and go on.
    """
    parameters = uri.partition("?")[2].split("&", _MOST_PARAMETERS)
    if len(parameters) > _MOST_PARAMETERS:  # more than anybody needs: none of them is looked for
        return None
    named = (each.partition("=") for each in parameters)
    found = [unquote_plus(value) for written, _, value in named if written == name]
    return ", ".join(found) if found else None
