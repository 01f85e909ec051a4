"""The journal of a study in an object store: numbered objects, each with some of Optuna's operations.

An object is created under the first number that is free, and never changed. Of several machines that want a number one gets it;
the others read what it wrote, and take the next. So no lock is needed: whoever has to decide by what the journal says, such as
on the next trial, collects its operations in a draft, and decides again if another machine was faster.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from functools import cache
from typing import Any

from optuna.storages.journal import BaseJournalBackend

from brainmri_core.errors import IntegrityError
from brainmri_core.project.layout import Layout
from brainmri_core.project.run_sharing import remote_store
from brainmri_core.system.object_store import Bucket
from brainmri_core.system.threads import threads

_CONNECTIONS = 8
Operations = list[dict[str, Any]]


class Draft(BaseJournalBackend):
    """A journal as it was read, and operations that are not in it yet."""

    def __init__(self, before: Operations, number: int) -> None:
        self.number = number
        self.added: Operations = []
        self._before = before

    def read_logs(self, log_number_from: int) -> Iterable[dict[str, Any]]:
        """Return the operations from a number on."""
        return [*self._before, *self.added][log_number_from:]

    def append_logs(self, logs: list[dict[str, Any]]) -> None:
        """Collect operations, in the form in which they will be read."""
        self.added += json.loads(json.dumps(logs))


class BucketJournal(BaseJournalBackend):
    """The journal of a study in an object store.

    Parameters
    ----------
    bucket : Bucket
        The project's place in the object store.
    place : str
        Prefix of the objects, without a slash at its end.
    """

    def __init__(self, bucket: Bucket, place: str) -> None:
        self.where = f"{bucket.url}/{place}"
        self._bucket, self._place = bucket, place
        self._operations: Operations = []
        self._records = 0

    def read_logs(self, log_number_from: int) -> Iterable[dict[str, Any]]:
        """Return the operations from a number on, those of other machines included."""
        self._read_on()
        return self._operations[log_number_from:]

    def append_logs(self, logs: list[dict[str, Any]]) -> None:
        """Append operations, after those that other machines have written in between."""
        while not self._add(self._records, logs):
            self._read_on()

    def draft(self) -> Draft:
        """Return a draft that goes on from all that is written."""
        self._read_on()
        return Draft(list(self._operations), self._records)

    def commit(self, draft: Draft) -> bool:
        """Write a draft; return False, writing nothing, if another machine has written since it was begun."""
        return not draft.added or self._add(draft.number, draft.added)

    def _add(self, number: int, operations: Operations) -> bool:
        data = json.dumps(operations, separators=(",", ":")).encode()
        if not self._bucket.put_new(self._name(number), data):
            return False
        if number == self._records:
            self._take(data)
        return True

    def _read_on(self) -> None:
        if not self._records:
            names = set(self._bucket.list(f"{self._place}/"))
            count = next(number for number in range(len(names) + 1) if self._name(number) not in names)
            with threads(_CONNECTIONS) as pool:
                for data in pool.map(self._bucket.get, map(self._name, range(count))):
                    self._take(data or b"")
        while (data := self._bucket.get(self._name(self._records))) is not None:
            self._take(data)

    def _take(self, data: bytes) -> None:
        try:
            operations = json.loads(data)
            if not isinstance(operations, list) or not all(isinstance(item, dict) for item in operations):
                raise ValueError
        except ValueError:
            raise IntegrityError(
                f"The record {self._name(self._records)} of a study in {self._bucket.url} is damaged; restore it, or delete "
                "all records beside it to begin the study again."
            ) from None
        self._operations += operations
        self._records += 1

    def _name(self, number: int) -> str:
        return f"{self._place}/{number:08}.json"


@cache
def bucket_journal(layout: Layout, dataset: str, study: str) -> BucketJournal | None:
    """Return the journal of a study, the same object for every caller in this process; None for a project in a folder."""
    store = remote_store(layout)
    place = f"{layout.relative(layout.study_dir(dataset, study))}/journal"
    return None if store is None else BucketJournal(store.bucket, place)
