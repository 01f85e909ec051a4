from __future__ import annotations

import csv
from pathlib import Path

import pytest

from brainmri_core.config import load_config
from brainmri_core.config.experiments import apply_experiment, experiment_files, find_experiment
from brainmri_core.errors import ConfigError, DataError
from brainmri_core.leaderboard import ChooseBy, Entry, rank
from brainmri_core.project.pointer_store import write_pointer
from brainmri_core.project.pointers import CrossValidationPointer, LeaderboardPointer
from brainmri_dagster.code_location import defs
from brainmri_dagster.defs.leaderboard import shown as of_leaderboard
from brainmri_dagster.running.recorded_evaluations import recorded_evaluations
from tests.core.evaluation.external_choice_case import measured
from tests.dagster.conftest import PHANTOM, Workbench
from tests.dagster.defs.champion_case import contender, cross_validated, pack_of

pytestmark = pytest.mark.training


def write(folder: Path, text: str, name: str = "try.yaml") -> Path:
    path = folder / name
    path.write_text(text)
    return path


def test_an_experiment_changes_what_it_says_and_nothing_else(tmp_path: Path) -> None:
    base = load_config()
    changed = apply_experiment(
        base, write(tmp_path, "train:\n  optim:\n    lr: 0.5\n"), ["train.loop.epochs=3"]
    )
    assert changed.train.optim.lr == 0.5
    assert changed.train.loop.epochs == 3
    same = changed.train.model_copy(update={"optim": base.train.optim, "loop": base.train.loop})
    assert changed.model_copy(update={"train": same}) == base.model_copy(
        update={"train": base.train.model_copy(update={"loop": base.train.loop})}
    )


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("train:\n  optim:\n    lrr: 0.5\n", [":3", "train.optim.lrr", "did you mean"]),
        ("trian:\n  optim: {}\n", [":1", "'trian'", "did you mean 'train'"]),
        ("train:\n  loop:\n    epochs: 1\nsplit:\n  seed: 3\n", [":4", "not 'split'", "same data"]),
        ("train:\n  optim:\n    lr: -1\n", [":3", "train.optim.lr"]),
    ],
)
def test_an_experiment_of_unknown_or_foreign_keys_is_refused_with_its_line(
    tmp_path: Path, text: str, parts: list[str]
) -> None:
    path = write(tmp_path, text)
    with pytest.raises(ConfigError) as caught:
        apply_experiment(load_config(), path)
    for part in [str(path), *parts]:
        assert part in str(caught.value)


def test_a_badly_named_or_unknown_experiment_is_refused(tmp_path: Path) -> None:
    write(tmp_path, "{}", "Two Words.yaml")
    with pytest.raises(ConfigError, match="name an experiment with lower-case letters"):
        experiment_files(tmp_path)
    with pytest.raises(ConfigError, match="There is no experiment 'seed-44'; known: densenet121"):
        find_experiment("seed-44")


def test_two_experiments_that_would_share_a_job_are_refused(tmp_path: Path) -> None:
    write(tmp_path, "{}", "small-lr.yaml")
    write(tmp_path, "{}", "small_lr.yaml")
    with pytest.raises(
        ConfigError, match=r"small_lr\.yaml and small-lr\.yaml would share the job experiment_small_lr"
    ):
        experiment_files(tmp_path)


def test_assets_that_run_a_model_use_the_accelerator_and_no_others_do() -> None:
    pools = {key.to_user_string(): defs.get_assets_def(key).op.pool for key in defs.resolve_all_asset_keys()}
    # the report of the folds lets their models vote on the test split
    models = {"model_checkpoint", "evaluation", "champion"}
    models |= {
        "fold_checkpoint",
        "fold_evaluation",
        "cross_validation_report",
        "ensemble_evaluation",
        "external_evaluation",
        "batch_predictions",
        "embeddings",
        "tuning_study",
    }
    assert {name for name, pool in pools.items() if pool == "accelerator"} == models
    assert {pool for name, pool in pools.items() if name not in models} == {"dataset"}


