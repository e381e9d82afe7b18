"""An update: the fields that were given, and only those."""

from __future__ import annotations

from typing import Any

from google.protobuf.field_mask_pb2 import FieldMask

from formgate_server.cli.errors import CommandError, ExitCode


class Change:
    """Collects fields of a message and their new values."""

    def __init__(self) -> None:
        self.values: dict[str, Any] = {}
        """By field, those that are given a value; one that is cleared is in the mask only."""
        self._paths: list[str] = []

    def set(self, field: str, value: object, *, given: bool = False, clear: bool = False, option: str = "") -> None:
        """Take ``value`` where there is one (or it is ``given`` though empty); ``clear``: empty the field.

        Raises CommandError where ``option`` and its opposite are given together.
        """
        given = given or bool(value)
        if given and clear:
            raise CommandError(f"--no-{field.replace('_', '-')} can not go with {option}", ExitCode.USAGE)
        if given:
            self.values[field] = value
        if given or clear:
            self._paths.append(field)

    def mask(self) -> FieldMask:
        """Return which fields change. Raises CommandError where none does."""
        if not self._paths:
            raise CommandError("nothing to change is given", ExitCode.USAGE, hint="--help lists what can be changed")
        return FieldMask(paths=self._paths)
