"""A decision for people: a table as Markdown and as a page, and a picture."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from html import escape
from math import isfinite
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from pipelines.registry.gate.check import Check, Difference, GateDecision
from pipelines.report.training_pictures import GREY, RIGHT, WRONG

_MARKS = {True: "✓ passed", False: "✗ failed", None: "– does not apply"}
_COLOURS = {True: RIGHT, False: WRONG, None: GREY}
_COLUMNS = ("check", "result", "measured", "required", "why")
_SLICES = 24
"""Differences shown, those that count against the candidate first; the rest is counted."""

_POLICY = "default-src 'none'; style-src 'unsafe-inline'"
_STYLE = """
body { font: 15px/1.45 system-ui, sans-serif; color: #1c2126; background: #fff; margin: 2rem auto; max-width: 72rem;
  padding: 0 1rem; }
h1 { font-size: 1.5rem; } h2 { font-size: 1.15rem; margin-top: 2.2rem; } table { border-collapse: collapse; }
td, th { text-align: left; padding: .35rem 1rem .35rem 0; vertical-align: top; border-bottom: 1px solid #d8dee4;
  overflow-wrap: anywhere; } th { color: #5a6570; font-weight: 500; } td:nth-child(2) { white-space: nowrap; }
tr.failed td:nth-child(2) { color: #b34700; font-weight: 600; } tr.passed td:nth-child(2) { color: #0072b2; }
@media (prefers-color-scheme: dark) { body { background: #14181c; color: #e4e8ec; } td, th { border-color: #333b43; }
  th { color: #9aa5b0; } tr.failed td:nth-child(2) { color: #ff9d5c; } tr.passed td:nth-child(2) { color: #7db8f0; } }
"""


def title(decision: GateDecision) -> str:
    """What was decided, in one line."""
    verdict = "may be promoted" if decision.promote else "is not promoted"
    against = f"version {decision.champion}" if decision.champion is not None else "no champion"
    return f"{decision.model} version {decision.candidate} against {against}: {verdict}"


def markdown(decision: GateDecision) -> str:
    """The tables of checks and of differences."""
    parts = [
        f"# {title(decision)}",
        _markdown_cell(decision.reason),
        _markdown_table(_COLUMNS, _check_rows(decision.checks)),
    ]
    if decision.differences:
        parts += ["## Differences", _markdown_table(_difference_columns(), _difference_rows(decision.differences))]
    return "\n\n".join(parts) + "\n"


def page(decision: GateDecision) -> str:
    """The same as an HTML page that needs no other file. What the data say stands in it as escaped text only."""
    kinds = [{True: "passed", False: "failed", None: "none"}[check.passed] for check in decision.checks]
    body = f"<h1>{escape(title(decision))}</h1><p>{escape(decision.reason)}</p>"
    body += _html_table(_COLUMNS, _check_rows(decision.checks), kinds)
    if decision.differences:
        shown = _ranked(decision.differences)
        kinds = ["failed" if one.worse else "none" for one in shown]
        body += f"<h2>Differences</h2>{_html_table(_difference_columns(), _difference_rows(shown), kinds)}"
    return (
        f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>{escape(title(decision))}</title>'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f'<meta http-equiv="Content-Security-Policy" content="{escape(_POLICY)}">'
        f"<style>{_STYLE}</style></head><body>{body}</body></html>\n"
    )


def table(decision: GateDecision) -> str:
    """The checks as lines for a terminal."""
    width = max(len(check.name) for check in decision.checks)
    return "\n".join(
        f"  {_MARKS[check.passed][0]} {check.name:<{width}}  {check.measured or check.explanation}"
        + (f"  (required: {check.required})" if check.passed is False else "")
        for check in decision.checks
    )


def picture(decision: GateDecision) -> Figure:
    """The checks with their results, and the differences with their intervals against zero and their tolerances."""
    shown = _ranked(decision.differences)[:_SLICES]
    lines = max(len(decision.checks) * 1.15, len(shown), 4)
    figure = Figure(figsize=(15 if shown else 9, 0.36 * lines + 1.4), layout="constrained")
    figure.suptitle(title(decision), fontsize=13, color=_COLOURS[decision.promote])
    axes = figure.subplots(1, 2 if shown else 1, squeeze=False)[0]
    _draw_checks(axes[0], decision.checks)
    if shown:
        _draw_differences(axes[1], shown, len(decision.differences) - len(shown))
    return figure


def _draw_checks(axes: Axes, checks: Sequence[Check]) -> None:
    axes.set_axis_off()
    axes.set_xlim(0, 1)
    axes.set_ylim(len(checks), 0)
    for line, check in enumerate(checks):
        style: dict[str, Any] = {"va": "center", "fontsize": 9, "parse_math": False}
        axes.text(0, line + 0.5, f"{_MARKS[check.passed][0]} {check.name}", color=_COLOURS[check.passed], **style)
        said = textwrap.wrap(check.measured or check.explanation, 66, max_lines=2, placeholder=" …")
        axes.text(0.34, line + 0.5, "\n".join(said), color="#333333", **{**style, "fontsize": 8})


def _draw_differences(axes: Axes, shown: Sequence[Difference], left_out: int) -> None:
    for line, one in enumerate(shown):
        colour = WRONG if one.worse else RIGHT if one.low > 0 else GREY
        bounds = [bound for bound in (one.low, one.high) if isfinite(bound)]
        axes.plot(bounds, [line] * len(bounds), color=colour, linewidth=2)
        axes.plot([one.value], [line], marker="x" if one.worse else "o", color=colour, markersize=6)
        if one.tolerance is not None:
            axes.plot([-one.tolerance], [line], marker="|", color="black", markersize=9)
    axes.axvline(0, color="black", linewidth=0.8)
    names = [textwrap.shorten(f"{one.name} ({one.rows:,})", 40, placeholder="…") for one in shown]
    axes.set_yticks(range(len(shown)), names, fontsize=8, parse_math=False)
    axes.invert_yaxis()
    axes.set_xlabel("candidate − champion, with its interval; | the tolerance; × counts against the candidate")
    axes.set_title(f"Differences{f' ({left_out} more are not shown)' if left_out else ''}", fontsize=11, loc="left")
    axes.grid(axis="x", color="#E5E5E5", linewidth=0.7)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)


def _ranked(differences: Sequence[Difference]) -> list[Difference]:
    """The hold-out first, then what counts against the candidate, then by size."""
    return sorted(differences, key=lambda one: (one.tolerance is not None, not one.worse, -one.rows))


def _check_rows(checks: Sequence[Check]) -> list[tuple[str, ...]]:
    return [(c.name, _MARKS[c.passed], c.measured, c.required, c.explanation) for c in checks]


def _difference_columns() -> tuple[str, ...]:
    return ("of", "rows", "candidate", "champion", "difference", "from", "to", "tolerance", "")


def _difference_rows(differences: Sequence[Difference]) -> list[tuple[str, ...]]:
    return [
        (
            one.name, f"{one.rows:,}", f"{one.candidate:.4f}", f"{one.champion:.4f}", f"{one.value:+.4f}",
            f"{one.low:+.4f}", f"{one.high:+.4f}", "" if one.tolerance is None else f"{one.tolerance:g}",
            "✗ worse" if one.worse else "",
        )
        for one in _ranked(differences)
    ]  # fmt: skip


def _markdown_table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [columns, ["---"] * len(columns), *rows]
    return "\n".join(f"| {' | '.join(map(_markdown_cell, line))} |" for line in lines)


def _markdown_cell(text: str) -> str:
    return escape(text, quote=False).replace("|", "\\|").replace("\n", " ")


def _html_table(columns: Sequence[str], rows: Sequence[Sequence[str]], kinds: Sequence[str]) -> str:
    head = "".join(f"<th>{escape(column)}</th>" for column in columns)
    body = "".join(
        f'<tr class="{kind}">{"".join(f"<td>{escape(cell)}</td>" for cell in row)}</tr>'
        for kind, row in zip(kinds, rows, strict=True)
    )
    return f"<table><tr>{head}</tr>{body}</table>"
