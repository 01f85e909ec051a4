"""Whatever bytes come in, what reads foreign files returns a result or raises an error of ours.

A thousand inputs by default; ``BRAINMRI_LONG_TESTS=1`` makes them more than 100,000. The last test prints the number.
"""

from __future__ import annotations

import json
import re
import tempfile
import warnings
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from brainmri_core.config import PipelineConfig, load_config
from brainmri_core.config.base import apply_overrides, parse_yaml
from brainmri_core.errors import BrainMRIError
from brainmri_core.gc import collect_garbage
from brainmri_core.images.decode import MAX_PIXELS, decode
from brainmri_core.project.catalogue import load_catalogue
from brainmri_core.project.layout import Layout
from brainmri_core.project.pointer_store import PATH_FIELDS, read_pointer
from brainmri_core.project.pointers import POINTER_TYPES
from brainmri_core.project.run_record import close_run
from brainmri_core.project.run_schema import read_manifest, read_plan
from brainmri_core.sources.archive import extract_archive
from brainmri_core.system.checksums import sha256_json
from brainmri_core.verify import verify
from tests import ROOT
from tests.counts import trials
from tests.security.corpus import LIMITS, archive, archives, encoded, images, slice_image

SPEC = ROOT / "tests/fixtures/spec_pipeline.yaml"
COUNTS: Counter[str] = Counter()


def inputs(short: int, long: int) -> Any:
    """Settings of one fuzz test."""
    return settings(
        max_examples=trials(short, long),
        deadline=None,
        database=None,
        suppress_health_check=list(HealthCheck),
    )


def harmless(call: Callable[[], object]) -> object:
    """Let an input do its worst; only errors of ours pass, of one line that ends a sentence."""
    try:
        return call()
    except BrainMRIError as error:
        assert str(error).isprintable() and str(error).endswith((".", "?")), str(error)
        return None


@st.composite
def damaged(draw: st.DrawFn, seeds: list[bytes]) -> bytes:
    """A valid file with bytes changed, cut out, put in or repeated, or two of them spliced."""
    data = bytearray(draw(st.sampled_from(seeds)))
    for _ in range(draw(st.integers(1, 6))):
        at = draw(st.integers(0, max(0, len(data) - 1)))
        length = draw(st.sampled_from([1, 1, 2, 4, 9, 40, 300]))
        kind = draw(
            st.sampled_from(["change", "change", "flip", "number", "cut", "put", "repeat", "end", "splice"])
        )
        if kind == "change":
            data[at : at + length] = draw(st.binary(min_size=length, max_size=length))
        elif kind == "flip" and data:
            data[at] ^= 1 << draw(st.integers(0, 7))
        elif kind == "number":
            edge = draw(st.sampled_from([0, 1, 0x7F, 0x80, 0xFF, 0x7FFF, 0xFFFF, 0x7FFFFFFF, 0xFFFFFFFF]))
            data[at : at + 4] = edge.to_bytes(4, draw(st.sampled_from(["little", "big"])))
        elif kind == "cut":
            del data[at : at + length]
        elif kind == "put":
            data[at:at] = draw(st.binary(max_size=length))
        elif kind == "repeat":
            data[at:at] = data[at : at + length] * draw(st.integers(1, 3))
        elif kind == "end":
            del data[at:]
        else:
            other = draw(st.sampled_from(seeds))
            data[at:] = other[draw(st.integers(0, len(other))) :]
    return bytes(data)


ARCHIVE_SEEDS = [archive("a/1.jpg", ("b/é.png", b"hello" * 40, 0), method=method) for method in (0, 8)]
ARCHIVE_SEEDS += [item.data for item in archives().values() if len(item.data) < 4000]


