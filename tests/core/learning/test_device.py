from __future__ import annotations

import ctypes
import resource
import sys

import pytest
import torch

from brainmri_core.learning.device import freed_memory_kept

pytestmark = pytest.mark.skipif(
    sys.platform != "linux" or not hasattr(ctypes.CDLL(None), "mallopt"), reason="only glibc has mallopt"
)


def page_faults() -> int:
    """Page faults of writing ten large tensors, one after the other."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(10):
        torch.ones(48 << 18)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before


def test_large_tensors_return_without_page_faults_while_training_and_to_the_kernel_afterwards() -> None:
    before = page_faults()
    with freed_memory_kept():
        page_faults()
        kept = page_faults()
    # the kernel may hand out some of it in pages of 2 MiB, so that how many faults there are changes from call to call
    assert kept * 4 < before
    assert page_faults() > 2 * kept + 100


def test_memory_is_handed_back_after_a_failure() -> None:
    with pytest.raises(KeyError), freed_memory_kept():
        raise KeyError
    assert page_faults() > 100
