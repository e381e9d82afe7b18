"""What the chart renders, with the real Helm."""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import ClassVar

import pytest
import yaml

from formgate_server.policies import identities
from formgate_server.policies.policy import load
from formgate_server.settings import Settings
from scripts import chart
from tests.deploy.rendered import Object, environment, objects, one, pods, refused

pytestmark = pytest.mark.usefixtures("helm")

IDENTITY = re.compile(r"[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?")


@pytest.mark.parametrize("name", chart.VALUE_SETS)
def test_what_is_rendered_is_what_was_reviewed(name: str) -> None:
    """Each value set gives its golden file, to the byte: `make chart ARGS=--renew` writes them, for a review."""
    golden = chart.GOLDEN / f"{name}.yaml"
    assert chart.render(name) == golden.read_text(encoding="utf-8"), f"{golden} is not what the chart renders now"


def test_there_are_five_value_sets_and_no_other_golden_files() -> None:
    """A set that is taken away takes its golden file along."""
    assert len(chart.VALUE_SETS) == 5
    assert {path.stem for path in chart.GOLDEN.iterdir()} == set(chart.VALUE_SETS)


def test_no_value_is_needed() -> None:
    """Of itself the chart makes what serves, and nothing of other projects."""
    kinds = [each["kind"] for each in objects()]
    assert set(kinds) == {
        *("Deployment", "Service", "Job", "PodDisruptionBudget", "NetworkPolicy", "ServiceAccount", "ConfigMap", "Pod"),
    }
    assert kinds.count("Service") == 2
    assert one("Deployment")["spec"]["replicas"] == 2


@pytest.mark.parametrize("name", chart.VALUE_SETS)
def test_every_pod_is_restricted(name: str) -> None:
    """Pod Security "restricted", a root that nobody writes to, no token of the API server, and requests to plan by."""
    for pod in pods(name).values():
        assert pod["automountServiceAccountToken"] is False
        assert pod["enableServiceLinks"] is False
        assert pod["securityContext"]["runAsNonRoot"] is True
        assert pod["securityContext"]["runAsUser"] == 10_001
        assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
        assert {next(iter(each.keys() - {"name"})) for each in pod["volumes"]} <= {
            *("configMap", "emptyDir", "persistentVolumeClaim", "projected", "secret"),
        }
        for container in pod["containers"]:
            assert container["securityContext"] == {
                "allowPrivilegeEscalation": False,
                "capabilities": {"drop": ["ALL"]},
                "readOnlyRootFilesystem": True,
            }
            assert container["resources"]["requests"].keys() == {"cpu", "memory"}
            written = {each["name"] for each in pod["volumes"] if "emptyDir" in each}
            assert [
                each for each in container["volumeMounts"] if each["mountPath"] == "/tmp" and each["name"] in written
            ]


