"""Charts of the report, as SVG text that is the same in every run."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.patches import Rectangle
from matplotlib.ticker import MaxNLocator

from pipeline.evaluation.metrics_file import TestFilms
from pipeline.report.figure import (
    AMBER,
    BLUE,
    GREY,
    RED,
    legend,
    series,
    svg,
    width_in_columns,
    width_in_inches,
    written,
)

_SHADES = LinearSegmentedColormap.from_list("shades", ["#ffffff", BLUE])


def roc_chart(roc: pd.DataFrame, test: TestFilms) -> bytes:
    """ROC curve with the operating point."""
    operating = (1 - test.specificity.value, test.sensitivity.value)

    def draw(axes: Axes) -> None:
        axes.plot([0, 1], [0, 1], color=GREY, linewidth=1, linestyle=":")
        axes.step(roc["fpr"], roc["tpr"], where="post", color=BLUE)
        axes.plot(*operating, "o", color=RED)
        axes.annotate("operating point", operating, xytext=(10, -14), textcoords="offset points", color=RED)
        axes.set(xlabel="1 - specificity", ylabel="sensitivity", xlim=(-0.02, 1.02), ylim=(-0.02, 1.02))

    return svg(draw)


def precision_recall_chart(curve: pd.DataFrame) -> bytes:
    """Positive predictive value against sensitivity."""

    def draw(axes: Axes) -> None:
        axes.step(curve["recall"], curve["precision"], where="post", color=BLUE)
        axes.set(
            xlabel="sensitivity", ylabel="positive predictive value", xlim=(-0.02, 1.02), ylim=(-0.02, 1.02)
        )

    return svg(draw)


def reliability_chart(points: pd.DataFrame, before: pd.DataFrame) -> bytes:
    """Observed share of the finding against predicted probability, calibrated and before; dot area: films."""

    def draw(axes: Axes) -> None:
        axes.plot([0, 1], [0, 1], color=GREY, linewidth=1, linestyle=":")
        for name, table, color in (("softmax", before, GREY), ("calibrated", points, BLUE)):
            sizes = 20 + 180 * table["films"] / table["films"].max()
            axes.scatter(table["predicted"], table["observed"], s=sizes, color=color, alpha=0.75, label=name)
        axes.set(
            xlabel="predicted probability", ylabel="observed share", xlim=(-0.04, 1.04), ylim=(-0.06, 1.06)
        )
        for handle in filter(None, axes.legend(frameon=False, fontsize=8).legend_handles):
            handle.set(sizes=[40])

    return svg(draw)


def score_chart(scores: dict[str, np.ndarray], threshold: float, finding: str | None = None) -> bytes:
    """Histogram of the scores of each class with the threshold; more than two classes lie below each other.

    Scores are probabilities of the finding (0..1) by the name of the class; the finding need not be named.
    """
    bins = np.linspace(0, 1, 21).tolist()
    label = f"predicted probability of {'the finding' if finding is None else written([finding])[0]}"
    label = label if width_in_columns(label) <= 44 else label.replace(" of ", " of\n", 1)

    def overlaid(axes: Axes) -> None:
        bars = [
            axes.hist(values, bins=bins, alpha=0.6, color=color)[2]
            for values, color in zip(scores.values(), ("tab:blue", "tab:orange"), strict=False)
        ]
        axes.axvline(threshold, color=RED, linewidth=1.5)
        axes.set(xlabel=label, ylabel="films")
        legend(axes, bars, list(scores))

    def stacked(rows: Sequence[Axes]) -> None:
        for axes, name, values in zip(rows, written(list(scores)), scores.values(), strict=True):
            axes.hist(values, bins=bins, color=BLUE, alpha=0.75)
            axes.axvline(threshold, color=RED, linewidth=1.5)
            axes.set_title(f"{name}, {len(values)} films", loc="left", fontsize=8, pad=2)
            axes.yaxis.set_major_locator(MaxNLocator(2, integer=True))
            axes.tick_params(labelsize=8)
            axes.margins(y=0.15)
        rows[-1].set(xlabel=label)
        rows[0].figure.supylabel("films", fontsize=10)

    if len(scores) <= 2:
        return svg(overlaid)
    return svg(stacked, (4.2, max(3.4, 0.8 + 0.6 * len(scores))), rows=len(scores))


def confusion_chart(matrix: np.ndarray, names: Sequence[str]) -> bytes:
    """Confusion matrix: films and their share of the true class in each cell, right calls framed.

    The matrix is int (C, C), row: true class, column: called class, in the order of the names.

    Raises:
        ValueError: There is not one row and one column for each name.
    """
    count, lines = len(names), written(names)
    if matrix.shape != (count, count):
        raise ValueError(f"a confusion matrix of {count} classes is not {matrix.shape}")
    side = max(0.56, 1.3 - 0.12 * count)
    width = width_in_inches(lines, 8)
    upright = width > 0.9 * side

    def draw(axes: Axes) -> None:
        _confusion_cells(axes, matrix)
        axes.set_yticks(np.arange(count) + 0.5, lines, fontsize=8)
        turned: dict[str, Any] = {"rotation": 90, "rotation_mode": "anchor", "ha": "right", "va": "center"}
        axes.set_xticks(np.arange(count) + 0.5, lines, fontsize=8, **turned if upright else {})
        axes.set(xlabel="called class", ylabel="true class", aspect="equal")
        axes.tick_params(length=0)
        axes.spines[:].set_visible(False)
        axes.invert_yaxis()

    inches = (0.5 + width + side * count, 0.5 + (width if upright else 0.2) + side * count)
    return svg(draw, inches)


def _confusion_cells(axes: Axes, matrix: np.ndarray) -> None:
    totals = matrix.sum(axis=1)
    shares = matrix / np.maximum(totals, 1)[:, None]
    axes.pcolormesh(shares, cmap=_SHADES, vmin=0, vmax=1.25, edgecolor="#d9e0e7", linewidth=0.6)
    for (row, column), films in np.ndenumerate(matrix):
        share = _percent(shares[row, column]) if totals[row] else "–"
        color = "white" if shares[row, column] > 0.6 else "black"
        text = f"{films}\n{share}"
        axes.text(column + 0.5, row + 0.5, text, color=color, ha="center", va="center", fontsize=8)
    for position in range(len(matrix)):
        axes.add_patch(Rectangle((position, position), 1, 1, fill=False, edgecolor="black", linewidth=1.2))


def history_chart(history: pd.DataFrame) -> bytes:
    """Losses of training and validation by epoch."""

    def draw(axes: Axes) -> None:
        steps = np.arange(1, len(history) + 1)
        axes.plot(steps, history["train_loss"], marker=".", color=GREY, label="training loss")
        axes.plot(steps, history["validation_loss"], marker=".", color=BLUE, label="validation loss")
        axes.set(xlabel="epoch, both steps", ylim=(0, None))
        axes.legend(frameon=False)

    return svg(draw)


def interval_chart(shifts: list[dict]) -> bytes:
    """Shifts with their intervals on one scale, on which 1 is the limit of a large shift."""
    colors = {"none": GREY, "moderate": AMBER, "large": RED}

    def draw(axes: Axes) -> None:
        for row, shift in enumerate(shifts):
            # The AUC is 0.5 where nothing differs; all other distances are 0.
            zero = 0.5 if shift["aspect"] == "embedding" else 0.0
            value, low, high, moderate = (
                np.clip((shift[key] - zero) / (shift["large"] - zero), 0, 3)
                for key in ("value", "low", "high", "moderate")
            )
            axes.plot([low, high], [row, row], color=colors[shift["verdict"]], linewidth=3)
            axes.plot(value, row, "o", color=colors[shift["verdict"]])
            axes.plot([moderate, moderate], [row - 0.3, row + 0.3], color=AMBER, linewidth=1)
        axes.axvline(1, color=RED, linewidth=1, linestyle=":")
        axes.set_yticks(range(len(shifts)), written([shift["aspect"] for shift in shifts]))
        axes.set(xlabel="share of the limit for a large shift, cut at 3", xlim=(-0.05, 3.05))
        axes.invert_yaxis()

    return svg(draw, (8.4, 0.8 + 0.36 * len(shifts)))


def share_chart(shares: dict[str, pd.Series]) -> bytes:
    """Shares of the classes, side by side for each set of films; bars lie where the names need the room."""
    table = pd.DataFrame(shares).fillna(0).sort_index()
    names = written(list(table.index), 28)
    standing = len(names) * (width_in_inches(names, 10) + 0.15) <= 3.6

    def upright(axes: Axes) -> None:
        bars = _share_bars(axes, axes.bar, table)
        options = {"fontsize": 8, "ncols": len(shares), "loc": "upper center"}
        legend(axes, bars, list(shares), above=len(shares) > 3, **options)
        axes.set_xticks(range(len(table)), names)
        axes.set(ylabel="share of the films", ylim=(0, 1.28), yticks=np.arange(0, 1.1, 0.2))

    def lying(axes: Axes) -> None:
        bars = _share_bars(axes, axes.barh, table)
        legend(axes, bars, list(shares), above=True)
        axes.set_yticks(range(len(table)), names, fontsize=8)
        # Room for the numbers at the bars.
        axes.set(xlabel="share of the films", xlim=(0, 1.25 * table.to_numpy().max()))
        axes.set_ylim(len(table) - 0.5, -0.5)

    if standing:
        return svg(upright)
    height = max(3.4, 1 + len(table) * max(0.3, 0.15 * len(shares)))
    return svg(lying, (4.2, height))


def _share_bars(axes: Axes, draw: Callable, table: pd.DataFrame) -> list:
    width, bars = 0.8 / table.shape[1], []
    for position, name in enumerate(table):
        start = np.arange(len(table)) + (position - (table.shape[1] - 1) / 2) * width
        color, hatch = series(position)[0], "/" * (position // 8)
        bars.append(draw(start, table[name], width * 0.92, color=color, hatch=hatch))
        axes.bar_label(bars[-1], fmt=_percent, fontsize=8, padding=1.5)
    return bars


def distribution_chart(values: dict[str, np.ndarray]) -> bytes:
    """Distribution of one measurement in each set of films."""

    def draw(axes: Axes) -> None:
        low, high = (edge(np.concatenate(list(values.values()))) for edge in (np.min, np.max))
        bins = np.linspace(low - 0.5, high + 0.5, 41).tolist()
        lines: list[Any] = []
        for position, numbers in enumerate(values.values()):
            color, style = series(position)
            weights = np.full(len(numbers), 1 / max(1, len(numbers)))
            options: dict[str, Any] = {"histtype": "step", "linewidth": 1.6}
            drawn: Any = axes.hist(numbers, bins, weights=weights, color=color, linestyle=style, **options)[2]
            lines += drawn
        axes.set(ylabel="share of the films")
        axes.margins(y=0.25)
        legend(axes, lines, list(values), fontsize=8)

    return svg(draw, (4.2, 3.4 + 0.18 * max(0, len(values) - 3)))


def period_chart(periods: list[dict], name: str) -> bytes:
    """A metric of each period with its interval, expected from probabilities and measured on labels."""

    def draw(axes: Axes) -> None:
        for shift, way, color in ((-0.08, "expected", GREY), (0.08, "measured", BLUE)):
            rows = [(position, each[way][name]) for position, each in enumerate(periods) if name in each[way]]
            rows = [(position, metric) for position, metric in rows if metric["value"] is not None]
            if not rows:
                continue
            positions = [position + shift for position, _ in rows]
            axes.plot(positions, [metric["value"] for _, metric in rows], "o", color=color, label=way)
            for position, (_, metric) in zip(positions, rows, strict=True):
                if metric["low"] is not None:
                    axes.plot([position, position], [metric["low"], metric["high"]], color=color, linewidth=2)
        axes.set_xticks(range(len(periods)), [each["until"][5:10] for each in periods], rotation=45)
        axes.set(xlabel="last film of the period", ylim=(0, 1.02), xlim=(-0.6, len(periods) - 0.4))
        if axes.get_legend_handles_labels()[0]:
            axes.legend(frameon=False, fontsize=8, loc="lower left")

    return svg(draw)


def _percent(share: float) -> str:
    digits = 1 if 0 < share < 0.01 or 0.99 < share < 1 else 0
    return f"{100 * share:.{digits}f} %"
