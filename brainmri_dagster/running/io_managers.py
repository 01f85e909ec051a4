"""The IO manager of the graph: assets hand over pointers, written last and read from what materialisations recorded."""

from __future__ import annotations

import dagster as dg

from brainmri_core.errors import BrainMRIError
from brainmri_core.project.catalogue import EVERY
from brainmri_core.project.pointer_store import write_pointer
from brainmri_core.project.pointers import Pointer
from brainmri_core.project.run_record import record_pointer
from brainmri_dagster.graph.asset_table import ASSETS, FOLD_ASSETS, is_fold, partition_read, trained_on
from brainmri_dagster.graph.resources import ProjectConfig
from brainmri_dagster.running.stage_run import fail_stage, run_id_of
from brainmri_dagster.running.upstream import recorded_pointer


class PointerIOManager(dg.IOManager):
    """Writes each asset's pointer, and loads the pointer that an upstream's materialisation recorded."""

    def __init__(self, project: ProjectConfig) -> None:
        self._layout = project.layout

    def handle_output(self, context: dg.OutputContext, obj: Pointer) -> None:
        """Write the pointer, history copy first, and attach its content, path and run id as metadata."""
        step = context.step_context
        partition = context.partition_key if context.has_partition_key else EVERY.key
        try:
            configured = bool((step.op_config or {}).get("write_pointer", True))
            latest = configured and not is_fold(partition)
            stored = obj if obj.pointer_path else write_pointer(self._layout, obj, update_latest=latest)
            stage = ASSETS[context.asset_key.to_user_string()].entry
            record_pointer(self._layout, run_id_of(step.instance, step.dagster_run), stage, stored)
        except BrainMRIError as error:
            fail_stage(step, partition, error)
        context.add_output_metadata(
            {
                "pointer": dg.MetadataValue.json(stored.model_dump(mode="json")),
                "pointer_path": dg.MetadataValue.path(str(stored.pointer_path)),
                "run_id": stored.run_id,
            }
        )

    def load_input(self, context: dg.InputContext) -> Pointer | dict[str, Pointer | None] | None:
        """Return the upstream's pointer: this run's own, else its parent's, else the newest recorded, else None.

        A step that reads all folds of a data set gets a dict by partition key.
        """
        step = context.step_context
        run = step.dagster_run
        lineage = tuple(item for item in (run.run_id, run.parent_run_id, run.root_run_id) if item)
        asset = context.asset_key.to_user_string()
        own = context.partition_key
        keys = [partition_read(asset, own)] if trained_on(own) else sorted(context.asset_partition_keys)
        try:
            found = {key: recorded_pointer(step.instance, self._layout, asset, key, lineage) for key in keys}
        except BrainMRIError as error:
            fail_stage(step, context.partition_key, error)
        return (
            found
            if asset in FOLD_ASSETS and not is_fold(context.partition_key)
            else next(iter(found.values()))
        )


def _pointer_io_manager(context: dg.InitResourceContext) -> PointerIOManager:
    return PointerIOManager(context.resources.project)


pointer_io_manager = dg.IOManagerDefinition(
    resource_fn=_pointer_io_manager,
    required_resource_keys={"project"},
    description="Pointers in outputs/pointers, one folder per stage and data set, with a history.",
)
