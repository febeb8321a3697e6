"""The serve job up to the deployment: which models it deploys, and what it refuses."""

from __future__ import annotations

import shutil
import socket
from pathlib import Path
from typing import Any

import pytest

from pipelines.embeddings.errors import EmbeddingsError
from pipelines.embeddings.stored import EmbeddedModel, EmbeddingsManifest
from pipelines.registry.errors import RegistryError
from pipelines.retrain.ledger import RetrainCycle
from pipelines.serve.config import ServeConfig
from pipelines.serve.deployment import deploy
from pipelines.serve.errors import ServeError
from pipelines.storage.folder import StorageFolder
from pipelines.workflows import retrain_steps, serve
from pipelines.workflows.config import JobConfig
from pipelines.workflows.workspace import Workspace
from tests.faults.services import SCORE, Service
from tests.pipelines.registry.conftest import picture
from tests.pipelines.serve.conftest import DECODERS, save_model
from vlmodel.config import ConfigError, parse_config
from vlmodel.processor import Example


@pytest.fixture
def deployed(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """What was deployed, in place of a cluster."""
    found: list[dict[str, Any]] = []

    def start(config: Any, folder: Path, name: str, version: str, digest: str, report: Any, **more: Any) -> str:
        found.append({"mode": config.challenger.mode, "folder": str(folder), "name": name, "version": version, **more})
        return "http://127.0.0.1:1"

    monkeypatch.setattr(deploy, "deploy_service", start)
    return found


def test_what_is_missing_is_told_before_a_cluster_is_started(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setattr(serve, "connected_to_cluster", lambda config: pytest.fail("a cluster was started"))
    service = Service(tmp_path)
    with pytest.raises(RegistryError, match="has no champion"):
        serve.run(Workspace(service.config))
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        taken = service.config.serve.model_copy(update={"port": port})
        with pytest.raises(ServeError, match=rf"port {port} on 127\.0\.0\.1 is in use"):
            serve.run(Workspace(service.config).with_changed_settings(serve=taken))


def test_the_challenger_is_deployed_beside_the_champion(tmp_path: Path, deployed: list[dict[str, Any]]) -> None:
    service = Service(tmp_path, challenger={"mode": "shadow"})
    service.promote(service.register(seed=1))
    with pytest.raises(RegistryError, match=r"has no challenger; .*serve\.challenger\.mode=off"):
        serve.deploy_model(Workspace(service.config))
    service.registry.set_challenger(service.register(seed=2), is_usable=True)
    serve.deploy_model(Workspace(service.config))
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
    version = service.registry.log_model(run_id, other, Example({"image": picture(0)}, ("",)), SCORE)
    service.registry.set_challenger(version.version, is_usable=True)
    with pytest.raises(RegistryError, match=r"challenger \(version 2\) and champion \(version 1\) .*'kind': 'caption'"):
        serve.deploy_model(Workspace(service.config))
    assert deployed == []


def test_a_cycle_whose_candidate_was_promoted_serves_it_alone(
    tmp_path: Path, deployed: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    service = Service(tmp_path, challenger={"mode": "shadow"})
    service.promote(service.register(seed=1))
    monkeypatch.setattr(deploy, "is_service_running", lambda: True)
    cycle = RetrainCycle("1", {"gated": {"promoted": True}})
    assert retrain_steps.update_service(Workspace(service.config), cycle)["swapped"]
    service.registry.set_challenger(service.register(seed=2), is_usable=True)
    retrain_steps.update_service(Workspace(service.config), cycle)
    assert [one["mode"] for one in deployed] == ["off", "shadow"]


def test_without_a_challenger_nothing_asks_for_one(tmp_path: Path, deployed: list[dict[str, Any]]) -> None:
    service = Service(tmp_path)
    assert isinstance(service.config, JobConfig)
    service.promote(service.register(seed=1))
    serve.deploy_model(Workspace(service.config))
    assert deployed[0]["challenger"] is None


def test_any_version_and_any_folder_can_be_looked_at(tmp_path: Path, deployed: list[dict[str, Any]]) -> None:
    service = Service(tmp_path)
    service.register(seed=1)
    with pytest.raises(RegistryError, match="has no champion; train one"):
        serve.deploy_model(Workspace(service.config))
    registered = service.registry.download(service.registry.version("1"))
    copied = tmp_path / "copied"
    shutil.copytree(registered.folder, copied)
    for settings in ({"version": "1"}, {"model": str(copied)}):
        serve.deploy_model(
            Workspace(service.config).with_changed_settings(serve=service.config.serve.model_copy(update=settings))
        )
    assert [(one["version"], one["name"]) for one in deployed] == [("1", registered.name), ("0", "copied")]
    assert deployed[1]["folder"] == str(copied)
    assert service.champion is None
    service.registry.set_challenger("1", is_usable=True)
    by_alias = service.config.serve.model_copy(update={"version": "challenger"})
    serve.deploy_model(Workspace(service.config).with_changed_settings(serve=by_alias))
    assert deployed[2]["version"] == "1"
    with pytest.raises(RegistryError, match="has no version '7'; it has: 1"):
        serve.find_version_to_serve(
            Workspace(service.config).with_changed_settings(
                serve=service.config.serve.model_copy(update={"version": "7"})
            )
        )


def test_vectors_of_another_model_are_refused_and_an_update_goes_on_without_search(
    tmp_path: Path, deployed: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    service = Service(tmp_path)
    service.promote(service.register(seed=1))
    out = tmp_path / "vectors"
    search = service.config.serve.search.model_copy(update={"embeddings": str(out)})
    work = Workspace(service.config).with_changed_settings(
        serve=service.config.serve.model_copy(update={"search": search})
    )
    with pytest.raises(EmbeddingsError, match=r"holds no vectors .*jobs\.embed"):
        serve.run(work)
    for digest, says in (("0" * 64, "run the embed job with this model"), (service.registry.champion().digest, "")):
        described = EmbeddedModel(name="tiny", version="0", digest=digest, task="")
        EmbeddingsManifest(model=described, tars="", index="", split="", inputs=["image"], parts=[]).write(
            StorageFolder(str(out))
        )
        if says:
            monkeypatch.setattr(serve, "connected_to_cluster", lambda config: pytest.fail("a cluster was started"))
            with pytest.raises(EmbeddingsError, match=says):
                serve.run(work)
        serve.deploy_model(work)  # as a retraining does that has promoted another model
        assert ("no search: " in capsys.readouterr().out) == bool(says)
    assert len(deployed) == 2


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"version": "1", "model": "x"}, "version='1' and model='x' name two models; keep one"),
        ({"model": "x", "challenger": {"mode": "shadow"}}, "no version that has a challenger; set challenger.mode=off"),
    ],
)
def test_one_model_is_served(settings: dict[str, Any], says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        parse_config(ServeConfig, settings)
