"""The page's conversation about a picture, in a real browser: replies are written before one's eyes, and go on."""

from __future__ import annotations

import base64
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from pipelines.registry import own_examples
from pipelines.registry.own_examples import AnsweredText, ExampleInput, ModelExample
from pipelines.serve.config import ServeConfig
from tests.browser import find_browser
from tests.pipelines.serve.conftest import picture
from tests.pipelines.serve.http.routes.test_page import Visits
from vlmodel.processor import VLProcessor

pytestmark = pytest.mark.slow

CHAT = """
await task("chat");
await example();
await until(() => $("openings").children.length === 1);
// What is shown of a reply before it ends, and what the service is asked.
const seen = [], asked = [];
new MutationObserver(() => {
  const writing = document.querySelector(".said .words.writing");
  if (writing?.textContent) seen.push(writing.textContent);
}).observe($("said"), { subtree: true, childList: true, characterData: true });
const plain = window.fetch;
window.fetch = (path, options) => {
  if (path === "v1/chat/completions") asked.push(JSON.parse(options.body));
  return plain(path, options);
};
const words = () => [...document.querySelectorAll("#said .words")].map((node) => node.textContent);
"""


@pytest.fixture(scope="module")
def talk(talking_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Visits]:
    find_browser()
    package = tmp_path_factory.mktemp("package")
    image = ExampleInput(media_type="image/png", data=base64.b64encode(picture()).decode())
    texts = (AnsweredText(text="what is the circle ?", answer="red", probability=0.9),)
    tasks = VLProcessor.from_pretrained(talking_folder).tasks
    own_examples.write_own_examples(
        [ModelExample(task=task, inputs={"image": image}, texts=texts) for task in tasks], package
    )
    visits = Visits(talking_folder, ServeConfig(model_threads=1, golden_tolerance=1), package)
    yield visits
    visits.close()


def test_a_conversation_goes_on(talk: Visits, tmp_path: Path) -> None:
    script = f"""{CHAT}
    await press("#openings button");
    $("saying").value = "is there a square ?";
    await send();
    const whole = words()[1];
    const isPart = (text) => text.trim() !== whole && whole.startsWith(text.trim());
    document.body.dataset.streamed = String(seen.some(isPart));
    const [first, second] = asked.map((body) => body.messages);
    document.body.dataset.turns = second.map((turn) => turn.role).join(" ");
    document.body.dataset.pictures = [first, second].map((turns) =>
      turns.flatMap((turn) => turn.content).filter((part) => part.type === "image_url").length).join(" ");
    document.body.dataset.kept = String(second[1].content === words()[1]);
    """
    html = talk.visit(script, tmp_path)
    assert 'data-offered="vqa chat"' in html
    said = re.findall(r'<li class="said (\w+)"><p class="words">(.*?)</p>', html)
    assert [role for role, _ in said] == ["user", "assistant"] * 2
    assert [text for _, text in said[::2]] == ["what is the circle ?", "is there a square ?"]
    assert all(text for _, text in said)
    assert 'data-streamed="true"' in html
    assert 'data-turns="user assistant user"' in html
    assert 'data-pictures="1 1"' in html, "the picture is sent with its conversation, once"
    assert 'data-kept="true"' in html
    assert html.count("tiny version 4 · ") == 2
    assert re.search(r"\d+ tokens read, \d+ written", html)


def test_another_picture_begins_another_conversation(talk: Visits, tmp_path: Path) -> None:
    script = f"""{CHAT}
    await press("#openings button");
    await press("#begin");
    document.body.dataset.left = String(words().length);
    await press("#openings button");
    await press("#examples button");
    document.body.dataset.after = String(words().length);
    $("saying").value = "a ? ".repeat(2000);
    await send();
    document.body.dataset.refused = $("notice").textContent;
    document.body.dataset.typed = String($("saying").value.length);
    document.body.dataset.end = String(words().length);
    """
    html = talk.visit(script, tmp_path)
    assert 'data-left="0"' in html
    assert 'data-after="0"' in html
    assert "the language model takes 1024" in html
    assert 'data-typed="7999"' in html, "what was typed is still there"
    assert 'data-end="0"' in html
