"""Draws pictures of a training run, without a display and without pyplot's global state.

Colours are those of Okabe and Ito (https://jfly.uni-koeln.de/color/) and perceptually uniform maps, which readers with
any colour vision can distinguish. A word, mark or line style repeats what a colour means.
"""

from __future__ import annotations

import textwrap
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.ticker import MaxNLocator, PercentFormatter
from numpy.typing import NDArray
from PIL import Image

from pipelines.report.example_card import ExampleCard

BLUE, ORANGE, GREEN, VERMILLION, PURPLE, GREY = "#0072B2", "#E69F00", "#009E73", "#D55E00", "#CC79A7", "#666666"
RIGHT, WRONG = BLUE, VERMILLION
_COLUMNS = 3
_CARD_PIXELS = 256
_BLUES = LinearSegmentedColormap.from_list("counts", ["#FFFFFF", "#9ECAE1", BLUE, "#08306B"])


def draw_training_curves(
    history: Sequence[Mapping[str, float]], baselines: Mapping[str, float] | None = None
) -> Figure:
    """Draw loss, accuracy and learning rate against the step, side by side.

    Args:
        history: one mapping a step, with ``step`` and any of ``train/loss``, ``val/loss``, ``train/accuracy``,
            ``val/accuracy`` and names that begin with ``train/lr``; a metric may be absent at any step.
        baselines: accuracies to beat, drawn as labelled horizontal lines, as {"question only": 0.67}.
    """
    figure = Figure(figsize=(13, 3.9), layout="constrained")
    loss, accuracy, rate = figure.subplots(1, 3)
    _plot_metric(loss, history, "train/loss", "training", BLUE, smooth=True)
    _plot_metric(loss, history, "val/loss", "validation", ORANGE, marker="o")
    _plot_metric(accuracy, history, "train/accuracy", "training", BLUE, smooth=True)
    _plot_metric(accuracy, history, "val/accuracy", "validation", ORANGE, marker="o")
    styles = ["--", ":", "-."]
    for index, (name, value) in enumerate(sorted((baselines or {}).items(), key=lambda baseline: -baseline[1])):
        label = f"{name} ({value:.1%})"
        accuracy.axhline(value, color=GREY, linewidth=1.2, linestyle=styles[index % len(styles)], label=label)
    rates = sorted({key for row in history for key in row if key.startswith("train/lr")})
    for key, colour in zip(rates, [BLUE, ORANGE, GREEN, PURPLE], strict=False):
        _plot_metric(rate, history, key, key.removeprefix("train/lr").strip("/_ ") or "learning rate", colour)
    for axes, title in ((loss, "Loss"), (accuracy, "Accuracy"), (rate, "Learning rate")):
        _finish_axes(axes, title)
    accuracy.yaxis.set_major_formatter(PercentFormatter(1.0))
    accuracy.set_ylim(top=1.01)
    loss.set_ylim(bottom=0)
    rate.set_ylim(bottom=0)
    return figure


