"""The workflow of the job ``embed``."""

from __future__ import annotations

from pipelines.data.index.build import build_index, require_tars
from pipelines.embeddings.embed import EmbeddingJob, ModelActorResources, choose_inputs, choose_task, embed_dataset
from pipelines.embeddings.search_files import open_search_files
from pipelines.embeddings.stored import EmbeddedModel, EmbeddingsManifest
from pipelines.report.progress import Progress
from pipelines.storage import manifest
from pipelines.storage.folder import StorageFolder
from pipelines.workflows import models
from pipelines.workflows.cluster import connected_to_cluster
from pipelines.workflows.models import ChosenModel
from pipelines.workflows.workspace import Workspace, absolute_path
from vlmodel.processor import VLProcessor


def run(work: Workspace) -> EmbeddingsManifest:
    """Index the tars if necessary, embed what is not embedded yet, and prepare the search."""
    config = work.config.embed
    require_tars(work.config.data.tars)  # before a cluster is started
    chosen = models.choose_model(work)
    tasks = VLProcessor.from_pretrained(chosen.folder).tasks
    task = choose_task(tasks, config.task)
    inputs = choose_inputs(tasks[task], config.inputs)
    out = folder_of_embeddings(work)
    with connected_to_cluster(work.config.cluster):
        build_index(work.config.data.tars, work.config.data.index)
        job = embedding_job(work, chosen, task, inputs, config.split, out)
        with Progress("embed", "sample") as progress:
            made = embed_dataset(job, model_actor_resources(work), progress)
    with Progress("embed  search", "file") as progress:
        open_search_files(StorageFolder(out), made, work.config.serve.search.exact, progress)
    counts = ", ".join(f"{made.count(name)} of {name}" for name in made.inputs)
    print(f"vectors of {chosen.name} version {chosen.version}, {made.width} numbers each: {counts}: {out}", flush=True)
    print(f"a service searches them with serve.search.embeddings={out}", flush=True)
    return made


def folder_of_embeddings(work: Workspace) -> str:
    """Return the folder to which the job writes."""
    out = work.config.embed.out
    return absolute_path(out) if out else f"{work.run_folder}/embeddings"


def embedding_job(
    work: Workspace, chosen: ChosenModel, task: str, inputs: tuple[str, ...], split: str, out: str
) -> EmbeddingJob:
    """Describe which samples of the newest index of ``data.tars`` are embedded, with which model."""
    index = work.newest_index()
    described = EmbeddedModel(
        name=chosen.name, version=chosen.version, digest=manifest.folder_digest(chosen.folder), task=task
    )
    return EmbeddingJob(
        str(chosen.folder), described, index.tars, index.hash, split, inputs, out, work.fact_source,
        work.config.embed.samples_per_file,
    )  # fmt: skip


def model_actor_resources(work: Workspace) -> ModelActorResources:
    """Return the number and resources of the actors, from the predict section."""
    predict = work.config.predict
    return ModelActorResources(predict.workers, predict.cpus_per_worker, predict.gpus_per_worker, predict.batch)
