from __future__ import annotations

import pandas as pd
import pytest

import brainmri_core.evaluation.contender
from brainmri_core.champion import crown
from brainmri_core.evaluation.prediction_table import read_predictions
from brainmri_core.evaluation.tested_model import validation_of
from brainmri_core.learning.checkpoint import (
    load_checkpoint,
)
from brainmri_core.project.pointer_store import latest_pointer, write_pointer
from brainmri_core.project.pointers import (
    ChampionPointer,
    CheckpointPointer,
    CrossValidationPointer,
    EvaluationPointer,
)
from brainmri_core.project.sample_table import read_samples, write_samples
from brainmri_core.system.checksums import sha256_file
from brainmri_core.system.json_files import read_json
from tests.core.evaluation.external_choice_case import measured
from tests.dagster.conftest import PHANTOM, Workbench
from tests.dagster.defs.champion_case import contender, cross_validated, pack_of

pytestmark = pytest.mark.training


def decide(
    bench: Workbench, run_id: str, pair: tuple[CheckpointPointer, EvaluationPointer], *overrides: str
) -> tuple[ChampionPointer, dict[str, object]]:
    config = bench.config("evaluate.data.seed=1", "evaluate.bootstrap_resamples=300", *overrides).evaluate
    pointer = write_pointer(bench.layout, crown(config, "models", *pair, bench.job(run_id)))
    return pointer, read_json(bench.layout.absolute(pointer.decision))


@pytest.fixture
def fresh(packed: Workbench) -> Workbench:
    """No champion and no folds yet."""
    for kind in (ChampionPointer.kind, CrossValidationPointer.kind):
        for path in packed.layout.pointer_dir(kind, PHANTOM).rglob("*.json"):
            path.unlink()
    return packed


def test_a_champion_is_replaced_only_by_one_that_is_better_beyond_noise(fresh: Workbench) -> None:
    pack = pack_of(fresh)
    first = contender(fresh, "first", 1, knows=False, pack=pack)
    weights = fresh.layout.root / "models" / PHANTOM / "champion.pth"

    pointer, _ = decide(fresh, "d1", first)
    assert (pointer.crowned, pointer.reason) == (True, "There was no champion yet.")
    assert sha256_file(weights) == first[0].checkpoint_sha256

    pointer, _ = decide(fresh, "d2", first)
    assert (pointer.crowned, pointer.reason) == (False, "It is the champion already.")

    pointer, record = decide(fresh, "d3", contender(fresh, "chance", 2, knows=False, pack=pack))
    low, high = record["comparison"]["interval"]  # type: ignore[index]
    assert low <= 0
    assert not pointer.crowned
    assert pointer.reason.startswith("It is not better beyond noise: macro F1")
    assert f"{low:+.3f} to {high:+.3f}" in pointer.reason
    assert pointer.champion_checkpoint == first[0].pointer_path, "the champion keeps its title"
    assert sha256_file(weights) == first[0].checkpoint_sha256

    better = contender(fresh, "better", 3, knows=True, pack=pack)
    # as a run leaves it that ends between the weights of its champion and the pointer
    weights.write_bytes(fresh.layout.absolute(better[0].checkpoint).read_bytes())
    pointer, _ = decide(fresh, "d3b", first)
    assert not pointer.crowned
    assert sha256_file(weights) == first[0].checkpoint_sha256

    pointer, record = decide(fresh, "d4", better)
    assert pointer.crowned
    assert record["comparison"]["challenger"] == 1.0  # type: ignore[index]
    assert sha256_file(weights) == better[0].checkpoint_sha256
    stored = latest_pointer(fresh.layout, ChampionPointer, PHANTOM)
    assert stored is not None
    assert stored.champion_checkpoint == better[0].pointer_path


def test_the_test_split_does_not_choose_the_champion(fresh: Workbench) -> None:
    pack = pack_of(fresh)
    decide(fresh, "test1", contender(fresh, "plain", 21, knows=False, pack=pack))
    flattered = contender(fresh, "flattered", 22, knows=True, pack=pack, wrong_on="validation")
    assert flattered[1].headline["macro_f1"] == 1.0, "it knows the test split by heart"
    pointer, record = decide(fresh, "test2", flattered)
    assert not pointer.crowned
    assert record["comparison"]["challenger"] == 0.0  # type: ignore[index]
    honest = contender(fresh, "honest", 23, knows=True, pack=pack, wrong_on="test")
    assert honest[1].headline["macro_f1"] == 0.0
    pointer, record = decide(fresh, "test3", honest)
    assert pointer.crowned
    assert (record["comparison"]["basis"], record["comparison"]["challenger"]) == ("validation", 1.0)  # type: ignore[index]


