"""The records of runs in an object store: one object for each stage's entry, so that no machine overwrites another's.

On each machine the record of a run is a folder, as in a local project. The entries of other machines are downloaded before
the record is read, and entries written here are uploaded afterwards. A project in a folder needs none of this.
"""

from __future__ import annotations

import json
from pathlib import PurePosixPath
from typing import Any

from brainmri_core.errors import IntegrityError
from brainmri_core.project.layout import Layout
from brainmri_core.system.json_files import json_text, read_json, write_json
from brainmri_core.system.store import RemoteStore

PLAN_FILE, MANIFEST_FILE = "plan.json", "run_manifest.json"
Entries = dict[str, dict[str, Any]]
_HEAD, _STAGES = "run.json", "stages"


def remote_store(layout: Layout) -> RemoteStore | None:
    """Return the object store of a project; None where the project is in a folder."""
    store = layout.store
    return store if isinstance(store, RemoteStore) else None


def take_in_run(layout: Layout, run_id: str) -> Entries | None:
    """Download a run's plan, and merge the stage entries of all machines into its manifest here.

    Returns
    -------
    dict or None
        The entries in the object store, by stage; None where the project is in a folder.
    """
    store = remote_store(layout)
    if store is None:
        return None
    folder = layout.run_dir(run_id)
    place = layout.relative(folder)
    store.fetch_to_cache(f"{place}/{PLAN_FILE}")
    head = store.get(f"{place}/{_HEAD}")
    if head is None:
        return {}
    manifest = _parsed(head, f"{place}/{_HEAD}", layout)
    shared: Entries = {}
    for stage in manifest.pop(_STAGES):
        data = store.get(f"{place}/{_STAGES}/{stage}.json")
        if data is not None:
            shared[stage] = _parsed(data, f"{place}/{_STAGES}/{stage}.json", layout)
    path = folder / MANIFEST_FILE
    own = read_json(path) if path.is_file() else {**manifest, "stages": {}}
    # the manifest here is newer where the store could not be reached when it was written
    if own["updated_at_utc"] > manifest["updated_at_utc"]:
        merged = {**own, "stages": shared | own["stages"]}
    else:
        merged = {**manifest, "stages": own["stages"] | shared}
    if merged != own:
        write_json(path, merged)
    return shared


def take_in_runs(layout: Layout) -> None:
    """Download the records of all runs."""
    store = remote_store(layout)
    if store is None:
        return
    for name in store.list(f"{layout.relative(layout.runs)}/*/{_HEAD}"):
        take_in_run(layout, PurePosixPath(name).parent.name)


def is_taken(layout: Layout, run_id: str) -> bool:
    """Say whether a run of this id has a record, here or in the object store."""
    folder = layout.run_dir(run_id)
    store = remote_store(layout)
    if store is None or folder.exists():
        return folder.exists()
    return store.get(f"{layout.relative(folder)}/{_HEAD}") is not None


def pass_on_plan(layout: Layout, run_id: str) -> bool:
    """Upload a run's plan; return False if another machine has already written one for this run."""
    store = remote_store(layout)
    if store is None:
        return True
    path = layout.run_dir(run_id) / PLAN_FILE
    return store.put_new(layout.relative(path), path.read_bytes())


def pass_on_run(layout: Layout, run_id: str, shared: Entries, manifest: dict[str, Any]) -> None:
    """Upload the stage entries that differ from those in the object store, with the logs of these stages."""
    store = remote_store(layout)
    if store is None:
        return
    folder = layout.run_dir(run_id)
    place = layout.relative(folder)
    for stage, entry in manifest["stages"].items():
        if shared.get(stage) != entry:
            store.put(f"{place}/{_STAGES}/{stage}.json", json_text(entry).encode())
            log = folder / "logs" / f"{stage}.log"
            if log.is_file():
                store.put(layout.relative(log), log.read_bytes())
    head = {**manifest, _STAGES: sorted(manifest["stages"])}
    store.put(f"{place}/{_HEAD}", json_text(head).encode())


def _parsed(data: bytes, name: str, layout: Layout) -> dict[str, Any]:
    try:
        value = json.loads(data)
        if not isinstance(value, dict) or not isinstance(value.get(_STAGES, []), list):
            raise ValueError(name)
    except ValueError:
        raise IntegrityError(
            f"The record {name} in {layout.where} is damaged; delete the run's objects there."
        ) from None
    return value
