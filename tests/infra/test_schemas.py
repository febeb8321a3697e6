"""Every manifest against the schemas of Kubernetes and of the operators whose kinds it uses."""

from __future__ import annotations

import copy
import json
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any

import pytest
import yaml
from jsonschema import Draft202012Validator
from referencing import Registry, Resource

kubernetes_validate = pytest.importorskip("kubernetes_validate", reason="needs the extra `manifests`")

INFRA = Path(__file__).resolve().parents[2] / "infra"
OPERATORS = Resource.from_contents(
    json.loads(Path(__file__).with_name("schemas").joinpath("operators.json").read_text(encoding="utf-8"))
)
RESOURCES = [
    pytest.param(resource, id=f"{path.stem}-{resource['kind']}-{resource['metadata']['name']}")
    for path in sorted([*INFRA.glob("k8s/*.yaml"), *INFRA.glob("monitoring/*.yaml")])
    for resource in yaml.safe_load_all(path.read_text(encoding="utf-8"))
    if "kind" in resource  # kustomization.yaml and prometheus.yaml have none
]
# The oldest that the manifests are meant for, and the newest that the package knows.
VERSIONS = ["1.30", kubernetes_validate.latest_version()]


@cache
def registry(version: str) -> Registry[Any]:
    full = next(v for v in kubernetes_validate.utils.all_versions() if v.startswith(version))
    folder = files("kubernetes_validate").joinpath(f"kubernetes-json-schema/v{full}-local-strict")
    definitions = json.loads(folder.joinpath("_definitions.json").read_text(encoding="utf-8"))
    return Registry().with_resources(
        [("_definitions.json", Resource.from_contents(definitions)), ("operators.json", OPERATORS)]
    )


def validate(resource: dict[str, Any], version: str) -> None:
    if resource["kind"] in OPERATORS.contents["$defs"]:
        schema = {
            "$schema": "https://json-schema.org/draft/2020-12/schema",
            "$ref": f"operators.json#/$defs/{resource['kind']}",
        }
        Draft202012Validator(schema, registry=registry(version)).validate(resource)
    else:
        kubernetes_validate.validate(resource, version, strict=True)


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("resource", RESOURCES)
def test_manifest_fits_its_schema(resource: dict[str, Any], version: str) -> None:
    validate(resource, version)


@pytest.mark.parametrize(
    ("kind", "path"),
    [
        ("RayCluster", ["spec", "autoOptions"]),
        ("RayJob", ["spec", "rayClusterSpec", "headGroupSpec", "template", "spec", "nodeSelecter"]),
        ("RayService", ["spec", "rayClusterSpec"]),
        ("RayCronJob", ["spec", "timezone"]),
        ("CronJob", ["spec", "concurrency"]),
        ("PrometheusRule", ["spec", "rules"]),
        ("PodMonitor", ["spec", "endpoints"]),
    ],
)
def test_a_misspelt_field_is_found(kind: str, path: list[str]) -> None:
    resource = copy.deepcopy(next(p.values[0] for p in RESOURCES if p.values[0]["kind"] == kind))  # type: ignore[union-attr]
    node = resource
    for key in path[:-1]:
        node = node[key]
    node[path[-1]] = {}
    with pytest.raises(Exception, match="Additional properties are not allowed"):
        validate(resource, VERSIONS[-1])
