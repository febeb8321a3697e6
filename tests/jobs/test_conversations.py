"""From a file of conversations about pictures to a model that goes on with one, and out to transformers.

Claims: each reply is learned given the turns before it; broken turns are rejects; the model is judged beside baselines,
registered and exported; what transformers then writes is what the model says.
"""

from __future__ import annotations

import json
import re
import subprocess
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image
from transformers import LlavaForConditionalGeneration, LlavaProcessor

from pipelines.data.importing.run import REJECTS

pytestmark = [pytest.mark.slow, pytest.mark.timeout(7200)]

Job = Callable[..., subprocess.CompletedProcess[str]]
COLOURS = {"red": (210, 40, 40), "green": (40, 180, 60), "blue": (50, 70, 220)}
TOWER = "{hidden_size=32,num_hidden_layers=1,num_attention_heads=2,intermediate_size=64,image_size=32,patch_size=16}"
SETTINGS = [
    "model.task.kind=converse", "model.task.head.width=64", "model.task.head.depth=2", "model.task.head.positions=64",
    "model.vision={kind=\"hf\",architecture=\"clip_vision_model\",settings=" + TOWER + "}", "processor.image_size=32",
    "processor.resize=squash", "vocabulary.size=200", "train.epochs=12", "train.batch=16", "train.workers=1",
    "train.optimizer.head_lr=3e-3", "train.optimizer.backbone_lr=3e-3", "tracking.system_metrics=false",
    "cluster.object_store_mb=150", "tracking.model_name=talks", "name=talks", "registry.smoke_test=false",
]  # fmt: skip


def write_conversations(folder: Path) -> list[str]:
    """Plain pictures, each with a conversation whose second reply depends on the first question; every tenth ends with
    a question.
    """
    rng, records = np.random.default_rng(0), []
    for number in range(160):
        name, rgb = list(COLOURS.items())[number % 3]
        pixels = (np.array(rgb) + rng.normal(0, 10, (32, 32, 3))).clip(0, 255).astype(np.uint8)
        Image.fromarray(pixels).save(folder / f"{number}.png")
        turns = [("human", "<image>\nwhat colour is it?"), ("gpt", f"it is {name}"), ("human", "say it again"),
                 ("gpt", f"again {name}")]  # fmt: skip
        if number % 10 == 9:
            turns.append(("human", "and again"))
        split = "test" if number % 4 == 3 else "train"
        records.append(
            {"id": str(number), "image": f"{number}.png", "split": split,
             "conversations": [{"from": role, "value": text} for role, text in turns]}
        )  # fmt: skip
    (folder / "talks.json").write_text(json.dumps(records))
    return ["source.kind=conversations", f"source.file={folder / 'talks.json'}"]


@pytest.fixture(scope="module")
def work(job: Job, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[str]]:
    """The folder of a finished training, and its settings."""
    folder = tmp_path_factory.mktemp("talks")
    (folder / "files").mkdir()
    source = write_conversations(folder / "files")
    settings = [*source, *SETTINGS, f"storage={folder / 'runs'}", f"data.tars={folder / 'tars'}"]
    imported = job("import_data", *settings).stdout
    assert "120 conversations" in imported
    assert "16 unanswered_turn" in imported
    for name in ("index", "train"):
        job(name, *settings, timeout=3600)
    return folder, settings


def test_broken_turns_are_listed(work: tuple[Path, list[str]]) -> None:
    lines = (work[0] / "tars" / REJECTS).read_text().splitlines()
    assert {json.loads(line)["reason"] for line in lines} == {"unanswered_turn"}


def test_replies_are_judged_beside_baselines(work: tuple[Path, list[str]], job: Job) -> None:
    folder, settings = work
    answers = folder / "answers.parquet"
    shown = job("evaluate", *settings, f"evaluate.out={answers}").stdout
    found = re.search(r"rouge_l +([0-9.]+)", shown)
    assert found is not None, shown
    assert float(found[1]) > 0.9, shown
    assert "constant reply" in shown
    job("predict", *settings, f"evaluate.out={answers}")
    table = pq.read_table(answers)
    assert table.num_rows == 80  # two replies of each of 40 pictures
    rows = zip(table["target"].to_pylist(), table["predicted"].to_pylist(), strict=True)
    assert np.mean([target == said for target, said in rows]) > 0.9


@torch.inference_mode()
def test_transformers_says_the_same(work: tuple[Path, list[str]], job: Job) -> None:
    folder, settings = work
    out = folder / "llava"
    assert f"as llava: {out}" in job("export", *settings, f"export.out={out}").stdout
    model, processor = LlavaForConditionalGeneration.from_pretrained(out).eval(), LlavaProcessor.from_pretrained(out)
    for number, name in ((3, "red"), (7, "green"), (11, "blue")):
        turns = [
            {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "what colour is it?"}]},
            {"role": "assistant", "content": [{"type": "text", "text": f"it is {name}"}]},
            {"role": "user", "content": [{"type": "text", "text": "say it again"}]},
        ]
        text = processor.apply_chat_template(turns, add_generation_prompt=True)
        picture = Image.open(folder / "files" / f"{number}.png")
        given = processor(images=picture, text=text, return_tensors="pt")
        written = model.generate(**given, max_new_tokens=8, do_sample=False)
        said = processor.tokenizer.decode(written[0, given["input_ids"].shape[1] :], skip_special_tokens=True)
        assert said.strip() == f"again {name}"
    # And back, as a model of this program.
    again = folder / "again"
    job("export", f"evaluate.model={out}", f"export.out={again}", f"storage={folder / 'runs'}")
    assert (again / "processor.json").is_file()
