"""What we ship: the right files in each distribution, and stubs that load beside any protobuf that we promise."""

import re
import subprocess
import sys
import tarfile
import tomllib
import venv
import zipfile
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import pytest

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


@pytest.mark.parametrize("environment", ENVIRONMENTS)
def test_every_stub_loads_and_round_trips(environment: str, client: Distribution, tmp_path: Path) -> None:
    """The wheel, installed beside that protobuf, loads without a warning and reads what it wrote."""
    venv.create(tmp_path, with_pip=False)
    python = str(tmp_path / "bin/python")
    # The pip of our own environment installs into the other one; it takes its index from pip's configuration.
    pip = [sys.executable, "-m", "pip", "--python", python, "install", "--quiet", "--only-binary=:all:"]
    subprocess.run([*pip, str(client.wheel), *ENVIRONMENTS[environment]], check=True)

    told = subprocess.run(
        [python, "-I", "-W", "error", "-c", LOAD_AND_ROUND_TRIP],
        cwd=tmp_path,
        check=False,
        capture_output=True,
        text=True,
    )
    assert told.returncode == 0, told.stderr
    version, stubs = told.stdout.split()
    assert version.startswith("7." if environment == "protobuf-7" else "6.")
    assert int(stubs) == len(list((CLIENT / "v1").glob("*_pb2*.py")))
