from __future__ import annotations

import re
import shutil
import sys
import zipfile
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from brainmri_core.config.data import PhantomConfig
from brainmri_core.sources.phantom import write_phantom
from tests.e2e.conftest import ROOT, Project, make_project, running_daemon

pytestmark = pytest.mark.e2e

_BLOCK = re.compile(r"^```sh\n(.*?)^```", re.MULTILINE | re.DOTALL)
_PYTHON = re.compile(r"^```python\n(.*?)^```", re.MULTILINE | re.DOTALL)
_YAML = re.compile(r"^```yaml\n(.*?)^```", re.MULTILINE | re.DOTALL)
# Less than the other end-to-end tests take: what a command makes is looked at there.
QUICK = """\
fetch: {phantom: {subjects_per_class: 5, slices_per_subject: 4, copies_per_kind: 2, label_conflicts: 1}}
split: {folds: 2}
resize: {size: 32}
train:
  data: {image_size: 32, batch_size: 16}
  model: {name: mobilenet_v3_small, pretrained: false}
  loop: {epochs: 1}
evaluate: {bootstrap_resamples: 50, io: {make_gradcam: false, make_galleries: false}}
embeddings: {model: {pretrained: false}}
"""


def pages() -> list[Path]:
    """The README and the pages of the site, in the order a reader meets them."""
    text = (ROOT / "mkdocs.yml").read_text()
    listed = [ROOT / "docs" / name for name in re.findall(r": ([a-z/-]+\.md)$", text, re.MULTILINE)]
    return [ROOT / "README.md", *listed]


def blocks() -> list[Any]:
    """The blocks of commands in the order a reader meets them, each once, named after the page and the last command."""
    found: dict[str, Any] = {}
    for page in pages():
        for block in _BLOCK.findall(page.read_text()):
            commands = re.sub(r"\s+#.*$", "", block.strip(), flags=re.MULTILINE)
            name = f"{page.stem}: {commands.splitlines()[-1].removeprefix('.venv/bin/')}"
            found.setdefault(commands, pytest.param(commands, id=name[:80]))
    return list(found.values())


def programs() -> list[Any]:
    """The Python programs of all pages."""
    return [
        pytest.param(block, id=page.stem) for page in pages() for block in _PYTHON.findall(page.read_text())
    ]


@pytest.fixture(scope="module")
def reader(tmp_path_factory: pytest.TempPathFactory) -> Project:
    """A reader's machine: a checkout and a small download in ~/Downloads."""
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
    (folder / "home").rename(checkout / ".dagster")
    (home / "Downloads").mkdir(parents=True)
    files = folder / "phantom"
    write_phantom(files, PhantomConfig(subjects_per_class=4, slices_per_subject=3, copies_per_kind=1))
    with zipfile.ZipFile(home / "Downloads/brain-tumor-classification-mri.zip", "w") as archive:
        for path in sorted(files.glob("T*ing/**/*.jpg")):
            archive.write(path, path.relative_to(files))
    shutil.copy(home / "Downloads/brain-tumor-classification-mri.zip", home / "Downloads/brains.zip")
    Path(project.env["BRAINMRI_CONFIG"]).write_text(QUICK)
    return replace(
        project,
        cwd=checkout,
        env=project.env
        | {
            "HOME": str(home),
            "BRAINMRI_HOME": str(checkout),
            "DAGSTER_HOME": str(checkout / ".dagster"),
        },
    )


@pytest.mark.full
@pytest.mark.parametrize("block", blocks())
def test_every_command_of_the_documentation_works(reader: Project, block: str) -> None:
    """One after the other, as a reader would; those of make are checked without running them."""
    script = re.sub(r"^make ", "make -n ", block, flags=re.MULTILINE)
    with running_daemon(reader) if "backfill" in block else nullcontext():
        ended = reader.run("bash", "-euo", "pipefail", "-c", script)
    assert ended.returncode == 0, f"{block}\n{ended.stdout[-2000:]}\n{ended.stderr[-3000:]}"


@pytest.mark.full
@pytest.mark.parametrize("program", programs())
def test_every_program_of_the_documentation_works(reader: Project, program: str) -> None:
    """They use the model that the commands have made."""
    ended = reader.run(sys.executable, "-c", program)
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


def test_every_page_is_listed_and_their_commands_are_found() -> None:
    assert len(blocks()) > 10 and len(programs()) > 1
    listed = {path.relative_to(ROOT / "docs").as_posix() for path in pages()[1:]}
    assert listed == {path.relative_to(ROOT / "docs").as_posix() for path in (ROOT / "docs").rglob("*.md")}
