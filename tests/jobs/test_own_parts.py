"""A task, a modality and a fusion of a package outside this repository do all that others do."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from tests.docs.test_extending import EXAMPLES
from tests.jobs.conftest import ROOT, SMALL
from tests.pipelines.data.tar_maker import photo, write_tar

SERVE = """
import asyncio, base64, sys
import httpx
from pipelines.serve.config import ServeConfig
from pipelines.serve.http.app import create_app
from pipelines.serve.inference.service import InferenceService

async def go():
    config = ServeConfig(max_batch_size=2, model_threads=1)
    service = InferenceService(config)
    await service.load(sys.argv[1], "own", "1")
    transport = httpx.ASGITransport(create_app(service, config), client=("127.0.0.1", 1))
    async with httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1") as client:
        image, imu = (base64.b64encode(open(file, "rb").read()).decode() for file in sys.argv[2:])
        body = {"image": image, "inputs": {"imu": imu}, "question": "how many?"}
        answer = await client.post("/v1/count", json=body)
        model = await client.get("/v1/model")
        print(answer.status_code, answer.json()["number"], model.json()["tasks"])
    service.close()

asyncio.run(go())
"""


def series(number: int) -> bytes:
    file = io.BytesIO()
    np.save(file, np.random.default_rng(number).normal(number, 0.1, (8 + number, 3)).astype(np.float32))
    return file.getvalue()


@pytest.fixture
def acme(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The examples of docs/EXTENDING.md as a package of their own."""
    for path, source in EXAMPLES.items():
        root, package, _ = path.split("/", 2)
        if root == "vlmodel" and package in ("tasks", "modality", "fusion"):
            file = tmp_path / "site" / "acme" / f"{path.removeprefix('vlmodel/')}.py"
            file.parent.mkdir(parents=True, exist_ok=True)
            (file.parent / "__init__.py").touch()
            file.write_text(source.replace(f"vlmodel.{package}._", f"acme.{package}._"), encoding="utf-8")
    (tmp_path / "site" / "acme" / "__init__.py").touch()
    monkeypatch.setenv("VLMODEL_PARTS", "acme")
    monkeypatch.setenv("PYTHONPATH", f"{ROOT}{os.pathsep}{tmp_path / 'site'}")
    return tmp_path


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_parts_of_an_own_package_do_all_that_others_do(
    acme: Path, job: Callable[..., subprocess.CompletedProcess[str]]
) -> None:
    data = acme / "data"
    data.mkdir()
    for split, count in (("train", 24), ("val", 8), ("test", 8)):
        members: list[tuple[str, bytes]] = []
        for n in range(count):
            asked = {"questions": [{"question": "how many?", "answer": str(n % 4)}]}
            members += [(f"{split}{n}.jpg", photo(n)), (f"{split}{n}.json", json.dumps(asked).encode())]
            if n % 3:
                members.append((f"{split}{n}.imu.npy", series(n % 4)))
        write_tar(data, f"{split}-000000.tar", members)
    settings = [
        *(setting for setting in SMALL if not setting.startswith("model.fusion")), f"data.tars={data}",
        f"storage={acme / 'runs'}", 'data.index.inputs=["image", "imu?", "text"]', "registry.smoke_test=false",
        "model.task.kind=counting", "model.fusion.kind=bilinear", "model.inputs.imu.kind=recurrent",
        "model.inputs.imu.channels=3", "model.inputs.imu.width=16", "train.epochs=1", "train.workers=1", "name=own",
    ]  # fmt: skip
    for name in ("index", "train", "evaluate"):
        done = job(name, "--config", "jobs/configs/demo.toml", *settings)
    assert "closeness" in done.stdout
    answers = acme / "answers.parquet"
    job("predict", "--config", "jobs/configs/demo.toml", *settings, f"evaluate.out={answers}")
    assert pq.read_table(answers).num_rows == 8
    assert all(float(number) == float(number) for number in pq.read_table(answers)["predicted"].to_pylist())
    (picture := acme / "picture.jpg").write_bytes(photo(1))
    (imu := acme / "imu.npy").write_bytes(series(1))
    model = next(
        file.parent for file in (acme / "runs").rglob("config.json") if (file.parent / "processor.json").is_file()
    )
    served = subprocess.run(
        [sys.executable, "-c", SERVE, str(model), str(picture), str(imu)],
        cwd=ROOT, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert served.returncode == 0, served.stderr
    status, number, tasks = served.stdout.split(maxsplit=2)
    assert (status, tasks.strip()) == ("200", "['count']")
    assert float(number) == float(number)


def test_a_package_that_is_not_there_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    from vlmodel.config import ConfigError, list_part_kinds

    monkeypatch.setenv("VLMODEL_PARTS", "no_such_package")
    with pytest.raises(ConfigError, match="names 'no_such_package', which is not installed"):
        list_part_kinds("vlmodel.fusion")
    assert list_part_kinds("pipelines.data.importers")