def draw_confusion_matrix(true: Sequence[str], predicted: Sequence[str], max_classes: int = 20) -> Figure:
    """Draw a confusion matrix: right answers (rows) against given answers (columns).

    Shades are shares of the row, numbers are counts. The ``max_classes`` most frequent right answers have a row each,
    in order of their frequency; all others share the last row and column, which does not distinguish right and wrong.

    Args:
        true: right answers.
        predicted: given answers, one for each of ``true``.
    """
    frequent = [answer for answer, _ in sorted(Counter(true).items(), key=lambda item: (-item[1], item[0]))]
    shown = frequent[:max_classes]
    place = {answer: index for index, answer in enumerate(shown)}
    others = len({answer for answer in (*true, *predicted) if answer not in place})
    labels = [*shown, f"{others} others"] if others else shown
    counts = np.zeros((len(labels), len(labels)), dtype=np.int64)
    for right, given in zip(true, predicted, strict=True):
        counts[place.get(right, len(shown)), place.get(given, len(shown))] += 1
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)

    if not true:
        figure = Figure(figsize=(4.5, 1.5))
        figure.text(0.5, 0.5, "no answers", ha="center", va="center", color=GREY)
        return figure
    size = max(4.5, 1.9 + 0.46 * len(labels))
    figure = Figure(figsize=(size + 0.9, size + 0.1), layout="constrained")
    axes = figure.subplots()
    image = axes.imshow(shares, cmap=_BLUES, vmin=0, vmax=1)
    for row, column in zip(*np.nonzero(counts), strict=True):
        colour = "white" if shares[row, column] > 0.55 else "black"
        number = _abbreviate_count(int(counts[row, column]))
        axes.text(column, row, number, ha="center", va="center", color=colour, fontsize=8)
    names = [textwrap.shorten(label, 22, placeholder="…") or "…" for label in labels]
    axes.set_xticks(range(len(labels)), names, rotation=90, parse_math=False)
    axes.set_yticks(range(len(labels)), names, parse_math=False)
    axes.set_xlabel("given answer")
    axes.set_ylabel("right answer")
    right_count = sum(right == given for right, given in zip(true, predicted, strict=True))
    axes.set_title(f"Answers: {right_count:,} of {len(true):,} right ({right_count / len(true):.1%})", fontsize=11)
    axes.set_xticks(np.arange(len(labels) + 1) - 0.5, minor=True)
    axes.set_yticks(np.arange(len(labels) + 1) - 0.5, minor=True)
    axes.grid(which="minor", color="#E5E5E5", linewidth=0.6)
    axes.tick_params(which="both", length=0)
    bar = figure.colorbar(image, ax=axes, shrink=0.7, format=PercentFormatter(1.0, decimals=0))
    bar.set_label("share of the row")
    return figure


