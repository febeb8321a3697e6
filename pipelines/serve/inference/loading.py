"""Loads a model into a replica: verifies its files, warms it up, compares its golden answers."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from pipelines.registry import golden, own_examples
from pipelines.registry.errors import ArtifactError
from pipelines.serve.errors import ServeError
from pipelines.serve.inference.predecoded import DecodedExample, PredecodedProcessor, make_blank_example
from pipelines.storage import manifest
from vlmodel.inference import Predictor
from vlmodel.media.base import MediumError
from vlmodel.operations.base import BatchedRequest, Operation
from vlmodel.processor import Example


def load_predictor(folder: Path, digest: str, device: str) -> Predictor:
    """Load the model in ``folder``, with a processor for decoded inputs.

    Raises:
        ManifestError: a link in the folder, which could point anywhere.
        ArtifactError: the folder's digest is another than ``digest`` (not checked if "").
    """
    # A replica may start weeks after the deployment, and reads the files as they are then.
    if digest and manifest.folder_digest(folder) != digest:
        raise ArtifactError(
            "its files are not those that were deployed; deploy it again (python -m jobs.serve), which restores "
            "a damaged copy of a registered model"
        )
    predictor = Predictor.from_pretrained(folder, device=device)
    plain = predictor.processor
    processor = PredecodedProcessor(
        plain.config,
        plain.tokenizer,
        plain.labels,
        plain.tasks,
        plain.normalizer,
        plain.inputs,
        plain.reads_images,
        plain.knowledge,
    )
    return Predictor(predictor.model, processor, device)


def warm_up(
    predictor: Predictor,
    operations: Iterable[tuple[str, Operation]],
    max_batch_size: int,
    answers: Sequence[golden.GoldenAnswer] = (),
) -> None:
    """Run the first forward passes, which allocate memory and choose kernels, before any caller waits for them.

    Args:
        operations: each with the name of the task that does it.
        answers: golden ones, whose requests are asked; of a task without, an image without anything on it is.
    """
    requests = {one.task: one.example() for one in reversed(answers)}
    for task, operation in operations:
        example: Example = make_blank_example(predictor.processor)
        if task in requests:
            example = _decoded(predictor, requests[task])
        for top_k, attention in operation.warm_up_requests(predictor.processor.tasks[task]):
            for batch_size in {1, max_batch_size}:
                operation.run(predictor, task, [BatchedRequest(example, top_k, attention)] * batch_size)


def _decoded(predictor: Predictor, example: Example) -> DecodedExample:
    try:
        decoded = predictor.processor.decode_inputs(example)
    except MediumError as error:
        raise ServeError(f"the inputs of its golden answers cannot be decoded here: {error}") from error
    return DecodedExample({}, example.texts, facts=example.facts, decoded=decoded)


def read_golden_answers(file: str, *, compared: bool) -> list[golden.GoldenAnswer]:
    """Read the golden answers of a model; none without a file.

    Args:
        compared: whether the model's answers will be compared with them; else the file may be missing.

    Raises:
        ArtifactError: the file cannot be read.
    """
    return golden.read_golden_answers(Path(file)) if file and (compared or Path(file).is_file()) else []


def read_examples(golden_file: str, operations: Mapping[str, tuple[str, Operation]]) -> list[own_examples.ModelExample]:
    """Read the examples of the model's own data, for each operation those of its task; [] for a model without examples.

    Args:
        golden_file: which they lie beside; "" for none.

    Raises:
        ArtifactError: the file is damaged.
    """
    stored = own_examples.read_own_examples(Path(golden_file).with_name(own_examples.FILE)) if golden_file else []
    return [
        example.model_copy(update={"task": name})
        for name, (task, _) in operations.items()
        for example in stored
        if example.task == task
    ]


def check_golden_answers(predictor: Predictor, answers: Sequence[golden.GoldenAnswer], tolerance: float) -> None:
    """Compare the model's answers on this machine with those recorded when it was registered.

    Raises:
        ServeError: some differ by more than ``tolerance``.
    """
    if differences := golden.differing_answers(predictor, answers, tolerance):
        raise ServeError(
            f"{len(differences)} of its {len(answers)} golden answers are others here ({differences[0]}); compare the "
            "versions of libraries and the hardware with those of its training, or raise serve.golden_tolerance"
        )
