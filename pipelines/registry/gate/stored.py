"""Is what the registry holds of a candidate whole, of the champion's kind, and does it answer by itself?"""

from __future__ import annotations

from pipelines.registry import package
from pipelines.registry.errors import ArtifactError, SmokeError
from pipelines.registry.gate.check import Check
from pipelines.registry.registry import ROLLBACK_TAG, LocalModel, ModelVersion, Registry
from pipelines.registry.smoke import answers_in_fresh_process
from vlmodel.config import dump
from vlmodel.inference import Predictor
from vlmodel.processor import Example, VLProcessor


def files_are_whole(registry: Registry, version: ModelVersion) -> Check:
    """Whether the stored files, not those of a local copy, have the hashes of their registration."""
    name, required = "stored files", "the sha256 of each file as registered"
    why = "a model that was changed after its evaluation is not the one that was evaluated"
    try:
        registry.verify_stored(version)
    except ArtifactError as error:
        return Check(name, False, str(error), required, why)
    return Check(name, True, "all as registered", required, why)


def not_given_up(version: ModelVersion) -> Check:
    """Whether the version was never rolled back: a job that is started again must not bring it back."""
    return Check(
        name="not rolled back",
        passed=not version.rollback_reason,
        measured=f"rolled back: {version.rollback_reason}" if version.rollback_reason else "never",
        required=f"never; to allow it again delete its tag {ROLLBACK_TAG!r} in MLflow",
        explanation="people, or a server, gave it up for a reason that the hold-out may not show",
    )


def same_schema(candidate: LocalModel, champion: LocalModel | None) -> Check:
    """Whether inputs, outputs, and the tasks with what each reads are the champion's; without one, the program's."""
    name = "schema"
    why = "clients of the champion must be able to ask the candidate; register another kind of model under another name"
    ours = _schema(candidate)
    if champion is None:
        wanted = {**ours, "signature": package.SIGNATURE.to_dict()}
    else:
        wanted = _schema(champion)
    different = [key for key in sorted(ours.keys() | wanted.keys()) if ours.get(key) != wanted.get(key)]
    whose = "this program's" if champion is None else f"version {champion.version}'s"
    measured = "; ".join(f"{key} {ours.get(key)} instead of {wanted.get(key)}" for key in different) or "equal"
    return Check(name, not different, measured, f"equal to {whose}", why)


def answers_by_itself(candidate: LocalModel, example: tuple[bytes, str], *, wanted: bool = True) -> Check:
    """Whether a fresh process, which has the stored files alone, gives the answer that this process gives.

    Args:
        example: (encoded image, text).
        wanted: False leaves it out.
    """
    name, required = "smoke test", "the same answer in a fresh process, from the stored files alone"
    why = "what a server loads is what was evaluated"
    if not wanted:
        return Check(name, None, "", required, "registry.smoke_test is false")
    image, text = example
    ((here,),) = Predictor.from_pretrained(candidate.folder).predict([Example(image, (text,))], top_k=1)
    try:
        (there,) = answers_in_fresh_process(candidate.package, [example])
    except SmokeError as error:
        return Check(name, False, str(error), required, why)
    expected = here.answers[0][0]
    return Check(name, there == expected, f"{there!r}, here {expected!r}", required, why)


def _schema(model: LocalModel) -> dict[str, object]:
    tasks = {task: dump(fields) for task, fields in VLProcessor.from_pretrained(model.folder).tasks.items()}
    return {"signature": package.signature(model.package), "tasks": tasks}