def render_examples_page(cards: Sequence[ExampleCard]) -> Figure:
    """Render a page of pictures with the model's answers, wrong ones first.

    With attention, the picture is shown twice: as it is, and in grey with the attention over it, from purple (some) to
    yellow (most).
    """
    cards = sorted(cards, key=lambda card: card.right is not False)
    lines = max(1, -(-len(cards) // _COLUMNS))
    figure = Figure(figsize=(4.7 * _COLUMNS, 3.7 * lines + 0.5), layout="constrained")
    wrong, right = (sum(card.right is kind for card in cards) for kind in (False, True))
    if wrong or right:
        figure.suptitle(f"{wrong} wrong and {right} right answers", fontsize=14)
    cells = figure.subplots(lines, _COLUMNS, squeeze=False).flat
    for axes in cells:
        axes.set_axis_off()
    for axes, card in zip(figure.axes, cards, strict=False):
        _draw_card(axes, card)
    return figure


def upsample_attention(attention_HW: NDArray[np.floating[Any]], height: int, width: int) -> NDArray[np.float32]:
    """Upsample the weights to (``height``, ``width``) and scale them to [0, 1]; all 0 if the weights are equal."""
    grid = np.asarray(attention_HW, dtype=np.float32)
    low, high = float(grid.min()), float(grid.max())
    if not np.isfinite(grid).all() or high - low < 1e-9:
        return np.zeros((height, width), dtype=np.float32)
    scaled = Image.fromarray((grid - low) / (high - low))
    # Bicubic interpolation would overshoot, and show attention where there is none.
    return np.asarray(scaled.resize((width, height), Image.Resampling.BILINEAR))


def moving_average(values: Sequence[float], span: int) -> NDArray[np.float64]:
    """Compute the exponential moving average over about ``span`` values, corrected for its start as in Adam (Kingma, Ba
    2015).
    """
    keep = 1.0 - 2.0 / (span + 1)
    average, weight, out = 0.0, 0.0, np.empty(len(values))
    for index, value in enumerate(values):
        average, weight = keep * average + (1 - keep) * value, keep * weight + (1 - keep)
        out[index] = average / weight
    return out


def _plot_metric(
    axes: Axes,
    history: Sequence[Mapping[str, float]],
    key: str,
    label: str,
    colour: str,
    *,
    smooth: bool = False,
    marker: str | None = None,
) -> None:
    points = [(row["step"], row[key]) for row in history if key in row and np.isfinite(row[key])]
    if not points:
        return
    steps, values = [step for step, _ in points], [value for _, value in points]
    if smooth and len(points) >= 20:
        axes.plot(steps, values, color=colour, alpha=0.25, linewidth=1)
        axes.plot(steps, moving_average(values, max(5, len(values) // 25)), color=colour, linewidth=1.8, label=label)
    else:
        axes.plot(steps, values, color=colour, linewidth=1.8, marker=marker, markersize=4, label=label)


def style_axes(axes: Axes, grid: Literal["both", "x", "y"] = "both") -> None:
    """Draw a light grid behind the data, and no frame at the top and the right."""
    axes.grid(axis=grid, color="#E5E5E5", linewidth=0.7)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)


def _finish_axes(axes: Axes, title: str) -> None:
    axes.set_title(title, fontsize=11, loc="left")
    axes.set_xlabel("step")
    axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))
    style_axes(axes)
    if axes.get_legend_handles_labels()[0]:
        axes.legend(fontsize=9, framealpha=0.85, edgecolor="none")


def _draw_card(axes: Axes, card: ExampleCard) -> None:
    image = np.asarray(card.image)
    # Enlarged by whole factors: pixels stay square and sharp, and the attention over them is smooth.
    factor = max(1, _CARD_PIXELS // max(image.shape[:2]))
    image = image.repeat(factor, axis=0).repeat(factor, axis=1)
    if card.attention_HW is not None:
        gap = np.full((image.shape[0], max(1, image.shape[1] // 64), 3), 160, dtype=np.uint8)
        image = np.hstack([image, gap, _darken_by_attention(image, card.attention_HW)])
    height, width = image.shape[:2]
    axes.imshow(image, interpolation="antialiased")
    colour = GREY if card.right is None else RIGHT if card.right else WRONG
    axes.add_patch(Rectangle((-0.5, -0.5), width, height, fill=False, edgecolor=colour, linewidth=3, clip_on=False))
    axes.set_title("\n".join(_wrap_label(card.title)), fontsize=11, parse_math=False)
    mark = {None: "", True: "✓ ", False: "✗ "}[card.right]
    lines = _wrap_label(f"{mark}{card.predicted or '(nothing)'} ({card.probability:.0%})")
    if not card.right:
        lines += _wrap_label(f"{'people: ' if card.right is None else 'right: '}{card.answer or '(nothing)'}")
    style: dict[str, Any] = {"ha": "center", "va": "top", "color": colour, "fontsize": 11, "parse_math": False}
    axes.text(0.5, -0.03, "\n".join(lines), transform=axes.transAxes, **style)


def _wrap_label(text: str) -> list[str]:
    return textwrap.wrap(text, 48, max_lines=2, placeholder=" …")


def _darken_by_attention(image: NDArray[np.uint8], attention_HW: NDArray[np.floating[Any]]) -> NDArray[np.uint8]:
    heat = upsample_attention(attention_HW, *image.shape[:2])
    grey = np.asarray(Image.fromarray(image).convert("L"), dtype=np.float32)[..., None].repeat(3, axis=2)
    glow = colormaps["plasma"](heat)[..., :3] * 255
    share = 0.75 * np.sqrt(heat)[..., None]
    mixed: NDArray[np.uint8] = ((1 - share) * grey + share * glow).round().astype(np.uint8)
    return mixed


def _abbreviate_count(count: int) -> str:
    return str(count) if count < 10_000 else f"{count / 1000:.0f}k"
