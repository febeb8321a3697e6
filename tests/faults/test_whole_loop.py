"""Drill: the whole loop on real data, under load. A champion that has seen half of easy-VQA answers held-out questions
over HTTP; the other half's tars come in, the schedule's script submits a retraining, the better model is swapped in.

It leaves a picture, and the figures behind it, in the folder RAYLM_PICTURES; else in the test's own.
"""

from __future__ import annotations

import itertools
import os
import random
import re
import subprocess
import time
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
from scipy import stats

from pipelines.data.importers import easy_vqa
from pipelines.data.importing.importer import SourceSample
from pipelines.registry.registry import Registry
from pipelines.retrain.ledger import STEPS, RetrainLedger
from pipelines.workflows.config import JobConfig
from tests.faults.clusters import Cluster, cluster, free_port
from tests.faults.load import Answer, open_loop, question_about
from tests.faults.loop_picture import Loop, Phase, Request, draw
from tests.jobs.conftest import ROOT
from vlmodel.config import load_config

IMAGES = int(os.environ.get("RAYLM_LOOP_IMAGES", "4000"))
"""Training images, of the 4,000 that there are."""
TARS = 8
CHAMPION_EPOCHS, CYCLE_EPOCHS = (max(1, round(times * 4000 / IMAGES)) for times in (2, 3))
"""Fewer images are seen more often, so that the champion is above what the questions alone give away (0.67), and well
below what the second training reaches."""
RATE = 5.0  # requests/s
QUIET_S = 60.0
CHANCE = 0.001
"""Probability of a rise in accuracy as great as is asked for, were both models equally good."""

PHASES = {
    "planned": "job starts", "checked": "check", "trained": "training", "evaluated": "compare", "gated": "gate",
    "swapped": "swap",
}  # fmt: skip
"""What goes on until each record is written."""

ONE_THREAD = [
    "train.workers=1", "train.threads=1", "train.cpus_per_worker=1", "serve.model_threads=1",
    "train.step.sync_batchnorm=false", "tracking.system_metrics=false",
]  # fmt: skip
"""Training and service share the machine."""


def held_out(folder: Path) -> tuple[list[bytes], list[str]]:
    """Requests about the test split, and the right answers."""
    records = [one for one in easy_vqa.Config(folder=str(folder)).read().samples if isinstance(one, SourceSample)]
    asked = [
        (question_about(record.inputs["image"][0], pair.question), pair.answer or "")
        for record in records
        if record.split == "test"
        for pair in record.texts.questions
    ]
    random.Random(0).shuffle(asked)
    return [body for body, _ in asked], [answer for _, answer in asked]


