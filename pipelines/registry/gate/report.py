"""Shows a gate decision to people: as Markdown, HTML, a picture, and lines for a terminal."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from html import escape
from math import isfinite
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from pipelines.registry.gate.check import GateCheck, GateDecision, MetricDifference
from pipelines.report.html import render_page
from pipelines.report.training_pictures import GREY, RIGHT, WRONG, style_axes

_MARKS = {True: "✓ passed", False: "✗ failed", None: "– does not apply"}
_CLASSES = {True: "passed", False: "failed", None: "none"}
_COLOURS = {True: RIGHT, False: WRONG, None: GREY}
_CHECK_COLUMNS = ("check", "result", "measured", "required", "why")
_DIFFERENCE_COLUMNS = ("of", "rows", "candidate", "champion", "difference", "from", "to", "tolerance", "")
_MAX_DRAWN = 24
"""Differences in the picture, those that fail the gate first; the title counts the others."""


def decision_title(decision: GateDecision) -> str:
    """Write a gate decision as a title of one line."""
    verdict = "may be promoted" if decision.promote else "is not promoted"
    against = f"version {decision.champion}" if decision.champion is not None else "no champion"
    return f"{decision.model} version {decision.candidate} against {against}: {verdict}"


def decision_markdown(decision: GateDecision) -> str:
    """Write the gate's checks and metric differences as Markdown tables."""
    parts = [
        f"# {decision_title(decision)}",
        _markdown_cell(decision.reason),
        _markdown_table(_CHECK_COLUMNS, [_check_to_cells(check) for check in decision.checks]),
    ]
    if decision.differences:
        rows = [_difference_to_cells(difference) for difference in _sort_by_importance(decision.differences)]
        parts += ["## Differences", _markdown_table(_DIFFERENCE_COLUMNS, rows)]
    return "\n\n".join(parts) + "\n"


def decision_page(decision: GateDecision) -> str:
    """Render the gate's checks and metric differences as an HTML page that needs no other file."""
    return render_page(
        "gate.html",
        title=decision_title(decision),
        reason=decision.reason,
        check_columns=_CHECK_COLUMNS,
        checks=[(_CLASSES[check.passed], _check_to_cells(check)) for check in decision.checks],
        difference_columns=_DIFFERENCE_COLUMNS,
        differences=[
            ("failed" if difference.worse else "none", _difference_to_cells(difference))
            for difference in _sort_by_importance(decision.differences)
        ],
    )


def format_checks_table(decision: GateDecision) -> str:
    """Format the gate's checks as lines for a terminal."""
    width = max(len(check.name) for check in decision.checks)
    return "\n".join(
        f"  {_MARKS[check.passed][0]} {check.name:<{width}}  {check.measured or check.explanation}"
        + (f"  (required: {check.required})" if check.passed is False else "")
        for check in decision.checks
    )


def draw_gate_decision(decision: GateDecision) -> Figure:
    """Draw the gate's checks with their results, and the metric differences with their intervals and tolerances."""
    drawn = _sort_by_importance(decision.differences)[:_MAX_DRAWN]
    lines = max(len(decision.checks) * 1.15, len(drawn), 4)
    figure = Figure(figsize=(15 if drawn else 9, 0.36 * lines + 1.4), layout="constrained")
    figure.suptitle(decision_title(decision), fontsize=13, color=_COLOURS[decision.promote])
    axes = figure.subplots(1, 2 if drawn else 1, squeeze=False)[0]
    _draw_checks(axes[0], decision.checks)
    if drawn:
        _draw_differences(axes[1], drawn, len(decision.differences) - len(drawn))
    return figure


def _draw_checks(axes: Axes, checks: Sequence[GateCheck]) -> None:
    axes.set_axis_off()
    axes.set_xlim(0, 1)
    axes.set_ylim(len(checks), 0)
    for line, check in enumerate(checks):
        style: dict[str, Any] = {"va": "center", "fontsize": 9, "parse_math": False}
        axes.text(0, line + 0.5, f"{_MARKS[check.passed][0]} {check.name}", color=_COLOURS[check.passed], **style)
        text = textwrap.wrap(check.measured or check.explanation, 66, max_lines=2, placeholder=" …")
        axes.text(0.34, line + 0.5, "\n".join(text), color="#333333", **{**style, "fontsize": 8})


def _draw_differences(axes: Axes, differences: Sequence[MetricDifference], left_out: int) -> None:
    for line, difference in enumerate(differences):
        colour = WRONG if difference.worse else RIGHT if difference.low > 0 else GREY
        bounds = [bound for bound in (difference.low, difference.high) if isfinite(bound)]
        axes.plot(bounds, [line] * len(bounds), color=colour, linewidth=2)
        axes.plot([difference.value], [line], marker="x" if difference.worse else "o", color=colour, markersize=6)
        if difference.tolerance is not None:
            axes.plot([-difference.tolerance], [line], marker="|", color="black", markersize=9)
    axes.axvline(0, color="black", linewidth=0.8)
    names = [textwrap.shorten(f"{one.name} ({one.rows:,})", 40, placeholder="…") for one in differences]
    axes.set_yticks(range(len(differences)), names, fontsize=8, parse_math=False)
    axes.invert_yaxis()
    axes.set_xlabel("candidate − champion, with its interval; | the tolerance; × fails the gate")
    axes.set_title(f"Differences{f' ({left_out} more are not shown)' if left_out else ''}", fontsize=11, loc="left")
    style_axes(axes, grid="x")


def _sort_by_importance(differences: Sequence[MetricDifference]) -> list[MetricDifference]:
    """Sort metric differences: that of the hold-out first, then those that fail the gate, then by number of rows."""
    return sorted(differences, key=lambda one: (one.tolerance is not None, not one.worse, -one.rows))


def _check_to_cells(check: GateCheck) -> tuple[str, ...]:
    return check.name, _MARKS[check.passed], check.measured, check.required, check.explanation


def _difference_to_cells(difference: MetricDifference) -> tuple[str, ...]:
    return (
        difference.name,
        f"{difference.rows:,}",
        f"{difference.candidate:.4f}",
        f"{difference.champion:.4f}",
        f"{difference.value:+.4f}",
        f"{difference.low:+.4f}",
        f"{difference.high:+.4f}",
        "" if difference.tolerance is None else f"{difference.tolerance:g}",
        "✗ worse" if difference.worse else "",
    )


def _markdown_table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [columns, ["---"] * len(columns), *rows]
    return "\n".join(f"| {' | '.join(map(_markdown_cell, line))} |" for line in lines)


def _markdown_cell(text: str) -> str:
    return escape(text, quote=False).replace("|", "\\|").replace("\n", " ")
