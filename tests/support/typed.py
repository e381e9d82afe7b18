"""The pages of docs/ as they are typed: their commands, what they show, and a shell to type them into."""

from __future__ import annotations

import os
import re
import socket
import subprocess
from collections.abc import Iterator, Mapping
from pathlib import Path

from tests.support.server import COMMAND

ROOT = Path(__file__).parents[2]

_CONSOLE = re.compile(r"^```console\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_END = "\x1e"

# What is another every time, each in its fixed width, so that tables stay as they are.
_VARYING = (
    (re.compile(r"\b(key|tok|acc)_[0-9A-Za-z]{22}\b"), r"\1_ID"),
    (re.compile(r"(?<=\.\.\.)[0-9A-Za-z]{4}\b"), "LAST"),
    (re.compile(r"\b((?:[a-z]+_)+)[0-9A-Za-z]{49}\b"), r"\1SECRET"),
    (re.compile(r"\b\d{4}-\d{2}-\d{2}[ T]\d{2}:\d{2}:\d{2}(\.\d+)?(Z|[+-]\d{2}:\d{2})"), "TIME"),
    (re.compile(r"\b\d{4}-\d{2}-\d{2}\b"), "DAY"),
    (re.compile(r"\bin (\d+(d|h|ms|m|us|s))+"), "in A_WHILE"),
)


def without_varying(text: str) -> str:
    """Return a text with names in the place of ids, times and the like."""
    for pattern, name in _VARYING:
        text = pattern.sub(name, text)
    return text


def typed(page: Path) -> Iterator[tuple[str, str]]:
    """Yield the commands of a page with the output that it shows for each; its further lines begin with ``>``."""
    for block in _CONSOLE.findall(page.read_text(encoding="utf-8")):
        for part in re.split(r"^\$ ", block, flags=re.MULTILINE)[1:]:
            command, _, output = part.partition("\n")
            while output.startswith(">"):
                line, _, output = output.partition("\n")
                command += "\n" + line.removeprefix(">").removeprefix(" ")
            yield command, output


def type_into_shell(commands: list[str], environment: Mapping[str, str], command: Path) -> list[str]:
    """Type commands into one shell, in the repository, and return what each has printed.

    ``command`` is the folder of the command ``formgate``, put on the path before the environment's own.
    """
    script = "".join(f"{command}\nprintf '\\036'\n" for command in commands)
    shell = dict(environment) | {
        "PATH": os.pathsep.join((str(command), str(COMMAND.parent), os.environ["PATH"])),
        "LC_ALL": "C.UTF-8",
    }
    shell.pop("COLUMNS", None)
    done = subprocess.run(
        ["bash", "-c", script],
        cwd=ROOT,
        env=shell,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        encoding="utf-8",
        timeout=280,
        check=False,
    )
    return done.stdout.split(_END)[:-1]


def free_port() -> int:
    """Return a port that nobody listens on now."""
    with socket.socket() as tried:
        tried.bind(("127.0.0.1", 0))
        port: int = tried.getsockname()[1]
        return port


class Renamed:
    """What a page names, and what it is in a test: ports and folders of its own."""

    def __init__(self, names: Mapping[str, str]) -> None:
        self._names = names

    def here(self, text: str) -> str:
        """Return a page's text with the test's names."""
        for shown, real in self._names.items():
            text = text.replace(shown, real)
        return text

    def shown(self, text: str) -> str:
        """Return what was printed with the page's names."""
        for shown, real in self._names.items():
            text = text.replace(real, shown)
        return text
