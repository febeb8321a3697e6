"""From the answers of two models to the exchange of the champion."""

from __future__ import annotations

import json
import multiprocessing
from collections.abc import Sequence
from dataclasses import replace
from multiprocessing.synchronize import Barrier
from pathlib import Path

import numpy as np
import pytest
from matplotlib.figure import Figure

from pipelines.evaluate.assess import TaskAssessment
from pipelines.registry.config import GateConfig
from pipelines.registry.errors import ChampionChangedError
from pipelines.registry.gate import comparison, stored
from pipelines.registry.gate.check import GateCheck, GateDecision
from pipelines.registry.promotion import (
    apply_decision,
    check_baselines,
    compare_on_holdout,
    compare_on_new_data,
    roll_back,
)
from pipelines.registry.registry import Registry
from pipelines.registry.version_score import VersionScore
from pipelines.registry.versions import ModelVersion
from pipelines.tracking.address import TrackingConfig, TrackingError
from pipelines.tracking.store import connect_to_store
from pipelines.tracking.tracker import NullTracker, Tracker
from tests.pipelines.evaluate.test_build_report import ASKED, answers, report_on_answers
from tests.pipelines.registry.conftest import FAST, stored_file
from vlmodel.metrics.answer_prior import AnswerPrior
from vlmodel.processor import Example

CONFIG = GateConfig()
BY_TARGET = GateConfig(slices=["question_type", "target"])
PRIOR = AnswerPrior.learn([("is it red?", "yes"), ("what is it?", "cat")])


def assessed(right: Sequence[bool], task: str = "", asked: str = "is it red?") -> TaskAssessment:
    table = answers(
        *(
            (f"k{n}", asked if n % 2 else "what is it?", ("yes", "no", "cat")[n % 3], ("yes", "no", "cat")[n % 3])
            if ok
            else (f"k{n}", asked if n % 2 else "what is it?", ("yes", "no", "cat")[n % 3], "?")
            for n, ok in enumerate(right)
        )
    )
    return TaskAssessment(task, report_on_answers(table, "val", PRIOR), table, [], Example({}, ("",)))


def accuracy(share: float, rows: int = 600, seed: int = 0) -> list[bool]:
    return (np.random.default_rng(seed).random(rows) < share).tolist()


def failed(checks: Sequence[GateCheck]) -> list[str]:
    return [check.name for check in checks if check.passed is False]


@pytest.mark.parametrize(
    ("candidate", "champion", "fails"),
    [
        (0.9, 0.8, []),
        (0.8, 0.9, ["better on the hold-out", "not by chance", "no slice worse"]),
        (0.8, 0.8, ["better on the hold-out", "not by chance"]),
    ],
)
def test_a_worse_candidate_or_an_equal_one_does_not_pass(candidate: float, champion: float, fails: list[str]) -> None:
    checks, differences = compare_on_holdout(
        [assessed(accuracy(candidate))], [assessed(accuracy(champion))], {"": ASKED}, CONFIG
    )
    assert failed(checks) == fails
    assert differences[0].name == "hold-out"
    assert {one.name for one in differences} == {"hold-out", "question_type=what is", "question_type=is it"}


def test_a_better_candidate_that_gives_up_a_slice_does_not_pass() -> None:
    champion = accuracy(0.6, rows=900)
    candidate = [n % 3 != 2 or (ok and n % 2 == 0) for n, ok in enumerate(champion)]  # all right, but for "cat"
    checks, _ = compare_on_holdout([assessed(candidate)], [assessed(champion)], {"": ASKED}, BY_TARGET)
    assert failed(checks) == ["no slice worse"]
    assert "target=cat" in checks[-1].measured


def test_a_champion_that_always_says_the_same_can_be_replaced() -> None:
    """It is perfect where that is the right answer: a candidate that is better in all is worse there."""
    constant, candidate = [n % 3 == 0 for n in range(900)], accuracy(0.6, rows=900)
    by_type, by_target = (
        compare_on_holdout([assessed(candidate)], [assessed(constant)], {"": ASKED}, config)[0]
        for config in (CONFIG, BY_TARGET)
    )
    assert failed(by_type) == []
    assert failed(by_target) == ["no slice worse"]


def test_answers_to_other_rows_are_not_compared() -> None:
    checks, differences = compare_on_holdout(
        [assessed(accuracy(0.9))], [assessed(accuracy(0.1), asked="is it big?")], {"": ASKED}, CONFIG
    )
    assert failed(checks) == ["same hold-out"]
    assert not differences


def test_of_several_tasks_the_others_may_not_be_worse() -> None:
    tasks = {"vqa": ASKED, "answer": ASKED}
    champion = [assessed(accuracy(0.7, seed=3), task) for task in tasks]
    candidate = [assessed(accuracy(0.9, seed=4), "vqa"), assessed(accuracy(0.4, seed=4), "answer")]
    checks, _ = compare_on_holdout(candidate, champion, tasks, CONFIG)
    assert failed(checks) == ["no slice worse"]
    assert "task=answer" in checks[-1].measured


