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
def throne(packed: Workbench) -> Workbench:
    """No champion and no folds yet."""
    for kind in (ChampionPointer.kind, CrossValidationPointer.kind):
        for path in packed.layout.pointer_dir(kind, PHANTOM).rglob("*.json"):
            path.unlink()
    return packed


def test_a_champion_is_replaced_only_by_one_that_is_better_beyond_noise(throne: Workbench) -> None:
    pack = pack_of(throne)
    first = contender(throne, "first", 1, knows=False, pack=pack)
    weights = throne.layout.root / "models" / PHANTOM / "champion.pth"

    pointer, _ = decide(throne, "d1", first)
    assert (pointer.crowned, pointer.reason) == (True, "There was no champion yet.")
    assert sha256_file(weights) == first[0].checkpoint_sha256

    pointer, _ = decide(throne, "d2", first)
    assert (pointer.crowned, pointer.reason) == (False, "It is the champion already.")

    pointer, record = decide(throne, "d3", contender(throne, "chance", 2, knows=False, pack=pack))
    low, high = record["comparison"]["interval"]  # type: ignore[index]
    assert low <= 0
    assert not pointer.crowned
    assert pointer.reason.startswith("It is not better beyond noise: macro F1")
    assert f"{low:+.3f} to {high:+.3f}" in pointer.reason
    assert pointer.champion_checkpoint == first[0].pointer_path, "the champion keeps its title"
    assert sha256_file(weights) == first[0].checkpoint_sha256

    better = contender(throne, "better", 3, knows=True, pack=pack)
    # as a run leaves it that ends between the weights of its champion and the pointer
    weights.write_bytes(throne.layout.absolute(better[0].checkpoint).read_bytes())
    pointer, _ = decide(throne, "d3b", first)
    assert not pointer.crowned
    assert sha256_file(weights) == first[0].checkpoint_sha256

    pointer, record = decide(throne, "d4", better)
    assert pointer.crowned
    assert record["comparison"]["challenger"] == 1.0  # type: ignore[index]
    assert sha256_file(weights) == better[0].checkpoint_sha256
    stored = latest_pointer(throne.layout, ChampionPointer, PHANTOM)
    assert stored is not None
    assert stored.champion_checkpoint == better[0].pointer_path


def test_the_test_split_does_not_choose_the_champion(throne: Workbench) -> None:
    pack = pack_of(throne)
    decide(throne, "test1", contender(throne, "plain", 21, knows=False, pack=pack))
    flattered = contender(throne, "flattered", 22, knows=True, pack=pack, wrong_on="validation")
    assert flattered[1].headline["macro_f1"] == 1.0, "it knows the test split by heart"
    pointer, record = decide(throne, "test2", flattered)
    assert not pointer.crowned
    assert record["comparison"]["challenger"] == 0.0  # type: ignore[index]
    honest = contender(throne, "honest", 23, knows=True, pack=pack, wrong_on="test")
    assert honest[1].headline["macro_f1"] == 0.0
    pointer, record = decide(throne, "test3", honest)
    assert pointer.crowned
    assert (record["comparison"]["basis"], record["comparison"]["challenger"]) == ("validation", 1.0)  # type: ignore[index]


def test_a_champion_can_be_chosen_by_other_data_sets(throne: Workbench) -> None:
    """The challenger is perfect at home and worse elsewhere, where the worst data set or the mean is asked for."""
    pack, layout = pack_of(throne), throne.layout
    holder = contender(throne, "traveller", 31, knows=False, pack=pack)
    challenger = contender(throne, "homebody", 32, knows=True, pack=pack)
    by_worst, by_mean = (f"evaluate.choose_by=external_{how}" for how in ("worst", "mean"))
    decide(throne, "away1", holder)
    pointer, _ = decide(throne, "away2", challenger, by_worst)
    assert not pointer.crowned
    assert "which keeps its title: they were not both measured on another data set" in pointer.reason
    for (one, _), wrong in ((holder, {"x/near": 30, "x/far": 30}), (challenger, {"x/near": 0, "x/far": 90})):
        for name, count in wrong.items():
            images = list(range(count))
            measured(layout, one.run_id, name, images, images=160, sha256=one.checkpoint_sha256)
    pointer, record = decide(throne, "away3", challenger, by_worst)
    assert not pointer.crowned
    assert "macro F1 0.438 against 0.812 on 320 external (worst data set) images" in pointer.reason
    pointer, record = decide(throne, "away4", challenger, by_mean)
    assert record["comparison"]["challenger"] == pytest.approx(0.71875)  # type: ignore[index]
    assert record["comparison"]["champion"] == pytest.approx(0.8125)  # type: ignore[index]
    pointer, _ = decide(throne, "away5", challenger)
    assert pointer.crowned, "by its own data set, the default, it is the better one"


