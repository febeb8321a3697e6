"""Prometheus rules and the Grafana dashboard: what they ask for exists, is well formed, and alerts when it should."""

from __future__ import annotations

import ast
import json
import re
import shutil
import subprocess
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import ray
import yaml

promql = pytest.importorskip("promql_parser")

ROOT = Path(__file__).resolve().parents[2]
MONITORING = ROOT / "infra" / "monitoring"
RULES: list[dict[str, Any]] = yaml.safe_load((MONITORING / "rules.yaml").read_text(encoding="utf-8"))["spec"]["groups"]
DASHBOARD = json.loads((MONITORING / "dashboard.json").read_text(encoding="utf-8"))
PANELS = [panel for panel in DASHBOARD["panels"] if panel["type"] != "row"]
# Made by Prometheus itself, for every target and alert.
OF_PROMETHEUS = {"up", "ALERTS"}
# tests/pipelines/serve/deployment/test_haproxy.py asks a real one for them.
OF_HAPROXY = {"haproxy_frontend_request_errors_total", "haproxy_frontend_current_sessions"}


def rule_expressions() -> Iterator[tuple[str, str]]:
    for group in RULES:
        for rule in group["rules"]:
            yield rule.get("alert", rule.get("record")), rule["expr"]


def panel_expressions() -> Iterator[tuple[str, str]]:
    for panel in PANELS:
        for target in panel["targets"]:
            yield f"{panel['title']} {target['refId']}", target["expr"].replace("$application", ".*")
    for annotation in DASHBOARD["annotations"]["list"]:
        yield annotation["name"], annotation["expr"]


EXPRESSIONS = [pytest.param(expr, id=name) for name, expr in [*rule_expressions(), *panel_expressions()]]


def metrics_of(expression: str) -> set[str]:
    found: set[str] = set()

    def visit(node: Any) -> None:
        if isinstance(node, promql.VectorSelector):
            found.add(node.name)

    promql.walk(promql.parse(expression), visit)
    return found


def declared(source: str) -> Iterator[tuple[str, str]]:
    """(kind, name) of each Counter, Gauge, Histogram that a Python source makes under a literal name."""
    for node in ast.walk(ast.parse(source)):
        if not isinstance(node, ast.Call):
            continue
        kind = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
        names = [*node.args[:1], *(keyword.value for keyword in node.keywords if keyword.arg == "name")]
        for name in names:
            if kind in {"Counter", "Gauge", "Histogram"} and isinstance(name, ast.Constant):
                yield kind, str(name.value)


def exported(kind: str, name: str) -> set[str]:
    """The series that Prometheus sees of a metric made through ray.util.metrics."""
    endings = {"Counter": ["_total"], "Gauge": [""], "Histogram": ["_bucket", "_sum", "_count"]}
    return {f"ray_{name}{ending}" for ending in endings[kind]}


@cache
def ours() -> frozenset[str]:
    source = (ROOT / "pipelines" / "serve" / "metrics.py").read_text(encoding="utf-8")
    return frozenset(series for kind, name in declared(source) for series in exported(kind, name))


@cache
def of_ray() -> frozenset[str]:
    """What the installed Ray exports, from its sources: the metrics of Serve, and what its own dashboards show.

    The dashboards stand for the metrics whose names are made in C++ or by composing strings.
    """
    package = Path(ray.__file__).parent
    serve = {
        series
        for path in package.joinpath("serve").rglob("*.py")
        for kind, name in declared(path.read_text(encoding="utf-8"))
        for series in exported(kind, name)
    }
    panels = package.joinpath("dashboard/modules/metrics/dashboards").glob("*_panels.py")
    shown = {name for path in panels for name in re.findall(r"\b((?:ray|autoscaler)_\w+)\{", path.read_text("utf-8"))}
    return frozenset(serve | shown)


def test_sources_yield_names() -> None:
    assert "ray_vlmodel_requests_total" in ours()
    assert {"ray_serve_deployment_queued_queries", "ray_node_mem_used"} <= of_ray()
    assert metrics_of("sum(rate(a_total[5m])) / on () b > 1 and histogram_quantile(0.9, c_bucket)") == {
        "a_total",
        "b",
        "c_bucket",
    }


