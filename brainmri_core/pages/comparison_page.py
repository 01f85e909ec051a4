"""A comparison as a table for the terminal and as one self-contained page."""

from __future__ import annotations

from pathlib import Path

from brainmri_core.escaping import printable
from brainmri_core.evaluation.comparison import LOWER_IS_BETTER, Comparison
from brainmri_core.pages.environment import rendered, style_sheet
from brainmri_core.system.storage import write_bytes

CHANGED_SHOWN = 100
NOT_FOR_CHOOSING = "These are test images: report the difference, but choose by validation or out-of-fold scores, as the leaderboard does."
_UNDRAWN = frozenset({"calibration.before.nll"})  # unbounded: its scale would make the other bars invisible


def comparison_lines(found: Comparison) -> list[str]:
    """Return a comparison as lines of text."""
    wide = max(len(printable(item.name)) for item in found.differences)
    lines = [
        f"A: {printable(found.name_a)}",
        f"B: {printable(found.name_b)}",
        f"{found.images} test images of {found.groups} independent patients or groups, {len(found.changed)} called differently",
        "",
        f"{'':{wide}}  {'A':>7}  {'B':>7}  {'B - A':>7}  95% interval of B - A",
    ]
    for item in found.differences:
        span = "undefined" if item.interval is None else f"{item.interval[0]:+.3f} to {item.interval[1]:+.3f}"
        values = f"{item.a:7.3f}  {item.b:7.3f}  {item.difference:+7.3f}"
        lines.append(f"{printable(item.name):{wide}}  {values}  {span}  {item.verdict}")
    return [*lines, "", mcnemar_sentence(found), NOT_FOR_CHOOSING]


def mcnemar_sentence(found: Comparison) -> str:
    """Return the result of McNemar's test, and its limitation, as a sentence."""
    if found.p_value is None:
        return "Both are right on the same images, so that McNemar's test has nothing to count."
    p = f"p = {found.p_value:.3f}" if found.p_value >= 0.001 else "p < 0.001"
    return (
        f"Only A is right on {found.only_a} images, only B on {found.only_b}: McNemar's exact test {p}. It takes images as "
        "independent, which those of one patient or group are not; the intervals do not."
    )


def write_comparison(path: Path, found: Comparison) -> None:
    """Write the HTML page of a comparison."""
    drawn = [item.interval or [] for item in found.differences if item.key not in _UNDRAWN]
    reach = max([1e-6, *(abs(end) for span in drawn for end in span)])
    page = rendered(
        "comparison.html.j2",
        found=found,
        reach=reach,
        undrawn=_UNDRAWN,
        lower=LOWER_IS_BETTER,
        mcnemar=mcnemar_sentence(found),
        purpose=NOT_FOR_CHOOSING,
        changed=found.changed.head(CHANGED_SHOWN).to_dict("records"),
        style=style_sheet("evaluation.css"),
    )
    write_bytes(path, page.encode())
