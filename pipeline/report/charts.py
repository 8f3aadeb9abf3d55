"""Charts of the report, as SVG text that is the same in every run."""

import io
from collections.abc import Callable

import matplotlib
import numpy as np
import pandas as pd

matplotlib.use("Agg")
from matplotlib import pyplot as plt

_STYLE = {
    "svg.hashsalt": "openmed",
    "svg.fonttype": "none",
    "font.family": "sans-serif",
    "font.size": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
}
_BLUE, _RED, _GREY = "#1f5f99", "#b5482f", "#9aa5b1"


def roc_chart(roc: pd.DataFrame, metrics: dict) -> bytes:
    """ROC curve with the operating point."""
    test = metrics["test"]

    def draw(axes):
        axes.plot([0, 1], [0, 1], color=_GREY, linewidth=1, linestyle=":")
        axes.step(roc["fpr"], roc["tpr"], where="post", color=_BLUE)
        axes.plot(1 - test["specificity"]["value"], test["sensitivity"]["value"], "o", color=_RED)
        axes.annotate(
            "operating point",
            (1 - test["specificity"]["value"], test["sensitivity"]["value"]),
            xytext=(10, -14),
            textcoords="offset points",
            color=_RED,
        )
        axes.set(xlabel="1 - specificity", ylabel="sensitivity", xlim=(-0.02, 1.02), ylim=(-0.02, 1.02))

    return _svg(draw)


def precision_recall_chart(curve: pd.DataFrame) -> bytes:
    """Positive predictive value against sensitivity."""

    def draw(axes):
        axes.step(curve["recall"], curve["precision"], where="post", color=_BLUE)
        axes.set(
            xlabel="sensitivity", ylabel="positive predictive value", xlim=(-0.02, 1.02), ylim=(-0.02, 1.02)
        )

    return _svg(draw)


def reliability_chart(points: pd.DataFrame) -> bytes:
    """Observed share of the finding against predicted probability; area of a dot: films."""

    def draw(axes):
        axes.plot([0, 1], [0, 1], color=_GREY, linewidth=1, linestyle=":")
        sizes = 20 + 180 * points["films"] / points["films"].max()
        axes.scatter(points["predicted"], points["observed"], s=sizes, color=_BLUE, alpha=0.75)
        axes.set(
            xlabel="predicted probability", ylabel="observed share", xlim=(-0.04, 1.04), ylim=(-0.06, 1.06)
        )

    return _svg(draw)


def score_chart(scores: dict[str, np.ndarray], threshold: float) -> bytes:
    """Histogram of the scores of each class with the threshold."""

    def draw(axes):
        bins = np.linspace(0, 1, 21)
        for (name, values), color in zip(scores.items(), plt.cm.tab10.colors, strict=False):
            axes.hist(values, bins=bins, alpha=0.6, label=name, color=color)
        axes.axvline(threshold, color=_RED, linewidth=1.5)
        axes.set(xlabel="predicted probability of the finding", ylabel="test films")
        axes.legend(frameon=False)

    return _svg(draw)


def history_chart(history: pd.DataFrame) -> bytes:
    """Losses of training and validation by epoch."""

    def draw(axes):
        steps = np.arange(1, len(history) + 1)
        axes.plot(steps, history["train_loss"], marker=".", color=_GREY, label="training loss")
        axes.plot(steps, history["validation_loss"], marker=".", color=_BLUE, label="validation loss")
        axes.set(xlabel="epoch, both steps", ylim=(0, None))
        axes.legend(frameon=False)

    return _svg(draw)


def _svg(draw: Callable) -> bytes:
    with plt.rc_context(_STYLE):
        figure, axes = plt.subplots(figsize=(4.2, 3.4), layout="constrained")
        draw(axes)
        stream = io.BytesIO()
        figure.savefig(stream, format="svg", metadata={"Date": None})
        plt.close(figure)
    return stream.getvalue()
