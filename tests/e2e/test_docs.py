from __future__ import annotations

import re
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from brainmri_core.config.data import PhantomConfig
from brainmri_core.sources.phantom import write_phantom
from tests.e2e.conftest import ROOT, Server, make_project, serve

pytestmark = pytest.mark.e2e

_BLOCK = re.compile(r"^```sh\n(.*?)^```", re.MULTILINE | re.DOTALL)
_PYTHON = re.compile(r"^```python\n(.*?)^```", re.MULTILINE | re.DOTALL)
_YAML = re.compile(r"^```yaml\n(.*?)^```", re.MULTILINE | re.DOTALL)


def pages() -> list[Path]:
    """The README and the pages of the site, in the order a reader meets them."""
    text = (ROOT / "mkdocs.yml").read_text()
    listed = [ROOT / "docs" / name for name in re.findall(r": ([a-z/-]+\.md)$", text, re.MULTILINE)]
    return [ROOT / "README.md", *listed]


def commands(page: Path) -> list[str]:
    return [block.strip() for block in _BLOCK.findall(page.read_text())]


@pytest.fixture(scope="module")
def reader(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A reader's machine: a checkout, a small download in ~/Downloads, and the UI with its daemon running."""
    folder = tmp_path_factory.mktemp("reader")
    project = make_project(folder)
    checkout, home = folder / "checkout", folder / "reader-home"
    checkout.mkdir()
    (checkout / ".venv").symlink_to(sys.prefix)
    for name in (
        "Makefile",
        "workspace.yaml",
        "setup.cfg",
        "pyproject.toml",
        "requirements.lock",
        "brainmri_dagster",
        "scripts",
    ):
        (checkout / name).symlink_to(ROOT / name)
    (home / "Downloads").mkdir(parents=True)
    files = folder / "phantom"
    write_phantom(files, PhantomConfig(subjects_per_class=4, slices_per_subject=3, copies_per_kind=1))
    with zipfile.ZipFile(home / "Downloads/brain-tumor-classification-mri.zip", "w") as archive:
        for path in sorted(files.glob("T*ing/**/*.jpg")):
            archive.write(path, path.relative_to(files))
    shutil.copy(home / "Downloads/brain-tumor-classification-mri.zip", home / "Downloads/brains.zip")
    project.env |= {"HOME": str(home), "BRAINMRI_HOME": str(checkout)}
    yield from serve(project)


def in_checkout(reader: Server, *command: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command,
        cwd=reader.project.root.parent / "checkout",
        env=reader.project.env,
        capture_output=True,
        text=True,
        timeout=900,
        check=False,
    )


@pytest.mark.full
@pytest.mark.timeout(1800)
def test_every_command_of_the_documentation_works(reader: Server) -> None:
    """One after the other, as a reader would; those of make are checked without running them."""
    done: set[str] = set()
    for page in pages():
        for block in commands(page):
            if block in done:
                continue
            done.add(block)
            script = re.sub(r"^make ", "make -n ", block, flags=re.MULTILINE)
            ended = in_checkout(reader, "bash", "-euo", "pipefail", "-c", script)
            assert ended.returncode == 0, (
                f"{page.name}: {block}\n{ended.stdout[-2000:]}\n{ended.stderr[-3000:]}"
            )
    assert len(done) > 10
    programs = [block for page in pages() for block in _PYTHON.findall(page.read_text())]
    assert programs
    for program in programs:
        ended = in_checkout(reader, sys.executable, "-c", program)
        assert ended.returncode == 0, f"{program}\n{ended.stderr[-3000:]}"


@pytest.mark.parametrize("page", pages(), ids=lambda page: page.name)
def test_every_configuration_in_the_documentation_loads(page: Path, tmp_path: Path) -> None:
    from brainmri_core.config import load_config
    from brainmri_core.project.catalogue import load_catalogue
    from brainmri_core.studies.space import read_space

    for number, block in enumerate(_YAML.findall(page.read_text())):
        path = tmp_path / f"{number}.yaml"
        path.write_text(block)
        if "datasets" in yaml.safe_load(block):
            assert load_catalogue(path)
        elif "space" in yaml.safe_load(block):
            assert read_space(path)
        else:
            load_config(path)


def test_every_page_is_listed() -> None:
    listed = {path.relative_to(ROOT / "docs").as_posix() for path in pages()[1:]}
    assert listed == {path.relative_to(ROOT / "docs").as_posix() for path in (ROOT / "docs").rglob("*.md")}
