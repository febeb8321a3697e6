"""Settings of retraining on new tars."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from pipelines.retrain.window import PATTERN
from vlmodel.config import ConfigSection
from vlmodel.locations import Location


class RetrainConfig(ConfigSection):
    """Settings of retraining on new tars."""

    incoming: Location = ""
    """Folder or URI into which finished tars are moved; "" is the folder incoming within data.tars. They are never
    changed or deleted. Names that begin with a dot are ignored, so a tar can be written here under such a name and then
    renamed."""
    ledger: Location = ""
    """Local or shared folder that records which cycle consumed which tars; "" is _retrain/NAME in the storage
    folder."""
    period_minutes: int = Field(1440, ge=1)
    """Length of a window. Windows are counted from 1970 in UTC, so that a window of a day begins at midnight."""
    window: str = Field("", pattern=rf"^({PATTERN})?$")
    """The window to retrain in, by its beginning (20260131T0000Z); "" is the current one."""
    abandon: bool = False
    """First abandon the unfinished cycle; its tars are new again."""
    min_tars: int = Field(1, ge=1)
    """Smallest number of new tars for a cycle; fewer wait for a later window."""
    start: Literal["champion", "scratch"] = "champion"
    """Begin with the champion's weights, tokenizer and answers, or with new ones. Without a champion, or if more
    than 2 % of the new answers are not in its vocabulary, a cycle begins with new ones."""
    new_share: float = Field(0.5, gt=0, le=1)
    """Share of the new tars in the training data. The rest comes from data.tars (or data.mix) and from the tars of
    earlier cycles, by their sizes."""
    epochs: int = Field(0, ge=0)
    """Epochs of a cycle, each as long as all old and new data together; 0 is train.epochs."""
    swap: bool = True
    """Update the service that runs on the cluster if the cycle has made a new champion."""
    max_drift: float = Field(0.2, ge=0, le=1)
    """Largest divergence of new data from those of the cycle before, of each statistic (numbers and lengths of texts,
    answers, sizes of images): Jensen-Shannon divergence in bits, from 0 (equal) to 1 (disjoint), minus its expectation
    by chance. 1 allows all."""
