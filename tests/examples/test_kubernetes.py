"""The example for Kubernetes: valid by its schemas, and its numbers fit together.

`kubernetes-validate` carries the schemas, so no network is needed. The schema of a ServiceMonitor
is the Prometheus operator's, which nobody packs: its few fields are compared with the operator's
documentation here.
"""

import re
import shlex
from pathlib import Path
from typing import Any

import pytest
import yaml

EXAMPLE = Path(__file__).parents[2] / "examples" / "kubernetes"
MANIFESTS = sorted((EXAMPLE / "manifests").glob("*.yaml"))


def read(name: str) -> Any:
    return yaml.safe_load((EXAMPLE / name).read_text(encoding="utf-8"))


@pytest.fixture
def deployment() -> Any:
    return read("manifests/deployment.yaml")["spec"]


@pytest.fixture
def server(deployment: Any) -> Any:
    (container,) = deployment["template"]["spec"]["containers"]
    return container


@pytest.fixture
def options(server: Any) -> dict[str, str]:
    """The options that the server is started with."""
    return dict(
        argument.removeprefix("--").split("=")
        for argument in server["args"]
        if argument.startswith("--")
    )


@pytest.mark.parametrize("path", MANIFESTS, ids=lambda path: path.stem)
@pytest.mark.parametrize("version", ["1.32", "1.37"])
def test_manifests_are_valid(path: Path, version: str) -> None:
    validator = pytest.importorskip(
        "kubernetes_validate", reason="needs kubernetes-validate; the fields are checked below"
    )

    validator.validate(yaml.safe_load(path.read_text(encoding="utf-8")), version, strict=True)


def test_there_is_one_of_each_kind() -> None:
    kinds = [read(f"manifests/{path.name}")["kind"] for path in MANIFESTS]

    assert sorted(kinds) == [
        "Deployment",
        "HorizontalPodAutoscaler",
        "PersistentVolumeClaim",
        "PodDisruptionBudget",
        "Service",
    ]


def test_all_select_the_pods_of_the_deployment(deployment: Any) -> None:
    labels = deployment["template"]["metadata"]["labels"]
    monitor = read("operator/monitor.yaml")

    assert deployment["selector"]["matchLabels"] == labels
    assert read("manifests/service.yaml")["spec"]["selector"] == labels
    assert read("manifests/disruption-budget.yaml")["spec"]["selector"]["matchLabels"] == labels
    # A monitor selects services, by their labels.
    wanted = monitor["spec"]["selector"]["matchLabels"]
    assert read("manifests/service.yaml")["metadata"]["labels"] == wanted


def test_names_lead_to_what_is_there(deployment: Any, server: Any) -> None:
    target = read("manifests/autoscaler.yaml")["spec"]["scaleTargetRef"]
    whole = read("manifests/deployment.yaml")
    volumes = {each["name"]: each for each in deployment["template"]["spec"]["volumes"]}
    (port,) = read("manifests/service.yaml")["spec"]["ports"]

    assert (target["kind"], target["name"]) == (whole["kind"], whole["metadata"]["name"])
    assert "replicas" not in deployment  # an apply would undo what the autoscaler chose
    claim = volumes["bundle"]["persistentVolumeClaim"]["claimName"]
    assert claim == read("manifests/bundle.yaml")["metadata"]["name"]
    assert {each["name"] for each in server["volumeMounts"]} == set(volumes)
    assert port["targetPort"] in {each["name"] for each in server["ports"]}


def test_a_monitor_has_the_fields_that_the_operator_documents() -> None:
    monitor = read("operator/monitor.yaml")
    (endpoint,) = monitor["spec"]["endpoints"]
    (port,) = read("manifests/service.yaml")["spec"]["ports"]

    assert (monitor["apiVersion"], monitor["kind"]) == (
        "monitoring.coreos.com/v1",
        "ServiceMonitor",
    )
    assert endpoint == {"port": port["name"], "path": "/metrics", "interval": "15s"}


def test_requests_under_way_have_time_to_finish(
    deployment: Any, server: Any, options: dict[str, str]
) -> None:
    grace = deployment["template"]["spec"]["terminationGracePeriodSeconds"]
    before = server["lifecycle"]["preStop"]["sleep"]["seconds"]

    assert before + int(options["drain-timeout"]) < grace


def test_threads_are_the_cores_that_are_asked_for(server: Any, options: dict[str, str]) -> None:
    assert options["threads"] == server["resources"]["requests"]["cpu"]
    assert "cpu" not in server["resources"]["limits"]


def test_probes_ask_the_servers_routes(server: Any, options: dict[str, str]) -> None:
    paths = {
        name: server[f"{name}Probe"]["httpGet"] for name in ("startup", "readiness", "liveness")
    }

    assert {name: each["path"] for name, each in paths.items()} == {
        "startup": "/health/ready",
        "readiness": "/health/ready",
        "liveness": "/health/live",
    }
    (port,) = server["ports"]
    assert str(port["containerPort"]) == options["port"]
    assert {each["port"] for each in paths.values()} == {port["name"]}


def test_the_pod_has_no_right_that_it_does_not_need(deployment: Any, server: Any) -> None:
    pod = deployment["template"]["spec"]

    assert pod["securityContext"]["runAsNonRoot"] is True
    assert pod["securityContext"]["runAsUser"] > 0
    assert pod["automountServiceAccountToken"] is False
    assert server["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }
    mounts = {each["mountPath"]: each.get("readOnly", False) for each in server["volumeMounts"]}
    assert mounts == {"/bundle": True, "/tmp": False}


# The image


def instructions() -> list[tuple[str, str]]:
    text = (EXAMPLE / "Dockerfile").read_text(encoding="utf-8")
    lines = re.sub(r"^#.*\n", "", text, flags=re.MULTILINE).replace("\\\n", " ").splitlines()
    pairs = [line.split(maxsplit=1) for line in lines if line.strip()]
    return [(name, rest) for name, rest in pairs]


def test_what_is_copied_into_the_image_is_there_and_is_all_that_is_needed() -> None:
    copied = [
        name
        for instruction, rest in instructions()
        if instruction == "COPY" and not rest.startswith("--from")
        for name in shlex.split(rest)[:-1]
    ]
    root = EXAMPLE.parents[1]

    assert [name for name in copied if not (root / name).exists()] == []
    # The links in pl_compile/ lead to the rooms at the top.
    rooms = {
        path.readlink().parts[1] for path in (root / "pl_compile").iterdir() if path.is_symlink()
    }
    assert rooms <= set(copied)


def test_the_image_runs_as_the_user_of_the_pods_and_holds_no_compiler(deployment: Any) -> None:
    found = instructions()
    last = found[[name for name, _ in found].index("FROM", 1) :]
    context = deployment["template"]["spec"]["securityContext"]

    assert ("USER", f"{context['runAsUser']}:{context['runAsGroup']}") in last
    assert [name for name, _ in last if name in ("RUN", "ADD")] == []
    assert all(":latest" not in rest and ":" in rest for name, rest in found if name == "FROM")


def test_the_image_serves_what_is_mounted(server: Any) -> None:
    found = dict(instructions())
    ports = [str(each["containerPort"]) for each in server["ports"]]

    assert found["ENTRYPOINT"] == '["plc"]'
    assert found["CMD"] == '["serve", "/bundle", "--host", "0.0.0.0"]'
    assert [found["EXPOSE"]] == ports
    assert server["args"][:2] == ["serve", "/bundle"]
