"""What real requests show of a candidate that a service asked beside the champion (serve/challenger.py).

No right answers are known of most of them, so this does not show that a candidate is better: it shows that it works
under load, is as fast as the champion, and does not say something else altogether. Where people corrected answers, both
models are held against what is right. They correct what they were shown and saw to be wrong, which in a shadow is the
champion's alone; so that comparison can only speak against a candidate, never for it.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from pipelines.evaluate.credit import Credits
from pipelines.records.comparisons import Comparison, InvalidLine, Task, read, text_hash
from pipelines.records.corrections import Correction, read_corrections
from pipelines.registry.config import GateConfig, LiveConfig
from pipelines.registry.gate import comparison
from pipelines.registry.gate.check import Check, Difference

_REQUESTS = "live traffic"

CorrectAnswers = Mapping[tuple[str, str], str]
"""What is right, hashed, by image and hashed question."""


@dataclass
class LiveStatistics:
    """What the records say of one candidate beside one champion.

    Attributes:
        modes: requests by mode.
        damaged: lines that could not be read.
        candidate_errors, champion_errors: requests that one of them failed to answer, by reason.
        seconds: (candidate, champion) of each request that both answered.
        agreements: of each such request, by task.
        corrected: (image, candidate is right, champion is right) of each answer that was corrected.
    """

    modes: Counter[str] = field(default_factory=Counter)
    damaged: int = 0
    candidate_errors: Counter[str] = field(default_factory=Counter)
    champion_errors: Counter[str] = field(default_factory=Counter)
    seconds: list[tuple[float, float]] = field(default_factory=list)
    agreements: defaultdict[Task, list[float]] = field(default_factory=lambda: defaultdict(list))
    corrected: list[tuple[str, bool, bool]] = field(default_factory=list)

    @property
    def requests(self) -> int:
        """That both were asked."""
        return self.modes.total()


def gather(lines: Iterable[Comparison | InvalidLine], model: str, candidate: str, champion: str, right: Right) -> Live:
    """Count what was compared of exactly these two versions of a model.

    Args:
        right: ``most_common_corrections`` of the corrections.
    """
    live = LiveStatistics()
    for line in lines:
        if isinstance(line, InvalidLine):
            live.damaged += 1
        elif (line.model, line.challenger.version, line.champion.version) == (model, candidate, champion):
            _count(live, line, right)
    return live


def most_common_corrections(corrections: Iterable[Correction]) -> CorrectAnswers:
    """Of what one sender says of one question the last counts, and of several senders the most common."""
    said: dict[tuple[str, str], dict[str, str]] = defaultdict(dict)
    for one in sorted(corrections, key=lambda one: one.time_ns):
        answer = one.answer if one.caption is None else one.caption
        assert answer is not None  # it is one or the other
        image = one.image.partition(".")[0]
        said[image, text_hash(one.question or "")][one.sender] = text_hash(answer)
    return {asked: Counter(by_sender.values()).most_common(1)[0][0] for asked, by_sender in said.items()}


def live_checks(model: str, candidate: str, champion: str, config: GateConfig) -> tuple[list[Check], list[Difference]]:
    """The checks on live traffic; none where no folder is configured.

    Raises:
        DataError: the file system of a folder is unknown.
        OSError: a file could not be read after several attempts.
    """
    settings = config.live
    if not settings.folder:
        return [], []
    right = most_common_corrections(read_corrections(settings.feedback)) if settings.feedback else {}
    return statistics_checks(collect_statistics(read(settings.folder), model, candidate, champion, right), config)


def statistics_checks(live: LiveStatistics, config: GateConfig) -> tuple[list[Check], list[Difference]]:
    """A check for the number of requests, and, where there are enough, for errors, agreement, latencies, and answers
    that were corrected; with the difference on those.
    """
    settings = config.live
    enough = _enough(live, settings)
    if live.requests < settings.requests:
        return [enough], []
    checks = [enough, _errors(live, settings)]
    checks += [_agreement(task, live.agreements[task], least) for task, least in settings.agreement.items()]
    checks += [_latency(live, 50, settings.latency_p50), _latency(live, 95, settings.latency_p95)]
    corrected, differences = _corrected(live.corrected, config)
    return [*checks, corrected], differences


def _count(live: LiveStatistics, line: Comparison, right: CorrectAnswers) -> None:
    live.modes[line.mode] += 1
    for side, errors in ((line.challenger, live.candidate_errors), (line.champion, live.champion_errors)):
        if side.error:
            errors[side.error] += 1
    if line.challenger.seconds is not None and line.champion.seconds is not None:
        live.seconds.append((line.challenger.seconds, line.champion.seconds))
    if line.agreement is not None:
        live.agreements[line.task].append(line.agreement)
    for text in line.texts:
        if (answer := right.get((line.image, text.asked))) is not None:
            live.corrected.append((line.image, text.challenger == answer, text.champion == answer))


def _enough(live: LiveStatistics, settings: LiveConfig) -> Check:
    by_mode = ", ".join(f"{number} as a {mode}" for mode, number in sorted(live.modes.items())) or "none"
    damaged = f"; damaged lines of the records: {live.damaged}" if live.damaged else ""
    few = live.requests < settings.requests
    return Check(
        name=_REQUESTS,
        passed=True if not few else (False if settings.few == "fail" else None),
        measured=f"{live.requests} requests compared ({by_mode}){damaged}",
        required=f"at least {settings.requests}",
        explanation="serve the candidate beside the champion first (serve.challenger)" if few else "of these versions",
        compares=True,
    )


def _errors(live: LiveStatistics, settings: LiveConfig) -> Check:
    candidate, champion = (errors.total() / live.requests for errors in (live.candidate_errors, live.champion_errors))
    reasons = ", ".join(f"{reason} {number}" for reason, number in live.candidate_errors.most_common(5))
    return Check(
        name="live errors",
        passed=candidate <= champion + settings.errors,
        measured=f"{candidate:.2%} of its requests failed{f' ({reasons})' if reasons else ''}",
        required=f"at most {champion + settings.errors:.2%}",
        explanation=f"the champion failed {champion:.2%} of the same requests; late answers count as failed",
        compares=True,
    )


def _agreement(task: Task, found: Sequence[float], least: float) -> Check:
    name = f"live agreement ({task})"
    if not found:
        return Check(name, None, "", f"at least {least:.1%}", "no request of this task was compared", True)
    mean = float(np.mean(found))
    return Check(
        name=name,
        passed=mean >= least,
        measured=f"{mean:.1%} like the champion's ({len(found)} requests)",
        required=f"at least {least:.1%}",
        explanation="a better model differs where the champion is wrong, and hardly elsewhere",
        compares=True,
    )


def _latency(live: LiveStatistics, percent: int, most: float) -> Check:
    name, required = f"live latency p{percent}", f"at most {most:g} times the champion's"
    if not live.seconds:
        return Check(name, False, "no request was answered by both", required, "there is nothing to compare", True)
    candidate, champion = np.percentile(np.array(live.seconds), percent, axis=0)
    return Check(
        name=name,
        passed=bool(candidate <= most * champion),
        measured=f"{candidate * 1000:.1f} ms against {champion * 1000:.1f} ms",
        required=required,
        explanation="decoding, queue and model of the same requests, each in its own process",
        compares=True,
    )


def _corrected(rows: Sequence[tuple[str, bool, bool]], config: GateConfig) -> tuple[Check, list[Difference]]:
    name = "live corrections"
    required = f"not worse by more than {config.live.corrections:g} and chance"
    if not rows:
        return Check(name, None, "", required, "no answer that both gave was corrected", True), []
    images = np.unique([image for image, _, _ in rows], return_inverse=True)[1].astype(np.int64)
    found = comparison.difference(
        name, _example_scores(images, [r[1] for r in rows]), _example_scores(images, [r[2] for r in rows]), config
    )
    found = comparison.with_tolerance(found, config.live.corrections)
    check = Check(
        name=name,
        passed=not found.worse,
        measured=f"{found.candidate:.4f} against {found.champion:.4f} right of {found.rows} corrected answers",
        required=required,
        explanation="people correct what they were shown, so this speaks against a candidate alone",
        compares=True,
    )
    return check, [found]


def _example_scores(image_N: NDArray[np.int64], right: Sequence[bool]) -> ExampleScores:
    rows = len(right)
    return ExampleScores(
        score_N=np.array(right, np.float64),
        group_N=np.zeros(rows, np.int64),
        image_N=image_N,
        row_N=np.arange(rows),
        binary=True,
    )
