"""`make chart`: hold the Helm chart to what it promises, with the real Helm.

    make chart                   all of it
    make chart ARGS=--renew      write the golden files anew first: look at the difference before it is committed

Each value set in helm/formgate/ci is linted, rendered for each Kubernetes that the chart is for, and held against that
one's schemas; a scanner looks for what is unsafe; then come the tests in tests/deploy: golden files, refusals, and what
ties the chart to the server. Ends with 1 where anything is found.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).resolve().parent.parent
CHART = ROOT / "helm/formgate"
GOLDEN = ROOT / "tests/deploy/golden"
HELM = ROOT / ".venv-chart/bin/helm"
VALUE_SETS = tuple(sorted(path.name.removesuffix("-values.yaml") for path in (CHART / "ci").glob("*-values.yaml")))
VERSIONS = tuple(f"1.{minor}" for minor in range(29, 37))

# Of checkov's checks these find what is so on purpose. By name: of which kinds of objects, and why.
_ALL = ("Deployment", "Job", "Pod")
EXCEPTIONS = {
    "CKV_K8S_8": (("Pod",), "helm test runs to its end, or is ended by its deadline: nothing to restart"),
    "CKV_K8S_9": (("Pod",), "nor is it called by anybody"),
    "CKV_K8S_11": (_ALL, "no limit of CPU: it would throttle checks in bursts; nodes are chosen by the request"),
    "CKV_K8S_15": (_ALL, "a version or a digest, never `latest`: pulled always, a start would hang on the registry"),
    "CKV_K8S_35": (_ALL, "URLs with passwords come in variables, as the server reads them; files hold the rest"),
    "CKV_K8S_43": (_ALL, "the digest is the operator's to give, image.digest: who pushes the image is not known here"),
}

# Runs in .venv-chart, which has the schemas. Stdin: lines of JSON, [what, version, object]; prints what is wrong.
_VALIDATE = """
import json, sys
import kubernetes_validate
wrong = 0
for line in sys.stdin:
    what, version, found = json.loads(line)
    try:
        kubernetes_validate.validate(found, version, strict=True)
    except (kubernetes_validate.ValidationError, kubernetes_validate.SchemaNotFoundError) as error:
        wrong += 1
        print(f"{what}, {version}, {found['kind']} {found['metadata']['name']}: {error.message[:300]}")
sys.exit(wrong > 0)
"""
# Kinds of other projects: their schemas are not Kubernetes'.
_FOREIGN = ("cert-manager.io/", "monitoring.coreos.com/")


def values_file(name: str) -> Path:
    """Return the file of a value set."""
    return CHART / f"ci/{name}-values.yaml"


def helm(*words: str | Path) -> subprocess.CompletedProcess[str]:
    """Run Helm, whatever comes of it."""
    return subprocess.run([HELM, *words], check=False, capture_output=True, text=True)


def render(name: str, *words: str, version: str = VERSIONS[-1]) -> str:
    """Return what Helm makes of a value set, in the release `formgate`. Raises CalledProcessError."""
    options = ["--namespace=access", f"--kube-version={version}", f"--values={values_file(name)}", *words]
    done = helm("template", "formgate", CHART, *options)
    if done.returncode:
        print(done.stderr, file=sys.stderr)
        done.check_returncode()
    return done.stdout


def objects(text: str) -> list[dict[str, Any]]:
    """Return the objects of what was rendered."""
    return [found for found in yaml.load_all(text, yaml.CSafeLoader) if found is not None]


def main() -> int:
    """Do it all, and say what was found."""
    parser = argparse.ArgumentParser(prog="make chart")
    parser.add_argument("--renew", action="store_true", help="write the golden files anew")
    asked = parser.parse_args()
    begun = time.monotonic()
    if asked.renew:
        renew()
    steps = (_lint, _validate, _scan, _test)
    failed = [step.__name__.strip("_") for step in steps if not step()]
    if failed:
        print(f"make chart: {', '.join(failed)} failed", file=sys.stderr)
        return 1
    print(f"the chart is as it has to be; {time.monotonic() - begun:.0f} s")
    return 0


def renew() -> None:
    """Write what each value set gives now."""
    GOLDEN.mkdir(parents=True, exist_ok=True)
    for name in VALUE_SETS:
        (GOLDEN / f"{name}.yaml").write_text(render(name), encoding="utf-8")


def _lint() -> bool:
    good = True
    for name in VALUE_SETS:
        done = helm("lint", "--strict", CHART, f"--values={values_file(name)}")
        good = good and done.returncode == 0
        if done.returncode:
            print(done.stdout + done.stderr)
    print(f"helm lint --strict: {len(VALUE_SETS)} value sets")
    return good


def _validate() -> bool:
    python = str(ROOT / ".venv-chart/bin/python")
    asked: list[str] = []
    foreign = 0
    for name in VALUE_SETS:
        for version in VERSIONS:
            found = objects(render(name, version=version))
            ours = [each for each in found if not each["apiVersion"].startswith(_FOREIGN)]
            foreign += len(found) - len(ours)
            asked += [json.dumps([name, version, each]) for each in ours]
    done = subprocess.run([python, "-c", _VALIDATE], input="\n".join(asked), check=False, text=True)
    print(f"helm template: {len(VALUE_SETS)} value sets, Kubernetes {VERSIONS[0]} to {VERSIONS[-1]}:", end=" ")
    print(f"{len(asked)} objects held against the schemas, and {foreign} of other projects not")
    return done.returncode == 0


def _scan() -> bool:
    with tempfile.TemporaryDirectory() as folder:
        for name in VALUE_SETS:
            (Path(folder) / f"{name}.yaml").write_text(render(name), encoding="utf-8")
        options = ["--framework=kubernetes", "--skip-download", "--quiet", "--compact", "--output=json"]
        command = [str(ROOT / ".venv-checkov/bin/python"), "-m", "checkov.main", f"--directory={folder}", *options]
        done = subprocess.run(command, check=False, stdout=subprocess.PIPE, text=True)
    told = json.loads(done.stdout)
    results, passed = told["results"], told["summary"]["passed"]
    # Without its vendor's service it has no severities: whatever is no exception is taken for a high one.
    failed = [(each["check_id"], each["resource"].split(".")[0], each) for each in results["failed_checks"]]
    found = [each for check, kind, each in failed if kind not in EXCEPTIONS.get(check, ((), ""))[0]]
    stale = EXCEPTIONS.keys() - {check for check, _, _ in failed}
    for each in found:
        print(f"{each['check_id']} {each['check_name']}: {each['resource']} in {Path(each['file_path']).name}")
    for check in sorted(stale):
        print(f"{check} is an exception that nothing needs any more")
    print(f"checkov: {passed} passed, {len(found)} failed, exceptions {', '.join(EXCEPTIONS)}")
    return passed > 0 and not found and not stale


def _test() -> bool:
    tests = ("tests/deploy/test_chart.py", "tests/deploy/test_helm_test.py")
    return subprocess.run([sys.executable, "-m", "pytest", "-q", *tests], cwd=ROOT, check=False).returncode == 0


if __name__ == "__main__":
    sys.exit(main())
