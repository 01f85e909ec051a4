from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from brainmri_core.arrays import U8
from brainmri_core.errors import IntegrityError
from brainmri_core.images.pack import check_pack, open_pack, write_pack
from brainmri_core.learning.batches import gather, resident
from brainmri_core.project.layout import Layout
from brainmri_core.project.pointers import PackPointer
from brainmri_core.system.checksums import sha256_file
from tests.counts import rest

MIB, SIDE = 1 << 20, 300


def images(count: int, channels: int) -> U8:
    rng = np.random.default_rng(count)
    shape = (count, SIDE, SIDE) if channels == 1 else (count, SIDE, SIDE, channels)
    return rng.integers(0, 256, shape, np.uint8)


def written(folder: Path, pixels: U8, *, shard_mib: int, more: int = 0) -> tuple[Layout, PackPointer]:
    """Write a pack, of which `more` images were expected, and return its pointer."""
    channels = 1 if pixels.ndim == 3 else 3
    folder.mkdir()
    digest = write_pack(
        folder / "pack.npy", iter(pixels), most=len(pixels) + more, size=SIDE, channels=channels,
        shard_bytes=shard_mib * MIB,
    )  # fmt: skip
    pointer = PackPointer.model_construct(
        pack="pack.npy", pack_sha256=digest, n_images=len(pixels), size=SIDE, channels=channels,
        shard_bytes=shard_mib * MIB,
    )  # fmt: skip
    return Layout(root=folder), pointer


@pytest.mark.parametrize(
    ("count", "channels", "more", "files"),
    [(30, 1, 0, 3), *rest((30, 1, 5, 3), (11, 1, 0, 1), (12, 1, 0, 2), (16, 3, 0, 5), (16, 3, 2, 5))],
)
def test_a_pack_of_several_files_is_read_as_one(
    tmp_path: Path, count: int, channels: int, more: int, files: int
) -> None:
    pixels = images(count, channels)
    layout, pointer = written(tmp_path / "cut", pixels, shard_mib=1, more=more)
    whole, _ = written(tmp_path / "whole", pixels, shard_mib=0, more=more)
    names = ["pack.npy", *(f"pack.npy.{number}" for number in range(1, files))]
    assert sorted(path.name for path in layout.root.iterdir()) == names
    assert b"".join((layout.root / name).read_bytes() for name in names) == (
        (whole.root / "pack.npy").read_bytes()
    )
    assert pointer.pack_sha256 == sha256_file(whole.root / "pack.npy")
    check_pack(layout, pointer)

    pack, rows = open_pack(layout, pointer), np.array([count - 1, 0, 3])
    assert (pack.dtype, pack.shape, pack.flags.writeable) == (np.uint8, pixels.shape, False)
    assert np.array_equal(pack, pixels) and np.array_equal(pack[rows], pixels[rows])
    assert torch.equal(gather(pack, rows), gather(pixels, rows))
    tensor = resident(pack, np.arange(count), SIDE)
    assert torch.equal(tensor, resident(pixels, np.arange(count), SIDE))
    tensor[:] = 0
    check_pack(layout, pointer)


@pytest.mark.parametrize(
    ("harm", "words"),
    [
        (lambda folder: (folder / "pack.npy.1").unlink(), r"pack\.npy\.1 is missing"),
        *rest(
            (lambda folder: (folder / "pack.npy.2").unlink(), r"pack\.npy\.2 is missing"),
            (lambda folder: (folder / "pack.npy.1").write_bytes(b""), "cannot be opened"),
            (lambda folder: (folder / "pack.npy.1").open("ab").write(b"0"), "cannot be opened"),
            (lambda folder: (folder / "pack.npy").write_bytes(bytes(MIB)), "its header"),
        ),
    ],
)
def test_a_damaged_file_of_a_pack_is_named(tmp_path: Path, harm, words: str) -> None:
    layout, pointer = written(tmp_path / "cut", images(30, 1), shard_mib=1)
    harm(layout.root)
    with pytest.raises(IntegrityError, match=words):
        open_pack(layout, pointer)
    with pytest.raises(IntegrityError):
        check_pack(layout, pointer)


def test_swapped_files_of_a_pack_are_noticed_by_its_hash(tmp_path: Path) -> None:
    layout, pointer = written(tmp_path / "cut", images(40, 1), shard_mib=1)
    first, second = (layout.root / f"pack.npy.{number}" for number in (1, 2))
    first.rename(layout.root / "aside")
    second.rename(first)
    (layout.root / "aside").rename(second)
    with pytest.raises(IntegrityError, match="was changed"):
        check_pack(layout, pointer)
