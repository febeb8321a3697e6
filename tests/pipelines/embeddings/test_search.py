"""The search among stored vectors: what brute force finds, from files that are mapped, whatever happened to these."""

from __future__ import annotations

import io
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from pipelines.embeddings import search_files
from pipelines.embeddings.embed import EmbeddingJob
from pipelines.embeddings.errors import EmbeddingsError
from pipelines.embeddings.search import EmbeddingSearch
from pipelines.embeddings.search_files import SUBFOLDER
from pipelines.embeddings.stored import MANIFEST, PARTS, read_embeddings_file
from pipelines.embeddings.thumbnails import SIDE, Thumbnails
from tests.pipelines.data.tar_maker import photo
from tests.pipelines.embeddings.conftest import Run
from tests.pipelines.embeddings.test_embed import rows_of


@pytest.mark.parametrize("name", ["image", "text"])
@pytest.mark.parametrize("exact", [1000, 0])
def test_the_nearest_are_those_of_brute_force(run: Run, job: EmbeddingJob, name: str, exact: int) -> None:
    """By graphs too, which may take one that is hardly farther for another."""
    if not exact:
        pytest.importorskip("usearch")
    run()
    rows = [row for row in rows_of(job.out) if row["input"] == name]
    vectors_MD = np.array([row["vector"] for row in rows], np.float32)
    search = EmbeddingSearch(job.out, exact)
    for query_D in vectors_MD[::5]:
        hits = search.nearest(query_D, name, 7)
        cosines_M = vectors_MD @ query_D
        order = np.lexsort((np.arange(len(rows)), -cosines_M))[:7]
        assert np.allclose([hit.similarity for hit in hits], cosines_M[order], atol=1e-6)
        by_place = {
            (row["key"], row["split"], row["text"]): cosine for row, cosine in zip(rows, cosines_M, strict=True)
        }
        for hit in hits:
            assert by_place[hit.key, hit.split, hit.text] == pytest.approx(hit.similarity, abs=1e-6)
        assert len({(hit.key, hit.text) for hit in hits}) == 7
    assert len(search.nearest(vectors_MD[0], name, 1000)) == len(rows), "no more than there are"


def test_vectors_are_mapped_and_not_read(run: Run, job: EmbeddingJob) -> None:
    run()
    search: Any = EmbeddingSearch(job.out)
    mapped_MD = search._searches["image"]._search._vectors_MF
    assert isinstance(mapped_MD, np.memmap)
    assert not mapped_MD.flags.writeable


def test_the_files_of_a_search_are_made_once_and_again_where_vectors_changed(
    run: Run, job: EmbeddingJob, monkeypatch: pytest.MonkeyPatch
) -> None:
    run()
    made: list[Path] = []
    write = search_files._write

    def note(*given: Any) -> None:
        made.append(given[2])
        write(*given)

    monkeypatch.setattr(search_files, "_write", note)
    before = EmbeddingSearch(job.out)
    EmbeddingSearch(job.out)
    assert len(made) == 1
    run(split="test")
    after = EmbeddingSearch(job.out)
    assert len(made) == 2
    assert len(list(Path(job.out, SUBFOLDER).iterdir())) == 1, "the former ones are deleted"
    query_D = np.eye(8, dtype=np.float32)[0]
    assert len(before.nearest(query_D, "image", 100)) > len(after.nearest(query_D, "image", 100)) == 5
    shutil.rmtree(Path(job.out, SUBFOLDER))
    assert EmbeddingSearch(job.out).nearest(query_D, "image", 3) == after.nearest(query_D, "image", 3)


def test_files_that_were_cut_off_are_none(run: Run, job: EmbeddingJob, monkeypatch: pytest.MonkeyPatch) -> None:
    run()

    def stop(folder: Any, name: str) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(search_files, "read_embeddings_file", stop)
    with pytest.raises(KeyboardInterrupt):
        EmbeddingSearch(job.out)
    assert list(Path(job.out, SUBFOLDER).iterdir()) == []
    monkeypatch.setattr(search_files, "read_embeddings_file", read_embeddings_file)
    assert EmbeddingSearch(job.out).inputs["image"] == 25


def test_what_is_missing_or_damaged_is_named(run: Run, job: EmbeddingJob) -> None:
    with pytest.raises(EmbeddingsError, match=r"holds no vectors .*python -m jobs\.embed"):
        EmbeddingSearch(job.out)
    made = run()
    search = EmbeddingSearch(job.out)
    with pytest.raises(EmbeddingsError, match="no vectors of 'sound'; it has those of image, text"):
        search.nearest(np.ones(8, np.float32), "sound", 1)
    with pytest.raises(EmbeddingsError, match="have 8 numbers, and this one has 9"):
        search.nearest(np.ones(9, np.float32), "image", 1)
    shutil.rmtree(Path(job.out, SUBFOLDER))
    first = Path(job.out, PARTS, made.parts[0].name)
    first.write_bytes(first.read_bytes()[:-20])
    with pytest.raises(EmbeddingsError, match=rf"{first.name}.*delete it"):
        EmbeddingSearch(job.out)
    first.unlink()
    with pytest.raises(EmbeddingsError, match=rf"{first.name}.*run the embed job again"):
        EmbeddingSearch(job.out)
    Path(job.out, MANIFEST).write_text("{}")
    with pytest.raises(EmbeddingsError, match="is damaged"):
        EmbeddingSearch(job.out)


def test_another_models_vectors_are_refused(run: Run, job: EmbeddingJob) -> None:
    made = run()
    made.check_model(job.described.digest, "tiny version 3", job.out)
    with pytest.raises(
        EmbeddingsError, match=r"are of model tiny version 3 .*, and tiny version 4 .*run the embed job with this model"
    ):
        made.check_model("another", "tiny version 4", job.out)


def test_thumbnails_are_small_copies_of_the_found_images(run: Run, job: EmbeddingJob, tmp_path: Path) -> None:
    run()
    search = EmbeddingSearch(job.out)
    hits = search.nearest(np.eye(8, dtype=np.float32)[0], "text", 100)
    copies = Thumbnails(search.embeddings).make_thumbnails(hits)
    for hit, copy in zip(hits, copies, strict=True):
        if int(hit.key) % 7 == 6:
            assert copy is None, "a sample without an image"
            continue
        assert copy is not None
        shown, own = (Image.open(io.BytesIO(data)) for data in (copy.data, photo(int(hit.key))))
        assert (shown.size, copy.media_type) == (own.size, "image/jpeg"), "small images keep their size"
        difference = np.asarray(shown).astype(float) - np.asarray(own)
        assert np.abs(difference).mean() < 40
    shutil.rmtree(tmp_path / "tars")
    gone = Thumbnails(search.embeddings).make_thumbnails(hits[:3])
    assert gone == [None] * 3, "vectors stay useful without their tars"
    from vlmodel.images.thumbnail import make_thumbnail

    assert max(Image.open(io.BytesIO(make_thumbnail(photo(1, (900, 300)), SIDE).data)).size) == SIDE
