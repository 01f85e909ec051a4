"""Device, precision, seeds and memory, chosen by what the hardware has."""

from __future__ import annotations

import contextlib
import copy
import ctypes
import random
import resource
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn
from torch.overrides import TorchFunctionMode

from brainmri_core.config import EnvConfig
from brainmri_core.config.base import Precision
from brainmri_core.errors import ModelError

# glibc's mallopt parameters (malloc.h), their values for training, and glibc's defaults.
_TRIM_THRESHOLD, _TOP_PAD, _MMAP_MAX = -1, -2, -4
_KEEP = {_MMAP_MAX: 0, _TRIM_THRESHOLD: 2**31 - 1, _TOP_PAD: 2**28}
_GLIBC = {_MMAP_MAX: 65536, _TRIM_THRESHOLD: 2**17, _TOP_PAD: 2**17}
_DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}


def choose_device(env: EnvConfig) -> torch.device:
    """Return the CUDA device if there is one and the configuration prefers it, else the CPU."""
    return torch.device("cuda" if env.prefer_cuda and torch.cuda.is_available() else "cpu")


def cpu_has_bf16() -> bool:
    """Tell whether this processor multiplies bf16 in hardware (AVX512-BF16 or AMX)."""
    try:
        text = Path("/proc/cpuinfo").read_text()
    except OSError:
        return False
    return "avx512_bf16" in text or "amx_bf16" in text


def choose_precision(wanted: Literal["auto", Precision], amp: bool, device: torch.device) -> Precision:
    """Return the arithmetic to use.

    Parameters
    ----------
    wanted : {"auto", "fp32", "bf16", "fp16"}
        Auto takes bf16 where the hardware has it, else fp16 on CUDA and fp32 on the CPU.
    amp : bool
        False means fp32 whatever `wanted` says.
    device : torch.device
        The device.

    Raises
    ------
    ModelError
        For fp16 on the CPU, where gradients underflow: torch's gradient scaler does not work there.
    """
    if not amp or wanted == "fp32":
        return "fp32"
    if wanted == "fp16":
        if device.type != "cuda":
            raise ModelError(
                "train.loop.precision fp16 needs a CUDA device; use auto, bf16 or fp32 on the CPU."
            )
        return "fp16"
    if wanted == "bf16":
        return "bf16"
    if device.type == "cuda":
        return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp16"
    return "bf16" if cpu_has_bf16() else "fp32"


def arithmetic(device: torch.device, env: EnvConfig) -> dict[str, str | int | bool]:
    """Return what the bits of a training depend on besides data and configuration: library, hardware, threads, kernels."""
    found: dict[str, str | int | bool] = {"torch": str(torch.__version__)}
    if device.type == "cuda":
        return found | {
            "hardware": torch.cuda.get_device_name(device),
            "cudnn": torch.backends.cudnn.version() or 0,  # type: ignore[no-untyped-call]
            "cudnn_deterministic": env.cudnn_deterministic,
            "cudnn_benchmark": env.cudnn_benchmark,
            "tf32_convolutions": torch.backends.cudnn.allow_tf32,
            "float32_matmul_precision": torch.get_float32_matmul_precision(),
        }
    return found | {"hardware": torch.backends.cpu.get_cpu_capability(), "threads": torch.get_num_threads()}


def out_of_memory(error: RuntimeError) -> bool:
    """Tell whether an error means that the accelerator is out of memory; CUDA's libraries raise plain RuntimeErrors."""
    text = str(error)
    return isinstance(error, torch.OutOfMemoryError) or any(
        name in text
        for name in ("CUDA error: out of memory", "CUBLAS_STATUS_ALLOC_FAILED", "CUDNN_STATUS_ALLOC_FAILED")
    )