@pytest.mark.parametrize(("candidate", "passes"), [(0.95, True), (0.9, True), (0.7, False)])
def test_a_candidate_must_not_be_worse_on_new_data(candidate: float, passes: bool) -> None:
    check, (one,) = compare_on_new_data([assessed(accuracy(candidate))], [assessed(accuracy(0.9))], {"": ASKED}, CONFIG)
    assert (check.name, check.passed, check.compares) == ("no worse on new data", passes, True)
    assert (one.name, one.rows, one.tolerance, one.worse) == ("new data", 600, CONFIG.tolerance, not passes)


def test_each_task_counts_on_new_data() -> None:
    tasks = {"vqa": ASKED, "answer": ASKED}
    champion = [assessed(accuracy(0.7, seed=3), task) for task in tasks]
    candidate = [assessed(accuracy(0.9, seed=4), "vqa"), assessed(accuracy(0.4, seed=4), "answer")]
    check, found = compare_on_new_data(candidate, champion, tasks, CONFIG)
    assert check.passed is False
    assert {one.name: one.worse for one in found} == {"new data, task=vqa": False, "new data, task=answer": True}


def test_little_new_data_is_not_held_against_a_candidate() -> None:
    rows = comparison.LEAST_ROWS - 1
    check, found = compare_on_new_data([assessed([False] * rows)], [assessed([True] * rows)], {"": ASKED}, CONFIG)
    assert (check.passed, found) == (None, [])
    assert "fewer than 50 rows of split 'val'" in check.explanation


@pytest.mark.parametrize("certain", [True, False])
def test_a_model_must_be_above_what_needs_no_image(certain: bool) -> None:
    found = assessed(accuracy(0.9))
    assert check_baselines(found, certain=certain).passed
    assert check_baselines(assessed(accuracy(0.1)), certain=certain).passed is False
    assert "better than always" in check_baselines(found, certain=certain).measured
    broken = replace(found, report=replace(found.report, metrics={"accuracy": float("nan")}))
    assert check_baselines(broken, certain=certain).passed is False


def test_a_model_that_is_above_its_baseline_by_chance_passes_only_beside_a_champion() -> None:
    """A third is right by always the same answer, and 36 of 100 are right here."""
    by_chance = assessed([n % 100 < 36 for n in range(600)])
    beside_champion, alone = (check_baselines(by_chance, certain=certain) for certain in (False, True))
    assert beside_champion.passed
    assert "not distinguishable from the question alone" in beside_champion.measured
    assert alone.passed is False
    assert alone.required.endswith(" with 95% certainty")


@pytest.fixture
def versions(
    registry: Registry, storage: str, run_id: str, checkpoint: Path, example: Example, score: VersionScore
) -> list[ModelVersion]:
    """Two versions of the same files."""
    first = registry.log_model(run_id, checkpoint, example, score)
    client = connect_to_store(f"sqlite:///{storage}/mlflow.db")
    source = str(client.get_model_version("vlmodel", "1").source)
    client.create_model_version("vlmodel", source, run_id, tags=dict(first.tags))
    return [first, registry.version("2")]


@pytest.fixture
def tracker(tracking: TrackingConfig, storage: str, run_id: str) -> Tracker:
    return Tracker.reopen_run(tracking, storage, run_id)


def decision(version: str, over: str | None, *, passed: bool = True, compares: bool = True) -> GateDecision:
    return GateDecision("vqa", version, over, (GateCheck("better", passed, "0.9", "0.8", "", compares=compares),))


def alias(registry: Registry, name: str) -> str | None:
    return found.version if (found := registry.find(name)) else None


@pytest.mark.usefixtures("versions")
def test_each_decision_is_recorded_with_the_run(
    registry: Registry, tracker: Tracker, storage: str, run_id: str
) -> None:
    assert apply_decision(registry, decision("1", None), tracker).promote
    assert not apply_decision(registry, decision("2", "1", passed=False), tracker).promote
    assert (alias(registry, "champion"), alias(registry, "challenger")) == ("1", "2")
    client = connect_to_store(f"sqlite:///{storage}/mlflow.db")
    for folder in ("1-against-none", "2-against-1"):
        files = {Path(file.path).name for file in client.list_artifacts(run_id, f"gate/{folder}")}
        assert files == {"decision.md", "decision.html", "decision.json", "decision.png"}
    assert client.get_run(run_id).data.tags["gate.reason"] == "better: 0.9, required 0.8"


@pytest.mark.usefixtures("versions")
def test_a_candidate_that_is_not_fit_is_no_challenger(registry: Registry) -> None:
    registry.set_challenger("2", is_usable=True)
    apply_decision(registry, decision("2", None, passed=False, compares=False), NullTracker())
    assert (alias(registry, "champion"), alias(registry, "challenger")) == (None, None)


@pytest.mark.usefixtures("versions")
def test_a_forced_promotion_is_recorded_with_its_reason(
    registry: Registry, tracker: Tracker, storage: str, run_id: str
) -> None:
    registry.promote("1", "first", over=None)
    refused = decision("2", "1", passed=False)
    applied = apply_decision(registry, replace(refused, forced="the old one is offensive"), tracker)
    assert applied.promote
    assert alias(registry, "champion") == "2"
    reason = "forced: the old one is offensive (failed: better: 0.9, required 0.8)"
    assert json.loads(registry.version("2").tags["promotion"])["reason"] == reason
    assert connect_to_store(f"sqlite:///{storage}/mlflow.db").get_run(run_id).data.tags["gate.reason"] == reason


