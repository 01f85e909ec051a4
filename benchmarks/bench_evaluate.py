"""Evaluation of the real test split: its forward pass against a bare one, and the rest against a bare pass of 2,000 images.

    python benchmarks/bench_evaluate.py --root FOLDER [--rounds 3] [--precision fp32] [--profile]

Each round runs a bare forward pass of resnet18 at 224 px over random numbers, then a whole evaluation: two kinds of
maps, galleries, 2,000 resamples, baselines, subsets and the report. The weights are random: they change no time. The
archive is looked for in the folder that BRAINMRI_ARCHIVES names.
"""

from __future__ import annotations

import argparse
import cProfile
import pstats
import statistics
import tempfile
import time
from pathlib import Path

import torch
from real_pack import add_options, keep_checkpoint, make_job, real_pack
from torch import nn

from brainmri_core.config import with_seed
from brainmri_core.config.evaluation import EvaluateConfig
from brainmri_core.config.training import TrainConfig
from brainmri_core.evaluate import evaluate
from brainmri_core.learning.checkpoint import CheckpointMeta, Preprocessing, load_model, save_checkpoint
from brainmri_core.learning.device import choose_device, choose_precision
from brainmri_core.learning.inference import forward
from brainmri_core.learning.models import build_model
from brainmri_core.project.logs import Record
from brainmri_core.project.pointers import CheckpointPointer, PackPointer
from brainmri_core.system.checksums import sha256_file
from brainmri_core.system.clock import timestamp, utc_now

SIZE, BATCH, IMAGES = 224, 32, 2000
STEPS = ("forward_seconds", "metrics_seconds", "report_seconds")


def untrained(root: Path, pack: PackPointer) -> CheckpointPointer:
    """Store a resnet18 with random weights as if it had been trained on the pack."""
    job = make_job(root, "bench-checkpoint", [])
    config = with_seed(TrainConfig(), 42)
    channels = pack.channels
    meta = CheckpointMeta(
        model_name="resnet18",
        classes=pack.classes,
        preprocessing=Preprocessing(
            pack_size=pack.size, image_size=SIZE, channels=channels, colour=channels == 3, fit=pack.fit,
            mean=[0.2] * channels, std=[0.2] * channels,
        ),
        train_config=config.model_dump(mode="json"),
        env_config={},
        data_hash=pack.content_hash,
        pack_pointer=pack.pointer_path,
        dataset=job.dataset,
        run_id=job.run_id,
        epoch=1,
        val_macro_f1=0.25,
    )  # fmt: skip
    path = job.layout.checkpoint_dir("models", job.dataset, job.run_id) / "best.pth"
    torch.manual_seed(0)
    model = build_model("resnet18", num_classes=len(pack.classes), in_channels=channels)
    save_checkpoint(path, model.state_dict(), meta)
    stored = job.layout.relative(path)
    return keep_checkpoint(
        job,
        CheckpointPointer(
            dataset=job.dataset, run_id=job.run_id, content_hash=sha256_file(path), written_at_utc=timestamp(utc_now()),
            checkpoint=stored, checkpoint_sha256=sha256_file(path), history=stored, curves=None, model_name="resnet18",
            best_epoch=1, epochs_run=1, val_macro_f1=0.25, pack_pointer=str(pack.pointer_path),
        ),
    )  # fmt: skip


def bare_seconds(model: nn.Module, batch: torch.Tensor, precision: str, images: int) -> float:
    start = time.perf_counter()
    for _ in range(-(-images // BATCH)):
        forward(model, batch, precision)  # type: ignore[arg-type]
    return time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add_options(parser)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--images", type=int, default=640, help="images of the bare pass in each round")
    parser.add_argument("--precision", default="fp32", choices=("auto", "fp32", "bf16", "fp16"))
    parser.add_argument(
        "--profile", action="store_true", help="print where one more evaluation spends its time"
    )
    options = parser.parse_args()
    pack = real_pack(options.root, SIZE)
    checkpoint = untrained(options.root, pack)
    records: list[Record] = []
    config = with_seed(EvaluateConfig(precision=options.precision), 42)
    assert isinstance(config, EvaluateConfig)

    def once(name: str) -> None:
        job = make_job(options.root, f"bench-evaluate-{int(time.time() * 1000)}-{name}", [records.append])
        with tempfile.TemporaryDirectory(dir=job.layout.root) as folder:
            inside = config.model_copy(update={"io": config.io.model_copy(update={"eval_out": folder})})
            evaluate(inside, checkpoint, pack, job)

    job = make_job(options.root, "bench", [])
    device = choose_device(job.env)
    precision = choose_precision(options.precision, True, device)
    model, meta = load_model(job.layout.absolute(checkpoint.checkpoint), device)
    batch = torch.randn(BATCH, meta.preprocessing.channels, SIZE, SIZE, device=device)
    batch = batch.contiguous(memory_format=torch.channels_last)
    bare_seconds(model, batch, precision, BATCH * 2)
    bare: list[float] = []
    for number in range(options.rounds):
        bare.append(bare_seconds(model, batch, precision, options.images) / options.images)
        once(str(number))
    done = [record for record in records if record["event"] == "evaluated"]
    each = statistics.median(bare)
    steps = {name: statistics.median(record[name] for record in done) for name in STEPS}
    images = done[0]["images"]
    ratio = statistics.median(record[STEPS[0]] / images / one for record, one in zip(done, bare, strict=True))
    rest = [
        sum(record[name] for name in STEPS[1:]) / (one * IMAGES)
        for record, one in zip(done, bare, strict=True)
    ]
    print(f"resnet18 at {SIZE} px, {precision} on {device}, median of {options.rounds} interleaved rounds")
    print(f"{'bare forward pass':34}{1 / each:10.1f} images/s")
    print(
        f"{'forward pass of the evaluation':34}{images / steps[STEPS[0]]:10.1f} images/s, {ratio:.2f} of the bare time"
    )
    print(f"{'  of':34}{images:10d} test and validation images")
    print(f"{'metrics':34}{steps[STEPS[1]]:10.2f} s")
    print(f"{'maps, galleries, report':34}{steps[STEPS[2]]:10.2f} s")
    print(f"{f'both / bare pass of {IMAGES} images':34}{statistics.median(rest):10.2f}")
    if options.profile:
        profile = cProfile.Profile()
        profile.runcall(once, "profiled")
        pstats.Stats(profile).sort_stats("cumtime").print_stats(45)


if __name__ == "__main__":
    main()
