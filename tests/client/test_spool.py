from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from formgate import UsageRecorder
from formgate.buffering import FullError, Taken
from formgate.spool import Spool
from tests.support.callers import Key, counted, new_key
from tests.support.client import Client as Manager
from tests.support.server import Server, clean_environment

pytest_plugins = ("tests.support.rpc",)

NOWHERE = "127.0.0.1:1"


def spool(folder: Path, most_bytes: int = 2**20) -> Spool:
    """Open a folder."""
    return Spool(folder, most_bytes, "never")


def taken(spool: Spool) -> Taken:
    """Return what there is to send; AssertionError where there is nothing."""
    found = spool.take()
    assert found is not None
    return found


def test_records_wait_in_order_and_are_gone_when_done(tmp_path: Path) -> None:
    """What was put is taken, whole and in order, until it is done; then its file is deleted."""
    records = [os.urandom(number) for number in range(50)]
    waiting = spool(tmp_path)
    for record in records:
        waiting.put(record)
    assert len(waiting) == 50
    first = taken(waiting)
    assert first.records == records
    waiting.put(b"later")
    assert taken(waiting).records == records
    first.done()
    assert taken(waiting).records == [b"later"]
    assert len(list(tmp_path.iterdir())) == 1
    waiting.close()


def test_what_a_process_leaves_behind_is_taken_over_once(tmp_path: Path) -> None:
    """While its owner lives, nobody else takes a file; once it is gone, one of the others does."""
    first, second, third = (spool(tmp_path) for _ in range(3))
    first.put(b"a")
    assert second.take() is None
    first.close()
    second.after_fork()  # so that it looks again at once
    found = taken(second)
    assert (found.records, found.own) == ([b"a"], False)
    assert third.take() is None
    found.done()
    assert list(tmp_path.iterdir()) == []
    for each in (second, third):
        each.close()


def test_what_is_left_stays_for_the_next(tmp_path: Path) -> None:
    """Given up, a file is kept, and found by the next start."""
    first = spool(tmp_path)
    first.put(b"a")
    assert taken(first).leave()
    first.close()
    assert taken(spool(tmp_path)).records == [b"a"]


@pytest.mark.parametrize("cut", range(1, 12))
def test_a_frame_that_a_crash_has_cut(tmp_path: Path, cut: int) -> None:
    """Whatever is missing of the last record, those before it are whole; what is no record is kept aside."""
    first = spool(tmp_path)
    first.put(b"one")
    first.put(b"two")
    first.close()
    (file,) = tmp_path.iterdir()
    whole = file.read_bytes()
    file.write_bytes(whole[:-cut])
    found = taken(spool(tmp_path))
    assert found.records == [b"one"]
    found.done()
    assert [path.suffix for path in tmp_path.iterdir()] == ([".broken"] if cut < 11 else [])


def test_a_byte_that_has_changed(tmp_path: Path) -> None:
    """A record that is not what was written is not sent; its file is kept aside."""
    first = spool(tmp_path)
    first.put(b"one")
    first.put(b"two")
    first.close()
    (file,) = tmp_path.iterdir()
    file.write_bytes(file.read_bytes().replace(b"two", b"twi"))
    found = taken(spool(tmp_path))
    assert found.records == [b"one"]
    found.done()
    assert [path.suffix for path in tmp_path.iterdir()] == [".broken"]


def test_a_folder_that_is_full_says_so(tmp_path: Path) -> None:
    """No more bytes than it may; done with some, there is room again. Nobody else may read what is there."""
    waiting = spool(tmp_path / "spool", most_bytes=100)
    for _ in range(3):
        waiting.put(b"x" * 20)
    with pytest.raises(FullError):
        waiting.put(b"x" * 20)
    taken(waiting).done()
    waiting.put(b"x" * 20)
    assert {path.stat().st_mode & 0o777 for path in (tmp_path / "spool").iterdir()} == {0o600}
    waiting.close()


def failing(*_: object) -> None:
    """Do as a disk that fails does."""
    raise OSError(errno.EIO, os.strerror(errno.EIO))


def test_a_record_that_does_not_reach_the_disk_is_taken_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Who is told that it is not kept may record it again: nothing of it is left, in the file or in the counts."""
    waiting = Spool(tmp_path, 100, "always")
    waiting.put(b"one")
    with monkeypatch.context() as patched:
        patched.setattr(os, "fsync", failing)
        for _ in range(10):  # takes no room, either
            with pytest.raises(FullError, match="can not be written"):
                waiting.put(b"two" * 10)
    waiting.put(b"three")
    assert len(waiting) == 2
    assert taken(waiting).records == [b"one", b"three"]
    waiting.close()


def test_a_file_that_the_folder_does_not_know_yet_takes_no_record(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where each record outlasts a power cut, its file does: the folder is synced until that works."""
    waiting = Spool(tmp_path, 100, "always")
    synced: list[int] = []
    sync = os.fsync

    def fails_twice(descriptor: int) -> None:
        synced.append(os.fstat(descriptor).st_ino)
        if len(synced) < 3:
            failing()
        sync(descriptor)

    monkeypatch.setattr(os, "fsync", fails_twice)
    for _ in range(2):
        with pytest.raises(FullError):
            waiting.put(b"one")
    waiting.put(b"two")
    (file,) = tmp_path.iterdir()
    assert synced == [*[tmp_path.stat().st_ino] * 3, file.stat().st_ino]
    assert taken(waiting).records == [b"two"]
    waiting.close()


