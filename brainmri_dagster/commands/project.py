"""Commands that set up a project: init, add-dataset and datasets."""

from __future__ import annotations

from pathlib import Path
from shlex import quote
from typing import Annotated

import typer

from brainmri_core.config import PipelineConfig
from brainmri_core.project.layout import Layout
from brainmri_dagster.commands.options import Debug
from brainmri_dagster.commands.sentences import sentences


def init(
    folder: Annotated[Path, typer.Argument(help="Folder of the new project; made if it does not exist.")],
    debug: Debug = False,
) -> None:
    """Write a new project: configuration to edit, and the files that Dagster's programs look for. Nothing is overwritten."""
    from brainmri_core.new_project import new_project

    with sentences(debug):
        made = new_project(folder)
    for name in made.written:
        print(f"wrote {folder / name}")
    for name in made.kept:
        print(f"kept  {folder / name}")
    print(f"Next: cd {quote(str(folder))} && brainmri pipeline --config configs/demo.yaml")


def add_dataset(
    dataset: Annotated[str, typer.Argument(metavar="OWNER/SLUG", help="Key of the new entry.")],
    archive: Annotated[Path, typer.Option("--archive", help="Zip or folder that holds the data set.")],
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show the entry and write nothing.")] = False,
    debug: Debug = False,
) -> None:
    """Guess the classes of a data set from its folders, show them, and write its entry to configs/datasets.yaml."""
    from brainmri_core.add_dataset import add_entry, guess_entry
    from brainmri_core.escaping import printable

    with sentences(debug):
        guess = guess_entry(dataset, archive.expanduser())
        for label, name in guess.folders.items():
            print(f"{guess.images[label]:>8,} images in {printable(label)!r} -> {printable(name)}")
        origins = ", ".join(f"{count:,} {origin}" for origin, count in sorted(guess.origins.items()))
        print(f"Official split: {origins}.\n\n{guess.text}")
        if dry_run:
            return
        path = add_entry(guess)
    print(f"Written to {path}. Check the classes above, then run:")
    print(f"brainmri pipeline --dataset {quote(dataset)} --archive {quote(str(archive))}")


def datasets(debug: Debug = False) -> None:
    """List the data sets of the catalogue: the built-in ones and your own."""
    from brainmri_core.project.catalogue import load_catalogue

    with sentences(debug):
        entries = load_catalogue()
    width = max(map(len, entries))
    for key, entry in entries.items():
        print(
            f"{key:<{width}}  {entry.source:<8} {', '.join(entry.classes)}  ({entry.title}; {entry.licence})"
        )


def clear_bucket(layout: Layout, settings: PipelineConfig, keep_days: int, *, dry_run: bool) -> None:
    """Clear up a project in an object store, and print what was, or would be, done."""
    from brainmri_core.project.bucket_gc import collect_in_bucket

    found = collect_in_bucket(layout, settings, keep_days * 86_400.0, dry_run=dry_run)
    for folder in found.results:
        print(folder)
    moved, freed = ("Would move", "would free") if dry_run else ("Moved", "freed")
    print(
        f"{moved} {len(found.results)} results and {found.contents} contents ({found.moved / 1e6:.1f} MB) to trash/, where a "
        f"call after {keep_days} days frees them; {freed} {found.freed / 1e6:.1f} MB of earlier calls, and put back "
        f"{found.restored} objects that are referred to again{'; --delete does it' if dry_run else ''}."
    )
