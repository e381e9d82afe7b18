from __future__ import annotations

import asyncio
import os
import signal
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from formgate_server.storage.data_folder import (
    DataFolder,
    DataFolderError,
    manager_token_file,
    others_may_read,
    read_keys,
)
from formgate_server.storage.sql import migrate
from tests.support.stores import account, sqlite_stores
from tests.support.stores import opened as opened_database

KEYS = ["0123456789abcdef" * 4, "FEDCBA9876543210" * 4, "5" * 64]


def mode(path: Path) -> int:
    """Return the permission bits."""
    return stat.S_IMODE(path.stat().st_mode)


@pytest.fixture(params=[0o000, 0o022, 0o077])
def umask(request: pytest.FixtureRequest) -> Iterator[int]:
    """Whatever the umask of who starts the server."""
    before = os.umask(request.param)
    yield request.param
    os.umask(before)


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[DataFolder]:
    """A new folder, locked."""
    folder = DataFolder(tmp_path / "data")
    yield folder
    folder.close()


def private(path: Path, content: str) -> Path:
    """Write a file of mode 0600."""
    path.write_text(content)
    path.chmod(0o600)
    return path


# --------------------------------------------------------------------------------------------------------------- modes


async def test_nothing_is_readable_by_others(tmp_path: Path, umask: int) -> None:
    """The folder is 0700 and each file in it 0600, those that SQLite makes beside the database included."""
    folder = DataFolder(tmp_path / "data")
    folder.peppers()
    folder.manager_token(lambda: "token")
    await migrate.upgrade(folder.database_url())
    async with opened_database(folder.database_file) as database:
        async with sqlite_stores(database).registry.transaction() as transaction:
            await transaction.insert_account(account())
        names = {path.name: mode(path) for path in folder.path.iterdir()}
    folder.close()
    assert mode(folder.path) == 0o700
    databases = ["formgate.db", "formgate.db-shm", "formgate.db-wal"]
    assert names == dict.fromkeys(["lock", "manager.token", "pepper", *databases], 0o600)


def test_not_for_an_instant(folder: DataFolder, monkeypatch: pytest.MonkeyPatch, umask: int) -> None:
    """A secret has its name only when it is on disk, and its mode from the beginning."""
    seen = []
    sync = os.fsync

    def look(descriptor: int) -> None:
        if stat.S_ISREG(os.fstat(descriptor).st_mode):
            there = folder.pepper_file.exists(), folder.manager_token_file.exists()
            seen.append((os.fstat(descriptor).st_size, stat.S_IMODE(os.fstat(descriptor).st_mode), there))
        sync(descriptor)

    monkeypatch.setattr(os, "fsync", look)
    folder.peppers()
    folder.manager_token(lambda: "token")
    assert seen == [(65, 0o600, (False, False)), (6, 0o600, (True, False))]


@pytest.mark.parametrize("wide", [0o640, 0o604, 0o660, 0o700, 0o644, 0o4600])
def test_a_file_that_others_may_read_is_refused(folder: DataFolder, wide: int) -> None:
    """It may have been read: the operator has to know. The error names the file and its mode, never what is in it."""
    folder.peppers()
    folder.manager_token(lambda: "very-secret")
    for path, read in (
        (folder.pepper_file, folder.peppers),
        (folder.manager_token_file, lambda: folder.manager_token(str)),
    ):
        secret = path.read_text().strip()
        path.chmod(wide)
        with pytest.raises(DataFolderError) as refused:
            read()
        assert str(path) in str(refused.value)
        assert f"{wide:04o}" in str(refused.value)
        assert secret not in str(refused.value)


def test_a_narrower_mode_is_fine(folder: DataFolder) -> None:
    """0400, as a mounted secret may have."""
    peppers = folder.peppers()
    folder.pepper_file.chmod(0o400)
    assert folder.peppers() == peppers


@pytest.mark.parametrize("mode", [0o440, 0o640, 0o400, 0o040])
def test_root_may_hand_a_file_to_our_group(mode: int) -> None:
    """A Secret that Kubernetes mounts is root's, and its group's to read: a pod that is not root sees it only so."""
    assert not others_may_read(mode, owner=0, reader=10_001)


@pytest.mark.parametrize(
    ("mode", "owner", "reader"),
    [
        (0o440, 10_001, 10_001),  # our own: we could have narrowed it
        (0o440, 0, 0),
        (0o440, 500, 10_001),
        (0o444, 0, 10_001),
        (0o460, 0, 10_001),
        (0o450, 0, 10_001),
        (0o2440, 0, 10_001),
    ],
)
def test_nobody_else_may(mode: int, owner: int, reader: int) -> None:
    """A group is no excuse where the file is anybody else's, may be written or run by it, or is open to all."""
    assert others_may_read(mode, owner, reader)


# ------------------------------------------------------------------------------------------------------------- secrets


def test_made_once(tmp_path: Path) -> None:
    """Pepper and token are made at the first start, at random, and read at each one after."""
    one, other = DataFolder(tmp_path / "one"), DataFolder(tmp_path / "other")
    (pepper,) = one.peppers()
    assert len(pepper) == 32
    assert other.peppers() != (pepper,)
    assert one.manager_token(lambda: "first") == "first"
    one.close()
    other.close()
    again = DataFolder(tmp_path / "one")
    assert again.peppers() == (pepper,)
    assert again.manager_token(lambda: "second") == "first"
    assert manager_token_file(tmp_path / "one").read_text() == "first\n"
    again.close()


