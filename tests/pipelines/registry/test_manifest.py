from __future__ import annotations

from pathlib import Path

import pytest

from pipelines.registry.errors import ArtifactError
from pipelines.registry.manifest import digest, verify, write


@pytest.fixture
def model(tmp_path: Path) -> Path:
    folder = tmp_path / "model"
    (folder / "artifacts").mkdir(parents=True)
    (folder / "artifacts" / "model.safetensors").write_bytes(b"weights")
    (folder / "MLmodel").write_text("flavors: {}")
    return folder


def test_an_untouched_folder_verifies_also_after_use(model: Path) -> None:
    expected = write(model)
    verify(model)
    verify(model, expected)
    (model / "code" / "__pycache__").mkdir(parents=True)
    (model / "code" / "__pycache__" / "a.pyc").write_bytes(b"")
    (model / "registered_model_meta").write_text("model_name: x")
    verify(model, expected)
    assert write(model) == expected, "the manifest is a function of the files alone"


def test_each_way_to_differ_is_named(model: Path) -> None:
    expected = write(model)
    weights = model / "artifacts" / "model.safetensors"
    weights.write_bytes(b"Weights")
    with pytest.raises(ArtifactError, match=r"changed, missing or added: artifacts/model\.safetensors; restore"):
        verify(model, expected)
    weights.unlink()
    with pytest.raises(ArtifactError, match=r"artifacts/model\.safetensors"):
        verify(model)
    weights.write_bytes(b"weights")
    (model / "artifacts" / "extra.py").write_text("import os")
    with pytest.raises(ArtifactError, match=r"artifacts/extra\.py"):
        verify(model)


def test_a_manifest_that_was_rewritten_with_the_files_is_refused_by_its_hash(model: Path) -> None:
    expected = write(model)
    (model / "MLmodel").write_text("flavors: {other}")
    assert write(model) != expected
    verify(model)
    with pytest.raises(ArtifactError, match=r"added: manifest\.json;"):
        verify(model, expected)


def test_no_or_a_damaged_manifest_and_links_are_refused(model: Path) -> None:
    with pytest.raises(ArtifactError, match=r"has no manifest\.json"):
        verify(model)
    (model / "manifest.json").write_text("{")
    with pytest.raises(ArtifactError, match="damaged"):
        verify(model)
    write(model)
    (model / "link").symlink_to("/etc/hostname")
    with pytest.raises(ArtifactError, match="'link' is a link"):
        verify(model)


def test_the_digest_depends_on_names_and_contents(model: Path) -> None:
    first = digest(model)
    (model / "MLmodel").rename(model / "MLmodel2")
    second = digest(model)
    (model / "MLmodel2").write_text("x")
    assert len({first, second, digest(model)}) == 3
