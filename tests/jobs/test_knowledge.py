"""A store of facts from its source to an answer, by the jobs."""

from __future__ import annotations

import json
import re
import subprocess
from collections.abc import Callable
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from jobs.job import main
from pipelines.knowledge.snapshot import read_snapshot
from pipelines.knowledge.store import FactStore
from pipelines.knowledge.triples import Triple, triple_to_fact
from tests.jobs.conftest import SMALL
from tests.pipelines.data.tar_maker import build_tar, photo

THINGS = {"tomato": "red", "grass": "green", "sky": "blue", "blood": "red", "leaf": "green", "sea": "blue"}


def test_a_store_by_names_needs_no_cluster(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "facts.tsv").write_text("sky\tIs\tblue\nsky\t\tblue\n")
    settings = [
        f"knowledge.store={tmp_path / 'store'}",
        f"knowledge.source.files={json.dumps([str(tmp_path / 'facts.tsv')])}",
    ]
    assert main("knowledge", settings) == 0
    assert "1 facts written, 0 were there; 1 lines are no facts (1 empty_part)" in capsys.readouterr().out
    assert main("knowledge", settings) == 0
    assert "0 facts written, 1 were there" in capsys.readouterr().out
    assert main("knowledge", [f"knowledge.store={tmp_path / 'store'}"]) == 1
    assert "knowledge.source.files" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_model_learns_to_read_facts_and_keeps_to_a_version(
    tmp_path: Path, job: Callable[..., subprocess.CompletedProcess[str]]
) -> None:
    data = tmp_path / "data"
    data.mkdir()
    things = list(THINGS.items())
    for split, count in (("train", 48), ("val", 12)):
        members: list[tuple[str, bytes]] = []
        for n in range(count):
            thing, colour = things[n % len(things)]
            asked = {"questions": [{"question": f"what colour is the {thing}?", "answer": colour}]}
            members += [(f"{split}{n}.jpg", photo(n)), (f"{split}{n}.json", json.dumps(asked).encode())]
        (data / f"{split}-000000.tar").write_bytes(build_tar(members))
    (tmp_path / "facts.tsv").write_text("".join(f"{thing}\tIs\t{colour}\n" for thing, colour in things))
    settings = [
        *SMALL, f"data.tars={data}", f"storage={tmp_path / 'runs'}", f"knowledge.store={tmp_path / 'store'}",
        f"knowledge.source.files={json.dumps([str(tmp_path / 'facts.tsv')])}", "train.workers=1",
        "registry.smoke_test=false", "model.knowledge.kind=injection", "model.knowledge.link.by=names", "name=facts",
            "evaluate.split=val",
    ]  # fmt: skip
    refused = job("train", "--config", "jobs/configs/demo.toml", *settings, check=False)
    assert refused.returncode == 1
    job("knowledge", "--config", "jobs/configs/demo.toml", *settings)
    store = FactStore(str(tmp_path / "store"))
    version = store.version
    for name in ("index", "train", "evaluate"):
        job(name, "--config", "jobs/configs/demo.toml", *settings)
    started = json.loads(next((tmp_path / "runs").rglob("data.json")).read_text())
    assert started["(knowledge)"] == str(version)
    store.put([triple_to_fact(Triple("sky", "Is", "green"), "later")], None)
    job("train", "--config", "jobs/configs/demo.toml", *settings)
    assert len(read_snapshot(store, version)) == len(THINGS)
    answers = tmp_path / "answers.parquet"
    job("predict", "--config", "jobs/configs/demo.toml", *settings, f"evaluate.out={answers}", "evaluate.split=val")
    assert pq.read_table(answers).num_rows == 12
    _check_gate_and_version(tmp_path, job, settings, version)
    _check_student(tmp_path, job, settings)


def _check_gate_and_version(
    tmp_path: Path, job: Callable[..., subprocess.CompletedProcess[str]], settings: list[str], version: int
) -> None:
    """The gate edits facts; each package has the version of its training, and golden answers have their facts."""
    said = job("promote", "--config", "jobs/configs/demo.toml", *settings, check=False).stdout
    assert re.search("[✓✗] edited facts ", said)
    assert re.search("[✓✗] exchanged facts ", said)
    packages = list((tmp_path / "runs" / "models").rglob("facts.json"))
    assert [json.loads(file.read_text())["version"] for file in packages] == [version]
    (golden,) = (tmp_path / "runs" / "models").rglob("golden.json")
    first = json.loads(golden.read_text())[0]
    assert first["knowledge_version"] == version
    assert [one["fact"]["head"] in first["text"] for one in first["facts"]] == [True]


def _check_student(tmp_path: Path, job: Callable[..., subprocess.CompletedProcess[str]], settings: list[str]) -> None:
    """A model without facts learns from the one with facts."""
    student = [*settings, "model.knowledge.kind=none", "name=student", "train.teacher.model=1"]
    said = job("train", "--config", "jobs/configs/demo.toml", *student).stdout
    assert "learns from" in said
    assert (tmp_path / "runs" / "student" / "teacher" / "config.json").is_file()
    other = [*student, "name=other", "processor.image_size=48"]
    refused = job("train", "--config", "jobs/configs/demo.toml", *other, check=False)
    assert refused.returncode == 1
    assert "settings of processor" in refused.stderr
