"""Settings of the model registry and of its gate."""

from __future__ import annotations

from typing import Annotated, Literal

import pyarrow as pa
from pydantic import Field, field_validator

from pipelines.evaluate.schema import SCHEMA
from vlmodel.config import ConfigSection
from vlmodel.locations import Location
from vlmodel.operations.base import all_operations

Share = Annotated[float, Field(ge=0, le=1)]
Rewording = Literal["case", "punctuation", "politeness"]
QUESTION_TYPE = "question_type"


class LiveTrafficConfig(ConfigSection):
    """Requirements that a candidate must meet on real requests for which it was served beside the champion
    (serve.challenger).
    """

    folder: Location = ""
    """serve.challenger.folder of that service; "" requires no live traffic. Only requests that exactly this candidate
    and this champion were asked count."""
    feedback: str = ""
    """serve.feedback.folder, to compare both with the answers that people corrected; "" skips this."""
    requests: int = Field(200, ge=1)
    """Smallest number of requests that both were asked."""
    few: Literal["fail", "pass"] = "fail"
    """What happens with fewer requests. "fail": the candidate fails; if it fails for nothing else, it becomes the
    challenger and can be served as one. "pass": the gate decides by the hold-out, as without live traffic."""
    errors: Share = 0.01
    """Largest difference between its share of failed requests and the champion's."""
    agreement: dict[str, Share] = Field(default_factory=lambda: _default_minimum_agreements())
    """Lowest agreement with the champion's answers, by operation (vqa, caption, match, ...); those left out are not
    checked."""
    latency: float = Field(1.5, gt=0)
    """Largest median and 95th percentile of the latency, as multiples of the champion's."""

    @field_validator("agreement")
    @classmethod
    def _check_operations_exist(cls, agreement: dict[str, float]) -> dict[str, float]:
        if unknown := sorted(agreement.keys() - all_operations().keys()):
            raise ValueError(f"{unknown[0]!r} is no operation; they are {', '.join(all_operations())}")
        return agreement


def _default_minimum_agreements() -> dict[str, float]:
    least = {name: operation.least_agreement for name, operation in all_operations().items()}
    return {name: share for name, share in least.items() if share is not None}


class GateConfig(ConfigSection):
    """Requirements that a candidate must meet before it becomes the champion."""

    split: str = "val"
    """The hold-out split; both models answer all of it. The test split is for reports, not for choices."""
    margin: float = Field(0.0, ge=0)
    """The candidate's metric must exceed the champion's by more than this, at significance level alpha."""
    alpha: float = Field(0.05, gt=0, lt=0.5)
    """Significance level of the one-sided intervals and of McNemar's test: the probability of calling a candidate
    better that is not."""
    slices: list[str] = [QUESTION_TYPE]
    """What the hold-out is sliced by: "question_type" (the first two words of the text), or a text column of the
    answers table. A champion that always gives one answer is perfect on the slice of that answer, so "target", the
    right answer, keeps it from ever being replaced."""
    tolerance: Share = 0.02
    """Largest drop on a slice, on another task of the model, on this split of a retraining's new tars, or on corrected
    answers; a larger, significant drop fails the gate."""
    tolerances: dict[str, Share] = {}
    """Of single slices, in place of tolerance, as {"target=yes" = 0.05}."""
    agreement: dict[Rewording, Share] = {"case": 0.95, "punctuation": 0.8, "politeness": 0.2}
    """Lowest share of answers that stay the same when texts are reworded, by kind of rewording; kinds left out are not
    checked. The low value for politeness is for language encoders that were trained on few fixed phrases; raise it for
    others."""
    image_use: Share = 0.05
    """Lowest share of rows whose answer changes, or loses 0.1 of its confidence, when another sample's inputs are shown
    in the place of its own."""
    fact_flips: Share = 0.6
    """Of models that read facts: lowest share of answers that follow an edit of the fact on which they depend. Facts of
    up to 200 rows are edited such that the right answer is known."""
    fact_use: Share = 0.05
    """Of models that read facts: lowest share of rows whose answer changes, or loses 0.1 of its confidence, when they
    get another row's facts in the place of their own."""
    known_answers: Share = 0.5
    """A champion whose labels hold less than this share of the hold-out's right answers is no opponent: the candidate
    is judged as if there were no champion."""
    behaviour_tolerance: Share = 0.1
    """How far the agreement with rewordings, and the use of the image and of facts, may be below the champion's."""
    live: LiveTrafficConfig = LiveTrafficConfig()

    @field_validator("slices")
    @classmethod
    def _check_slice_columns(cls, slices: list[str]) -> list[str]:
        known = [QUESTION_TYPE, *(field.name for field in SCHEMA if pa.types.is_string(field.type))]
        for name in slices:
            if name not in known:
                raise ValueError(f"{name!r} is no text column of the answers; use {', '.join(known)}")
        return slices


class RegistryConfig(ConfigSection):
    """Settings of how models are registered and promoted."""

    gate: GateConfig = GateConfig()
    smoke_test: bool = True
    """Load each model in a fresh process, from only its stored files, before it is registered and promoted."""
    cache: str = ""
    """Local folder of downloaded models; empty: models in the storage folder."""
    force: str = ""
    """Promote although the gate says no, for this reason, which is recorded; the promote job's --force REASON."""
    rollback: bool = False
    """Promote nothing, and make the previous champion the champion again; the promote job's flag --rollback."""