def import_tars(head: Cluster, source: Path, folder: Path) -> tuple[Path, list[Path]]:
    """The folder that the first champion learns from, with half of the tars, and the other half elsewhere."""
    head.done(
        "import_data", "source.kind=easy_vqa", f"source.folder={source}", f"data.tars={folder / 'all'}",
        f"source.samples_per_shard={IMAGES // TARS}",
    )  # fmt: skip
    tars = sorted((folder / "all").glob("train-*.tar"))[:TARS]
    data = folder / "data"
    (data / "incoming").mkdir(parents=True)
    for tar in tars[: TARS // 2]:
        tar.rename(data / tar.name)
    return data, tars[TARS // 2 :]


def follow(head: Cluster, ledger: RetrainLedger, submission: str) -> dict[str, float]:
    """Wait for the end of the cycle. Returns when each record was written, in seconds of the monotonic clock."""
    written: dict[str, float] = {}
    asked = time.monotonic()
    while "committed" not in written:
        for number, step in enumerate(STEPS):
            if step not in written and list(ledger.path.glob(f"*/{number}-{step}.json")):
                written[step] = time.monotonic()
        if time.monotonic() - asked > 5:
            asked = time.monotonic()
            status = head.jobs(submission)["status"]
            assert status in ("PENDING", "RUNNING", "SUCCEEDED"), head.jobs(f"{submission}/logs")["logs"]
            assert status != "SUCCEEDED" or len(ledger.committed_cycles()) == 1, head.jobs(f"{submission}/logs")["logs"]
        time.sleep(0.1)
    return written


def retrain(head: Cluster, settings: Sequence[str]) -> str:
    """What a schedule does. Returns the id under which the retraining was submitted."""
    called = subprocess.run(
        [ROOT / "infra/retrain.sh", "--", *settings], env=head.environment, capture_output=True, text=True, check=False
    )
    assert called.returncode == 0, called.stderr
    return called.stdout.removeprefix("submitted: ").strip()


def loop_of(answers: Sequence[Answer], right: Sequence[bool], began: float, times: Sequence[float]) -> Loop:
    """The figures behind the picture.

    Args:
        right: whether each answer is.
        began: when the load did, in seconds of the monotonic clock, as all times.
        times: when the tars arrived, and then when each of the PHASES ended.
    """
    requests = [
        Request(answer.ended - began, answer.seconds, answer.version, is_right)
        for answer, is_right in zip(answers, right, strict=True)
    ]
    spans = itertools.pairwise(moment - began for moment in times)
    phases = [Phase(name, *span) for name, span in zip(PHASES.values(), spans, strict=True)]
    return Loop(sorted(requests, key=lambda request: request.at), times[0] - began, phases)


def keep(loop: Loop, folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    loop.save(folder / "whole-loop.json")
    draw(loop).savefig(folder / "whole-loop.png", dpi=200)
    print(f"loop: the picture is {folder / 'whole-loop.png'}", flush=True)


@pytest.mark.timeout(3600)
def test_new_tars_become_better_answers_and_no_request_fails(
    shared_data: Callable[[str], Path], tmp_path: Path
) -> None:
    source = shared_data("easy-vqa")
    bodies, solutions = held_out(source)
    settings = [
        "--config", "jobs/configs/easy_vqa.toml", f"storage={tmp_path / 'runs'}", f"data.tars={tmp_path / 'data'}",
        f"train.epochs={CHAMPION_EPOCHS}", f"retrain.epochs={CYCLE_EPOCHS}", f"serve.port={free_port()}", *ONE_THREAD,
    ]  # fmt: skip
    config = load_config(JobConfig, ROOT / "jobs/configs/easy_vqa.toml", settings[2:])
    registry = Registry.open(config.tracking, config.storage, config.registry)
    ledger = RetrainLedger(tmp_path / "runs" / "_retrain" / config.name)
    with cluster(tmp_path) as head:
        data, new = import_tars(head, source, tmp_path)
        for job in ("index", "train", "promote", "serve"):
            print(head.done(job, *settings), flush=True)
        first = registry.champion().version

        with open_loop(f"http://127.0.0.1:{config.serve.port}", RATE, bodies) as answers:
            began = time.monotonic()
            time.sleep(QUIET_S)
            arrived = time.monotonic()
            for tar in new:
                tar.rename(data / "incoming" / tar.name)
            submission = retrain(head, settings)
            written = follow(head, ledger, submission)
            time.sleep(QUIET_S)
        right = [answer.text == solutions[answer.number % len(solutions)] for answer in answers]
        times = [arrived, *(written[step] for step in PHASES)]
        keep(loop_of(answers, right, began, times), Path(os.environ.get("RAYLM_PICTURES") or tmp_path))
        said = head.jobs(f"{submission}/logs")["logs"]
        print(said, flush=True)

    # There is a new champion, by the registry and by the ledger, and each tar was consumed once.
    (cycle,) = ledger.cycles()
    second = cycle.records["trained"]["version"]
    assert cycle.records["gated"]["promoted"], cycle.records["gated"]["reason"]
    assert re.search(r"✓ no worse on new data +new data \d", said), "the gate did not look at the new tars"
    assert cycle.records["swapped"]["swapped"], cycle.records["swapped"]["reason"]
    assert registry.champion().version == second != first
    consumed = Counter(tar.name for one in ledger.committed_cycles() for tar in one.tars)
    assert consumed == Counter(tar.name for tar in new)
    # Nobody was refused, and the service went from one version to the other and not back.
    assert [answer for answer in answers if answer.status != 200] == []
    assert {answer.version for answer in answers if answer.ended < written["gated"]} == {first}
    assert {answer.version for answer in answers if answer.sent > written["swapped"]} == {second}
    assert {answer.version for answer in answers} == {first, second}
    # And its answers are better.
    before, after = (
        [is_right for answer, is_right in zip(answers, right, strict=True) if answer.version == version]
        for version in (first, second)
    )
    print(
        f"loop: {len(answers)} requests, none failed; accuracy over HTTP {sum(before) / len(before):.4f} of "
        f"{len(before)} answers before, {sum(after) / len(after):.4f} of {len(after)} after; slowest answer "
        f"{max(answer.seconds for answer in answers):.2f} s"
    )
    table = [[sum(answered), len(answered) - sum(answered)] for answered in (after, before)]
    assert stats.fisher_exact(table, alternative="greater").pvalue < CHANCE