@inputs(200, 30_000)
@given(damaged(ARCHIVE_SEEDS) | st.binary(max_size=200))
def test_archives(data: bytes) -> None:
    COUNTS["archives"] += 1
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "a.zip").write_bytes(data)
        (folder / "dest").mkdir()
        path, dest = folder / "a.zip", folder / "dest"
        written = harmless(lambda: extract_archive(path, dest, LIMITS))
        found = [path for path in dest.rglob("*") if not path.is_dir()]
        assert not any(path.is_symlink() for path in found)
        assert sum(path.stat().st_size for path in found) <= LIMITS.max_total_bytes
        if isinstance(written, list):
            assert sorted(path.relative_to(dest).as_posix() for path in found) == sorted(written)
        assert sorted(path.name for path in folder.iterdir()) == ["a.zip", "dest"]


def image_seeds() -> list[bytes]:
    """Small files of every kind that is read, and the smaller part of the corpus."""
    gray = slice_image(24)
    colour = Image.merge("RGB", (gray, gray.rotate(90), gray))
    deep = Image.fromarray(np.asarray(gray).astype(np.uint16) * 200)
    made = [
        encoded(picture, kind)
        for picture in (gray, colour)
        for kind in ("PNG", "JPEG", "BMP", "WEBP", "TIFF")
    ]
    made += [encoded(colour, "JPEG", progressive=True), encoded(colour.convert("CMYK"), "JPEG")]
    made += [
        encoded(deep),
        encoded(colour.quantize(16)),
        encoded(colour.quantize(16), "BMP"),
        encoded(deep, "TIFF"),
    ]
    pressed = ("tiff_lzw", "tiff_adobe_deflate", "packbits", "jpeg", "tiff_ccitt")
    made += [encoded(gray.convert("1") if "ccitt" in c else gray, "TIFF", compression=c) for c in pressed]
    made += [encoded(colour.convert("RGBA"), "WEBP", lossless=True, save_all=True, append_images=[colour])]
    return made + [item.data for item in images().values() if len(item.data) < 6000]


@inputs(500, 40_000)
@given(damaged(image_seeds()) | st.binary(max_size=200))
def test_images(data: bytes) -> None:
    COUNTS["images"] += 1
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = harmless(lambda: decode(data, name="a\nb.jpg", gray=bool(len(data) % 2)))
    if found is not None:
        pixels = found.pixels  # type: ignore[attr-defined]
        assert pixels.dtype == np.uint8 and pixels.flags.c_contiguous
        assert pixels.shape[:2] == (found.height, found.width)  # type: ignore[attr-defined]
        assert 4 <= pixels.shape[0] * pixels.shape[1] <= MAX_PIXELS


PARTS = [part.encode() for part in re.split(r"\n(?=\w)", SPEC.read_text())]
KEYS = st.sampled_from(
    "fetch split train optim lr data exts run_id log json dataset limits max_files datasets a/b source aliases".split()
)
SCALARS = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(),
    st.text(max_size=12),
    KEYS,
    st.just("1e-3"),
    st.just("\0"),
)
TREES = st.recursive(
    SCALARS, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(KEYS, inner, max_size=4)
)
YAML_MARKS = st.text(alphabet="ab:-[]{}&*!|>'\" \n\t#0%?,.\x1b\u2028", max_size=60)
TEXTS = st.one_of(
    damaged([*PARTS, b"datasets:\n  a/b:\n    source: kaggle\n"]).map(lambda b: b.decode("latin-1")),
    TREES.map(lambda value: json.dumps(value)),
    YAML_MARKS,
    st.lists(st.sampled_from(["train:", "  optim:", "    lr: ", "- ", "? ", "!!int x", "&a ", "*a", "<<: "]), max_size=9)
    .map("\n".join),
    st.text(max_size=100),
)  # fmt: skip


@inputs(200, 16_000)
@given(TEXTS, st.lists(st.text(max_size=20) | KEYS.map(lambda key: f"{key}=1"), max_size=2))
def test_configurations(text: str, overrides: list[str]) -> None:
    COUNTS["configurations"] += 1
    harmless(lambda: parse_yaml(text, "fuzz"))
    harmless(lambda: apply_overrides(PipelineConfig, {}, overrides))
    with tempfile.NamedTemporaryFile("wb", suffix=".yaml") as file:
        file.write(text.encode(errors="surrogatepass"))
        file.flush()
        harmless(lambda: load_config(Path(file.name), overrides))
        harmless(lambda: load_catalogue(Path(file.name)))


