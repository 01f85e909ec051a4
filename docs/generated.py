"""Reference pages made from the code when the site is built: config tables and the command line."""

from __future__ import annotations

import re
from typing import Any

import dagster as dg
import typer
from pydantic import BaseModel
from typer.cli import get_docs_for_click

from brainmri_core.config import PipelineConfig
from brainmri_core.config.base import dotted, field_names, nested_model
from brainmri_core.errors import BrainMRIError
from brainmri_core.project.run_record import CANCELLED_EXIT_CODE
from brainmri_dagster.cli import app
from brainmri_dagster.commands.backfill import DaemonError
from brainmri_dagster.graph.asset_table import ASSETS

_MARKER = re.compile(r"^<!-- (config|command-line|exit-codes|assets) -->$", re.MULTILINE)


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Replace the markers of the reference pages."""
    return _MARKER.sub(lambda found: _MADE[found.group(1)](), markdown)


def config_tables() -> str:
    """Return a table per block of the configuration, from the pydantic models' fields."""
    return "\n\n".join(_table(PipelineConfig, ()))


def _table(model: type[BaseModel], path: tuple[str, ...]) -> list[str]:
    rows, nested = [], []
    for key, info in field_names(model).items():
        inner = nested_model(info.annotation)
        if inner is not None:
            nested += _table(inner, (*path, key))
            continue
        bounds = ", ".join(re.sub(r"^(\w+)\((.*)\)$", r"`\2`", repr(item)) for item in info.metadata)
        default = info.get_default(call_default_factory=True, validated_data={})
        kind = str(info.annotation).replace("typing.", "").replace("<class '", "").replace("'>", "")
        cells = (f"`{key}`", f"`{kind}`", bounds, f"`{default!r}`", info.description or "")
        rows.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    head = f"## {dotted(path) if path else 'Top level'}\n\n{(model.__doc__ or '').strip()}\n\n"
    lines = ["| key | type | bounds | default | meaning |", "| --- | --- | --- | --- | --- |", *rows]
    return [head + "\n".join(lines) if rows else head.rstrip(), *nested]


def command_line() -> str:
    """Return the help of every command."""
    command = typer.main.get_command(app)
    text = get_docs_for_click(obj=command, ctx=typer.Context(command), name="brainmri")
    return re.sub(r"^# .*\n", "", text, count=1)


def assets() -> str:
    """Return a section per asset: what it is, what it reads, its partitions and its checks."""
    from brainmri_dagster.code_location import defs

    graph = defs.resolve_asset_graph()
    sections = []
    for name in ASSETS:
        node = graph.get(dg.AssetKey(name))
        parents = ", ".join(f"`{key.to_user_string()}`" for key in sorted(node.parent_keys)) or "the source"
        dimensions = "partitioned by data set"
        if node.partitions_def is None:
            dimensions = "one of all data sets"
        if isinstance(node.partitions_def, dg.MultiPartitionsDefinition):
            dimensions = " and ".join(
                name.replace("_", " ") for name in node.partitions_def.partition_dimension_names
            )
            dimensions = f"partitioned by {dimensions.replace('dataset', 'data set')}"
        lines = [f"## {name}\n", node.description or "", f"\nReads {parents}; {dimensions}."]
        checks = sorted(key.name for key in node.check_keys)
        if checks:
            blocking = {key.name for key in node.check_keys if graph.get_check_spec(key).blocking}
            shown = [f"**`{check}`**" if check in blocking else f"`{check}`" for check in checks]
            lines.append(f"\nChecks (bold ones block what comes after): {', '.join(shown)}.")
        sections.append("\n".join(lines))
    return "\n\n".join(sections)


def exit_codes() -> str:
    """Return the exit codes with the errors they stand for."""
    errors = sorted({*BrainMRIError.__subclasses__(), DaemonError}, key=lambda error: error.exit_code)
    rows = [(str(error.exit_code), (error.__doc__ or "").strip().split("\n")[0]) for error in errors]
    rows = [
        ("0", "Everything asked for succeeded."),
        (str(BrainMRIError.exit_code), "Something failed that has no code of its own."),
        *rows,
        (str(CANCELLED_EXIT_CODE), "Interrupted; what was finished is kept."),
    ]
    return "\n".join(
        ["| code | meaning |", "| --- | --- |", *(f"| {code} | {text} |" for code, text in rows)]
    )


_MADE = {"config": config_tables, "command-line": command_line, "exit-codes": exit_codes, "assets": assets}
