"""Each filter by itself, at its limits."""

from __future__ import annotations

import pytest

from pipelines.data.prepare import language
from pipelines.data.prepare.config import PrepareConfig
from pipelines.data.prepare.filters import (
    DropReason,
    count_texts,
    find_size_fault,
    find_text_fault,
    merge_texts,
    texts_of_valid_length,
)
from pipelines.errors import DataError
from vlmodel.config import ConfigError, parse_config
from vlmodel.sample import Question, SampleTexts


@pytest.mark.parametrize(
    ("size", "settings", "reason"),
    [
        ((100, 100), {}, None),
        ((1, 5000), {}, None),
        ((64, 200), {"min_side": 64}, None),
        ((200, 63), {"min_side": 64}, DropReason.SMALL),
        ((63, 200), {"min_side": 64}, DropReason.SMALL),
        ((300, 100), {"max_aspect": 3.0}, None),
        ((301, 100), {"max_aspect": 3.0}, DropReason.ELONGATED),
        ((100, 301), {"max_aspect": 3.0}, DropReason.ELONGATED),
        ((10, 100), {"min_side": 11, "max_aspect": 3.0}, DropReason.SMALL),
    ],
)
def test_size(size: tuple[int, int], settings: dict[str, float], reason: DropReason | None) -> None:
    drop = find_size_fault(*size, PrepareConfig(**settings))
    assert (drop.reason if drop else None) is reason


def test_the_detail_names_value_and_limit() -> None:
    assert find_size_fault(301, 100, PrepareConfig(max_aspect=3.0)) == (
        "elongated",
        "301 x 100 pixels, 3.01 to 1; prepare.max_aspect = 3",
    )


TEXTS = SampleTexts(("abc", "abcde", "abcdefg"), (Question("ab?", "a very long answer"), Question("abcdef?", "no")))


@pytest.mark.parametrize(
    ("low", "high", "left"),
    [
        (0, 0, ["abc", "abcde", "abcdefg", "ab?", "abcdef?"]),
        (4, 0, ["abcde", "abcdefg", "abcdef?"]),
        (0, 5, ["abc", "abcde", "ab?"]),
        (5, 5, ["abcde"]),
        (8, 0, []),
    ],
)
def test_texts_of_unfit_length_are_left_out(low: int, high: int, left: list[str]) -> None:
    config = PrepareConfig(min_chars=low, max_chars=high)
    fitting = texts_of_valid_length(TEXTS, config)
    assert [*fitting.captions, *(q.question for q in fitting.questions)] == left
    assert count_texts(fitting) == len(left)
    drop = find_text_fault(fitting, TEXTS, config)
    assert (drop is None) == bool(left)
    if drop is not None:
        assert drop == ("text_length", "5 texts of 3 to 7 characters; prepare.min_chars = 8, prepare.max_chars = 0")


def test_joined_texts_are_not_repeated() -> None:
    own = SampleTexts(("a", "a", "b"), (Question("q?", "yes"),))
    other = SampleTexts(("b", "c"), (Question("q?", "yes"), Question("q?", "no")))
    assert merge_texts(own) == own
    assert merge_texts(own, other, other) == SampleTexts(
        ("a", "a", "b", "c"), (Question("q?", "yes"), Question("q?", "no"))
    )


def test_settings_that_leave_nothing_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"max_chars = 3 is below min_chars = 4; no text fits both"):
        parse_config(PrepareConfig, {"min_chars": 4, "max_chars": 3})
    with pytest.raises(ConfigError, match=r"max_aspect = 0.5 is below that of a square; give at least 1"):
        parse_config(PrepareConfig, {"max_aspect": 0.5})


def test_language() -> None:
    pytest.importorskip("py3langid", reason="py3langid is not installed; make installs it from requirements.lock")
    config = PrepareConfig(languages=["en", "nl"])
    language.require_known_languages(config.languages)
    for caption in ("Three black dogs on grass.", "Een zwarte hond blaft."):
        texts = SampleTexts((caption,), ())
        assert find_text_fault(texts, texts, config) is None
    foreign = SampleTexts(("Ein schwarzer Hund bellt.",), (Question("Was macht der Hund?"),))
    drop = find_text_fault(foreign, foreign, config)
    assert drop is not None
    assert drop.reason is DropReason.LANGUAGE
    assert drop.detail.startswith("rather de; en, nl with probability 0.0")
    with pytest.raises(DataError, match=r"prepare.languages has 'english'; choose among .* en, "):
        language.require_known_languages(["de", "english"])


def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "py3langid.langid", None)
    language._load_language_identifier.cache_clear()
    with pytest.raises(DataError, match=r"needs the package py3langid; install it"):
        language.require_known_languages(["en"])
