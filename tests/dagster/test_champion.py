from __future__ import annotations

import numpy as np
import pytest
import torch

from brainmri_core.champion import crown
from brainmri_core.images.pack import open_pack
from brainmri_core.learning.checkpoint import CheckpointMeta, Preprocessing, save_checkpoint
from brainmri_core.learning.inference import predict
from brainmri_core.learning.models import build_model
from brainmri_core.pointers import (
    ChampionPointer,
    CheckpointPointer,
    EvaluationPointer,
    PackPointer,
    latest_pointer,
    write_pointer,
)
from brainmri_core.reporting.predictions import prediction_table, read_predictions
from brainmri_core.samples import read_samples, write_samples
from brainmri_core.storage import read_json, sha256_file
from tests.dagster.conftest import PHANTOM, Workbench

MODEL = "mobilenet_v3_small"


def pack_of(bench: Workbench) -> PackPointer:
    pack = bench.pointer("resized_images")
    assert isinstance(pack, PackPointer)
    return pack


def contender(
    bench: Workbench,
    run_id: str,
    seed: int,
    *,
    knows: bool,
    pack: PackPointer,
    classes: list[str] | None = None,
) -> tuple[CheckpointPointer, EvaluationPointer]:
    """Store an untrained model's checkpoint and its evaluation; where it `knows`, all its calls are right."""
    layout, names = bench.layout, classes or pack.classes
    torch.manual_seed(seed)
    model = build_model(MODEL, num_classes=len(names), in_channels=1).eval()
    how = Preprocessing(
        pack_size=pack.size, image_size=32, channels=1, colour=False, fit=pack.fit, mean=[0.2], std=[0.2]
    )
    meta = CheckpointMeta(
        model_name=MODEL,
        classes=names,
        preprocessing=how,
        train_config={},
        env_config={},
        data_hash=pack.content_hash,
        pack_pointer=pack.pointer_path,
        dataset=PHANTOM,
        run_id=run_id,
        epoch=1,
        val_macro_f1=0.5,
    )
    folder = layout.root / "models" / run_id
    folder.mkdir(parents=True)
    save_checkpoint(folder / "best.pth", model.state_dict(), meta)
    checkpoint = write_pointer(
        layout,
        CheckpointPointer(
            dataset=PHANTOM,
            run_id=run_id,
            content_hash=run_id,
            written_at_utc="2026-01-01T00:00:00Z",
            checkpoint=f"models/{run_id}/best.pth",
            checkpoint_sha256=sha256_file(folder / "best.pth"),
            history=f"models/{run_id}/history.csv",
            curves=None,
            model_name=MODEL,
            best_epoch=1,
            epochs_run=1,
            val_macro_f1=0.5,
            pack_pointer=str(pack.pointer_path),
        ),
    )
    samples = read_samples(layout.absolute(pack.samples))
    test = samples[samples["split"] == "test"].reset_index(drop=True)
    if knows:
        logits = np.eye(len(names), dtype=np.float32)[test["class_index"].to_numpy()] * 9
    else:
        rows = test["row"].to_numpy(np.int64)
        device = torch.device("cpu")
        logits = predict(model, open_pack(layout, pack), rows, how, device=device, batch_size=32).logits
    table = prediction_table(test, logits, names, np.full(len(test), np.nan))
    write_samples(folder / "predictions.parquet", table)
    evaluation = EvaluationPointer(
        dataset=PHANTOM,
        run_id=run_id,
        content_hash=f"{run_id}-evaluation",
        written_at_utc="2026-01-01T00:00:00Z",
        folder=f"models/{run_id}",
        metrics=f"models/{run_id}/metrics.json",
        predictions=f"models/{run_id}/predictions.parquet",
        report=f"models/{run_id}/report.html",
        headline={},
        checkpoint_pointer=checkpoint.pointer_path,
    )
    return checkpoint, evaluation


def decide(
    bench: Workbench, run_id: str, pair: tuple[CheckpointPointer, EvaluationPointer]
) -> tuple[ChampionPointer, dict[str, object]]:
    config = bench.config("evaluate.data.seed=1", "evaluate.bootstrap_resamples=300").evaluate
    pointer = write_pointer(bench.layout, crown(config, "models", *pair, bench.job(run_id)))
    return pointer, read_json(bench.layout.absolute(pointer.decision))


@pytest.fixture
def throne(packed: Workbench) -> Workbench:
    """No champion yet."""
    for path in packed.layout.pointer_dir(ChampionPointer.kind, PHANTOM).rglob("*.json"):
        path.unlink()
    return packed


def test_a_champion_falls_only_to_one_that_is_better_beyond_noise(throne: Workbench) -> None:
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


def test_images_that_the_champion_has_learnt_do_not_count(throne: Workbench) -> None:
    old = pack_of(throne)
    decide(throne, "learnt1", contender(throne, "old", 4, knows=False, pack=old))
    samples = read_samples(throne.layout.absolute(old.samples))
    groups = sorted(samples.loc[samples["split"] != "excluded", "group"].unique())
    moved = samples["group"].isin(groups[::2])
    samples["split"] = np.where(samples["split"] == "excluded", "excluded", np.where(moved, "test", "train"))
    table = throne.layout.root / "data" / "resplit.parquet"
    write_samples(table, samples)
    new = write_pointer(
        throne.layout,
        old.model_copy(update={"samples": throne.layout.relative(table), "content_hash": "resplit"}),
        update_latest=False,
    )
    challenger = contender(throne, "new", 5, knows=True, pack=new)
    _, record = decide(throne, "learnt2", challenger)
    before = read_samples(throne.layout.absolute(old.samples))
    learnt = set(before.loc[before["split"] == "train", "pixel_sha256"])
    tainted = set(samples.loc[samples["pixel_sha256"].isin(learnt), "group"])
    tested, _ = read_predictions(throne.layout.absolute(challenger[1].predictions))
    fair = int((~tested["group"].isin(tainted)).sum())
    assert 0 < fair < len(tested)
    assert record["comparison"]["images"] == fair  # type: ignore[index]


def test_a_champion_of_other_classes_is_not_compared(throne: Workbench) -> None:
    pack = pack_of(throne)
    names = ["a", *pack.classes[1:]]
    decide(throne, "other1", contender(throne, "foreign", 6, knows=False, pack=pack, classes=names))
    pointer, _ = decide(throne, "other2", contender(throne, "ours", 7, knows=True, pack=pack))
    assert not pointer.crowned
    assert pointer.reason == (
        "It was not compared with the champion: the champion knows other classes or takes images of another size."
    )