def wrong_in_bf16(model: nn.Module, channels: int, side: int) -> str | None:
    """Return the name of the first convolution whose bf16 weight gradients are wrong on the CPU, or None.

    oneDNN, which computes torch's convolutions, does not write the gradients of kernel positions that only ever see
    padding, which happens where a feature map is very small. Uninitialised memory then goes into the weights. In torch
    2.14 this happens where the input map is smaller than the padding or the stride, as in resnet18 at 16 px, except in
    depthwise convolutions of stride 1. fp32, the forward pass and the gradients of the input are right.

    Parameters
    ----------
    model : torch.nn.Module
        The model, on any device; it is not changed.
    channels, side : int
        Number of channels of the images, and their side in pixels.

    Raises
    ------
    ModelError
        If the images are so small that a feature map becomes empty.
    """
    found: list[str] = []

    def look(name: str, convolution: nn.Conv2d, maps: tuple[torch.Tensor, ...]) -> None:
        if convolution.groups == convolution.in_channels > 1 and convolution.stride == (1, 1):
            return
        padding = convolution.padding if isinstance(convolution.padding, tuple) else convolution.kernel_size
        if any(
            kernel > 1 and size < max(edge, stride)
            for kernel, size, edge, stride in zip(
                convolution.kernel_size, maps[0].shape[2:], padding, convolution.stride, strict=True
            )
        ):
            found.append(name)

    shapes = copy.deepcopy(model).to("meta").eval()  # computes shapes only, no values
    for name, module in shapes.named_modules():
        if isinstance(module, nn.Conv2d):
            module.register_forward_pre_hook(
                lambda convolution, maps, name=name: look(name, convolution, maps)
            )
    try:
        with torch.no_grad():
            shapes(torch.empty(1, channels, side, side, device="meta"))
    except RuntimeError as error:
        raise ModelError(
            f"Images of {side} pixels are too small for this model ({error}); raise train.data.image_size and start_size."
        ) from error
    return found[0] if found else None


class _DepthwiseInFloat32(TorchFunctionMode):
    """Leave depthwise convolutions out of autocast: oneDNN's bf16 kernels for their gradients are several times slower."""

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        groups = kwargs.get("groups", args[6] if len(args) > 6 else 1) if func is F.conv2d else 1
        if groups == 1 or args[1].shape[1] > 1:  # one channel a group makes it depthwise
            return func(*args, **kwargs)
        floats = [item.float() if isinstance(item, torch.Tensor) else item for item in args]
        with torch.autocast("cpu", enabled=False):
            return func(*floats, **kwargs)


@contextlib.contextmanager
def autocast(device: torch.device, precision: Precision) -> Iterator[None]:
    """Run what is inside in this precision.

    On the CPU, depthwise convolutions whose gradients are needed stay in fp32 (`benchmarks/bench_train_step.py`).
    """
    with contextlib.ExitStack() as stack:
        if precision != "fp32":
            stack.enter_context(torch.autocast(device.type, dtype=_DTYPES[precision]))
            if device.type == "cpu" and torch.is_grad_enabled():
                stack.enter_context(_DepthwiseInFloat32())
        yield


def seed_everything(seed: int, env: EnvConfig) -> None:
    """Seed Python, NumPy and torch, and configure cuDNN."""
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)
    torch.backends.cudnn.deterministic = env.cudnn_deterministic
    torch.backends.cudnn.benchmark = env.cudnn_benchmark


def step_seed(*parts: int) -> int:
    """Return a 63-bit seed that depends on all parts, such as seed, epoch, batch and purpose."""
    return int(np.random.SeedSequence(parts).generate_state(1, np.uint64)[0] >> np.uint64(1))


@contextlib.contextmanager
def freed_memory_kept() -> Iterator[None]:
    """Keep freed memory in the process during the block, and return it to the system at the end; only with glibc.

    Each training step frees and allocates the same large tensors. If the memory goes back to the kernel each time, the
    kernel clears every page again on a page fault: 7% of the processor time of a resnet18 step at 128 px.
    """
    libc = ctypes.CDLL(None) if sys.platform == "linux" else None
    if libc is None or not (hasattr(libc, "mallopt") and hasattr(libc, "malloc_trim")):
        yield
        return
    for parameter, value in _KEEP.items():
        libc.mallopt(parameter, value)
    try:
        yield
    finally:
        for parameter, value in _GLIBC.items():
            libc.mallopt(parameter, value)
        libc.malloc_trim(0)


def peak_memory_mib(device: torch.device) -> int:
    """Return the peak memory of this process so far in MiB: of the accelerator if there is one, else of the host."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated() >> 20
    used = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return used >> 20 if sys.platform == "darwin" else used >> 10
