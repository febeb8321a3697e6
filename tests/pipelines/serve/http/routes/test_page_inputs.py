"""The page in a real browser, over a tiny model of a sound, a clip and a series, without images.

Claims: each input has its place; an example fills them, and is drawn; a class is shown, and where in time the model
looked; a file that is chosen replaces an input, and a recording becomes a WAV file that the service reads.
"""

from __future__ import annotations

import base64
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipelines.registry import own_examples
from pipelines.registry.own_examples import AnsweredText, ExampleInput, ModelExample
from pipelines.serve.config import ServeConfig
from tests.browser import find_browser
from tests.pipelines.serve.http.routes.test_page import Visits, entries, names
from tests.vlmodel.conftest import examples, make_model, processor, tokenizer  # noqa: F401 - fixtures
from tests.vlmodel.media_files import saved_sound
from tests.vlmodel.tiny import IMU, for_tasks, tiny_input, tiny_tree
from vlmodel.media.registry import all_media
from vlmodel.processor import Example, VLProcessor

pytestmark = pytest.mark.slow

MEDIA = {"sound": "audio", "clip": "video", "imu": "series"}


@pytest.fixture
def visits(
    make_model: Callable[..., Any],  # noqa: F811
    processor: VLProcessor,  # noqa: F811
    examples: list[Example],  # noqa: F811
    tmp_path: Path,
) -> Iterator[Visits]:
    find_browser()
    inputs = {"imu": IMU, **tiny_input("audio"), **tiny_input("video")}
    parts = {"task": {"kind": "classify"}, "vision": {"kind": "none"}, "inputs": inputs}
    tree = tiny_tree(**parts)
    make_model(**parts).save_pretrained(tmp_path / "model")
    for_tasks(processor, tree.task.tasks_by_name(), tree).save_pretrained(tmp_path / "model")
    given = {}
    # Browsers play no sound of 2000 samples a second, as that of the examples is.
    sample = {**examples[0].inputs, "sound": saved_sound(np.sin(np.arange(8000) / 9))}
    for name, medium in MEDIA.items():
        copy = all_media()[medium].display_copy(sample[name])
        assert copy is not None
        given[name] = ExampleInput(media_type=copy.media_type, data=base64.b64encode(copy.data).decode())
    asked = (AnsweredText(text="", answer="red", probability=0.5),)
    own_examples.write_own_examples([ModelExample(task="", inputs=given, texts=asked)], tmp_path)
    visits = Visits(tmp_path / "model", ServeConfig(model_threads=1, golden_tolerance=1), tmp_path)
    yield visits
    visits.close()


EXAMPLE = """
const drawn = (name) => {
  const canvas = document.querySelector(`[data-input=${name}] canvas`);
  if (canvas.hidden) return 0;
  const { data } = canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height);
  const colours = new Set();
  for (let i = 0; i < data.length; i += 4) if (data[i + 3]) colours.add(data.slice(i, i + 3).join());
  return colours.size;
};
await until(() => document.querySelector("#examples button"));
await press("#examples button");
await until(() => drawn("sound") && drawn("imu"));
document.body.dataset.before = ["sound", "clip", "imu"].map(drawn).join();
"""


def test_a_class_and_where_in_time_the_model_looked(visits: Visits, tmp_path: Path) -> None:
    script = f"""{EXAMPLE}
    document.body.dataset.stage = $("stage").hidden;
    document.body.dataset.plays = await new Promise((told) => {{
      const player = document.querySelector("[data-input=sound] audio");
      if (player.readyState) told(true);
      player.addEventListener("loadedmetadata", () => told(true));
      player.addEventListener("error", () => told(false));
      if (player.error) told(false);
    }});
    await send();
    document.body.dataset.after = ["sound", "clip", "imu"].map((name) => drawn(name) > 1).join();
    """
    html = visits.visit(script, tmp_path / "profile")
    assert 'data-stage="true"' in html, "no picture is asked for"
    assert 'data-plays="true"' in html, "the page's own headers let it play what was given"
    before = html.partition('data-before="')[2].partition('"')[0].split(",")
    assert (int(before[0]) > 0, before[1], int(before[2]) > 0) == (True, "0", True), "a clip is played, and not drawn"
    assert 'data-after="true,true,true"' in html
    [entry] = entries(html)
    assert len(names(entry)) == 4, "all classes of the tiny model"
    assert "Heat map" in entry


def test_without_an_input_nothing_is_sent(visits: Visits, tmp_path: Path) -> None:
    html = visits.visit('await send(); document.body.dataset.first = $("notice").textContent;', tmp_path / "profile")
    assert 'data-first="Choose clip, imu or sound first."' in html
    assert entries(html) == []


def test_a_sound_is_recorded(visits: Visits, tmp_path: Path) -> None:
    script = """
    await until(() => document.querySelector("[data-input=sound] .record"));
    const record = document.querySelector("[data-input=sound] .record");
    record.click();
    await until(() => record.textContent === "Stop");
    await new Promise((go) => setTimeout(go, 600));
    record.click();
    await until(() => document.querySelector("[data-input=sound] audio"));
    await send();
    """
    microphone = ("--use-fake-device-for-media-stream", "--use-fake-ui-for-media-stream")
    html = visits.visit(script, tmp_path / "profile", (1280, 800), *microphone)
    assert len(entries(html)) == 1, html[-2000:]
