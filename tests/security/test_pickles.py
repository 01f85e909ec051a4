"""Files that would run a program when unpickled: refused by everything that loads weights, arrays or tables."""

from __future__ import annotations

import io
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from brainmri_core.classifier.record import ClassifierFile, read_classifier
from brainmri_core.errors import IntegrityError, ModelError
from brainmri_core.images.pack import open_pack
from brainmri_core.learning.checkpoint import load_checkpoint
from brainmri_core.learning.state import load_state
from brainmri_core.learning.weights import read_weights
from brainmri_core.project.layout import Layout
from brainmri_core.project.pointers import PackPointer
from brainmri_core.project.sample_table import read_samples
from tests.security.pickles_case import Exploit


def torch_file(content: object, **options: Any) -> bytes:
    buffer = io.BytesIO()
    torch.save(content, buffer, **options)
    return buffer.getvalue()


FORMATS: dict[str, Callable[[object], bytes]] = {
    "torch": torch_file,
    "old torch": lambda content: torch_file(content, _use_new_zipfile_serialization=False),
    "pickle": pickle.dumps,
    "pickle 0": lambda content: pickle.dumps(content, 0),
}


def weights(path: Path) -> object:
    return read_weights(path)


def state(path: Path) -> object:
    return load_state(path, None, {})  # type: ignore[arg-type]  # it has to be refused before the state is touched


LOADERS: dict[str, Callable[[Path], object]] = {
    "weights_file": weights,
    "checkpoint": load_checkpoint,
    "resume state": state,
}


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
@pytest.mark.parametrize("form", FORMATS)
@pytest.mark.parametrize("loader", LOADERS)
@pytest.mark.parametrize("suffix", ["pth", "safetensors"])
def test_program_in_a_weights_file_never_runs(tmp_path: Path, loader: str, form: str, suffix: str) -> None:
    target, path = tmp_path / "ran", tmp_path / f"evil.{suffix}"
    path.write_bytes(FORMATS[form]({"meta": {}, "identity": {}, "model": {"fc.weight": Exploit(target)}}))
    with pytest.raises(ModelError) as caught:
        LOADERS[loader](path)
    assert str(path) in str(caught.value) and str(caught.value).isprintable()
    assert not target.exists()


@pytest.mark.parametrize("form", FORMATS)
def test_the_exploit_works_where_unpickling_is_allowed(tmp_path: Path, form: str) -> None:
    data = FORMATS[form]({"model": Exploit(tmp_path / "ran")})
    if form.startswith("pickle"):
        pickle.loads(data)
    else:
        torch.load(io.BytesIO(data), weights_only=False)
    assert (tmp_path / "ran").exists()


def object_array(target: Path) -> np.ndarray[Any, Any]:
    return np.array([Exploit(target)], dtype=object)


def test_program_in_a_pack_never_runs(tmp_path: Path) -> None:
    target, path = tmp_path / "ran", tmp_path / "pack.npy"
    np.save(path, object_array(target), allow_pickle=True)
    pointer = PackPointer.model_construct(pack="pack.npy", n_images=1, size=1, channels=1)
    with pytest.raises(IntegrityError, match="cannot be opened"):
        open_pack(Layout(root=tmp_path), pointer)
    assert not target.exists()
    np.load(path, allow_pickle=True)
    assert target.exists()


def test_program_in_an_outlier_model_never_runs(tmp_path: Path) -> None:
    target = tmp_path / "ran"
    described = ClassifierFile.model_construct(
        schema_version=1,
        checkpoint="best.pth",
        checkpoint_sha256="0" * 64,
        classes=["a", "b"],
        temperature=1.0,
        outlier_threshold=1.0,
        batch_size=8,
        precision="fp32",
    )
    (tmp_path / "classifier.json").write_text(described.model_dump_json())
    with (tmp_path / "outliers.npz").open("wb") as handle:
        np.savez(handle, means=object_array(target), whitening=object_array(target))
    with pytest.raises(IntegrityError, match="outlier model"):
        read_classifier(tmp_path)
    assert not target.exists()


def test_program_in_a_sample_table_never_runs(tmp_path: Path) -> None:
    """A column of the type that old versions of pyarrow unpickle (CVE-2023-47248)."""
    target, path = tmp_path / "ran", tmp_path / "samples.parquet"
    said = {
        b"ARROW:extension:name": b"arrow.py_extension_type",
        b"ARROW:extension:metadata": pickle.dumps(Exploit(target)),
    }
    schema = pa.schema([pa.field("path", pa.string(), metadata=said)])
    pq.write_table(pa.table({"path": ["a/1.jpg"]}, schema=schema), path)
    assert list(read_samples(path)["path"]) == ["a/1.jpg"]
    assert not target.exists()


@pytest.mark.parametrize("name", ["../other/1.jpg", "/etc/passwd", "a/../../1.jpg", "..", "a\0b"])
def test_sample_table_that_leaves_its_data_set_is_refused(tmp_path: Path, name: str) -> None:
    pq.write_table(pa.table({"path": ["a/1.jpg", name]}), tmp_path / "samples.parquet")
    with pytest.raises(IntegrityError, match="outside its data set"):
        read_samples(tmp_path / "samples.parquet")
