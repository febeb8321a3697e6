"""Checks a candidate's stored package: unchanged files, the champion's schema, an answer in a fresh process."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pipelines.registry import package
from pipelines.registry.errors import ArtifactError, SmokeError
from pipelines.registry.gate.check import GateCheck
from pipelines.registry.registry import Registry
from pipelines.registry.smoke import answer_in_fresh_process
from pipelines.registry.versions import ROLLBACK_TAG, LocalModel, ModelVersion
from vlmodel.processor import Example, VLProcessor

if TYPE_CHECKING:
    pass


def check_stored_files(registry: Registry, version: ModelVersion) -> GateCheck:
    """Check that the stored files, not a local copy of them, have the hashes that were registered."""
    name, required = "stored files", "the sha256 of each file as registered"
    reason = "a model that was changed after its evaluation is not the one that was evaluated"
    try:
        registry.verify_stored(version)
    except ArtifactError as error:
        return GateCheck(name, False, str(error), required, reason)
    return GateCheck(name, True, "all as registered", required, reason)


def check_not_rolled_back(version: ModelVersion) -> GateCheck:
    """Check that the version was never rolled back: a repeated job must not promote it again."""
    return GateCheck(
        name="not rolled back",
        passed=not version.rollback_reason,
        measured=f"rolled back: {version.rollback_reason}" if version.rollback_reason else "never",
        required=f"never; to allow it again delete its tag {ROLLBACK_TAG!r} in MLflow",
        explanation="it was rolled back for a reason that the hold-out may not show",
    )


def check_same_schema(candidate: LocalModel, champion: LocalModel | None) -> GateCheck:
    """Check that the candidate has the inputs, outputs and tasks of the champion or, without a champion, of this
    program.
    """
    name = "schema"
    reason = (
        "clients of the champion must be able to ask the candidate; register another kind of model under another name"
    )
    candidate_schema = _input_schema(candidate)
    if champion is None:
        signature = package.model_signature(VLProcessor.from_pretrained(candidate.folder))
        expected = {**candidate_schema, "signature": signature.to_dict()}
    else:
        expected = _input_schema(champion)
    different = [
        key
        for key in sorted(candidate_schema.keys() | expected.keys())
        if candidate_schema.get(key) != expected.get(key)
    ]
    source = "this program's" if champion is None else f"version {champion.version}'s"
    measured = (
        "; ".join(f"{key} {candidate_schema.get(key)} instead of {expected.get(key)}" for key in different) or "equal"
    )
    return GateCheck(name, not different, measured, f"equal to {source}", reason)


def check_smoke_test(candidate: LocalModel, example: Example, *, enabled: bool = True) -> GateCheck:
    """Check that a fresh process, with only the stored files, gives the same answer as this process.

    Args:
        example: with one text.
        enabled: False leaves it out.
    """
    from vlmodel.inference import Predictor

    name, required = "smoke test", "the same answer in a fresh process, from the stored files alone"
    reason = "what a server loads is what was evaluated"
    if not enabled:
        return GateCheck(name, None, "", required, "registry.smoke_test is false")
    ((prediction,),) = Predictor.from_pretrained(candidate.folder).predict([example], top_k=1)
    try:
        (answer,) = answer_in_fresh_process(candidate.package, [example])
    except SmokeError as error:
        return GateCheck(name, False, str(error), required, reason)
    expected = prediction.answers[0][0]
    return GateCheck(name, answer == expected, f"{answer!r}, here {expected!r}", required, reason)


def _input_schema(model: LocalModel) -> dict[str, object]:
    tasks = {name: task.compatibility_key() for name, task in VLProcessor.from_pretrained(model.folder).tasks.items()}
    return {"signature": package.read_signature(model.package), "tasks": tasks}