PATHS = st.one_of(
    st.sampled_from(
        ["../x", "/etc/passwd", "a/../../b", "a\0b", "link", "link/x", "circle", "a" * 5000, "~", "", ".", "..", "C:\\x",
         "a/" * 2000, "\ud800", "//x", "./../x", "a/./../../../x", "latest.json"]
    ),
    st.text(max_size=20),
)  # fmt: skip
USUAL: dict[str, Any] = {
    "int": 1,
    "float": 0.5,
    "bool": True,
    "str": "x",
    "str | None": None,
    "int | None": None,
}


def usual_pointer(kind: str) -> dict[str, Any]:
    """A pointer of a kind as it should be."""
    value: dict[str, Any] = {}
    for name, info in POINTER_TYPES[kind].model_fields.items():
        written = (
            getattr(info.annotation, "__name__", "")
            if isinstance(info.annotation, type)
            else str(info.annotation)
        )
        value[name] = {} if "dict" in written else ["x"] if "list" in str(info.annotation) else None
        value[name] = USUAL.get(written, value[name])
        if "dict" in str(info.annotation):
            value[name] = {}
    return value | {
        name: usual for name, usual in {"fit": "stretch", "shard_bytes": 0}.items() if name in value
    }


POINTERS = {kind: usual_pointer(kind) for kind in POINTER_TYPES}


@st.composite
def pointer_files(draw: st.DrawFn) -> tuple[str, bytes]:
    """The kind of a pointer and the content of its file, more or less as it should be."""
    kind = draw(st.sampled_from(sorted(POINTERS)))
    value = dict(POINTERS[kind])
    paths = sorted(PATH_FIELDS & set(value))
    for name in draw(st.lists(st.sampled_from(paths), max_size=2)):
        value[name] = draw(PATHS)
    if draw(st.booleans()):
        value[draw(st.sampled_from([*value, "extra"]))] = draw(TREES)
    text = json.dumps(value).encode()
    return kind, draw(st.just(text) | damaged([text]) | st.just(b"[" * 5000) | st.binary(max_size=60))


@pytest.fixture(scope="module")
def layout(tmp_path_factory: pytest.TempPathFactory) -> Layout:
    """A project with a link out of it and links in a circle."""
    root = tmp_path_factory.mktemp("project")
    (root / "link").symlink_to("/etc")
    (root / "circle").symlink_to("other")
    (root / "other").symlink_to("circle")
    return Layout(root=root)


def test_usual_pointers_are_read(layout: Layout) -> None:
    for kind, value in POINTERS.items():
        (layout.root / "usual.json").write_text(json.dumps(value))
        assert read_pointer(layout, POINTER_TYPES[kind], layout.root / "usual.json").dataset == "x"


@inputs(250, 20_000)
@given(found=pointer_files())
def test_pointers(layout: Layout, found: tuple[str, bytes]) -> None:
    COUNTS["pointers"] += 1
    kind, data = found
    path = layout.root / "latest.json"
    path.write_bytes(data)
    pointer = harmless(lambda: read_pointer(layout, POINTER_TYPES[kind], path))
    if pointer is not None:
        for name, stored in pointer.model_dump().items():  # type: ignore[attr-defined]
            if name in PATH_FIELDS and stored is not None:
                assert (layout.root / stored).resolve().is_relative_to(layout.root.resolve())


