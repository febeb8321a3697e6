"""The import: writes any source as a folder of WebDataset tars, either completely or not at all."""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import stat
from collections import Counter
from collections.abc import Collection, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from pipelines.data.importers._files import leaving_out_folders
from pipelines.data.importing.importer import Importer, RejectedSample, SourceContents, SourceSample
from pipelines.data.tars.errors import FaultReason, SampleError, missing_input_reason
from pipelines.data.tars.inputs import PAIRS, TEXT, input_requirements
from pipelines.data.tars.shards import SPLITS, ShardWriter
from pipelines.errors import DataError
from pipelines.report.progress import Progress
from pipelines.storage.folder import StorageFolder
from vlmodel.config import PartConfig, dump_config

MANIFEST = "_import.json"
"""Written last: what was imported, and the counts."""
REJECTS = "_import_rejects.jsonl"
"""One line for each sample or line of the source that was left out."""
_FORMAT = 1

T = TypeVar("T")


@dataclass
class SplitCounts:
    """Counts of one split; ``unanswered``: questions without an answer; ``classes``: samples with a class; ``inputs``:
    samples that have an input other than image and text, by its name.
    """

    samples: int = 0
    captions: int = 0
    questions: int = 0
    conversations: int = 0
    unanswered: int = 0
    classes: int = 0
    inputs: dict[str, int] = field(default_factory=dict)


@dataclass
class ImportSummary:
    """Counts of the samples and files that an import wrote into a folder.

    Attributes:
        splits: counts by split.
        rejected: number of rejects by reason; each is a line of ``_import_rejects.jsonl``.
        passed_over: number, by kind, of the source's files that are part of no sample: hidden files, images that
            nothing names, other files.
        shards: size in bytes by name of tar.
        test_fraction: share of the train samples that became split test, as the source has none; 0 if it has.
        unchanged: the folder already held this import, and nothing was written.
    """

    splits: dict[str, SplitCounts] = field(default_factory=dict)
    rejected: dict[str, int] = field(default_factory=dict)
    passed_over: dict[str, int] = field(default_factory=dict)
    shards: dict[str, int] = field(default_factory=dict)
    test_fraction: float = 0.0
    unchanged: bool = False


def import_data(
    config: PartConfig, out_folder: str | Path, progress: bool = True, left_out: Collection[str | Path] = ()
) -> ImportSummary:
    """Write all samples of a source as tars into ``out_folder``.

    The tars are written beside it, into ``.NAME.importing``, which is renamed when it is complete: a crash leaves no
    ``out_folder``. Only its owner may read it (mode 0700), as pictures may be of people, unless it existed with another
    mode. Samples that cannot be used are counted and listed, and the import continues.

    Args:
        config: a part of ``pipelines.data.importers``.
        out_folder: a local folder that is empty, absent, or holds this import already.
        progress: show a bar (lines, where standard error is no terminal).
        left_out: folders that are not read where they lie below the source's, as ``out_folder`` is not.

    Raises:
        DataError: the source is missing or unusable as a whole, none of its samples can be used, ``out_folder`` is a
            URI or holds something else, or another process imports into it.
    """
    if not isinstance(config, Importer):
        raise TypeError(f"{type(config).__name__} is not the Config of an importer")
    if "://" in str(out_folder):
        raise DataError(
            f"{out_folder} is a URI, and an import writes to a local folder; name one, and copy it afterwards"
        )
    out = Path(out_folder).expanduser().resolve()
    with leaving_out_folders([out, *left_out]):
        return _import_once(config, out, progress)


def _import_once(config: Importer, out: Path, progress: bool) -> ImportSummary:
    """Do what ``import_data`` says, unless it was done before."""
    identity = {"format": _FORMAT, "config": dump_config(config), "fingerprint": config.fingerprint()}
    defaults = _optional_setting_defaults(config)
    if (done := _find_finished_import(out, identity, defaults)) is not None:
        return done
    contents = config.read()
    with _staging_folder(out) as staging:
        # Again: another process may have finished it meanwhile.
        if (done := _find_finished_import(out, identity, defaults)) is not None:
            return done
        summary = _write_tars(config, contents, staging, progress)
        counts = {name: value for name, value in asdict(summary).items() if name != "unchanged"}
        manifest = json.dumps(identity | counts, indent=2, sort_keys=True)
        StorageFolder(staging).write(MANIFEST, f"{manifest}\n".encode())
        if out.exists():
            staging.chmod(stat.S_IMODE(out.stat().st_mode))
        try:
            staging.rename(out)
        except OSError as error:
            raise DataError(f"{out} cannot be put in place ({error.strerror}); choose a folder inside it") from None
    return summary


