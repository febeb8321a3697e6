from __future__ import annotations

import os
import re
from pathlib import Path

import pytest

from pipelines.storage.manifest import ManifestError, folder_digest, verify_folder, write_manifest


@pytest.fixture
def model(tmp_path: Path) -> Path:
    folder = tmp_path / "model"
    (folder / "artifacts").mkdir(parents=True)
    (folder / "artifacts" / "model.safetensors").write_bytes(b"weights")
    (folder / "MLmodel").write_text("flavors: {}")
    return folder


def test_an_untouched_folder_verifies_also_after_use(model: Path) -> None:
    expected = write_manifest(model)
    verify_folder(model)
    verify_folder(model, expected)
    (model / "registered_model_meta").write_text("model_name: x\nmodel_version: '1'\n")  # as MLflow writes it
    verify_folder(model, expected)
    assert write_manifest(model) == expected, "the manifest is a function of the files alone"


@pytest.mark.parametrize(
    "added",
    [
        "code/__pycache__/a.cpython-311.pyc", "__pycache__/pyfunc.cpython-311.pyc", "code/torch.pyc",
        "code/registered_model_meta", "registered_model_meta", ".hidden", "artifacts/manifest.json",
    ],
)  # fmt: skip
def test_no_added_file_is_passed_over_for_its_name(model: Path, added: str) -> None:
    expected = write_manifest(model)
    (model / added).parent.mkdir(parents=True, exist_ok=True)
    (model / added).write_bytes(b"anything\n")
    with pytest.raises(ManifestError, match=rf"added: {re.escape(added)}"):
        verify_folder(model, expected)


def test_what_is_no_file_is_refused(model: Path) -> None:
    expected = write_manifest(model)
    os.mkfifo(model / "pipe")
    with pytest.raises(ManifestError, match="pipe' is neither a file nor a folder"):
        verify_folder(model, expected)


def test_each_way_to_differ_is_named(model: Path) -> None:
    expected = write_manifest(model)
    weights = model / "artifacts" / "model.safetensors"
    weights.write_bytes(b"Weights")
    with pytest.raises(ManifestError, match=r"changed, missing or added: artifacts/model\.safetensors$"):
        verify_folder(model, expected)
    weights.unlink()
    with pytest.raises(ManifestError, match=r"artifacts/model\.safetensors"):
        verify_folder(model)
    weights.write_bytes(b"weights")
    (model / "artifacts" / "extra.py").write_text("import os")
    with pytest.raises(ManifestError, match=r"artifacts/extra\.py"):
        verify_folder(model)


def test_a_manifest_that_was_rewritten_with_the_files_is_refused_by_its_hash(model: Path) -> None:
    expected = write_manifest(model)
    (model / "MLmodel").write_text("flavors: {other}")
    assert write_manifest(model) != expected
    verify_folder(model)
    with pytest.raises(ManifestError, match=r"added: manifest\.json$"):
        verify_folder(model, expected)


def test_no_or_a_damaged_manifest_and_links_are_refused(model: Path) -> None:
    with pytest.raises(ManifestError, match=r"has no manifest\.json"):
        verify_folder(model)
    version_before = '{"MLmodel": "' + "0" * 64 + '"}'
    for damaged in ("{", "[]", "null", version_before, '{"MLmodel": {"bytes": 1, "sha256": "00"}}'):
        (model / "manifest.json").write_text(damaged)
        with pytest.raises(ManifestError, match="damaged"):
            verify_folder(model)
    write_manifest(model)
    (model / "link").symlink_to("/etc/hostname")
    with pytest.raises(ManifestError, match="link' is a link"):
        verify_folder(model)


def test_the_digest_depends_on_names_and_contents(model: Path) -> None:
    first = folder_digest(model)
    (model / "MLmodel").rename(model / "MLmodel2")
    second = folder_digest(model)
    (model / "MLmodel2").write_text("x")
    assert len({first, second, folder_digest(model)}) == 3
