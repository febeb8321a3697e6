"""Checks a candidate on real requests that a service sent both to it and to the champion.

The right answers to most requests are unknown, so these checks do not show that a candidate is better: they show that
it works under load, is as fast as the champion, and gives similar answers. On requests whose answers people corrected,
both models are compared with the right answer. People correct the wrong answers that they are shown, which in shadow
mode are the champion's only; so this comparison can only count against a candidate.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from pipelines.records.comparisons import Comparison, InvalidLine, read_comparisons, text_hash
from pipelines.records.corrections import Correction, read_corrections
from pipelines.registry.config import GateConfig, LiveTrafficConfig
from pipelines.registry.gate import comparison
from pipelines.registry.gate.check import GateCheck, MetricDifference
from vlmodel.metrics.scores import ExampleScores

CorrectAnswers = Mapping[tuple[str, str], str]
"""Hash of the right answer, by image and hash of the question."""


@dataclass
class LiveTrafficStatistics:
    """Statistics of the real requests that both a candidate and the champion were asked.

    Attributes:
        modes: number of requests by mode.
        damaged: lines that could not be read.
        candidate_errors, champion_errors: number of failed requests, by reason.
        seconds: (candidate, champion) of each request that both answered.
        agreements: of each such request, by task.
        corrected: (image, candidate is right, champion is right) of each answer that was corrected.
    """

    modes: Counter[str] = field(default_factory=Counter)
    damaged: int = 0
    candidate_errors: Counter[str] = field(default_factory=Counter)
    champion_errors: Counter[str] = field(default_factory=Counter)
    seconds: list[tuple[float, float]] = field(default_factory=list)
    agreements: defaultdict[str, list[float]] = field(default_factory=lambda: defaultdict(list))
    corrected: list[tuple[str, bool, bool]] = field(default_factory=list)

    @property
    def request_count(self) -> int:
        """The number of requests that both models were asked."""
        return self.modes.total()

    def add(self, line: Comparison, right: CorrectAnswers) -> None:
        """Count one request."""
        self.modes[line.mode] += 1
        for side, errors in ((line.challenger, self.candidate_errors), (line.champion, self.champion_errors)):
            if side.error:
                errors[side.error] += 1
        if line.challenger.seconds is not None and line.champion.seconds is not None:
            self.seconds.append((line.challenger.seconds, line.champion.seconds))
        if line.agreement is not None:
            self.agreements[line.task].append(line.agreement)
        for text in line.texts:
            if (answer := right.get((line.image, text.asked))) is not None:
                self.corrected.append((line.image, text.challenger == answer, text.champion == answer))


def collect_live_statistics(
    lines: Iterable[Comparison | InvalidLine], model: str, candidate: str, champion: str, right: CorrectAnswers
) -> LiveTrafficStatistics:
    """Compute statistics of the requests that exactly these two versions of a model were asked.

    Args:
        right: see ``most_common_corrections``.
    """
    live = LiveTrafficStatistics()
    for line in lines:
        if isinstance(line, InvalidLine):
            live.damaged += 1
        elif (line.model, line.challenger.version, line.champion.version) == (model, candidate, champion):
            live.add(line, right)
    return live


def most_common_corrections(corrections: Iterable[Correction]) -> CorrectAnswers:
    """Return the most common correction of each question's answer; only the last correction of each sender counts."""
    answers: dict[tuple[str, str], dict[str, str]] = defaultdict(dict)
    for correction in sorted(corrections, key=lambda correction: correction.time_ns):
        answer = correction.answer if correction.caption is None else correction.caption
        assert answer is not None  # it is one or the other
        image = correction.image.partition(".")[0]
        answers[image, text_hash(correction.question or "")][correction.sender] = text_hash(answer)
    return {asked: Counter(by_sender.values()).most_common(1)[0][0] for asked, by_sender in answers.items()}


def check_live_traffic(
    model: str, candidate: str, champion: str, config: GateConfig
) -> tuple[list[GateCheck], list[MetricDifference]]:
    """Make the gate's checks on real requests; none if no folder of comparisons is configured.

    Raises:
        DataError: the file system of a folder is unknown.
        OSError: a file could not be read after several attempts.
    """
    settings = config.live
    if not settings.folder:
        return [], []
    right = most_common_corrections(read_corrections(settings.feedback)) if settings.feedback else {}
    return check_live_statistics(
        collect_live_statistics(read_comparisons(settings.folder), model, candidate, champion, right), config
    )


