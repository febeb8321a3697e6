"""The Kubernetes manifests and the container file: what they must hold, and that the settings in them are ours."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
import yaml

from jobs.config import JobConfig
from pipelines.serve.config import ServeConfig
from vlmodel.config import load, parse

ROOT = Path(__file__).resolve().parents[2]
K8S = ROOT / "infra" / "k8s"
CLUSTER_SPEC = {"RayCluster": (), "RayJob": ("rayClusterSpec",), "RayService": ("rayClusterConfig",)}
RAY_MANIFESTS = ["raycluster.yaml", "rayjob-train.yaml", "rayservice.yaml"]


def manifest(file: str) -> dict[str, Any]:
    documents = list(yaml.safe_load_all((K8S / file).read_text(encoding="utf-8")))
    assert len(documents) == 1, f"{file}: one resource a file"
    return documents[0]


def cluster(file: str) -> dict[str, Any]:
    spec = manifest(file)["spec"]
    for key in CLUSTER_SPEC[manifest(file)["kind"]]:
        spec = spec[key]
    return spec


def pods(file: str) -> Iterator[tuple[str, dict[str, Any]]]:
    yield "head", cluster(file)["headGroupSpec"]["template"]["spec"]
    for group in cluster(file)["workerGroupSpecs"]:
        yield group["groupName"], group["template"]["spec"]


def test_every_manifest_is_tested() -> None:
    assert sorted(path.name for path in K8S.glob("*")) == [*RAY_MANIFESTS, "storage.yaml"]


@pytest.mark.parametrize("file", RAY_MANIFESTS)
def test_the_cluster_has_our_ray_and_a_token(file: str) -> None:
    assert manifest(file)["apiVersion"] == "ray.io/v1"
    assert manifest(file)["metadata"]["name"].startswith("raylm")
    assert cluster(file)["rayVersion"] == version("ray")
    assert cluster(file)["authOptions"] == {"mode": "token", "secretName": "raylm-ray-token"}


@pytest.mark.parametrize("file", RAY_MANIFESTS)
def test_pods_ask_for_what_they_use_and_for_no_privilege(file: str) -> None:
    for where, pod in pods(file):
        (container,) = pod["containers"]
        assert {"cpu", "memory"} <= container["resources"]["requests"].keys(), where
        assert container["resources"]["limits"]["memory"] == container["resources"]["requests"]["memory"], where
        assert pod["securityContext"]["runAsNonRoot"] is True, where
        assert pod["securityContext"]["runAsUser"] == 1000, where
        assert container["securityContext"]["allowPrivilegeEscalation"] is False, where
        assert container["securityContext"]["capabilities"] == {"drop": ["ALL"]}, where
        assert {mount["name"] for mount in container["volumeMounts"]} == {v["name"] for v in pod["volumes"]}, where
        assert re.fullmatch(r"raylm:\d+\.\d+\.\d+", container["image"]), where


@pytest.mark.parametrize("file", RAY_MANIFESTS)
def test_worker_groups_are_consistent_and_one_has_gpus(file: str) -> None:
    groups = {group["groupName"]: group for group in cluster(file)["workerGroupSpecs"]}
    for group in groups.values():
        assert group["minReplicas"] <= group["replicas"] <= group["maxReplicas"]
    limits = groups["gpu"]["template"]["spec"]["containers"][0]["resources"]["limits"]
    assert limits["nvidia.com/gpu"] == "1"


@pytest.mark.parametrize("file", RAY_MANIFESTS)
def test_no_secret_stands_in_a_manifest(file: str) -> None:
    for where, pod in pods(file):
        for variable in pod["containers"][0].get("env", []):
            assert "secretKeyRef" in variable["valueFrom"], f"{file}, {where}: {variable['name']}"


def test_storage_is_what_the_pods_mount() -> None:
    claim = manifest("storage.yaml")
    assert claim["spec"]["accessModes"] == ["ReadWriteMany"]
    for file in RAY_MANIFESTS:
        for _, pod in pods(file):
            claims = [v["persistentVolumeClaim"]["claimName"] for v in pod["volumes"] if "persistentVolumeClaim" in v]
            assert claims == [claim["metadata"]["name"]]


def test_the_training_job_has_valid_settings_and_enough_gpus() -> None:
    spec = manifest("rayjob-train.yaml")["spec"]
    shell, option, script = shlex.split(spec["entrypoint"])
    assert (shell, option) == ("bash", "-c")
    steps = [shlex.split(step) for step in script.split("&&")]
    assert [step[:3] for step in steps] == [["python", "-m", "jobs.index"], ["python", "-m", "jobs.train"]]
    assert steps[1][3] == "--config"
    config = load(JobConfig, ROOT / steps[1][4], steps[1][5:])
    assert load(JobConfig, None, steps[0][3:]).data.tars == config.data.tars
    gpus = next(g["replicas"] for g in cluster("rayjob-train.yaml")["workerGroupSpecs"] if g["groupName"] == "gpu")
    assert config.train.gpu
    assert config.train.workers <= gpus
    assert yaml.safe_load(spec["runtimeEnvYAML"]) == {"working_dir": "/app"}


def test_the_service_is_what_ray_serve_takes() -> None:
    from ray.serve.schema import ServeDeploySchema

    tree = yaml.safe_load(manifest("rayservice.yaml")["spec"]["serveConfigV2"])
    (application,) = ServeDeploySchema.model_validate(tree).applications
    module, _, builder = application.import_path.partition(":")
    assert module == "pipelines.serve.deploy"
    assert f"def {builder}(" in (ROOT / "pipelines/serve/deploy.py").read_text(encoding="utf-8")
    config = parse(ServeConfig, application.args["serve"])
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
