"""Images per second of prediction from files, against the bare forward pass, in one interleaved run.

    python benchmarks/bench_predict.py [--images 1000] [--size 224]

The files are 512 px JPEGs of the built-in generator's kind of content; the model is an untrained resnet18 in fp32, the
precision of evaluations. The bare pass runs the same batches of pixels that lie in memory already. `brainmri predict` adds:
reading, decoding and fitting in worker processes, calibration, the outlier score (not here: a bare checkpoint has none),
ordering and the lines of CSV. Memory is that of this process beyond what it held before the first image.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from brainmri_core.learning.checkpoint import CheckpointMeta, Preprocessing, save_checkpoint
from brainmri_core.learning.inference import predict_evenly
from brainmri_core.learning.models import build_model
from brainmri_core.predict import Classifier
from brainmri_dagster.commands.printing import render, with_overlays

DISTINCT = 50


def resident_mib() -> float:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * 4096 / 2**20


def write_files(folder: Path, count: int) -> list[str]:
    """Write `count` JPEGs of 512 px, smooth and noisy like MRI slices; after the first fifty they repeat."""
    rng = np.random.default_rng(0)
    y, x = np.mgrid[:512, :512] / 511 - 0.5
    files, encoded = [], []
    for number in range(count):
        path = folder / f"{number:05d}.jpg"
        if number < DISTINCT:
            head = np.clip(1.2 - 3 * np.hypot(x / 0.9, y + rng.uniform(-0.1, 0.1)), 0, 1) * 180
            Image.fromarray((head + rng.normal(0, 8, x.shape)).clip(0, 255).astype(np.uint8)).save(
                path, quality=85
            )
            encoded.append(path.read_bytes())
        else:
            path.write_bytes(encoded[number % DISTINCT])
        files.append(str(path))
    return files


def make_checkpoint(path: Path, size: int) -> None:
    model = build_model("resnet18", num_classes=4, in_channels=1)
    prepared = Preprocessing(
        pack_size=size, image_size=size, channels=1, colour=False, fit="letterbox", mean=[0.2], std=[0.2]
    )
    meta = CheckpointMeta(
        model_name="resnet18",
        classes=["glioma", "meningioma", "notumor", "pituitary"],
        preprocessing=prepared,
        train_config={},
        env_config={},
        data_hash="",
        pack_pointer=None,
        dataset="owner/benchmark",
        run_id="benchmark",
        epoch=0,
        val_macro_f1=0.0,
    )
    save_checkpoint(path, model.state_dict(), meta)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, default=1000)
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        make_checkpoint(folder / "x.pth", options.size)
        files = write_files(folder, options.images)
        measure(Classifier.load(folder / "x.pth"), files, options.rounds)


def measure(classifier: Classifier, files: list[str], rounds: int) -> None:
    pixels = np.stack([item.pixels for item in classifier.predict(files[:DISTINCT], maps=True)])
    rows = np.arange(len(files)) % len(pixels)
    most = before = resident_mib()

    def bare() -> None:
        predict_evenly(
            classifier.inference.model,
            pixels,
            rows,
            classifier.meta.preprocessing,
            device=classifier.inference.device,
            batch_size=classifier.inference.batch_size,
            precision=classifier.inference.precision,
            progress=False,
        )

    def from_files() -> None:
        nonlocal most
        stream = with_overlays(classifier.stream(files), None)
        for number, _ in enumerate(render(stream, classifier, "csv")):
            if number % 32 == 0:
                most = max(most, resident_mib())

    tasks: dict[str, Callable[[], None]] = {
        "bare forward pass (floor)": bare,
        "predict, files to CSV lines": from_files,
    }
    seconds: dict[str, list[float]] = {name: [] for name in tasks}
    for _ in range(rounds):
        for name, task in tasks.items():
            start = time.perf_counter()
            task()
            seconds[name].append(time.perf_counter() - start)
    floor = statistics.median(seconds["bare forward pass (floor)"])
    print(
        f"{len(files)} JPEGs of 512 px, {torch.get_num_threads()} threads, median of {rounds} interleaved rounds"
    )
    print(f"{'':32}{'images/s':>10}{'time / floor':>14}")
    for name, values in seconds.items():
        median = statistics.median(values)
        print(f"{name:32}{len(files) / median:10.1f}{median / floor:14.2f}")
    print(f"memory beyond the loaded model: {most - before:.0f} MiB")


if __name__ == "__main__":
    main()
