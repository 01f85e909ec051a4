"""Images per second of training: the project's loop against the classic recipe (ImageFolder, PIL, 2 workers, fp32, NCHW).

    BRAINMRI_ARCHIVES=FOLDER python benchmarks/bench_train_classic.py --root ROOT [--size 224] [--batches 4] [--rounds 3]

Both sides train resnet18 from scratch on the same real images with rotation, flip, brightness and contrast. The first
epoch of each is not counted; afterwards they take turns, epoch by epoch. The classic side reads files already resized.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from classic import Classic, processor_seconds, write_folders
from real_pack import add_options, make_job, real_pack

from brainmri_core.config import load_config
from brainmri_core.images.pack import open_pack
from brainmri_core.learning.batches import resident
from brainmri_core.learning.checkpoint import Preprocessing
from brainmri_core.learning.device import choose_device, choose_precision, seed_everything
from brainmri_core.learning.loop import Reporting, run_epochs, validate_weights
from brainmri_core.learning.models import build_model
from brainmri_core.learning.state import Data, Loop, new_state
from brainmri_core.project.sample_table import read_samples


def measure(options: argparse.Namespace) -> None:
    job = make_job(options.root, "classic")
    pack = real_pack(options.root, options.size)
    table = read_samples(
        job.layout.absolute(pack.samples), {"row": "int64", "class_index": "int64", "split": "str"}
    )
    table = table[(table["split"] == "train") & (table["row"] >= 0)]
    images = options.batches * options.batch
    chosen = (
        table.groupby("class_index").sample(images // len(pack.classes), random_state=0).sort_values("row")
    )
    labels = np.zeros(pack.n_images, np.int64)
    labels[table["row"]] = table["class_index"]
    rows, pixels = chosen["row"].to_numpy(np.int64).copy(), open_pack(job.layout, pack)

    config = load_config(
        overrides=[f"train.loop.epochs={options.rounds + 1}", f"train.data.batch_size={options.batch}"]
    ).train
    device = choose_device(load_config().env)
    precision = choose_precision(options.precision, True, device)
    seed_everything(0, load_config().env)
    plain = Preprocessing(
        pack_size=pack.size,
        image_size=pack.size,
        channels=1,
        colour=False,
        fit=pack.fit,
        mean=[0.2],
        std=[0.2],
    )
    whole = resident(pixels, np.arange(len(pixels)), pack.size)
    data = Data(whole, torch.from_numpy(labels), rows, rows[: options.batch], len(pack.classes))
    loop = Loop(config, data, plain, device, precision, 0, None)
    model = build_model("resnet18", num_classes=len(pack.classes), in_channels=1)
    state = new_state(loop, model.to(device, memory_format=torch.channels_last))  # type: ignore[call-overload]
    took: dict[str, list[float]] = {"ours": [], "classic": []}
    with tempfile.TemporaryDirectory() as folder:
        write_folders(pixels, rows, labels, Path(folder))
        classic = Classic(
            Path(folder),
            Path(folder),
            size=options.size,
            batch_size=options.batch,
            epochs=options.rounds + 1,
            seed=0,
        )

        clock = processor_seconds if options.processor_time else time.perf_counter
        ended = [clock()]

        def between(record: dict[str, Any]) -> None:
            whole = clock() - ended[0]
            start = clock()
            seen = classic.epoch()
            middle = clock()
            validate_weights(loop, state.model, state.weights())
            validation = clock() - middle
            if record["epoch"] > 1:
                processor = images / (whole - validation)
                took["ours"].append(processor if options.processor_time else record["images_per_s"])
                took["classic"].append(seen / (middle - start))
            ended[0] = clock()

        run_epochs(loop, state, Reporting(save=lambda: None, epoch=between, smaller=lambda parts: None))
    ratios = [ours / other for ours, other in zip(took["ours"], took["classic"], strict=True)]
    print(
        f"resnet18, {options.size} px, batch {options.batch}, {device}, {torch.get_num_threads()} threads; "
        f"{'processor' if options.processor_time else 'wall'} time, median of {options.rounds} interleaved rounds of {images} images"
    )
    print(f"classic recipe, fp32 NCHW          {statistics.median(took['classic']):8.1f} images/s")
    print(f"this project, {precision} channels-last   {statistics.median(took['ours']):8.1f} images/s")
    print(
        f"ratio                              {statistics.median(ratios):8.2f} ({min(ratios):.2f} to {max(ratios):.2f})"
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add_options(parser)
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--batches", type=int, default=4, help="steps per round")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--precision", choices=["auto", "fp32", "bf16", "fp16"], default="auto")
    parser.add_argument(
        "--processor-time",
        action="store_true",
        help="count processor seconds of one thread, for a busy machine",
    )
    options = parser.parse_args()
    if options.processor_time:
        torch.set_num_threads(1)
    measure(options)


if __name__ == "__main__":
    main()
