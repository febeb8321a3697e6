"""Frozen weights lie once, are found, and are never others."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torchvision.models import resnet18

from vlmodel import bases
from vlmodel.bases import BaseWeightsError
from vlmodel.config import ConfigError
from vlmodel.model import VLModel
from vlmodel.weights import WeightsError

FROZEN = {"name": "resnet18", "stages": 1, "frozen": True}
Make = Callable[..., Any]


@pytest.fixture
def model(make_model: Make) -> Any:
    made = make_model(vision=FROZEN)
    with torch.no_grad():  # a statistic that no training changes, and that is not what a new model has
        made.vision.backbone.bn1.running_mean.add_(1)
    return made.eval()


def only_base(folder: Path) -> Path:
    (file,) = folder.rglob("*.safetensors")
    return file


def equal(one: Any, other: Any) -> bool:
    state = other.state_dict()
    return list(one.state_dict()) == list(state) and all(torch.equal(v, state[k]) for k, v in one.state_dict().items())


def test_a_folder_holds_what_was_trained_and_its_bases_apart(
    model: Any, batch: dict[str, Tensor], tmp_path: Path
) -> None:
    model.save_pretrained(tmp_path / "model")
    trained = sum(p.numel() * 4 for p in model.parameters() if p.requires_grad)
    assert trained < (tmp_path / "model" / "model.safetensors").stat().st_size < trained + 50_000
    named = bases.read_base_weights_list(tmp_path / "model")
    assert named.keys() == {"vision"}
    base = only_base(tmp_path / "model" / "_bases")
    assert (base.name, base.stat().st_size) == (named["vision"].name, named["vision"].bytes)
    assert named["vision"].tensors == len(model.vision.backbone.state_dict())
    loaded = VLModel.from_pretrained(tmp_path / "model")
    assert equal(loaded, model)
    assert [p.requires_grad for p in loaded.parameters()] == [p.requires_grad for p in model.parameters()]
    assert torch.equal(loaded(**batch).loss, model(**batch).loss)


def test_a_model_without_frozen_weights_has_no_bases(make_model: Make, model: Any, tmp_path: Path) -> None:
    model.save_pretrained(tmp_path)
    make_model().save_pretrained(tmp_path)
    assert bases.read_base_weights_list(tmp_path) == {}
    VLModel.from_pretrained(tmp_path)


def test_models_of_the_same_frozen_weights_share_one_file(model: Any, make_model: Make, tmp_path: Path) -> None:
    stored = bases.store_base_weights(model, tmp_path / "_bases")
    file = only_base(tmp_path / "_bases")
    inode = file.stat().st_ino
    other = make_model(vision=FROZEN, fusion={"rounds": 1})
    other.vision.backbone.load_state_dict(model.vision.backbone.state_dict())
    other.vision.backbone.to(memory_format=torch.contiguous_format)
    assert bases.store_base_weights(other, tmp_path / "_bases") == stored
    assert only_base(tmp_path / "_bases").stat().st_ino == inode, "it is not written again"
    for number, each in enumerate((model, other)):
        each.save_pretrained(tmp_path / "runs" / str(number), stored=stored)
        assert equal(VLModel.from_pretrained(tmp_path / "runs" / str(number)), each)
    with pytest.raises(ValueError, match="are not this model's bases: vision"):
        model.save_pretrained(tmp_path / "lacking", stored={})


@pytest.mark.parametrize("where", ["beside", "above", "argument", "environment"])
def test_a_base_is_found(model: Any, tmp_path: Path, where: str, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "a" / "b" / "model"
    places = {"beside": tmp_path / "a" / "b" / "_bases", "above": tmp_path / "_bases"}
    place = places.get(where, tmp_path / "elsewhere")
    model.save_pretrained(folder, stored=bases.store_base_weights(model, place))
    if where == "environment":
        monkeypatch.setenv("VLMODEL_BASES", str(place))
    assert equal(VLModel.from_pretrained(folder, base_folder=place if where == "argument" else None), model)


def test_a_copy_with_its_base_is_complete_and_one_without_is_refused(model: Any, tmp_path: Path) -> None:
    model.save_pretrained(
        tmp_path / "storage" / "model", stored=bases.store_base_weights(model, tmp_path / "storage" / "_bases")
    )
    copy = tmp_path / "elsewhere" / "model"
    shutil.copytree(tmp_path / "storage" / "model", copy)
    base = only_base(tmp_path / "storage" / "_bases")
    (tmp_path / "elsewhere" / "_bases").mkdir()
    says = rf"part 'vision', the base {base.name} .* \(searched: .*elsewhere/_bases\); copy that .*VLMODEL_BASES"
    with pytest.raises(BaseWeightsError, match=says):
        VLModel.from_pretrained(copy)
    shutil.copytree(base.parent, copy / "_bases")
    assert equal(VLModel.from_pretrained(copy), model)


def test_another_base_is_refused(model: Any, make_model: Make, tmp_path: Path) -> None:
    model.save_pretrained(tmp_path)
    base = only_base(tmp_path / "_bases")
    bases.store_base_weights(make_model(vision=FROZEN), tmp_path / "other")
    shutil.copy(only_base(tmp_path / "other"), base)
    with pytest.raises(
        BaseWeightsError, match=r"is not the base of \d+ bytes that its name says.*delete it, and copy it"
    ):
        VLModel.from_pretrained(tmp_path)


@pytest.mark.parametrize("damage", ["altered", "cut off"])
def test_a_base_that_is_changed_while_it_is_used_is_noticed(model: Any, tmp_path: Path, damage: str) -> None:
    model.save_pretrained(tmp_path)
    VLModel.from_pretrained(tmp_path)
    base = only_base(tmp_path / "_bases")
    facts, data = base.stat(), bytearray(base.read_bytes())
    time.sleep(0.01)
    if damage == "altered":
        data[-1] ^= 1
    base.write_bytes(data if damage == "altered" else data[:-1])
    os.utime(base, ns=(facts.st_atime_ns, facts.st_mtime_ns))
    with pytest.raises(BaseWeightsError, match="it was altered or cut off"):
        VLModel.from_pretrained(tmp_path)


def test_a_base_is_hashed_once_in_a_process(model: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model.save_pretrained(tmp_path)
    shutil.copytree(tmp_path / "_bases", tmp_path / "copy" / "_bases")
    base = bases.read_base_weights_list(tmp_path)["vision"]
    copy = tmp_path / "copy" / "_bases" / base.name
    hashed: list[object] = []
    digest = hashlib.file_digest

    def counted(*given: Any) -> Any:
        hashed.append(given)
        return digest(*given)

    monkeypatch.setattr(hashlib, "file_digest", counted)
    for _ in range(3):
        bases.verify_base_weights_file(copy, base)
        VLModel.from_pretrained(tmp_path)
    assert len(hashed) == 1, "what this process has written itself it knows"


def test_a_base_that_was_cut_off_is_written_again(model: Any, tmp_path: Path) -> None:
    bases.store_base_weights(model, tmp_path)
    file = only_base(tmp_path)
    whole = file.read_bytes()
    file.write_bytes(whole[:-1])
    bases.store_base_weights(model, tmp_path)
    assert file.read_bytes() == whole
    assert [path.name for path in tmp_path.iterdir()] == [file.name], "nothing is left of the writing"


@pytest.mark.parametrize(
    "record",
    ["{", "[]", '{"vision": "../../etc"}', '{"vision": {"sha256": "../x", "bytes": 1, "tensors": 1}}'],
)
def test_a_damaged_record_is_refused(model: Any, tmp_path: Path, record: str) -> None:
    model.save_pretrained(tmp_path)
    (tmp_path / "bases.json").write_text(record)
    with pytest.raises(BaseWeightsError, match=r"bases\.json' is damaged"):
        VLModel.from_pretrained(tmp_path)


def test_weights_that_do_not_fit_together_are_refused(model: Any, tmp_path: Path) -> None:
    model.save_pretrained(tmp_path)
    record = json.loads((tmp_path / "bases.json").read_text())
    (tmp_path / "bases.json").unlink()
    with pytest.raises(WeightsError, match=r"missing: vision\.backbone\."):
        VLModel.from_pretrained(tmp_path)
    (tmp_path / "bases.json").write_text(json.dumps({**record, "language": record["vision"]}))
    with pytest.raises(WeightsError, match=r"unexpected: language\.backbone\."):
        VLModel.from_pretrained(tmp_path)
    (tmp_path / "model.safetensors").unlink()
    with pytest.raises(WeightsError, match=r"holds no weights \(no model\.safetensors\)"):
        VLModel.from_pretrained(tmp_path)


def test_a_model_of_an_earlier_version_is_refused(model: Any, tmp_path: Path) -> None:
    model.save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    del config["format"]
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(
        ConfigError, match=r"another version .*\(format 0, .* reads 2\); train it anew with this version"
    ):
        VLModel.from_pretrained(tmp_path)


def test_pretrained_weights_are_a_base_as_they_came(make_model: Make, tmp_path: Path) -> None:
    torch.manual_seed(1)
    published = resnet18().state_dict()
    torch.save(published, tmp_path / "published.pth")
    made = make_model(vision={**FROZEN, "weights": str(tmp_path / "published.pth")})
    made.save_pretrained(tmp_path / "model")
    (tmp_path / "published.pth").unlink()
    loaded = VLModel.from_pretrained(tmp_path / "model")
    assert torch.equal(loaded.vision.backbone.conv1.weight, published["conv1.weight"])
    assert torch.equal(loaded.vision.backbone.layer1[0].bn1.running_var, published["layer1.0.bn1.running_var"])
