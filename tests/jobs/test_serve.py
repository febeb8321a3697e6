"""The serve job up to the deployment: which models it deploys, and what it refuses."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from pipelines.registry.errors import RegistryError
from pipelines.retrain.ledger import Cycle
from pipelines.serve.deployment import deploy
from pipelines.workflows import retrain_steps, serve
from pipelines.workflows.config import JobConfig
from pipelines.workflows.workspace import Workspace
from tests.faults.services import SCORE, Service
from tests.pipelines.registry.conftest import picture
from tests.pipelines.serve.conftest import DECODERS, save_model


@pytest.fixture
def deployed(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """What was deployed, in place of a cluster."""
    found: list[dict[str, Any]] = []

    def start(config: Any, folder: Path, name: str, version: str, digest: str, report: Any, **more: Any) -> str:
        found.append({"mode": config.challenger.mode, "version": version, **more})
        return "http://127.0.0.1:1"

    monkeypatch.setattr(deploy, "start", start)
    return found


def test_the_challenger_is_deployed_beside_the_champion(tmp_path: Path, deployed: list[dict[str, Any]]) -> None:
    service = Service(tmp_path, challenger={"mode": "shadow"})
    service.promote(service.register(seed=1))
    with pytest.raises(RegistryError, match=r"has no challenger; .*serve\.challenger\.mode=off"):
        serve.start(Workspace(service.config))
    service.registry.set_challenger(service.register(seed=2), is_usable=True)
    serve.start(Workspace(service.config))
    [one] = deployed
    challenger = one["challenger"]
    assert (one["version"], challenger["version"], one["mode"]) == ("1", "2", "shadow")
    for golden in (one["golden"], challenger["golden"]):
        assert Path(golden).is_file()
    assert challenger["digest"] == service.registry.challenger().digest
    assert challenger["folder"] == str(service.registry.challenger().folder)


def test_a_challenger_of_another_kind_is_refused(tmp_path: Path, deployed: list[dict[str, Any]]) -> None:
    service = Service(tmp_path, challenger={"mode": "canary"})
    service.promote(service.register(seed=1))
    run_id = service.registry.version("1").run_id
    other = save_model(tmp_path / "other", DECODERS["caption"])
    version = service.registry.log_model(run_id, other, (picture(0), ""), SCORE)
    service.registry.set_challenger(version.version, is_usable=True)
    with pytest.raises(RegistryError, match=r"challenger \(version 2\) and champion \(version 1\) .*'kind': 'caption'"):
        serve.start(Workspace(service.config))
    assert deployed == []


def test_a_cycle_whose_candidate_was_promoted_serves_it_alone(
    tmp_path: Path, deployed: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    service = Service(tmp_path, challenger={"mode": "shadow"})
    service.promote(service.register(seed=1))
    monkeypatch.setattr(deploy, "is_running", lambda: True)
    cycle = Cycle("1", {"gated": {"promoted": True}})
    assert retrain_steps.swapped(Workspace(service.config), cycle)["swapped"]
    service.registry.set_challenger(service.register(seed=2), is_usable=True)
    retrain_steps.swapped(Workspace(service.config), cycle)
    assert [one["mode"] for one in deployed] == ["off", "shadow"]


def test_without_a_challenger_nothing_asks_for_one(tmp_path: Path, deployed: list[dict[str, Any]]) -> None:
    service = Service(tmp_path)
    assert isinstance(service.config, JobConfig)
    service.promote(service.register(seed=1))
    serve.start(Workspace(service.config))
    assert deployed[0]["challenger"] is None
