from __future__ import annotations

import dagster as dg
import pytest
from dagster._core.definitions.data_version import CachingStaleStatusResolver, StaleStatus
from dagster._core.loader import LoadingContextForTest

from brainmri_core.config import load_config
from brainmri_core.config.training import AugmentConfig
from brainmri_core.project.pointers import FetchPointer, PackPointer
from brainmri_core.system.checksums import sha256_json
from brainmri_dagster.code_location import defs
from brainmri_dagster.commands.backfill import targets
from brainmri_dagster.defs.sensors import retrain
from brainmri_dagster.graph.asset_table import ASSETS, PIPELINE
from brainmri_dagster.running.staleness import recipe, stale_assets
from tests.dagster.conftest import PHANTOM, Workbench, checks_of, failure_of

pytestmark = pytest.mark.training

KNOWN_FROM_THE_START = "rotate_deg hflip_prob jitter_brightness jitter_contrast vflip_prob scale shift noise_std mixup_alpha cutmix_alpha".split()
MODEL = dg.AssetSelection.assets("model_checkpoint", "evaluation")


def stale(bench: Workbench, *overrides: str) -> dict[str, str]:
    return stale_assets(bench.instance, bench.layout, bench.config(*overrides), PHANTOM, list(PIPELINE))


def shown_by_dagster(bench: Workbench) -> dict[str, StaleStatus]:
    resolver = CachingStaleStatusResolver(
        bench.instance, defs.resolve_asset_graph(), LoadingContextForTest(bench.instance)
    )
    return {name: resolver.get_status(dg.AssetKey(name), PHANTOM) for name in PIPELINE}


def test_nothing_is_stale_until_something_decisive_changes(evaluated: Workbench) -> None:
    assert stale(evaluated) == {}
    assert set(shown_by_dagster(evaluated).values()) == {StaleStatus.FRESH}
    assert stale(evaluated, "train.data.num_workers=2", "evaluate.data.num_workers=1") == {}

    reseeded = stale(evaluated, "split.seed=9")
    assert list(reseeded) == list(PIPELINE[1:])
    assert reseeded["dataset_split"] == "its configuration or code changed"
    assert reseeded["resized_images"] == "dataset_split is made again"
    assert list(stale(evaluated, "train.aug.jitter_gamma=0.3")) == ["model_checkpoint", "evaluation"]
    assert list(stale(evaluated, "train.optim.lr=0.3")) == ["model_checkpoint", "evaluation"]
    assert list(stale(evaluated, "evaluate.max_ece=0.5")) == ["evaluation"]


def test_a_setting_that_came_later_makes_nothing_stale_while_it_is_off() -> None:
    """An upgrade of the package alone must not have everything trained again."""
    usual, used = load_config(), load_config(None, ["train.aug.bias_field=0.5"])
    earlier = usual.stage("train").model_dump(
        mode="json",
        exclude={
            "aug": {name for name in AugmentConfig.model_fields if name not in KNOWN_FROM_THE_START},
            "data": {"train_in", "num_workers"},
            "distributed": {"nodes", "rendezvous", "timeout_s"},
            "io": True,
            "optim": {"batch_norm", "snapshots"},
            "tracking": True,
        },
    )
    assert recipe("model_checkpoint", usual) == sha256_json(
        [ASSETS["model_checkpoint"].code_version, earlier]
    )
    assert recipe("model_checkpoint", used) != recipe("model_checkpoint", usual)


def test_the_same_bytes_fetched_again_make_nothing_stale(evaluated: Workbench) -> None:
    before = evaluated.newest("raw_dataset")
    evaluated.done(["raw_dataset"])
    after = evaluated.newest("raw_dataset")
    assert after.metadata["run_id"].value != before.metadata["run_id"].value
    assert after.tags["dagster/data_version"] == before.tags["dagster/data_version"]
    assert stale(evaluated) == {}
    assert set(shown_by_dagster(evaluated).values()) == {StaleStatus.FRESH}


