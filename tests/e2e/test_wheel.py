"""The package as it is installed: built, put into an environment of its own, and used in an empty folder."""

from __future__ import annotations

import os
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

from tests.counts import PATIENCE_S
from tests.e2e.conftest import ROOT

pytestmark = [pytest.mark.e2e, pytest.mark.full]

CONSUMER = """
from brainmri_core.predict import Classifier, Prediction

def surest(path: str) -> list[Prediction]:
    return sorted(Classifier.load("best.pth").predict(path), key=lambda item: -max(item.probabilities.values()))
"""
SMALL = ["-o", "fetch.phantom.subjects_per_class=8", "-o", "train.loop.epochs=1"]


class Installed:
    """An environment that holds the wheel and what it needs, and an empty folder to work in."""

    def __init__(self, folder: Path, dist: Path) -> None:
        self.bin, self.work = folder / "env/bin", folder / "work"
        self.work.mkdir()
        outside = ("PYTHONPATH", "VIRTUAL_ENV", "PYTHONDONTWRITEBYTECODE")
        self.env = {key: value for key, value in os.environ.items() if key not in outside}
        self.env |= {"DAGSTER_HOME": str(self.work / ".dagster"), "PATH": f"{self.bin}:{self.env['PATH']}"}
        uv = [sys.executable, "-m", "uv"]
        self.run(*uv, "venv", "--quiet", "--python", sys.executable, str(folder / "env"))
        install = [*uv, "pip", "install", "--quiet", "--python", str(self.bin / "python")]
        self.run(*install, "--require-hashes", "--requirement", str(ROOT / "requirements.lock"))
        self.run(*install, "--no-deps", str(next(dist.glob("*.whl"))))

    def run(self, *command: str) -> str:
        """Run a program in the folder and return what it said."""
        done = subprocess.run(
            command,
            cwd=self.work,
            env=self.env,
            capture_output=True,
            text=True,
            timeout=PATIENCE_S,
            check=False,
        )
        assert done.returncode == 0, f"{' '.join(command)}\n{done.stdout[-3000:]}\n{done.stderr[-3000:]}"
        return done.stdout + done.stderr


@pytest.fixture(scope="module")
def dist(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Wheel and sdist of the source tree's tracked and new files."""
    folder = tmp_path_factory.mktemp("dist")
    source = folder / "source"
    listed = ["git", "-C", str(ROOT), "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    for name in filter(
        None, subprocess.run(listed, capture_output=True, check=True).stdout.decode().split("\0")
    ):
        if (ROOT / name).is_file():
            (source / name).parent.mkdir(parents=True, exist_ok=True)
            (source / name).write_bytes((ROOT / name).read_bytes())
    build = [
        sys.executable,
        "-m",
        "uv",
        "build",
        "--quiet",
        "--no-build-isolation",
        "--python",
        sys.executable,
    ]
    subprocess.run([*build, "--out-dir", str(folder), str(source)], check=True, capture_output=True)
    return folder


@pytest.fixture(scope="module")
def installed(dist: Path, tmp_path_factory: pytest.TempPathFactory) -> Installed:
    """The wheel, installed."""
    return Installed(tmp_path_factory.mktemp("installed"), dist)


def test_wheel_and_sdist_hold_what_the_program_needs_and_no_tests(dist: Path) -> None:
    names = set(zipfile.ZipFile(next(dist.glob("*.whl"))).namelist())
    wanted = [
        *(ROOT / "brainmri_core/defaults").rglob("*"),
        *(ROOT / "brainmri_core/pages/templates").rglob("*"),
        *ROOT.glob("brainmri_*/py.typed"),
        ROOT / "brainmri_dagster/dagster.yaml",
    ]
    files = [path for path in wanted if path.is_file() and "__pycache__" not in path.parts]
    assert len(files) > 20
    assert [path for path in files if path.relative_to(ROOT).as_posix() not in names] == []
    assert not [name for name in names if name.startswith(("tests/", "benchmarks/", "scripts/"))]
    with tarfile.open(next(dist.glob("*.tar.gz"))) as archive:
        assert any(name.endswith("/brainmri_core/defaults/datasets.yaml") for name in archive.getnames())


def test_an_installed_package_makes_a_project_and_runs_the_graph(installed: Installed) -> None:
    where = installed.run("python", "-c", "import brainmri_core; print(brainmri_core.__file__)")
    assert str(ROOT) not in where
    installed.run("brainmri", "init", ".")
    installed.run("brainmri", "pipeline", "--config", "configs/demo.yaml", *SMALL)
    assert list(installed.work.glob("outputs/evaluation/brainmri/phantom/*/report.html"))
    assert "All is well" in installed.run("brainmri", "verify")
    materialise = ["dagster", "asset", "materialize", "-m", "brainmri_dagster.code_location"]
    installed.run(*materialise, "--select", "raw_dataset", "--partition", "brainmri/phantom")
    checked = installed.run("dagster", "definitions", "validate", "-w", "workspace.yaml")
    assert "Validation successful" in checked


def test_dagsters_own_program_finds_the_project(installed: Installed) -> None:
    installed.run("brainmri", "init", ".")
    assert "raw_dataset" in installed.run("dg", "list", "defs")
    installed.run("dg", "check", "defs")
    installed.run("dg", "launch", "--assets", "raw_dataset", "--partition", "brainmri/phantom")


def test_a_users_strict_type_check_passes(installed: Installed) -> None:
    (installed.work / "consumer.py").write_text(CONSUMER)
    said = installed.run("mypy", "--strict", "--follow-imports=silent", "consumer.py")
    assert "Success" in said
