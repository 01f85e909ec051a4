"""Leases in an object store.

A lease says which machine works on something, so that another does not do the same costly work. The holder renews it regularly.
If it is not renewed in time, it expires, and another machine may take it. Results stay correct even if two machines work at once.
The age of a lease is measured by the store's clock, because the clocks of machines differ.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import threading
import time
from collections.abc import Callable, Iterator

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from brainmri_core.errors import BusyError, ConfigError, StorageError
from brainmri_core.escaping import printable
from brainmri_core.system.json_files import json_text
from brainmri_core.system.locks import signature
from brainmri_core.system.object_store import Bucket, LostRaceError

LEASE_VARIABLE = "BRAINMRI_LEASE_S"
_LASTS_S, _LONGEST_S = 60.0, 3600.0
_RENEWALS, _LOOKS = 4, 12
"""How often a lease is renewed, and looked at by those who wait for it, while it lasts."""
_PATIENCE_S = 5.0
_PRECISION_S = 1.0


class Lease(BaseModel):
    """The content of a lease.

    Attributes
    ----------
    owner : str
        Process and machine, for people.
    token : str
        What only its holder knows.
    renewals : int
        How often it was renewed, so that no two contents are equal.
    lasts_s : float
        Seconds after the last renewal in which it expires.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    owner: str = Field(max_length=300)
    token: str = Field(max_length=64)
    renewals: int = Field(ge=0)
    lasts_s: float = Field(gt=0, le=_LONGEST_S)

    def text(self) -> bytes:
        """Return it as JSON."""
        return json_text(self.model_dump(mode="json")).encode()


@contextlib.contextmanager
def leased(
    bucket: Bucket, name: str, *, wait: bool, busy: str, on_wait: Callable[[str], object]
) -> Iterator[bool]:
    """Hold a lease during the block, as long as no other machine takes this one for dead.

    Parameters
    ----------
    bucket : Bucket
        The project's place in the object store.
    name : str
        Name of the lease.
    wait : bool
        Wait until another machine has given it back or has died. Otherwise wait only until it is known to be alive, which is
        an error.
    busy : str
        What the error says of a lease that is held.
    on_wait : callable
        Called once with the owner before this process waits.

    Yields
    ------
    bool
        Whether this process had to wait for another one.

    Raises
    ------
    BusyError
        If `wait` is False and another machine holds the lease.
    ConfigError
        If the environment names no usable time for a lease to last.
    StorageError
        If the store fails before the block begins.
    """
    own = Lease(owner=signature(), token=secrets.token_hex(16), renewals=0, lasts_s=_lasts_s())
    key = _key(name)
    waited = _take(bucket, key, own, wait, busy, on_wait)
    # A bucket of its own: what it finds out about the store must not change how patient the block is.
    keeping, ended = Bucket(bucket.url, _PATIENCE_S), threading.Event()
    keeper = threading.Thread(target=_keep, args=(keeping, key, own, ended), name=key, daemon=True)
    keeper.start()
    try:
        yield waited
    finally:
        ended.set()
        keeper.join(_PATIENCE_S)
        if not keeper.is_alive():  # else the store does not answer, and the lease expires
            _give_back(keeping, key, own)


def is_held(bucket: Bucket, name: str) -> bool:
    """Say whether somebody holds a lease. One that has expired is removed."""
    key = _key(name)
    found = bucket.get(key)
    if found is None:
        return False
    if _has_expired(bucket, key, _read(found)):
        bucket.remove(key)
        return False
    return True


def _take(
    bucket: Bucket, key: str, own: Lease, wait: bool, busy: str, on_wait: Callable[[str], object]
) -> bool:
    """Take a lease as soon as nobody has it; return whether that took time."""
    first: bytes | None = None
    while True:
        found = bucket.get_tagged(key)
        if found is None:
            if bucket.put_new(key, own.text()):
                return first is not None
            continue
        lease = _read(found[0])
        if lease is None or lease.token == own.token or _has_expired(bucket, key, lease):
            if _replaced(bucket, key, own, found[1]):
                return first is not None
            continue
        if first is None:
            on_wait(lease.owner)
            first = found[0]
        elif not wait and first != found[0]:
            raise BusyError(f"Cannot begin: {busy} ({lease.owner}); wait for it to end and run again.")
        time.sleep(own.lasts_s / _LOOKS)


def _keep(bucket: Bucket, key: str, own: Lease, ended: threading.Event) -> None:
    """Renew a lease until the block ends, or somebody else has taken it."""
    renewals = 0
    while not ended.wait(own.lasts_s / _RENEWALS):
        renewals += 1
        with contextlib.suppress(StorageError):  # the next time, perhaps
            if not _renewed(bucket, key, own.model_copy(update={"renewals": renewals})):
                return


def _give_back(bucket: Bucket, key: str, own: Lease) -> None:
    with contextlib.suppress(StorageError):
        found = bucket.get(key)
        if found is not None and _holder(found) == own.token:
            bucket.remove(key)


def _renewed(bucket: Bucket, key: str, lease: Lease) -> bool:
    found = bucket.get_tagged(key)
    if found is None:  # who took this machine for dead has ended
        return bucket.put_new(key, lease.text())
    return _holder(found[0]) == lease.token and _replaced(bucket, key, lease, found[1])


def _replaced(bucket: Bucket, key: str, lease: Lease, tag: object) -> bool:
    try:
        bucket.compare_and_put(key, lease.text(), tag)
    except LostRaceError:
        return _holder(bucket.get(key) or b"") == lease.token  # the answer of an earlier try was lost
    return True


def _has_expired(bucket: Bucket, key: str, lease: Lease | None) -> bool:
    age = bucket.age(key)
    return lease is None or age is None or age > lease.lasts_s + _PRECISION_S


def _holder(data: bytes) -> str | None:
    lease = _read(data)
    return None if lease is None else lease.token


def _read(data: bytes) -> Lease | None:
    """Return a lease; one that is damaged is nobody's."""
    try:
        lease = Lease.model_validate_json(data)
    except ValidationError:
        return None
    return lease.model_copy(update={"owner": printable(lease.owner)})


def _key(name: str) -> str:
    return f"leases/{name}.json"


def _lasts_s() -> float:
    value = os.environ.get(LEASE_VARIABLE, "")
    try:
        seconds = float(value or _LASTS_S)
    except ValueError:
        seconds = -1.0
    if not 0 < seconds <= _LONGEST_S:
        raise ConfigError(
            f"{LEASE_VARIABLE} is {value!r}; write seconds, more than 0 and up to {_LONGEST_S:.0f}."
        )
    return seconds
