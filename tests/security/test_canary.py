"""A secret and a patient's name are planted, the whole graph runs and fails, and everything it left is searched for them."""

from __future__ import annotations

import base64
import io
import json
import sqlite3
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from html.parser import HTMLParser
from pathlib import Path

import pandas as pd
import pytest
import torch
from PIL import Image

from brainmri_core.config.data import PhantomConfig
from brainmri_core.sources.phantom import write_phantom
from tests.e2e.conftest import Project, make_project
from tests.kaggle_server import DATASET, SIGNATURE, Fault, KaggleServer, serving
from tests.security.canary_case import holding, spellings
from tests.security.corpus import PATIENT, dicom_like, personal_jpeg
from tests.security.pickles_case import Exploit

pytestmark = [pytest.mark.full, pytest.mark.e2e]
SECRET = "canarySECRETtoken0815"
HOSTILE_LABEL = "<img src=x onerror=alert(1)>"
HOSTILE_FILE = '"><script>alert(1)< ![x](https:evil) | x.jpg'
CATALOGUE = f"""\
datasets:
  {DATASET}:
    source: kaggle
    aliases: {{glioma_tumor: glioma, meningioma_tumor: meningioma, pituitary_tumor: pituitary, no_tumor: notumor,
      "{HOSTILE_LABEL}": glioma}}
"""


def personal_archive(folder: Path) -> bytes:
    """The phantom data set as a hospital might deliver it: names in the headers, and odd files and folders."""
    write_phantom(
        folder,
        PhantomConfig(subjects_per_class=4, slices_per_subject=4, copies_per_kind=1, label_conflicts=1),
    )
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as opened:
        labels = set()
        for path in sorted(folder.glob("T*/*/*")):
            with Image.open(path) as image:
                opened.writestr(
                    str(path.relative_to(folder).with_suffix(".jpg")), personal_jpeg(image.convert("L"))
                )
                some = personal_jpeg(image.convert("L").rotate(7))
            labels.add(path.parent.relative_to(folder))
        label = min(labels)
        opened.writestr(f"{label}/{HOSTILE_FILE}", some)
        opened.writestr(f"{label}/dicom.jpg", dicom_like())
        opened.writestr(f"{label.parent}/{HOSTILE_LABEL}/1.jpg", some[:-100])
        opened.writestr(f"{label.parent}/{HOSTILE_LABEL}/2.jpg", some)
    return buffer.getvalue()


@dataclass
class Runs:
    """The project after its runs, and what was printed."""

    project: Project
    printed: str
    codes: dict[str, int]
    pwned: Path

    def files(self) -> list[Path]:
        """Everything that was written, the data set itself left out."""
        base = self.project.root.parent
        data = self.project.root / "data"
        found = [path for path in base.rglob("*") if path.is_file()]
        return [
            p
            for p in found
            if not p.is_relative_to(data / "raw") and not p.is_relative_to(data / "downloads")
        ]


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Runs]:
    """Failing runs, a successful one of the whole graph, and a failing one after it, through the command line."""
    base = tmp_path_factory.mktemp("canary")
    content = personal_archive(tmp_path_factory.mktemp("data"))
    project = make_project(base)
    (base / "configs/datasets.yaml").write_text(CATALOGUE)
    pwned, evil = tmp_path_factory.mktemp("pwned") / "ran", tmp_path_factory.mktemp("evil") / "evil.pth"
    torch.save({"model": Exploit(pwned)}, evil)
    printed, codes = "", {}
    with serving({3: content}) as server:
        project.env |= server.settings() | {"KAGGLE_API_TOKEN": SECRET, "VERBOSE": "1", "HOME": str(base)}
        for name in (
            "HTTPS_PROXY",
            "NO_PROXY",
            "http_proxy",
            "https_proxy",
            "no_proxy",
            "ALL_PROXY",
            "all_proxy",
        ):
            project.env.pop(name, None)
        for name, arguments in stories(server, evil):
            done = project.brainmri(*arguments, "--dataset", DATASET)
            printed += done.stdout + done.stderr
            codes[name] = done.returncode
        assert server.asked("GetDataset")[-1].headers["authorization"] == f"Bearer {SECRET}"
    yield Runs(project, printed, codes, pwned)


def stories(server: KaggleServer, evil: Path) -> Iterator[tuple[str, list[str]]]:
    """The runs, each made ready when it is asked for."""
    server.authorization = f"Bearer {SECRET}"
    server.fail("GetDataset", Fault(status=403, body=SECRET.encode()))
    yield "terms not accepted", ["fetch", "--debug"]
    server.authorization = "Bearer another"
    yield "wrong token", ["fetch"]
    server.authorization = f"Bearer {SECRET}"
    server.fail("storage", Fault(cut=20_000), *[Fault(status=500)] * 3)
    yield "broken download", ["fetch", "-o", "fetch.retry.attempts=2", "-o", "fetch.retry.base_delay_s=0"]
    yield "whole graph", ["pipeline", "-o", "validate.fail_on=never"]
    yield "exploit", ["train", "--debug", "-o", f"train.model.weights_file={evil}"]


