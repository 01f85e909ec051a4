from __future__ import annotations

import ctypes
import json
import subprocess
import sys

import pytest

from tests.counts import PATIENCE_S

pytestmark = [
    pytest.mark.training,
    pytest.mark.skipif(
        sys.platform != "linux" or not hasattr(ctypes.CDLL(None), "mallopt"), reason="only glibc has mallopt"
    ),
]

# In a process of its own: free memory that other tests have left in the heap would be used first, without a page fault.
COUNTS = """
import json, resource
import torch
from brainmri_core.learning.device import freed_memory_kept

def page_faults():  # of writing ten large tensors, one after the other
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(10):
        torch.ones(48 << 18)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

before = page_faults()
with freed_memory_kept():
    page_faults()
    kept = page_faults()
after = page_faults()
try:
    with freed_memory_kept():
        page_faults()
        raise KeyError
except KeyError:
    pass
print(json.dumps({"before": before, "kept": kept, "after": after, "after a failure": page_faults()}))
"""


def test_large_tensors_return_without_page_faults_while_training_and_to_the_kernel_afterwards() -> None:
    done = subprocess.run(
        [sys.executable, "-c", COUNTS], capture_output=True, text=True, timeout=PATIENCE_S, check=True
    )
    faults = json.loads(done.stdout)
    # the kernel may hand out some of it in pages of 2 MiB, so that how many faults there are changes from call to call
    assert faults["kept"] * 4 < faults["before"], faults
    assert min(faults["after"], faults["after a failure"]) > 2 * faults["kept"] + 100, faults
