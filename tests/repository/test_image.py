"""The container image, as far as it can be tried without a container engine: its build's commands, in a folder of their own."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from scripts.pins import LOCK, ROOT, pins

DOCKERFILE = (ROOT / "Dockerfile").read_text()


def context(folder: Path) -> Path:
    """Copy what `.dockerignore` lets through."""
    names = re.findall(r"(?m)^!(\S+)$", (ROOT / ".dockerignore").read_text())
    folder.mkdir()
    for name in names:
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(ROOT / name, folder / name)
    return folder


def build(folder: Path, accelerator: str, last: str) -> subprocess.CompletedProcess[str]:
    """Run the commands of the build stage that follow `COPY . ./`, up to the one that holds `last`."""
    stage = DOCKERFILE.split("COPY . ./\n")[1].split("\nFROM ")[0]
    commands = re.findall(r"(?ms)^RUN (.*?[^\\])$", stage)
    wanted = next(number for number, command in enumerate(commands) if last in command) + 1
    # The image keeps no cache; here the packages that `make install` has fetched are linked.
    script = (
        "\n".join(commands[:wanted]).replace("/opt/brainmri", str(folder / "opt")).replace("--no-cache", "")
    )
    shell = re.search(r'(?m)^SHELL \["/bin/bash", "(.*)", "-c"\]$', DOCKERFILE)
    assert shell
    extras = re.search(r"(?m)^ARG EXTRAS=(\S+)$", DOCKERFILE)
    assert extras
    env = {**os.environ, "ACCELERATOR": accelerator, "EXTRAS": extras[1]} | {
        "PATH": f"{ROOT / '.venv/bin'}:{os.environ['PATH']}"
    }
    env.pop("PYTHONPATH", None)
    return subprocess.run(
        ["bash", *shell[1].split('", "'), "-c", script],
        cwd=folder / "context",
        env=env,
        capture_output=True,
        text=True,
        check=False,
    )  # fmt: skip


def test_torch_alone_is_pinned_without_hashes_for_the_cpu(tmp_path: Path) -> None:
    context(tmp_path / "context")
    done = build(tmp_path, "cpu", "pins.txt")
    assert done.returncode == 0, done.stderr
    found, locked = pins((tmp_path / "context/pins.txt").read_text()), pins(LOCK.read_text())
    assert {name for name in found if found[name] != locked[name]} == {"torch", "torchvision"}
    assert found["torch"] == (locked["torch"][0], [])
    assert found.keys() == locked.keys()


def test_an_unknown_accelerator_is_refused(tmp_path: Path) -> None:
    context(tmp_path / "context")
    done = build(tmp_path, "rocm", "pins.txt")
    assert done.returncode == 1
    assert "ACCELERATOR is cpu or cuda, not rocm" in done.stderr


@pytest.mark.full
@pytest.mark.e2e
def test_the_image_with_cuda_is_built_from_the_lock_and_starts(tmp_path: Path) -> None:
    context(tmp_path / "context")
    done = build(tmp_path, "cuda", "uv pip install")
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "context/pins.txt").read_bytes() == LOCK.read_bytes()
    bin_folder, project = tmp_path / "opt/bin", tmp_path / "project"
    project.mkdir()
    env = {"PATH": f"{bin_folder}:/usr/bin:/bin", "HOME": str(project)}
    env |= {"BRAINMRI_HOME": str(project), "DAGSTER_HOME": str(project / ".dagster")}
    entry = re.search(r'(?m)^ENTRYPOINT \["(.*)"\]$', DOCKERFILE)
    assert entry
    asked = [str(bin_folder / entry[1]), "fetch", "--dataset", "brainmri/phantom", "-o"]
    ran = subprocess.run(
        [*asked, "fetch.phantom.subjects_per_class=4"],
        cwd=project,
        env=env,
        capture_output=True,
        text=True,
        check=False,
    )
    assert ran.returncode == 0, ran.stderr
    listed = subprocess.run(
        [bin_folder / "python", "-c", "import importlib.metadata as m\nfor d in m.distributions(): print(d.name, d.version)"],
        env=env,
        capture_output=True,
        text=True,
        check=True,
    )  # fmt: skip
    installed = dict(line.lower().replace("_", "-").split() for line in listed.stdout.splitlines())
    assert not {"pytest", "mypy", "mkdocs", "selenium"} & installed.keys()
    assert {"onnxruntime", "pydicom"} <= installed.keys()
    locked = pins(LOCK.read_text())
    assert {
        name: version
        for name, version in installed.items()
        if name != "brainmri" and locked.get(name.replace(".", "-"), ("",))[0] != version
    } == {}
