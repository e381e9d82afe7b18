"""What is watched: every metric that the dashboard and the alerts name is there, alerts fire, and say what to do."""

from __future__ import annotations

import json
import re
import subprocess
import urllib.request
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import NamedTuple

import pytest
from prometheus_client import Metric
from prometheus_client.openmetrics import parser as openmetrics
from prometheus_client.parser import text_string_to_metric_families

from formgate.v1.accounts_pb2 import CreateAccountRequest
from formgate.v1.authorization_pb2 import BatchCheckKeysRequest, CheckKeyRequest, RecordUsageRequest, UsageRecord
from formgate.v1.keys_pb2 import CreateKeyRequest, GetKeyRequest, RevokeKeyRequest
from formgate.v1.resources_pb2 import HOLDER_KEY, Limit
from scripts.prometheus import PrometheusError, find
from tests.deploy.rendered import one
from tests.support.client import Client
from tests.support.server import Server, eventually
from tests.support.workers import SupervisedServer

ROOT = Path(__file__).resolve().parents[2]
FILES = ROOT / "helm/formgate/files"
ALERTS = (FILES / "alerts.yaml").read_text()
DASHBOARD = json.loads((FILES / "dashboard.json").read_text())
PANELS = [panel for panel in DASHBOARD["panels"] if panel["type"] != "row"]
EXPRESSIONS = [target["expr"] for panel in PANELS for target in panel["targets"]]
RECORDED = set(re.findall(r"record: (\S+)", ALERTS))
GIVEN = {"namespace", "instance", "le", "job"}
"""Labels that Prometheus gives, or that its histograms have."""
OURS = re.compile(r"(?<![\w:])((?:formgate|process|python)_\w+)(?:\{([^}]*)\})?")
SELECTED = re.compile(r'(\w+)(=~|!=|=)"([^"]*)"')
ALLOWED = 3


class Seen(NamedTuple):
    """A server's /metrics, as Prometheus reads them after some calls."""

    key_id: str
    secret: str
    text: str
    plain: str
    families: dict[str, Metric]

    def value(self, name: str, **labels: str) -> float:
        """Return a sample's value, summed over workers."""
        samples = [sample for family in self.families.values() for sample in family.samples if sample.name == name]
        assert samples, f"there is no {name}"
        return sum(each.value for each in samples if labels.items() <= each.labels.items())


def grouped_by(expression: str) -> set[str]:
    """Return the labels that an expression groups by."""
    return {label.strip() for group in re.findall(r"by \(([^)]*)\)", expression) for label in group.split(",")}


def scrape(server: Server, wanted: str = "application/openmetrics-text") -> str:
    """Return /metrics in the format that is wanted."""
    request = urllib.request.Request(f"http://{server.http}/metrics", headers={"accept": f"{wanted}; version=1.0.0"})
    with urllib.request.urlopen(request, timeout=10) as answer:
        assert answer.headers["content-type"].startswith(wanted)
        return str(answer.read().decode())


def seen(server: Server) -> Seen:
    """Make some calls and look at what was counted."""
    with closing(Client(server.address, server.token)) as client:
        client(CreateAccountRequest(account_id="acme"))
        few = Limit(name="a-name-of-its-own", holder=HOLDER_KEY, amount=ALLOWED, lifetime=True)
        made = client(CreateKeyRequest(account_id="acme", limits=[few]))
        check = CheckKeyRequest(key=made.secret)
        assert [client(check).allowed for _ in range(ALLOWED)] == [True] * ALLOWED
        batch = client(BatchCheckKeysRequest(requests=[check, CheckKeyRequest(key="x"), CheckKeyRequest()]))
        assert [each.WhichOneof("result") for each in batch.results] == ["response", "response", "error"]
        record = UsageRecord(record_id="r1", key_id=made.key.key_id, units=1)
        record.occur_time.GetCurrentTime()
        client(RecordUsageRequest(records=[record, record]))
        client.refusal(GetKeyRequest(key_id="key_none"))
        client(RevokeKeyRequest(key_id=made.key.key_id))
        client(check)
    done = 'formgate_checks_total{reason="KEY_REVOKED"} 1.0'
    text = eventually(lambda: found if done in (found := scrape(server)) else None, 10, "what was counted")
    families = {family.name: family for family in openmetrics.text_string_to_metric_families(text)}  # type: ignore[no-untyped-call]
    return Seen(made.key.key_id, made.secret, text, scrape(server, "text/plain"), families)


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Seen]:
    """A server of one process."""
    with Server(tmp_path_factory.mktemp("alone")) as server:
        yield seen(server)


@pytest.fixture(scope="module")
def worker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Seen]:
    """A server whose worker counts in files, which its supervisor shows."""
    with SupervisedServer(tmp_path_factory.mktemp("worker")) as server:
        yield seen(server)


@pytest.fixture(params=["alone", "worker"])
def either(request: pytest.FixtureRequest) -> Seen:
    """One and the other."""
    made: Seen = request.getfixturevalue(request.param)
    return made


