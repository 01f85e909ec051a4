"""The program of a Celery worker: ``celery -A brainmri_dagster.running.celery_app worker``."""

from __future__ import annotations

from dagster_celery.make_app import make_app
from dagster_celery.tasks import create_execute_job_task

from brainmri_dagster.running.celery_runs import SameCodeTask

app = make_app()  # type: ignore[no-untyped-call]
execute_job = create_execute_job_task(app, base=SameCodeTask)  # type: ignore[arg-type]
