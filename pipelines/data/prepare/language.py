"""Detects the language of a text by the model in the package py3langid."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import Any

from pipelines.errors import DataError


def require_known_languages(languages: Sequence[str]) -> None:
    """Raise DataError for an unknown language code, or if py3langid is not installed."""
    if not languages:
        return
    known = _load_language_identifier().labels
    if unknown := [code for code in languages if code not in known]:
        raise DataError(
            f"prepare.languages has {', '.join(map(repr, unknown))}; choose among the ISO 639 codes "
            f"{', '.join(sorted(known))}"
        )


def language_probability(text: str, languages: Sequence[str]) -> tuple[float, str]:
    """Return the probability that the text is in one of the languages, and the code of the most probable of all
    languages.
    """
    ranked = _load_language_identifier().rank(text)
    return sum(share for code, share in ranked if code in languages), ranked[0][0]


@cache
def _load_language_identifier() -> Any:
    try:
        from py3langid.langid import MODEL_FILE, LanguageIdentifier
    except ImportError:
        raise DataError(
            "prepare.languages needs the package py3langid; install it (pip install py3langid), or leave languages "
            "empty to allow all"
        ) from None
    return LanguageIdentifier.from_model_file(MODEL_FILE, norm_probs=True)