def test_a_champion_can_be_chosen_by_other_data_sets(fresh: Workbench) -> None:
    """The challenger is perfect at home and worse elsewhere, where the worst data set or the mean is asked for."""
    pack, layout = pack_of(fresh), fresh.layout
    holder = contender(fresh, "traveller", 31, knows=False, pack=pack)
    challenger = contender(fresh, "homebody", 32, knows=True, pack=pack)
    by_worst, by_mean = (f"evaluate.choose_by=external_{how}" for how in ("worst", "mean"))
    decide(fresh, "away1", holder)
    pointer, _ = decide(fresh, "away2", challenger, by_worst)
    assert not pointer.crowned
    assert "which keeps its title: they were not both measured on another data set" in pointer.reason
    for (one, _), wrong in ((holder, {"x/near": 30, "x/far": 30}), (challenger, {"x/near": 0, "x/far": 90})):
        for name, count in wrong.items():
            images = list(range(count))
            measured(layout, one.run_id, name, images, images=160, sha256=one.checkpoint_sha256)
    pointer, record = decide(fresh, "away3", challenger, by_worst)
    assert not pointer.crowned
    assert "macro F1 0.438 against 0.812 on 320 external (worst data set) images" in pointer.reason
    pointer, record = decide(fresh, "away4", challenger, by_mean)
    assert record["comparison"]["challenger"] == pytest.approx(0.71875)  # type: ignore[index]
    assert record["comparison"]["champion"] == pytest.approx(0.8125)  # type: ignore[index]
    pointer, _ = decide(fresh, "away5", challenger)
    assert pointer.crowned, "by its own data set, the default, it is the better one"


def test_images_that_the_champion_was_trained_on_do_not_count(fresh: Workbench) -> None:
    old = pack_of(fresh)
    champion = contender(fresh, "old", 4, knows=False, pack=old)
    decide(fresh, "learnt1", champion)
    # other sides: half of the old validation images, and of those trained on, are to choose by now
    challenger = contender(fresh, "new", 5, knows=True, pack=old, training={"seed": 7, "val_frac": 0.6})
    _, record = decide(fresh, "learnt2", challenger)
    table, _ = read_predictions(fresh.layout.absolute(challenger[1].predictions))
    before, _ = read_predictions(fresh.layout.absolute(champion[1].predictions))
    chosen_by, chosen_before = (
        set(part.loc[part["split"] == "validation", "path"]) for part in (table, before)
    )
    assert 0 < len(chosen_by & chosen_before) < len(chosen_by)
    assert record["comparison"]["images"] == len(chosen_by & chosen_before)  # type: ignore[index]


@pytest.mark.full
@pytest.mark.parametrize("relation", ["file", "pixels", "group", "patient"])
def test_a_relative_of_what_the_champion_was_trained_on_does_not_count(
    fresh: Workbench, relation: str
) -> None:
    old = pack_of(fresh)
    samples = read_samples(fresh.layout.absolute(old.samples))
    champion = contender(fresh, f"kin-{relation}", 6, knows=False, pack=old)
    decide(fresh, f"kin1-{relation}", champion)
    packed = samples[samples["row"] >= 0].sort_values("row", ignore_index=True)
    mask = validation_of(packed, load_checkpoint(fresh.layout.absolute(champion[0].checkpoint))[0])
    chosen = packed["path"].to_numpy()[mask]
    trained = packed[(packed["split"] == "train") & ~mask].iloc[0]
    new = samples.copy()
    new["patient"] = pd.Series([None] * len(new), dtype="string")
    relative = new["path"] == chosen[0]
    if relation == "file":
        new.loc[relative, "file_sha256"] = trained["file_sha256"]
    elif relation == "pixels":
        new.loc[relative, "pixel_sha256"] = trained["pixel_sha256"]
    elif relation == "group":
        # an image of the group has the pixels, and is not to choose by itself
        unchosen = new["path"] == packed.loc[packed["split"] == "test", "path"].iloc[0]
        new.loc[unchosen, ["pixel_sha256", "group"]] = (
            trained["pixel_sha256"],
            new.loc[relative, "group"].iloc[0],
        )
    again = samples.assign(patient=pd.Series([None] * len(samples), dtype="string"))
    if relation == "patient":
        new.loc[relative, "patient"] = "p001"
        again.loc[again["path"] == trained["path"], "patient"] = "p001"
        write_samples(fresh.layout.absolute(old.samples), again)
    table = fresh.layout.root / "data" / f"kin-{relation}.parquet"
    write_samples(table, new)
    newer = write_pointer(
        fresh.layout,
        old.model_copy(update={"samples": fresh.layout.relative(table), "content_hash": relation}),
        update_latest=False,
    )
    _, record = decide(
        fresh, f"kin2-{relation}", contender(fresh, f"newer-{relation}", 7, knows=True, pack=newer)
    )
    write_samples(fresh.layout.absolute(old.samples), samples)
    tainted = new.loc[relative, "group"].iloc[0] if relation != "patient" else None
    lost = int((new.loc[new["path"].isin(chosen), "group"] == tainted).sum()) if tainted else 1
    assert lost >= 1
    assert record["comparison"]["images"] == len(chosen) - lost  # type: ignore[index]