def test_images_that_the_champion_was_trained_on_do_not_count(throne: Workbench) -> None:
    old = pack_of(throne)
    champion = contender(throne, "old", 4, knows=False, pack=old)
    decide(throne, "learnt1", champion)
    # other sides: half of the old validation images, and of those trained on, are to choose by now
    challenger = contender(throne, "new", 5, knows=True, pack=old, training={"seed": 7, "val_frac": 0.6})
    _, record = decide(throne, "learnt2", challenger)
    table, _ = read_predictions(throne.layout.absolute(challenger[1].predictions))
    before, _ = read_predictions(throne.layout.absolute(champion[1].predictions))
    chosen_by, chosen_before = (
        set(part.loc[part["split"] == "validation", "path"]) for part in (table, before)
    )
    assert 0 < len(chosen_by & chosen_before) < len(chosen_by)
    assert record["comparison"]["images"] == len(chosen_by & chosen_before)  # type: ignore[index]


@pytest.mark.full
@pytest.mark.parametrize("relation", ["file", "pixels", "group", "patient"])
def test_a_relative_of_what_the_champion_was_trained_on_does_not_count(
    throne: Workbench, relation: str
) -> None:
    old = pack_of(throne)
    samples = read_samples(throne.layout.absolute(old.samples))
    champion = contender(throne, f"kin-{relation}", 6, knows=False, pack=old)
    decide(throne, f"kin1-{relation}", champion)
    packed = samples[samples["row"] >= 0].sort_values("row", ignore_index=True)
    mask = validation_of(packed, load_checkpoint(throne.layout.absolute(champion[0].checkpoint))[0])
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
        write_samples(throne.layout.absolute(old.samples), again)
    table = throne.layout.root / "data" / f"kin-{relation}.parquet"
    write_samples(table, new)
    newer = write_pointer(
        throne.layout,
        old.model_copy(update={"samples": throne.layout.relative(table), "content_hash": relation}),
        update_latest=False,
    )
    _, record = decide(
        throne, f"kin2-{relation}", contender(throne, f"newer-{relation}", 7, knows=True, pack=newer)
    )
    write_samples(throne.layout.absolute(old.samples), samples)
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
    throne: Workbench, how: dict[str, object]
) -> None:
    pack, name = pack_of(throne), "-".join(how)
    champion = contender(throne, f"prepared-{name}", 11, knows=True, pack=pack, **how)
    decide(throne, f"prepared1-{name}", champion)
    pointer, record = decide(
        throne, f"prepared2-{name}", contender(throne, f"plainly-{name}", 12, knows=False, pack=pack)
    )
    assert not pointer.crowned
    assert record["comparison"]["champion"] == 1.0, "on other pixels it would not know them all"  # type: ignore[index]