def test_a_record_that_can_not_be_taken_back_is_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A disk that became read-only: what is in the file will be sent, so nobody is told otherwise."""
    waiting = Spool(tmp_path, 100, "always")
    waiting.put(b"one")
    with monkeypatch.context() as patched:
        patched.setattr(os, "fsync", failing)
        patched.setattr(os, "ftruncate", failing)
        waiting.put(b"two")
    assert taken(waiting).records == [b"one", b"two"]
    assert "may not outlast a power cut" in caplog.text
    waiting.close()


def test_what_could_not_be_synced_is_synced_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Until the disk has it; and then no more. A failure is logged."""
    waiting = Spool(tmp_path, 2**20, "second")
    waiting.put(b"one")
    with monkeypatch.context() as patched:
        patched.setattr(os, "fsync", failing)
        waiting.sync()
    assert "may not outlast a power cut" in caplog.text
    synced: list[int] = []
    sync = os.fsync

    def counting(descriptor: int) -> None:
        synced.append(os.fstat(descriptor).st_ino)
        sync(descriptor)

    with monkeypatch.context() as patched:
        patched.setattr(os, "fsync", counting)
        waiting.sync()
        assert synced == [tmp_path.stat().st_ino, *(path.stat().st_ino for path in tmp_path.iterdir())]
        waiting.sync()
        taken(waiting)  # the next record begins a file; the one before is synced
        waiting.put(b"two")
        waiting.sync()
        assert synced[2:] == [tmp_path.stat().st_ino, max(tmp_path.iterdir()).stat().st_ino]
    waiting.close()


WRITER = """
import sys, time
from formgate import UsageRecorder
address, token, key, spool, number = sys.argv[1:]
recorder = UsageRecorder(address, token or None, spool=spool, interval=0.01, fsync="never")
for _ in range(int(number)):
    recorder.record(key)
print("recorded", flush=True)
time.sleep(60)
"""


def write(folder: Path, address: str, token: str, key: Key, number: int) -> subprocess.Popen[bytes]:
    """Start a process that records into a folder and then lives on; returns when it has recorded."""
    process = subprocess.Popen(
        [sys.executable, "-c", WRITER, address, token, key.key_id, str(folder), str(number)],
        env=clean_environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == b"recorded\n"
    return process


def kill(process: subprocess.Popen[bytes]) -> None:
    """End a process as a crash would."""
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert process.stdout is not None
    process.stdout.close()


def test_processes_that_crash_lose_nothing(tmp_path: Path, rpc_server: Server, manager: Manager, account: str) -> None:
    """Killed with -9, with and without a service to send to, on one folder: each record is counted exactly once."""
    key = new_key(manager, account)
    processes = [
        write(tmp_path, NOWHERE, "", key, 150),
        write(tmp_path, rpc_server.address, rpc_server.token, key, 250),
    ]
    with UsageRecorder(rpc_server.address, rpc_server.token, spool=tmp_path, interval=0.01) as recorder:
        for _ in range(20):
            recorder.record(key.key_id)
        assert recorder.flush(10)
        for process in processes:
            kill(process)
    with UsageRecorder(rpc_server.address, rpc_server.token, spool=tmp_path, interval=0.01):
        deadline = time.monotonic() + 10
        while list(tmp_path.iterdir()):
            assert time.monotonic() < deadline, list(tmp_path.iterdir())
            time.sleep(0.02)
    assert counted(manager, account, key) == (420, 420)


def test_an_outage_outlasts_a_restart(tmp_path: Path, rpc_server: Server, manager: Manager, account: str) -> None:
    """Closed while the service is away, a recorder keeps its records, says how many, and the next one sends them."""
    key = new_key(manager, account)
    away = UsageRecorder(NOWHERE, spool=tmp_path)
    for _ in range(30):
        away.record(key.key_id)
    assert away.close(0.05) == 30
    assert away.counters["dropped"] == 0
    with UsageRecorder(rpc_server.address, rpc_server.token, spool=tmp_path, interval=0.01):
        deadline = time.monotonic() + 10
        while list(tmp_path.iterdir()):
            assert time.monotonic() < deadline
            time.sleep(0.02)
    assert counted(manager, account, key) == (30, 30)
