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
_BLUE, _RED, _GREY, _AMBER = "#1f5f99", "#b5482f", "#9aa5b1", "#c98a1b"


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


def reliability_chart(points: pd.DataFrame, before: pd.DataFrame) -> bytes:
    """Observed share of the finding against predicted probability, calibrated and before; dot area: films."""

    def draw(axes):
        axes.plot([0, 1], [0, 1], color=_GREY, linewidth=1, linestyle=":")
        for name, table, color in (("softmax", before, _GREY), ("calibrated", points, _BLUE)):
            sizes = 20 + 180 * table["films"] / table["films"].max()
            axes.scatter(table["predicted"], table["observed"], s=sizes, color=color, alpha=0.75, label=name)
        axes.set(
            xlabel="predicted probability", ylabel="observed share", xlim=(-0.04, 1.04), ylim=(-0.06, 1.06)
        )
        for handle in axes.legend(frameon=False, fontsize=8).legend_handles:
            handle.set_sizes([40])

    return _svg(draw)


def score_chart(scores: dict[str, np.ndarray], threshold: float) -> bytes:
    """Histogram of the scores of each class with the threshold."""

    def draw(axes):
        bins = np.linspace(0, 1, 21)
        for (name, values), color in zip(scores.items(), plt.cm.tab10.colors, strict=False):
            axes.hist(values, bins=bins, alpha=0.6, label=name, color=color)
        axes.axvline(threshold, color=_RED, linewidth=1.5)
        axes.set(xlabel="predicted probability of the finding", ylabel="films")
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


def interval_chart(shifts: list[dict]) -> bytes:
    """Shifts with their intervals on one scale, on which 1 is the limit of a large shift."""
    colors = {"none": _GREY, "moderate": _AMBER, "large": _RED}

    def draw(axes):
        for row, shift in enumerate(shifts):
            # The AUC is 0.5 where nothing differs; all other distances are 0.
            zero = 0.5 if shift["aspect"] == "embedding" else 0.0
            value, low, high, moderate = (
                np.clip((shift[key] - zero) / (shift["large"] - zero), 0, 3)
                for key in ("value", "low", "high", "moderate")
            )
            axes.plot([low, high], [row, row], color=colors[shift["verdict"]], linewidth=3)
            axes.plot(value, row, "o", color=colors[shift["verdict"]])
            axes.plot([moderate, moderate], [row - 0.3, row + 0.3], color=_AMBER, linewidth=1)
        axes.axvline(1, color=_RED, linewidth=1, linestyle=":")
        axes.set_yticks(range(len(shifts)), [shift["aspect"] for shift in shifts])
        axes.set(xlabel="share of the limit for a large shift, cut at 3", xlim=(-0.05, 3.05))
        axes.invert_yaxis()

    return _svg(draw, (8.4, 0.8 + 0.36 * len(shifts)))


def share_chart(shares: dict[str, pd.Series]) -> bytes:
    """Shares of the classes, side by side for each set of films."""

    def draw(axes):
        table = pd.DataFrame(shares).fillna(0).sort_index()
        width = 0.8 / len(shares)
        for place, (name, color) in enumerate(zip(shares, (_GREY, _BLUE, _RED), strict=False)):
            left = np.arange(len(table)) + (place - (len(shares) - 1) / 2) * width
            bars = axes.bar(left, table[name], width * 0.92, color=color, label=name)
            axes.bar_label(bars, fmt=lambda share: f"{100 * share:.0f} %", fontsize=8)
        axes.set_xticks(range(len(table)), table.index)
        axes.set(ylabel="share of the films", ylim=(0, 1.28), yticks=np.arange(0, 1.1, 0.2))
        axes.legend(frameon=False, fontsize=8, ncols=len(shares), loc="upper center")

    return _svg(draw)


def distribution_chart(values: dict[str, np.ndarray]) -> bytes:
    """Distribution of one measurement in each set of films."""

    def draw(axes):
        low, high = (edge(np.concatenate(list(values.values()))) for edge in (np.min, np.max))
        bins = np.linspace(low - 0.5, high + 0.5, 41)
        for (name, numbers), color in zip(values.items(), (_GREY, _BLUE, _RED), strict=False):
            weights = np.full(len(numbers), 1 / max(1, len(numbers)))
            axes.hist(numbers, bins, weights=weights, histtype="step", linewidth=1.6, color=color, label=name)
        axes.set(ylabel="share of the films")
        axes.margins(y=0.25)
        axes.legend(frameon=False, fontsize=8)

    return _svg(draw)


def period_chart(periods: list[dict], name: str) -> bytes:
    """A metric of each period with its interval, expected from probabilities and measured on labels."""

    def draw(axes):
        for shift, way, color in ((-0.08, "expected", _GREY), (0.08, "measured", _BLUE)):
            rows = [(place, each[way][name]) for place, each in enumerate(periods) if name in each[way]]
            rows = [(place, found) for place, found in rows if found["value"] is not None]
            if not rows:
                continue
            places = [place + shift for place, _ in rows]
            axes.plot(places, [found["value"] for _, found in rows], "o", color=color, label=way)
            for place, (_, found) in zip(places, rows, strict=True):
                if found["low"] is not None:
                    axes.plot([place, place], [found["low"], found["high"]], color=color, linewidth=2)
        axes.set_xticks(range(len(periods)), [each["until"][5:10] for each in periods], rotation=45)
        axes.set(xlabel="last film of the period", ylim=(0, 1.02), xlim=(-0.6, len(periods) - 0.4))
        if axes.get_legend_handles_labels()[0]:
            axes.legend(frameon=False, fontsize=8, loc="lower left")

    return _svg(draw)


def _svg(draw: Callable, inches: tuple[float, float] = (4.2, 3.4)) -> bytes:
    with plt.rc_context(_STYLE):
        figure, axes = plt.subplots(figsize=inches, layout="constrained")
        draw(axes)
        stream = io.BytesIO()
        figure.savefig(stream, format="svg", metadata={"Date": None})
        plt.close(figure)
    return stream.getvalue()
