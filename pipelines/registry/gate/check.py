"""What the gate finds: checks, and the decision that follows from them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any


@dataclass(frozen=True)
class Check:
    """One thing that a candidate was asked for.

    Attributes:
        name: of the check.
        passed: None where it does not apply; the explanation says why.
        measured, required: what was found, and what was asked for, as a reader wants to see it.
        explanation: what the check is for, or what failed.
        compares: whether it compares the candidate with the champion. The others say whether it is fit to be used.
    """

    name: str
    passed: bool | None
    measured: str
    required: str
    explanation: str
    compares: bool = False


@dataclass(frozen=True)
class Difference:
    """By how much the candidate's figure is above the champion's, on the hold-out, a slice of it, or new data.

    Attributes:
        name: "hold-out", "target=yes", "task=caption", "new data".
        rows: that it is the figure of.
        candidate, champion: the figure of each.
        low, high: bounds of the difference, each of which it passes with probability ``alpha`` only.
        tolerance: by how much it may be below zero; None for the hold-out itself.
        worse: whether the candidate is refused for it.
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
        """The difference."""
        return self.candidate - self.champion


@dataclass(frozen=True)
class GateDecision:
    """Whether a candidate is promoted, and why.

    Attributes:
        model: the registered model's name.
        candidate, champion: versions; None without a champion.
        checks: in the order in which they were made.
        differences: the figures behind those that compare.
    """

    model: str
    candidate: str
    champion: str | None
    checks: tuple[Check, ...]
    differences: tuple[Difference, ...] = ()

    @property
    def promote(self) -> bool:
        """Whether something was checked, and nothing failed."""
        return bool(self.checks) and not self.failed

    @property
    def is_usable(self) -> bool:
        """Whether the candidate could be used, better than the champion or not."""
        return bool(self.checks) and all(check.compares for check in self.failed)

    @property
    def failed(self) -> list[Check]:
        """The checks that failed."""
        return [check for check in self.checks if check.passed is False]

    @property
    def reason(self) -> str:
        """In one line."""
        if failed := self.failed:
            return "; ".join(f"{check.name}: {check.measured}, required {check.required}" for check in failed)
        passed = sum(check.passed is True for check in self.checks)
        first = next((check for check in self.checks if check.compares and check.passed), None)
        return f"all {passed} checks passed" + (f"; {first.name}: {first.measured}" if first else "")

    def with_checks(self, more: Sequence[Check]) -> GateDecision:
        """The decision after further checks."""
        return replace(self, checks=(*self.checks, *more))

    def to_tree(self) -> dict[str, Any]:
        """As plain values for JSON."""
        return {"promote": self.promote, "fit": self.is_usable, "reason": self.reason, **asdict(self)}
