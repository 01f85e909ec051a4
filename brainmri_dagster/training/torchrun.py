"""torchrun's own process: starts the workers, and leaves word of the first that died. Imports no Dagster."""

from __future__ import annotations

import json
import os
import signal
import sys
from pathlib import Path

from brainmri_dagster.running.processes import die_with_parent

FOLDER_VARIABLE = "BRAINMRI_TRAIN_FOLDER"
PARENT_VARIABLE = "BRAINMRI_TORCHRUN_PID"


def main(nproc: int, folder: str, parent: int) -> None:
    """Run the workers to their end.

    Parameters
    ----------
    nproc : int
        Number of workers.
    folder : str
        Where this process and the workers leave word of failures, as JSON files.
    parent : int
        Process whose end ends this one and its workers.
    """
    die_with_parent(parent)
    os.setsid()  # Ctrl-C in a terminal comes once, passed on by the parent: a second one would cut the workers' saving short
    os.environ[FOLDER_VARIABLE], os.environ[PARENT_VARIABLE] = folder, str(os.getpid())
    from torch.distributed.elastic.multiprocessing import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.run import parse_args, run

    workers = ["--standalone", f"--nproc-per-node={nproc}", "--module", "brainmri_dagster.training.worker"]
    try:
        run(parse_args(workers))  # type: ignore[no-untyped-call]
    except SignalException as error:
        sys.exit(128 + error.sigval)
    except ChildFailedError as error:
        # What raised has left its own word; that a signal ended a process is known here alone. With SIGTERM torchrun
        # itself ends the others when one has failed.
        for rank, failure in sorted(error.failures.items()):
            if failure.exitcode < 0:
                word = {"rank": rank, "message": failure.message}
                kind = "terminated" if failure.exitcode == -signal.SIGTERM else "killed"
                Path(folder, f"{kind}-{rank}.json").write_text(json.dumps(word))
        sys.exit(1)


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2], int(sys.argv[3]))
