"""Builds the tokenizer and the answer vocabulary from the texts of the training split, before training."""

from __future__ import annotations

import shutil
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING

from pipelines.data.index.index import Index
from pipelines.data.texts.config import VocabularyConfig
from pipelines.data.texts.corpus import (
    count_labels,
    count_spellings,
    iterate_texts_of_split,
    most_frequent_answers,
    train_tokenizer,
)
from pipelines.data.texts.lengths import TextLengths
from pipelines.errors import DataError
from vlmodel.answers import Normalizer, normalize_for_comparison
from vlmodel.encoder_parts import ModalityPart
from vlmodel.knowledge_parts import KnowledgePart
from vlmodel.processor import ProcessorConfig, VLProcessor
from vlmodel.task import Task
from vlmodel.weights import from_pretrained_arguments

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def build_processor(
    indexes: Sequence[Index],
    config: VocabularyConfig,
    processor: ProcessorConfig,
    tasks: Mapping[str, Task],
    folder: str,
    limits: Callable[[VLProcessor], tuple[int | None, int | None]],
    report: Callable[[str], object] = lambda line: None,
    *,
    inputs: Mapping[str, ModalityPart] | None = None,
    reads_images: bool = True,
    knowledge: KnowledgePart | None = None,
    fact_texts: Callable[[], Iterable[str]] = tuple,
) -> VLProcessor:
    """Build the processor for a training of ``tasks`` on the data of ``indexes``, once, and save it in ``folder``.

    Args:
        limits: for a processor's tokenizer, most tokens that the model can read and can write.
        report: called with a line where answers of several spellings are merged.
        inputs, reads_images, knowledge: as of ``VLProcessor``.
        fact_texts: the texts of facts, of which a tokenizer is trained too if the model reads facts.

    Raises:
        DataError: the training split has no answered question or no class, or the tokenizer cannot be found.
    """
    if Path(folder).is_dir():
        return VLProcessor.from_pretrained(folder)
    choosing = [task for task in tasks.values() if task.chooses_label]
    counted: Counter[str] = Counter()
    for index in indexes if choosing else ():
        counted.update(count_labels(index, choosing))
    normalizer = common_normalizer_of_tasks(choosing, config.normalizer)
    labels = most_frequent_answers(counted, config.answers, config.min_answer_count, normalizer)
    if choosing and len(labels) < 2:
        raise DataError(
            f"the training split of {' and '.join(index.tars for index in indexes)} has {len(labels)} different "
            "answers or classes, and a classifier needs at least two; check the source's answers or classes, or lower "
            "vocabulary.min_answer_count"
        )
    if line := _describe_merged_answers(counted, labels, normalizer):
        report(line)
    further = fact_texts() if knowledge is not None and knowledge.reads_facts else ()
    words = knowledge.added_target_words() if knowledge is not None else ()
    tokenizer = _make_tokenizer(indexes, config, chain(further, words))
    built = VLProcessor(processor, tokenizer, labels, tasks, normalizer, inputs, reads_images, knowledge)
    lengths = TextLengths.count(indexes, built.tokenizer, tasks)
    extra = knowledge.max_added_target_tokens() if knowledge is not None else 0
    built.config = lengths.set_inferred_limits(processor, *limits(built), extra)
    saved = save_processor(built, folder)
    lengths.save(folder)
    return saved


def common_normalizer_of_tasks(choosing: Sequence[Task], setting: Normalizer) -> Normalizer:
    """Return the answer normalizer that all tasks that choose among labels share; without such tasks the setting's."""
    of_tasks: set[Normalizer] = {task.normalizer or setting for task in choosing}
    return of_tasks.pop() if len(of_tasks) == 1 else setting


def count_text_lengths(indexes: Sequence[Index], processor: VLProcessor, folder: str) -> TextLengths:
    """Count the tokens of the training texts by the processor that is saved in ``folder``; the counts are saved there
    too.
    """
    if (lengths := TextLengths.load(folder)) is None:
        lengths = TextLengths.count(indexes, processor.tokenizer, processor.tasks)
        lengths.save(folder)
    return lengths


def save_processor(processor: VLProcessor, folder: str) -> VLProcessor:
    """Save a processor in ``folder``, unless there is one. Returns the saved one, as other processes will load it."""
    target = Path(folder)
    if target.is_dir():
        return VLProcessor.from_pretrained(target)
    partial = target.with_name(f".{target.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    processor.save_pretrained(partial)
    partial.rename(target)
    return VLProcessor.from_pretrained(target)


def share_of_answers_in_vocabulary(counted: Mapping[str, int], processor: VLProcessor) -> float:
    """Calculate the share of answers, weighted by how often each occurs, that are in the vocabulary; 1 if there are no
    answers.
    """
    total = sum(counted.values())
    return sum(n for answer, n in counted.items() if processor.label_id(answer) >= 0) / total if total else 1.0


def _describe_merged_answers(counted: Mapping[str, int], labels: Sequence[str], normalizer: Normalizer) -> str:
    """Describe which answers were merged into one label; "" if none were."""
    by_form = {normalize_for_comparison(label, normalizer): label for label in labels}
    merged = [
        (by_form[form], sorted(spellings))
        for form, spellings in count_spellings(counted, normalizer).items()
        if len(spellings) > 1 and form in by_form
    ]
    if not merged:
        return ""
    merged.sort(key=lambda pair: -sum(counted[answer] for answer in pair[1]))
    examples = "; ".join(f"{label!r} for {', '.join(map(repr, answers[:5]))}" for label, answers in merged[:3])
    return (
        f"{sum(len(answers) for _, answers in merged)} answers are {len(merged)} labels, as they mean the same by "
        f"vocabulary.normalizer={normalizer} ({examples})"
    )


def _make_tokenizer(
    indexes: Sequence[Index], config: VocabularyConfig, further: Iterable[str]
) -> PreTrainedTokenizerBase:
    from transformers import AutoTokenizer

    if not config.tokenizer:
        texts = chain.from_iterable(iterate_texts_of_split(index, "train") for index in indexes)
        return train_tokenizer(chain(texts, further), config.size, config.lowercase)
    name, options = from_pretrained_arguments(config.tokenizer)
    try:
        tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(name, trust_remote_code=False, **options)
    except (OSError, ValueError) as error:
        raise DataError(
            f"vocabulary.tokenizer={config.tokenizer!r} cannot be loaded ({error}); name a folder with a tokenizer, "
            'a hub name that this machine can reach, or "" to train one on the corpus'
        ) from None
    if tokenizer.pad_token is None:
        # Language models often have none. Padding is masked, so that any token will do.
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer
