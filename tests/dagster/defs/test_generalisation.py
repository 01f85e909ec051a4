"""The matrix as an asset: without partitions, beside the others, and left out where partitions are filled."""

from __future__ import annotations

import dagster as dg
import pytest

from brainmri_core.errors import ConfigError
from brainmri_core.gc import collect_garbage
from brainmri_core.project.catalogue import EVERY
from brainmri_core.project.pointer_store import latest_pointer
from brainmri_core.project.pointers import GeneralisationPointer
from brainmri_core.project.run_schema import manifest_files, read_manifest, read_plan
from brainmri_core.verify import verify
from brainmri_dagster.code_location import defs
from brainmri_dagster.commands.backfill import targets
from tests.core.generalisation_case import Matrix
from tests.dagster.conftest import Workbench, bench_in, failure_of

pytestmark = pytest.mark.training

PAIR = ("brainmri/phantom", "brainmri/phantom-b")


def materialise(bench: Workbench) -> dg.ExecuteInProcessResult:
    return dg.materialize(
        list(defs.assets or ()),  # type: ignore[arg-type]
        run_config={
            "resources": {"project": {"config": {"paths": {"root": str(bench.layout.root)}}}},
            "loggers": {"console": {"config": {"log_level": "CRITICAL"}}},
        },
        instance=bench.instance,
        resources=defs.resources,
        raise_on_error=False,
        selection=["generalisation"],
    )


def test_it_is_made_without_a_partition_and_stored_like_the_others(tmp_path) -> None:
    with bench_in(tmp_path) as bench:
        nothing = materialise(bench)
        assert not nothing.success
        assert "No external evaluation is on record" in failure_of(nothing)
        record = Matrix(bench.layout.root)
        record.pair(*PAIR, 0.7, taken_out=10, own=0.9)
        result = materialise(bench)
        assert result.success, failure_of(result)
        pointer = latest_pointer(bench.layout, GeneralisationPointer, EVERY.key)
        assert pointer is not None and (pointer.best, pointer.scored) == (PAIR[0], 1)
        (made,) = result.asset_materializations_for_node("generalisation")
        assert {"heat_map", "scores", "report", "best_worst", "pointer_path"} <= set(made.metadata)
        assert "| 0.7" in str(made.metadata["scores"].value)
        assert made.partition is None
        manifests = [read_manifest(path) for path in manifest_files(bench.layout)]
        (done,) = [item for item in manifests if item.status == "success"]
        assert done.dataset == EVERY.key and list(done.stages) == ["generalisation"]
        command = read_plan(bench.layout.run_dir(done.run_id) / "plan.json").command
        assert "brainmri_dagster.code_location --select generalisation" in command
        assert "--partition" not in command
        folder = bench.layout.absolute(pointer.folder)
        assert not [
            problem for problem in verify(bench.layout).problems if "generalisation" in str(problem.path)
        ]
        assert folder not in collect_garbage(bench.layout).results
        (orphan := folder.with_name("orphan")).mkdir()
        (orphan / "generalisation.csv").write_text("x")
        assert orphan in collect_garbage(bench.layout).results


def test_a_backfill_leaves_it_out_and_says_so_where_nothing_else_is_selected(tmp_path) -> None:
    graph = defs.resolve_asset_graph()
    with bench_in(tmp_path) as bench:
        options = {"datasets": list(PAIR), "only_missing": False}
        found = targets(bench.instance, graph, 'key:"raw_dataset" or key:"generalisation"', **options)
        assert list(found) == ["raw_dataset"]
        with pytest.raises(
            ConfigError, match="generalisation has no partitions to fill; materialise it instead"
        ):
            targets(bench.instance, graph, "generalisation", **options)
