"""The bill of materials of an image, in CycloneDX, made of what is found in it: scripts/inventory.py."""

from __future__ import annotations

import json
import re
import subprocess
import uuid
from typing import Any
from urllib.parse import quote

from scripts.engines import ROOT

# Runs in .venv-image, which has the schemas: ends with 1 and the first fault where the document is not as they say.
_VALIDATE = """
import sys
from cyclonedx.schema import SchemaVersion
from cyclonedx.validation.json import JsonStrictValidator
error = JsonStrictValidator(SchemaVersion.V1_6).validate_str(sys.stdin.read())
sys.exit(f"the bill of materials is not valid: {error}" if error else 0)
"""


def bill(inventory: dict[str, Any], name: str, version: str, created: str) -> str:
    """Return the document, a component for each distribution and package, and who depends on whom."""
    python = {_normal(each["name"]): _python_component(each) for each in inventory["python"]}
    debian = [_debian_component(each) for each in inventory["debian"]]
    image = {"type": "container", "bom-ref": f"image:{name}@{version}", "name": name, "version": version}
    components = sorted([*python.values(), *debian], key=lambda each: str(each["bom-ref"]))
    document = {
        "$schema": "http://cyclonedx.org/schema/bom-1.6.schema.json",
        "bomFormat": "CycloneDX",
        "specVersion": "1.6",
        # The same for the same image.
        "serialNumber": f"urn:uuid:{uuid.uuid5(uuid.NAMESPACE_OID, json.dumps(inventory, sort_keys=True) + version)}",
        "version": 1,
        "metadata": {"timestamp": created, "component": image},
        "components": components,
        "dependencies": [
            {"ref": image["bom-ref"], "dependsOn": [each["bom-ref"] for each in components]},
            *(_dependencies(each, python) for each in inventory["python"]),
        ],
    }
    return json.dumps(document, indent=2) + "\n"


def validate(document: str) -> None:
    """Hold it against the schema of CycloneDX. Raises CalledProcessError."""
    subprocess.run([ROOT / ".venv-image/bin/python", "-c", _VALIDATE], input=document, text=True, check=True)


def _normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def _python_component(each: dict[str, Any]) -> dict[str, Any]:
    reference = f"pkg:pypi/{_normal(each['name'])}@{quote(each['version'])}"
    component = {"type": "library", "bom-ref": reference, "purl": reference} | {
        key: each[key] for key in ("name", "version")
    }
    if each["license"]:
        component["licenses"] = [{"expression": each["license"]}]
    elif each["license_name"].strip():
        component["licenses"] = [{"license": {"name": each["license_name"].splitlines()[0]}}]
    return component


def _debian_component(each: dict[str, str]) -> dict[str, Any]:
    reference = f"pkg:deb/debian/{quote(each['name'])}@{quote(each['version'], safe='')}?arch={each['arch']}"
    return {
        "type": "library",
        "bom-ref": reference,
        "purl": reference,
        "name": each["name"],
        "version": each["version"],
    }


def _dependencies(each: dict[str, Any], python: dict[str, Any]) -> dict[str, Any]:
    required = {_normal(re.match(r"[\w.-]+", words)[0]) for words in each["requires"]}  # type: ignore[index]
    there = sorted(python[name]["bom-ref"] for name in required if name in python)
    return {"ref": python[_normal(each["name"])]["bom-ref"], "dependsOn": there}
