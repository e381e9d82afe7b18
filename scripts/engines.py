"""What builds an image and runs it: docker where there is an engine, else buildah on a base that debootstrap makes.

Both know the same things of an image, and start it the same way: its root read-only, as its own user, with what it has
to write to in memory.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

ROOT = Path(__file__).resolve().parent.parent
CACHE = ROOT / ".cache/image"
# The Debian that the Dockerfile's base is, as small as it gets, with what the first stage makes environments with.
_SUITE = "bookworm"
_INCLUDED = "python3,python3-venv,ca-certificates"
_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

# In a mount and a process namespace of its own, as a container has them; $1: the image's root, $2: its user, $3: its
# volume. The rest of the words is env's.
_CONTAINED = """
set -e
root=$1 user=$2 volume=$3
shift 3
owner=$(stat --format uid=%u,gid=%g,mode=%a "$root$volume")
mount --bind "$root" "$root"
mount --rbind /dev "$root/dev"
mount -t proc proc "$root/proc"
mount -t tmpfs -o size=64m,mode=1777 tmp "$root/tmp"
mount -t tmpfs -o "size=256m,$owner" volume "$root$volume"
mount -o remount,bind,ro "$root"
exec setpriv --no-new-privs chroot --userspec="$user" --groups= "$root" env -i "$@"
"""


# In memory, because dpkg syncs every file; $1: the suite, $2: a folder, $3: packages, $4: the archive.
_BOOTSTRAP = """
set -e
mount -t tmpfs -o size=2g base "$2"
debootstrap --variant=minbase --include="$3" "$1" "$2" >"$2.log"
cd "$2"
rm -rf var/cache/apt/*.bin var/cache/apt/archives/*.deb var/lib/apt/lists/*
tar --exclude="./dev/*" -cf "$4" .
"""


class NoEngineError(Exception):
    """Nothing here can build an image; the message says why, and what to do."""


@dataclass(frozen=True, slots=True)
class Config:
    """What an image says of itself."""

    user: str
    environment: tuple[str, ...]
    """NAME=VALUE, each."""
    entrypoint: tuple[str, ...]
    command: tuple[str, ...]
    folder: str
    volumes: tuple[str, ...]
    labels: dict[str, str]

    @classmethod
    def of(cls, said: dict[str, Any]) -> Config:
        """Return it from the OCI form, which docker's is too."""
        return cls(
            user=said.get("User", ""),
            environment=tuple(said.get("Env") or ()),
            entrypoint=tuple(said.get("Entrypoint") or ()),
            command=tuple(said.get("Cmd") or ()),
            folder=said.get("WorkingDir") or "/",
            volumes=tuple(said.get("Volumes") or ()),
            labels=dict(said.get("Labels") or {}),
        )


class Running(Protocol):
    """A container whose first process serves."""

    @property
    def process(self) -> subprocess.Popen[str]:
        """What prints the first process' stdout, and ends as it ends."""

    def read(self, path: str) -> str:
        """Return a file as the container sees it."""

    def where(self, inside: str) -> str:
        """Return the address on this machine of HOST:PORT in the container."""

    def terminate(self) -> None:
        """Send the first process a SIGTERM."""


class Engine(Protocol):
    """Builds images and runs them."""

    name: str
    listen: tuple[str, str]
    """Where a server in a container is to listen, gRPC and HTTP, so that it is reached from here."""

    def prepare(self, base: str) -> str:
        """Have ``base``, or what stands in for it here, and return the name of what is built on."""

    def build(self, tag: str, arguments: dict[str, str]) -> None:
        """Build the Dockerfile. Raises CalledProcessError, after its own words."""

    def config(self, tag: str) -> Config:
        """Return what an image says of itself."""

    def size(self, tag: str) -> int:
        """Return its size in bytes, with its base's."""

    def run(self, tag: str, script: str) -> str:
        """Run a Python script in the image and return what it prints."""

    def start(self, tag: str, environment: dict[str, str]) -> AbstractContextManager[Running]:
        """Start the image's own command."""

    def close(self) -> None:
        """Remove what was made only to look; images stay."""


def choose(wanted: str) -> Engine:
    """Return the engine named, or for ``auto`` what works here. Raises NoEngineError."""
    if wanted in {"auto", "docker"} and _answers("docker", "info"):
        return Docker()
    if wanted == "docker":
        raise NoEngineError("no docker engine answers here: start one, or let buildah do it")
    if os.geteuid() != 0:
        raise NoEngineError(
            "no docker engine answers, and buildah's base can only be made by root: nothing was built. Give yourself an"
            " engine (`docker info` must answer), or run this as root on Debian"
        )
    missing = [name for name in ("buildah", "debootstrap") if shutil.which(name) is None]
    if missing:
        if shutil.which("apt-get") is None:
            raise NoEngineError(f"no docker engine answers, and {' and '.join(missing)} can not be installed: no apt")
        quiet = ("apt-get", "-qq", "-o=Dpkg::Use-Pty=0")
        environment = os.environ | {"DEBIAN_FRONTEND": "noninteractive"}
        subprocess.run([*quiet, "update"], check=True, env=environment)
        install = [*quiet, "install", "--yes", "--no-install-recommends", *missing]
        subprocess.run(install, check=True, env=environment, stdout=subprocess.DEVNULL)
    return Buildah()


def _answers(*command: str) -> bool:
    return shutil.which(command[0]) is not None and (
        subprocess.run(command, check=False, capture_output=True).returncode == 0
    )


def _told(command: Sequence[str | Path], text: str | None = None) -> str:
    return subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, input=text).stdout


@contextmanager
def _pip_secrets() -> Iterator[list[str]]:
    """Yield --secret options that hand this machine's pip settings to the build; they stay out of the image."""
    lines: dict[str, str] = {}
    for line in _told([ROOT / ".venv/bin/pip", "config", "list"]).splitlines():  # the weaker sources first
        name, _, value = line.partition("=")
        lines[name.rpartition(".")[2]] = value.strip("'\"")
    kept: dict[str, str] = {
        name: lines[name] for name in ("index-url", "extra-index-url", "default-timeout") if name in lines
    }
    options = []
    if "cert" in lines:
        kept["cert"] = "/run/secrets/ca"
        options = ["--secret", f"id=ca,src={lines['cert']}"]
    with tempfile.NamedTemporaryFile("w", suffix=".conf") as file:  # 0600
        file.write("[global]\n" + "".join(f"{name} = {value}\n" for name, value in kept.items()))
        file.flush()
        yield [*options, "--secret", f"id=pip,src={file.name}"]


def _build_words(tag: str, arguments: dict[str, str]) -> list[str]:
    given = [word for name, value in arguments.items() for word in ("--build-arg", f"{name}={value}")]
    return [*given, "--tag", tag, str(ROOT)]


class Docker:
    """A docker engine, or what answers like one."""

    name = "docker"
    listen = ("0.0.0.0:50051", "0.0.0.0:9090")

    def prepare(self, base: str) -> str:
        """Pull the base."""
        if not _answers("docker", "image", "inspect", base):
            subprocess.run(["docker", "pull", "--quiet", base], check=True)
        return base

    def build(self, tag: str, arguments: dict[str, str]) -> None:
        """Build with BuildKit."""
        with _pip_secrets() as secrets:
            environment = os.environ | {"DOCKER_BUILDKIT": "1"}
            subprocess.run(["docker", "build", *secrets, *_build_words(tag, arguments)], check=True, env=environment)

    def config(self, tag: str) -> Config:
        """Ask the engine."""
        return Config.of(json.loads(_told(["docker", "image", "inspect", "--format", "{{json .Config}}", tag])))

    def size(self, tag: str) -> int:
        """Ask the engine."""
        return int(_told(["docker", "image", "inspect", "--format", "{{.Size}}", tag]))

    def run(self, tag: str, script: str) -> str:
        """Run it in a container that is gone afterwards."""
        words = ["--rm", "--interactive", "--read-only", "--network=none", "--entrypoint=python3", tag, "-"]
        return _told(["docker", "run", *words], script)

    def close(self) -> None:
        """There is nothing."""

    @contextmanager
    def start(self, tag: str, environment: dict[str, str]) -> Iterator[Running]:
        """Run it attached; it is removed at the end."""
        given = [word for name, value in environment.items() for word in ("--env", f"{name}={value}")]
        hardened = ["--read-only", "--tmpfs=/tmp", "--cap-drop=ALL", "--security-opt=no-new-privileges"]
        ports = ["--publish=127.0.0.1::50051", "--publish=127.0.0.1::9090"]
        name = _told(["docker", "create", *hardened, *ports, *given, tag]).strip()
        command = ["docker", "start", "--attach", name]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
        try:
            yield _InDocker(process, name)
        finally:
            subprocess.run(["docker", "rm", "--force", "--volumes", name], check=False, stdout=subprocess.DEVNULL)
            process.wait()


@dataclass(frozen=True, slots=True)
class _InDocker:
    process: subprocess.Popen[str]
    name: str

    def read(self, path: str) -> str:
        return _told(["docker", "exec", self.name, "cat", path])

    def where(self, inside: str) -> str:
        return _told(["docker", "port", self.name, inside.rpartition(":")[2]]).split()[0]

    def terminate(self) -> None:
        subprocess.run(["docker", "kill", "--signal=TERM", self.name], check=True, stdout=subprocess.DEVNULL)


class Buildah:
    """Buildah as root, without a daemon, and namespaces of our own to run what it has built."""

    name = "buildah"
    listen = ("127.0.0.1:0", "127.0.0.1:0")

    def __init__(self) -> None:
        self._opened = ExitStack()
        self._roots: dict[str, str] = {}

    def _words(self, *words: str) -> list[str]:
        stores = ("--storage-driver=vfs", f"--root={CACHE}/store", f"--runroot={CACHE}/run")
        return ["buildah", *stores, *words]

    def prepare(self, base: str) -> str:
        """Make one of Debian's packages, under its own name: what the registry has can not be had without one."""
        made_here = f"localhost/debootstrap:{_SUITE}"
        if not _answers(*self._words("inspect", "--type=image", made_here)):
            print(f"making {made_here} of Debian's packages, in the place of {base}", flush=True)
            self._make(made_here)
        return made_here

    def _make(self, base: str) -> None:
        CACHE.mkdir(parents=True, exist_ok=True)
        archive = CACHE / "base.tar"
        with tempfile.TemporaryDirectory(dir=CACHE, ignore_cleanup_errors=True) as folder:
            place = Path(folder) / "root"
            place.mkdir()
            words = ["unshare", "--mount", "sh", "-c", _BOOTSTRAP, "sh", _SUITE, str(place), _INCLUDED, str(archive)]
            subprocess.run(words, check=True)
        made = _told(self._words("from", "scratch")).strip()
        try:
            subprocess.run(
                self._words("add", "--quiet", made, str(archive), "/"), check=True, stdout=subprocess.DEVNULL
            )
            subprocess.run(self._words("config", "--env", f"PATH={_PATH}", made), check=True)
            subprocess.run(self._words("commit", "--quiet", made, base), check=True, stdout=subprocess.DEVNULL)
        finally:
            subprocess.run(self._words("rm", made), check=True, stdout=subprocess.DEVNULL)
            archive.unlink(missing_ok=True)

    def build(self, tag: str, arguments: dict[str, str]) -> None:
        """Build in a chroot, on the base that is here."""
        with _pip_secrets() as secrets:
            how = ["--isolation=chroot", "--pull-never", "--layers=false", "--format=oci"]
            subprocess.run(self._words("bud", *how, *secrets, *_build_words(tag, arguments)), check=True)
        # Those that had this name before.
        subprocess.run(self._words("rmi", "--prune"), check=False, capture_output=True)

    def config(self, tag: str) -> Config:
        """Read it from the image."""
        return Config.of(json.loads(_told(self._words("inspect", "--type=image", tag)))["OCIv1"]["config"])

    def size(self, tag: str) -> int:
        """Count what is in it."""
        return int(_told(["du", "--summarize", "--bytes", "--one-file-system", self._root(tag)]).split()[0])

    def run(self, tag: str, script: str) -> str:
        """Run it in namespaces of its own."""
        return _told(self._contained(self._root(tag), self.config(tag), {}, ["python3", "-"]), script)

    @contextmanager
    def start(self, tag: str, environment: dict[str, str]) -> Iterator[Running]:
        """Run it; the kernel ends it with us."""
        config = self.config(tag)
        command = self._contained(self._root(tag), config, environment, [*config.entrypoint, *config.command])
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
        try:
            yield _InNamespaces(process)
        finally:
            process.kill()
            process.wait()

    def close(self) -> None:
        """Remove the containers through which images were looked at."""
        self._opened.close()

    def _root(self, tag: str) -> str:
        """Return where an image's files are: a copy, which takes its time, and so one for all that looks."""
        if tag not in self._roots:
            self._roots[tag] = self._opened.enter_context(self._mounted(tag))
        return self._roots[tag]

    @contextmanager
    def _mounted(self, tag: str) -> Iterator[str]:
        container = _told(self._words("from", "--pull-never", tag)).strip()
        try:
            yield _told(self._words("mount", container)).strip()
        finally:
            subprocess.run(self._words("rm", container), check=True, stdout=subprocess.DEVNULL)

    def _contained(self, root: str, config: Config, environment: dict[str, str], command: Sequence[str]) -> list[str]:
        (volume,) = config.volumes
        settings = [*config.environment, *(f"{name}={value}" for name, value in environment.items())]
        namespaces = ["unshare", "--mount", "--pid", "--fork", "--kill-child"]
        place = ["sh", "-c", _CONTAINED, "sh", root, config.user, volume]
        return [*namespaces, *place, f"--chdir={config.folder}", *settings, *command]


@dataclass(frozen=True, slots=True)
class _InNamespaces:
    process: subprocess.Popen[str]

    @property
    def _first(self) -> str:
        """The first process' id, as seen from here."""
        return Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children").read_text(encoding="ascii").split()[0]

    def read(self, path: str) -> str:
        return Path(f"/proc/{self._first}/root{path}").read_text(encoding="utf-8")

    def where(self, inside: str) -> str:
        return inside

    def terminate(self) -> None:
        os.kill(int(self._first), 15)
