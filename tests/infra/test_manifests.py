"""The Kubernetes manifests and the container file: what they must hold, and that the settings in them are ours."""

from __future__ import annotations

import os
import re
import shlex
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
import yaml

from pipelines.serve.config import ServeConfig
from pipelines.workflows.config import JobConfig
from vlmodel.config import load_config, parse_config

ROOT = Path(__file__).resolve().parents[2]
README = (ROOT / "infra" / "README.md").read_text(encoding="utf-8")
K8S = ROOT / "infra" / "k8s"
CLUSTER_SPEC = {
    "RayCluster": ("spec",),
    "RayJob": ("spec", "rayClusterSpec"),
    "RayService": ("spec", "rayClusterConfig"),
    "RayCronJob": ("spec", "jobTemplate", "rayClusterSpec"),
}
POD_SPEC = {
    "Deployment": ("spec", "template", "spec"),
    "StatefulSet": ("spec", "template", "spec"),
    "CronJob": ("spec", "jobTemplate", "spec", "template", "spec"),
}
RAY_MANIFESTS = ["raycluster.yaml", "raycronjob-retrain.yaml", "rayjob-train.yaml", "rayservice.yaml"]
RESOURCES = [
    (path.name, resource)
    for path in sorted(K8S.glob("*.yaml"))
    if path.name != "kustomization.yaml"
    for resource in yaml.safe_load_all(path.read_text(encoding="utf-8"))
]


def only(file: str, kind: str) -> dict[str, Any]:
    (found,) = (resource for name, resource in RESOURCES if name == file and resource["kind"] == kind)
    return found


def manifest(file: str) -> dict[str, Any]:
    return next(resource for name, resource in RESOURCES if name == file)


def under(tree: dict[str, Any], *path: str) -> dict[str, Any]:
    for key in path:
        tree = tree[key]
    return tree


def cluster(file: str) -> dict[str, Any]:
    return under(manifest(file), *CLUSTER_SPEC[manifest(file)["kind"]])


def ray_pods(file: str) -> Iterator[tuple[str, dict[str, Any]]]:
    yield "head", cluster(file)["headGroupSpec"]["template"]["spec"]
    for group in cluster(file)["workerGroupSpecs"]:
        yield group["groupName"], group["template"]["spec"]


def templates(node: Any) -> Iterator[dict[str, Any]]:
    """Every pod template in a resource, at whatever depth its kind keeps it."""
    if isinstance(node, dict):
        if "containers" in node.get("spec", {}):
            yield node
        for child in node.values():
            yield from templates(child)
    elif isinstance(node, list):
        for child in node:
            yield from templates(child)


PODS = [(f"{file}, {resource['kind']}", pod) for file, resource in RESOURCES for pod in templates(resource)]


def containers(pod: dict[str, Any]) -> list[dict[str, Any]]:
    return [*pod["spec"].get("initContainers", []), *pod["spec"]["containers"]]


def settings(words: list[str]) -> JobConfig:
    """The arguments of a job, parsed as it would parse them."""
    assert words[0] == "--config"
    return load_config(JobConfig, ROOT / words[1], words[2:])


@pytest.mark.parametrize("file", RAY_MANIFESTS)
def test_the_cluster_has_our_ray_and_a_token(file: str) -> None:
    assert manifest(file)["apiVersion"] == "ray.io/v1"
    assert manifest(file)["metadata"]["name"].startswith("raylm")
    assert cluster(file)["rayVersion"] == version("ray")
    assert cluster(file)["authOptions"] == {"mode": "token", "secretName": "raylm-ray-token"}
    for where, pod in ray_pods(file):
        assert pod["securityContext"]["runAsUser"] == 1000, f"{where}: the user of the Containerfile"