def test_both_sides_predict_with_the_configured_mirror_and_precision(
    throne: Workbench, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[tuple[object, ...]] = []
    original = brainmri_core.evaluation.contender.predict_evenly

    def watch(*arguments: object, **options: object) -> object:
        seen.append((options["precision"], options["tta"], options["batch_size"]))
        return original(*arguments, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(brainmri_core.evaluation.contender, "predict_evenly", watch)
    pack = pack_of(throne)
    decide(throne, "equal1", contender(throne, "equal-a", 13, knows=False, pack=pack))
    challenger = contender(throne, "equal-b", 14, knows=True, pack=pack)
    decide(throne, "equal2", challenger, "evaluate.mirror=true", "evaluate.precision=bf16")
    assert seen == [("bf16", True, 32)] * 2


def test_a_champion_of_other_classes_is_not_compared_one_of_another_order_is(throne: Workbench) -> None:
    pack = pack_of(throne)
    names = ["a", *pack.classes[1:]]
    decide(throne, "other1", contender(throne, "foreign", 6, knows=False, pack=pack, classes=names))
    pointer, _ = decide(throne, "other2", contender(throne, "ours", 7, knows=True, pack=pack))
    assert not pointer.crowned
    assert pointer.reason == (
        "It was not compared with the champion, which keeps its title: the champion knows other classes."
    )
    for path in throne.layout.pointer_dir(ChampionPointer.kind, PHANTOM).rglob("*.json"):
        path.unlink()
    turned = contender(throne, "turned", 8, knows=True, pack=pack, classes=pack.classes[::-1])
    decide(throne, "other3", turned)
    _, record = decide(throne, "other4", contender(throne, "chances", 9, knows=False, pack=pack))
    assert record["comparison"]["champion"] == 1.0  # type: ignore[index]


@pytest.mark.parametrize("kept", ["same content", "other record", "nothing"])
def test_a_champion_is_compared_as_long_as_something_says_what_it_was_trained_on(
    throne: Workbench, kept: str
) -> None:
    pack, name = pack_of(throne), kept.replace(" ", "-")
    content = pack.content_hash if kept == "same content" else f"as before, {kept}"
    copies = [
        write_pointer(throne.layout, pack.model_copy(update={"content_hash": content}), update_latest=False)
        for _ in range(2 if kept == "other record" else 1)
    ]
    champion = contender(throne, f"old-{name}", 41, knows=False, pack=copies[0])
    recipe = write_pointer(
        throne.layout, champion[0].model_copy(update={"recipe": "4" * 64}), update_latest=False
    )
    decide(throne, f"gone1-{name}", (recipe, champion[1]))
    throne.layout.absolute(str(copies[0].pointer_path)).unlink()
    pointer, record = decide(
        throne, f"gone2-{name}", contender(throne, f"young-{name}", 42, knows=True, pack=pack)
    )
    for other in copies[1:]:
        throne.layout.absolute(str(other.pointer_path)).unlink()
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
    throne: Workbench, lost: str
) -> None:
    pack = pack_of(throne)
    champion, _ = first = contender(throne, f"copied-{lost}", 43, knows=True, pack=pack)
    decide(throne, f"copy1-{lost}", first)
    file = throne.layout.absolute(champion.checkpoint)
    if lost == "deleted":
        file.unlink()
    else:
        file.write_bytes(b"other weights")
    young = contender(throne, f"after-{lost}", 44, knows=False, pack=pack)
    pointer, record = decide(throne, f"copy2-{lost}", young)
    assert not pointer.crowned
    assert record["comparison"]["champion"] == 1.0  # type: ignore[index]
    (throne.layout.root / "models" / PHANTOM / "champion.pth").unlink()
    pointer, record = decide(throne, f"copy3-{lost}", young)
    assert (pointer.crowned, record["comparison"]) == (True, None)
    assert f"its checkpoint {champion.checkpoint} is gone or was changed" in pointer.reason


def test_the_successor_of_a_lost_champion_is_not_called_the_first(throne: Workbench) -> None:
    pack = pack_of(throne)
    champion, _ = first = contender(throne, "lost", 45, knows=True, pack=pack)
    decide(throne, "lost1", first)
    throne.layout.absolute(str(champion.pointer_path)).unlink()
    pointer, record = decide(throne, "lost2", contender(throne, "heir", 46, knows=False, pack=pack))
    assert (pointer.crowned, record["comparison"]) == (True, None)
    assert pointer.reason == (
        f"There was a champion, but its checkpoint {champion.pointer_path} is gone or was changed, so that nothing could "
        "be compared."
    )


def test_out_of_fold_predictions_decide_where_both_trainings_have_folds(throne: Workbench) -> None:
    pack = pack_of(throne)
    first, second = (
        contender(throne, f"fold-{name}", seed, knows=True, pack=pack, wrong_on=wrong)
        for name, seed, wrong in (("a", 31, None), ("b", 32, "validation"))
    )
    pairs = []
    for (checkpoint, evaluation), recipe, right in ((first, "1" * 64, False), (second, "2" * 64, True)):
        stored = write_pointer(
            throne.layout, checkpoint.model_copy(update={"recipe": recipe}), update_latest=False
        )
        pairs.append((stored, evaluation))
        cross_validated(throne, pack, recipe, right=right)
    decide(throne, "fold1", pairs[0])
    pointer, record = decide(throne, "fold2", pairs[1])
    assert pointer.crowned, "by its folds it is better, whatever the validation images say"
    comparison = record["comparison"]
    assert (comparison["basis"], comparison["challenger"]) == ("out_of_fold", 1.0)  # type: ignore[index]
    samples = read_samples(throne.layout.absolute(pack.samples))
    assert comparison["images"] == ((samples["split"] == "train") & (samples["row"] >= 0)).sum()  # type: ignore[index]
