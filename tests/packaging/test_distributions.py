"""What we ship: the right files in each distribution, and stubs that load beside any protobuf that we promise."""

import re
import subprocess
import sys
import tarfile
import tomllib
import venv
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import pytest

from tests.support.server import Server, clean_environment

pytestmark = [pytest.mark.packaging, pytest.mark.timeout(300)]

ROOT = Path(__file__).resolve().parents[2]
SERVER = ROOT / "service/formgate_server"
CLIENT = ROOT / "clients/python/src/formgate"

# Each names what a user may have installed before us.
ENVIRONMENTS = {
    "oldest": ["protobuf==6.31.1", "grpcio==1.75.1", "googleapis-common-protos==1.70.0"],
    "protobuf-6": ["protobuf>=6,<7"],
    "protobuf-7": ["protobuf>=7,<8"],
}

# Runs in those environments, warnings being errors: every stub is imported, and a message survives the wire and JSON.
LOAD_AND_ROUND_TRIP = """
import importlib, pkgutil, sys
import formgate.v1
from google.protobuf import __version__, json_format

names = [module.name for module in pkgutil.iter_modules(formgate.v1.__path__, "formgate.v1.")]
for name in names:
    importlib.import_module(name)

from formgate.v1 import authorization_pb2 as pb
request = pb.CheckKeyRequest(key="pf_x", permissions=["forms.read"], cost=3, tags={"team": "a"})
assert pb.CheckKeyRequest.FromString(request.SerializeToString()) == request
assert json_format.Parse(json_format.MessageToJson(request), pb.CheckKeyRequest()) == request
error = pb.BatchCheckKeysResult(error={"code": 14, "message": "a store is down"})
assert pb.BatchCheckKeysResult.FromString(error.SerializeToString()).error.code == 14
print(__version__, len(names))
"""

NAMES = """
from importlib.metadata import distributions
print(*(each.name.lower().replace("_", "-") for each in distributions()))
"""

ASK = """
import asyncio, importlib, pkgutil, sys
import formgate
from formgate import AsyncClient, Client, UsageRecorder

for module in pkgutil.walk_packages(formgate.__path__, "formgate."):
    importlib.import_module(module.name)

address, token = sys.argv[1:]
with Client(address, token, timeout=10) as client:
    print(client.check("nonsense").reason.name)

async def ask():
    async with AsyncClient(address, token, timeout=10) as client:
        verdicts = await asyncio.gather(*(client.check("nonsense") for _ in range(5)))
    print(*{verdict.reason.name for verdict in verdicts})

asyncio.run(ask())
with UsageRecorder(address, token, on_refused=lambda refused: None) as recorder:
    recorder.record("unknown")
    assert recorder.flush(10)
print(recorder.counters["refused"])
"""


@dataclass(frozen=True)
class Distribution:
    """A wheel and an sdist, and the names of the files in each, the sdist's without its top folder."""

    wheel: Path
    in_wheel: frozenset[str]
    in_sdist: frozenset[str]

    def metadata(self) -> str:
        """Return what the wheel says of itself."""
        with zipfile.ZipFile(self.wheel) as archive:
            name = next(name for name in self.in_wheel if name.endswith(".dist-info/METADATA"))
            return archive.read(name).decode()


def build(project: Path, target: Path) -> Distribution:
    """Build both archives of a project with the backend of our own environment, as locked."""
    command = [sys.executable, "-m", "hatchling", "build", "--directory", str(target)]
    subprocess.run(command, cwd=project, check=True, capture_output=True)
    (wheel,) = target.glob("*.whl")
    (sdist,) = target.glob("*.tar.gz")
    with tarfile.open(sdist) as archive:
        in_sdist = frozenset(str(PurePosixPath(*PurePosixPath(name).parts[1:])) for name in archive.getnames())
    return Distribution(wheel, frozenset(zipfile.ZipFile(wheel).namelist()), in_sdist)


def files(folder: Path, root: Path) -> set[str]:
    """Return the names, below root, of what belongs into an archive from this folder."""
    found = (path for path in folder.rglob("*") if path.is_file() and "__pycache__" not in path.parts)
    return {path.relative_to(root).as_posix() for path in found}


def packages(distribution: Distribution) -> set[str]:
    """Return the top folders that an installation of the wheel makes, its own metadata aside."""
    tops = {name.partition("/")[0] for name in distribution.in_wheel}
    return {top for top in tops if not top.endswith(".dist-info")}


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory) -> Distribution:
    """Build the distribution `formgate`."""
    return build(ROOT / "clients/python", tmp_path_factory.mktemp("client"))


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Distribution:
    """Build the distribution `formgate-server`."""
    return build(ROOT, tmp_path_factory.mktemp("server"))


