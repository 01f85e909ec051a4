from __future__ import annotations

from pathlib import Path

import dagster as dg
import pytest

from brainmri_core.project.layout import Layout
from brainmri_core.project.pointer_store import latest_pointer, write_pointer
from brainmri_core.project.pointers import FetchPointer
from brainmri_dagster.running.upstream import recorded_pointer

pytestmark = pytest.mark.training

PARTITION = "brainmri/phantom"


@pytest.fixture
def layout(tmp_path: Path) -> Layout:
    return Layout(root=tmp_path / "project")


def pointer(run_id: str) -> FetchPointer:
    return FetchPointer(
        dataset=PARTITION,
        run_id=run_id,
        content_hash=run_id * 8,
        dataset_root="data/x",
        training_dir=None,
        testing_dir=None,
        version=None,
        fetched_at_utc="2026-11-23T00:00:00.000000Z",
        samples="data/x/samples.parquet",
        n_images=1,
        total_bytes=1,
        class_counts={"glioma": 1},
        source="phantom",
        licence="CC0-1.0",
    )


def record(instance: dg.DagsterInstance, stored: FetchPointer) -> str:
    """Materialise an asset named as ours with the metadata our IO manager leaves, in a real run."""

    @dg.asset(name="raw_dataset", partitions_def=dg.StaticPartitionsDefinition([PARTITION, "other/set"]))
    def raw_dataset() -> dg.MaterializeResult:
        return dg.MaterializeResult(
            metadata={"pointer_path": dg.MetadataValue.path(str(stored.pointer_path))}
        )

    return dg.materialize([raw_dataset], instance=instance, partition_key=stored.dataset).dagster_run.run_id


def test_the_record_wins_over_the_disk_and_the_own_run_over_the_record(layout):
    with dg.DagsterInstance.ephemeral() as instance:
        assert recorded_pointer(instance, layout, "raw_dataset", PARTITION) is None
        first = write_pointer(layout, pointer("a"))
        assert recorded_pointer(instance, layout, "raw_dataset", PARTITION) == first
        own_run = record(instance, first)
        second = write_pointer(layout, pointer("b"))
        record(instance, second)
        write_pointer(layout, pointer("c"))
        assert latest_pointer(layout, FetchPointer, PARTITION).run_id == "c"
        assert recorded_pointer(instance, layout, "raw_dataset", PARTITION) == second
        assert recorded_pointer(instance, layout, "raw_dataset", PARTITION, (own_run,)) == first
        assert recorded_pointer(instance, layout, "raw_dataset", "other/set") is None


def test_a_record_of_another_project_is_passed_over(layout, tmp_path):
    elsewhere = Layout(root=tmp_path / "elsewhere")
    with dg.DagsterInstance.ephemeral() as instance:
        record(instance, write_pointer(elsewhere, pointer("a")))
        assert recorded_pointer(instance, layout, "raw_dataset", PARTITION) is None
        here = write_pointer(layout, pointer("b"))
        assert recorded_pointer(instance, layout, "raw_dataset", PARTITION) == here


def test_an_older_record_counts_where_the_newest_is_of_another_project(layout, tmp_path):
    elsewhere = Layout(root=tmp_path / "elsewhere")
    with dg.DagsterInstance.ephemeral() as instance:
        here = write_pointer(layout, pointer("a"))
        record(instance, here)
        record(instance, write_pointer(elsewhere, pointer("b")))
        write_pointer(layout, pointer("c"))
        assert recorded_pointer(instance, layout, "raw_dataset", PARTITION) == here
