"""The result of an evaluation: a model's metrics on a split, compared with the baselines."""

from __future__ import annotations

from dataclasses import dataclass, field

from pipelines.evaluate.verdict import (
    BaselineComparison,
    Relation,
    describe_baseline_comparisons,
    least_favourable_relation,
)


@dataclass(frozen=True)
class TaskReport:
    """How good a model is at one task on one split.

    Attributes:
        samples: number of samples.
        rows: number of rows of the task that counted, called ``unit``.
        unit: what the rows are: questions, images, pairs.
        metric: name of the metric by which models are compared; higher is better.
        metrics: all metrics of the model.
        baselines: the same metrics, or some of them, of each baseline.
        notes: remarks for the reader.
        by_answer: for each right answer its number of rows and its accuracy, most frequent first; empty
            where answers are no classes.
        interval: 95 % interval of the metric by which models are compared.
        comparisons: that metric beside each baseline, on the baseline's rows.
        subset_metrics: for each baseline that covers only a part of the rows, the model's metrics on those rows.
        training: that metric on a sample of the training split, and the number of rows; None if unknown.
    """

    split: str
    samples: int
    rows: int
    unit: str
    metric: str
    metrics: dict[str, float]
    baselines: dict[str, dict[str, float]]
    notes: tuple[str, ...] = ()
    by_answer: list[tuple[str, int, float]] = field(default_factory=list, repr=False)
    interval: tuple[float, float] | None = None
    comparisons: tuple[BaselineComparison, ...] = ()
    subset_metrics: dict[str, dict[str, float]] = field(default_factory=dict)
    training: tuple[float, int] | None = None

    @property
    def value(self) -> float:
        """The value of the metric by which models are compared."""
        return self.metrics[self.metric]

    @property
    def best_baseline_value(self) -> float:
        """The highest value of the comparison's metric among the baselines that ignore the image and cover all rows."""
        left_out = {*self.subset_metrics, *(one.name for one in self.comparisons if one.looks)}
        values = [metrics for name, metrics in self.baselines.items() if name not in left_out]
        return max((metrics[self.metric] for metrics in values if self.metric in metrics), default=0.0)

    @property
    def relation_to_baselines(self) -> Relation:
        """Whether the model is significantly better or worse than the baselines that ignore the image, or neither."""
        return least_favourable_relation([one for one in self.comparisons if not one.looks])

    @property
    def baseline_verdict(self) -> str:
        """Summarize the comparison with the baselines in one line; "" without baselines."""
        return describe_baseline_comparisons(self.comparisons)

    def tracked_metrics(self, task: str = "") -> dict[str, float]:
        """Return the metrics for tracking, named by the split and, if there are several, the task."""
        prefix = f"{self.split}/{task}/" if task else f"{self.split}/"
        named = dict(self.metrics)
        for name, metrics in self.baselines.items():
            for metric, value in metrics.items():
                named[f"floor_{name}" if metric == self.metric else f"floor_{name}_{metric}"] = value
        for name, metrics in self.subset_metrics.items():
            named[f"beside_{name}"] = metrics[self.metric]
        if self.interval is not None:
            named |= {f"{self.metric}_low": self.interval[0], f"{self.metric}_high": self.interval[1]}
        if self.training is not None:
            named[f"train_{self.metric}"] = self.training[0]
        return {prefix + name: value for name, value in {**named, self.unit: float(self.rows)}.items()}

    def __str__(self) -> str:
        title = f"{self.split}: {self.metric} {self.value:.4f}  ({self.rows} {self.unit}, {self.samples} samples)"
        lines = [title + ("  95 % interval {:.4f} to {:.4f}".format(*self.interval) if self.interval else "")]
        if self.comparisons:
            lines.append(f"  {self.metric} is {self.baseline_verdict}")
        if self.training is not None:
            value, rows = self.training
            lines.append(f"  on {rows} {self.unit} of a sample of the training split: {self.metric} {value:.4f}")
        columns = {"model": self.metrics}
        for name, metrics in self.baselines.items():
            columns[name] = metrics
            if name in self.subset_metrics:
                columns["model, those rows"] = self.subset_metrics[name]
        width = max(map(len, self.metrics)) + 2
        heads = [name.replace("_", " ") for name in columns]
        lines.append(" " * width + "".join(f"  {head:>9}" for head in heads))
        for metric in self.metrics:
            cells = (
                f"  {f'{metrics[metric]:.4f}' if metric in metrics else '':>{max(9, len(head))}}"
                for head, metrics in zip(heads, columns.values(), strict=True)
            )
            lines.append(f"  {metric:<{width - 2}}" + "".join(cells).rstrip())
        return "\n".join([*lines, *(f"  {note}" for note in self.notes)])
