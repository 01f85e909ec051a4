"""The process of torchrun: starts the workers, and reports the first that died. Imports no Dagster."""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from brainmri_core.config.training import DistributedConfig
from brainmri_core.errors import BrainMRIError
from brainmri_dagster.running.processes import die_with_parent
from brainmri_dagster.training.folder import FOLDER_VARIABLE, PARENT_VARIABLE, leave_report, read_request

if TYPE_CHECKING:
    from brainmri_dagster.training.rendezvous import Rendezvous


def main(folder: Path, parent: int) -> None:
    """Run this node's workers to their end.

    Parameters
    ----------
    folder : pathlib.Path
        Holds the request; this process and the workers leave reports of failures there, as JSON files.
    parent : int
        Process id of the parent; when it ends, this process and its workers end.
    """
    die_with_parent(parent)
    # In a session of its own, so that Ctrl-C in a terminal reaches the workers only once, through the parent: a second signal
    # would interrupt the saving of their state.
    os.setsid()
    os.environ[FOLDER_VARIABLE], os.environ[PARENT_VARIABLE] = str(folder), str(os.getpid())
    request = read_request(folder)
    place, node = DistributedConfig.model_validate(request["config"]["distributed"]), request["node"]
    from torch.distributed import DistError
    from torch.distributed.elastic.multiprocessing import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError

    from brainmri_dagster.training.rendezvous import Rendezvous

    try:
        rendezvous = Rendezvous(place, node)
    except BrainMRIError as error:
        leave_report(folder, "sentence", f"node{node}", _sentence(error))
        sys.exit(1)
    code = 1
    try:
        rendezvous.await_all(place)
        _run(rendezvous, place)
        return
    except BrainMRIError as error:
        leave_report(folder, "sentence", f"node{node}", _sentence(error))
    except DistError as error:
        leave_report(folder, "crash", f"node{node}", {"rank": node, "message": str(error).splitlines()[0]})
    except SignalException as error:
        leave_report(folder, "stopped", f"node{node}", {"rank": node, "signal": error.sigval})
        code = 128 + error.sigval
    except ChildFailedError as error:
        # A worker that raised has left its own report; that a signal killed one is known only here. SIGTERM is what torchrun
        # itself sends to the others after one has failed.
        for rank, failure in sorted(error.failures.items()):
            if failure.exitcode < 0:
                kind = "terminated" if failure.exitcode == -signal.SIGTERM else "killed"
                leave_report(folder, kind, rank, {"rank": rank, "message": failure.message})
    if place.nodes > 1:
        rendezvous.exchange_reports(folder)
    sys.exit(code)


def _sentence(error: BrainMRIError) -> dict[str, str | int]:
    return {"rank": 0, "error": type(error).__name__, "sentence": str(error)}


def _run(rendezvous: Rendezvous, place: DistributedConfig) -> None:
    from torch.distributed.elastic.rendezvous import rendezvous_handler_registry
    from torch.distributed.run import parse_args, run

    from brainmri_dagster.training.rendezvous import BACKEND

    rendezvous_handler_registry.register(BACKEND, lambda _: rendezvous)
    words = [f"--nnodes={place.nodes}", f"--nproc-per-node={place.nproc}", f"--rdzv-backend={BACKEND}"]
    words += [f"--rdzv-endpoint={rendezvous.master_addr}:{rendezvous.master_port}", "--rdzv-id=brainmri"]
    run(parse_args([*words, "--module", "brainmri_dagster.training.worker"]))  # type: ignore[no-untyped-call]


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