@pytest.fixture(scope="module")
def promtool() -> Path:
    """Prometheus' own judge of rules."""
    try:
        return find("promtool")
    except PrometheusError as error:
        pytest.skip(str(error))


def test_calls_and_checks_are_counted(either: Seen) -> None:
    """Once each: calls by method and code, checks by reason (a batch's one by one), usage by outcome."""
    assert either.value("formgate_rpc_calls_total", method="CheckKey", code="OK") == ALLOWED + 1
    assert either.value("formgate_rpc_calls_total", method="BatchCheckKeys", code="OK") == 1
    assert either.value("formgate_rpc_calls_total", method="GetKey", code="NOT_FOUND") == 1
    assert either.value("formgate_rpc_duration_seconds_count", method="CheckKey") == ALLOWED + 1
    assert 0 < either.value("formgate_rpc_duration_seconds_sum", method="CheckKey") < 60
    assert either.value("formgate_checks_total", reason="OK") == ALLOWED
    assert either.value("formgate_checks_total", reason="CREDITS_EXHAUSTED") == 1
    assert either.value("formgate_checks_total", reason="MALFORMED_KEY") == 1
    assert either.value("formgate_check_duration_seconds_count", reason="OK") == ALLOWED
    assert either.value("formgate_check_duration_seconds_count", reason="KEY_REVOKED") == 1
    assert either.value("formgate_usage_records_total", outcome="ACCEPTED") == 1
    assert either.value("formgate_usage_records_total", outcome="DUPLICATE") == 1
    assert either.value("formgate_batch_checks_failed_total") == 0, "a check that asks for nothing is no failure"


def test_the_hot_path_is_seen(either: Seen) -> None:
    """Keys at hand, charges, epochs that moved, and limits that come to their end.

    A limit of a key's own may be called anything: it counts, but not by its name.
    """
    assert either.value("formgate_key_cache_misses_total") >= 2  # at first, and after the revocation
    assert either.value("formgate_key_cache_hits_total") >= ALLOWED
    assert either.value("formgate_key_cache_size") == 1
    assert either.value("formgate_charge_duration_seconds_count", size="one") >= ALLOWED
    assert either.value("formgate_charge_duration_seconds_count", size="batch") == 1
    assert either.value("formgate_epoch_reloads_total", cause="moved") >= 1
    assert either.value("formgate_limits_near_end_total", limit="other") == 1
    assert "a-name-of-its-own" not in either.text
    assert either.value("formgate_publications_total", by="change", outcome="published") >= 1
    assert either.value("formgate_database_connections_most") > 2


def test_nobody_is_named(either: Seen) -> None:
    """No key, account or token is in any of it: neither their ids nor their secrets."""
    for each in (either.key_id, either.secret, "acme", "tok_", "key_none"):
        assert each not in either.text


def test_a_worker_counts_as_one_process_does(alone: Seen, worker: Seen) -> None:
    """The same families with the same samples, but for what each worker's process is."""

    def ours(of: Seen) -> set[tuple[str, frozenset[tuple[str, str]]]]:
        samples = [sample for family in of.families.values() for sample in family.samples]
        return {
            (each.name, frozenset(each.labels.items()))
            for each in samples
            if each.name.startswith("formgate_") and not each.name.startswith("formgate_worker_")
        }

    assert ours(alone) == ours(worker)


@pytest.mark.parametrize("expression", [*EXPRESSIONS, ALERTS])
def test_every_metric_that_is_named_is_there(alone: Seen, worker: Seen, expression: str) -> None:
    """In the dashboard and in the alerts: its name, its labels, and the values of labels that it is selected by."""
    named = OURS.findall(expression)
    recorded = set(re.findall(r"formgate:\w+:\w+", expression))
    assert named or recorded
    assert recorded <= RECORDED
    for name, selectors in named:
        samples = [
            sample
            for of in (alone, worker)
            for family in of.families.values()
            for sample in family.samples
            if sample.name == name
        ]
        if not samples:  # a family that has samples only with certificates
            assert f"# TYPE {name} gauge" in alone.text, name
            continue
        for label, operator, value in SELECTED.findall(selectors):
            if label in GIVEN - {"le"}:
                continue
            values = {sample.labels.get(label) for sample in samples} - {None}
            assert values, f"{name} has no label {label}"
            if operator == "=":
                assert value in values, f"{name} has no {label} {value}"
            if operator == "=~":
                for one in value.split("|"):  # each of them: a name that nothing has is a mistake
                    assert any(re.fullmatch(one, each or "") for each in values), f"{name} has no {label} {one}"
    families = [family for of in (alone, worker) for family in of.families.values()]
    labels = {label for family in families for sample in family.samples for label in sample.labels}
    assert grouped_by(expression) <= labels | GIVEN | {"certificate", "files"}