@pytest.mark.usefixtures("versions")
def test_a_forced_promotion_does_not_win_over_one_that_came_first(registry: Registry, tracker: Tracker) -> None:
    registry.promote("1", "faster", over=None)
    assert not apply_decision(registry, replace(decision("2", None), forced="now"), tracker).promote
    assert alias(registry, "champion") == "1"


@pytest.mark.usefixtures("versions")
def test_a_decision_about_another_champion_promotes_nothing(registry: Registry, tracker: Tracker) -> None:
    registry.promote("1", "faster", over=None)
    lost = apply_decision(registry, decision("2", None), tracker)
    assert not lost.promote
    assert "judged against no version, and now version 1 is the champion; judge it again" in lost.reason
    assert (alias(registry, "champion"), alias(registry, "challenger")) == ("1", "2")


@pytest.mark.usefixtures("versions")
def test_a_gate_that_crashes_promotes_nothing(registry: Registry) -> None:
    class Crashes(NullTracker):
        def log_figure(self, figure: Figure, name: str) -> None:
            raise TrackingError("the disk is full")

    with pytest.raises(TrackingError):
        apply_decision(registry, decision("1", None), Crashes())
    assert (alias(registry, "champion"), alias(registry, "challenger")) == (None, None)


def test_stored_files_are_checked_where_they_are_stored(
    registry: Registry, storage: str, versions: list[ModelVersion]
) -> None:
    registry.download(versions[0])
    assert stored.check_stored_files(registry, versions[0]).passed
    file = stored_file(storage, "model.safetensors")
    file.write_bytes(file.read_bytes()[:-1] + b"x")
    check = stored.check_stored_files(registry, versions[0])
    assert check.passed is False, "the local copy is good and does not count"
    assert "model.safetensors" in check.measured


def test_another_kind_of_model_is_not_of_the_schema(registry: Registry, versions: list[ModelVersion]) -> None:
    candidate, champion = (registry.download(version) for version in versions)
    assert stored.check_same_schema(candidate, champion).passed
    assert stored.check_same_schema(candidate, None).passed
    file = champion.folder / "processor.json"
    tree = json.loads(file.read_text())
    tree["tasks"] = {"": {"kind": "matching"}}
    file.write_text(json.dumps(tree))
    check = stored.check_same_schema(candidate, champion)
    assert check.passed is False
    assert "'kind': 'vqa'" in check.measured
    assert "'kind': 'matching'" in check.measured


@pytest.mark.usefixtures("versions")
def test_a_rollback_is_recorded_with_the_run_of_what_is_given_up(
    registry: Registry, tracker: Tracker, storage: str, run_id: str
) -> None:
    registry.promote("1", "first", over=None)
    registry.promote("2", "better", over="1")
    assert roll_back(registry, "slow", lambda version: tracker).version == "1"
    tags = connect_to_store(f"sqlite:///{storage}/mlflow.db").get_run(run_id).data.tags
    assert tags["gate.rolled_back"] == "to version 1: slow"
    assert alias(registry, "champion") == "1"
    assert stored.check_not_rolled_back(registry.version("1")).passed
    rollback_reason = stored.check_not_rolled_back(registry.version("2"))
    assert (rollback_reason.passed, rollback_reason.measured) == (False, "rolled back: slow")


def promote_at_once(tracking: TrackingConfig, storage: str, version: str, start: Barrier) -> None:
    registry = Registry.open(tracking, storage, FAST)
    start.wait(600)
    try:
        registry.promote(version, f"by {version}", over=None)
    except ChampionChangedError:
        raise SystemExit(3) from None


@pytest.mark.slow  # eight processes that import MLflow
@pytest.mark.timeout(900)
def test_eight_promotions_at_once_have_one_winner(
    registry: Registry, tracking: TrackingConfig, storage: str, run_id: str, versions: list[ModelVersion]
) -> None:
    client = connect_to_store(f"sqlite:///{storage}/mlflow.db")
    source = str(client.get_model_version("vlmodel", "1").source)
    for _ in range(6):
        client.create_model_version("vlmodel", source, run_id, tags=dict(versions[0].tags))
    context = multiprocessing.get_context("spawn")
    start = context.Barrier(8)
    processes = [
        context.Process(target=promote_at_once, args=(tracking, storage, str(version), start))
        for version in range(1, 9)
    ]
    for process in processes:
        process.start()
    for process in processes:
        process.join(600)
    codes = {str(version): process.exitcode for version, process in enumerate(processes, 1)}
    champion = alias(registry, "champion")
    assert sorted(codes.values(), key=str) == [0, *[3] * 7]
    assert [version for version, code in codes.items() if code == 0] == [champion]
    assert alias(registry, "previous") is None
    promoted = [version for version in codes if "promotion" in registry.version(version).tags]
    assert promoted == [champion]
