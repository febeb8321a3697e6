"""The examples in Python of the guide and README run as they stand, on a model that is registered as by the jobs."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from pipelines.registry.config import RegistryConfig
from pipelines.registry.registry import Registry
from pipelines.registry.version_score import VersionScore
from pipelines.tracking.address import TrackingConfig
from pipelines.tracking.tracker import Tracker
from tests.pipelines.registry.conftest import asked, picture, save_model

ROOT = Path(__file__).resolve().parents[2]


def test_the_example_asks_the_champion(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    guide = (ROOT / "docs" / "GUIDE.md").read_text(encoding="utf-8")
    blocks = re.findall(r"^```python\n(.*?)^```", guide, re.M | re.S)
    assert len(blocks) == 2
    monkeypatch.chdir(tmp_path)
    (tmp_path / "picture.jpg").write_bytes(picture(0))
    storage, tracking = str(tmp_path / "build" / "runs"), TrackingConfig(model_name="scenes")
    with Tracker.open(tracking, storage, "demo") as tracker:
        pass
    score = VersionScore("accuracy", 0.9, 0.67, "ab" * 32, "val", 1000)
    registry = Registry.open(tracking, storage, RegistryConfig(smoke_test=False))
    model = save_model(tmp_path / "checkpoint", seed=0)
    version = registry.log_model(tracker.run_id, model, asked(), score, card="# scenes")
    registry.promote(version.version, "a test", over=None)
    notebook: dict[str, Any] = {"__name__": "notebook"}
    exec("\n".join(blocks), notebook)
    first, *answers = capsys.readouterr().out.splitlines()
    assert first.startswith("scenes 1 ")
    assert (Path(first.split()[2]).parents[1] / "README.md").read_text() == "# scenes", "beside the model's folder"
    assert [re.fullmatch(r"(.*\?) \['(yes|no|red|blue) 0\.\d\d', .*\]", line)[1] for line in answers] == [
        "what shape is red?", "how many circles are there?",
    ]  # fmt: skip
    [block] = re.findall(r"^```python\n(.*?)^```", (ROOT / "README.md").read_text(encoding="utf-8"), re.M | re.S)
    (tmp_path / "picture.png").write_bytes(picture(0))
    exec(block, {"folder": notebook["champion"].folder})
    assert re.fullmatch(r"(\[|\()+'(yes|no|red|blue)', 0\.\d+\).*\n", capsys.readouterr().out)
