"""Drill: ``kill -9`` of a retraining at every boundary between its steps, and in the midst of its training.

Whatever happens, each tar is consumed by exactly one cycle, the champion changes exactly once, and registry, ledger and
service agree.
"""

from __future__ import annotations

import itertools
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest

from pipelines.registry.registry import Registry
from pipelines.registry.versions import PREVIOUS, PROMOTION_TAG
from pipelines.retrain.ledger import STEPS, RetrainLedger
from pipelines.serve.client import Client
from pipelines.tracking.store import connect_to_store
from pipelines.train import checkpoint
from pipelines.workflows.config import JobConfig
from tests.faults.clusters import Cluster, cluster, free_port
from tests.faults.trainings import started
from tests.jobs.conftest import ROOT, SMALL, coloured_pictures
from tests.jobs.test_retrain import COLOURS, drop
from tests.pipelines.registry.conftest import picture
from vlmodel.config import load_config

# In this order: each goes on from the champion that the one before has left.
pytestmark = pytest.mark.timeout(1800)

MONDAY, FRIDAY = "20260105T0000Z", "20260109T0000Z"
LEAVE_SOMETHING = ("trained", "gated", "swapped", "committed")
"""Steps that change more than the ledger: a kill when they are done and not recorded has them done again."""
STEP_S = 300.0
BOUNDARIES = list(itertools.pairwise(STEPS))
"""Between a step whose record is written and the one that follows."""


class Retraining:
    """The starts of one model's retraining on a cluster, each a process that leads a group of its own."""

    def __init__(self, folder: Path, head: Cluster) -> None:
        (folder / "pictures").mkdir()
        self.overrides = [
            *SMALL, *coloured_pictures(folder / "pictures", train=96), f"storage={folder / 'runs'}",
            f"data.tars={folder / 'data'}", "train.workers=1", "train.threads=1", "train.step.sync_batchnorm=false",
            "train.epochs=6", "train.checkpoint_steps=4", "registry.smoke_test=false", f"serve.port={free_port()}",
            # Of a first champion that has learned nothing it means nothing that it gives the same answer however it is
            # asked, and another one about another image.
            "registry.gate.agreement={}", "registry.gate.behaviour_tolerance=1", "registry.gate.image_use=0",
            "serve.num_cpus=0.5", "serve.model_threads=1", "retrain.new_share=1.0",
        ]  # fmt: skip
        self.config = load_config(JobConfig, ROOT / "jobs/configs/demo.toml", self.overrides)
        self.folder, self.head = folder, head
        self.incoming = folder / "data" / "incoming"
        self.ledger = RetrainLedger(folder / "runs" / "_retrain" / self.config.name)

    @property
    def registry(self) -> Registry:
        return Registry.open(self.config.tracking, self.config.storage, self.config.registry)

    @property
    def champion(self) -> str:
        found = self.registry.find()
        return found.version if found else ""

    @property
    def served(self) -> str:
        """The version that answers."""
        with Client(f"http://127.0.0.1:{self.config.serve.port}") as client:
            return client.ask(picture(0), ["is it red?"]).model.version

    def promotions(self) -> dict[str, bool]:
        """All registered versions, and whether each has been made the champion."""
        client = connect_to_store(f"sqlite:///{self.folder}/runs/mlflow.db")
        found = client.search_model_versions(f"name = '{self.config.tracking.model_name}'")
        return {str(version.version): PROMOTION_TAG in version.tags for version in found}

    def start(self, *overrides: str, program: Sequence[str] = ("jobs.retrain",)) -> subprocess.Popen[bytes]:
        command = [sys.executable, "-m", *program, "--config", "jobs/configs/demo.toml", *self.overrides]
        with (self.folder / "log").open("ab") as log:
            process = subprocess.Popen(
                [*command, *overrides], env=self.head.environment, cwd=ROOT, stdin=subprocess.DEVNULL, stdout=log,
                stderr=subprocess.STDOUT, start_new_session=True,
            )  # fmt: skip
        started.append(process)
        return process

    def finish(self, *overrides: str, job: str = "retrain") -> str:
        """Run to a good end; returns what it printed."""
        before = len(self.said())
        assert self.start(*overrides, program=[f"jobs.{job}"]).wait(900) == 0, self.said()[before:]
        return self.said()[before:]

    def kill_when(self, reached: Callable[[], bool], *overrides: str) -> None:
        running = self.start(*overrides)
        try:
            deadline = time.monotonic() + STEP_S
            while not reached():
                assert running.poll() is None, self.said()
                assert time.monotonic() < deadline, self.said()
                time.sleep(0.002)
        finally:
            os.killpg(running.pid, signal.SIGKILL)
            running.wait()

    def spoiled(self, step: str, how: str, *overrides: str) -> int:
        """The exit status of a start in which a step ends as tests/faults/spoiled_retrain.py says."""
        return self.start(*overrides, program=("tests.faults.spoiled_retrain", step, how)).wait(900)

    def said(self) -> str:
        """All that was printed by all starts."""
        log = self.folder / "log"
        return log.read_text(errors="replace") if log.exists() else ""

    def done(self) -> str:
        """The last step of the unfinished cycle that is recorded."""
        unfinished = self.ledger.unfinished_cycle()
        return unfinished.last_step if unfinished else ""

    def consumed_tars(self) -> Counter[str]:
        return Counter(tar.name for cycle in self.ledger.committed_cycles() for tar in cycle.tars)


