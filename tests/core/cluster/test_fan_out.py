from __future__ import annotations

import re
import signal
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from brainmri_core.cluster.workers import workers_of
from brainmri_core.config.data import FetchConfig, PhantomConfig, ResizeConfig, SplitConfig
from brainmri_core.copies import fingerprint_shards, search_shards
from brainmri_core.copies.fingerprint_shards import fingerprint_on
from brainmri_core.errors import IntegrityError
from brainmri_core.fetch import fetch
from brainmri_core.images import preparation_shards
from brainmri_core.project.job import Job
from brainmri_core.project.pointer_store import write_pointer
from brainmri_core.project.pointers import MappingPointer, PackPointer
from brainmri_core.resize import resize
from brainmri_core.split import split
from tests.core.split_case import picture
from tests.dask_case import Dask, dask

SMALL = PhantomConfig(subjects_per_class=4, slices_per_subject=3, copies_per_kind=1, label_conflicts=1)


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Dask]:
    with dask(tmp_path_factory.mktemp("dask"), "one", "other") as running:
        yield running


@pytest.fixture(autouse=True)
def _small_shards(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fingerprint_shards, "_MOST", 8)
    monkeypatch.setattr(search_shards, "_INDEXED", 30)
    monkeypatch.setattr(search_shards, "_LOOKED_UP", 16)
    monkeypatch.setattr(preparation_shards, "_MOST_BYTES", 8 * 64 * 64)


def files(job: Job, mapping: MappingPointer, pack: PackPointer) -> dict[str, bytes]:
    """Return what split and resize left, but for the split's record, which names the split before it."""
    folders = {
        name: job.layout.absolute(stored).parent
        for name, stored in (("split", mapping.samples), ("resize", pack.pack))
    }
    return {
        f"{name}/{path.name}": path.read_bytes()
        for name, folder in folders.items()
        for path in folder.iterdir()
        if path.name != "split.json"
    }


@pytest.mark.full
def test_unreadable_and_deep_images_are_told_as_by_processes_of_this_machine(
    job: Job, cluster: Dask, tmp_path: Path
) -> None:
    rng = np.random.default_rng(5)
    for number in range(20):
        picture(number).save(tmp_path / f"{number}.png")
    Image.fromarray(rng.integers(0, 4096, (40, 40), np.uint16)).save(tmp_path / "deep.png")
    Image.fromarray(rng.integers(0, 256, (40, 40, 3), np.uint8)).save(tmp_path / "colour.png")
    (tmp_path / "half.png").write_bytes((tmp_path / "3.png").read_bytes()[:300])
    (tmp_path / "text.jpg").write_bytes(b"no image")
    paths = sorted(path.name for path in tmp_path.iterdir() if path.is_file())
    here = fingerprint_on(None, tmp_path, paths)
    with workers_of(cluster.job(job, "r2")) as workers:
        there = fingerprint_on(workers, tmp_path, paths)
    assert len(here.failures) == 2
    for name, value in vars(here).items():
        other = getattr(there, name)
        same = np.array_equal(value, other) if isinstance(value, np.ndarray) else value == other
        assert same, name


@pytest.mark.full
def test_an_image_that_was_changed_after_the_split_is_named(job: Job, cluster: Dask) -> None:
    data = write_pointer(job.layout, fetch(FetchConfig(phantom=SMALL), job))
    away = cluster.job(job, "r2")
    mapping = write_pointer(job.layout, split(SplitConfig(seed=3, folds=2), data, away))
    changed = next(job.layout.absolute(data.dataset_root).rglob("*.jpg"))
    changed.chmod(0o644)
    changed.write_bytes(changed.read_bytes() + b"\0")
    with pytest.raises(IntegrityError, match=f"{re.escape(changed.name)} was changed after it was fetched"):
        resize(ResizeConfig(size=64), mapping, away)
    assert not list(job.layout.shards.iterdir())


@pytest.mark.e2e
def test_split_and_pack_are_the_same_to_the_byte_though_a_worker_is_killed(job: Job, cluster: Dask) -> None:
    data = write_pointer(job.layout, fetch(FetchConfig(phantom=SMALL), job))
    away = cluster.job(job, "r2")
    killing = cluster.kill_in_mid_work(job.layout.shards)
    found = []
    for run in (job, away):
        mapping = write_pointer(job.layout, split(SplitConfig(seed=3, folds=2), data, run))
        pack = resize(ResizeConfig(size=64), mapping, run)
        found.append((files(run, mapping, pack), pack.pack_sha256))
    killing.join()
    assert cluster.workers[0].wait() == -signal.SIGKILL
    (here, pack_here), (there, pack_there) = found
    assert {name: content == there.get(name) for name, content in here.items()} == dict.fromkeys(there, True)
    assert {"split/samples.parquet", "split/thumbs.npy", "resize/pack.npy"} < set(here)
    assert pack_here == pack_there
    copies = pd.read_parquet(job.layout.absolute(mapping.samples).with_name("copies.parquet"))
    assert not copies["exact"].all() and set(copies["orientation"]) == {"identity", "mirrored"}
    assert not list(job.layout.shards.iterdir())
    told = next(record for record in cluster.records if record["event"] == "connected to Dask")
    assert told["scheduler"] == cluster.address and told["dashboard"].startswith("http://127.0.0.1:")