def test_the_client_ships_its_whole_package_and_nothing_beside_it(client: Distribution) -> None:
    """Stubs, their types, rules and py.typed are in wheel and sdist; no top-level `google` or `test` comes along."""
    expected = files(CLIENT, CLIENT.parent)
    stubs = {f"formgate/v1/authorization_pb2{suffix}" for suffix in (".py", ".pyi", "_grpc.py", "_grpc.pyi")}
    assert expected >= stubs | {"formgate/py.typed", "formgate/rules/__init__.py"}
    assert packages(client) == {"formgate"}
    assert client.in_wheel >= expected
    assert client.in_sdist >= {f"src/{name}" for name in expected} | {"pyproject.toml", "README.md", "LICENSE"}


def test_the_server_ships_its_whole_package_and_nothing_beside_it(server: Distribution) -> None:
    """Policies and migrations, which are no modules, are in wheel and sdist too."""
    expected = files(SERVER, SERVER.parent)
    assert packages(server) == {"formgate_server"}
    assert server.in_wheel >= expected
    assert server.in_sdist >= {f"service/{name}" for name in expected} | {"pyproject.toml", "LICENSE"}
    for folder, suffix in (("policies", ".toml"), ("storage/sql/migrations", ".py")):
        if (SERVER / folder).is_dir():
            inside = {name for name in server.in_wheel if name.startswith(f"formgate_server/{folder}/")}
            assert any(name.endswith(suffix) for name in inside)


def test_the_client_depends_on_three_packages_only(client: Distribution) -> None:
    """A client library must fit beside whatever its user runs."""
    required = re.findall(r"^Requires-Dist: ([\w-]+)", client.metadata(), re.MULTILINE)
    assert sorted(required) == ["googleapis-common-protos", "grpcio", "protobuf"]


def test_the_server_names_the_client_of_its_own_version() -> None:
    """Both are released together: the server imports the rules that its client ships."""
    server_project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    client_project = tomllib.loads((ROOT / "clients/python/pyproject.toml").read_text())["project"]
    assert f"formgate=={client_project['version']}" in server_project["dependencies"]
    assert server_project["version"] == client_project["version"]


@dataclass(frozen=True)
class Installed:
    """The client's wheel in an environment of its own."""

    environment: str
    python: Path

    def run(self, program: str, *arguments: str) -> str:
        """Run a program there, warnings being errors, and return what it printed."""
        told = subprocess.run(
            [self.python, "-I", "-W", "error", "-c", program, *arguments],
            cwd=self.python.parent,
            env=clean_environment({"GRPC_VERBOSITY": "NONE"}),
            check=False,
            capture_output=True,
            text=True,
        )
        assert (told.returncode, told.stderr) == (0, "")
        return told.stdout


@pytest.fixture(scope="module", params=ENVIRONMENTS)
def installed(
    request: pytest.FixtureRequest, client: Distribution, tmp_path_factory: pytest.TempPathFactory
) -> Installed:
    """The wheel, installed beside what the user has already."""
    folder = tmp_path_factory.mktemp(request.param)
    venv.create(folder, with_pip=False)
    python = folder / "bin/python"
    # The pip of our own environment installs into the other one; it takes its index from pip's configuration.
    pip = [sys.executable, "-m", "pip", "--python", str(python), "install", "--quiet", "--only-binary=:all:"]
    subprocess.run([*pip, str(client.wheel), *ENVIRONMENTS[request.param]], check=True)
    return Installed(request.param, python)


@pytest.fixture(scope="module")
def serving(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A real server, of our own environment."""
    with Server(tmp_path_factory.mktemp("serving")) as server:
        yield server


def test_every_stub_loads_and_round_trips(installed: Installed) -> None:
    """Beside that protobuf the stubs load without a warning and read what they wrote."""
    version, stubs = installed.run(LOAD_AND_ROUND_TRIP).split()
    assert version.startswith("7." if installed.environment == "protobuf-7" else "6.")
    assert int(stubs) == len(list((CLIENT / "v1").glob("*_pb2*.py")))


def test_an_installation_brings_three_packages_and_what_they_need(installed: Installed) -> None:
    """Nothing else is there; typing-extensions is grpcio's own."""
    names = set(installed.run(NAMES).split())
    wanted = {"formgate", "googleapis-common-protos", "grpcio", "protobuf"}
    assert wanted <= names <= wanted | {"typing-extensions"}


def test_the_client_asks_a_real_server(installed: Installed, serving: Server) -> None:
    """All its modules load with nothing else beside them; both clients and the recorder speak to a server."""
    assert installed.run(ASK, serving.address, serving.token).split() == ["MALFORMED_KEY", "MALFORMED_KEY", "1"]
