"""The command that lists what two data sets have in common. Heavy imports happen when work starts."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from brainmri_core.escaping import printable
from brainmri_core.wording import agreeing, counted
from brainmri_dagster.commands.options import Config, Debug, opened
from brainmri_dagster.commands.sentences import sentences

if TYPE_CHECKING:
    from brainmri_core.overlap import Overlap


def overlap(
    a: Annotated[str, typer.Argument(metavar="A", help="Data set of the catalogue, owner/slug.")],
    b: Annotated[str, typer.Argument(metavar="B", help="Data set whose images are looked for in A.")],
    table: Annotated[
        Path | None, typer.Option("--csv", metavar="FILE", help="Write one row per pair of copies here.")
    ] = None,
    config: Config = None,
    debug: Debug = False,
) -> None:
    """List the images of data set B that are in data set A too, turned and re-encoded ones included."""
    with sentences(debug):
        from brainmri_core.overlap import find_overlap
        from brainmri_core.project.catalogue import find_entry, load_catalogue
        from brainmri_core.system.storage import atomic_file

        layout, settings = opened(config)
        catalogue = load_catalogue()
        one, other = (find_entry(catalogue, name) for name in (a, b))
        found = find_overlap(layout, one, other, settings)
        if table is not None:
            with atomic_file(table) as handle:
                found.pairs.to_csv(handle, index=False)
        for line in overlap_lines(found):
            print(line)
        if table is not None:
            print(f"pairs: {table}")


def overlap_lines(found: Overlap) -> list[str]:
    """Return what two data sets have in common as lines of text."""
    from brainmri_core.copies.across import KINDS
    from brainmri_core.overlap import COUNTS, SIDES

    total = {"class": "all", "side": "", **found.counts[list(COUNTS)].sum()}
    rows = [*found.counts.to_dict("records"), total]
    names, places = (max(len(printable(str(row[key]))) for row in rows) + 2 for key in ("class", "side"))
    widths = {name: max(len(name), len(str(total["images"]))) + 2 for name in COUNTS}
    kinds, sides = (sum(widths[name] for name in part) for part in (KINDS, SIDES))
    indent = names + places + widths["images"]
    lines = [
        f"A: {found.a}, {found.images_a} images, {found.of_b} of them in B",
        f"B: {found.b}, {found.images_b} images, {found.in_a} of them in A",
        *(["Both were fetched from the same files: every image of B is in A."] if found.one_archive else []),
        "",
        f"{'':{indent}}{'closest copy in A':>{kinds}}{'copy in A on side':>{sides}}",
        f"{'B':{names + places}}" + "".join(f"{name:>{width}}" for name, width in widths.items()),
    ]
    for row in rows:
        counts = "".join(f"{row[name]:>{width}}" for name, width in widths.items())
        lines.append(f"{printable(str(row['class'])):{names}}{row['side']:{places}}{counts}")
    pairs = counted(len(found.pairs), "pair")
    unlike = int((~found.pairs["same_class"]).sum())
    patients = agreeing("{n} {are} on images of both", found.patients, "known patient")
    return [*lines, "", f"{pairs} of copies, {unlike} of them with another class; {patients}.", *found.notes]