def test_every_experiment_has_a_job_that_carries_its_settings() -> None:
    for name in experiment_files():
        job = defs.resolve_job_def(f"experiment_{name.replace('-', '_')}")
        assert job.tags["brainmri/experiment"] == name
    job = defs.resolve_job_def("experiment_seed_43")
    assert job.partitioned_config is not None
    carried = job.partitioned_config.get_run_config_for_partition_key("brainmri/phantom")
    assert carried["ops"]["model_checkpoint"]["config"]["data"]["seed"] == 43


@pytest.mark.full
def test_an_evaluation_by_itself_counts_for_the_experiment_that_trained_the_model(
    evaluated: Workbench,
) -> None:
    evaluated.done(["model_checkpoint"], experiment="seed-43")
    evaluated.done(["evaluation"])
    name, _ = next(iter(recorded_evaluations(evaluated.instance, evaluated.layout, PHANTOM)))
    assert name == "seed-43"


@pytest.fixture
def fresh(packed: Workbench) -> Workbench:
    """No cross-validation on record."""
    for path in packed.layout.pointer_dir(CrossValidationPointer.kind, PHANTOM).rglob("*.json"):
        path.unlink()
    return packed


def ranking(
    bench: Workbench, entries: list[Entry], run_id: str, choose_by: ChooseBy = "own"
) -> tuple[LeaderboardPointer, list[dict]]:
    pointer = rank(entries, bench.job(run_id), choose_by)
    assert bench.layout.absolute(pointer.plot).read_bytes().startswith(b"\x89PNG")
    with bench.layout.absolute(pointer.table).open(newline="") as handle:
        return pointer, list(csv.DictReader(handle))


def test_the_leaderboard_ranks_by_validation_and_shows_the_test_score(fresh: Workbench) -> None:
    pack = pack_of(fresh)
    sides: list[tuple[str, str | None]] = [("lucky", "validation"), ("true", "test"), ("both", None)]
    entries = [
        Entry(name, contender(fresh, f"rank-{name}", place, knows=True, pack=pack, wrong_on=wrong)[1])
        for place, (name, wrong) in enumerate(sides)
    ]
    pointer, rows = ranking(fresh, entries, "ranking")
    assert (pointer.experiments, pointer.ranked_by) == (3, "validation")
    shown = [(row["experiment"], row["macro_f1"], row["test_macro_f1"]) for row in rows]
    assert shown == [("true", "1.0", "0.0"), ("both", "1.0", "1.0"), ("lucky", "0.0", "1.0")]
    names = of_leaderboard(fresh.layout, pointer)["leaderboard"].value
    assert "(not used for ranking)" in str(names)


def test_what_cannot_be_ranked_on_the_same_images_is_listed_with_its_reason(fresh: Workbench) -> None:
    pack = pack_of(fresh)
    elsewhere = write_pointer(
        fresh.layout, pack.model_copy(update={"content_hash": "x"}), update_latest=False
    )
    cases = [
        ("fair", pack, {}),
        ("apart", elsewhere, {}),
        ("seed", pack, {"seed": 43}),
        ("same", pack, {"seed": 43, "val_seed": 42}),
    ]
    entries = [
        Entry(name, contender(fresh, f"list-{name}", place, knows=True, pack=data, training=training)[1])
        for place, (name, data, training) in enumerate(cases)
    ]
    pointer, rows = ranking(fresh, entries, "listing")
    assert pointer.experiments == 2
    assert {row["experiment"]: row["left_out"].partition(":")[0] for row in rows} == {
        "fair": "",
        "same": "",
        "apart": "trained on other data",
        "seed": "validated on other images",
    }
    assert [bool(row["left_out"]) for row in rows] == [False, False, True, True]
    foreign = entries[0].evaluation.model_copy(update={"checkpoint_pointer": None})
    pointer, rows = ranking(fresh, [*entries[3:], Entry("foreign", foreign)], "listing-foreign")
    assert (pointer.experiments, rows[1]["left_out"].partition(",")[0]) == (1, "its weights came from a file")
    with pytest.raises(DataError, match="run `brainmri experiment NAME` first"):
        rank([], fresh.job("nothing"))


