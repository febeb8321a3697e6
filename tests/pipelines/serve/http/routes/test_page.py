"""The page in a real browser, over a tiny model that can do all tasks: what a visitor does, and what he then sees."""

from __future__ import annotations

import asyncio
import base64
import json
import re
import socket
import subprocess
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import uvicorn
from fastapi.responses import HTMLResponse, Response

from pipelines.registry import own_examples
from pipelines.registry.own_examples import AnsweredText, ExampleInput, ModelExample
from pipelines.serve.config import FeedbackConfig, ServeConfig
from pipelines.serve.http.app import create_app
from pipelines.serve.inference.service import InferenceService
from pipelines.serve.search import UpdatableSearch
from tests.browser import find_browser
from tests.pipelines.serve.conftest import picture
from vlmodel.processor import VLProcessor

pytestmark = pytest.mark.slow

VISIT = """
const $ = (id) => document.getElementById(id);
const until = async (what) => { while (!what()) await new Promise((go) => setTimeout(go, 20)); };
const done = () => until(() => !document.querySelector(".busy") && !document.querySelector(".writing"));
const press = async (selector) => { document.querySelector(selector).click(); await done(); };
const example = async () => {
  await until(() => document.querySelector("#examples button"));
  await press("#examples button");
  await until(() => !$("frame").hidden);
};
const task = (name) => press(`#tasks [data-task=${name}]`);
const send = () => press("form [data-for]:not([hidden]) .send");
await until(() => !$("form").hidden);
const offered = [...$("tasks").children].filter(() => !$("tasks").hidden).map((button) => button.dataset.task);
document.body.dataset.offered = offered.join(" ");
"""
"""A visitor's hands: every test goes on from here, in the words of the page."""


class Visits:
    """A server of the page for one model; each visit is a script that runs in it."""

    def __init__(self, folder: Path, config: ServeConfig, package: Path) -> None:
        self.service, self.script = InferenceService(config), ""
        self.golden_file = str(package / "golden.json")
        self.over = threading.Event()
        search = UpdatableSearch(config.search) if config.search.embeddings else None
        app = create_app(self.service, config, search=search)
        index = Path(create_app.__code__.co_filename).parent / "page" / "index.html"
        extra = '<script src="visit/script.js" type="module"></script><img src="visit/wait" alt="" hidden>'
        html = index.read_text().replace("</body>", f"{extra}</body>")
        app.get("/visit")(lambda: HTMLResponse(html))
        app.get("/visit/script.js")(lambda: Response(self.script, media_type="text/javascript"))
        app.get("/visit/wait")(self._wait)
        app.get("/visit/over")(self._over)
        # It listens from here on: who comes before the model is loaded waits, and is not refused.
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.port = self.listener.getsockname()[1]
        self.server = uvicorn.Server(uvicorn.Config(app, log_level="error"))
        self.thread = threading.Thread(target=asyncio.run, args=(self._serve(folder),))
        self.thread.start()

    async def _serve(self, folder: Path) -> None:
        await self.service.load(folder, "tiny", "4", golden_file=self.golden_file)
        await self.server.serve([self.listener])
        self.service.close()

    async def _wait(self) -> Response:
        """A picture of the page that comes when the visit is over: the browser shows its result not before."""
        await asyncio.to_thread(self.over.wait, 60)
        return Response(status_code=204)

    async def _over(self) -> Response:
        self.over.set()
        return Response(status_code=204)

    def visit(self, script: str, profile: Path, size: tuple[int, int] = (1280, 800), *options: str) -> str:
        """The page as it is after the script, as HTML."""
        self.over.clear()
        self.script = f"{VISIT}{script}\ndocument.body.dataset.visited = 'yes';\nawait fetch('visit/over');"
        done = subprocess.run(
            [
                find_browser(), "--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={profile}",
                f"--window-size={size[0]},{size[1]}", "--hide-scrollbars", "--dump-dom", *options,
                f"http://127.0.0.1:{self.port}/visit",
            ],
            capture_output=True, text=True, timeout=120, check=True,
        )  # fmt: skip
        assert 'data-visited="yes"' in done.stdout, f"the script did not end: {done.stdout[-3000:]}"
        return done.stdout

    def close(self) -> None:
        self.server.should_exit = True
        self.thread.join(30)
        self.listener.close()


QUESTIONS = ["what is the circle?", "is there a square?", "what colour is the circle?"]


@pytest.fixture
def visits(
    folder_of: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Callable[..., Visits]]:
    opened: list[Visits] = []

    def open_(decoder: str, **settings: Any) -> Visits:
        """The page of a model whose package holds an example of its own data for each task."""
        find_browser()
        package = tmp_path_factory.mktemp("package")
        asked = [AnsweredText(text=text, answer="red", probability=0.9) for text in QUESTIONS]
        image = ExampleInput(media_type="image/png", data=base64.b64encode(picture()).decode())
        own_examples.write_own_examples(
            [
                ModelExample(task=task, inputs={"image": image}, texts=tuple(asked))
                for task in VLProcessor.from_pretrained(folder_of(decoder)).tasks
            ],
            package,
        )
        # The answers of a tiny model to questions are not compared with golden ones: the package has none.
        config = ServeConfig(model_threads=1, golden_tolerance=1, **settings)
        opened.append(Visits(folder_of(decoder), config, package))
        return opened[-1]

    yield open_
    for each in opened:
        each.close()


def entries(html: str) -> list[str]:
    """The entries of the log, the newest first."""
    return re.findall(r'<li class="turn">.*?</p></li>', html, re.DOTALL)


