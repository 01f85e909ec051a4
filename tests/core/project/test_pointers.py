from __future__ import annotations

import json
import re
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from brainmri_core.errors import BrainMRIError, ConfigError, IntegrityError
from brainmri_core.project.layout import Layout
from brainmri_core.project.pointer_store import follow, latest_pointer, read_pointer, write_pointer
from brainmri_core.project.pointers import FetchPointer

KEYS_OF_THE_SPECIFICATION = {
    "dataset",
    "dataset_root",
    "training_dir",
    "testing_dir",
    "version",
    "run_id",
    "fetched_at_utc",
}


def make(**changes: Any) -> FetchPointer:
    values: dict[str, Any] = {
        "dataset": "o/s",
        "run_id": "r1",
        "content_hash": "0" * 64,
        "dataset_root": "data/raw/o/s/x/files",
        "training_dir": None,
        "testing_dir": None,
        "version": None,
        "fetched_at_utc": "2026-01-01T00:00:00Z",
        "samples": "data/raw/o/s/x/samples.parquet",
        "n_images": 2,
        "total_bytes": 10,
        "class_counts": {"a": 1, "b": 1},
        "source": "archive",
        "licence": "CC0",
    }
    return FetchPointer(**(values | changes))


def test_pointer_is_written_to_latest_and_history(tmp_path: Path) -> None:
    layout = Layout(root=tmp_path)
    stored = write_pointer(layout, make())
    folder = tmp_path / "outputs/pointers/fetch/o/s"
    latest = json.loads((folder / "latest.json").read_text())
    assert latest.keys() >= KEYS_OF_THE_SPECIFICATION
    assert stored.pointer_path is not None
    assert (tmp_path / stored.pointer_path).parent == folder / "history"
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d{6}\.\d{6}Z-r1\.json", Path(stored.pointer_path).name)
    assert (tmp_path / "outputs/.locks/pointer-fetch-o+s.lock").is_file()
    assert (
        follow(layout, FetchPointer, stored.pointer_path)
        == stored
        == latest_pointer(layout, FetchPointer, "o/s")
    )


def test_without_write_pointer_only_history_is_kept(tmp_path: Path) -> None:
    layout = Layout(root=tmp_path)
    stored = write_pointer(layout, make(), update_latest=False)
    assert latest_pointer(layout, FetchPointer, "o/s") is None
    assert follow(layout, FetchPointer, stored.pointer_path or "") == stored


def test_history_names_never_collide(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    layout = Layout(root=tmp_path)
    monkeypatch.setattr(
        "brainmri_core.project.pointer_store.timestamp", lambda _: "2026-01-01T00:00:00.000000Z"
    )
    with ThreadPoolExecutor(8) as pool:
        paths = list(pool.map(lambda n: write_pointer(layout, make(n_images=n)).pointer_path, range(50)))
    assert len(set(paths)) == 50
    assert {follow(layout, FetchPointer, path or "").n_images for path in paths} == set(range(50))


@pytest.mark.parametrize("bad", ["/etc/passwd", "../outside", "data/../../x"])
def test_pointer_out_of_the_root_is_refused(tmp_path: Path, bad: str) -> None:
    layout = Layout(root=tmp_path / "root")
    path = tmp_path / "p.json"
    path.write_text(json.dumps(make().model_dump() | {"dataset_root": bad}))
    with pytest.raises(ConfigError, match="outside the project root"):
        read_pointer(layout, FetchPointer, path)


def test_symbolic_link_out_of_the_root_is_refused(tmp_path: Path) -> None:
    root = tmp_path / "root"
    root.mkdir()
    (root / "data").symlink_to(tmp_path)
    with pytest.raises(ConfigError, match="outside the project root"):
        Layout(root=root).absolute("data/x")


@settings(max_examples=200, deadline=None)
@given(
    st.binary(max_size=200)
    | st.dictionaries(
        st.sampled_from(list(FetchPointer.model_fields)), st.none() | st.text() | st.integers()
    ).map(lambda value: json.dumps(value).encode())
)
def test_any_bytes_are_a_pointer_or_our_error(tmp_path_factory: pytest.TempPathFactory, data: bytes) -> None:
    folder = tmp_path_factory.mktemp("pointer")
    (folder / "latest.json").write_bytes(data)
    try:
        read_pointer(Layout(root=folder), FetchPointer, folder)
    except BrainMRIError as error:
        assert str(error)


def test_wrong_kind_is_named(tmp_path: Path) -> None:
    (tmp_path / "p.json").write_text('{"dataset": "o/s"}')
    with pytest.raises(IntegrityError, match="not a fetch pointer"):
        read_pointer(Layout(root=tmp_path), FetchPointer, tmp_path / "p.json")
