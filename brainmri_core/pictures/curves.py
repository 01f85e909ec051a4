"""Training curves as one small picture."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from brainmri_core.system.storage import atomic_file


def draw_curves(history: list[dict[str, Any]], path: Path) -> None:
    """Draw loss, validation scores and learning rate over the epochs into a PNG.

    Parameters
    ----------
    history : list of dict
        One record per epoch, from `learning.loop`.
    path : pathlib.Path
        The file to write, atomically.
    """
    figure = Figure(figsize=(11, 3.2), layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(1, 3)
    epochs = [item["epoch"] for item in history]
    for axes, title, series in (
        (
            panels[0],
            "loss",
            {"train_loss": ("training", "#0072B2", "-"), "val_loss": ("validation", "#D55E00", "--")},
        ),
        (
            panels[1],
            "validation score",
            {
                "val_macro_f1": ("macro F1", "#0072B2", "-"),
                "val_balanced_accuracy": ("balanced accuracy", "#009E73", "--"),
            },
        ),
        (panels[2], "learning rate", {"learning_rate": ("end of epoch", "#555555", "-")}),
    ):
        for key, (label, colour, style) in series.items():
            axes.plot(
                epochs,
                [item[key] for item in history],
                style,
                color=colour,
                label=label,
                marker=".",
                markersize=4,
            )
        axes.set_title(title)
        axes.set_xlabel("epoch")
        axes.xaxis.get_major_locator().set_params(integer=True)
        axes.grid(alpha=0.3)
        axes.legend(frameon=False)
    with atomic_file(path) as handle:
        figure.savefig(handle, format="png", dpi=110)
