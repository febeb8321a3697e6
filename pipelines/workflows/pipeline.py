"""The workflow of the job ``pipeline``."""

from __future__ import annotations

import contextlib
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Collection, Iterator

from pipelines.data.tars.reader import ShardReader
from pipelines.registry.gate.check import GateDecision
from pipelines.serve import tls
from pipelines.serve.deployment.address import check_port_free
from pipelines.tracking.address import TrackingError, mlflow_server_command, tracking_uri
from pipelines.tracking.page import experiment_page_address
from pipelines.tracking.store import open_store
from pipelines.train import run_folder
from pipelines.workflows import training_data
from pipelines.workflows.cluster import connected_to_cluster
from pipelines.workflows.workspace import Workspace
from vlmodel.encoder_parts import IMAGE
from vlmodel.operations.ask import VQAOperation
from vlmodel.operations.base import operations_of_tasks
from vlmodel.operations.classify import ClassifyOperation
from vlmodel.sample import Sample

_PAGE_START_S = 180
_PAGE_HOST = "127.0.0.1"


def run(work: Workspace) -> None:
    """Run the stages of the pipeline, then show the result."""
    # What would fail at the end is looked at before minutes of training.
    check_port_free(work.config.serve.host, work.config.serve.port)
    if not _is_server(tracking_uri(work.config.tracking, work.storage)):
        check_port_free(_PAGE_HOST, work.config.tracking.page_port, "tracking.page_port")
    tls.check_tls_files(work.config.serve.tls)
    with run_folder.lock_run_folder(work.run_folder):
        pass  # Who else trains this run is told before the import, and not after it.
    begun = time.perf_counter()
    # Each stage is imported when its turn comes: what only the later ones need would delay the first line.
    from pipelines.workflows import import_data

    import_data.run(work)  # A source that is none is told before a cluster is started.
    with connected_to_cluster(work.config.cluster), contextlib.ExitStack() as services:
        from pipelines.workflows import index

        index.run(work)
        training_data.check_data_for_evaluation_and_gate(work, work.newest_index())
        from pipelines.workflows import train

        train.run(work)
        from pipelines.workflows import evaluate

        # The training has just told the accuracy on a sample of its split.
        evaluate.run(work.with_changed_settings(evaluate=work.config.evaluate.model_copy(update={"training": False})))
        from pipelines.workflows import promote, serve

        decision = promote.run(work)
        address = services.enter_context(serve.run_service(_serve_champion_or_trained_version(work, decision)))
        _ask_example_question(work, address)
        print(f"from nothing to this answer: {time.perf_counter() - begun:.0f} s", flush=True)
        page = _experiment_page(work, services.enter_context(mlflow_page(work)))
        print(f"\nservice       {address}  (ask it; API at {address}/docs)\nMLflow        {page}", flush=True)
        if note := _note_about_other_champion(decision):
            print(f"\n{note}", flush=True)
        if sys.stdin.isatty():
            print("Ctrl-C stops both", flush=True)
            threading.Event().wait()


def _experiment_page(work: Workspace, server: str) -> str:
    """Return the address at which an MLflow server shows the experiment's runs."""
    experiment = open_store(work.config.tracking, work.storage).get_experiment_by_name(work.config.tracking.experiment)
    return server if experiment is None else experiment_page_address(server, experiment.experiment_id)


def _serve_champion_or_trained_version(work: Workspace, decision: GateDecision | None) -> Workspace:
    """Return what to serve: the champion or, if there is none, the version that was trained."""
    serving = work.config.serve
    if decision is None or decision.promote or decision.champion is not None or serving.version or serving.model:
        return work
    return work.with_changed_settings(serve=serving.model_copy(update={"version": decision.candidate}))


def _note_about_other_champion(decision: GateDecision | None) -> str:
    """Tell the user if the version that was trained is not the champion now; "" if it is."""
    if decision is None or decision.promote:
        return ""
    trained = f"version {decision.candidate} of {decision.model}, which was trained here, was not promoted"
    if decision.champion is None:
        return f"{trained}; it answers here only to be looked at ({decision.reason})"
    return f"version {decision.champion} answers: {trained} ({decision.reason})"


