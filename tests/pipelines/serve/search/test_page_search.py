"""The page's tab of searches in a real browser: by words and by a picture, among pictures and among texts."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from pipelines.embeddings.embed import EmbeddingJob, embed_dataset
from pipelines.serve.config import SearchServingConfig, ServeConfig
from tests.browser import find_browser
from tests.pipelines.embeddings.conftest import COPIES
from tests.pipelines.serve.http.routes.test_page import Visits, entries, names

pytestmark = pytest.mark.slow


def test_a_search_shows_what_is_nearest(job: EmbeddingJob, contrastive: Path, tmp_path: Path) -> None:
    find_browser()
    embed_dataset(job, COPIES)
    config = ServeConfig(model_threads=1, golden_tolerance=1, search=SearchServingConfig(embeddings=job.out))
    visits = Visits(contrastive, config, tmp_path)
    script = """
    await task("search");
    await send();
    document.body.dataset.asked = $("notice").textContent;
    document.body.dataset.among = [...$("among").options].map((option) => option.value).join(" ");
    $("sought").value = "what is the circle";
    await send();
    $("among").value = "text";
    await send();
    const images = [...document.querySelectorAll(".hit img")];
    await until(() => images.every((image) => image.complete));
    document.body.dataset.shown = images.filter((image) => image.naturalWidth).length;
    """
    try:
        html = visits.visit(script, tmp_path / "profile")
    finally:
        visits.close()
    assert 'data-asked="Choose a picture first."' in html
    assert 'data-among="image text"' in html
    by_text, by_image = entries(html)
    for entry in (by_text, by_image):
        assert "what is the circle" in entry
        assert entry.count('class="hit"') == 12
    assert "among 25 of image" in by_image
    assert all(re.fullmatch(r"\d{4}", name) for name in names(by_image))
    assert not any(re.fullmatch(r"\d{4}", name) for name in names(by_text))
    assert int(re.search(r'data-shown="(\d+)"', html)[1]) >= 12  # type: ignore[index]
