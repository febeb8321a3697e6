"""What an evaluation says: the figures of a model on a split, always beside what is reached without looking."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True)
class Report:
    """How good a model is at one task on one split.

    Attributes:
        split: what was evaluated.
        samples: images.
        rows: rows of the task that counted, called ``unit``.
        unit: questions, images, pairs or captions.
        metric: the figure by which models are compared; the higher, the better.
        figures: all figures of the model.
        floors: the same figures, or some of them, of those that do not look, by their names.
        notes: what a reader should know beside the figures.
        by_answer: for each right answer its number of rows and its accuracy, most frequent first; where there are
            answers.
    """

    split: str
    samples: int
    rows: int
    unit: str
    metric: str
    figures: dict[str, float]
    floors: dict[str, dict[str, float]]
    notes: tuple[str, ...] = ()
    by_answer: list[tuple[str, int, float]] = field(default_factory=list, repr=False)

    @property
    def value(self) -> float:
        """The figure by which models are compared."""
        return self.figures[self.metric]

    @property
    def floor(self) -> float:
        """The highest floor of that figure."""
        return max((figures[self.metric] for figures in self.floors.values() if self.metric in figures), default=0.0)

    def metrics(self, task: str = "") -> dict[str, float]:
        """As metrics of a tracked run, named by the split and, where there are several, the task."""
        prefix = f"{self.split}/{task}/" if task else f"{self.split}/"
        named = dict(self.figures)
        for name, figures in self.floors.items():
            for figure, value in figures.items():
                named[f"floor_{name}" if figure == self.metric else f"floor_{name}_{figure}"] = value
        return {prefix + name: value for name, value in {**named, self.unit: float(self.rows)}.items()}

    def __str__(self) -> str:
        title = f"{self.split}: {self.metric} {self.value:.4f}  ({self.rows} {self.unit}, {self.samples} images)"
        columns = {"model": self.figures, **self.floors}
        width = max(map(len, self.figures)) + 2
        heads = [name.replace("_", " ") for name in columns]
        lines = [" " * width + "".join(f"  {head:>9}" for head in heads)]
        for figure in self.figures:
            cells = (
                f"  {f'{figures[figure]:.4f}' if figure in figures else '':>{max(9, len(head))}}"
                for head, figures in zip(heads, columns.values(), strict=True)
            )
            lines.append(f"  {figure:<{width - 2}}" + "".join(cells).rstrip())
        return "\n".join([title, *lines, *(f"  {note}" for note in self.notes)])
