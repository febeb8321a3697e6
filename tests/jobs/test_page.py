"""The page of a service in a real browser: what the jobs have trained and deployed, as a visitor meets it."""

from __future__ import annotations

import base64
import csv
import io
import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pipelines.workflows import import_data, index, promote, serve, train
from pipelines.workflows.config import JobConfig
from pipelines.workflows.workspace import Workspace
from tests.browser import browser_page, find_browser
from tests.jobs.conftest import ROOT, SMALL, coloured_pictures
from tests.pipelines.serve.deployment.test_deploy import free_port
from vlmodel.config import load_config

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1200)]

POLITE = "could you tell me what colour it is?"
SHOWN_PICTURE = """(async () => {
    const shown = document.querySelector("#preview"), canvas = document.createElement("canvas");
    await shown.decode();
    [canvas.width, canvas.height] = [shown.naturalWidth, shown.naturalHeight];
    canvas.getContext("2d").drawImage(shown, 0, 0);
    return canvas.toDataURL("image/png");
})()"""


def workspace(folder: Path, port: int, *more: str) -> Workspace:
    pictures = folder / "pictures"
    source = [f"source.file={pictures / 'questions.csv'}", "source.kind=table", "source.samples_per_shard=40"]
    places = [f"storage={folder / 'runs'}", f"data.tars={folder / 'data'}", f"serve.feedback.folder={folder / 'spool'}"]
    small = [f"serve.port={port}", "serve.num_cpus=0.5", "serve.model_threads=1", "registry.smoke_test=false"]
    # What the gate thinks of so small a model is not the matter here.
    small += ["registry.force=a model to look at"]
    config = ROOT / "jobs/configs/demo.toml"
    return Workspace(load_config(JobConfig, config, [*SMALL, *source, *places, *small, "train.epochs=4", *more]))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    find_browser()
    folder = tmp_path_factory.mktemp("page")
    (folder / "pictures").mkdir()
    coloured_pictures(folder / "pictures", train=96)
    return folder


@pytest.fixture(scope="module")
def service(folder: Path, ray_local: None) -> Iterator[tuple[Workspace, str]]:
    """The deployed champion, and its address."""
    work = workspace(folder, free_port())
    for job in (import_data, index, train, promote):
        job.run(work)
    with serve.run_service(work) as address:
        yield work, address


def right_answers(folder: Path, image: bytes) -> dict[str, str]:
    """The table's answer to each question about the picture that looks like this one."""
    with open(folder / "pictures" / "questions.csv", newline="") as table:
        rows = list(csv.DictReader(table))
    shown = np.asarray(Image.open(io.BytesIO(image)).convert("RGB"))
    for name in dict.fromkeys(row["image"] for row in rows):
        if np.array_equal(np.asarray(Image.open(folder / "pictures" / name).convert("RGB")), shown):
            return {row["question"]: row["answer"] for row in rows if row["image"] == name}
    raise AssertionError("the page offers a picture that is not one of the table's")


def test_a_visitor_asks_corrects_and_meets_the_next_version(
    folder: Path, service: tuple[Workspace, str], tmp_path: Path
) -> None:
    work, address = service
    with browser_page(tmp_path / "profile") as page:
        page.open(address)
        page.see("#model-text", "version 1")
        page.press("#examples button")
        questions = page.texts("#suggestions button")
        image = base64.b64decode(page.evaluate(SHOWN_PICTURE).partition(",")[2])
        right = right_answers(folder, image)
        assert set(questions) <= set(right)

        page.press("#suggestions button")
        page.see(".turn .meta", "version 1")
        assert page.texts(".turn h2") == questions[:1]
        assert page.texts(".turn .name")[0] == right[questions[0]]

        page.press(".turn > .look")
        page.type(".correction input", "crimson")
        page.press(".correction button")
        page.see(".turn .meta", "“crimson” is kept for the next training")
        [file] = (folder / "spool").glob("*/corrections/*.json")
        kept = json.loads(file.read_text())
        assert (kept["question"], kept["answer"], kept["version"]) == (questions[0], "crimson", "1")

        page.type("#question", POLITE)
        page.press("form .send")
        page.see(".turn .problem", "“could”, “you”, “tell”, “me”")

        # Another version takes over while the page is open.
        second = workspace(folder, work.config.serve.port, "name=second")
        train.run(second)
        promote.run(second)
        serve.deploy_model(second)
        page.press("#suggestions button")
        page.see(".turn .meta", "version 2")
        page.see("#model-text", "version 2")
        assert page.texts(".turn .name")[0] == right[questions[0]]
