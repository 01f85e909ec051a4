"""The two pictures of a study: the scores of its trials in order, and the importance of each setting."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from brainmri_core.system.storage import atomic_file

_LOOKS = {"complete": ("#0072B2", "o"), "pruned": ("#E69F00", "x"), "failed": ("#D55E00", "|")}


def draw_history(trials: Sequence[tuple[int, str, float | None]], path: Path) -> None:
    """Draw the score of every trial by number, and the best so far, into a PNG.

    Parameters
    ----------
    trials : sequence of (number, state, score)
        In order. A trial without a score is drawn at the bottom.
    path : pathlib.Path
        The file to write, atomically.
    """
    figure = Figure(figsize=(8, 3.6), layout="constrained")
    axes = figure.add_subplot()
    scores = [score for _, _, score in trials if score is not None]
    foot = min(scores, default=0.0)
    for state, (colour, marker) in _LOOKS.items():
        found = [
            (number, foot if score is None else score) for number, kind, score in trials if kind == state
        ]
        if found:
            numbers, heights = zip(*found, strict=True)
            axes.scatter(
                numbers, heights, color=colour, marker=marker, label=f"{state} ({len(found)})", zorder=3
            )
    complete = [(number, score) for number, kind, score in trials if kind == "complete" and score is not None]
    best = [max(score for _, score in complete[: place + 1]) for place in range(len(complete))]
    axes.step([number for number, _ in complete], best, where="post", color="#0072B2", label="best so far")
    axes.set_xlabel("trial")
    axes.set_ylabel("macro F1, out of fold")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.grid(alpha=0.3)
    axes.legend(frameon=False, loc="lower right")
    _save(figure, path)


def draw_importance(importance: Mapping[str, float], path: Path) -> None:
    """Draw each setting's share of the variance of the scores (fANOVA) into a PNG, greatest on top.

    Parameters
    ----------
    importance : mapping
        Setting to its share, 0 to 1.
    path : pathlib.Path
        The file to write, atomically.
    """
    figure = Figure(figsize=(8, 1.2 + 0.36 * len(importance)), layout="constrained")
    axes = figure.add_subplot()
    names = sorted(importance, key=lambda name: importance[name])
    bars = axes.barh(names, [importance[name] for name in names], color="#0072B2")
    axes.bar_label(bars, [f"{importance[name]:.2f}" for name in names], padding=3)
    axes.set_xlim(0, 1.08 * max([*importance.values(), 0.01]))
    axes.set_xlabel("share of the variance of the scores (fANOVA)")
    axes.grid(alpha=0.3, axis="x")
    _save(figure, path)


def _save(figure: Figure, path: Path) -> None:
    FigureCanvasAgg(figure)
    with atomic_file(path) as handle:
        figure.savefig(handle, format="png", dpi=110)
