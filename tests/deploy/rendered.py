"""What Helm makes of the chart, read."""

from __future__ import annotations

from functools import cache
from typing import Any

from scripts import chart

Object = dict[str, Any]


@cache
def objects(name: str = "default", *words: str) -> list[Object]:
    """Return the objects of a value set, with ``words`` for Helm."""
    return chart.objects(chart.render(name, *words))


def one(kind: str, name: str = "default", *words: str, component: str = "server") -> Object:
    """Return the only object of a kind and component; AssertionError where there is none, or are several."""
    (found,) = [
        each
        for each in objects(name, *words)
        if each["kind"] == kind and each["metadata"]["labels"]["app.kubernetes.io/component"] == component
    ]
    return found


def pods(name: str, *words: str) -> dict[str, Object]:
    """Return the specification of each pod, by the component that it is."""
    found = {}
    for each in objects(name, *words):
        component = each["metadata"]["labels"]["app.kubernetes.io/component"]
        if each["kind"] in {"Deployment", "Job"}:
            found[component] = each["spec"]["template"]["spec"]
        elif each["kind"] == "Pod":
            found[component] = each["spec"]
    return found


def environment(pod: Object) -> dict[str, str]:
    """Return a pod's variables; those of Secrets as `NAME/KEY`."""
    found = {}
    for each in pod["containers"][0]["env"]:
        if "value" in each:
            found[each["name"]] = each["value"]
        else:
            reference = each["valueFrom"]["secretKeyRef"]
            found[each["name"]] = f"{reference['name']}/{reference['key']}"
    return found


def refused(*words: str) -> str:
    """Return why Helm refuses ``words``; AssertionError where it does not."""
    done = chart.helm("template", "formgate", chart.CHART, *words)
    assert done.returncode != 0, f"{words} were taken"
    return done.stderr
