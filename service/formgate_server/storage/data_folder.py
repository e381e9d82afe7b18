"""The embedded default's folder: the database, the pepper and the manager's token. One server at a time has it.

Nothing in it is ever readable by others, not for an instant and whatever the umask: files are opened as 0600 and get
their names when they are complete and on disk.
"""

from __future__ import annotations

import fcntl
import os
import re
import secrets
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from sqlalchemy import URL

_FOLDER_MODE = 0o700
_FILE_MODE = 0o600
_GROUP_READS = 0o040
_KEY_BYTES = 32
_KEY_LINE = re.compile(r"[0-9A-Fa-f]{64}", re.ASCII)
_MOST_KEYS = 3
_LARGEST_FILE = 4096


class DataFolderError(Exception):
    """The folder, or a file of secrets, is not as it must be; the message names it and says what to do."""


class DataFolder:
    """A folder that is locked until ``close``, or until the process ends: the kernel sees to that, however it ends."""

    def __init__(self, path: Path) -> None:
        """Make the folder where it is missing, and lock it. Raises DataFolderError."""
        self.path = path.absolute()
        with _explained(self.path):
            self.path.mkdir(mode=_FOLDER_MODE, parents=True, exist_ok=True)
            self._lock = os.open(self.path / "lock", os.O_RDWR | os.O_CREAT, _FILE_MODE)
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            self.close()
            message = f"{self.path} is in use by another server: stop that one, or give this one its own --data folder"
            raise DataFolderError(message) from None

    def close(self) -> None:
        """Unlock the folder."""
        os.close(self._lock)

    @property
    def database_file(self) -> Path:
        """The database."""
        return self.path / "formgate.db"

    @property
    def pepper_file(self) -> Path:
        """The peppers, newest first."""
        return self.path / "pepper"

    @property
    def manager_token_file(self) -> Path:
        """The manager's token that the command on this machine uses."""
        return manager_token_file(self.path)

    def database_url(self) -> URL:
        """Return where the database is; its file is made, so that it has the mode it must have."""
        with _explained(self.database_file):
            os.close(os.open(self.database_file, os.O_RDWR | os.O_CREAT, _FILE_MODE))
            _sync_names(self.path)
        return URL.create("sqlite+aiosqlite", database=str(self.database_file))

    @property
    def sealing_key_file(self) -> Path:
        """The sealing keys, newest first."""
        return self.path / "sealing.key"

    def peppers(self) -> tuple[bytes, ...]:
        """Return the peppers; where there are none yet, one is made. Raises DataFolderError."""
        if not self.pepper_file.exists():
            if self.database_file.exists() and self.database_file.stat().st_size:
                message = f"{self.pepper_file} is missing: put it back, no key in {self.database_file} works without it"
                raise DataFolderError(message)
            _write_private(self.pepper_file, secrets.token_hex(_KEY_BYTES))
        return read_keys(self.pepper_file)

    def sealing_keys(self) -> tuple[bytes, ...]:
        """Return the sealing keys; where there are none yet, one is made. Raises DataFolderError."""
        if not self.sealing_key_file.exists():
            _write_private(self.sealing_key_file, secrets.token_hex(_KEY_BYTES))
        return read_keys(self.sealing_key_file)

    def manager_token(self, make: Callable[[], str]) -> str:
        """Return the manager's token; where there is none yet, it is what ``make`` makes. Raises DataFolderError."""
        if not self.manager_token_file.exists():
            _write_private(self.manager_token_file, make())
        return read_private(self.manager_token_file).strip()


def manager_token_file(folder: Path) -> Path:
    """Return where the manager's token is in a data folder, which this does not lock."""
    return folder / "manager.token"


def read_keys(path: Path) -> tuple[bytes, ...]:
    """Return the 1 to 3 secret keys of a file, each a line of 64 hex digits, newest first. Raises DataFolderError."""
    lines = read_private(path).split()
    # No line is ever shown: a digit too many does not make it less of a secret.
    if not 1 <= len(lines) <= _MOST_KEYS or not all(_KEY_LINE.fullmatch(line) for line in lines):
        raise DataFolderError(f"{path} must hold 1 to {_MOST_KEYS} lines of 64 hex digits each, and nothing else")
    return tuple(bytes.fromhex(line) for line in lines)


def others_may_read(mode: int, owner: int, reader: int) -> bool:
    """Tell whether a file of secrets is open to more than its owner; ``owner`` and ``reader`` are uids.

    Root may hand one to a group whose member we are: so Kubernetes mounts a Secret for a pod that is not root (0440, of
    root and the fsGroup). PostgreSQL reads its private key by the same rule.
    """
    handed_over = owner == 0 != reader
    return bool(mode & 0o7777 & ~(_FILE_MODE | (_GROUP_READS if handed_over else 0)))


def read_private(path: Path) -> str:
    """Return what a file of secrets holds. Raises DataFolderError, also where others may read it."""
    with _explained(path), path.open("rb") as file:
        status = os.fstat(file.fileno())
        if others_may_read(status.st_mode, status.st_uid, os.geteuid()):
            mode = status.st_mode & 0o7777
            raise DataFolderError(f"{path} has mode {mode:04o}: others may read it; chmod 600 it, and mind who has")
        content = file.read(_LARGEST_FILE)
    return content.decode("ascii", errors="replace")


def _write_private(path: Path, line: str) -> None:
    """Write a file that was not there. Wherever this is interrupted, the file is complete or is not there."""
    new = path.with_name(f".{path.name}.new")
    with _explained(path):
        with suppress(FileNotFoundError):
            new.unlink()  # of a start that was interrupted here
        with os.fdopen(os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL, _FILE_MODE), "w", encoding="ascii") as file:
            file.write(f"{line}\n")
            file.flush()
            os.fsync(file.fileno())
        new.rename(path)
        _sync_names(path.parent)


def _sync_names(folder: Path) -> None:
    """Bring the names in a folder to disk: a file that is there, under no name, is lost."""
    opened = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(opened)
    finally:
        os.close(opened)


@contextmanager
def _explained(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise DataFolderError(f"{path}: {error.strerror}") from error