@pytest.mark.parametrize("content", ["{0}", "{0}\n", "{0}\n{1}\n{2}\n", "\n  {0} \r\n{1}\n\n"])
def test_key_files(tmp_path: Path, content: str) -> None:
    """Up to three lines of 64 hex digits, newest first; white space around them does not matter."""
    path = private(tmp_path / "keys", content.format(*KEYS))
    assert [each.hex() for each in read_keys(path)] == [each.lower() for each in KEYS[: content.count("{")]]


@pytest.mark.parametrize(
    "content",
    [
        "",
        "\n\n",
        "{0}\n{1}\n{2}\n{0}\n",
        "{0}0\n",
        "0x{0}",
        "{0}{1}",
        "{0}\n# a comment\n",
        "g" * 64,
        "\u0663" * 64,
        "{0}\n" + "5" * 63,
    ],
)
def test_key_files_that_are_none(tmp_path: Path, content: str) -> None:
    """Refused as a whole, naming the file, and showing nothing of it: a digit too many makes it no less secret."""
    path = private(tmp_path / "keys", content.format(*KEYS))
    with pytest.raises(DataFolderError) as refused:
        read_keys(path)
    assert str(refused.value) == f"{path} must hold 1 to 3 lines of 64 hex digits each, and nothing else"


def test_a_key_file_that_is_not_there(tmp_path: Path) -> None:
    """Named, with the reason."""
    with pytest.raises(DataFolderError, match=r"keys: No such file or directory$"):
        read_keys(tmp_path / "keys")


def test_a_lost_pepper_is_not_made_anew(folder: DataFolder) -> None:
    """With another pepper no key of the database would be found: rather do not start, and say why."""
    folder.peppers()
    folder.database_url()
    folder.database_file.write_bytes(b"not empty")
    folder.pepper_file.unlink()
    with pytest.raises(DataFolderError, match="pepper is missing: put it back"):
        folder.peppers()
    assert not folder.pepper_file.exists()


def test_interrupted_while_a_secret_is_written(folder: DataFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    """No half of a secret is ever under its name; the next start makes a whole one."""

    def stop(descriptor: int) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(os, "fsync", stop)
        with pytest.raises(KeyboardInterrupt):
            folder.peppers()
    assert not folder.pepper_file.exists()
    assert len(folder.peppers()) == 1
    assert sorted(path.name for path in folder.path.iterdir()) == ["lock", "pepper"]


# ---------------------------------------------------------------------------------------------------------------- lock


def test_a_second_server_is_refused(folder: DataFolder) -> None:
    """In words that name the folder and say what to do; the first keeps it."""
    for _ in range(2):
        with pytest.raises(DataFolderError) as refused:
            DataFolder(folder.path)
        assert str(refused.value).startswith(f"{folder.path} is in use by another server: ")


HOLD = """
import sys
from pathlib import Path
from formgate_server.storage.data_folder import DataFolder, DataFolderError

try:
    folder = DataFolder(Path(sys.argv[1]))
except DataFolderError:
    print("refused", flush=True)
else:
    print("locked", flush=True)
    sys.stdin.read()
"""


def hold(path: Path) -> subprocess.Popen[str]:
    """Start a process that locks the folder until its standard input ends."""
    pipe = subprocess.PIPE
    return subprocess.Popen([sys.executable, "-c", HOLD, str(path)], stdin=pipe, stdout=pipe, text=True)


def test_a_second_process_is_refused(tmp_path: Path) -> None:
    """Between processes, either way; and whoever is killed has let go of it."""
    folder = DataFolder(tmp_path / "data")
    with hold(folder.path) as second:
        assert second.communicate()[0] == "refused\n"
    folder.close()
    with hold(folder.path) as second:
        assert second.stdout is not None
        assert second.stdout.readline() == "locked\n"
        with pytest.raises(DataFolderError, match="is in use by another server"):
            DataFolder(folder.path)
        second.send_signal(signal.SIGKILL)
    DataFolder(folder.path).close()


# --------------------------------------------------------------------------------------------------------------- paths


@pytest.mark.parametrize("name", ["with space", "50%", "a?b=c", "a#b", "a:b@c", "é💡", "a/b/c"])
async def test_any_path_will_do(tmp_path: Path, name: str) -> None:
    """The database is in the folder, whatever that is called."""
    folder = DataFolder(tmp_path / name)
    await migrate.upgrade(folder.database_url())
    assert await migrate.current(folder.database_url()) == migrate.head()
    assert folder.database_file.stat().st_size
    folder.close()


def test_a_relative_path_stays_where_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also when the process goes elsewhere."""
    monkeypatch.chdir(tmp_path)
    folder = DataFolder(Path("data"))
    monkeypatch.chdir("/")
    folder.peppers()
    asyncio.run(migrate.upgrade(folder.database_url()))
    folder.close()
    assert {path.name for path in (tmp_path / "data").iterdir()} == {"lock", "pepper", "formgate.db"}


def test_where_no_folder_can_be(tmp_path: Path) -> None:
    """The error names the folder and says why."""
    (tmp_path / "file").touch()
    for path in (tmp_path / "file", tmp_path / "file" / "data"):
        with pytest.raises(DataFolderError, match=rf"^{path}: "):
            DataFolder(path)
