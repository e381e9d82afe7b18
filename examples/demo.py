"""Start a Formgate and the three services beside it; ctrl-C ends them all. `make demo` runs this.

demo.py [--data DIR] [--ports FORMGATE FORMS SUBMISSIONS SITES]
"""

from __future__ import annotations

import argparse
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path

EXAMPLES = Path(__file__).resolve().parent
ROOT = EXAMPLES.parent
FORMGATE = Path(sys.executable).with_name("formgate")
PYTHON = ROOT / ".venv-examples" / "bin" / "python"
SECONDS = 60.0


def main() -> int:
    """Run until a signal, or until one of them ends."""
    options = _options()
    formgate, forms, submissions, sites = (f"127.0.0.1:{port}" for port in options.ports)
    environment = os.environ | {"FORMGATE_ADDRESS": formgate, "FORMGATE_DATA": options.data}
    running: list[subprocess.Popen[bytes]] = []
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    try:
        served = [FORMGATE, "serve", "--data", options.data, "--listen", formgate, "--http", "127.0.0.1:0"]
        running.append(_start(served, environment, Path.cwd()))
        _wait(formgate, running)
        for name, address, command in (
            ("forms", forms, ["-m", "uvicorn", "--log-level", "warning", "--no-proxy-headers", "forms.app:app"]),
            ("submissions", submissions, ["-m", "waitress", "submissions.app:app"]),
            ("sites", sites, ["-m", "sites.server", sites]),
        ):
            host, port = address.split(":")
            at = {"forms": ["--host", host, "--port", port], "submissions": ["--listen", address]}.get(name, [])
            own = environment | {"FORMGATE_TOKEN": _token(name, environment)}
            running.append(_start([PYTHON, *command[:-1], *at, command[-1]], own, EXAMPLES))
            _wait(address, running)
        print(f"ready: formgate {formgate}, forms {forms}, submissions {submissions}, sites {sites}", flush=True)
        while all(process.poll() is None for process in running):
            time.sleep(0.2)
    except KeyboardInterrupt:
        return 0
    finally:
        for process in reversed(running):
            process.terminate()
        for process in running:
            process.wait(SECONDS)
    return 1


def _start(command: list[str | Path], environment: Mapping[str, str], folder: Path) -> subprocess.Popen[bytes]:
    """Start one of them; what it prints is for its log, which is ours."""
    return subprocess.Popen([*map(str, command)], env=environment, cwd=folder, stdout=sys.stderr)  # noqa: S603


def _token(name: str, environment: Mapping[str, str]) -> str:
    """Make a service its token: it may check keys and record usage, and nothing else."""
    command = [str(FORMGATE), "token", "create", "--role", "checker", "--name", name, "--secret-only"]
    made = subprocess.run(command, env=environment, check=True, stdout=subprocess.PIPE, text=True)  # noqa: S603
    return made.stdout.strip()


def _wait(address: str, running: list[subprocess.Popen[bytes]]) -> None:
    host, port = address.split(":")
    deadline = time.monotonic() + SECONDS
    while running[-1].poll() is None and time.monotonic() < deadline:
        with socket.socket() as tried:
            if tried.connect_ex((host, int(port))) == 0:
                return
        time.sleep(0.05)
    raise SystemExit(f"nothing came up on {address}")


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Start a Formgate and three services that it protects.")
    parser.add_argument("--data", default="formgate-demo", help="where this Formgate keeps everything")
    parser.add_argument("--ports", type=int, nargs=4, default=[50061, 8001, 8002, 8003], help="their ports")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