def test_the_runs_ended_as_they_should(runs: Runs) -> None:
    assert runs.codes == {
        "terms not accepted": 3,
        "wrong token": 3,
        "broken download": 3,
        "whole graph": 0,
        "exploit": 7,
    }, runs.printed
    assert len(list(runs.project.root.glob("outputs/evaluation/**/report.html"))) == 1


def test_no_exploit_ran(runs: Runs) -> None:
    assert not runs.pwned.exists()


def test_the_search_finds_what_is_there(runs: Runs, tmp_path: Path) -> None:
    assert len(holding(sorted((runs.project.root / "data/raw").rglob("*.jpg")), spellings(PATIENT))) > 50
    pd.DataFrame({"a": [SECRET] * 9}).to_parquet(tmp_path / "a.parquet", compression="zstd")
    (tmp_path / "b.html").write_text(
        f"data:image/png;base64,{base64.b64encode(b'x' + SECRET.encode()).decode()}"
    )
    with sqlite3.connect(tmp_path / "c.db") as database:
        database.execute("create table t (x)").execute("insert into t values (?)", (f"{'y' * 5000}{SECRET}",))
    database.close()
    assert len(holding(sorted(tmp_path.iterdir()), spellings(SECRET))) == 3


def test_secret_is_nowhere(runs: Runs) -> None:
    everything = [path for path in runs.project.root.parent.rglob("*") if path.is_file()]
    assert sum(path.suffix == ".db" for path in everything) >= 3
    texts = spellings(SECRET) | {SIGNATURE.encode()}
    assert holding(everything, texts) == []
    assert not any(text in runs.printed.encode() for text in texts)


def test_patient_is_nowhere_but_in_the_data_set(runs: Runs) -> None:
    files = runs.files()
    assert {".db", ".json", ".html", ".png", ".parquet", ".npy", ".pth", ".log"} <= {
        path.suffix for path in files
    }
    assert holding(files, spellings(PATIENT) | spellings("CANARY^PATIENT")) == []
    assert PATIENT not in runs.printed


def test_report_names_the_sources_that_carry_metadata(runs: Runs) -> None:
    [path] = runs.project.root.glob("outputs/validation/**/report.json")
    [finding] = [
        item for item in json.loads(path.read_text())["findings"] if item["check"] == "embedded_metadata"
    ]
    assert finding["count"] > 50 and finding["files"]


class Attributes(HTMLParser):
    """Collects what in a page would run or load something."""

    def __init__(self) -> None:
        super().__init__()
        self.harmful: list[object] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        loads = [v for k, v in attrs if k in ("src", "href") and not str(v).startswith(("data:image/", "#"))]
        runs = [k for k, _ in attrs if k.startswith("on")]
        self.harmful += (
            [(tag, loads, runs)] if loads or runs or tag in ("script", "iframe", "object", "base") else []
        )


def test_pages_run_and_load_nothing(runs: Runs) -> None:
    pages = sorted(runs.project.root.glob("outputs/**/*.html"))
    assert len(pages) >= 2
    assert any("&lt;script&gt;alert(1)" in page.read_text() for page in pages), (
        "the hostile name is on no page"
    )
    for page in pages:
        found = Attributes()
        found.feed(page.read_text())
        assert found.harmful == [], page


def test_logs_hold_one_record_a_line(runs: Runs) -> None:
    logs = sorted(runs.project.root.glob("outputs/orchestrator/*/logs/*.log"))
    assert len(logs) >= 9
    for path in logs:
        for line in path.read_text().splitlines():
            assert {"time", "level", "run_id", "stage", "event"} <= set(json.loads(line))


def markdown_in(value: object) -> Iterator[str]:
    """The Markdown anywhere in a record of the run database."""
    if isinstance(value, dict):
        if isinstance(value.get("md_str"), str):
            yield value["md_str"]
        value = list(value.values())
    for item in value if isinstance(value, list) else []:
        yield from markdown_in(item)


def test_markdown_of_the_run_database_holds_no_live_html(runs: Runs) -> None:
    from tests.security.escaping_case import rendered

    found: list[str] = []
    for path in runs.project.root.parent.rglob("*.db"):
        with sqlite3.connect(f"file:{path}?mode=ro", uri=True) as database:
            for (name,) in database.execute("select name from sqlite_master where type = 'table'").fetchall():
                for row in database.execute(f'select * from "{name}"'):
                    for cell in row:
                        if isinstance(cell, str) and cell.startswith("{"):
                            found += markdown_in(json.loads(cell))
    assert any("img src=x" in text for text in found), "the hostile label is in no table"
    for text in found:
        tags = set(rendered(text).tags)
        assert tags <= {"table", "thead", "tbody", "tr", "th", "td", "p", "img", "ul", "li", "strong"}, text
        assert "img" not in tags or text.startswith("!["), text
