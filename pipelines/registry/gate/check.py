"""The results of the gate: its checks, and the decision that follows from them."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True)
class GateCheck:
    """One requirement for a candidate, and whether it is met.

    Attributes:
        passed: None if the check does not apply; the explanation says why.
        measured, required: as text for readers.
        explanation: the purpose of the check, or what failed.
        compares: whether it compares the candidate with the champion. The other checks say whether it is usable.
    """

    name: str
    passed: bool | None
    measured: str
    required: str
    explanation: str
    compares: bool = False


@dataclass(frozen=True)
class MetricDifference:
    """The candidate's metric minus the champion's, on the hold-out, on a slice of it, or on new data.

    Attributes:
        name: "hold-out", "target=yes", "task=caption", "new data".
        rows: number of rows.
        candidate, champion: the metric of each.
        low, high: bounds of the difference; it lies beyond each with probability ``alpha``.
        tolerance: by how much it may be below zero; None for the hold-out itself.
        worse: whether the candidate fails the gate because of it.
    """

    name: str
    rows: int
    candidate: float
    champion: float
    low: float
    high: float
    tolerance: float | None = None
    worse: bool = False

    @property
    def value(self) -> float:
        """The difference between the candidate's and the champion's metric."""
        return self.candidate - self.champion


@dataclass(frozen=True)
class GateDecision:
    """Whether a candidate is promoted, and why.

    Attributes:
        model: the registered model's name.
        candidate, champion: versions; None without a champion.
        checks: in the order in which they were made.
        differences: the measurements behind the checks that compare.
        forced: why a person promotes the candidate whatever the checks say; "" for nobody does.
    """

    model: str
    candidate: str
    champion: str | None
    checks: tuple[GateCheck, ...]
    differences: tuple[MetricDifference, ...] = ()
    forced: str = ""

    @property
    def promote(self) -> bool:
        """Whether the candidate becomes the champion: it failed no check, or a person forces it."""
        return bool(self.checks) and (not self.failed_checks or bool(self.forced))

    @property
    def is_usable(self) -> bool:
        """Whether the candidate can serve requests: it failed no checks except those that compare it with the
        champion.
        """
        return bool(self.checks) and all(check.compares for check in self.failed_checks)

    @property
    def failed_checks(self) -> list[GateCheck]:
        """The checks that the candidate failed."""
        return [check for check in self.checks if check.passed is False]

    @property
    def reason(self) -> str:
        """The reason for the decision, in one line."""
        if failed := self.failed_checks:
            reasons = "; ".join(f"{check.name}: {check.measured}, required {check.required}" for check in failed)
            return f"forced: {self.forced} (failed: {reasons})" if self.forced else reasons
        passed = sum(check.passed is True for check in self.checks)
        first = next((check for check in self.checks if check.compares and check.passed), None)
        return f"all {passed} checks passed" + (f"; {first.name}: {first.measured}" if first else "")

    def to_json_tree(self) -> dict[str, Any]:
        """Convert the decision to plain values for JSON."""
        return {"promote": self.promote, "fit": self.is_usable, "reason": self.reason, **asdict(self)}
