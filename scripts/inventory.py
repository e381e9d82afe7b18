"""What is in an image, as JSON: its Python distributions and its Debian packages.

Runs in the image itself, by `make image`: the standard library only.
"""

import json
import sys
from importlib.metadata import distributions
from pathlib import Path

STATUS = Path("/var/lib/dpkg/status")


def python_packages() -> list[dict[str, object]]:
    """Return name, version, licence and requirements of each distribution that this interpreter finds."""
    found: list[dict[str, object]] = []
    for each in distributions():
        said = dict(each.metadata.json)
        classifiers = [name for name in said.get("classifier", ()) if name.startswith("License ::")]
        found.append(
            {
                "name": said["name"],
                "version": each.version,
                "license": said.get("license_expression", ""),
                "license_name": classifiers[0].rpartition(" :: ")[2] if classifiers else said.get("license", "")[:100],
                "requires": each.requires or [],
            }
        )
    return found


def debian_packages() -> list[dict[str, str]]:
    """Return name, version and architecture of each package that is installed; none where this is no Debian."""
    if not STATUS.exists():
        return []
    found = []
    for paragraph in STATUS.read_text(encoding="utf-8").split("\n\n"):
        fields = dict(line.split(": ", 1) for line in paragraph.splitlines() if ": " in line and line[0] != " ")
        if fields.get("Status", "").endswith(" installed"):
            found.append({"name": fields["Package"], "version": fields["Version"], "arch": fields["Architecture"]})
    return found


json.dump({"python": python_packages(), "debian": debian_packages(), "runtime": sys.version.split()[0]}, sys.stdout)
