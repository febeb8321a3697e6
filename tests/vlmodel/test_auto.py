"""transformers' Auto classes load a saved model in a process that has not imported vlmodel."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from vlmodel.inference import Predictor
from vlmodel.processor import Example, VLProcessor

ROOT = Path(__file__).resolve().parents[2]

_LOAD = """
import json, sys
from transformers import AutoModel, AutoProcessor
folder = sys.argv[1]
assert "vlmodel" not in sys.modules
processor = AutoProcessor.from_pretrained(folder, trust_remote_code=True)
model = AutoModel.from_pretrained(folder, trust_remote_code=True)
from vlmodel.inference import Predictor
from vlmodel.processor import Example, VLProcessor
assert type(processor) is VLProcessor, type(processor)
image = open(sys.argv[2], "rb").read()
print(json.dumps(Predictor(model, processor).predict([Example({"image": image}, ("a circle?",))])[0][0].answers))
model.save_pretrained(sys.argv[3])
processor.save_pretrained(sys.argv[3])
"""


def run(program: str, *arguments: object, cache: Path) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"PYTHONPATH": str(ROOT), "HF_MODULES_CACHE": str(cache)}
    return subprocess.run(
        [sys.executable, "-c", program, *map(str, arguments)],
        cwd=cache.parent, env=environment, capture_output=True, text=True, check=False,
    )  # fmt: skip


def test_a_fresh_process_loads_it_and_saves_it_again(
    make_model: Callable[..., Any], processor: VLProcessor, examples: list[Example], tmp_path: Path
) -> None:
    folder, again, image = tmp_path / "model", tmp_path / "again", tmp_path / "image.png"
    make_model().save_pretrained(folder)
    processor.save_pretrained(folder)
    image.write_bytes(examples[0].inputs["image"])
    done = run(_LOAD, folder, image, again, cache=tmp_path / "cache")
    assert done.returncode == 0, done.stderr
    example = Example({"image": image.read_bytes()}, ("a circle?",))
    expected = Predictor.from_pretrained(folder).predict([example])[0][0].answers
    assert json.loads(done.stdout.splitlines()[-1]) == [list(answer) for answer in expected]
    names = {file.name for file in folder.iterdir()}
    assert {file.name for file in again.iterdir()} == names
    assert json.loads((again / "config.json").read_text())["auto_map"]["AutoModel"] == "auto.VLModel"


def test_without_the_package_it_says_what_to_install(make_model: Callable[..., Any], tmp_path: Path) -> None:
    make_model().save_pretrained(tmp_path / "model")
    program = (
        "import sys; sys.modules['vlmodel'] = None\n"
        "from transformers import AutoModel\n"
        "AutoModel.from_pretrained(sys.argv[1], trust_remote_code=True)"
    )
    done = run(program, tmp_path / "model", cache=tmp_path / "cache")
    assert done.returncode == 1
    assert "this model needs the distribution raylm" in done.stderr.splitlines()[-1]