def names(entry: str) -> list[str]:
    return re.findall(r'<span class="name">(.*?)</span>', entry)


def test_all_tasks_are_done_one_after_the_other(visits: Callable[..., Visits], tmp_path: Path) -> None:
    script = """
    await example();
    await until(() => $("suggestions").children.length === 3);
    await press("#suggestions button");
    await task("caption");
    await send();
    $("captions").value = "3";
    await send();
    await task("match");
    document.body.dataset.hint = $("texts").placeholder;
    $("texts").value = "a circle\\na square\\nthe colour";
    await send();
    """
    html = visits("all").visit(script, tmp_path)
    assert 'data-offered="vqa caption match"' in html
    matches, captions, caption, answers = entries(html)
    assert QUESTIONS[0] in answers
    assert 'data-hint="' + "\n".join(QUESTIONS) in html
    assert len(names(answers)) == 5
    assert len(names(captions)) >= 2
    assert "probability" in caption
    assert sorted(names(matches)) == ["a circle", "a square", "the colour"]
    for entry in (matches, captions, caption, answers):
        assert "tiny version 4" in entry
    assert re.search(r'id="notice"[^>]*hidden', html)


@pytest.mark.parametrize(("decoder", "part"), [("caption", "caption"), ("matching", "match"), ("answer", "vqa")])
def test_what_the_model_cannot_do_is_not_offered(
    visits: Callable[..., Visits], tmp_path: Path, decoder: str, part: str
) -> None:
    script = """
    document.body.dataset.shown = [...document.querySelectorAll("form > div[data-for]")]
      .filter((node) => node.offsetParent && node.querySelector(".send")).map((node) => node.dataset.for).join(" ");
    """
    html = visits(decoder).visit(script, tmp_path)
    assert 'data-offered=""' in html, "one task alone needs no chooser"
    assert f'data-shown="{part}"' in html


def test_classes_are_named_for_a_model_without_its_own(visits: Callable[..., Visits], tmp_path: Path) -> None:
    script = """
    await task("classify");
    await example();
    await send();
    document.body.dataset.asked = $("notice").textContent;
    $("classes").value = "circle\\nsquare\\ncircle\\n\\nthe colour";
    await send();
    """
    html = visits("contrastive").visit(script, tmp_path)
    assert 'data-offered="classify match"' in html
    assert 'data-asked="Type the classes to choose among."' in html
    [entry] = entries(html)
    assert sorted(names(entry)) == ["circle", "square", "the colour"]


def test_on_a_phone_nothing_is_wider_than_the_screen(visits: Callable[..., Visits], tmp_path: Path) -> None:
    # No window of a browser is narrower than 500 pixels, but the page in it can be.
    script = """
    document.documentElement.style.width = "390px";
    await example();
    for (const name of ["vqa", "caption", "match"]) {
      await task(name);
      $("texts").value = "a circle";
      if (name === "vqa") $("question").value = "What is " + "very ".repeat(40) + "long?";
      await send();
    }
    const beyond = [...document.querySelectorAll("main *, header *")]
      .filter((node) => node.getBoundingClientRect().right > 390);
    document.body.dataset.beyond = beyond.map((node) => node.id || node.className || node.tagName).join(" ");
    """
    html = visits("all").visit(script, tmp_path, (500, 844))
    assert len(entries(html)) == 3
    assert 'data-beyond=""' in html


def test_a_refusal_is_shown_and_leaves_no_entry(visits: Callable[..., Visits], tmp_path: Path) -> None:
    script = """
    await send();
    document.body.dataset.first = $("notice").textContent;
    await example();
    $("question").value = "x".repeat(2000);
    await send();
    """
    html = visits("vqa").visit(script, tmp_path)
    assert 'data-first="Choose a picture first."' in html
    assert "A question has 2000 characters; send at most 1000." in html
    assert entries(html) == []


def test_an_answer_can_be_corrected(visits: Callable[..., Visits], tmp_path: Path) -> None:
    script = """
    await example();
    await until(() => $("suggestions").children.length === 3);
    await press("#suggestions button");
    await press(".turn > .look");
    document.querySelector(".correction input").value = "crimson";
    document.querySelector(".correction button").click();
    await until(() => !document.querySelector(".correction"));
    """
    spool = tmp_path / "spool"
    html = visits("vqa", feedback=FeedbackConfig(folder=str(spool))).visit(script, tmp_path / "profile")
    assert "“crimson” is kept for the next training" in html
    [file] = spool.glob("*/corrections/*.json")
    correction = json.loads(file.read_text())
    assert (correction["question"], correction["answer"], correction["version"]) == (
        QUESTIONS[0],
        "crimson",
        "4",
    )
    assert correction["sender"] == "local"


def test_only_the_models_own_examples_are_offered(visits: Callable[..., Visits], tmp_path: Path) -> None:
    script = """
    await until(() => document.querySelector("#examples button") || $("try").hidden);
    document.body.dataset.tried = $("try").hidden ? "none" : $("examples").children.length;
    document.body.dataset.hint = $("question").placeholder;
    """
    offered = visits("vqa").visit(script, tmp_path / "offered")
    assert 'data-tried="1"' in offered
    assert f'data-hint="{QUESTIONS[0]}"' in offered
    none = visits("vqa", examples="off").visit(script, tmp_path / "none")
    assert 'data-tried="none"' in none
    assert 'data-hint="What would you like to know?"' in none
