"""What the pointers, manifests and running stages of a project refer to, and where its results lie: the rules of gc."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from brainmri_core.config import PipelineConfig
from brainmri_core.project.layout import ENSEMBLE_FOLDER, Layout
from brainmri_core.project.pointer_store import PATH_FIELDS, pointer_files, read_pointer
from brainmri_core.project.pointers import PackPointer
from brainmri_core.project.run_schema import manifest_files, read_manifest


class References:
    """The paths that pointers, manifests and running stages refer to, with symbolic links resolved."""

    def __init__(self) -> None:
        self.paths: set[Path] = set()
        self.above: set[Path] = set()
        self.running: set[str] = set()
        self.data: set[str] = set()

    def add(self, path: Path) -> None:
        """Note that a path is referred to."""
        path = path.resolve()
        self.paths.add(path)
        self.above.update(path.parents)

    def holds(self, folder: Path) -> bool:
        """Say whether the folder, anything in it, or a folder above it is referred to."""
        real = folder.resolve()
        return (
            real in self.above
            or not self.paths.isdisjoint((real, *real.parents))
            or any(folder.name.startswith(run_id) for run_id in self.running)
        )


def referenced(layout: Layout, raw: Path) -> References:
    """Return what the pointers and manifests of a project refer to.

    Raises
    ------
    IntegrityError
        If one of them cannot be read.
    """
    found = References()
    for pointer_type, path in pointer_files(layout):
        pointer = read_pointer(layout, pointer_type, path)
        if isinstance(pointer, PackPointer):
            found.data.add(pointer.content_hash)
        values: dict[str, Any] = pointer.model_dump()
        for name, stored in values.items():
            if name in PATH_FIELDS and stored:
                found.add(layout.inside(stored))
    for path in manifest_files(layout):
        manifest = read_manifest(path)
        for stage, entry in manifest.stages.items():
            for stored in entry.output_paths:
                found.add(layout.inside(stored))
            if entry.status == "running":
                found.running.add(path.parent.name)
                if manifest.dataset:
                    for place in _shared_by_runs(layout, raw, stage):
                        found.add(place / manifest.dataset)
    return found


def _shared_by_runs(layout: Layout, raw: Path, stage: str) -> list[Path]:
    """Return the folders where a running stage uses results whose name holds no run id."""
    if stage == "fetch":
        return [raw]
    return [layout.features, *([layout.studies] if stage == "tune" else [])]


def result_folders(layout: Layout, config: PipelineConfig) -> list[Path]:
    """Return the folders below which stages write their results; those outside the project root are left out."""
    configured = [
        layout.configured(config.fetch.cache_dir) / "raw",
        layout.configured(config.resize.out_dir),
        layout.configured(config.train.io.out_models),
        layout.configured(config.train.io.out_summary),
        layout.configured(config.evaluate.io.eval_out),
        layout.configured(config.batch_predict.out_dir),
        layout.configured(config.external.out),
    ]
    models = layout.configured(config.train.io.out_models)
    configured += [models / "cross_validation", models / ENSEMBLE_FOLDER]
    names = (
        "mappings",
        "validation",
        "cross_validation",
        "leaderboard",
        "generalisation",
        "embeddings",
        "features",
    )
    fixed = [layout.outputs / name for name in names]
    root = layout.root.resolve()
    real = {path.resolve(): path for path in (*configured, *fixed) if path.resolve().is_relative_to(root)}
    return list(real.values())
