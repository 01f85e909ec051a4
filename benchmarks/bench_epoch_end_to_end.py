"""One epoch of the whole graph, reports included, against the same work done the classic way: wall time and memory.

    python benchmarks/bench_epoch_end_to_end.py --archive brain-tumor-classification-mri.zip [--size 224] [--rounds 1]

Ours is `brainmri pipeline` with one epoch from scratch: fetch, leak-free split, pack, validation and leak report, training,
evaluation with galleries, Grad-CAM and report, under Dagster. The classic side does less and writes no reports: unzip, copy
a random split into class folders, resize with Pillow to files, check every file, train one epoch (ImageFolder, 2 workers,
fp32, NCHW), score validation and test. Each runs in a process of its own; memory is the sum of the proportional set sizes
of all its processes, sampled once a second.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
import zipfile
from pathlib import Path

from PIL import Image

NAME = "brain-tumor-classification-mri"
DATASET = f"sartajbhuvaji/{NAME}"


def classic(archive: Path, folder: Path, size: int) -> None:
    """Do the work of the original stages one after the other, printing what each took."""
    clock = time.perf_counter()

    def lap(name: str) -> None:
        nonlocal clock
        print(f"{name} {time.perf_counter() - clock:.1f}", file=sys.stderr)
        clock = time.perf_counter()

    with zipfile.ZipFile(archive) as source:
        source.extractall(folder / "raw")
    lap("unzip")
    copy_split(folder)
    lap("split")
    for file in sorted((folder / "split").rglob("*.jpg")):
        target = folder / "resized" / file.relative_to(folder / "split")
        target.parent.mkdir(parents=True, exist_ok=True)
        with Image.open(file) as image:
            image.convert("RGB").resize((size, size), Image.Resampling.BILINEAR).save(
                target, "JPEG", quality=95
            )
    lap("resize")
    check_files(folder / "resized", size)
    lap("validate")
    from classic import Classic

    recipe = Classic(
        folder / "resized/train", folder / "resized/val", size=size, batch_size=32, epochs=1, seed=42
    )
    recipe.epoch()
    scores = {"val": recipe.macro_f1()}
    lap("train")
    held_out = Classic(
        folder / "resized/train", folder / "resized/test", size=size, batch_size=32, epochs=1, seed=42
    )
    held_out.model = recipe.model
    scores["test"] = held_out.macro_f1()
    lap("evaluate")
    (folder / "summary.json").write_text(json.dumps(scores))


def copy_split(folder: Path) -> None:
    """Pool the class folders and copy 60% of each class to train, 15% to val and 25% to test, at random."""
    draw = random.Random(42)
    classes: dict[str, list[Path]] = {}
    for file in sorted((folder / "raw").rglob("*.jpg")):
        classes.setdefault(file.parent.name, []).append(file)
    for name, files in classes.items():
        draw.shuffle(files)
        first, second = round(0.6 * len(files)), round(0.75 * len(files))
        for side, part in (("train", files[:first]), ("val", files[first:second]), ("test", files[second:])):
            target = folder / "split" / side / name
            target.mkdir(parents=True)
            for number, file in enumerate(part):
                shutil.copy2(file, target / f"{number:05d}.jpg")


def check_files(folder: Path, size: int) -> None:
    import numpy as np

    for file in sorted(folder.rglob("*.jpg")):
        with Image.open(file) as image:
            if image.size != (size, size) or np.asarray(image.convert("L")).std() < 3:
                print(f"suspicious: {file.name}", file=sys.stderr)


def memory_mib(group: int) -> float:
    """Return the proportional set size of all processes of a process group."""
    total = 0
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        try:
            if os.getpgid(int(entry.name)) == group:
                text = (entry / "smaps_rollup").read_text()
                total += int(text.split("\nPss:")[1].split()[0])
        except (OSError, IndexError):
            continue
    return total / 1024


def run(command: list[str], env: dict[str, str]) -> tuple[float, float]:
    """Run a command in a process group of its own; return seconds and peak memory in MiB."""
    start, peak = time.perf_counter(), 0.0
    with tempfile.TemporaryFile("w+") as output:
        process = subprocess.Popen(command, env=env, stdout=output, stderr=output, start_new_session=True)
        try:
            while process.poll() is None:
                peak = max(peak, memory_mib(process.pid))
                time.sleep(1)
        finally:
            if process.returncode is None:  # interrupted: leave no process behind
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
        seconds = time.perf_counter() - start
        print(f"{command[2]} {command[3]}: {seconds:.1f} s, {peak:.0f} MiB", file=sys.stderr)
        if process.returncode:
            output.seek(0)
            sys.exit(f"{' '.join(command)} failed with {process.returncode}:\n{output.read()[-3000:]}")
    return seconds, peak


def ours(folder: str, archive: Path, size: int) -> tuple[float, float]:
    settings = {
        "resize.size": size,
        "train.data.image_size": size,
        "train.model.pretrained": "false",
        "train.loop.epochs": 1,
    }
    overrides = [f"--override={key}={value}" for key, value in settings.items()]
    command = [
        sys.executable,
        "-m",
        "brainmri_dagster.cli",
        "pipeline",
        "--dataset",
        DATASET,
        "--archive",
        str(archive),
    ]
    return run(
        [*command, *overrides], {**os.environ, "BRAINMRI_HOME": folder, "DAGSTER_HOME": f"{folder}/.dagster"}
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--archive", type=Path, help="the zip; default: in the folder BRAINMRI_ARCHIVES names"
    )
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--classic-in", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("terminated"))
    archive = (options.archive or Path(os.environ.get("BRAINMRI_ARCHIVES", ".")) / f"{NAME}.zip").resolve()
    if not archive.is_file():
        parser.error(f"{archive} is missing; give --archive or set BRAINMRI_ARCHIVES")
    if options.classic_in is not None:
        classic(archive, options.classic_in, options.size)
        return
    found: dict[str, list[tuple[float, float]]] = {"this project": [], "classic": []}
    for _ in range(options.rounds):
        with tempfile.TemporaryDirectory() as folder:
            again = [sys.executable, __file__, "--archive", str(archive), "--size", str(options.size)]
            found["classic"].append(run([*again, "--classic-in", folder], dict(os.environ)))
        with tempfile.TemporaryDirectory() as folder:
            found["this project"].append(ours(folder, archive, options.size))
    print(f"one epoch end to end, resnet18 at {options.size} px, {options.rounds} round(s)")
    for name, values in found.items():
        seconds, peak = (statistics.median(part) for part in zip(*values, strict=True))
        print(f"{name:14} {seconds:8.1f} s {peak:8.0f} MiB")
    pairs = list(zip(found["classic"], found["this project"], strict=True))
    print(f"times faster       {statistics.median(there[0] / here[0] for there, here in pairs):.2f}")
    print(f"share of memory    {statistics.median(here[1] / there[1] for there, here in pairs):.2f}")


if __name__ == "__main__":
    main()