def _ask_example_question(work: Workspace, address: str) -> None:
    """Ask the service about the first sample of the evaluated split, and print its answers beside the right ones; for a
    model that neither answers questions nor has classes, only print where to send requests.
    """
    from pipelines.serve.client import Client

    operations = operations_of_tasks(work.config.model.task.tasks_by_name())
    can_be_asked = (
        name for name in (VQAOperation.name, ClassifyOperation.name)
        if name in operations and operations[name][1].unsupported_request_reason({}) is None
    )  # fmt: skip
    name = next(can_be_asked, None)
    read = {encoding.input for encoding in work.config.model.encoders_by_stream().values()}
    record = None if name is None else _first_sample(work, operations[name][0], read)
    if record is None or (name == VQAOperation.name and not record.texts.questions):
        print(f"\nthe model answers at {' and '.join(f'{address}/v1/{name}' for name in operations)}", flush=True)
        return
    inputs = dict(record.inputs)
    image = inputs.pop(IMAGE, None)
    with Client(address, ssl_context=tls.ssl_context_for_own_certificate(work.config.serve.tls)) as service:
        if name == VQAOperation.name:
            questions = record.texts.questions[: work.config.serve.max_texts]
            answered = service.ask(image, [q.question for q in questions], inputs=inputs)
            model, rows = answered.model, [(q.question, q.answer) for q in questions]
            best = [(got.answers[0].answer, got.answers[0].probability) for got in answered.answers]
        else:
            classified = service.classify(image, inputs=inputs)
            model, rows = classified.model, [("class", record.texts.label)]
            best = [(classified.classes[0].label, classified.classes[0].probability)]
    print(f"\nHTTP answers about {record.key} (model {model.name} {model.version}):")
    for (asked, right), (answer, probability) in zip(rows, best, strict=True):
        print(f"  {asked:44} {answer:12} {probability:.3f}   right: {right}")


def _first_sample(work: Workspace, task: str, inputs: Collection[str]) -> Sample | None:
    """Find the first sample of the evaluated split that the task can be asked about and for which right answers are
    known; returns it with the bytes of those inputs.
    """
    samples, can_learn = work.newest_index(), work.config.model.task.tasks_by_name()[task].can_learn
    for shard in samples.shards:
        for row, split in enumerate(samples.rows(shard.name)["split"].to_pylist()):
            if split == work.config.evaluate.split:
                (record,) = ShardReader(samples).read(shard.name, [row], inputs=inputs)
                if can_learn(record.present):
                    return record
    return None


@contextlib.contextmanager
def mlflow_page(work: Workspace) -> Iterator[str]:
    """Start an MLflow server while the block runs and yield the address of its page; if a server runs already, yield
    its address.

    Raises:
        TrackingError: it does not come up.
    """
    uri = tracking_uri(work.config.tracking, work.storage)
    if _is_server(uri):
        yield uri
        return
    port = work.config.tracking.page_port
    check_port_free(_PAGE_HOST, port, "tracking.page_port")
    server = subprocess.Popen(mlflow_server_command(uri, port), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        address = f"http://{_PAGE_HOST}:{port}"
        _wait_for_server(address, server)
        yield address
    finally:
        server.terminate()
        try:
            server.wait(10)
        except subprocess.TimeoutExpired:
            server.kill()


def _is_server(uri: str) -> bool:
    return uri.startswith(("http://", "https://"))


def _wait_for_server(address: str, server: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + _PAGE_START_S
    while time.monotonic() < deadline:
        if server.poll() is not None:
            break
        try:
            urllib.request.urlopen(f"{address}/health", timeout=1).close()
            return
        except (urllib.error.URLError, OSError):
            time.sleep(0.3)
    raise TrackingError(f"the MLflow server at {address} did not start; run it by hand to see why: mlflow server")