@pytest.mark.parametrize("name", chart.VALUE_SETS)
def test_the_server_takes_the_environment(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every variable is a setting, and together they are what a server can be started with."""
    given = environment(pods(name)["server"])
    given |= {"FORMGATE_DATABASE_URL": "postgresql://h/d"} if "FORMGATE_DATABASE_URL" in given else {}
    ours = {variable: value for variable, value in given.items() if variable.startswith("FORMGATE_")}
    for variable, value in ours.items():
        monkeypatch.setenv(variable, value)
        assert variable.removeprefix("FORMGATE_").lower() in Settings.model_fields
    settings = Settings()
    assert not settings.listen.startswith("127.")
    assert not settings.http.startswith("127.")
    assert settings.insecure is (name == "mesh")
    assert (settings.tls_cert_file is None) is (name == "mesh")


def test_every_setting_has_a_value_or_is_set_by_the_chart() -> None:
    """A setting that is made for the server is one that an operator can reach; `extraEnv` is for none of ours."""
    schema = json.loads((chart.CHART / "values.schema.json").read_text(encoding="utf-8"))["properties"]["settings"]
    values = {re.sub("[A-Z]", lambda found: f"_{found[0].lower()}", name) for name in schema["properties"]}
    set_here = {
        *("data", "database_url", "redis_url", "listen", "http", "insecure", "policy_dir", "log_format"),
        *("pepper_file", "sealing_key_file", "bootstrap_token_file", "workers", "processes"),
        *("tls_cert_file", "tls_key_file", "tls_client_ca_file", "tls_identities_file"),
        "auth_http",  # has no TLS, so that it is for a proxy in the same pod
    }
    assert values | set_here == Settings.model_fields.keys()


@pytest.mark.parametrize(
    ("words", "processes"),
    [
        ([], "2"),
        (["--set=replicaCount=5"], "5"),
        (["--set=replicaCount=5,workers=4"], "20"),
        (["--set=autoscaling.enabled=true,autoscaling.maxReplicas=7,workers=2,replicaCount=3"], "14"),
        (["--set=replicaCount=0"], None),
    ],
)
def test_the_processes_that_share_limits_follow_the_pods(words: list[str], processes: str | None) -> None:
    """Whoever scales by values can not forget it: without Redis each process admits its share of what remains."""
    if processes is None:
        assert "replicaCount" in refused(*words)
        return
    assert environment(pods("default", *words)["server"])["FORMGATE_PROCESSES"] == processes


class _Cluster(BaseHTTPRequestHandler):
    """As much of an API server as Helm's `lookup` asks: there is one Deployment, of seven pods."""

    answers: ClassVar[dict[str, Object]] = {
        "/version": {"major": "1", "minor": "36", "gitVersion": "v1.36.0"},
        "/api": {"kind": "APIVersions", "versions": ["v1"]},
        "/api/v1": {"kind": "APIResourceList", "groupVersion": "v1", "resources": []},
        "/apis": {
            "kind": "APIGroupList",
            "groups": [{"name": "apps", "versions": [{"groupVersion": "apps/v1", "version": "v1"}]}],
        },
        "/apis/apps/v1": {
            "kind": "APIResourceList",
            "groupVersion": "apps/v1",
            "resources": [{"name": "deployments", "namespaced": True, "kind": "Deployment", "verbs": ["get"]}],
        },
        "/apis/apps/v1/namespaces/access/deployments/formgate": {
            "apiVersion": "apps/v1",
            "kind": "Deployment",
            "metadata": {"name": "formgate", "namespace": "access"},
            "spec": {"replicas": 7},
        },
    }

    def do_GET(self) -> None:
        found = self.answers.get(self.path.partition("?")[0])
        body = json.dumps(found or {"kind": "Status", "status": "Failure", "reason": "NotFound", "code": 404}).encode()
        self.send_response(200 if found else 404)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        """Say nothing."""


@pytest.fixture
def cluster() -> Iterator[str]:
    """The address of an API server."""
    with ThreadingHTTPServer(("127.0.0.1", 0), _Cluster) as server:
        threading.Thread(target=server.serve_forever).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


def test_autoscaling_that_is_turned_on_shrinks_nothing(cluster: str) -> None:
    """An upgrade keeps the pods that there are; what renders without the cluster leaves them to the autoscaler."""
    on = "--set=autoscaling.enabled=true"
    there = ("--dry-run=server", f"--kube-apiserver={cluster}")
    assert one("Deployment", "default", on, *there)["spec"]["replicas"] == 7
    assert "replicas" not in one("Deployment", "default", on)["spec"]
    assert one("Deployment", "default", *there)["spec"]["replicas"] == 2


def test_a_changed_policy_rolls_the_pods() -> None:
    """Policies and identities are read at the start only: the pods' template says which they were."""

    def stamp(name: str, *words: str) -> str:
        return str(one("Deployment", name, *words)["spec"]["template"]["metadata"]["annotations"]["checksum/config"])

    stamps = {
        stamp("default"),
        stamp("default", "--set=policies.ours=name"),
        stamp("default", "--set=policies.ours=other"),
        stamp("mutual-tls"),
        stamp("mutual-tls", "--set=tls.mutual.identities=other"),
    }
    assert len(stamps) == 5
    assert stamp("default") == stamp("default", "--set=settings.logLevel=debug")


def test_policies_and_identities_arrive_as_they_were_written(tmp_path: Path) -> None:
    """The server reads from the ConfigMaps what the values say."""
    for name, text in one("ConfigMap", "production", "--set=dashboard.enabled=false")["data"].items():
        (tmp_path / name).write_text(text, encoding="utf-8")
    assert "acme" in load(tmp_path).by_name
    (found,) = [each for each in objects("mutual-tls") if each["metadata"]["name"] == "formgate-identities"]
    parsed = identities.parse(tmp_path / "identities.toml", found["data"]["identities.toml"].encode(), ("default",))
    assert parsed is not None


@pytest.mark.parametrize("name", chart.VALUE_SETS)
def test_a_pod_has_time_to_drain(name: str) -> None:
    """It serves on until no Service names it, drains, and only much later is it killed."""
    pod = pods(name)["server"]
    (_, pause) = pod["containers"][0]["lifecycle"]["preStop"]["exec"]["command"]
    drain = float(environment(pod)["FORMGATE_DRAIN_SECONDS"])
    assert pod["terminationGracePeriodSeconds"] >= float(pause) + drain + 10
    assert "terminationGracePeriodSeconds" in refused("--set=terminationGracePeriodSeconds=15")


@pytest.mark.parametrize("name", chart.VALUE_SETS)
def test_probes_ask_over_http(name: str) -> None:
    """A kubelet's gRPC probe speaks no TLS."""
    container = pods(name)["server"]["containers"][0]
    assert container["readinessProbe"]["httpGet"] == {"path": "/readyz", "port": "http"}
    for probe in ("livenessProbe", "startupProbe"):
        assert container[probe]["httpGet"] == {"path": "/livez", "port": "http"}
    assert {"name": "http", "containerPort": 9090} in container["ports"]


@pytest.mark.parametrize("name", ["default", "production", "mutual-tls"])
def test_the_migration_needs_nothing_of_a_release_that_is_not_there_yet(name: str) -> None:
    """Before an install there are only Secrets and what hooks make: its account and its policy come first."""
    found = objects(name)
    hooks = {
        each["metadata"]["name"]: each for each in found if "helm.sh/hook" in each["metadata"].get("annotations", {})
    }
    job = one("Job", name, component="migration")
    pod = job["spec"]["template"]["spec"]
    assert job["metadata"]["annotations"]["helm.sh/hook"] == "pre-install,pre-upgrade"
    for kind in ("ServiceAccount", "NetworkPolicy"):
        each = one(kind, name, component="migration")
        assert int(each["metadata"]["annotations"]["helm.sh/hook-weight"]) < 0
        assert each["metadata"]["annotations"]["helm.sh/hook"] == job["metadata"]["annotations"]["helm.sh/hook"]
    assert pod["serviceAccountName"] in hooks
    made = {each["metadata"]["name"] for each in found if each["kind"] == "ConfigMap"}
    assert not [each for each in pod["volumes"] if each.get("configMap", {}).get("name") in made]
    assert pod["containers"][0]["args"] == ["migrate"]
    assert "FORMGATE_DATABASE_URL" in environment(pod)


def test_what_runs_to_its_end_is_where_it_may_write() -> None:
    """The image's own folder is a volume of the server's, which the Job and the test do not have."""
    for component, pod in pods("default").items():
        if component != "server":
            assert pod["containers"][0]["workingDir"] == "/tmp"


def test_the_page_runs_a_migration_after_a_restore() -> None:
    """Its words for `sed` change what the Job of the chart runs, and nothing else."""
    page = (chart.ROOT / "docs/operations/kubernetes.md").read_text(encoding="utf-8")
    (old, new) = re.findall(r"sed 's/(.+)/(.+)/'", page)[0]
    rendered = chart.render("default", "--show-only=templates/migration.yaml")
    changed = rendered.replace(old.replace("\\", ""), new)
    (job,) = [each for each in chart.objects(changed) if each["kind"] == "Job"]
    assert job["spec"]["template"]["spec"]["containers"][0]["args"] == ["migrate", "--restored"]


def test_clients_have_an_authority_of_their_own_name() -> None:
    """Its Secret may call it otherwise than the server's does."""

    def mounted(*words: str) -> Object:
        (found,) = [each for each in pods("mutual-tls", *words)["server"]["volumes"] if each["name"] == "client-ca"]
        (item,) = found["secret"]["items"]
        return dict(item)

    assert mounted() == {"key": "ca.crt", "path": "ca.crt"}
    assert mounted("--set=tls.mutual.caKey=root.pem,tls.caKey=")["key"] == "root.pem"


def test_an_account_of_ones_own_is_used_by_both() -> None:
    """Where none is created, the migration takes the same, and makes none."""
    words = ("--set=serviceAccount.create=false,serviceAccount.name=mine",)
    assert not [each for each in objects("default", *words) if each["kind"] == "ServiceAccount"]
    found = pods("default", *words)
    assert {found["server"]["serviceAccountName"], found["migration"]["serviceAccountName"]} == {"mine"}


def test_embedded_is_one_server_with_a_volume_that_is_kept() -> None:
    """No second pod beside it, not for an instant; and its pepper outlives the release."""
    deployment, claim = one("Deployment", "embedded"), one("PersistentVolumeClaim", "embedded")
    assert deployment["spec"]["replicas"] == 1
    assert deployment["spec"]["strategy"] == {"type": "Recreate"}
    assert claim["metadata"]["annotations"]["helm.sh/resource-policy"] == "keep"
    pod = deployment["spec"]["template"]["spec"]
    (volume,) = [each for each in pod["volumes"] if "persistentVolumeClaim" in each]
    assert volume["persistentVolumeClaim"]["claimName"] == claim["metadata"]["name"]
    (mount,) = [each for each in pod["containers"][0]["volumeMounts"] if each["name"] == volume["name"]]
    given = environment(pod)
    assert given["FORMGATE_DATA"].startswith(f"{mount['mountPath']}/")
    assert not given.keys() & {"FORMGATE_DATABASE_URL", "FORMGATE_REDIS_URL", "FORMGATE_PROCESSES"}
    # Else the kubelet opens the pepper to the group, and the server refuses it.
    assert pod["securityContext"]["fsGroupChangePolicy"] == "OnRootMismatch"
    assert {each["kind"] for each in objects("embedded")}.isdisjoint({"Job", "PodDisruptionBudget"})


def test_secrets_are_files_of_root_and_our_group() -> None:
    """As the server wants them: nobody else may read."""
    for name in ("default", "mutual-tls"):
        pod = pods(name)["server"]
        assert pod["securityContext"]["fsGroup"] == pod["securityContext"]["runAsGroup"]
        kinds = [each.get("projected") or each.get("secret") for each in pod["volumes"]]
        assert {each["defaultMode"] for each in kinds if each} == {0o440}


@pytest.mark.parametrize("name", chart.VALUE_SETS)
def test_nothing_secret_is_rendered(name: str) -> None:
    """No Secret is ever made: they are there, by name."""
    assert not [each for each in objects(name) if each["kind"] == "Secret"]


@pytest.mark.parametrize("name", [each for each in chart.VALUE_SETS if each != "mesh"])
def test_the_network_is_closed_but_for_what_is_named(name: str) -> None:
    """Pods are selected for both ways; the server's gRPC is open to named peers, and to its own test."""
    policies = [each["spec"] for each in objects(name) if each["kind"] == "NetworkPolicy"]
    closed = {each["podSelector"]["matchLabels"]["app.kubernetes.io/component"] for each in policies}
    assert closed == pods(name).keys()
    policy = one("NetworkPolicy", name)["spec"]
    assert policy["policyTypes"] == ["Ingress", "Egress"]
    for rule in policy["ingress"]:
        assert rule["from"], "an empty list would be anybody"
    ports = {port["port"] for rule in policy["egress"] for port in rule["ports"]}
    assert ports >= ({53} if name == "embedded" else {53, 5432, 6379})


def test_both_services_reach_the_servers_only() -> None:
    """The headless one names every pod; a migration's pod or a test's is never called."""
    services = [each for each in objects() if each["kind"] == "Service"]
    assert [each["spec"].get("clusterIP") for each in services] == [None, "None"]
    labels = one("Deployment")["spec"]["template"]["metadata"]["labels"]
    for each in services:
        assert each["spec"]["selector"].items() <= labels.items()
        assert each["spec"]["selector"]["app.kubernetes.io/component"] == "server"


def test_the_certificate_is_for_the_names_that_clients_use() -> None:
    """Both Services, short and long; and `helm test` trusts it under the name that it calls."""
    certificate = one("Certificate", "mutual-tls")["spec"]
    assert {"formgate", "formgate.access.svc", "formgate-headless.access.svc"} <= set(certificate["dnsNames"])
    test = environment(pods("mutual-tls")["test"])
    assert test["FORMGATE_ADDRESS"].rpartition(":")[0] in certificate["dnsNames"]
    (volume,) = [each for each in pods("mutual-tls")["server"]["volumes"] if each["name"] == "tls"]
    assert volume["secret"]["secretName"] == certificate["secretName"]


def _alerts(*words: str) -> list[Object]:
    groups = one("PrometheusRule", "default", *words)["spec"]["groups"]
    return [rule for group in groups for rule in group["rules"] if "alert" in rule]


def test_rules_and_dashboard_are_the_files() -> None:
    """They arrive as they are tested: what looks like a template in them is none.

    But for whose servers must be there, and where the runbooks are.
    """
    spec = one("PrometheusRule", "production")["spec"]
    alerts = (chart.CHART / "files/alerts.yaml").read_text(encoding="utf-8")
    for was, now in (
        ("absent(formgate_build_info)", 'absent(formgate_build_info{namespace="access"})'),
        ("runbook_url: docs/", "runbook_url: https://git.example/formgate/blob/main/docs/"),
    ):
        assert was in alerts
        alerts = alerts.replace(was, now)
    assert spec == yaml.load(alerts, yaml.CSafeLoader)
    paths = {each["annotations"]["runbook_url"] for each in _alerts("--set=prometheusRule.enabled=true")}
    assert {each.partition("#")[0] for each in paths} == {"docs/operations/runbooks.md"}
    (found,) = [each for each in objects("production") if each["metadata"]["name"] == "formgate-dashboard"]
    dashboard = (chart.CHART / "files/dashboard.json").read_text(encoding="utf-8")
    assert json.loads(found["data"]["formgate.json"]) == json.loads(dashboard)


@pytest.mark.parametrize(
    ("words", "told"),
    [
        ("embedded=true,replicaCount=2", "replicaCount must be 1"),
        ("embedded=true,workers=2", "workers must be 1"),
        ("embedded=true,autoscaling.enabled=true", "autoscaling.enabled must be false"),
        ("autoscaling.enabled=true,autoscaling.minReplicas=11", "minReplicas is above"),
        ("tls.enabled=false", "keys and tokens would travel in clear"),
        ("insecure=true", "say one of them"),
        ("tls.enabled=false,insecure=true,tls.mutual.enabled=true", "needs tls.enabled"),
        ("tls.mutual.identities=x", "needs tls.mutual.enabled"),
        ("tls.mutual.enabled=true,tls.caKey=", "tls.mutual.caKey"),
        ("tls.certManager.enabled=true", "issuerRef.name"),
        ("ports.grpc=9090", "can not listen twice"),
        ("preStopSeconds=20,terminationGracePeriodSeconds=30", "must be above"),
    ],
)
def test_what_does_not_go_together_is_refused(words: str, told: str) -> None:
    """And Helm says what is wrong."""
    assert told in refused(f"--set={words}")


WRONG = {
    "replicas=3": "(root): Additional property replicas",
    "nameOverride=Gate": "nameOverride",
    "fullnameOverride=a.b": "fullnameOverride",
    "image.tags=1": "image: Additional property tags",
    "tls.mutual.enable=true": "tls.mutual: Additional property enable",
    "secrets.pepper.value=00": "secrets.pepper: Additional property value",
    "secrets.database.url=postgresql://u:p@h/d": "secrets.database: Additional property url",
    "settings.loglevel=debug": "settings: Additional property loglevel",
    "settings.logLevel=loud": "settings.logLevel",
    "settings.drainSeconds=601": "settings.drainSeconds",
    "workers=0": "workers",
    "replicaCount=-1": "replicaCount",
    "embedded=perhaps": "embedded",
    "service.type=Ingress": "service.type",
    "service.port=70000": "service.port",
    "image.digest=sha256:abc": "image.digest",
    "podDisruptionBudget.maxUnavailable=0": "podDisruptionBudget.maxUnavailable",
    "secrets.redis.existingSecret=Not_A_Name": "secrets.redis.existingSecret",
    "policies.Upper=x": "policies",
    "networkPolicy.database.ports=null": "networkPolicy.database: ports is required",
    "tls.enabled=null": "tls: enabled is required",
    "persistence.size=much": "persistence.size",
    r"podLabels.app\.kubernetes\.io/component=test": "podLabels",
    r"podAnnotations.checksum/config=x": "podAnnotations",
    "prometheusRule.runbookBase=git.example": "prometheusRule.runbookBase",
}


def test_wrong_values_are_refused() -> None:
    """A name that is not there, another type, out of bounds, taken away: each is told, none is taken in silence."""
    told = refused(*(f"--set={words}" for words in WRONG))
    assert [words for words, where in WRONG.items() if f"- {where}" not in told] == []


# ------------------------------------------------------------------------------------------------------- its own pages


def _leaves(values: Object, schema: Object, above: str = "") -> Iterator[str]:
    """Yield each value that has a description of its own."""
    for name, value in values.items():
        known = schema["properties"][name]
        if "description" in known:
            yield f"{above}{name}"
        else:
            assert known["additionalProperties"] is False
            yield from _leaves(value, known, f"{above}{name}.")


def test_every_value_is_documented_and_held_by_the_schema() -> None:
    """README.md, values.yaml and values.schema.json name the same values, in the same order."""
    values = yaml.safe_load((chart.CHART / "values.yaml").read_text(encoding="utf-8"))
    schema = json.loads((chart.CHART / "values.schema.json").read_text(encoding="utf-8"))
    assert schema["additionalProperties"] is False
    found = list(_leaves(values, schema))
    page = (chart.CHART / "README.md").read_text(encoding="utf-8")
    assert re.findall(r"^\| `([\w.]+)` \| \S.* \| \S.* \|$", page, re.MULTILINE) == found
    assert len(found) > 100
    for path, default in re.findall(r"^\| `([\w.]+)` \| `(.+)` \| ", page, re.MULTILINE):
        value = values
        for step in path.split("."):
            value = value[step]
        assert json.loads(default) == value, path


@pytest.mark.parametrize("name", chart.VALUE_SETS)
def test_names_and_labels_are_as_kubernetes_recommends(name: str) -> None:
    """Every object is in the release's namespace, has its labels, and a name that Kubernetes takes."""
    for each in objects(name):
        metadata = each["metadata"]
        assert IDENTITY.fullmatch(metadata["name"])
        assert metadata["namespace"] == "access"
        labels = metadata["labels"]
        assert labels["app.kubernetes.io/name"] == "formgate"
        assert labels["app.kubernetes.io/instance"] == "formgate"
        assert labels["app.kubernetes.io/managed-by"] == "Helm"
        assert labels["app.kubernetes.io/version"]


def test_a_long_name_is_cut() -> None:
    """Whatever the release is called, names with their endings fit."""
    text = chart.helm("template", "r" * 53, chart.CHART).stdout
    names = [each["metadata"]["name"] for each in chart.objects(text)]
    assert len(names) == len(objects())
    assert all(IDENTITY.fullmatch(name) for name in names)
