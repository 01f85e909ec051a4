"""A project small enough to materialise in seconds, in this process, on a Dagster instance of its own."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import dagster as dg
import pytest

from brainmri_core.config import PipelineConfig, load_config
from brainmri_core.project.catalogue import load_catalogue
from brainmri_core.project.job import Job
from brainmri_core.project.layout import Layout
from brainmri_core.project.logs import Record, StageLog
from brainmri_core.project.pointers import Pointer
from brainmri_dagster.code_location import defs
from brainmri_dagster.graph.asset_table import EXPERIMENT_TAG, PIPELINE
from brainmri_dagster.graph.run_config import run_config_for
from brainmri_dagster.running.upstream import recorded_pointer
from tests.once import once

PHANTOM = "brainmri/phantom"
TINY = (
    "fetch.phantom.subjects_per_class=5",
    "fetch.phantom.slices_per_subject=4",
    "fetch.phantom.copies_per_kind=2",
    "fetch.phantom.label_conflicts=1",
    "split.folds=2",
    "resize.size=32",
    "train.data.image_size=32",
    "train.data.batch_size=16",
    "train.model.name=mobilenet_v3_small",
    "train.model.pretrained=false",
    "train.loop.epochs=1",
    "evaluate.bootstrap_resamples=50",
    "evaluate.io.make_gradcam=false",
    "evaluate.io.make_galleries=false",
)


@dataclass
class Workbench:
    """A project folder, its Dagster instance, and runs of any assets in this process."""

    layout: Layout
    instance: dg.DagsterInstance

    def config(self, *overrides: str) -> PipelineConfig:
        """Return the tiny configuration with these differences."""
        return load_config(None, [*TINY, f"paths.root={self.layout.root}", *overrides])

    def run(
        self,
        assets: Sequence[str],
        *overrides: str,
        partition: str = PHANTOM,
        experiment: str | None = None,
    ) -> dg.ExecuteInProcessResult:
        """Materialise assets."""
        quiet: dict[str, Any] = {"loggers": {"console": {"config": {"log_level": "CRITICAL"}}}}
        return dg.materialize(
            list(defs.assets or ()),  # type: ignore[arg-type]
            run_config=run_config_for(self.config(*overrides), list(assets)) | quiet,
            instance=self.instance,
            resources=defs.resources,
            partition_key=partition,
            raise_on_error=False,
            tags={EXPERIMENT_TAG: experiment} if experiment else {},
            selection=list(assets),
        )

    def done(self, assets: Sequence[str], *overrides: str, **options: Any) -> dg.ExecuteInProcessResult:
        """Materialise assets, and fail unless that succeeds."""
        result = self.run(assets, *overrides, **options)
        assert result.success, failure_of(result)
        return result

    def pointer(self, asset: str, partition: str = PHANTOM) -> Pointer | None:
        """Return what the asset's newest materialisation recorded."""
        return recorded_pointer(self.instance, self.layout, asset, partition)

    def newest(self, asset: str, partition: str = PHANTOM) -> dg.AssetMaterialization:
        """Return the asset's newest materialisation."""
        records = self.instance.fetch_materializations(
            dg.AssetRecordsFilter(asset_key=dg.AssetKey(asset), asset_partitions=[partition]), limit=1
        ).records
        made = records[0].asset_materialization
        assert made is not None
        return made

    def job(self, run_id: str, records: list[Record] | None = None) -> Job:
        """Return a job for calling the core directly."""
        sinks = [] if records is None else [records.append]
        log = StageLog("test", run_id, PHANTOM, sinks, "DEBUG")
        return Job(layout=self.layout, run_id=run_id, entry=load_catalogue()[PHANTOM], log=log)


def failure_of(result: dg.ExecuteInProcessResult) -> str:
    """Return the sentence a run failed with."""
    for event in result.all_events:
        if event.is_step_failure:
            message = event.step_failure_data.user_failure_data
            return str(message.description if message else event.step_failure_data.error)
    return ""


def checks_of(result: dg.ExecuteInProcessResult) -> dict[str, Any]:
    """Return the asset checks a run evaluated, by name."""
    return {item.check_name: item for item in result.get_asset_check_evaluations()}


@contextmanager
def bench_in(folder: Path) -> Iterator[Workbench]:
    """Open the project and the Dagster instance in a folder."""
    (folder / "home").mkdir(exist_ok=True)
    quiet = {"telemetry": {"enabled": False}, "nux": {"enabled": False}}
    with dg.DagsterInstance.local_temp(str(folder / "home"), overrides=quiet) as instance:
        yield Workbench(Layout(root=folder / "project"), instance)


def _make_packed(folder: Path) -> None:
    with bench_in(folder) as bench:
        bench.done(PIPELINE[:3])


@pytest.fixture(scope="module")
def packed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Workbench]:
    """A project with the data stages done, for one module to go on with."""
    made = once(tmp_path_factory, "packed", _make_packed)
    folder = tmp_path_factory.mktemp("packed") / "copy"
    with bench_in(shutil.copytree(made, folder)) as bench:
        yield bench


@pytest.fixture(scope="module")
def evaluated(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Workbench]:
    """A project with the whole graph done, for one module to go on with."""

    def make(folder: Path) -> None:
        packed = once(tmp_path_factory, "packed", _make_packed)
        with bench_in(shutil.copytree(packed, folder, dirs_exist_ok=True)) as bench:
            bench.done(PIPELINE[3:])

    made = once(tmp_path_factory, "evaluated", make)
    folder = tmp_path_factory.mktemp("evaluated") / "copy"
    with bench_in(shutil.copytree(made, folder)) as bench:
        yield bench
