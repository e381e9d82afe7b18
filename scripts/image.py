"""`make image`: build the Dockerfile for real, and show that what comes of it serves.

    make image                              with docker where an engine answers, else with buildah, as root
    make image ARGS='--tag example/formgate:1.2.3'
    make image ARGS='--engine buildah'

The Dockerfile is linted; the image is built; it must say of itself what it has to, hold no compiler, and be small; its
own command is started with a read-only root as its own user, asked for a CheckKey, and drained; its bill of materials
goes to dist/. Ends with 1 where any of that is not so, or where nothing here can build an image.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
import threading
import time
import tomllib
import urllib.request
from contextlib import closing
from datetime import UTC, datetime
from pathlib import Path

from scripts import sbom
from scripts.engines import ROOT, Config, Engine, NoEngineError, Running, choose

DOCKERFILE = ROOT / "Dockerfile"
DIST = ROOT / "dist"
_MOST_BYTES = 200_000_000
_START_SECONDS = 60
_READY = re.compile(r"^formgate is ready: grpc (?P<grpc>\S+?), http (?P<http>\S+?)(?:,.*)?$")
_LABELS = ("title", "description", "licenses", "version", "revision", "created", "base.name")
_COMPILERS = """
import pathlib, re
name = re.compile(r"(.*-)?(gcc|g[+][+]|cc|c[+][+]|clang|cpp|ld|as|tcc|rustc|go|make)(-[0-9.]+)?")
folders = map(pathlib.Path, ("/usr/local/bin", "/usr/bin", "/usr/sbin", "/bin", "/opt/formgate/bin"))
print(*sorted({path.name for folder in folders for path in folder.glob("*") if name.fullmatch(path.name)}))
"""


class ImageError(Exception):
    """The image is not as it has to be."""


def main() -> int:
    """Do it all, and say what came of it."""
    parser = argparse.ArgumentParser(prog="make image")
    parser.add_argument("--tag", default="localhost/formgate:dev")
    parser.add_argument("--engine", choices=("auto", "docker", "buildah"), default="auto")
    asked = parser.parse_args()
    begun = time.monotonic()
    subprocess.run([ROOT / ".venv-image/bin/hadolint", DOCKERFILE], check=True)
    print("the Dockerfile: hadolint has nothing to say")
    try:
        engine = choose(asked.engine)
        with closing(engine):
            base = engine.prepare(_base())
            _build(engine, asked.tag, base)
            print(f"built, in {time.monotonic() - begun:.0f} s", flush=True)
            _check_config(engine.config(asked.tag), base)
            _check_content(engine, asked.tag, base)
            with engine.start(asked.tag, _settings(engine)) as running:
                _check_served(running)
            _write_bill(engine, asked.tag)
    except (ImageError, NoEngineError) as error:
        print(f"make image: {error}", file=sys.stderr)
        return 1
    print(f"{asked.tag} is built, with {engine.name}, in {time.monotonic() - begun:.0f} s")
    return 0


def _base() -> str:
    text = DOCKERFILE.read_text(encoding="utf-8")
    bases = re.findall(r"^ARG BASE=(\S+)", text, re.MULTILINE)
    if len(bases) != 1 or set(re.findall(r"^FROM (\S+)", text, re.MULTILINE)) != {"$BASE"}:
        raise ImageError("the Dockerfile must have stages on one base, $BASE")
    return str(bases[0])


def _version() -> str:
    return str(tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["version"])


def _git(*words: str) -> str:
    command = ["git", "-c", "safe.directory=*", *words]
    done = subprocess.run(command, cwd=ROOT, check=False, capture_output=True, text=True)
    return done.stdout.strip() or "unknown"


def _created() -> str:
    """Return when the image is made: SOURCE_DATE_EPOCH where it is set, as for a build that is to be repeated."""
    epoch = float(os.environ.get("SOURCE_DATE_EPOCH", time.time()))
    return datetime.fromtimestamp(epoch, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def _build(engine: Engine, tag: str, base: str) -> None:
    arguments = {"BASE": base, "VERSION": _version(), "REVISION": _git("rev-parse", "HEAD"), "CREATED": _created()}
    engine.build(tag, arguments)


def _check_config(config: Config, base: str) -> None:
    if not re.fullmatch(r"[1-9]\d*:[1-9]\d*", config.user):
        raise ImageError(f"its user must be numeric, and not root: it is {config.user!r}")
    if (config.entrypoint, config.command) != (("formgate",), ("serve",)):
        raise ImageError(f"it must start `formgate serve`: it is {config.entrypoint} {config.command}")
    missing = [name for name in _LABELS if not config.labels.get(f"org.opencontainers.image.{name}")]
    if missing:
        raise ImageError(f"labels are missing: {missing}")
    if config.labels["org.opencontainers.image.base.name"] != base:
        raise ImageError(f"its base is {base}, and its label says otherwise")
    print(f"user {config.user}, {' '.join(config.entrypoint + config.command)}, {len(config.labels)} labels")


def _check_content(engine: Engine, tag: str, base: str) -> None:
    if compilers := engine.run(tag, _COMPILERS).split():
        raise ImageError(f"there are compilers in it: {compilers}")
    under, whole = engine.size(base), engine.size(tag)
    beyond = whole - under
    print(f"no compiler; {beyond / 1e6:.0f} MB beyond its base ({under / 1e6:.0f} MB)")
    if not 0 < beyond < _MOST_BYTES:
        raise ImageError(f"it may have {_MOST_BYTES / 1e6:.0f} MB beyond its base")


def _settings(engine: Engine) -> dict[str, str]:
    grpc, http = engine.listen
    beyond = {} if grpc.startswith("127.") else {"FORMGATE_INSECURE": "true"}
    return {"FORMGATE_LISTEN": grpc, "FORMGATE_HTTP": http, **beyond}


def _check_served(running: Running) -> None:
    """Ask the image's own server for verdicts, from outside. Raises ImageError."""
    ready = _wait_until_ready(running)
    mounted = [line.split() for line in running.read("/proc/1/mounts").splitlines()]
    options = next(fields[3] for fields in reversed(mounted) if fields[1] == "/")
    user = next(line for line in running.read("/proc/1/status").splitlines() if line.startswith("Uid:")).split()[1]
    if "ro" not in options.split(",") or user == "0":
        raise ImageError(f"it must run with a read-only root, not as root: mounted {options}, uid {user}")
    grpc, http = running.where(ready["grpc"]), running.where(ready["http"])
    for path in ("livez", "readyz", "metrics"):
        with urllib.request.urlopen(f"http://{http}/{path}", timeout=10) as answer:
            answer.read()
    token = running.read("/var/lib/formgate/manager.token").strip()

    def formgate(*words: str, code: int = 0, **more: str) -> str:
        command = [str(ROOT / ".venv/bin/formgate"), *words]
        environment = os.environ | {"FORMGATE_ADDRESS": grpc, "FORMGATE_TOKEN": token, **more}
        done = subprocess.run(command, env=environment, check=False, capture_output=True, text=True)
        if done.returncode != code:
            raise ImageError(f"formgate {' '.join(words)} ended with {done.returncode}: {done.stdout}{done.stderr}")
        return done.stdout

    formgate("account", "create", "acme")
    secret = formgate("key", "create", "--account", "acme", "--secret-only").strip()
    print(formgate("check", FORMGATE_KEY=secret).strip())
    formgate("check", "--quiet", code=1, FORMGATE_KEY=secret[:-1])
    print(f"served as uid {user} with its root mounted {options.split(',')[0]}; what is no key was denied")
    running.terminate()
    code = running.process.wait(30)
    if code != 0:
        raise ImageError(f"it must drain on SIGTERM and end with 0: it ended with {code}")


def _wait_until_ready(running: Running) -> re.Match[str]:
    timer = threading.Timer(_START_SECONDS, running.process.kill)
    timer.start()
    try:
        for line in running.process.stdout or ():
            if found := _READY.match(line):
                return found
    finally:
        timer.cancel()
    raise ImageError(f"it was not ready within {_START_SECONDS} s")


def _write_bill(engine: Engine, tag: str) -> None:
    inventory = json.loads(engine.run(tag, (ROOT / "scripts/inventory.py").read_text(encoding="utf-8")))
    document = sbom.bill(inventory, "formgate", _version(), _created())
    sbom.validate(document)
    DIST.mkdir(exist_ok=True)
    file = DIST / f"formgate-{_version()}.cdx.json"
    file.write_text(document, encoding="utf-8")
    print(f"{file.relative_to(Path.cwd())}: {len(inventory['python'])} Python distributions,", end=" ")
    print(f"{len(inventory['debian'])} Debian packages, valid CycloneDX 1.6")


if __name__ == "__main__":
    sys.exit(main())
