"""TOML files that operators write: validated whole, and what is wrong is told with file, line and field."""

from __future__ import annotations

import json
import re
import tomllib
from collections.abc import Sequence
from typing import Any, NamedTuple, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError

_AT_LINE = re.compile(r"\(at line (\d+), ")


class FileModel(BaseModel):
    """A table of such a file."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


M = TypeVar("M", bound=FileModel)


class TomlError(Exception):
    """A file that can not be used; says the file and, where they are known, the line and the field."""


class Source(NamedTuple):
    """A file's name and text, and what is raised where it can not be used."""

    name: str
    text: str
    kind: type[TomlError] = TomlError

    def error(self, line: int, message: str) -> TomlError:
        """Return the error that something is wrong on a line."""
        return self.kind(f"{self.name}:{line}: {message}")

    def error_at(self, field: Sequence[int | str], message: str) -> TomlError:
        """Return the error that something is wrong with a field."""
        path = ".".join(str(part) for part in field if part != "[key]") or "the file"
        return self.error(_line_of(self.text, field), f"{path}: {message}")

    def parse(self, model: type[M]) -> M:
        """Return what the file says. Raises this source's kind of TomlError."""
        try:
            return model.model_validate_json(json.dumps(tomllib.loads(self.text), default=_no_date))
        except tomllib.TOMLDecodeError as error:
            at = _AT_LINE.search(str(error))
            line = int(at[1]) if at else self.text.count("\n") + 1  # it says "at end of document" then
            raise self.error(line, f"the file: is not TOML: {error}") from error
        except ValidationError as error:
            first = error.errors(include_url=False, include_context=False)[0]
            raise self.error_at(first["loc"], first["msg"].removeprefix("Value error, ")) from error
        except (ValueError, RecursionError) as error:  # a number of thousands of digits, arrays thousands deep
            raise self.error(1, "the file: holds a number too long, or is nested too deep, to be read") from error


def _no_date(when: object) -> dict[str, str]:
    """Return what no field takes, in the place of TOML's dates and times: no field is one."""
    return {"(a date)": str(when)}


def _line_of(text: str, field: Sequence[int | str]) -> int:
    """Return the line on which a field, or what is nearest above it, stands: 1 at the least.

    A file cut off after a line, where that is valid TOML, has the field only from its line on.
    """
    best, depth = 1, 0
    lines = text.splitlines()
    for number in range(1, len(lines) + 1):
        try:
            there: Any = tomllib.loads("\n".join(lines[:number]))
        except tomllib.TOMLDecodeError:
            continue
        found = 0
        for part in field:
            try:
                there = there[part]
            except (KeyError, IndexError, TypeError):
                break
            found += 1
        if found > depth:
            best, depth = number, found
    return best
