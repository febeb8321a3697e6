"""The workflow of the job ``promote``."""

from __future__ import annotations

from dataclasses import replace

from pipelines.data.index.index import Index
from pipelines.registry.errors import RegistryError
from pipelines.registry.gate import report
from pipelines.registry.gate.check import GateCheck, GateDecision
from pipelines.registry.promotion import Holdout, apply_decision, roll_back, run_gate
from pipelines.registry.versions import ModelVersion
from pipelines.tracking.tracker import Tracker
from pipelines.workflows.cluster import connected_to_cluster
from pipelines.workflows.workspace import Workspace

_ALREADY = GateCheck("already the champion", True, "it is", "nothing", "repeating a promotion changes nothing")


def run(work: Workspace, new: Index | None = None) -> GateDecision | None:
    """Run the gate on the version that ``evaluate.model`` means ("" is the run's newest), and make it the champion if
    it passes.

    Args:
        new: data that have come in since the champion was trained, on which it must not be worse either.

    Returns:
        The decision; None after a rollback.
    """
    registry = work.registry
    if work.config.registry.rollback:
        former = roll_back(registry, "python -m jobs.promote --rollback", lambda version: _track_version(work, version))
        print(f"{former.name} version {former.version} is the champion again", flush=True)
        return None
    version = work.config.evaluate.model
    candidate = registry.version(version) if version else registry.newest_version_of_run(work.config.name)
    if candidate is None:
        raise RegistryError(f"run {work.config.name!r} has registered no model; run the train job first")
    champion = registry.find()
    if champion is not None and champion.version == candidate.version:
        # This completes what a promotion that was killed after its exchange has left undone.
        registry.promote(candidate.version, "again", over=candidate.version)
        print(f"{candidate.name} version {candidate.version} is the champion already", flush=True)
        return GateDecision(candidate.name, candidate.version, champion.version, (_ALREADY,))
    holdout = Holdout(work.newest_index(), work.config.predict, work.config.stream, work.fact_source)
    new_data = replace(holdout, index=new) if new else None
    with connected_to_cluster(work.config.cluster), _track_version(work, candidate) as tracker:
        decision = run_gate(registry, candidate, champion, holdout, work.config.registry, new_data)
        decision = apply_decision(registry, replace(decision, forced=work.config.registry.force), tracker)
    verdict = "is the champion" if decision.promote else "was not promoted"
    print(
        f"{report.format_checks_table(decision)}\n"
        f"{candidate.name} version {candidate.version} {verdict}: {decision.reason}",
        flush=True,
    )
    if not decision.promote:
        print(
            f"to look at it: the job serve with serve.version={candidate.version}; to promote it all the same: the job "
            f"promote with evaluate.model={candidate.version} --force REASON (each with the settings of this job)",
            flush=True,
        )
    return decision


def _track_version(work: Workspace, version: ModelVersion) -> Tracker:
    return work.open_tracked_run(version.run_id)