def _write_tars(config: Importer, contents: SourceContents, folder: Path, progress: bool) -> ImportSummary:
    summary = ImportSummary()
    rejected: Counter[str] = Counter()
    examples: dict[str, RejectedSample] = {}
    sample_of_file: dict[str, str] = {}
    test_fraction = 0.0 if "test" in contents.splits else config.test_fraction
    with ExitStack() as stack:
        writers = {
            split: stack.enter_context(ShardWriter(folder, split, config.samples_per_shard, inputs=config.inputs))
            for split in SPLITS
        }
        rejects = stack.enter_context((folder / REJECTS).open("w", encoding="utf-8", errors="backslashreplace"))
        samples = contents.samples
        for sample in _show_progress(samples, contents.total, f"import {config.kind}") if progress else samples:
            if isinstance(sample, RejectedSample):
                reject: RejectedSample | None = sample
            else:
                sample = sample._replace(split=config.split_of(sample, test_fraction))
                reject = _write_sample(sample, writers, summary, sample_of_file)
            if reject is not None:
                rejected[reject.reason] += 1
                examples.setdefault(reject.reason, reject)
                rejects.write(json.dumps(reject._asdict(), ensure_ascii=False) + "\n")
    if not summary.splits:
        reasons = [f"{reject.key}: {reject.reason}, {reject.detail}" for reject in list(examples.values())[:3]]
        if others := describe_counts(contents.count_skipped_files()):
            reasons.append(f"it holds {others}")
        shown = f" ({'; '.join(reasons)})" if reasons else ""
        raise DataError(
            f"source {config.kind!r} gave no usable sample{shown}; {_missing_split_remedy(config, rejected)}"
        )
    summary.splits = {split: summary.splits[split] for split in SPLITS if split in summary.splits}
    summary.test_fraction = test_fraction if "test" in summary.splits else 0.0
    summary.rejected = dict(sorted(rejected.items()))
    summary.passed_over = dict(sorted(contents.count_skipped_files().items()))
    summary.shards = {name: (folder / name).stat().st_size for writer in writers.values() for name in writer.shards}
    return summary


def describe_counts(counts: Mapping[str, int]) -> str:
    """Describe counts by kind in words, the most frequent first."""
    return ", ".join(f"{count:,} {kind}" for kind, count in sorted(counts.items(), key=lambda item: -item[1]))


def _missing_split_remedy(config: Importer, rejected: Counter[str]) -> str:
    for name, is_required in input_requirements(config.inputs).items():
        if is_required and len(config.inputs) > 1 and 2 * rejected[missing_input_reason(name)] > rejected.total():
            others = json.dumps([other for other in config.inputs if other != name])
            lie_elsewhere = name == "image" and "images" in type(config).model_fields
            correct = "set source.images to the folder that holds them" if lie_elsewhere else "correct it"
            return f"{correct}, or do without the input {name!r} by source.inputs={others}"
    places = [f"source.{name}" for name in ("folder", "file") if name in type(config).model_fields]
    if not rejected and places:
        return f"set {' or '.join(places)} to where the data is"
    return "correct it"


def _write_sample(
    sample: SourceSample, writers: dict[str, ShardWriter], summary: ImportSummary, sample_of_file: dict[str, str]
) -> RejectedSample | None:
    """Write one sample and count it. Returns what is wrong with it if it cannot be written.

    Args:
        sample_of_file: by image file, a description of its sample.
    """
    try:
        if sample.file in sample_of_file:
            raise SampleError(FaultReason.DUPLICATE_KEY, f"its image is the very file of {sample_of_file[sample.file]}")
        owner = next((split for split, writer in writers.items() if sample.key in writer), None)
        if owner is not None:
            detail = f"split {owner!r} already has this key; give each image a key of its own"
            raise SampleError(FaultReason.DUPLICATE_KEY, detail)
        writers[sample.split].add(sample.key, sample.inputs, sample.texts, sample.extra)
    except SampleError as error:
        return RejectedSample(sample.key, error.reason, error.detail)
    if sample.file is not None:
        sample_of_file[sample.file] = f"sample {sample.key!r} of split {sample.split!r}"
    counts = summary.splits.setdefault(sample.split, SplitCounts())
    counts.samples += 1
    needed = input_requirements(writers[sample.split].inputs)
    for name in sample.inputs.keys() & needed.keys() - set(PAIRS):
        counts.inputs[name] = counts.inputs.get(name, 0) + 1
    if TEXT in needed:
        counts.captions += len(sample.texts.captions)
        counts.questions += len(sample.texts.questions)
        counts.conversations += len(sample.texts.conversations)
        counts.classes += sample.texts.label is not None
        counts.unanswered += sum(question.answer is None for question in sample.texts.questions)
    return None