@pytest.mark.full
@pytest.mark.parametrize(
    "how",
    [{"fit": "stretch"}, {"pack_size": 48}, {"colour": True, "channels": 3, "mean": [0.2] * 3, "std": [0.2] * 3}],
    ids=["fit", "size", "colour"],
)  # fmt: skip
def test_a_champion_of_other_preprocessing_sees_its_images_as_it_was_trained_to(
    fresh: Workbench, how: dict[str, object]
) -> None:
    pack, name = pack_of(fresh), "-".join(how)
    champion = contender(fresh, f"prepared-{name}", 11, knows=True, pack=pack, **how)
    decide(fresh, f"prepared1-{name}", champion)
    pointer, record = decide(
        fresh, f"prepared2-{name}", contender(fresh, f"plainly-{name}", 12, knows=False, pack=pack)
    )
    assert not pointer.crowned
    assert record["comparison"]["champion"] == 1.0, "on other pixels it would not know them all"  # type: ignore[index]


def test_both_sides_predict_with_the_configured_mirror_and_precision(
    fresh: Workbench, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[tuple[object, ...]] = []
    original = brainmri_core.evaluation.contender.predict_evenly

    def watch(*arguments: object, **options: object) -> object:
        seen.append((options["precision"], options["tta"], options["batch_size"]))
        return original(*arguments, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(brainmri_core.evaluation.contender, "predict_evenly", watch)
    pack = pack_of(fresh)
    decide(fresh, "equal1", contender(fresh, "equal-a", 13, knows=False, pack=pack))
    challenger = contender(fresh, "equal-b", 14, knows=True, pack=pack)
    decide(fresh, "equal2", challenger, "evaluate.mirror=true", "evaluate.precision=bf16")
    assert seen == [("bf16", True, 32)] * 2


def test_a_champion_of_other_classes_is_not_compared_one_of_another_order_is(fresh: Workbench) -> None:
    pack = pack_of(fresh)
    names = ["a", *pack.classes[1:]]
    decide(fresh, "other1", contender(fresh, "foreign", 6, knows=False, pack=pack, classes=names))
    pointer, _ = decide(fresh, "other2", contender(fresh, "ours", 7, knows=True, pack=pack))
    assert not pointer.crowned
    assert pointer.reason == (
        "It was not compared with the champion, which keeps its title: the champion knows other classes."
    )
    for path in fresh.layout.pointer_dir(ChampionPointer.kind, PHANTOM).rglob("*.json"):
        path.unlink()
    turned = contender(fresh, "turned", 8, knows=True, pack=pack, classes=pack.classes[::-1])
    decide(fresh, "other3", turned)
    _, record = decide(fresh, "other4", contender(fresh, "chances", 9, knows=False, pack=pack))
    assert record["comparison"]["champion"] == 1.0  # type: ignore[index]


@pytest.mark.parametrize("kept", ["same content", "other record", "nothing"])
def test_a_champion_is_compared_as_long_as_something_says_what_it_was_trained_on(
    fresh: Workbench, kept: str
) -> None:
    pack, name = pack_of(fresh), kept.replace(" ", "-")
    content = pack.content_hash if kept == "same content" else f"as before, {kept}"
    copies = [
        write_pointer(fresh.layout, pack.model_copy(update={"content_hash": content}), update_latest=False)
        for _ in range(2 if kept == "other record" else 1)
    ]
    champion = contender(fresh, f"old-{name}", 41, knows=False, pack=copies[0])
    recipe = write_pointer(
        fresh.layout, champion[0].model_copy(update={"recipe": "4" * 64}), update_latest=False
    )
    decide(fresh, f"gone1-{name}", (recipe, champion[1]))
    fresh.layout.absolute(str(copies[0].pointer_path)).unlink()
    pointer, record = decide(
        fresh, f"gone2-{name}", contender(fresh, f"young-{name}", 42, knows=True, pack=pack)
    )
    for other in copies[1:]:
        fresh.layout.absolute(str(other.pointer_path)).unlink()
    assert pointer.crowned == (kept != "nothing")
    if kept == "nothing":
        assert pointer.reason == (
            "It was not compared with the champion, which keeps its title: The record of the data that the checkpoint "
            f"{champion[0].checkpoint} was trained on is missing, so it is unknown which images it has seen; split and resize "
            "again with the same settings as then."
        )
    else:
        assert record["comparison"]["images"] > 0  # type: ignore[index]


@pytest.mark.parametrize("lost", ["deleted", "changed"])
def test_a_champion_whose_checkpoint_is_lost_is_compared_by_the_copy_in_use(
    fresh: Workbench, lost: str
) -> None:
    pack = pack_of(fresh)
    champion, _ = first = contender(fresh, f"copied-{lost}", 43, knows=True, pack=pack)
    decide(fresh, f"copy1-{lost}", first)
    file = fresh.layout.absolute(champion.checkpoint)
    if lost == "deleted":
        file.unlink()
    else:
        file.write_bytes(b"other weights")
    young = contender(fresh, f"after-{lost}", 44, knows=False, pack=pack)
    pointer, record = decide(fresh, f"copy2-{lost}", young)
    assert not pointer.crowned
    assert record["comparison"]["champion"] == 1.0  # type: ignore[index]
    (fresh.layout.root / "models" / PHANTOM / "champion.pth").unlink()
    pointer, record = decide(fresh, f"copy3-{lost}", young)
    assert (pointer.crowned, record["comparison"]) == (True, None)
    assert f"its checkpoint {champion.checkpoint} is gone or was changed" in pointer.reason


def test_the_successor_of_a_lost_champion_is_not_called_the_first(fresh: Workbench) -> None:
    pack = pack_of(fresh)
    champion, _ = first = contender(fresh, "lost", 45, knows=True, pack=pack)
    decide(fresh, "lost1", first)
    fresh.layout.absolute(str(champion.pointer_path)).unlink()
    pointer, record = decide(fresh, "lost2", contender(fresh, "heir", 46, knows=False, pack=pack))
    assert (pointer.crowned, record["comparison"]) == (True, None)
    assert pointer.reason == (
        f"There was a champion, but its checkpoint {champion.pointer_path} is gone or was changed, so that nothing could "
        "be compared."
    )


def test_out_of_fold_predictions_decide_where_both_trainings_have_folds(fresh: Workbench) -> None:
    pack = pack_of(fresh)
    first, second = (
        contender(fresh, f"fold-{name}", seed, knows=True, pack=pack, wrong_on=wrong)
        for name, seed, wrong in (("a", 31, None), ("b", 32, "validation"))
    )
    pairs = []
    for (checkpoint, evaluation), recipe, right in ((first, "1" * 64, False), (second, "2" * 64, True)):
        stored = write_pointer(
            fresh.layout, checkpoint.model_copy(update={"recipe": recipe}), update_latest=False
        )
        pairs.append((stored, evaluation))
        cross_validated(fresh, pack, recipe, right=right)
    decide(fresh, "fold1", pairs[0])
    pointer, record = decide(fresh, "fold2", pairs[1])
    assert pointer.crowned, "by its folds it is better, whatever the validation images say"
    comparison = record["comparison"]
    assert (comparison["basis"], comparison["challenger"]) == ("out_of_fold", 1.0)  # type: ignore[index]
    samples = read_samples(fresh.layout.absolute(pack.samples))
    assert comparison["images"] == ((samples["split"] == "train") & (samples["row"] >= 0)).sum()  # type: ignore[index]
