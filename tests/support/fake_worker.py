"""A worker that serves nothing and does as it is told, for tests of its supervisor. It needs the standard library only.

``fake_worker.py FOLDER NUMBER``. Each start adds a line, its process, to ``FOLDER/starts-NUMBER``; the start's turn in
the words of ``FOLDER/plan-NUMBER`` says what it does, ``serve`` where there is none:

- ``serve``: is ready, beats, ends when asked to
- ``die``: is ready, and ends by itself with 3
- ``crash``, ``refuse``: ends before it is ready, with 3; with what ``formgate`` says of a setting
- ``mute``: never beats, is never ready, and ends for nothing but a signal
- ``still``: is ready and beats once
- ``deaf``: is ready and beats, and does not end when asked to
- ``slow``: ends only when told to hurry
"""

from __future__ import annotations

import json
import os
import select
import socket
import sys
import time
from pathlib import Path

BEAT_SECONDS = 0.05


def main() -> int:
    """Do what the plan says."""
    folder, number = Path(sys.argv[1]), sys.argv[2]
    starts, plan = folder / f"starts-{number}", folder / f"plan-{number}"
    words = plan.read_text().split() if plan.exists() else []
    turn = len(starts.read_text().split()) if starts.exists() else 0
    word = words[turn] if turn < len(words) else "serve"
    channel = socket.socket(fileno=0)
    (folder / f"hello-{number}").write_bytes(_line(channel))
    with starts.open("a") as file:
        file.write(f"{os.getpid()}\n")
    if word == "crash":
        return 3
    if word == "refuse":
        _say(channel, "refused", f"worker {number} does not like it here")
        return 1
    if word == "mute":
        time.sleep(3_600)
    _say(channel, "beat", [])
    _say(channel, "ready", True)  # noqa: FBT003 - a message's value
    if word == "die":
        return 3
    return _serve(channel, word)


def _serve(channel: socket.socket, word: str) -> int:
    told = b""
    while True:
        if word != "still":
            _say(channel, "beat", [])
        if not select.select([channel], [], [], BEAT_SECONDS)[0]:
            continue
        heard = channel.recv(4_096)
        if not heard:
            return 0
        told += heard
        if (b"drain" in told and word == "serve") or (b"hurry" in told and word in {"serve", "slow"}):
            return 0


def _line(channel: socket.socket) -> bytes:
    read = b""
    while not read.endswith(b"\n"):
        read += channel.recv(1)
    return read


def _say(channel: socket.socket, name: str, value: object) -> None:
    channel.send(json.dumps({name: value}).encode() + b"\n")


if __name__ == "__main__":
    sys.exit(main())