def _optional_setting_defaults(config: Importer) -> dict[str, Any]:
    """Return the defaults of all settings, as a manifest may be older than some of them."""
    fields = type(config).model_fields
    optional = {name: field.get_default(call_default_factory=True) for name, field in fields.items()}
    tree = dump_config(config.model_copy(update={n: v for n, v in optional.items() if not fields[n].is_required()}))
    return {name: tree[name] for name, field in fields.items() if not field.is_required()}


def _find_finished_import(out: Path, identity: dict[str, Any], defaults: dict[str, Any]) -> ImportSummary | None:
    """Return the summary of the import that ``identity`` describes if it was finished before; None if ``out`` is empty.

    Args:
        defaults: of settings that the manifest may not have.

    Raises:
        DataError: ``out`` holds something else.
    """
    if not out.exists():
        return None
    if not out.is_dir():
        raise DataError(f"{out} is a file; name a folder for the tars")
    if not any(out.iterdir()):
        return None
    remedy = "choose another folder, or remove this one to import anew"
    try:
        tree = json.loads((out / MANIFEST).read_text(encoding="utf-8"))
        stored = {name: tree[name] for name in identity}
        stored["config"] = defaults | stored["config"]
        summary = ImportSummary(
            {split: SplitCounts(**tree["splits"][split]) for split in SPLITS if split in tree["splits"]},
            tree["rejected"],
            tree.get("passed_over", {}),
            tree["shards"],
            tree.get("test_fraction", 0.0),
            unchanged=True,
        )
    except FileNotFoundError:
        raise DataError(f"{out} is not empty and holds no import; {remedy}") from None
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise DataError(f"{out / MANIFEST} cannot be read ({error!r}); {remedy}") from None
    if stored != identity:
        raise DataError(f"{out} holds another import ({_describe_first_difference(stored, identity)}); {remedy}")
    for name, size in summary.shards.items():
        if not (out / name).is_file() or (out / name).stat().st_size != size:
            raise DataError(f"{out} held this import, but {name} is missing or was changed; {remedy}")
    return summary


def _describe_first_difference(stored: dict[str, Any], wanted: dict[str, Any]) -> str:
    names = stored["config"].keys() | wanted["config"].keys()
    for name in sorted(names, key=lambda name: (name != "kind", name)):  # Of another kind all differ.
        if (old := stored["config"].get(name)) != (new := wanted["config"].get(name)):
            return f"source.{name} is {old!r} there and {new!r} here"
    return "the source's files have changed since" if stored["format"] == wanted["format"] else "of an older format"


@contextmanager
def _staging_folder(out: Path) -> Iterator[Path]:
    """Create an empty folder beside ``out`` and lock it while the block runs."""
    staging = out.parent / f".{out.name}.importing"
    try:
        staging.mkdir(mode=0o700, parents=True, exist_ok=True)
        # O_NOFOLLOW: the files of a folder that a link leads to would be deleted as leftovers.
        descriptor = os.open(staging, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    except OSError as error:
        raise DataError(f"{staging} cannot be written ({error.strerror}); choose another folder") from None
    try:
        _lock_staging_folder(descriptor, staging, out)
        try:
            os.fchmod(descriptor, 0o700)
            for leftover in staging.iterdir():  # of an interrupted import
                is_folder = leftover.is_dir() and not leftover.is_symlink()
                shutil.rmtree(leftover) if is_folder else leftover.unlink()
            yield staging
        except OSError as error:
            error.filename = error.filename or str(out.parent)  # a write does not say which disk is full
            raise
        finally:
            shutil.rmtree(staging, ignore_errors=True)
    finally:
        os.close(descriptor)


def _lock_staging_folder(descriptor: int, staging: Path, out: Path) -> None:
    # The folder itself is locked, not a file in it: it is emptied, and renamed while it is locked.
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        is_locked = os.path.samestat(os.fstat(descriptor), staging.stat())
    except (BlockingIOError, FileNotFoundError):
        is_locked = False
    if not is_locked:  # by another process, or renamed to ``out`` just before
        raise DataError(f"another process is importing into {out}; wait for it to end")


def _show_progress(samples: Iterator[T], total: int, name: str) -> Iterator[T]:
    with Progress(name, "sample") as progress:
        for done, sample in enumerate(samples, 1):
            yield sample
            progress(done, total)
