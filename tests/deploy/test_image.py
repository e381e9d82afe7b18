"""What can be told of the image without building it; `make image` builds it, and tells the rest."""

from __future__ import annotations

import json
import re
from fnmatch import fnmatch

import pytest

from scripts import sbom
from scripts.engines import ROOT, Config
from scripts.image import ImageError, _check_config, _version

DOCKERFILE = (ROOT / "Dockerfile").read_text(encoding="utf-8")
STEPS = re.findall(r"^([A-Z]+) (.*)$", re.sub(r"\\\n", " ", DOCKERFILE), re.MULTILINE)


def words(step: str) -> list[str]:
    """Return what stands after each step of a name."""
    return [rest for name, rest in STEPS if name == step]


def test_both_stages_stand_on_one_pinned_base() -> None:
    """An exact version of Python and a named Debian: a build next month has the same base."""
    assert words("FROM") == ["$BASE AS build", "$BASE"]
    (base,) = (each.removeprefix("BASE=") for each in words("ARG") if each.startswith("BASE="))
    assert re.fullmatch(r"docker\.io/library/python:\d+\.\d+\.\d+-slim-[a-z]+", base)
    assert 'org.opencontainers.image.base.name="$BASE"' in DOCKERFILE


def test_every_package_is_installed_by_its_hash_or_is_ours() -> None:
    """And as a wheel: nothing is compiled, nothing is resolved anew."""
    installs = re.findall(r"pip (?:--python \S+ )?install ([^&]*)", " ".join(words("RUN")))
    assert len(installs) == 3
    for each in installs:
        locked = "--require-hashes" in each and "--only-binary=:all:" in each
        assert locked or ("--no-index --no-deps" in each and "dist/*.whl" in each)
    assert "LOCK=runtime" in words("ARG")


def test_it_runs_as_a_number_and_starts_by_exec() -> None:
    """Kubernetes refuses a user whom it can not tell from root; a shell would swallow SIGTERM."""
    assert words("USER")[-1] == "10001:10001"
    assert json.loads(words("ENTRYPOINT")[0]) == ["formgate"]
    assert json.loads(words("CMD")[0]) == ["serve"]


def test_what_is_copied_is_let_in_and_nothing_else_is() -> None:
    """The context is small, and no secret, data folder or history of ours gets into a layer."""
    rules = (ROOT / ".dockerignore").read_text(encoding="utf-8").split("\n")
    allowed = {each.removeprefix("!") for each in rules if each.startswith("!")}
    copied = {name for each in words("COPY") if not each.startswith("--from") for name in each.split()[:-1]}
    assert "*" in rules
    assert allowed == copied
    assert all((ROOT / name).exists() for name in allowed)
    assert not [name for name in allowed if fnmatch(name, "*formgate-data*") or name.startswith(".")]


@pytest.mark.parametrize(
    "change",
    [
        {"user": ""},
        {"user": "root"},
        {"user": "0:0"},
        {"entrypoint": ("sh", "-c", "formgate")},
        {"labels": {}},
        {"base": "y"},
    ],
)
def test_an_image_that_is_otherwise_is_refused(change: dict[str, object]) -> None:
    """What `make image` finds out, it does not pass over."""
    labels = ("title", "description", "licenses", "version", "revision", "created", "base.name")
    good: dict[str, object] = {
        "user": "10001:10001",
        "environment": (),
        "entrypoint": ("formgate",),
        "command": ("serve",),
        "folder": "/",
        "volumes": (),
        "labels": {f"org.opencontainers.image.{name}": "x" for name in labels},
    }
    _check_config(Config(**good), "x")  # type: ignore[arg-type]
    base = str(change.pop("base", "x"))
    with pytest.raises(ImageError):
        _check_config(Config(**good | change), base)  # type: ignore[arg-type]


def test_the_bill_of_materials_names_what_was_found() -> None:
    """Each package once, by a purl that scanners look up, and whom it needs, of those that are there."""
    inventory = {
        "python": [
            {"name": "Typing_Extensions", "version": "4.1", "license": "", "license_name": "PSF", "requires": []},
            {
                "name": "pydantic",
                "version": "2.0",
                "license": "MIT",
                "license_name": "",
                "requires": ["typing-extensions>=4", "email-validator; extra == 'email'"],
            },
        ],
        "debian": [{"name": "libc6", "version": "2.36-9+deb12u1", "arch": "amd64"}],
    }
    document = json.loads(sbom.bill(inventory, "formgate", "1.0", "2026-01-01T00:00:00Z"))
    assert document["bomFormat"] == "CycloneDX"
    assert [each["purl"] for each in document["components"]] == [
        "pkg:deb/debian/libc6@2.36-9%2Bdeb12u1?arch=amd64",
        "pkg:pypi/pydantic@2.0",
        "pkg:pypi/typing-extensions@4.1",
    ]
    needs = {each["ref"]: each["dependsOn"] for each in document["dependencies"]}
    assert needs["pkg:pypi/pydantic@2.0"] == ["pkg:pypi/typing-extensions@4.1"]


def test_chart_and_image_are_of_this_version() -> None:
    """The chart's appVersion is the image's tag where none is given."""
    chart = (ROOT / "helm/formgate/Chart.yaml").read_text(encoding="utf-8")
    assert f'appVersion: "{_version()}"' in chart
