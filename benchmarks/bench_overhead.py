"""The overhead of Dagster: the whole graph by ``brainmri pipeline`` against the six core functions called directly.

    python benchmarks/bench_overhead.py --rounds 3

Both sides start a fresh process on a fresh project, with the same small configuration of the built-in data set, and leave
the same six pointers. What differs is Dagster: its import, its records, plan, manifest and logs. Its instance is made once,
in the first round, which does not count.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
DATASET = "brainmri/phantom"
CONFIG = """\
fetch: {phantom: {subjects_per_class: 5, slices_per_subject: 4, copies_per_kind: 2, label_conflicts: 1}}
resize: {size: 64}
train:
  data: {image_size: 64, batch_size: 16}
  model: {name: resnet18, pretrained: false}
  loop: {epochs: 1}
evaluate: {bootstrap_resamples: 100}
"""


def direct() -> None:
    """Call the six functions one after the other."""
    from brainmri_core.config import load_config
    from brainmri_core.config.data import FetchConfig, ResizeConfig, SplitConfig, ValidateConfig
    from brainmri_core.config.evaluation import EvaluateConfig
    from brainmri_core.config.training import TrainConfig
    from brainmri_core.evaluate import evaluate
    from brainmri_core.fetch import fetch
    from brainmri_core.project.catalogue import find_entry, load_catalogue
    from brainmri_core.project.job import Job
    from brainmri_core.project.layout import Layout, resolve_root
    from brainmri_core.project.logs import StageLog
    from brainmri_core.project.pointer_store import write_pointer
    from brainmri_core.resize import resize
    from brainmri_core.split import split
    from brainmri_core.train import train
    from brainmri_core.validate import validate

    config, layout = load_config(), Layout(root=resolve_root())
    entry = find_entry(load_catalogue(), DATASET)
    job = Job(
        layout=layout, run_id="direct", entry=entry, log=StageLog("direct", "direct", DATASET, [], "INFO")
    )
    blocks = {
        name: config.stage(name) for name in ("fetch", "split", "resize", "validate", "train", "evaluate")
    }
    assert isinstance(blocks["fetch"], FetchConfig)
    assert isinstance(blocks["split"], SplitConfig)
    assert isinstance(blocks["resize"], ResizeConfig)
    assert isinstance(blocks["validate"], ValidateConfig)
    assert isinstance(blocks["train"], TrainConfig)
    assert isinstance(blocks["evaluate"], EvaluateConfig)
    fetched = write_pointer(layout, fetch(blocks["fetch"], job))
    mapping = write_pointer(layout, split(blocks["split"], fetched, job))
    pack = write_pointer(layout, resize(blocks["resize"], mapping, job))
    write_pointer(layout, validate(blocks["validate"], pack, job))
    checkpoint = write_pointer(layout, train(blocks["train"], pack, job))
    write_pointer(layout, evaluate(blocks["evaluate"], checkpoint, pack, job))


def one_round(command: list[str], folder: Path, home: Path) -> float:
    (folder / "configs").mkdir(parents=True)
    (folder / "configs" / "pipeline.yaml").write_text(CONFIG)
    env = {
        **os.environ,
        "DAGSTER_HOME": str(home),
        "BRAINMRI_HOME": str(folder / "project"),
        "BRAINMRI_CONFIG": str(folder / "configs" / "pipeline.yaml"),
        "PYTHONPATH": str(ROOT),
    }
    started = time.perf_counter()
    subprocess.run(command, cwd=folder, env=env, check=True, capture_output=True)
    return time.perf_counter() - started


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--direct", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.direct:
        return direct()
    sides = {
        "six core functions": [sys.executable, str(Path(__file__).resolve()), "--direct"],
        "brainmri pipeline": [sys.executable, "-m", "brainmri_dagster.cli", "pipeline", "--dataset", DATASET],
    }
    found: dict[str, list[float]] = {name: [] for name in sides}
    with tempfile.TemporaryDirectory() as name:
        for place in range(options.rounds + 1):
            for side, command in sides.items():
                taken = one_round(
                    command, Path(name) / f"{place}-{side.replace(' ', '-')}", Path(name) / "home"
                )
                if place:  # the first round fills the page cache
                    found[side].append(taken)
    for side, taken_s in found.items():
        print(
            f"{side:<20} {statistics.median(taken_s):6.2f} s  (of {min(taken_s):.2f} to {max(taken_s):.2f})"
        )
    core, graph = found.values()
    extra = [b - a for a, b in zip(core, graph, strict=True)]
    print(
        f"overhead of the graph {statistics.median(graph) - statistics.median(core):.2f} s "
        f"(round by round {min(extra):.2f} to {max(extra):.2f}), ratio "
        f"{statistics.median(graph) / statistics.median(core):.2f}"
    )
    return None


if __name__ == "__main__":
    main()
