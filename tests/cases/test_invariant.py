"""Random trees: every file of the source is an image of the table, or named as left out."""

from __future__ import annotations

import tempfile
from pathlib import Path

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from brainmri_core.errors import DataError
from brainmri_core.project.catalogue import DatasetEntry
from brainmri_core.sources.index import index_files
from tests.counts import trials

TREES = trials(200, 1000)
JPEG, OTHER = b"\xff\xd8\xff\xe0", b"\1\2\3\4"
ENTRY = DatasetEntry(key="a/b", source="archive", classes=["glioma", "no t\u00fcmor"])

labels = st.sampled_from(["glioma", "Glioma ", "no t\u00fcmor", "NO TU\u0308MOR", "glioma", "astro"])
splits = st.sampled_from(["train", "Test", "val", "VALIDATION set", "", "", ""])
wrappers = st.sampled_from(["", "", "", "data", "a b/c", "glioma", "raw", "segmentation", "test"])
below = st.sampled_from(["", "", "", "patient 1", ".hidden", "images"])
files = st.sampled_from(
    [
        "1.jpg",
        "2.JPEG",
        "3",
        "4.dat",
        "README",
        "Thumbs.db",
        ".DS_Store",
        "5.heic",
        "e\u0301.jpg",
        "\u4e09.png",
        "x.zip",
    ]
)


@st.composite
def paths(draw: st.DrawFn) -> str:
    """A path with a class and a split, in either order, somewhere in wrappers; sometimes in no class at all."""
    label, split = draw(labels), draw(splits)
    middle = [split, label] if draw(st.booleans()) else [label, split]
    parts = [draw(wrappers), *(middle if draw(st.integers(0, 9)) else []), draw(below), draw(files)]
    return "/".join(part for part in parts if part)


@settings(max_examples=TREES, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    st.dictionaries(paths(), st.sampled_from([JPEG, JPEG + b"2", OTHER, b""]), max_size=20),
    st.sampled_from([None, None, ".", "data", "raw"]),
)
def test_every_file_is_an_image_or_named_as_left_out(tree: dict[str, bytes], subset: str | None) -> None:
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        for name in sorted(tree, key=len, reverse=True):
            path = root / name
            if not path.exists() and not any(above.is_file() for above in path.parents):
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(tree[name])
        source = {path.relative_to(root).as_posix() for path in root.rglob("*") if path.is_file()}
        try:
            index = index_files(root, ENTRY, subset, ["__MACOSX/x"])
        except DataError as error:
            assert "\n" not in str(error)
            return
    below_root = f"{index.root}/" if index.root else ""
    used = [f"{below_root}{path}" for path in index.images["path"]]
    left = index.left_out["path"].tolist()
    assert sorted(used + left) == sorted([*source, "__MACOSX/x"])
    assert all(index.left_out["reason"].str.len()) and all(index.left_out["remedy"].str.len())
    assert not any("/." in f"/{path}" for path in used)
