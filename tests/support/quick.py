"""The command `formgate` for shells that type it hundreds of times: a process each, forked from one that is imported.

What is typed is the command's own code with the shell's arguments, folder, environment and streams; but Python starts,
and imports gRPC and SQL, once and not every time. That the installed command does so by itself, other tests see.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.support.server import clean_environment


@contextmanager
def quick_command(folder: Path) -> Iterator[Path]:
    """Give the folder, to be put on PATH, that has the command as long as this lasts."""
    folder.mkdir()
    command = folder / "formgate"
    command.write_text(f"#!{sys.executable} -IS\nADDRESS = {str(folder / 'socket')!r}\n{_ASK}")
    command.chmod(0o700)
    process = subprocess.Popen(
        [sys.executable, "-c", _FORK, str(folder / "socket"), str(os.getpid())],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        env=clean_environment({"LC_ALL": "C.UTF-8"}),
        start_new_session=True,
    )
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == b"ready\n"
        yield folder
    finally:
        process.kill()
        process.communicate()


# What is on PATH: hands over what it was started with, and ends as its command does.
_ASK = """
import array, json, os, socket, sys
with socket.socket(socket.AF_UNIX) as asked:
    asked.connect(ADDRESS)
    given = json.dumps([sys.argv[1:], os.getcwd(), dict(os.environ)]).encode()
    streams = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [0, 1, 2]))]
    asked.sendmsg([len(given).to_bytes(4, "big")], streams)
    asked.sendall(given)
    code = asked.recv(1)
sys.exit(code[0] if code else 70)
"""

_FORK = """
import ctypes, importlib, json, os, pkgutil, signal, socket, sys, traceback
if sys.platform == "linux":
    ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # as with every server of the tests: it ends when they do
if os.getppid() != int(sys.argv[2]):
    sys.exit()
import formgate.v1, formgate_server
from formgate_server import cli
for package in (formgate.v1, formgate_server):
    for module in pkgutil.walk_packages(package.__path__, package.__name__ + "."):
        if "migrations" not in module.name:
            importlib.import_module(module.name)

def run(asked):
    size, streams, _, _ = socket.recv_fds(asked, 4, 3)
    with asked.makefile("rb") as given:
        arguments, folder, environment = json.loads(given.read(int.from_bytes(size, "big")))
    for number, stream in enumerate(streams):
        os.dup2(stream, number)
        os.close(stream)
    sys.stdin, sys.stdout = open(0), open(1, "w")  # what Python made of the streams that were there is wrong for these
    sys.stderr = open(2, "w", buffering=1, errors="backslashreplace")
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(environment)
    try:
        code = cli.run(arguments)
    except SystemExit as ended:
        code = ended.code or 0
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    asked.sendall(bytes([code]))

signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody waits for them but who asked
with socket.socket(socket.AF_UNIX) as listening:
    listening.bind(sys.argv[1])
    listening.listen()
    os.write(1, b"ready\\n")
    while True:
        asked, _ = listening.accept()
        if os.fork():
            asked.close()
        else:
            try:
                run(asked)
            except BaseException:
                traceback.print_exc()
            finally:
                os._exit(0)
"""
