"""Usage records in a folder, so that neither a crash nor an outage of any length loses one.

Files are only appended to, and deleted when all their records are settled. Each belongs to one process, which holds a
lock on it; one whose process is gone is taken over by whoever finds it. So a record may be sent twice, never lost, and
its id makes it count once. A file is a row of frames: length (4 bytes, big-endian), CRC-32 of the record (4), record.
A frame that a crash has cut ends its file: whoever put that record was never told that it is kept.
"""

from __future__ import annotations

import contextlib
import logging
import os
import secrets
import struct
import threading
import time
import zlib
from collections import deque
from pathlib import Path
from typing import Final, Literal, TypeAlias

from formgate.buffering import FullError, Taken

try:
    import fcntl
except ImportError:  # pragma: no cover - Windows
    fcntl = None  # type: ignore[assignment]

Fsync: TypeAlias = Literal["never", "second", "always"]
"""``never``: a crash of the process loses nothing, a power cut may lose the last half minute. ``second``: about the
last second. ``always``: nothing, and every record waits for the disk."""

_log = logging.getLogger("formgate")
_SUFFIX: Final = ".usage"
_FRAME: Final = struct.Struct(">II")
_LARGEST_FILE: Final = 2**22
_LOOK_SECONDS: Final = 15.0
_SYNC_SECONDS: Final = 1.0


class Spool:
    """A folder of records; see ``formgate.buffering.Buffer``. Several processes may share it."""

    def __init__(self, folder: Path, most_bytes: int, fsync: Fsync) -> None:
        """Make the folder where there is none. Raises OSError where it can not be written."""
        if fcntl is None:
            raise NotImplementedError("a spool needs a system with flock")
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._folder = folder
        self._most_bytes = most_bytes
        self._fsync = fsync
        self._lock = threading.Lock()
        self._writing: _File | None = None
        self._written: deque[_File] = deque()
        self._taken_over: _File | None = None
        self._new_file = False
        """Of which the folder on the disk does not know yet."""
        self._syncing = threading.Lock()
        """Taken before the other: while files are synced none is closed, but records are put."""
        self._syncer: threading.Event | None = None
        """Ends the thread that syncs each second."""
        self._look_at = 0.0

    def put(self, record: bytes) -> None:
        """See ``Buffer``: it is in the file when this returns."""
        frame = _FRAME.pack(len(record), zlib.crc32(record)) + record
        with self._lock:
            if self._size() + len(frame) > self._most_bytes:
                raise FullError(f"usage records take {self._most_bytes:,} bytes already")
            try:
                file = self._file()
                file.append(frame)
                if self._fsync == "always":
                    _sync_last(file, len(frame))
            except OSError as error:
                raise FullError(f"a usage record can not be written: {error.strerror}") from None
            if self._fsync == "second" and self._syncer is None:
                self._start_syncer()

    def _start_syncer(self) -> None:
        """Sync from a thread of its own: who sends may wait for the service meanwhile, who records for nothing."""
        ended = threading.Event()

        def work() -> None:
            while not ended.wait(_SYNC_SECONDS):
                self.sync()

        with contextlib.suppress(RuntimeError):  # the interpreter ends: the next batch is synced before it is sent
            threading.Thread(target=work, name="formgate-spool", daemon=True).start()
            self._syncer = ended

    def _file(self) -> _File:
        if self._writing is not None and self._writing.size >= _LARGEST_FILE:
            self._written.append(self._writing)
            self._writing = None
        if self._writing is None:
            self._writing = _File.create(self._folder)
            self._new_file = True
        if self._new_file and self._fsync == "always":
            _sync_folder(self._folder)
            self._new_file = False
        return self._writing

    def _size(self) -> int:
        return sum(file.size for file in self._written) + (self._writing.size if self._writing else 0)

    def take(self) -> Taken | None:
        """See ``Buffer``: a file's records, of this process or of one that is gone."""
        with self._lock:
            if not self._written and self._writing is not None and self._writing.count:
                self._written.append(self._writing)
                self._writing = None
            own = self._written[0] if self._written else None
        if own is not None:
            return _FromFile(own, self, own=True)
        found = self._left_behind()
        return _FromFile(found, self, own=False) if found is not None else None

    def _left_behind(self) -> _File | None:
        """Take over a file of a process that is gone; looked for now and then."""
        now = time.monotonic()
        if now < self._look_at:
            return None
        for path in sorted(self._folder.glob(f"*{_SUFFIX}")):
            if (file := _File.take_over(path)) is not None:
                self._taken_over = file
                return file
        self._look_at = now + _LOOK_SECONDS
        return None

    def __len__(self) -> int:
        with self._lock:
            return sum(file.count for file in self._written) + (self._writing.count if self._writing else 0)

    def forget(self, file: _File, *, delete: bool) -> None:
        """Let go of a file that was taken, and delete it or not."""
        with self._syncing, self._lock:
            if file in self._written:
                self._written.remove(file)
            else:
                self._taken_over = None
            file.close(delete=delete)

    def sync(self) -> None:
        """See ``Buffer``. What fails is logged, and tried again the next time."""
        if self._fsync == "never":
            return
        with self._syncing:
            with self._lock:
                dirty = [file for file in (*self._written, self._writing) if file is not None and file.dirty]
                new, self._new_file = self._new_file, False
            try:
                if new:
                    _sync_folder(self._folder)
                    new = False
                for file in dirty:
                    file.sync()
            except OSError as error:
                if new:
                    self._new_file = True
                _log.warning("usage records may not outlast a power cut: %s", error)

    def close(self) -> None:
        """See ``Buffer``: what waits is kept for the next process."""
        if self._syncer is not None:
            self._syncer.set()
        self.sync()
        with self._syncing, self._lock:
            for file in (*self._written, self._writing):
                if file is not None:
                    file.close(delete=not file.count)
            self._written.clear()
            self._writing = self._syncer = None
            self._look_at = 0.0

    def after_fork(self) -> None:
        """See ``Buffer``: the files, and the locks on them, stay the parent's."""
        self._lock, self._syncing, self._syncer = threading.Lock(), threading.Lock(), None
        for file in (*self._written, self._writing, self._taken_over):
            if file is not None:
                file.disown()
        self._written.clear()
        self._writing = self._taken_over = None
        self._look_at = 0.0