@pytest.mark.parametrize(("where", "pod"), PODS)
def test_pods_ask_for_what_they_use_and_for_no_privilege(where: str, pod: dict[str, Any]) -> None:
    spec = pod["spec"]
    assert spec["securityContext"]["runAsNonRoot"] is True, where
    assert spec["securityContext"]["runAsUser"] > 0, where
    assert spec["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}, where
    assert not spec.keys() & {"hostNetwork", "hostPID", "hostIPC"}, where
    assert not [volume for volume in spec["volumes"] if "hostPath" in volume], where
    for container in containers(pod):
        assert {"cpu", "memory"} <= container["resources"]["requests"].keys(), where
        assert "memory" in container["resources"]["limits"], where
        security = container["securityContext"]
        assert security["allowPrivilegeEscalation"] is False, where
        assert security["readOnlyRootFilesystem"] is True, where
        assert security["capabilities"] == {"drop": ["ALL"]}, where
        assert "/tmp" in [mount["mountPath"] for mount in container["volumeMounts"]], f"{where}: nowhere to write"
        assert ":" in container["image"], f"{where}: {container['image']} has no version"
        assert not container["image"].endswith(":latest"), where


@pytest.mark.parametrize(("where", "pod"), PODS)
def test_what_is_mounted_is_there(where: str, pod: dict[str, Any]) -> None:
    resource = next(r for f, r in RESOURCES if where == f"{f}, {r['kind']}")
    claims = {claim["metadata"]["name"] for claim in resource["spec"].get("volumeClaimTemplates", [])}
    volumes = {volume["name"] for volume in pod["spec"]["volumes"]} | claims
    mounted = {mount["name"] for container in containers(pod) for mount in container["volumeMounts"]}
    assert mounted == volumes, where


@pytest.mark.parametrize(("where", "pod"), PODS)
def test_only_who_talks_to_kubernetes_has_its_token(where: str, pod: dict[str, Any]) -> None:
    needs = where == "raycluster.yaml, RayCluster" and pod["spec"]["containers"][0]["name"] == "ray-head"
    assert pod["spec"]["automountServiceAccountToken"] is needs, where


@pytest.mark.parametrize("file", ["mlflow.yaml", "object-store.yaml", "postgres.yaml"])
def test_what_others_depend_on_is_probed(file: str) -> None:
    (pod,) = (pod for where, pod in PODS if where.startswith(file))
    (container,) = pod["spec"]["containers"]
    assert {"readinessProbe", "livenessProbe"} <= container.keys()
    ports = {port["name"] for port in container["ports"]}
    for probe in (container["readinessProbe"], container["livenessProbe"]):
        asked = probe.get("httpGet", probe.get("tcpSocket", {})).get("port")
        assert asked in ports or "exec" in probe


@pytest.mark.parametrize("file", RAY_MANIFESTS)
def test_worker_groups_are_consistent_and_one_has_gpus(file: str) -> None:
    groups = {group["groupName"]: group for group in cluster(file)["workerGroupSpecs"]}
    for group in groups.values():
        assert group["minReplicas"] <= group["replicas"] <= group["maxReplicas"]
    limits = groups["gpu"]["template"]["spec"]["containers"][0]["resources"]["limits"]
    assert limits["nvidia.com/gpu"] == "1"


def test_secrets_come_from_secrets() -> None:
    made = dict(re.findall(r"create secret generic (\S+) (.*)", README.replace("\\\n", " ")))
    used = set()
    for where, pod in PODS:
        for container in containers(pod):
            for variable in container.get("env", []):
                hidden = re.search(r"PASSWORD$|TOKEN$|KEY|SECRET|HASHES", variable["name"])
                assert bool(hidden) == ("valueFrom" in variable), f"{where}: {variable['name']}"
                if hidden:
                    reference = variable["valueFrom"]["secretKeyRef"]
                    assert f"--from-literal={reference['key']}=" in made[reference["name"]]
                    used.add(reference["name"])
            used |= {source["secretRef"]["name"] for source in container.get("envFrom", [])}
        used |= {volume["secret"]["secretName"] for volume in pod["spec"]["volumes"] if "secret" in volume}
    assert used | {"raylm-ray-token"} == made.keys(), "infra/README.md shows how each Secret is made, and no other"
    assert not [file for file, resource in RESOURCES if resource["kind"] == "Secret"]


POLICIES = {r["metadata"]["name"]: r["spec"] for _, r in RESOURCES if r["kind"] == "NetworkPolicy"}


def chosen(selector: dict[str, Any]) -> set[str]:
    """The components whose pods a selector chooses."""
    values = {value for e in selector.get("matchExpressions", []) for value in e["values"]}
    return values or {selector["matchLabels"]["app.kubernetes.io/component"]}


def way(source: str, target: str, port: int) -> bool:
    """Whether pods of one component reach a port of another's: both sides have to let it through."""

    def opens(own: str, other: str, direction: str, side: str) -> bool:
        return any(
            any(other in chosen(peer["podSelector"]) for peer in rule[side])
            and ("ports" not in rule or port in [entry["port"] for entry in rule["ports"]])
            for policy in POLICIES.values()
            if own in chosen(policy["podSelector"])
            for rule in policy.get(direction, [])
            if side in rule and all("namespaceSelector" not in peer for peer in rule[side])
        )

    return opens(source, target, "egress", "to") and opens(target, source, "ingress", "from")


def test_ports_outside_a_pod_are_opened_by_a_policy() -> None:
    """Every pod is chosen by a policy, in both directions, so what no policy names is closed."""
    components = {pod["metadata"]["labels"]["app.kubernetes.io/component"] for _, pod in PODS}
    for direction in ("Ingress", "Egress"):
        of_all = [chosen(spec["podSelector"]) for spec in POLICIES.values() if direction in spec["policyTypes"]]
        assert set().union(*of_all) == components
    for where, pod in PODS:
        assert pod["metadata"]["labels"]["app.kubernetes.io/part-of"] == "raylm", where
    for spec in POLICIES.values():
        for rule in spec.get("egress", []):
            assert "to" in rule or spec is POLICIES["raylm-autoscaler"], "out to everywhere"


def test_who_needs_whom_reaches_it_and_nobody_else_does() -> None:
    for source in ("cluster", "train", "retrain"):
        assert way(source, "mlflow", 5000)
        assert not way(source, "postgres", 5432)
        assert not way(source, "serve", 30000), "a replica's own HTTP, without HAProxy's limits"
        assert not way("serve", source, 6379)
    assert way("retrain", "cluster", 8265)
    assert way("serve", "serve", 30000)
    assert not way("serve", "mlflow", 5000)
    for target, port in (("postgres", 5432), ("object-store", 8333)):
        assert way("mlflow", target, port)
        assert not way("serve", target, port)
        assert not way(target, "mlflow", 5000)


def test_services_lead_to_ports_of_pods() -> None:
    for file, service in RESOURCES:
        if service["kind"] == "Service":
            (pod,) = (
                pod for _, pod in PODS if service["spec"]["selector"].items() <= pod["metadata"]["labels"].items()
            )
            open_ports = {port["containerPort"] for port in pod["spec"]["containers"][0]["ports"]}
            assert {port["port"] for port in service["spec"]["ports"]} <= open_ports, file
            assert service["spec"].get("type", "ClusterIP") == "ClusterIP", f"{file}: reachable from outside"


def test_the_drain_of_a_node_leaves_the_service_up() -> None:
    budget = only("rayservice.yaml", "PodDisruptionBudget")["spec"]
    pods = 1 + sum(group["replicas"] for group in cluster("rayservice.yaml")["workerGroupSpecs"])
    # Kubernetes takes nothing but an integer minAvailable for pods of a controller that it cannot scale.
    assert budget.keys() == {"minAvailable", "selector"}
    assert 1 <= budget["minAvailable"] == pods - 1
    labels = cluster("rayservice.yaml")["headGroupSpec"]["template"]["metadata"]["labels"]
    assert budget["selector"]["matchLabels"].items() <= labels.items()


def test_storage_is_what_the_pods_mount() -> None:
    claim = manifest("storage.yaml")
    assert claim["spec"]["accessModes"] == ["ReadWriteMany"]
    for file in RAY_MANIFESTS:
        for _, pod in ray_pods(file):
            claims = [v["persistentVolumeClaim"]["claimName"] for v in pod["volumes"] if "persistentVolumeClaim" in v]
            assert claims == [claim["metadata"]["name"]]


def test_pods_that_serve_see_models_and_cannot_change_them() -> None:
    for where, pod in ray_pods("rayservice.yaml"):
        (container,) = pod["containers"]
        (mount,) = (mount for mount in container["volumeMounts"] if mount["name"] == "storage")
        assert (mount["subPath"], mount["readOnly"]) == ("models", True), where
        (volume,) = (volume for volume in pod["volumes"] if volume["name"] == "storage")
        assert volume["persistentVolumeClaim"]["readOnly"] is True, where
        tree = yaml.safe_load(only("rayservice.yaml", "RayService")["spec"]["serveConfigV2"])
        args = tree["applications"][0]["args"]
        assert all(Path(args[name]).is_relative_to(mount["mountPath"]) for name in ("model_folder", "golden"))


def test_requests_come_in_through_haproxy() -> None:
    from ray.serve._private import constants

    for where, pod in ray_pods("rayservice.yaml"):
        (container,) = pod["containers"]
        variables = {v["name"]: v["value"] for v in container["env"] if v["name"].startswith("RAY_SERVE_")}
        assert variables["RAY_SERVE_ENABLE_HA_PROXY"] == "1", where
        for name in variables:
            assert hasattr(constants, name), f"{where}: Ray reads no {name}"
        program = ROOT / Path(variables["RAY_SERVE_HAPROXY_BINARY_PATH"]).relative_to(container["workingDir"])
        assert os.access(program, os.X_OK), f"{where}: the image has its files as they are here"
        assert program.read_text(encoding="utf-8").startswith("#!/usr/bin/env python3\n")
        metrics = next(port["containerPort"] for port in container["ports"] if port["name"] == "haproxy")
        assert metrics == int(variables["RAY_SERVE_HAPROXY_METRICS_PORT"])
        assert {"port": metrics} in [
            port for rule in POLICIES["raylm-serve"]["ingress"] for port in rule.get("ports", [])
        ]
        config = ServeConfig()
        longest = config.request_timeout_s + config.shutdown_timeout_s
        assert float(variables["RAY_SERVE_HAPROXY_TIMEOUT_CLIENT_S"]) == config.request_timeout_s + 5
        assert float(variables["RAY_SERVE_HAPROXY_TIMEOUT_SERVER_S"]) == longest


def test_the_training_job_has_valid_settings_and_enough_gpus() -> None:
    spec = manifest("rayjob-train.yaml")["spec"]
    shell, option, script = shlex.split(spec["entrypoint"])
    assert (shell, option) == ("bash", "-c")
    steps = [shlex.split(step) for step in script.split("&&")]
    assert [step[:3] for step in steps] == [["python", "-m", "jobs.index"], ["python", "-m", "jobs.train"]]
    config = settings(steps[1][3:])
    assert load_config(JobConfig, None, steps[0][3:]).data.tars == config.data.tars
    gpus = next(g["replicas"] for g in cluster("rayjob-train.yaml")["workerGroupSpecs"] if g["groupName"] == "gpu")
    assert config.train.gpus_per_worker == 1
    assert config.train.workers <= gpus
    assert yaml.safe_load(spec["runtimeEnvYAML"]) == {"working_dir": "/app"}
    assert config.tracking.uri == "http://mlflow:5000"


def test_both_schedules_retrain_alike() -> None:
    own = shlex.split(under(manifest("raycronjob-retrain.yaml"), "spec", "jobTemplate")["entrypoint"])
    assert own[:3] == ["python", "-m", "jobs.retrain"]
    (submitter,) = under(manifest("cronjob-retrain.yaml"), *POD_SPEC["CronJob"])["containers"]
    arguments = submitter["args"]
    assert own[3:] == arguments[arguments.index("--") + 1 :]
    assert (
        manifest("raycronjob-retrain.yaml")["spec"]["schedule"] == manifest("cronjob-retrain.yaml")["spec"]["schedule"]
    )
    assert settings(own[3:]).tracking.uri == "http://mlflow:5000"
    # The program that the CronJob calls is in the image.
    assert submitter["command"] == ["infra/retrain.sh"]
    assert "COPY infra/retrain.sh infra/" in (ROOT / "infra" / "Containerfile").read_text(encoding="utf-8")
    assert "head-svc:8265" in next(v["value"] for v in submitter["env"] if v["name"] == "RAY_API_SERVER_ADDRESS")


def test_mlflow_answers_to_its_name_and_to_no_other() -> None:
    from mlflow.server.security_utils import is_allowed_host_header

    (container,) = under(only("mlflow.yaml", "Deployment"), *POD_SPEC["Deployment"])["containers"]
    (option,) = (a for a in container["args"] if a.startswith("--allowed-hosts="))
    allowed = option.partition("=")[2].split(",")
    assert is_allowed_host_header(allowed, "mlflow:5000")
    assert is_allowed_host_header(allowed, "localhost:5000")
    assert not is_allowed_host_header(allowed, "evil.example:5000")


def test_what_stands_is_listed_once() -> None:
    listed = yaml.safe_load((K8S / "kustomization.yaml").read_text(encoding="utf-8"))
    assert {image["name"] for image in listed["images"]} == {"raylm"}
    applied_by_hand = {"rayjob-train.yaml", "rayservice.yaml", "raycronjob-retrain.yaml"}
    assert {*listed["resources"]} == {file for file, _ in RESOURCES} - applied_by_hand


def test_the_service_is_what_ray_serve_takes() -> None:
    from ray.serve.config import ControllerOptions
    from ray.serve.schema import ServeDeploySchema

    from pipelines.serve.deployment import deploy

    tree = yaml.safe_load(only("rayservice.yaml", "RayService")["spec"]["serveConfigV2"])
    serve = ServeDeploySchema.model_validate(tree)
    assert serve.controller_options == ControllerOptions(runtime_env={"env_vars": deploy.CONTROLLER_ENVIRONMENT})
    (application,) = serve.applications
    module, _, builder = application.import_path.partition(":")
    assert module == "pipelines.serve.deployment.deploy"
    source = (ROOT / "pipelines/serve/deployment/deploy.py").read_text(encoding="utf-8")
    assert f"def {builder}(" in source
    assert f'APP_NAME = "{application.name}"\n' in source
    assert re.fullmatch("[0-9a-f]{64}", application.args["digest"])
    assert application.args["golden"]
    config = parse_config(ServeConfig, application.args["serve"])
    assert not config.tls.is_active, "KubeRay asks whether it lives in plain HTTP"
    workers = next(g for g in cluster("rayservice.yaml")["workerGroupSpecs"] if g["groupName"] == "cpu")
    cpus = int(workers["template"]["spec"]["containers"][0]["resources"]["requests"]["cpu"])
    assert config.replicas * config.num_cpus <= workers["replicas"] * cpus
    assert config.expose, "a service that other machines reach needs API keys, and this setting demands them"


def test_the_container_installs_by_hash_and_drops_root() -> None:
    lines = (ROOT / "infra" / "Containerfile").read_text(encoding="utf-8").splitlines()
    instructions = [line for line in lines if line and not line.startswith(("#", " "))]
    assert instructions[0] == "FROM python:3.11-slim"
    assert any("--require-hashes" in line and "requirements.lock" in line for line in instructions)
    user = next(i for i, line in enumerate(instructions) if line.startswith("USER "))
    assert instructions[user] == "USER 1000:1000"
    assert not [line for line in instructions[user:] if line.startswith(("RUN", "COPY", "ADD"))]
    for source in (line.split()[1:-1] for line in instructions if line.startswith("COPY")):
        allowed = (ROOT / ".dockerignore").read_text(encoding="utf-8")
        assert all(f"!{path}\n" in allowed for path in source), f".dockerignore keeps {source} out"
