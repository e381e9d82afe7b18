"""Request bodies: gRPC frames, and how one h2load sends many.

h2load sends one file, but reads it anew for every request (``pread``, so in all its versions). A thread therefore
replaces the file's content all the time, in place and in one write, and the keys of successive requests differ. It runs
on the load's core; a write and a read that cross would mix two keys, which no server accepts: those show as checks
that were answered but not charged.
"""

from __future__ import annotations

import os
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

# With the kernel's slack about 300 µs, as long as a check takes; shorter ones cost the load's core more than the load.
_PAUSE = 0.00025

_MEMORY = Path("/dev/shm")  # a file system that no disk slows down


def frame(message: bytes) -> bytes:
    """Return a message as gRPC sends it: uncompressed, its length, itself."""
    return b"\0" + len(message).to_bytes(4, "big") + message


@contextmanager
def changing(messages: Iterator[bytes], *, framed: bool = True) -> Iterator[Path]:
    """Yield a file that holds one message's frame after the other, all of one length; only one if there is only one.

    Not ``framed``: the messages themselves.
    """
    form = frame if framed else bytes
    with tempfile.NamedTemporaryFile(prefix="formgate-bench-", dir=_MEMORY if _MEMORY.is_dir() else None) as file:
        descriptor = file.fileno()
        ended = threading.Event()
        size = os.pwrite(descriptor, form(next(messages)), 0)

        def replace() -> None:
            for message in messages:
                if ended.is_set():
                    break
                assert os.pwrite(descriptor, form(message), 0) == size
                time.sleep(_PAUSE)

        thread = threading.Thread(target=replace)
        thread.start()
        try:
            yield Path(file.name)
        finally:
            ended.set()
            thread.join()
