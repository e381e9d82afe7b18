"""Files that are read again when they change, such as a mounted ConfigMap or Secret."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Generic, TypeVar

import structlog

_log = structlog.get_logger("formgate.files")
_LARGEST_FILE = 4 * 1024 * 1024

T = TypeVar("T")


class UnfitFileError(Exception):
    """Why files can not be used, and what to do about it."""


class Followed(Generic[T]):
    """What was made of some files, the last time that they were good: ``value``.

    ``make`` is given their contents, and raises UnfitFileError. Contents are compared, not times or names: so it does
    not matter how they are replaced: in place, by other files, or by the swap of a link above, as Kubernetes does.
    """

    def __init__(self, what: str, paths: Sequence[Path], make: Callable[[Sequence[bytes]], T]) -> None:
        """Read the files for the first time. Raises UnfitFileError."""
        self._what = what
        self._paths = paths
        self._make = make
        self._contents = self._read()
        self._suspect: object = None
        self._refused: object = None
        self.value = make(self._contents)

    @property
    def is_refused(self) -> bool:
        """Whether what is in the files now can not be used."""
        return self._refused is not None

    def look(self) -> None:
        """Read the files again; what can not be used leaves all as it was, and is logged once.

        And only when it is the same twice in a row: the first time, somebody may be in the midst of replacing them.
        """
        contents: tuple[bytes, ...] = ()
        try:
            contents = self._read()
            value = self.value if contents == self._contents else self._make(contents)
        except UnfitFileError as error:
            self._doubt(contents, str(error))
            return
        except Exception as error:  # noqa: BLE001 - a fault of ours, and no reason to stop looking
            self._doubt(contents, type(error).__name__)
            return
        if contents != self._contents:
            self.value, self._contents = value, contents
            _log.info("files have changed, and are in use", what=self._what)
        elif self.is_refused:
            _log.info("files are as they were before", what=self._what)
        self._suspect = self._refused = None

    def _doubt(self, contents: Sequence[bytes], why: str) -> None:
        found = (contents, why)
        if found not in (self._suspect, self._refused):
            self._suspect = found
        elif found != self._refused:
            self._refused = found
            _log.error("files have changed and can not be used: what they held before stays", what=self._what, why=why)

    def _read(self) -> tuple[bytes, ...]:
        return tuple(map(content_of, self._paths))


def content_of(path: Path) -> bytes:
    """Return what a file holds, 4 MB at the most. Raises UnfitFileError."""
    try:
        with path.open("rb") as file:
            content = file.read(_LARGEST_FILE + 1)
    except OSError as error:
        raise UnfitFileError(f"{path}: {error.strerror}") from error
    if len(content) > _LARGEST_FILE:
        raise UnfitFileError(f"{path}: is larger than {_LARGEST_FILE} bytes")
    return content