def test_a_new_code_version_makes_an_asset_and_its_downstream_stale(
    evaluated: Workbench, monkeypatch: pytest.MonkeyPatch
) -> None:
    import dataclasses

    newer = dataclasses.replace(ASSETS["resized_images"], code_version="2")
    monkeypatch.setitem(ASSETS, "resized_images", newer)
    assert list(stale(evaluated)) == list(PIPELINE[2:])


def test_a_lost_pointer_makes_its_asset_stale(evaluated: Workbench) -> None:
    pointer = evaluated.pointer("evaluation")
    assert pointer is not None
    path = evaluated.layout.absolute(str(pointer.pointer_path))
    content = path.read_bytes()
    path.unlink()
    assert stale(evaluated) == {"evaluation": "its pointer file is gone"}
    path.write_bytes(content)


def requested(bench: Workbench) -> list[dg.RunRequest]:
    context = dg.build_sensor_context(instance=bench.instance, definitions=defs)
    return [item for item in retrain(context) if isinstance(item, dg.RunRequest)]


@pytest.mark.full
def test_new_validated_images_ask_for_training_and_bad_ones_do_not(
    evaluated: Workbench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("BRAINMRI_HOME", str(evaluated.layout.root))
    assert requested(evaluated) == []
    tick = dg.evaluate_automation_conditions(defs, evaluated.instance, asset_selection=MODEL)

    data = ["dataset_split", "resized_images", "validation_report"]
    bad = evaluated.run(data, "split.group_by=none")
    assert "leak" in failure_of(bad)
    assert requested(evaluated) == [], "images that failed validation are not trained on"
    refused = failure_of(evaluated.run(["model_checkpoint"]))
    assert refused.startswith(f"The newest validation of these images of {PHANTOM} failed")
    graph = defs.resolve_asset_graph()
    missing = targets(evaluated.instance, graph, "group:data", [PHANTOM], only_missing=True)
    assert missing == {"validation_report": [PHANTOM]}, "a report was made, but it failed"
    tick = dg.evaluate_automation_conditions(
        defs, evaluated.instance, asset_selection=MODEL, cursor=tick.cursor
    )
    assert tick.get_requested_partitions(dg.AssetKey("model_checkpoint")) == set()

    # an error that is no leak, and a warning that the user chose to fail on, hold training back just the same
    for flaw in ("validate.size=48", "validate.fail_on=warning"):
        failed = evaluated.run(data, "split.seed=8", "validate.min_file_bytes=100000", flaw)
        assert not failed.success
        found = checks_of(failed)
        assert not found["validation_passed"].passed
        assert found["validation_passed"].severity is dg.AssetCheckSeverity.ERROR
        assert found["leak"].passed
        tick = dg.evaluate_automation_conditions(
            defs, evaluated.instance, asset_selection=MODEL, cursor=tick.cursor
        )
        assert tick.get_requested_partitions(dg.AssetKey("model_checkpoint")) == set(), flaw

    # one image that cannot be read is a warning, and no reason not to train
    raw = evaluated.pointer("raw_dataset")
    assert isinstance(raw, FetchPointer)
    root = evaluated.layout.absolute(raw.dataset_root)
    broken = next(path for path in sorted(root.rglob("*.jpg")))
    broken.chmod(0o644)
    broken.write_bytes(b"no image")
    found = checks_of(evaluated.done(data, "split.seed=9"))
    assert found["validation_passed"].passed
    assert (found["unreadable"].passed, found["unreadable"].severity) == (False, dg.AssetCheckSeverity.WARN)
    (request,) = requested(evaluated)
    pack, checkpoint = evaluated.pointer("resized_images"), evaluated.pointer("model_checkpoint")
    assert isinstance(pack, PackPointer)
    assert checkpoint is not None
    assert request.partition_key == PHANTOM
    assert request.run_key == f"{PHANTOM}@{pack.content_hash[:16]}-after-{checkpoint.content_hash[:16]}"
    tick = dg.evaluate_automation_conditions(
        defs, evaluated.instance, asset_selection=MODEL, cursor=tick.cursor
    )
    assert tick.get_requested_partitions(dg.AssetKey("model_checkpoint")) == {PHANTOM}