def check_live_statistics(
    live: LiveTrafficStatistics, config: GateConfig
) -> tuple[list[GateCheck], list[MetricDifference]]:
    """Check the number of requests and, if there are enough, errors, agreement, latencies and corrected answers; also
    return the difference on corrected answers.
    """
    settings = config.live
    number = _check_request_count(live, settings)
    if live.request_count < settings.requests:
        return [number], []
    checks = [number, _check_error_rate(live, settings)]
    checks += [_check_agreement(task, live.agreements[task], least) for task, least in settings.agreement.items()]
    checks += [_check_latency_ratio(live, percent, settings.latency) for percent in (50, 95)]
    corrections, differences = _check_corrected_answers(live.corrected, config)
    return [*checks, corrections], differences


def _check_request_count(live: LiveTrafficStatistics, settings: LiveTrafficConfig) -> GateCheck:
    by_mode = ", ".join(f"{number} as a {mode}" for mode, number in sorted(live.modes.items())) or "none"
    damaged = f"; damaged lines of the records: {live.damaged}" if live.damaged else ""
    few = live.request_count < settings.requests
    return GateCheck(
        name="live traffic",
        passed=True if not few else (False if settings.few == "fail" else None),
        measured=f"{live.request_count} requests compared ({by_mode}){damaged}",
        required=f"at least {settings.requests}",
        explanation="serve the candidate beside the champion first (serve.challenger)" if few else "of these versions",
        compares=True,
    )


def _check_error_rate(live: LiveTrafficStatistics, settings: LiveTrafficConfig) -> GateCheck:
    candidate, champion = (
        errors.total() / live.request_count for errors in (live.candidate_errors, live.champion_errors)
    )
    reasons = ", ".join(f"{reason} {number}" for reason, number in live.candidate_errors.most_common(5))
    return GateCheck(
        name="live errors",
        passed=candidate <= champion + settings.errors,
        measured=f"{candidate:.2%} of its requests failed{f' ({reasons})' if reasons else ''}",
        required=f"at most {champion + settings.errors:.2%}",
        explanation=f"the champion failed {champion:.2%} of the same requests; late answers count as failed",
        compares=True,
    )


def _check_agreement(task: str, agreements: Sequence[float], least: float) -> GateCheck:
    name = f"live agreement ({task})"
    if not agreements:
        return GateCheck(name, None, "", f"at least {least:.1%}", "no request of this task was compared", True)
    mean = float(np.mean(agreements))
    return GateCheck(
        name=name,
        passed=mean >= least,
        measured=f"{mean:.1%} like the champion's ({len(agreements)} requests)",
        required=f"at least {least:.1%}",
        explanation="a better model differs where the champion is wrong, and hardly elsewhere",
        compares=True,
    )


def _check_latency_ratio(live: LiveTrafficStatistics, percent: int, most: float) -> GateCheck:
    name, required = f"live latency p{percent}", f"at most {most:g} times the champion's"
    if not live.seconds:
        return GateCheck(name, False, "no request was answered by both", required, "there is nothing to compare", True)
    candidate, champion = np.percentile(np.array(live.seconds), percent, axis=0)
    return GateCheck(
        name=name,
        passed=bool(candidate <= most * champion),
        measured=f"{candidate * 1000:.1f} ms against {champion * 1000:.1f} ms",
        required=required,
        explanation="decoding, queue and model, for the same requests, each in its own process",
        compares=True,
    )


def _check_corrected_answers(
    rows: Sequence[tuple[str, bool, bool]], config: GateConfig
) -> tuple[GateCheck, list[MetricDifference]]:
    name = "live corrections"
    required = f"not worse by more than {config.tolerance:g} and chance"
    if not rows:
        return GateCheck(name, None, "", required, "no answer that both gave was corrected", True), []
    image_N = np.unique([image for image, _, _ in rows], return_inverse=True)[1].astype(np.int64)
    right_2N = np.array([right for _, *right in rows], np.float64).T
    candidate, champion = (
        ExampleScores(right_N, np.zeros_like(image_N), image_N, np.arange(len(rows)), binary=True)
        for right_N in right_2N
    )
    measured = comparison.metric_difference(name, candidate, champion, config)
    measured = comparison.with_tolerance(measured, config.tolerance)
    check = GateCheck(
        name=name,
        passed=not measured.worse,
        measured=f"{measured.candidate:.4f} against {measured.champion:.4f} right of {measured.rows} corrected answers",
        required=required,
        explanation="people correct what they were shown, so this can only count against a candidate",
        compares=True,
    )
    return check, [measured]
