"""The files of deploy/ and examples/docker-config, checked without a container engine or a cluster.

kustomize and docker-compose read them as in earnest; Kubernetes' own schemas and those in deploy/schemas hold
what comes out. The rest is what no schema knows: that names, ports, paths, users and times agree with each
other, with the images and with the settings. Metrics, dashboard and alerts: test_monitoring.py.
"""

from __future__ import annotations

import importlib.util
import json
import re
import shlex
import subprocess
import sys
import threading
import tomllib
from collections.abc import Iterator
from functools import cache
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any, NamedTuple

import jsonschema
import kubernetes_validate
import pytest
import yaml

from gpuprover.cli.parser import build_parser
from gpuprover.config import load_engine_settings
from gpuprover.settings import SETTINGS
from tests.support.deployment import (
    ALERTS,
    DASHBOARD,
    DEPLOY,
    EXAMPLE,
    METRICS_PAGE,
    ROOT,
    Document,
    Refused,
    check_query,
    parse,
    run,
)

KUSTOMIZE = DEPLOY / "kustomize"
OVERLAYS = sorted(path.name for path in (KUSTOMIZE / "overlays").iterdir())
COMPOSE = (DEPLOY / "compose.yaml",)
COMPOSE_GPU = (*COMPOSE, DEPLOY / "compose.gpu.yaml")
COMPOSE_EXAMPLE = (EXAMPLE / "compose.yaml",)

KUBERNETES = ("1.30", "1.32")
"""Releases whose schemas the manifests have to satisfy."""
SERVICE = {"PROVER_HOST", "PROVER_PORT", "PROVER_TOKENS_FILE"}
"""Settings of the HTTP service, which the engine's table lacks."""
PATHS = {"live": "/healthz", "ready": "/readyz", "metrics": "/metrics"}
VERSION = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
IMAGES = {f"gpuprover:{VERSION}": "Dockerfile", f"gpuprover-cuda:{VERSION}": "Dockerfile.cuda"}


def build(folder: Path) -> list[Document]:
    return parse(run("kustomize", "build", folder))


@cache
def overlay(name: str) -> dict[str, Document]:
    """The documents of an overlay by kind; each kind is there once."""
    documents = build(KUSTOMIZE / "overlays" / name)
    kinds = {document["kind"]: document for document in documents}
    assert len(kinds) == len(documents)
    return kinds


@cache
def schemas() -> dict[tuple[str, str], Document]:
    found = [json.loads(path.read_text()) for path in (DEPLOY / "schemas").glob("*.json")]
    for schema in found:
        jsonschema.Draft202012Validator.check_schema(schema)
    return {
        (schema["properties"]["apiVersion"]["const"], schema["properties"]["kind"]["const"]): schema
        for schema in found
    }


def validate(document: Document) -> None:
    """Against the schema in the repository, or Kubernetes' own, strict; what has neither is refused.

    A volume of two kinds, which only the cluster refuses, is refused too.
    """
    try:
        schema = schemas().get((document["apiVersion"], document["kind"]))
        if schema is not None:
            jsonschema.Draft202012Validator(schema).validate(document)
            return
        for release in KUBERNETES:
            kubernetes_validate.validate(document, release, strict=True)
        if document["kind"] == "Deployment":
            for volume in document["spec"]["template"]["spec"]["volumes"]:
                if len(volume) != 2:
                    raise Refused(f"volume {volume['name']} is of {len(volume) - 1} kinds")
    except jsonschema.ValidationError as error:
        raise Refused(f"{error.json_path}: {error.message}") from error
    except kubernetes_validate.SchemaNotFoundError as error:
        raise Refused(error.message) from error


def only(text: str) -> Document:
    (document,) = parse(text)
    return document


def composed(files: tuple[Path, ...], **environment: str) -> Document:
    arguments = [word for path in files for word in ("--file", str(path))]
    return only(run("docker-compose", *arguments, "config", **environment))


@cache
def service(*files: Path) -> Document:
    return composed(files)["services"]["prover"]