@pytest.mark.parametrize("expression", EXPRESSIONS)
def test_every_metric_is_exported_by_someone(expression: str) -> None:
    recorded = {rule["record"] for group in RULES for rule in group["rules"] if "record" in rule}
    asked = metrics_of(expression)
    assert asked
    assert asked <= ours() | of_ray() | recorded | OF_PROMETHEUS | OF_HAPROXY


def test_every_metric_of_the_service_is_on_the_dashboard() -> None:
    """A figure that no one looks at is not worth its series."""
    asked = {name for parameter in EXPRESSIONS for name in metrics_of(str(parameter.values[0]))}
    families = {re.sub(r"_(bucket|sum|count)$", "", name) for name in ours()}
    assert {family for family in families if not any(name.startswith(family) for name in asked)} == set()


def test_alerts_say_what_to_do() -> None:
    names = [name for name, _ in rule_expressions()]
    assert len(names) == len(set(names))
    for group in RULES:
        for rule in group["rules"]:
            if "alert" in rule:
                assert rule["labels"]["severity"] in {"page", "ticket"}
                assert rule["annotations"].keys() == {"summary", "action"}


def test_the_dashboard_is_laid_out() -> None:
    everything = DASHBOARD["panels"]
    assert len({panel["id"] for panel in everything}) == len(everything)
    taken: set[tuple[int, int]] = set()
    for panel in everything:
        place = panel["gridPos"]
        cells = {
            (x, y)
            for x in range(place["x"], place["x"] + place["w"])
            for y in range(place["y"], place["y"] + place["h"])
        }
        assert place["x"] + place["w"] <= 24, panel["title"]
        assert not cells & taken, f"{panel['title']} lies over another panel"
        taken |= cells
    for panel in PANELS:
        assert panel["datasource"]["uid"] == "${datasource}", f"{panel['title']}: works with one Grafana only"
        assert panel["description"], panel["title"]
        assert panel["fieldConfig"]["defaults"]["unit"], panel["title"]
        assert len({target["refId"] for target in panel["targets"]}) == len(panel["targets"])


def test_legends_name_labels_that_are_left() -> None:
    """``sum by (a)`` leaves the label a alone; a legend with another would show nothing."""
    for panel in PANELS:
        for target in panel["targets"]:
            left = re.match(r"\w+ by \(([^)]*)\)", target["expr"])
            if left:
                wanted = set(re.findall(r"{{(\w+)}}", target["legendFormat"]))
                assert wanted <= set(left[1].split(", ")), panel["title"]


def test_prometheus_finds_the_nodes_of_a_machine() -> None:
    from ray._private.ray_constants import PROMETHEUS_SERVICE_DISCOVERY_FILE

    config = yaml.safe_load((MONITORING / "prometheus.yaml").read_text(encoding="utf-8"))
    scrape, of_haproxy = config["scrape_configs"]
    assert (scrape["job_name"], of_haproxy["job_name"]) == ("ray", "haproxy")
    assert Path(scrape["file_sd_configs"][0]["files"][0]).name == PROMETHEUS_SERVICE_DISCOVERY_FILE
    monitor = yaml.safe_load((MONITORING / "podmonitor.yaml").read_text(encoding="utf-8"))["spec"]
    endpoints = {endpoint["port"]: endpoint for endpoint in monitor["podMetricsEndpoints"]}
    # The rules ask for these jobs.
    for port, job in {"metrics": "ray", "haproxy": "haproxy"}.items():
        assert {"targetLabel": "job", "replacement": job} in endpoints[port]["relabelings"]


def test_alerts_fire_when_they_should(tmp_path: Path) -> None:
    promtool = shutil.which("promtool")
    if promtool is None:
        pytest.skip("promtool is not installed (Debian: prometheus)")
    (tmp_path / "rules.yaml").write_text(json.dumps({"groups": RULES}), encoding="utf-8")
    cases = Path(__file__).with_name("alerts.yaml").read_text(encoding="utf-8")
    (tmp_path / "alerts.yaml").write_text(cases, encoding="utf-8")
    done = subprocess.run(
        [promtool, "test", "rules", "alerts.yaml"], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