def test_panels_say_what_they_show() -> None:
    """Each has a description, a legend for what it draws several lines of, and an id of its own."""
    assert len({panel["id"] for panel in DASHBOARD["panels"]}) == len(DASHBOARD["panels"])
    for panel in PANELS:
        assert panel["description"], panel["title"]
        for target in panel["targets"]:
            shown = set(re.findall(r"{{(\w+)}}", target["legendFormat"]))
            assert shown <= grouped_by(target["expr"]), panel["title"]


def test_prometheus_takes_the_rules(promtool: Path) -> None:
    """As promtool judges them."""
    command = [str(promtool), "check", "rules", str(FILES / "alerts.yaml")]
    checked = subprocess.run(command, capture_output=True, text=True, check=False)
    assert checked.returncode == 0, checked.stdout + checked.stderr


@pytest.mark.parametrize("name", ["alerts_test.yaml", "alerts_of_weeks_test.yaml"])
def test_alerts_fire_when_they_should(promtool: Path, name: str) -> None:
    """And not before, and with the words that they should have."""
    command = [str(promtool), "test", "rules", str(Path(__file__).with_name(name))]
    tested = subprocess.run(command, capture_output=True, text=True, check=False, timeout=110)
    assert tested.returncode == 0, tested.stdout + tested.stderr


_GONE = {
    "evaluation_interval": "30s",
    "tests": [
        {
            "name": "ours are gone, others are there",
            "interval": "30s",
            "input_series": [
                {"series": 'formgate_build_info{namespace="access",instance="a"}', "values": "1x10 stale"},
                {"series": 'formgate_build_info{namespace="staging",instance="b"}', "values": "1x60"},
            ],
            "promql_expr_test": [
                {
                    "expr": 'ALERTS{alertname="FormgateDown",alertstate="firing"}',
                    "eval_time": eval_time,
                    "exp_samples": [{"labels": labels, "value": 1} for labels in fired],
                }
                for eval_time, fired in (
                    ("4m", []),
                    (
                        "20m",
                        ['ALERTS{alertname="FormgateDown",alertstate="firing",namespace="access",severity="page"}'],
                    ),
                )
            ],
        }
    ],
}


def test_an_installation_that_is_gone_is_seen_beside_another(promtool: Path, helm: None, tmp_path: Path) -> None:
    """The chart's rule is about its own namespace: servers elsewhere do not stand for those that are gone."""
    del helm
    rules = tmp_path / "rules.yaml"
    rules.write_text(json.dumps(one("PrometheusRule", "production")["spec"]))  # JSON is YAML
    (tmp_path / "test.yaml").write_text(json.dumps({"rule_files": [str(rules)], **_GONE}))
    command = [str(promtool), "test", "rules", str(tmp_path / "test.yaml")]
    tested = subprocess.run(command, capture_output=True, text=True, check=False, timeout=110)
    assert tested.returncode == 0, tested.stdout + tested.stderr


def test_every_alert_is_tested_and_has_a_runbook() -> None:
    """Each has a unit test that sees it fire, words, a severity and an entry in the runbooks; which have no other."""
    alerts = re.findall(r"- alert: (\w+)", ALERTS)
    tests = "".join(Path(__file__).with_name(f"{name}_test.yaml").read_text() for name in ("alerts", "alerts_of_weeks"))
    fired = {found[1] for found in re.finditer(r"- alertname: (\w+)\n\s+eval_time: \S+\n\s+exp_alerts:", tests)}
    assert set(alerts) == fired
    for field in ("severity", "summary", "description", "runbook_url"):
        assert len(re.findall(rf"^\s+{field}:", ALERTS, re.MULTILINE)) == len(alerts), field
    runbooks = (ROOT / "docs/operations/runbooks.md").read_text()
    entries = {each.lower() for each in re.findall(r"^## (Formgate\w+)$", runbooks, re.MULTILINE)}
    linked = set(re.findall(r"runbook_url: docs/operations/runbooks\.md#(\w+)", ALERTS))
    assert linked == entries == {each.lower() for each in alerts}


def test_every_metric_is_documented(alone: Seen, worker: Seen) -> None:
    """In docs/operations/monitoring.md, which names no other."""
    page = (ROOT / "docs/operations/monitoring.md").read_text()
    there = {name for of in (alone, worker) for name in of.families if name.startswith("formgate_")}
    there |= set(re.findall(r"# TYPE (formgate_\w+)", alone.text))
    named = {re.sub(r"_(total|info)$", "", each) for each in re.findall(r"`(formgate_\w+)", page)}
    assert named == {re.sub(r"_(total|info)$", "", each) for each in there}


def test_both_formats_say_the_same(either: Seen) -> None:
    """Who does not ask for OpenMetrics gets Prometheus' own text, with the same samples."""
    plain = {sample.name for family in text_string_to_metric_families(either.plain) for sample in family.samples}
    assert plain == {sample.name for family in either.families.values() for sample in family.samples}