HISTORY = "outputs/pointers/pack/a/b/history/0.json"
ENTRY: dict[str, Any] = {
    "status": "success",
    "asset": "x",
    "pid": 1,
    "inputs": {"y": None},
    "pointer": {**POINTERS["pack"], "pointer_path": HISTORY},
    "output_paths": ["x"],
    "output_hashes": {"x": "0"},
    "metrics": {"m": 0.5},
}
MANIFEST: dict[str, Any] = {
    "run_id": "r",
    "dagster_run_id": None,
    "dataset": "a/b",
    "started_at_utc": "",
    "updated_at_utc": "",
    "status": "success",
    "seed": 1,
    "config_hash": None,
    "data_hash": None,
    "code": {},
    "environment": {},
    "stages": {"resize": ENTRY, "fetch": {"status": "skipped", "asset": "y"}},
}
PLAN: dict[str, Any] = {
    "run_id": "r",
    "dagster_run_id": None,
    "dataset": "a/b",
    "created_at_utc": "",
    "command": "",
    "env": {"seed": 1},
    "config_hash": sha256_json({"env": {"seed": 1}, "stages": {"resize": {"size": 1}}}),
    "code": {},
    "stages": [{"stage": "resize", "asset": "x", "config": {"size": 1}, "inputs": {}}],
}
LEAVES = st.one_of(TREES, PATHS, st.just([]), st.just({}), st.just(1e400), st.just("running"))


@st.composite
def changed(draw: st.DrawFn, value: Any) -> Any:
    """A JSON value with one thing in it, at any depth, that is something else."""
    if not value or not isinstance(value, dict | list) or not draw(st.integers(0, 3)):
        return draw(LEAVES)
    copy = value.copy()
    key = draw(st.sampled_from(sorted(value) if isinstance(value, dict) else range(len(value))))
    copy[key] = draw(changed(value[key]))
    return copy


def test_a_run_is_closed_whose_stage_recorded_no_pointer(tmp_path: Path) -> None:
    layout = Layout(root=tmp_path)
    layout.run_dir("r").mkdir(parents=True)
    path = layout.run_dir("r") / "run_manifest.json"
    path.write_text(json.dumps(MANIFEST | {"stages": {"resize": ENTRY | {"pointer": None}}}))
    close_run(layout, "r", "failed", "It ended.")
    assert read_manifest(path).stages["resize"].status == "failed"


def test_usual_records_are_read(tmp_path: Path) -> None:
    for value, read in ((MANIFEST, read_manifest), (PLAN, read_plan)):
        (tmp_path / "x.json").write_text(json.dumps(value))
        assert read(tmp_path / "x.json").run_id == "r"


@inputs(150, 6000)
@given(
    changed(MANIFEST) | st.just(MANIFEST),
    changed(PLAN) | st.just(PLAN),
    TEXTS,
    changed(POINTERS["pack"]),
)
def test_verify_and_gc_with_damaged_records(manifest: Any, plan: Any, config: str, pointer: Any) -> None:
    """Whatever a project's records hold, verify says what is damaged, and gc and a run's end end with an error of ours."""
    COUNTS["records"] += 1
    with tempfile.TemporaryDirectory() as name:
        layout = Layout(root=Path(name))
        run = layout.run_dir("r")
        for path in (run, (layout.root / HISTORY).parent):
            path.mkdir(parents=True)
        (layout.root / HISTORY).write_text(json.dumps(pointer))
        (run / "run_manifest.json").write_text(json.dumps(manifest))
        (run / "plan.json").write_text(json.dumps(plan))
        (run / "resize.yaml").write_bytes(config.encode(errors="surrogatepass"))
        assert all(problem.message.isprintable() for problem in verify(layout).problems)
        harmless(lambda: collect_garbage(layout, dry_run=False))
        harmless(lambda: close_run(layout, "r", "failed", "It ended."))


def test_the_number_of_inputs_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    with capsys.disabled():
        print(f"\nfuzzed with {COUNTS.total():,} inputs: {dict(COUNTS)}")
    assert set(COUNTS) == {"archives", "images", "configurations", "pointers", "records"}
    assert COUNTS.total() >= trials(1000, 100_000)
