"""The files around the code: workflows, forms, hooks, citation and release notes match the project."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from configparser import ConfigParser
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest
import yaml
from packaging.utils import canonicalize_name

from brainmri_core import __version__
from scripts.pins import ROOT
from scripts.release_notes import CHANGELOG, notes

PACKAGES = ("brainmri_core", "brainmri_dagster")
FORMS = sorted((ROOT / ".github/ISSUE_TEMPLATE").glob("*.yml"))
WORKFLOWS = sorted((ROOT / ".github/workflows").glob("*.yml"))
CHECKED = [
    *((path, schema) for path in WORKFLOWS for schema in ("github-workflows", "custom.github-workflows-require-timeout")),
    *((path, "github-issue-config" if path.name == "config.yml" else "github-issue-forms") for path in FORMS),
    (ROOT / "CITATION.cff", "citation-file-format"),
]  # fmt: skip


def checked(path: Path, schema: str) -> subprocess.CompletedProcess[str]:
    """Compare a file with a schema that check-jsonschema brings along."""
    name = schema if schema.startswith("custom.") else f"vendor.{schema}"
    command = [sys.executable, "-m", "check_jsonschema", "--builtin-schema", name]
    if schema == "citation-file-format":  # a JSON Schema for YAML under an ending of its own
        command += ["--default-filetype", "yaml"]
    return subprocess.run([*command, str(path)], capture_output=True, text=True, check=False)


@pytest.mark.parametrize(("path", "schema"), CHECKED, ids=lambda value: getattr(value, "name", value))
def test_files_for_other_programs_match_their_schema(path: Path, schema: str) -> None:
    done = checked(path, schema)
    assert done.returncode == 0, done.stdout + done.stderr


def test_a_workflow_with_a_mistyped_key_is_noticed(tmp_path: Path) -> None:
    changed = tmp_path / "ci.yml"
    changed.write_text((ROOT / ".github/workflows/ci.yml").read_text().replace("runs-on:", "run-on:"))
    assert checked(changed, "github-workflows").returncode == 1


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.name)
def test_a_workflow_calls_commands_that_are_there(path: Path) -> None:
    steps = [step for job in yaml.safe_load(path.read_text())["jobs"].values() for step in job["steps"]]
    commands = "\n".join(step["run"] for step in steps if "run" in step)
    assert commands
    targets = set(re.findall(r"(?m)^([a-z-]+):", (ROOT / "Makefile").read_text()))
    assert set(re.findall(r"\bmake ([a-z-]+)", commands)) <= targets
    for name in re.findall(r"-m (scripts\.\w+)", commands):
        assert (ROOT / name.replace(".", "/")).with_suffix(".py").is_file(), name
    for name in re.findall(r"(?m)^(\.ci/\S+)", commands):
        assert (ROOT / name).stat().st_mode & 0o100, name
    assert "${{" not in commands, "text from outside belongs into a variable, not into the command"


def test_the_hooks_run_what_make_static_runs() -> None:
    recipe = re.search(r"(?m)^static:.*\n((?:\t.*\n)+)", (ROOT / "Makefile").read_text())
    assert recipe
    commands = [line.strip().replace("$(BIN)", ".venv/bin") for line in recipe[1].splitlines()]
    (own,) = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())["repos"]
    assert own["repo"] == "local"
    assert [hook["entry"] for hook in own["hooks"]] == commands
    assert all(hook["pass_filenames"] is False for hook in own["hooks"])


def test_the_changelog_has_a_part_for_this_version() -> None:
    assert "\n- " in notes(f"v{__version__}", __version__, CHANGELOG.read_text())


def test_a_release_under_a_wrong_tag_or_without_notes_is_refused() -> None:
    text = "# Changelog\n\n## 2.0.0 (2031-01-01)\n\n- New.\n\n## 1.9.0\n\n## 1.8.0\n\n- Old.\n"
    assert notes("v2.0.0", "2.0.0", text) == "- New."
    assert notes("v1.8.0", "1.8.0", text) == "- Old."
    with pytest.raises(SystemExit, match=r"The tag is v2\.0\.1 and .* is 2\.0\.0"):
        notes("v2.0.1", "2.0.0", text)
    for missing in ("1.9.0", "1.7.0"):
        with pytest.raises(SystemExit, match="has nothing under"):
            notes(f"v{missing}", missing, text)


def test_the_version_stands_in_one_place() -> None:
    listed = subprocess.run(["git", "-C", str(ROOT), "ls-files"], capture_output=True, text=True, check=False)
    files = [ROOT / name for name in listed.stdout.split() if not name.startswith(("docs/images", "tests/"))]
    if not files:
        pytest.skip("not a git checkout")
    assert __version__ in (ROOT / "brainmri_core/__init__.py").read_text()
    assigned = re.compile(rf"""(?m)^\s*_*version_*\s*[:=]\s*["']?{re.escape(__version__)}""")
    found = [path for path in files if path.is_file() and assigned.search(path.read_text(errors="replace"))]
    assert found == [ROOT / "brainmri_core/__init__.py"]


def test_every_package_that_is_imported_is_declared() -> None:
    options = ConfigParser()
    options.read(ROOT / "setup.cfg")
    extras = options["options.extras_require"]
    lines = [
        options["options"]["install_requires"],
        *(extras[name] for name in extras if name not in ("docs", "test")),
    ]
    declared = {canonicalize_name(name) for name in re.findall(r"(?m)^[A-Za-z0-9._-]+", "\n".join(lines))}
    undeclared, owners_of = {}, packages_distributions()
    for path in (file for package in PACKAGES for file in (ROOT / package).rglob("*.py")):
        for name in imported(path) - sys.stdlib_module_names - set(PACKAGES):
            owners = owners_of.get(name, [name])
            if declared.isdisjoint(map(canonicalize_name, owners)):
                undeclared[name] = path.name
    assert undeclared == {}


def imported(path: Path) -> set[str]:
    """Return the top-level names that a file imports."""
    nodes = list(ast.walk(ast.parse(path.read_text())))
    names = {alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names}
    names |= {node.module for node in nodes if isinstance(node, ast.ImportFrom) and node.module}
    return {name.partition(".")[0] for name in names}