@pytest.fixture(scope="module")
def retraining(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Retraining]:
    """A first champion that has learned nothing, and the service that answers with it."""
    folder = tmp_path_factory.mktemp("killed")
    with cluster(folder) as head:
        made = Retraining(folder, head)
        made.finish(job="import_data")
        made.finish(job="index")
        nothing = ["train.epochs=1", "train.optimizer.head_lr=1e-9", "train.optimizer.backbone_lr=1e-9"]
        made.finish(*nothing, job="train")
        made.registry.promote("1", "the first", over=None)
        made.finish(job="serve")
        assert made.served == "1"
        yield made


def test_a_retraining_that_is_killed_at_every_boundary_happens_once(retraining: Retraining) -> None:
    window = f"retrain.window={MONDAY}"
    for seed, name in enumerate(("a", "b")):
        drop(retraining.incoming, name, seed)
    run = retraining.folder / "runs" / f"{retraining.config.name}-{MONDAY}"

    def written(step: str) -> Callable[[], bool]:
        return (retraining.ledger.path / MONDAY / f"{STEPS.index(step)}-{step}.json").exists

    def in_training() -> bool:
        return run.is_dir() and checkpoint.state_of_newest_checkpoint(str(run)) is not None

    for step, following in BOUNDARIES:
        retraining.kill_when(written(step), window)
        if retraining.done() == following:
            continue  # a quick step: it was recorded before the kill came
        assert retraining.done() == step
        if following == "trained":
            retraining.kill_when(in_training, window)
            assert retraining.done() == step
        if following == "gated":
            assert retraining.spoiled("gated", "raises", window) == 1
            assert "the store is away" in retraining.said()
            assert retraining.champion == "1"
        if following in LEAVE_SOMETHING:
            assert retraining.spoiled(following, "dies", window) == -signal.SIGKILL
        # Whatever was done, nothing more is recorded.
        assert retraining.done() == step
    retraining.finish(window)

    (cycle,) = retraining.ledger.cycles()
    assert cycle.is_committed
    assert retraining.consumed_tars() == {"a.tar": 1, "b.tar": 1}
    assert cycle.records["trained"]["version"] == retraining.champion == retraining.served == "2"
    # Of three trainings that were begun or done again there is one version, and it was promoted once, over the first.
    assert retraining.promotions() == {"1": True, "2": True}
    assert retraining.registry.version("2").previous_champion == "1"
    assert retraining.registry.find(PREVIOUS).version == "1"
    assert sorted(file.name for file in retraining.incoming.glob("*.tar")) == ["a.tar", "b.tar"]

    before = {path: path.stat().st_mtime_ns for path in retraining.ledger.path.rglob("*.json")}
    assert f"window {MONDAY} has had its cycle" in retraining.finish(window)
    assert {path: path.stat().st_mtime_ns for path in retraining.ledger.path.rglob("*.json")} == before


def test_missed_windows_are_one_cycle_and_a_worse_candidate_changes_nothing(retraining: Retraining) -> None:
    champion = retraining.champion
    wrong = dict(zip(COLOURS, [*list(COLOURS.values())[1:], COLOURS["red"]], strict=True))
    for seed, name in enumerate(("tuesday", "wednesday", "thursday")):
        drop(retraining.incoming, name, 10 + seed, wrong)
    said = retraining.finish(f"retrain.window={FRIDAY}")
    cycle = retraining.ledger.committed_cycles()[-1]
    assert (cycle.id, len(cycle.tars)) == (FRIDAY, 3)
    assert set(retraining.consumed_tars().values()) == {1}
    candidate = cycle.records["trained"]["version"]
    assert not cycle.records["gated"]["promoted"]
    assert "better on the hold-out" in cycle.records["gated"]["reason"]
    assert f"version {candidate} was not promoted" in said
    assert not retraining.promotions()[candidate]
    assert retraining.champion == retraining.served == champion
