"""Figures of an evaluation: confusion matrix, ROC and precision-recall curves, reliability diagram. Okabe-Ito colours."""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from sklearn.metrics import precision_recall_curve, roc_curve

from brainmri_core.arrays import F64, I64

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#8A7A00")
STYLES = ("-", "--", "-.", ":")
_SOFT = "#55606e"


def _figure(width: float, height: float) -> Figure:
    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def svg_uri(figure: Figure) -> str:
    """Return a figure as an SVG data URI."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="svg", metadata={"Date": None})
    return f"data:image/svg+xml;base64,{base64.b64encode(buffer.getvalue()).decode()}"


def _plain(axes: Axes, title: str, x: str, y: str) -> None:
    axes.set_title(title, fontsize=11, loc="left", fontweight="bold")
    axes.set_xlabel(x)
    axes.set_ylabel(y)
    axes.grid(alpha=0.25)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)


def write_confusion(path: Path, matrix: Sequence[Sequence[int]], classes: Sequence[str]) -> None:
    """Draw the confusion matrix ``(K, K)``, rows truth, as counts and as shares of each true class into a PNG."""
    counts = np.asarray(matrix, np.float64)
    totals = counts.sum(axis=1, keepdims=True)
    shares = np.divide(counts, totals, out=np.zeros_like(counts), where=totals > 0)
    figure = _figure(3.0 + 1.5 * len(classes), 1.6 + 0.72 * len(classes))
    printed: tuple[list[list[str]], ...] = (
        [[f"{value:.0f}" for value in row] for row in counts],
        [[f"{value:.0%}" for value in row] for row in shares],
    )
    for axes, title, texts in zip(
        figure.subplots(1, 2), ("images", "share of the true class"), printed, strict=True
    ):
        axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
        axes.set_title(title, fontsize=11)
        axes.set_xticks(range(len(classes)), classes, rotation=30, ha="right")
        axes.set_yticks(range(len(classes)), classes)
        axes.set_xlabel("predicted")
        axes.set_ylabel("truth")
        for (row, column), share in np.ndenumerate(shares):
            ink = "white" if share > 0.55 else "black"
            axes.text(column, row, texts[row][column], ha="center", va="center", color=ink)
    figure.savefig(path, format="png", dpi=110)


def curves_figure(
    labels: I64,
    probabilities: F64,
    classes: Sequence[str],
    areas: Mapping[str, tuple[float | None, float | None]],
) -> str:
    """Draw one-vs-rest ROC and precision-recall curves; return an SVG data URI.

    Parameters
    ----------
    labels : numpy.ndarray
        int64 ``(N,)``.
    probabilities : numpy.ndarray
        float64 ``(N, K)``.
    classes : sequence of str
        Class names.
    areas : mapping
        AUROC and average precision by class, for the legend; classes without an AUROC are left out.
    """
    figure = _figure(10, 4.3)
    left, right = figure.subplots(1, 2)
    left.plot([0, 1], [0, 1], color=_SOFT, linewidth=0.8, linestyle=":")
    for index, name in enumerate(classes):
        area, average = areas[name]
        if area is None:
            continue
        look = {
            "color": COLOURS[index % len(COLOURS)],
            "linestyle": STYLES[index % len(STYLES)],
            "linewidth": 1.8,
        }
        truth = labels == index
        false_rate, true_rate, _ = roc_curve(truth, probabilities[:, index])
        left.plot(false_rate, true_rate, label=f"{name}  {area:.3f}", **look)
        precision, recall, _ = precision_recall_curve(truth, probabilities[:, index])
        right.step(recall, precision, where="post", label=f"{name}  {average:.3f}", **look)
    _plain(left, "ROC, each class against the rest", "1 − specificity", "sensitivity")
    _plain(right, "Precision and recall", "recall (sensitivity)", "precision (PPV)")
    for axes, title, place in ((left, "AUROC", "lower right"), (right, "average precision", "best")):
        axes.set_xlim(-0.02, 1.02)
        axes.set_ylim(-0.02, 1.02)
        if axes.get_legend_handles_labels()[0]:
            axes.legend(title=title, loc=place, framealpha=0.85, edgecolor="none")
    return svg_uri(figure)


def reliability_figure(before: dict[str, Any], after: dict[str, Any] | None) -> str:
    """Draw accuracy against confidence before and after temperature scaling; return an SVG data URI."""
    figure = _figure(10 if after else 5.2, 4.3)
    panels = [("as the model says", before)] + ([("after temperature scaling", after)] if after else [])
    for axes, (title, scores) in zip(np.atleast_1d(figure.subplots(1, len(panels))), panels, strict=True):
        bins = scores["reliability"]
        confidence = [item["confidence"] for item in bins]
        accuracy = [item["accuracy"] for item in bins]
        images = np.asarray([item["images"] for item in bins], np.float64)
        axes.plot([0, 1], [0, 1], color=_SOFT, linewidth=0.9, linestyle=":")
        for x, y in zip(confidence, accuracy, strict=True):
            axes.plot([x, x], [x, y], color="#D55E00", linewidth=2, alpha=0.6)
        axes.plot(confidence, accuracy, color="#0072B2", linewidth=1)
        axes.scatter(
            confidence, accuracy, s=16 + 240 * images / images.max(), color="#0072B2", alpha=0.85, zorder=3
        )
        axes.set_xlim(0, 1.03)
        axes.set_ylim(-0.03, 1.05)
        _plain(axes, f"{title}: ECE {scores['ece_equal_width']:.3f}", "confidence", "accuracy")
    return svg_uri(figure)
