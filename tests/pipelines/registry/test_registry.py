from __future__ import annotations

import base64
import importlib.util
import json
import marshal
import os
import re
import shutil
import struct
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd  # type: ignore[import-untyped, unused-ignore]
import pytest
from mlflow import MlflowClient
from mlflow.models import Model

from pipelines.registry import package_store, smoke
from pipelines.registry.errors import ArtifactError, RegistryError, SmokeError
from pipelines.registry.package import build_package
from pipelines.registry.registry import Registry
from pipelines.registry.smoke import answer_in_fresh_process
from pipelines.registry.version_score import VersionScore
from pipelines.registry.versions import LocalModel
from pipelines.storage import manifest
from pipelines.tracking.address import TrackingConfig
from pipelines.tracking.store import connect_to_store
from tests.pipelines.registry.conftest import QUESTION, stored_file
from vlmodel.inference import Predictor
from vlmodel.processor import Example


def test_a_model_is_registered_with_its_score_once(
    registry: Registry,
    storage: str,
    run_id: str,
    checkpoint: Path,
    example: Example,
    score: VersionScore,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    version = registry.log_model(run_id, checkpoint, example, score, step=120, card="# a card")
    assert [path.name for path in tmp_path.iterdir()] == ["runs"], "no store at MLflow's own default place"
    assert (version.name, version.version, version.run_id, version.score) == ("vlmodel", "1", run_id, score)
    assert (version.tags["run_name"], version.tags["step"]) == ("run-1", "120")
    assert registry.log_model(run_id, checkpoint, example, score, step=120) == version
    assert registry.find() is None

    local = registry.download(version)
    assert (local.package / "README.md").read_text() == "# a card"
    assert local.digest == manifest.folder_digest(local.folder), "a replica loads no other folder"
    client = connect_to_store(f"sqlite:///{storage}/mlflow.db")
    assert client.get_model_version("vlmodel", "1").description == "# a card"
    assert "`champion`" in client.get_registered_model("vlmodel").description
    predictions = Predictor.from_pretrained(local.folder).predict([example])
    assert predictions == Predictor.from_pretrained(checkpoint).predict([example])
    run = connect_to_store(f"sqlite:///{storage}/mlflow.db").get_run(run_id)
    assert run.outputs is not None
    assert len(run.outputs.model_outputs) == 1
    signature = Model.load(str(local.package)).signature
    assert signature is not None
    assert [(column.name, column.type.name) for column in signature.inputs] == [
        ("image", "binary"),
        ("question", "string"),
    ]
    example_input = Model.load(str(local.package)).load_input_example(str(local.package))
    assert isinstance(example_input, pd.DataFrame)
    assert list(example_input["question"]) == [QUESTION]


@pytest.mark.timeout(900)  # two fresh processes that import torch, transformers and MLflow
@pytest.mark.slow
def test_the_stored_model_answers_by_itself(
    storage: str,
    tracking: TrackingConfig,
    run_id: str,
    checkpoint: Path,
    pictures: list[bytes],
    score: VersionScore,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """In fresh processes, unpickling forbidden, by the code that is stored with it and not by this repository's."""
    smoke_answers: list[str] = []

    def recorded(package: Path, rows: Sequence[Example]) -> None:
        smoke_answers.extend(answer_in_fresh_process(package, rows))

    monkeypatch.setattr(package_store, "answer_in_fresh_process", recorded)
    registry = Registry.open(tracking, storage)
    local = registry.download(
        registry.log_model(run_id, checkpoint, Example({"image": pictures[0]}, (QUESTION,)), score)
    )
    predictor = Predictor.from_pretrained(checkpoint)
    expected = [predictor.predict([Example({"image": image}, (QUESTION,))])[0][0].answers for image in pictures]
    assert smoke_answers == [expected[0][0][0]]

    # The stored code, and no other, says where it is.
    code = local.package / "code" / "vlmodel" / "inference.py"
    code.write_text(code.read_text() + "\nimport sys\nsys.stderr.write('FROM ' + __file__ + chr(10))\n")
    manifest.write_manifest(local.package)
    rows = [[base64.b64encode(image).decode(), QUESTION] for image in (pictures[0], b"no image", *pictures[1:])]
    request = {"dataframe_split": {"columns": ["image", "question"], "data": rows}, "params": {"top_k": 2}}
    (tmp_path / "request.json").write_text(json.dumps(request))
    command = [sys.executable, "-m", "mlflow", "models", "predict", "--env-manager", "local", "-m", str(local.package)]
    command += ["-i", "request.json", "-o", "answers.json", "-t", "json"]
    environment = {**os.environ, "MLFLOW_ALLOW_PICKLE_DESERIALIZATION": "false"}
    environment.pop("PYTHONPATH", None)
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    assert f"FROM {local.package}/code/vlmodel/inference.py" in done.stderr
    answers = json.loads((tmp_path / "answers.json").read_text())["predictions"]
    bad = answers.pop(1)
    assert "undecodable" in bad.pop("error")
    assert bad == {"answer": None, "probability": None, "answers": None}
    for row, ranked in zip(answers, expected, strict=True):
        assert (row["answer"], row["error"]) == (ranked[0][0], None)
        assert row["probability"] == pytest.approx(ranked[0][1], abs=1e-6)
        assert [answer for answer, _ in json.loads(row["answers"])] == [answer for answer, _ in ranked[:2]]


def test_a_model_that_fails_the_smoke_test_is_not_registered(
    storage: str,
    tracking: TrackingConfig,
    run_id: str,
    checkpoint: Path,
    example: Example,
    score: VersionScore,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    (tmp_path / "fails.py").write_text("raise ImportError('no module named vlmodel')")
    monkeypatch.setattr(smoke, "PROGRAM", tmp_path / "fails.py")
    registry = Registry.open(tracking, storage)
    with pytest.raises(SmokeError, match=r"does not work in a fresh process: (.|\n)*no module named vlmodel"):
        registry.log_model(run_id, checkpoint, example, score)
    with pytest.raises(RegistryError, match="it has: none"):
        registry.version("1")
    assert not list((Path(storage) / "mlartifacts").rglob("*.safetensors"))


def test_a_smoke_test_that_hangs_is_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program = tmp_path / "hangs.py"
    program.write_text("import time\ntime.sleep(600)\n")
    monkeypatch.setattr(smoke, "PROGRAM", program)
    with pytest.raises(SmokeError, match=r"did not answer within 0\.2 s"):
        answer_in_fresh_process(tmp_path, [], timeout_s=0.2)


def test_promotion_moves_the_aliases_and_repeating_it_changes_nothing(
    registry: Registry,
    run_id: str,
    checkpoint: Path,
    other_checkpoint: Path,
    example: Example,
    score: VersionScore,
) -> None:
    with pytest.raises(RegistryError, match=r"'vlmodel' has no champion; train one .*jobs\.promote"):
        registry.champion()
    registry.log_model(run_id, checkpoint, example, score)
    registry.log_model(run_id, other_checkpoint, example, replace(score, value=0.95))

    def aliases() -> list[str | None]:
        return [found.version if (found := registry.find(alias)) else None for alias in ("champion", "previous")]

    registry.promote("1", "first", over=None)
    assert aliases() == ["1", None]
    registry.promote("1", "again", over=None)
    assert aliases() == ["1", None]
    registry.promote("2", "better", over="1")
    registry.promote("2", "better", over="1")
    assert aliases() == ["2", "1"]
    assert registry.newest_version_of_run("run-1") == registry.version("2")
    assert registry.newest_version_of_run("run-2") is None
    champion = registry.champion()
    assert isinstance(champion, LocalModel)
    assert champion.score == replace(score, value=0.95)
    record = json.loads(champion.tags["promotion"])
    assert (record["reason"], record["former"]) == ("better", "1")
    assert json.loads(registry.version("1").tags["promotion"])["reason"] == "first"
    with pytest.raises(RegistryError, match=r"no version '3'; it has: [12], [12]"):
        registry.promote("3", "typo", over="2")
    assert aliases() == ["2", "1"]


def test_a_rollback_goes_back_and_never_returns_to_what_was_given_up(
    registry: Registry,
    run_id: str,
    checkpoint: Path,
    other_checkpoint: Path,
    example: Example,
    score: VersionScore,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    registry.log_model(run_id, checkpoint, example, score)
    registry.log_model(run_id, other_checkpoint, example, score)

    def answers() -> bytes:
        ((prediction,),) = Predictor.from_pretrained(registry.champion().folder).predict([example])
        return np.array([probability for _, probability in prediction.answers]).tobytes()

    registry.promote("1", "first", over=None)
    before = answers()
    registry.promote("2", "better", over="1")
    assert answers() != before
    assert registry.rollback("it is slow", of="2").version == "1"
    assert answers() == before, "byte for byte"
    assert registry.find("previous") is None, "nothing was before version 1"
    assert json.loads(registry.version("2").tags["rollback"])["reason"] == "it is slow"
    # A repetition, as of a job that was killed, does not go back further.
    assert registry.rollback("it is slow", of="2").version == "1"
    with pytest.raises(RegistryError, match="version 1 of model 'vlmodel' took no champion's place"):
        registry.rollback("once more", of="1")


def test_a_damaged_previous_champion_is_not_rolled_back_to(
    registry: Registry,
    storage: str,
    run_id: str,
    checkpoint: Path,
    other_checkpoint: Path,
    example: Example,
    score: VersionScore,
) -> None:
    registry.log_model(run_id, checkpoint, example, score)
    file = stored_file(storage, "model.safetensors")
    first = registry.promote("1", "first", over=None)
    registry.log_model(run_id, other_checkpoint, example, score)
    registry.promote("2", "better", over="1")
    for copy in (file, first.folder / "model.safetensors"):
        copy.write_bytes(copy.read_bytes()[:-1])
    with pytest.raises(ArtifactError, match=r"not what was stored.*model\.safetensors"):
        registry.rollback("slow", of="2")
    assert registry.champion().version == "2"


@pytest.mark.parametrize("killed_at", ["tag", "champion", "previous"])
def test_a_promotion_that_is_killed_has_happened_or_not(
    registry: Registry,
    storage: str,
    run_id: str,
    checkpoint: Path,
    other_checkpoint: Path,
    example: Example,
    score: VersionScore,
    killed_at: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    registry.log_model(run_id, checkpoint, example, score)
    registry.log_model(run_id, other_checkpoint, example, score)
    registry.promote("1", "first", over=None)

    def dies(self: MlflowClient, name: str, key: str, *rest: str) -> None:
        if killed_at in (key, "tag"):
            raise KeyboardInterrupt
        original(self, name, key, *rest)

    method = "set_model_version_tag" if killed_at == "tag" else "set_registered_model_alias"
    original = getattr(MlflowClient, method)
    with monkeypatch.context() as patched:
        patched.setattr(MlflowClient, method, dies)
        with pytest.raises(KeyboardInterrupt):
            registry.promote("2", "better", over="1")
    assert registry.champion().version == ("2" if killed_at == "previous" else "1")
    assert registry.find("previous") is None
    registry.promote("2", "better", over="1")
    found = [registry.find(alias) for alias in ("champion", "previous")]
    assert [version.version for version in found if version] == ["2", "1"]


def test_the_challenger_is_one_that_is_fit_and_not_the_champion(
    registry: Registry,
    run_id: str,
    checkpoint: Path,
    other_checkpoint: Path,
    example: Example,
    score: VersionScore,
) -> None:
    registry.log_model(run_id, checkpoint, example, score)
    registry.log_model(run_id, other_checkpoint, example, score)

    def challenger() -> str | None:
        return found.version if (found := registry.find("challenger")) else None

    registry.set_challenger("1", is_usable=True)
    assert challenger() == "1"
    registry.set_challenger("2", is_usable=False)
    assert challenger() == "1", "of another one it says nothing"
    registry.promote("1", "first", over=None)
    assert challenger() is None
    registry.set_challenger("1", is_usable=True)
    assert challenger() is None
    registry.set_challenger("2", is_usable=True)
    registry.set_challenger("2", is_usable=False)
    assert challenger() is None


def plant_bytecode(source: Path, mark: Path) -> Path:
    """Put bytecode beside a source that Python takes for its own, whatever the source's age and size are (PEP 552)."""
    code = compile(f"{source.read_text()}\nopen({str(mark)!r}, 'w').close()\n", str(source), "exec")
    planted = Path(importlib.util.cache_from_source(str(source)))
    planted.parent.mkdir(exist_ok=True)
    planted.write_bytes(importlib.util.MAGIC_NUMBER + struct.pack("<I", 1) + bytes(8) + marshal.dumps(code))
    return planted


@pytest.mark.parametrize("source", ["code/vlmodel/tokens.py", "code/pipelines/storage/manifest.py", "pyfunc.py"])
def test_bytecode_that_was_added_to_a_stored_model_is_refused(
    registry: Registry,
    storage: str,
    run_id: str,
    checkpoint: Path,
    example: Example,
    score: VersionScore,
    tmp_path: Path,
    source: str,
) -> None:
    version = registry.log_model(run_id, checkpoint, example, score)
    stored = stored_file(storage, "MLmodel").parent
    planted = plant_bytecode(stored / source, tmp_path / "ran").relative_to(stored).as_posix()
    with pytest.raises(ArtifactError, match=re.escape(planted)):
        registry.verify_stored(version)
    with pytest.raises(ArtifactError, match=re.escape(planted)):
        registry.promote("1", "tampered", over=None)
    # A copy here is looked at as closely: it is replaced by what the store holds.
    shutil.rmtree((stored / planted).parent)
    local = registry.download(version)
    planted_here = plant_bytecode(local.package / source, tmp_path / "ran")
    assert registry.download(version) == local
    assert not planted_here.exists()


def test_a_model_that_is_loaded_where_it_is_stored_stays_what_was_registered(
    registry: Registry, storage: str, run_id: str, checkpoint: Path, example: Example, score: VersionScore
) -> None:
    """MLflow, told to take a model of a local store, uses it in place, and notes there what it loaded."""
    version = registry.log_model(run_id, checkpoint, example, score)
    program = "import sys, mlflow; mlflow.set_tracking_uri(sys.argv[1]); mlflow.pyfunc.load_model('models:/vlmodel/1')"
    command = [sys.executable, "-c", program, f"sqlite:///{storage}/mlflow.db"]
    environment = {k: v for k, v in os.environ.items() if k not in ("PYTHONDONTWRITEBYTECODE", "PYTHONPYCACHEPREFIX")}
    done = subprocess.run(command, cwd=storage, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert stored_file(storage, "registered_model_meta").is_file()
    assert not list(stored_file(storage, "MLmodel").parent.rglob("*.pyc"))
    registry.verify_stored(version)


@pytest.mark.parametrize("source", ["code/vlmodel/tokens.py", "pyfunc.py"])
def test_the_smoke_test_runs_no_bytecode(checkpoint: Path, example: Example, tmp_path: Path, source: str) -> None:
    package = tmp_path / "package"
    build_package(checkpoint, package, example, Model())
    planted = plant_bytecode(package / source, tmp_path / "ran")
    manifest.write_manifest(package)  # so that nothing but the way in which it is loaded keeps the code from running
    assert len(answer_in_fresh_process(package, [example])) == 1
    assert not (tmp_path / "ran").exists()
    assert {file.relative_to(package) for file in package.rglob("*.pyc")} == {planted.relative_to(package)}


@pytest.mark.parametrize("name", ["model.safetensors", "pyfunc.py", "MLmodel"])
def test_a_changed_artifact_is_refused_and_the_champion_stays(
    registry: Registry,
    storage: str,
    run_id: str,
    checkpoint: Path,
    example: Example,
    score: VersionScore,
    name: str,
) -> None:
    registry.log_model(run_id, checkpoint, example, score)
    file = stored_file(storage, name)
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    with pytest.raises(ArtifactError, match=f"not what was stored.*{name}"):
        registry.promote("1", "tampered", over=None)
    assert registry.find() is None
    assert not list((Path(storage) / "models").rglob(name)), "nothing of it stays in the cache"


def test_a_damaged_copy_is_downloaded_again_and_only_then(
    registry: Registry, storage: str, run_id: str, checkpoint: Path, example: Example, score: VersionScore
) -> None:
    registry.log_model(run_id, checkpoint, example, score)
    first = registry.promote("1", "first", over=None)
    weights = first.folder / "model.safetensors"
    good, inode = weights.read_bytes(), weights.stat().st_ino
    assert registry.champion() == registry.champion()
    assert weights.stat().st_ino == inode
    weights.write_bytes(good[:-1])
    assert registry.champion().folder == first.folder
    assert weights.read_bytes() == good
    # With a good copy here, the store is not asked for the files again.
    stored_file(storage, "model.safetensors").unlink()
    registry.champion()


def test_a_version_that_something_else_registered_is_refused(registry: Registry, storage: str) -> None:
    client = connect_to_store(f"sqlite:///{storage}/mlflow.db")
    client.create_registered_model("vlmodel")
    client.create_model_version("vlmodel", f"{storage}/elsewhere")
    with pytest.raises(ArtifactError, match="version 1 of model 'vlmodel' has no tag manifest_sha256"):
        registry.promote("1", "foreign", over=None)


def test_a_remote_storage_needs_a_local_cache(tracking: TrackingConfig, tmp_path: Path) -> None:
    with pytest.raises(RegistryError, match=r"'s3://bucket/runs' is not a local folder; set registry\.cache"):
        Registry.open(tracking, "s3://bucket/runs")