class _File:
    """A file and the lock on it. ``size`` in bytes, ``count`` in records."""

    def __init__(self, path: Path, descriptor: int) -> None:
        self.path = path
        self.size = 0
        self.count = 0
        self._synced = 0
        self._broken = False
        self._descriptor = descriptor

    @classmethod
    def create(cls, folder: Path) -> _File:
        """Make a new one, in the order of time by its name."""
        while True:
            path = folder / f"{time.time_ns():020d}-{os.getpid()}-{secrets.token_hex(4)}{_SUFFIX}"
            descriptor = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            if os.fstat(descriptor).st_nlink:  # else another took it, empty, for one left behind
                return cls(path, descriptor)
            os.close(descriptor)

    @classmethod
    def take_over(cls, path: Path) -> _File | None:
        """Lock a file that nobody holds; None: it is somebody's, or gone by now."""
        try:
            descriptor = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CLOEXEC)
        except OSError:
            return None
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            os.close(descriptor)
            return None
        if not os.fstat(descriptor).st_nlink:
            os.close(descriptor)
            return None
        return cls(path, descriptor)

    def append(self, frame: bytes) -> None:
        """Write a frame, all of it or nothing. Raises OSError."""
        written = os.write(self._descriptor, frame)
        if written != len(frame):
            os.ftruncate(self._descriptor, self.size)
            raise OSError(0, "the disk is full")
        self.size += len(frame)
        self.count += 1

    def read(self) -> list[bytes]:
        """Return its records; what follows a broken frame is left out, logged, and kept aside in the end."""
        data = os.pread(self._descriptor, os.fstat(self._descriptor).st_size, 0)
        records = []
        at = 0
        while at + _FRAME.size <= len(data):
            length, crc = _FRAME.unpack_from(data, at)
            record = data[at + _FRAME.size : at + _FRAME.size + length]
            if len(record) < length or zlib.crc32(record) != crc:
                break
            records.append(record)
            at += _FRAME.size + length
        if at < len(data):
            self._broken = True
            _log.warning(
                "%s: its last %d bytes are no whole record and are left out; it is kept as .broken",
                self.path,
                len(data) - at,
            )
        return records

    @property
    def dirty(self) -> bool:
        """Something was written that the disk may not have."""
        return self._synced < self.size

    def sync(self) -> None:
        """Write it through to the disk. Raises OSError."""
        size = self.size  # first: more may be written meanwhile
        os.fsync(self._descriptor)
        self._synced = size

    def cut(self, length: int) -> None:
        """Take back the last frame, of so many bytes. Raises OSError."""
        os.ftruncate(self._descriptor, self.size - length)
        self.size -= length
        self.count -= 1

    def close(self, *, delete: bool) -> None:
        """Let go of it; deleted first, so that nobody else finds it unlocked."""
        if delete:
            with contextlib.suppress(OSError):
                self.path.rename(self.path.with_suffix(".broken")) if self._broken else self.path.unlink()
        os.close(self._descriptor)

    def disown(self) -> None:
        """Close this process' copy: the lock stays with the parent."""
        os.close(self._descriptor)


class _FromFile:
    """See ``Taken``."""

    def __init__(self, file: _File, spool: Spool, *, own: bool) -> None:
        self.own = own
        self.records = file.read()
        self._file = file
        self._spool = spool

    def done(self) -> None:
        """See ``Taken``."""
        self._spool.forget(self._file, delete=True)

    def leave(self) -> bool:
        """See ``Taken``."""
        self._spool.forget(self._file, delete=False)
        return True


def _sync_last(file: _File, length: int) -> None:
    """Write a frame through to the disk, or take it back. Raises OSError where it was taken back."""
    try:
        file.sync()
    except OSError as error:
        try:
            file.cut(length)
        except OSError:  # it stays, and is sent: who recorded it must not record it again
            _log.warning("a usage record may not outlast a power cut: %s", error)
        else:
            raise


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
