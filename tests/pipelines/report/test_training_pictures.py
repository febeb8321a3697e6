from __future__ import annotations

import ast
import inspect
import io
import math
from dataclasses import replace

import numpy as np
import pytest
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from PIL import Image

from pipelines.report import training_pictures
from pipelines.report.example_card import ExampleCard
from pipelines.report.training_pictures import (
    RIGHT,
    WRONG,
    draw_confusion_matrix,
    draw_training_curves,
    moving_average,
    render_examples_page,
    upsample_attention,
)


def render(figure: Figure) -> np.ndarray:
    """RGB pixels of the figure as PNG."""
    png = io.BytesIO()
    figure.savefig(png, format="png", dpi=50)
    return np.asarray(Image.open(png).convert("RGB"))


def legend(axes: Axes) -> list[str]:
    found = axes.get_legend()
    assert found is not None
    return [text.get_text() for text in found.get_texts()]


def values(line: Line2D) -> tuple[list[float], list[float]]:
    """Horizontal and vertical positions."""
    return np.asarray(line.get_xdata()).tolist(), np.asarray(line.get_ydata()).tolist()


def history(steps: int) -> list[dict[str, float]]:
    rows: list[dict[str, float]] = []
    for step in range(1, steps + 1):
        row = {"step": step, "train/loss": 1 / step, "train/accuracy": 1 - 1 / (step + 1), "train/lr/head": 1e-3 / step}
        if step % 10 == 0:
            row |= {"val/loss": 2 / step, "val/accuracy": 0.9}
        rows.append(row)
    return rows


def test_curves_show_each_metric_at_its_steps_and_the_baselines() -> None:
    figure = draw_training_curves(history(40), {"majority": 0.373, "question only": 0.67})
    loss, accuracy, rate = figure.axes
    assert [axes.get_title(loc="left") for axes in figure.axes] == ["Loss", "Accuracy", "Learning rate"]
    assert legend(loss) == ["training", "validation"]
    assert legend(accuracy) == ["training", "validation", "question only (67.0%)", "majority (37.3%)"]
    assert legend(rate) == ["head"]
    validation = next(line for line in loss.lines if line.get_label() == "validation")
    steps, losses = values(validation)
    assert steps == [10, 20, 30, 40]
    assert losses == pytest.approx([0.2, 0.1, 2 / 30, 0.05])
    raw, smooth = values(loss.lines[0])[1], values(loss.lines[1])[1]
    assert raw == pytest.approx([1 / step for step in range(1, 41)])
    assert np.abs(np.diff(smooth)).max() < np.abs(np.diff(raw)).max()
    floors = sorted(values(line)[1][0] for line in accuracy.lines if "%" in str(line.get_label()))
    assert floors == [0.373, 0.67]
    assert len(np.unique(render(figure).reshape(-1, 3), axis=0)) > 50


def test_curves_leave_out_what_is_not_finite_and_survive_an_empty_history() -> None:
    rows = [{"step": 1, "train/loss": 1.0}, {"step": 2, "train/loss": math.nan}, {"step": 3, "train/loss": 0.5}]
    assert values(draw_training_curves(rows).axes[0].lines[0]) == ([1, 3], [1.0, 0.5])
    render(draw_training_curves([]))


def test_smoothing_keeps_a_constant_and_starts_at_the_first_value() -> None:
    assert moving_average([3.0] * 10, 5) == pytest.approx([3.0] * 10)
    # A span of 2 keeps a third: the weights of the two values are 1/3 * 2/3 and 2/3.
    assert moving_average([1.0, 4.0], 2) == pytest.approx(
        [1.0, (1 / 3 * 2 / 3 * 1 + 2 / 3 * 4) / (1 / 3 * 2 / 3 + 2 / 3)]
    )