def test_the_leaderboard_can_rank_by_other_data_sets(fresh: Workbench) -> None:
    pack, layout = pack_of(fresh), fresh.layout
    wrong = {"even": (40, 40), "uneven": (0, 60), "elsewhere": (0, None), "unmeasured": (None, None)}
    entries = []
    for place, (name, counts) in enumerate(wrong.items()):
        checkpoint, evaluation = contender(fresh, f"away-{name}", 70 + place, knows=True, pack=pack)
        entries.append(Entry(name, evaluation))
        for other, count in zip(("x/near", "x/far"), counts, strict=True):
            if count is not None:
                images = list(range(count))
                measured(layout, name, other, images, images=100, sha256=checkpoint.checkpoint_sha256)
    pointer, rows = ranking(fresh, entries, "by-worst", "external_worst")
    assert (pointer.ranked_by, pointer.experiments) == ("external_worst", 2)
    assert [(row["experiment"], row["macro_f1"], row["images"]) for row in rows[:2]] == [
        ("even", "0.6", "200"),
        ("uneven", "0.4", "200"),
    ]
    assert {row["experiment"]: row["left_out"] for row in rows[2:]} == {
        "elsewhere": "measured on other data sets than most, which were on x/far, x/near",
        "unmeasured": "it was not measured on another data set: evaluate its checkpoint there",
    }
    mean, rows = ranking(fresh, entries, "by-mean", "external_mean")
    assert [(row["experiment"], row["macro_f1"]) for row in rows[:2]] == [("uneven", "0.7"), ("even", "0.6")]
    assert mean.content_hash != pointer.content_hash


def test_an_experiment_whose_records_are_gone_is_listed_and_the_others_are_ranked(fresh: Workbench) -> None:
    layout, pack = fresh.layout, pack_of(fresh)
    lost = write_pointer(layout, pack.model_copy(update={"content_hash": "lost"}), update_latest=False)
    entries, made = [], {}
    for place, name in enumerate(["data", "training", "predictions", "whole"]):
        checkpoint, evaluation = contender(
            fresh, f"lost-{name}", 50 + place, knows=True, pack=lost if name == "data" else pack
        )
        stored = write_pointer(
            layout, checkpoint.model_copy(update={"recipe": "5" * 64}), update_latest=False
        )
        made[name] = evaluation.model_copy(update={"checkpoint_pointer": stored.pointer_path})
        entries.append(Entry(name, made[name]))
    layout.absolute(str(lost.pointer_path)).unlink()
    layout.absolute(str(made["training"].checkpoint_pointer)).unlink()
    layout.absolute(made["predictions"].predictions).unlink()
    pointer, rows = ranking(fresh, entries, "listing-lost")
    assert pointer.experiments == 1
    assert {row["experiment"]: row["left_out"] for row in rows} == {
        "whole": "",
        "data": "the record of the data it was trained on is gone",
        "training": "the record of its training is gone",
        "predictions": "its predictions are gone",
    }
    pointer, rows = ranking(fresh, entries[:1], "listing-alone")
    assert (pointer.experiments, len(rows)) == (0, 1)


def test_out_of_fold_predictions_rank_where_all_have_folds(fresh: Workbench) -> None:
    pack = pack_of(fresh)
    entries = []
    for place, (name, wrong) in enumerate([("worse", None), ("better", "validation")]):
        checkpoint, evaluation = contender(fresh, f"oof-{name}", place, knows=True, pack=pack, wrong_on=wrong)
        stored = write_pointer(
            fresh.layout, checkpoint.model_copy(update={"recipe": str(place) * 64}), update_latest=False
        )
        changed = evaluation.model_copy(update={"checkpoint_pointer": stored.pointer_path})
        entries.append(Entry(name, changed))
    cross_validated(fresh, pack, "0" * 64, right=False, inference="a")
    pointer, rows = ranking(fresh, entries, "half")
    assert (pointer.ranked_by, rows[0]["experiment"]) == ("validation", "worse"), "one of two has folds"
    cross_validated(fresh, pack, "1" * 64, right=True, inference="a")
    pointer, rows = ranking(fresh, entries, "whole")
    assert (pointer.ranked_by, rows[0]["experiment"]) == ("out_of_fold", "better")
    assert {row["ranked_by"] for row in rows} == {"out_of_fold"}