@pytest.mark.parametrize("there", [True, False], ids=["on the machine", "nowhere"])
def test_without_debian_the_machines_own_tools_are_taken(
    there: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    spec = importlib.util.spec_from_file_location("install", ROOT / "tests" / "deploy" / "install.py")
    assert spec is not None
    assert spec.loader is not None
    install = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(install)
    machine = tmp_path / "machine"
    machine.mkdir()
    for name in install.TOOLS if there else install.TOOLS[1:]:
        (machine / name).touch(mode=0o755)
    monkeypatch.setenv("PATH", str(machine))
    monkeypatch.setattr(install, "TARGET", tmp_path / "tools")
    assert install.main() == (0 if there else 1)
    assert (tmp_path / "tools" / "installed").exists() == there
    assert len(capsys.readouterr().err.splitlines()) == (0 if there else 1)
    if there:
        assert (tmp_path / "tools" / "bin" / "kustomize").resolve() == machine / "kustomize"


@pytest.mark.parametrize("name", OVERLAYS)
def test_an_overlay_builds_and_every_resource_is_valid(name: str) -> None:
    kinds = overlay(name)
    assert {
        "Namespace",
        "ServiceAccount",
        "Deployment",
        "Service",
        "PodDisruptionBudget",
        "NetworkPolicy",
    } <= {*kinds}
    for document in kinds.values():
        validate(document)


def test_the_overlays_are_those_that_the_documents_name() -> None:
    assert OVERLAYS == ["cpu", "gpu", "keda"]
    text = (ROOT / "docs" / "deployment.md").read_text()
    assert all(f"deploy/kustomize/overlays/{name}" in text for name in OVERLAYS)


@pytest.mark.parametrize(
    "kustomization",
    [
        "commonLabels:\n  app: x\nresources:\n  - a.yaml\n",
        "resources:\n  - a.yaml\npatchesStrategicMerge:\n  - a.yaml\n",
        "resources:\n  - missing.yaml\n",
        "resource:\n  - a.yaml\n",
        "resources:\n  - a.yaml\npatches:\n  - target: {kind: Deployment, name: y}\n    path: missing.yaml\n",
    ],
    ids=["deprecated field", "deprecated patch", "missing file", "misspelt field", "missing patch"],
)
def test_a_warning_of_kustomize_fails(kustomization: str, tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text("apiVersion: v1\nkind: ServiceAccount\nmetadata:\n  name: x\n")
    (tmp_path / "kustomization.yaml").write_text("resources:\n  - a.yaml\n")
    assert build(tmp_path)
    (tmp_path / "kustomization.yaml").write_text(kustomization)
    with pytest.raises(Refused):
        build(tmp_path)


def changed(document: Document, path: str, value: Any) -> Document:
    """A copy with another value at ``a.0.b``; None takes it away."""
    copy = json.loads(json.dumps(document))
    *folders, last = [int(word) if word.isdigit() else word for word in path.split(".")]
    place = copy
    for word in folders:
        place = place[word]
    if value is None:
        del place[last]
    else:
        place[last] = value
    return copy


CONTAINER = "spec.template.spec.containers.0"


@pytest.mark.parametrize(
    ("kind", "path", "value"),
    [
        ("Deployment", "apiVersion", "apps/v1beta1"),
        ("Deployment", f"{CONTAINER}.livenesProbe", {"httpGet": {"path": "/", "port": 1}}),
        ("Deployment", f"{CONTAINER}.startupProbe.failureThreshold", "120"),
        ("Deployment", f"{CONTAINER}.image", 3),
        ("Deployment", f"{CONTAINER}.env.0.valeu", "x"),
        ("Deployment", "spec.selector", None),
        ("Deployment", "spec.template.spec.volumes.0.emptyDir", {}),
        ("NetworkPolicy", "spec.egres", []),
        ("PodDisruptionBudget", "spec.maxUnavailable", True),
        ("Service", "spec.ports.0.port", "eighty"),
        ("ScaledObject", "spec.maxReplicas", 10),
        ("ScaledObject", "spec.maxReplicaCount", "10"),
        ("ScaledObject", "spec.triggers.0.metadata.threshold", 4),
        ("ScaledObject", "spec.triggers.0.metadata.metricName", "queue"),
        ("ScaledObject", "spec.triggers.0.type", "cron"),
        ("ScaledObject", "spec.scaleTargetRef", None),
        ("ScaledObject", "spec.advanced.horizontalPodAutoscalerConfig.behavior.scaleup", {}),
        ("ScaledObject", "apiVersion", "keda.sh/v1"),
    ],
)
def test_a_broken_manifest_is_refused(kind: str, path: str, value: Any) -> None:
    document = overlay("keda")[kind]
    validate(document)
    with pytest.raises(Refused):
        validate(changed(document, path, value))


def test_a_key_that_stands_twice_is_refused() -> None:
    with pytest.raises(Refused, match="twice"):
        parse("a: 1\nb: 2\na: 3\n")


def test_the_base_is_plain_resources_and_overlays_are_patches() -> None:
    for path in KUSTOMIZE.rglob("kustomization.yaml"):
        (document,) = parse(path.read_text())
        assert set(document) <= {"apiVersion", "kind", "namespace", "resources", "patches", "images"}
    base = build(KUSTOMIZE / "base")
    assert "ScaledObject" not in {document["kind"] for document in base}


class Container(NamedTuple):
    """A container of the service, whichever file describes it."""

    image: str
    command: list[str]
    environment: dict[str, str]
    port: int
    mounts: set[str]
    """Folders that are writable, or hold files from outside."""
    read_only: bool
    user: int
    seconds: float
    """From the signal, or what comes before it, to being killed."""
    before_signal: float
    cpus: tuple[float, float]
    """Requested or reserved, and at most."""
    memory: tuple[int, int]


UNITS = {"Gi": 1 << 30, "Mi": 1 << 20}


def quantity(text: str) -> float:
    number, unit = re.fullmatch(r"([0-9.]+)([GM]i)?", text).groups()  # type: ignore[union-attr]
    return float(number) * UNITS.get(unit, 1)


def seconds(text: str) -> float:
    """Of Go's durations: ``10m30s``."""
    parts = re.findall(r"([0-9.]+)([hms])", text)
    assert "".join(number + unit for number, unit in parts) == text
    return sum(float(number) * {"h": 3600, "m": 60, "s": 1}[unit] for number, unit in parts)


def of_kubernetes(name: str) -> Container:
    pod = overlay(name)["Deployment"]["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    assert all(set(entry) == {"name", "value"} for entry in container["env"])
    resources = container["resources"]
    return Container(
        image=container["image"],
        command=container["args"],
        environment={entry["name"]: entry["value"] for entry in container["env"]},
        port=container["ports"][0]["containerPort"],
        mounts={mount["mountPath"] for mount in container["volumeMounts"]},
        read_only=container["securityContext"]["readOnlyRootFilesystem"],
        user=pod["securityContext"]["runAsUser"],
        seconds=pod["terminationGracePeriodSeconds"],
        before_signal=float(container["lifecycle"]["preStop"]["exec"]["command"][1]),
        cpus=(quantity(resources["requests"]["cpu"]), quantity(resources["limits"]["cpu"])),
        memory=(int(quantity(resources["requests"]["memory"])), int(quantity(resources["limits"]["memory"]))),
    )


def of_compose(files: tuple[Path, ...]) -> Container:
    found = service(*files)
    resources = found["deploy"]["resources"]
    pair = ("reservations", "limits")
    return Container(
        image=found["image"],
        command=found["command"],
        environment={name: value for name, value in found["environment"].items() if value is not None},
        port=found["ports"][0]["target"],
        mounts={
            *(volume["target"] for volume in found["volumes"]),
            *(text.split(":")[0] for text in found["tmpfs"]),
            *(secret["target"] for secret in found["secrets"]),
        },
        read_only=found["read_only"],
        user=int(found["user"].split(":")[0]),
        seconds=seconds(found["stop_grace_period"]),
        before_signal=0,
        cpus=tuple(float(resources[part]["cpus"]) for part in pair),  # type: ignore[arg-type]
        memory=tuple(int(resources[part]["memory"]) for part in pair),  # type: ignore[arg-type]
    )


PLACES = [*(f"kustomize {name}" for name in OVERLAYS), "compose", "compose gpu", "compose example"]


@pytest.fixture(params=PLACES)
def container(request: pytest.FixtureRequest) -> Container:
    kind, _, name = request.param.partition(" ")
    if kind == "kustomize":
        return of_kubernetes(name)
    return of_compose({"": COMPOSE, "gpu": COMPOSE_GPU, "example": COMPOSE_EXAMPLE}[name])


def dockerfile(image: str) -> str:
    return (ROOT / IMAGES[image]).read_text()


def test_the_image_is_one_of_ours_with_a_version(container: Container) -> None:
    text = dockerfile(container.image)
    assert f"-t {container.image} " in text, "the Dockerfile says how it is built under this name"
    assert json.loads(re.findall(r"^ENTRYPOINT (.*)", text, re.M)[0]) == ["gpuprover"]
    assert container.command == ["serve"]
    assert str(container.port) in re.findall(r"^EXPOSE (\d+)", text, re.M)
    assert str(container.user) in re.findall(r"^USER (\d+)", text, re.M)


def test_every_variable_is_a_setting_with_a_value_it_can_have(container: Container) -> None:
    variables = {setting.variable for setting in SETTINGS} | SERVICE
    assert {name for name in container.environment if name.startswith("PROVER_")} == {*container.environment}
    assert set(container.environment) <= variables
    settings = load_engine_settings({}, container.environment)
    assert str(settings.circuit_keys_path) in container.mounts


def test_the_port_is_the_services(container: Container) -> None:
    assert container.environment["PROVER_PORT"] == str(container.port)
    assert container.environment["PROVER_HOST"] == "0.0.0.0", "else nobody outside the container reaches it"


def test_what_has_to_be_written_is_on_a_volume(container: Container) -> None:
    assert container.read_only
    text = dockerfile(container.image)
    volumes = set(re.findall(r"^VOLUME (\S+)", text, re.M))
    assert volumes | {"/tmp"} <= container.mounts
    for name in ("GPUPROVER_CACHE_DIR", "XDG_CACHE_HOME"):
        (folder,) = re.findall(rf"{name}=(\S+)", text)
        assert any(Path(folder).is_relative_to(volume) for volume in volumes)


def test_tokens_come_from_a_file_that_is_mounted(container: Container) -> None:
    path = Path(container.environment["PROVER_TOKENS_FILE"])
    assert {str(path), str(path.parent)} & container.mounts
    assert not any("TOKEN" in name and "FILE" not in name for name in container.environment)


def test_a_proof_has_the_time_to_end(container: Container) -> None:
    settings = load_engine_settings({}, container.environment)
    assert settings.sources["job_timeout"] == settings.sources["grace_period"].replace(
        "GRACE_PERIOD", "JOB_TIMEOUT"
    )
    assert settings.job_timeout <= settings.grace_period, "what was accepted is answered"
    assert container.before_signal + settings.grace_period + 20 <= container.seconds


def test_resources_are_bounded(container: Container) -> None:
    for low, high in (container.cpus, container.memory):
        assert 0 < low <= high
    if "cuda" not in container.image:
        assert container.cpus == (2, 4)
        assert container.memory == (4 << 30, 8 << 30)


@pytest.mark.parametrize(
    "line",
    [
        "    read_onyl: true\n",
        "    image: gpuprover:${NOT_SET}\n",
        "    depends_on: [nobody]\n",
        "    secrets: [nobody]\n",
        "    stop_grace_period: soon\n",
    ],
)
def test_a_broken_compose_file_is_refused(line: str, tmp_path: Path) -> None:
    file = tmp_path / "compose.yaml"
    file.write_text("services:\n  prover:\n    image: gpuprover:1\n")
    assert composed((file,))
    file.write_text(f"services:\n  prover:\n    platform: linux\n{line}")
    with pytest.raises(Refused):
        composed((file,))


@pytest.mark.parametrize("files", [COMPOSE, COMPOSE_GPU])
def test_compose_keeps_witnesses_in_memory_and_the_container_small(files: tuple[Path, ...]) -> None:
    found = service(*files)
    limits = found["deploy"]["resources"]["limits"]
    assert found["memswap_limit"] == limits["memory"], "no swap"
    assert found["ulimits"]["core"] == {"soft": 0, "hard": 0}
    assert found["cap_drop"] == ["ALL"]
    assert found["security_opt"] == ["no-new-privileges:true"]
    assert limits["pids"] > 0
    assert all(port["host_ip"] == "127.0.0.1" for port in found["ports"])
    (keys,) = [volume for volume in found["volumes"] if volume["target"] == "/keys"]
    assert keys["read_only"]
    assert "user" not in found.get("build", {})
    assert found["build"]["dockerfile"] == IMAGES[found["image"]]
    assert Path(found["build"]["context"]) == ROOT


def test_the_override_adds_a_gpu_and_nothing_else() -> None:
    before, after = service(*COMPOSE), service(*COMPOSE_GPU)
    devices = after["deploy"]["resources"]["reservations"].pop("devices")
    try:
        assert devices == [{"driver": "nvidia", "count": 1, "capabilities": ["gpu"]}]
        different = {name for name in after if before.get(name) != after[name]}
        assert different == {"image", "build", "environment"}
        assert (
            load_engine_settings({}, {"PROVER_DEVICE": after["environment"]["PROVER_DEVICE"]}).device
            == "auto"
        )
    finally:
        after["deploy"]["resources"]["reservations"]["devices"] = devices


@pytest.fixture
def answers() -> Iterator[dict[str, Any]]:
    """A server on a free port that answers with the status in ``status`` and notes what it was asked."""
    state: dict[str, Any] = {"status": 200, "asked": []}

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            state["asked"].append(self.path)
            self.send_response(state["status"])
            self.end_headers()

        def log_message(self, *arguments: object) -> None:
            pass

    server = HTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.05,))
    thread.start()
    state["port"] = server.server_port
    yield state
    server.shutdown()
    thread.join()
    server.server_close()


def test_the_health_check_of_compose_asks_whether_the_service_is_ready(answers: dict[str, Any]) -> None:
    check = service(*COMPOSE)["healthcheck"]
    kind, program, *arguments = check["test"]
    assert (kind, program) == ("CMD", "python"), "the image has no shell tools for this"
    port = service(*COMPOSE)["environment"]["PROVER_PORT"]
    assert f":{port}/" in arguments[-1]
    arguments[-1] = arguments[-1].replace(f":{port}/", f":{answers['port']}/")

    def healthy() -> bool:
        done = subprocess.run([sys.executable, *arguments], capture_output=True, timeout=60, check=False)
        return done.returncode == 0

    assert healthy()
    answers["status"] = 503
    assert not healthy()
    assert answers["asked"] == [PATHS["ready"]] * 2
    assert seconds(check["start_period"]) >= 600


def test_the_example_passes_its_settings_on() -> None:
    lines = [line for line in (EXAMPLE / "prover.env").read_text().splitlines() if line and line[0] != "#"]
    names = [line.partition("=")[0] for line in lines]
    assert names
    assert len(names) == len(set(names))
    for name in names:
        value = {"CIRCUIT_KEYS": "/a", "TOKENS": "/b"}.get(name, "5")
        found = composed(COMPOSE_GPU, **{name: value})
        if name.startswith("PROVER_"):
            assert found["services"]["prover"]["environment"][name] == value
        else:
            assert value in json.dumps(found)
    file = ["--env-file", EXAMPLE / "prover.env", "--file", EXAMPLE / "compose.yaml"]
    found = only(run("docker-compose", *file, "config"))
    given = found["services"]["prover"]["environment"]
    assert load_engine_settings({}, {name: value or "" for name, value in given.items()}).queue_limit == 100
    images = {name: entry["image"] for name, entry in found["services"].items()}
    assert all(re.fullmatch(r"[a-z/-]+:v?\d+\.\d+\.\d+", image) for image in images.values()), images
    assert set(images) == {"prover", "prometheus", "grafana"}


def test_prometheus_and_grafana_find_what_they_need() -> None:
    found = composed(COMPOSE_EXAMPLE)["services"]

    def mounted(name: str) -> dict[str, Path]:
        return {v["target"]: Path(v["source"]) for v in found[name]["volumes"] if v["type"] == "bind"}

    for name in ("prometheus", "grafana"):
        assert all(path.exists() for path in mounted(name).values())
    (scrape,) = yaml.safe_load((EXAMPLE / "prometheus.yml").read_text())["scrape_configs"]
    port = found["prover"]["environment"]["PROVER_PORT"]
    assert scrape["static_configs"] == [{"targets": [f"prover:{port}"]}]
    assert scrape["metrics_path"] == PATHS["metrics"]
    job = f'job="{scrape["job_name"]}"'
    assert job in ALERTS.read_text()
    assert all(job in panel["targets"][0]["expr"] for panel in json.loads(DASHBOARD.read_text())["panels"])
    folder = mounted("grafana")
    (provider,) = yaml.safe_load((EXAMPLE / "grafana/provisioning/dashboards/gpuprover.yaml").read_text())[
        "providers"
    ]
    assert folder[provider["options"]["path"]] == DASHBOARD.parent
    (source,) = yaml.safe_load((EXAMPLE / "grafana/provisioning/datasources/prometheus.yaml").read_text())[
        "datasources"
    ]
    assert source["url"] == f"http://prometheus:{found['prometheus']['ports'][0]['target']}"


@pytest.mark.parametrize("name", OVERLAYS)
def test_probes_ask_the_services_paths_and_leave_time_to_warm_up(name: str) -> None:
    (found,) = overlay(name)["Deployment"]["spec"]["template"]["spec"]["containers"]
    asked = {kind: found[kind]["httpGet"] for kind in ("startupProbe", "livenessProbe", "readinessProbe")}
    assert {get["port"] for get in asked.values()} == {"http"}
    assert found["ports"][0]["name"] == "http"
    assert asked["livenessProbe"]["path"] == PATHS["live"]
    assert asked["readinessProbe"]["path"] == asked["startupProbe"]["path"] == PATHS["ready"]
    startup, live = found["startupProbe"], found["livenessProbe"]
    # The engine gives a worker this long to compile and to load; there are two of them, one after the other.
    wanted = 2 * load_engine_settings({}, {}).init_timeout
    assert startup["periodSeconds"] * startup["failureThreshold"] >= wanted
    assert overlay(name)["Deployment"]["spec"]["progressDeadlineSeconds"] > wanted
    assert live["periodSeconds"] * live["failureThreshold"] >= 60


@pytest.mark.parametrize("name", OVERLAYS)
def test_pods_have_no_rights(name: str) -> None:
    kinds = overlay(name)
    pod = kinds["Deployment"]["spec"]["template"]["spec"]
    (found,) = pod["containers"]
    assert kinds["ServiceAccount"]["automountServiceAccountToken"] is False
    assert pod["automountServiceAccountToken"] is False
    assert pod["serviceAccountName"] == kinds["ServiceAccount"]["metadata"]["name"]
    # A Service named prover would set PROVER_PORT to an address.
    assert pod["enableServiceLinks"] is False
    security = pod["securityContext"]
    assert security["runAsNonRoot"] is True
    assert security["seccompProfile"] == {"type": "RuntimeDefault"}
    assert security["fsGroup"] == security["runAsGroup"], "volumes are writable for the user"
    assert found["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }
    assert not {"hostNetwork", "hostPID", "hostIPC"} & set(pod)
    assert kinds["Namespace"]["metadata"]["labels"]["pod-security.kubernetes.io/enforce"] == "restricted"


@pytest.mark.parametrize("name", OVERLAYS)
def test_volumes_are_mounted_and_bounded(name: str) -> None:
    pod = overlay(name)["Deployment"]["spec"]["template"]["spec"]
    mounts = {mount["name"]: mount for mount in pod["containers"][0]["volumeMounts"]}
    volumes = {volume["name"]: volume for volume in pod["volumes"]}
    assert set(mounts) == set(volumes)
    for volume_name, volume in volumes.items():
        if "emptyDir" in volume:
            assert quantity(volume["emptyDir"]["sizeLimit"]) <= 2 << 30
            assert "readOnly" not in mounts[volume_name]
        else:
            assert mounts[volume_name]["readOnly"] is True
    assert volumes["tokens"]["secret"]["defaultMode"] == 0o440
    text = (ROOT / "docs" / "deployment.md").read_text()
    for thing in (
        volumes["tokens"]["secret"]["secretName"],
        volumes["keys"]["persistentVolumeClaim"]["claimName"],
    ):
        assert thing in text, "what the manifests expect and do not make"


@pytest.mark.parametrize("name", OVERLAYS)
def test_selectors_meet_the_pods(name: str) -> None:
    kinds = overlay(name)
    template = kinds["Deployment"]["spec"]["template"]
    labels = template["metadata"]["labels"]
    assert kinds["Deployment"]["spec"]["selector"]["matchLabels"] == labels
    assert kinds["Service"]["spec"]["selector"] == labels
    assert kinds["PodDisruptionBudget"]["spec"]["selector"]["matchLabels"] == labels
    assert kinds["NetworkPolicy"]["spec"]["podSelector"]["matchLabels"] == labels
    affinity = template["spec"]["affinity"]
    (apart,) = affinity["podAntiAffinity"]["preferredDuringSchedulingIgnoredDuringExecution"]
    assert apart["podAffinityTerm"]["labelSelector"]["matchLabels"] == labels
    assert kinds["Service"]["spec"]["ports"][0]["targetPort"] == "http"
    namespaces = {document["metadata"].get("namespace") for document in kinds.values()}
    assert namespaces == {kinds["Namespace"]["metadata"]["name"], None}
    (scrape,) = yaml.safe_load((DEPLOY / "prometheus" / "scrape-kubernetes.yaml").read_text())[
        "scrape_configs"
    ]
    (discovery,) = scrape["kubernetes_sd_configs"]
    assert {*discovery["namespaces"]["names"], None} == namespaces
    keep = next(rule for rule in scrape["relabel_configs"] if rule.get("action") == "keep")
    port = template["spec"]["containers"][0]["ports"][0]["name"]
    assert keep["regex"] == f"{labels['app.kubernetes.io/name']};{port}"
    assert scrape["metrics_path"] == PATHS["metrics"]
    assert f'job="{scrape["job_name"]}"' in ALERTS.read_text()


@pytest.mark.parametrize("name", OVERLAYS)
def test_nodes_can_be_dedicated_and_nothing_goes_out(name: str) -> None:
    kinds = overlay(name)
    pod = kinds["Deployment"]["spec"]["template"]["spec"]
    (preferred,) = pod["affinity"]["nodeAffinity"]["preferredDuringSchedulingIgnoredDuringExecution"]
    (term,) = preferred["preference"]["matchExpressions"]
    taint = {"key": term["key"], "operator": "Equal", "value": term["values"][0], "effect": "NoSchedule"}
    assert taint in pod["tolerations"]
    policy = kinds["NetworkPolicy"]["spec"]
    assert policy["policyTypes"] == ["Ingress", "Egress"]
    assert policy["egress"] == []
    assert all(rule["from"] and rule["ports"] for rule in policy["ingress"])
    assert kinds["Service"]["spec"]["sessionAffinity"] == "ClientIP"
    assert kinds["PodDisruptionBudget"]["spec"]["maxUnavailable"] == 1


def test_the_gpu_overlay_takes_whole_gpus() -> None:
    spec = overlay("gpu")["Deployment"]["spec"]
    resources = spec["template"]["spec"]["containers"][0]["resources"]
    assert resources["limits"]["nvidia.com/gpu"] == resources["requests"]["nvidia.com/gpu"] == "1"
    assert {"key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoSchedule"} in spec["template"][
        "spec"
    ]["tolerations"]
    assert spec["strategy"]["rollingUpdate"]["maxSurge"] == 0, (
        "a second pod would wait for the first one's GPU"
    )
    for name in ("cpu", "keda"):
        assert "nvidia" not in json.dumps(overlay(name))


def test_keda_scales_the_deployment_on_the_queue() -> None:
    kinds = overlay("keda")
    spec, deployment = kinds["ScaledObject"]["spec"], kinds["Deployment"]
    assert spec["scaleTargetRef"] == {
        "apiVersion": deployment["apiVersion"],
        "kind": "Deployment",
        "name": deployment["metadata"]["name"],
    }
    assert "replicas" not in deployment["spec"], "applied again, it would undo what KEDA has set"
    assert "replicas" in overlay("cpu")["Deployment"]["spec"]
    assert 1 <= spec["minReplicaCount"] <= spec["fallback"]["replicas"] <= spec["maxReplicaCount"]
    (trigger,) = spec["triggers"]
    query = trigger["metadata"]["query"]
    assert "prover_queued_tasks" in query
    assert f'namespace="{kinds["Namespace"]["metadata"]["name"]}"' in query
    check_query(query)
    # The longest proof ends before its pod is killed, however often KEDA scales down.
    assert trigger["metadata"]["ignoreNullValues"] == "false"


PAGES = [ROOT / "docs" / "deployment.md", METRICS_PAGE, EXAMPLE / "README.md"]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_a_page_names_what_exists(page: Path) -> None:
    text = page.read_text()
    variables = {setting.variable for setting in SETTINGS} | SERVICE
    assert set(re.findall(r"\bPROVER_\w+", text)) <= variables
    for link, anchor in re.findall(r"\]\(([^)#:]+)(?:#([^)]*))?\)", text):
        target = page.parent / link
        assert target.exists(), link
        headings = re.findall(r"^#+ (.*)", target.read_text(), re.M) if anchor else []
        assert not anchor or anchor in {re.sub(r"[^\w -]", "", h).lower().replace(" ", "-") for h in headings}
    for path in re.findall(r"\b(?:deploy|examples)/[\w./-]*\w", text):
        assert (ROOT / path).exists() or path in (
            "deploy/secrets/tokens",
            "deploy/secrets",
            "deploy/circuit-keys",
        ), path
    for _, block in re.findall(r"^```(\w*)\n(.*?)^```$", text, re.M | re.S):
        for line in re.findall(r"^gpuprover (.*)", block, re.M):
            build_parser().parse_args(shlex.split(line))


def test_patches_in_the_documents_apply(tmp_path: Path) -> None:
    """The YAML of docs/deployment.md, each as a patch of the overlay that it is shown for."""
    text = PAGES[0].read_text()
    blocks = re.findall(r"<!-- patch of (\w+) -->\n+```yaml\n(.*?)^```", text, re.M | re.S)
    assert blocks
    for number, (name, block) in enumerate(blocks):
        folder = KUSTOMIZE.relative_to(ROOT)
        for path in (ROOT / folder).rglob("*.yaml"):
            target = tmp_path / str(number) / path.relative_to(ROOT)
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(path.read_bytes())
        mine = tmp_path / str(number) / folder / "overlays" / "mine"
        mine.mkdir()
        (mine / "patch.yaml").write_text(block)
        (mine / "kustomization.yaml").write_text(
            f"resources:\n  - ../{name}\npatches:\n  - path: patch.yaml\n"
        )
        documents = build(mine)
        for document in documents:
            validate(document)
        assert {document["kind"]: document for document in documents} != overlay(name), "it changes something"
