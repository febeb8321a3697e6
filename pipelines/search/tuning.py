"""Runs a search by Ray Tune: it samples settings, runs trials in parallel, and stops the worst early (ASHA).

ASHA is of Li et al., "A System for Massively Parallel Hyperparameter Tuning" (2018, arxiv.org/abs/1810.05934).
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from pathlib import PurePosixPath
from typing import Any

import numpy as np
import ray
from ray import ObjectRef, tune
from ray.actor import ActorHandle
from ray.tune.schedulers import ASHAScheduler
from ray.tune.search.basic_variant import BasicVariantGenerator

from pipelines.search.config import TuneConfig
from pipelines.search.errors import SearchError
from pipelines.search.grid import format_value, short_setting_name
from pipelines.search.remote import run_remotely
from pipelines.search.results import SearchTrial, TrainingResult
from pipelines.search.trial_controller import create_trial_controller

SCORE = "score"
_DIGITS = 4
_STOP_S = 600.0

Train = Callable[[int, dict[str, Any], ActorHandle[Any]], TrainingResult]
"""Trains the trial of this number with these settings, reporting each epoch to the trial controller."""


def run_search(train: Train, config: TuneConfig, folder: str, seed: int, epochs: int, metric: str) -> list[SearchTrial]:
    """Run all trials; a search in the same folder continues, and repeats those that failed.

    Ray Tune does not store the results that ASHA compared before an interruption: the trials of a continued search are
    compared with each other only.

    Args:
        folder: for Tune's state, in storage.
        epochs: of a trial that is not stopped.
        metric: name of the score, for the printed lines.

    Raises:
        SearchError: the state in ``folder`` cannot be continued.
    """
    # No tables and files of Tune: the job prints and stores the results.
    os.environ["RAY_AIR_NEW_OUTPUT"] = "0"
    os.environ["TUNE_DISABLE_AUTO_CALLBACK_LOGGERS"] = "1"
    # Ctrl-C ends the job at once, and the next job continues; Tune would end the search.
    os.environ["TUNE_DISABLE_SIGINT_HANDLER"] = "1"
    os.environ["RAY_CHDIR_TO_TRIAL_DIR"] = "0"
    # The trial's process only waits, and Tune requires that it reserves something.
    trainable = tune.with_resources(tune.with_parameters(_SearchTrainable, train=train), {"CPU": 0.01})
    if tune.Tuner.can_restore(folder):
        tuner = tune.Tuner.restore(folder, trainable, resume_errored=True, param_space=to_tune_space(config))
    else:
        storage, _, name = folder.rpartition("/")
        tuner = tune.Tuner(
            trainable,
            param_space=to_tune_space(config),
            tune_config=tune.TuneConfig(
                metric=SCORE,
                mode="max",
                num_samples=config.samples,
                search_alg=BasicVariantGenerator(max_concurrent=config.concurrent, random_state=seed),
                scheduler=ASHAScheduler(
                    time_attr="epoch",
                    max_t=epochs,
                    grace_period=min(config.grace_epochs, epochs),
                    reduction_factor=config.reduction,
                ),
                trial_dirname_creator=_trial_folder_name,
            ),
            run_config=tune.RunConfig(
                name=name,
                storage_path=storage,
                verbose=0,
                callbacks=[_EpochPrinter(config.samples, metric)],
                # The trainings write their own checkpoints.
                checkpoint_config=tune.CheckpointConfig(checkpoint_at_end=False),
            ),
        )
    results = tuner.fit()
    if len(results) < config.samples:
        raise SearchError(
            f"Ray Tune found {len(results)} of {config.samples} trials in {folder}; remove that folder and run again: "
            "the trained models are stored beside it"
        )
    trials = [
        SearchTrial(
            int(PurePosixPath(result.path).name), to_plain_settings(result.config or {}), str(result.error or "")
        )
        for result in (results[n] for n in range(len(results)))
    ]
    return sorted(trials, key=lambda trial: trial.number)


def to_tune_space(config: TuneConfig) -> dict[str, Any]:
    """Convert the search space to Tune's distributions."""
    return {
        key: tune.choice(values) if kind == "choice" else getattr(tune, kind)(*values)
        for key, distribution in config.space.items()
        for kind, values in distribution.items()
    }


def to_plain_settings(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Convert sampled values to settings: Python numbers, rounded so that they can be read and typed."""
    values = {key: value.item() if isinstance(value, np.generic) else value for key, value in settings.items()}
    return {key: float(f"{v:.{_DIGITS}g}") if isinstance(v, float) else v for key, v in values.items()}


class _SearchTrainable(tune.Trainable):
    """A trial of Tune. Its training runs in another process, outside the trial's placement group."""

    def setup(self, config: dict[str, Any], train: Train) -> None:  # type: ignore[override]
        self._train, self._settings = train, to_plain_settings(config)
        self._epoch = 0
        self._training: ObjectRef[Any] | None = None

    def step(self) -> dict[str, Any]:
        """Wait until the next epoch or the training ends."""
        if self._training is None:
            self._trial_controller = create_trial_controller()
            self._training = run_remotely(
                self._train, _trial_number(self.trial_id), self._settings, self._trial_controller
            )
        next_epoch: ObjectRef[Any] = self._trial_controller.wait_for_next_epoch.remote(self._epoch)
        (ready, *_), _ = ray.wait([next_epoch, self._training], num_returns=1)
        if ready == next_epoch:
            self._epoch, score = ray.get(next_epoch)
            return {"epoch": self._epoch, SCORE: score}
        result: TrainingResult = ray.get(self._training)
        if result.status == "failed":
            raise RuntimeError(result.reason)
        return {"epoch": result.epochs, SCORE: result.score or 0.0, "done": True}

    def cleanup(self) -> None:
        """End the training at the epoch at which it waits."""
        if self._training is not None:
            ray.get(self._trial_controller.stop.remote())
            ray.wait([self._training], timeout=_STOP_S)


class _EpochPrinter(tune.Callback):
    """Prints a line for each epoch of each trial."""

    def __init__(self, samples: int, metric: str) -> None:
        self._samples, self._measure = samples, metric

    def on_trial_result(self, iteration: int, trials: list[Any], trial: Any, result: dict[str, Any], **_: Any) -> None:
        if result.get("done") and SCORE not in result:
            return
        settings = "  ".join(
            f"{short_setting_name(key)}={format_value(value)}" for key, value in to_plain_settings(trial.config).items()
        )
        print(
            f"tune  trial {_trial_number(trial.trial_id) + 1} of {self._samples}  epoch {result['epoch']}  "
            f"{self._measure} {result[SCORE]:.4f}  {settings}",
            flush=True,
        )


def _trial_number(trial_id: str) -> int:
    """Return the number of a trial, from its id of the form 1f3ab_00007."""
    return int(trial_id.rpartition("_")[2])


def _trial_folder_name(trial: Any) -> str:
    return str(_trial_number(trial.trial_id))
