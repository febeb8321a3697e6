"""Settings of the model registry and of its gate."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from pipelines.records.comparisons import Task
from vlmodel.config import Section
from vlmodel.locations import Location

Share = Annotated[float, Field(ge=0, le=1)]
Rewording = Literal["case", "punctuation", "politeness"]


class LiveConfig(Section):
    """What real requests must have shown of a candidate that was served beside the champion (serve.challenger)."""

    folder: Location = ""
    """serve.challenger.folder of that service; "" asks for no live traffic. Only requests that were put to exactly the
    candidate and the champion count."""
    feedback: str = ""
    """serve.feedback.folder, to hold both against what people corrected; "" leaves that out."""
    requests: int = Field(200, ge=1)
    """Fewest requests that both were asked."""
    few: Literal["fail", "pass"] = "fail"
    """What fewer mean: a candidate that "fail"s for this alone becomes the challenger, and can be served as one; or
    "pass": the gate decides by the hold-out, as without live traffic."""
    errors: Share = 0.01
    """By how much the share of requests that it failed may be above the champion's."""
    agreement: dict[Task, Share] = {"vqa": 0.7, "match": 0.7}
    """Least agreement with the champion's answers (see serve/agreement.py); tasks left out are not asked for."""
    latency_p50: float = Field(1.5, gt=0)
    """Most that its median latency may be, in times of the champion's."""
    latency_p95: float = Field(1.5, gt=0)
    """The same of the 95th percentile."""
    corrections: Share = 0.02
    """By how much fewer of the corrected answers it may have right; it is held against it beyond that and chance."""


class GateConfig(Section):
    """What a candidate must show before it becomes the champion."""

    split: str = "val"
    """The hold-out: both models answer all of it. The test split is for reports, not for choices."""
    margin: float = Field(0.0, ge=0)
    """By more than this the candidate's figure must be above the champion's, with the certainty of alpha."""
    alpha: float = Field(0.05, gt=0, lt=0.5)
    """Probability of calling a candidate better that is not: of the one-sided intervals and of McNemar's test."""
    resamples: int = Field(2000, ge=100)
    """Resamples of each bootstrap."""
    seed: int = Field(0, ge=0)
    """Of the resamples, and of the choice of images for the behavioural checks."""
    slices: list[str] = ["question_type", "target"]
    """By what the hold-out is cut: "question_type" (the first two words of the text), or a text column of the answers
    table, such as "target", the right answer."""
    slice_rows: int = Field(50, ge=2)
    """Slices of fewer rows are not judged."""
    slice_tolerance: Share = 0.02
    """A slice, or another task of the model, may be worse than the champion's by this much. It is held against the
    candidate where it is worse by more and the loss is more than chance (alpha)."""
    slice_tolerances: dict[str, Share] = {}
    """Tolerances of single slices in place of slice_tolerance, as {"target=yes" = 0.05}."""
    new_tolerance: Share = 0.02
    """A retraining also compares both models on this split of its new tars, where the candidate may be worse by this
    much. It is held against the candidate where it is worse by more and the loss is more than chance (alpha)."""
    probe_images: int = Field(64, ge=2)
    """Images of the hold-out with which the behavioural checks are made, in the process of the job."""
    agreement: dict[Rewording, Share] = {"case": 0.95, "punctuation": 0.8, "politeness": 0.2}
    """Least share of answers that stay the same when texts are reworded; kinds left out are not asked for. A language
    encoder that was trained on few fixed phrases has never met a politeness, so raise that one for others."""
    image_use: Share = 0.05
    """Least share of rows whose answer changes, or loses 0.1 of its confidence, when another image is shown."""
    blank_confidence: Share = 0.1
    """By how much the mean confidence about a blank image may be above that about the true one."""
    behaviour_tolerance: Share = 0.1
    """By how much agreement with rewordings and use of the image may be below the champion's."""
    live: LiveConfig = LiveConfig()


class RegistryConfig(Section):
    """Registering and promoting models."""

    gate: GateConfig = GateConfig()
    smoke_test: bool = True
    """Load each model in a fresh process, from its stored files alone, before it is registered and promoted."""
    cache: str = ""
    """Local folder of downloaded models; empty: models in the storage folder."""
    rollback: bool = False
    """Promote nothing, and make the former champion the champion again; the promote job's flag --rollback."""
