"""Compares captions with those that people gave, by the metrics of the COCO caption evaluation (arXiv 1504.00325)."""

from __future__ import annotations

import random
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from nltk.tokenize import NLTKWordTokenizer
from pycocoevalcap.bleu.bleu import Bleu
from pycocoevalcap.cider.cider import Cider
from pycocoevalcap.rouge.rouge import Rouge
from sklearn.feature_extraction.text import HashingVectorizer, TfidfTransformer
from tokenizers import normalizers

_PREPARE = normalizers.Sequence(
    [
        normalizers.NFC(),
        normalizers.BertNormalizer(clean_text=True, handle_chinese_chars=True, strip_accents=False, lowercase=True),
    ]
)
_TREEBANK = NLTKWordTokenizer()
_STOPS = ".?!…。！？।؟۔"
_MARKS = frozenset(_STOPS + "`'\"()[]{},:;-–—‘’“”«»、，：；（）「」『』《》،؛")


def tokenize_caption(caption: str) -> str:
    """Split a caption into words as the metrics do: lower case, without punctuation, joined by spaces.

    The COCO evaluation uses the Penn Treebank tokens of a Java program without quotes, brackets, stops, commas, colons
    and dashes. NLTK makes the same tokens: "isn't" is two, "t-shirt" is one, "$", "&" and "%" stay. They differ for
    abbreviations ("U.S.") and slashes ("w/"), so metrics differ slightly from those of the Java program; for captions
    of plain words they are equal. Unlike there, each Chinese character is a word, since such captions have no blanks,
    and the punctuation marks of other scripts are left out too.
    """
    # NLTK separates only the last full stop.
    words = (word.rstrip(_STOPS) for word in _TREEBANK.tokenize(_PREPARE.normalize_str(caption)))
    return " ".join(word for word in words if not _MARKS.issuperset(word))


def caption_scores(predicted: Sequence[str], references: Sequence[Sequence[str]]) -> dict[str, float]:
    """Compute ``bleu_1`` to ``bleu_4``, ``rouge_l`` and ``cider`` of one caption for each image, over the whole corpus.

    BLEU (Papineni et al. 2002), ROUGE-L (Lin 2004) and CIDEr-D (Vedantam et al. 2015, arXiv 1411.5726) are those of
    pycocoevalcap, from 0 to 1, CIDEr from 0 to 10. CIDEr weighs words by how few images have them in their references:
    values of different sets of images are not comparable, and that of a single image is 0. A caption without words
    scores 0.

    Args:
        predicted: a caption for each image, in any script.
        references: the captions that people gave, at least one for each image. Those without words are left out.

    Raises:
        ValueError: an image without a reference that has words.
    """
    results, truths = _tokenized_captions(predicted, references)
    bleu, _ = Bleu(4).compute_score(truths, results, verbose=0)
    scores = {f"bleu_{n}": float(value) for n, value in enumerate(bleu, 1)}
    scores["rouge_l"] = float(Rouge().compute_score(truths, results)[0])
    scores["cider"] = float(Cider().compute_score(truths, results)[0])
    return scores


def drop_wordless_references(references: Iterable[Sequence[str]]) -> list[list[str]]:
    """Drop references without a word, as a caption cannot be scored against them."""
    return [[caption for caption in captions if tokenize_caption(caption)] for captions in references]


def cider_per_image(predicted: Sequence[str], references: Sequence[Sequence[str]]) -> np.ndarray:
    """Compute the CIDEr-D of each image's caption; their mean is the ``cider`` of ``caption_scores``."""
    results, truths = _tokenized_captions(predicted, references)
    return np.asarray(Cider().compute_score(truths, results)[1], np.float64)


def rouge_l_per_text(predicted: Sequence[str], references: Sequence[Sequence[str]]) -> np.ndarray:
    """Compute the ROUGE-L of each text; their mean is the ``rouge_l`` of ``caption_scores``."""
    if not predicted:
        return np.zeros(0)
    results, truths = _tokenized_captions(predicted, references)
    return np.asarray(Rouge().compute_score(truths, results)[1], np.float64)


def most_typical_caption(captions: Iterable[str], limit: int = 20_000, seed: int = 0) -> str:
    """Find the training caption that is most similar to all others: a baseline that gives one caption for all images.

    Similarity is CIDEr's, the cosine of n-grams of one to four words weighted by their rarity. It is the consensus
    caption of Devlin et al. 2015 (arXiv 1505.04467) of the whole training split. The mean cosine with all captions is
    the product with their mean, so time and memory grow linearly with ``limit``.

    Args:
        limit: most captions to compare, drawn with ``seed`` if there are more.

    Raises:
        ValueError: no caption has a word.
    """
    every = list(captions)
    if len(every) > limit:
        every = random.Random(seed).sample(every, limit)
    sample = sorted(every)  # of equally typical captions the alphabetically first
    words = [tokenize_caption(caption) for caption in sample]
    if not any(words):
        raise ValueError(f"none of the {len(words)} captions has a word; the training split needs at least one")
    return sample[_most_typical_row(_ngram_vectors(words))]


def consensus_captions(candidates: Sequence[Sequence[str]]) -> list[str]:
    """For each image choose the candidate caption that is most similar to the image's other candidates, by the measure
    of ``most_typical_caption``: the consensus caption of Devlin et al. 2015. "" for an image without candidates.

    The rarity of words is that in all candidates of all images.
    """
    distinct = list(dict.fromkeys(caption for of_image in candidates for caption in of_image))
    number = {caption: n for n, caption in enumerate(distinct)}
    words = [tokenize_caption(caption) for caption in distinct]
    if not any(words):
        return [next(iter(of_image), "") for of_image in candidates]
    vectors = _ngram_vectors(words)
    chosen = []
    for of_image in candidates:
        rows = [number[caption] for caption in of_image]
        chosen.append(of_image[_most_typical_row([vectors_NV[rows] for vectors_NV in vectors])] if rows else "")
    return chosen


def _ngram_vectors(words: Sequence[str]) -> list[Any]:
    """Compute TF-IDF vectors of tokenized captions, sparse (N, V), of length one or zero: one matrix each for n-grams
    of one to four words.
    """
    vectors = []
    for n in range(1, 5):
        options = {"ngram_range": (n, n), "lowercase": False, "token_pattern": None}
        counter = HashingVectorizer(tokenizer=str.split, norm=None, alternate_sign=False, **options)
        vectors.append(TfidfTransformer().fit_transform(counter.transform(words)))
    return vectors


def _most_typical_row(vectors: Sequence[Any]) -> int:
    """Find the row with the greatest mean cosine to all rows; the first of several."""
    similarity_N = sum(vectors_NV @ np.asarray(vectors_NV.mean(axis=0)).ravel() for vectors_NV in vectors)
    return int(np.argmax(similarity_N))


def _tokenized_captions(
    predicted: Sequence[str], references: Sequence[Sequence[str]]
) -> tuple[dict[int, list[str]], dict[int, list[str]]]:
    """Build the input of pycocoevalcap: the tokenized captions and references of each image."""
    results = {image: [tokenize_caption(caption)] for image, caption in enumerate(predicted)}
    truths = {image: list(filter(None, map(tokenize_caption, captions))) for image, captions in enumerate(references)}
    if empty := [image for image, captions in truths.items() if not captions]:
        raise ValueError(
            f"references[{empty[0]}] is {list(references[empty[0]])!r}; {len(empty)} of {len(truths)} images have no "
            "reference with a word, leave them out"
        )
    return results, truths
