"""The machines (nodes) that train one model together: before training they check that they train the same."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

from torch.distributed import PrefixStore, Store, TCPStore  # type: ignore[attr-defined]

from brainmri_core.config.base import flat
from brainmri_core.errors import BrainMRIError, ModelError


@dataclass(frozen=True)
class Nodes:
    """The machines of one training; torchrun's environment tells a process which machine it is on.

    Attributes
    ----------
    likeness : callable
        Returns what must be the same on all machines: `learning.likeness.likeness`.
    timeout_s : float
        How long to wait for the other machines, in seconds.
    """

    likeness: Callable[[], dict[str, Any]]
    timeout_s: float

    def agree(self) -> Store:
        """Check that all machines train the same, and return the store for their process group.

        Raises
        ------
        ModelError
            If a machine differs from the first one, with the first difference, or reports an error. All processes of all
            machines raise the same error.
        """
        place = {name: int(os.environ[name]) for name in ("GROUP_RANK", "GROUP_WORLD_SIZE", "LOCAL_RANK")}
        node, size = place["GROUP_RANK"], place["GROUP_WORLD_SIZE"]
        host, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
        limit = timedelta(seconds=self.timeout_s)
        store = TCPStore(host, port, is_master=False, timeout=limit)
        if place["LOCAL_RANK"] == 0:
            store.set(f"alike/{node}", json.dumps(self._said()))
        words = [json.loads(store.get(f"alike/{other}")) for other in range(size)]
        for other, word in enumerate(words):
            if "error" in word:
                raise ModelError(f"Node {other} of {size} (numbered from 0) cannot train: {word['error']}")
        for other, word in enumerate(words):
            if word != words[0]:
                raise ModelError(
                    f"Node {other} of {size} (numbered from 0) has {_unlike(word, words[0])}; give all nodes the same "
                    "configuration, data, code and packages."
                )
        return PrefixStore("training", store)

    def _said(self) -> dict[str, Any]:
        try:
            return self.likeness()
        except BrainMRIError as error:
            return {"error": str(error)}


def _unlike(word: dict[str, Any], first: dict[str, Any]) -> str:
    there, here = flat(word), flat(first)
    key = next(key for key in sorted(there.keys() | here.keys()) if there.get(key) != here.get(key))
    return f"{key} {_short(there.get(key))} and the first node {_short(here.get(key))}"


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 40 else f"{text[:17]}..."