def test_confusion_counts_by_right_and_given_answer() -> None:
    true = ["yes"] * 6 + ["no"] * 3 + ["red"] * 2 + ["$a$", "b"]
    predicted = ["yes"] * 5 + ["no"] + ["no"] * 3 + ["blue", "red"] + ["b", "b"]
    figure = draw_confusion_matrix(true, predicted, max_classes=3)
    axes = figure.axes[0]
    names = [label.get_text() for label in axes.get_yticklabels()]
    assert names == ["yes", "no", "red", "3 others"]
    numbers = {tuple(map(round, text.get_position()[::-1])): text.get_text() for text in axes.texts}
    assert numbers == {(0, 0): "5", (0, 1): "1", (1, 1): "3", (2, 2): "1", (2, 3): "1", (3, 3): "2"}
    shares = np.asarray(axes.images[0].get_array())
    assert shares[0] == pytest.approx([5 / 6, 1 / 6, 0, 0])
    assert shares.sum(axis=1) == pytest.approx([1, 1, 1, 1])
    assert axes.get_title() == "Answers: 10 of 13 right (76.9%)"
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("given answer", "right answer")
    render(figure)


def test_confusion_of_few_answers_has_no_row_for_others() -> None:
    axes = draw_confusion_matrix(["$x^$", "no"], ["no", "no"]).axes[0]
    assert sorted(label.get_text() for label in axes.get_yticklabels()) == ["$x^$", "no"]
    render(draw_confusion_matrix(["$x^$", "no"], ["no", "no"]))
    assert [text.get_text() for text in draw_confusion_matrix([], []).texts] == ["no answers"]


def example(answer: str, predicted: str, attention: np.ndarray | None = None) -> ExampleCard:
    image = np.full((32, 32, 3), 255, dtype=np.uint8)
    image[:16, :16] = (255, 0, 0)
    return ExampleCard(image, "what does it cost, $5 or $6?", answer, predicted, 0.75, answer == predicted, attention)


def test_examples_put_wrong_answers_first_and_say_which_is_right() -> None:
    figure = render_examples_page(
        [example("red", "red"), example("blue", "red"), example("no", "no"), example("a", "a")]
    )
    cards = figure.axes[:4]
    assert figure.get_suptitle() == "1 wrong and 3 right answers"
    assert cards[0].texts[0].get_text() == "✗ red (75%)\nright: blue"
    assert cards[1].texts[0].get_text() == "✓ red (75%)"
    assert [card.texts[0].get_color() for card in cards] == [WRONG, RIGHT, RIGHT, RIGHT]
    assert cards[0].get_title() == "what does it cost, $5 or $6?"
    assert all(card.images for card in cards)
    assert not any(axes.images for axes in figure.axes[4:])
    render(figure)


def test_cards_without_a_right_answer_show_what_people_wrote() -> None:
    page = render_examples_page([replace(example("a dog", "a cat"), title="", right=None)])
    assert page.axes[0].texts[0].get_text() == "a cat (75%)\npeople: a dog"
    assert page.get_suptitle() == ""
    render(page)


def test_attention_is_laid_over_a_second_copy_of_the_image() -> None:
    attention = np.array([[0.7, 0.1], [0.1, 0.1]], dtype=np.float32)
    page = render_examples_page([example("red", "red", attention)])
    shown = np.asarray(page.axes[0].images[0].get_array())
    side = shown.shape[0]
    original, overlaid = shown[:, :side], shown[:, -side:]
    assert (original[0, 0] == (255, 0, 0)).all()
    assert np.ptp(overlaid[-1, -1]) == 0, "grey where there is no attention"
    assert np.ptp(overlaid[0, 0]) > 80, "coloured where there is"
    plain = np.asarray(render_examples_page([example("red", "red")]).axes[0].images[0].get_array())
    assert plain.shape == (side, side, 3)


def test_attention_is_upsampled_and_zero_where_uniform() -> None:
    heat = upsample_attention(np.array([[0.0, 0.0], [0.0, 1.0]]), 40, 60)
    assert heat.shape == (40, 60)
    assert heat[30:, 45:].min() == 1
    assert heat[:10, :15].max() == 0
    assert (heat.min(), heat.max()) == (0, 1)
    assert upsample_attention(np.full((4, 4), 1 / 16), 8, 8).max() == 0


def test_pyplot_and_its_global_state_are_not_used() -> None:
    tree = ast.parse(inspect.getsource(training_pictures))
    imported = {
        getattr(node, "module", None) or alias.name
        for node in ast.walk(tree)
        if isinstance(node, ast.Import | ast.ImportFrom)
        for alias in node.names
    }
    assert "matplotlib.figure" in imported
    assert not any("pyplot" in name for name in imported)
