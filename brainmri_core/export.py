"""Export a checkpoint for other runtimes: ONNX, a torch.export program or safetensors, with its normalisation inside."""

from __future__ import annotations

import contextlib
import io
import json
import logging
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from torch import nn

from brainmri_core.errors import ConfigError, ModelError
from brainmri_core.learning.checkpoint import CheckpointMeta, load_model, save_safetensors, twin_sha256
from brainmri_core.system.storage import write_bytes

Format = Literal["onnx", "torch_export", "safetensors"]
FORMATS: tuple[Format, ...] = get_args(Format)
SUFFIXES: dict[Format, str] = {
    "onnx": ".onnx",
    "torch_export": ".pt2",
    "safetensors": ".safetensors",
}
RECORD_NAME = "brainmri.json"


class _FromPixels(nn.Module):
    """A model with the normalisation as its first step, so that other runtimes need not repeat it."""

    mean: torch.Tensor
    std: torch.Tensor

    def __init__(self, model: nn.Module, meta: CheckpointMeta) -> None:
        super().__init__()
        self.model = model
        self.register_buffer("mean", torch.tensor(meta.preprocessing.mean).view(1, -1, 1, 1))
        self.register_buffer("std", torch.tensor(meta.preprocessing.std).view(1, -1, 1, 1))

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = self.model((pixels - self.mean) / self.std)
        return logits


def export_checkpoint(checkpoint: Path, target: Path, kind: Format) -> Path:
    """Write a checkpoint in another format.

    Parameters
    ----------
    checkpoint : pathlib.Path
        A checkpoint of this project; reading it runs no code from it.
    target : pathlib.Path
        File to write; it is replaced atomically.
    kind : {"onnx", "torch_export", "safetensors"}
        The first two take ``pixels``, float32 ``(B, channels, image_size, image_size)`` in [0, 1] for any B, and return
        ``logits`` ``(B, K)``; the classes and the preprocessing are recorded inside, under ``brainmri.json``. The last is
        itself a checkpoint of this project, and can be used wherever one is expected.

    Returns
    -------
    pathlib.Path
        `target`.

    Raises
    ------
    ConfigError
        If the format is unknown or its packages are not installed.
    ModelError
        If the checkpoint cannot be used.
    """
    if kind not in FORMATS:
        raise ConfigError(f"The format {kind!r} is not known; choose from {', '.join(FORMATS)}.")
    model, meta = load_model(checkpoint, torch.device("cpu"))
    if kind == "safetensors":
        save_safetensors(target, model.state_dict(), meta, twin_sha256(checkpoint))
        return target
    side, channels = meta.preprocessing.image_size, meta.preprocessing.channels
    wrapped = _FromPixels(model.to(memory_format=torch.contiguous_format), meta).eval()
    example = torch.rand(2, channels, side, side, generator=torch.Generator().manual_seed(0))
    write = {"onnx": _onnx, "torch_export": _torch_export}[kind]
    with _quiet(), torch.no_grad():
        data = write(wrapped, example, _record(meta))
    write_bytes(target, data)
    return target


def _record(meta: CheckpointMeta) -> str:
    """Return the classes, the preprocessing and the names of input and output as JSON."""
    value: dict[str, Any] = {
        **meta.model_dump(mode="json"),
        "input": {
            "name": "pixels",
            "layout": "NCHW",
            "range": [0, 1],
            "normalised_inside": True,
            "steps": "decode, orient by EXIF, gray unless colour, fit to pack_size, shrink to image_size, divide by 255",
        },
        "output": {"name": "logits", "classes": meta.classes},
    }
    return json.dumps(value)


def _torch_export(model: nn.Module, example: torch.Tensor, record: str) -> bytes:
    batch = torch.export.Dim("batch", min=1)
    program = torch.export.export(model, (example,), dynamic_shapes=({0: batch},))
    buffer = io.BytesIO()
    torch.export.save(program, buffer, extra_files={RECORD_NAME: record})
    return buffer.getvalue()


def _onnx(model: nn.Module, example: torch.Tensor, record: str) -> bytes:
    try:
        import onnx
        import onnxscript  # noqa: F401 - torch's exporter needs it
    except ImportError:
        raise ConfigError(
            "Exporting to ONNX needs onnx and onnxscript, which are not installed; install them with "
            "`pip install 'brainmri[export]'`."
        ) from None
    program = torch.onnx.export(
        model,
        (example,),
        input_names=["pixels"],
        output_names=["logits"],
        dynamic_shapes=({0: torch.export.Dim("batch", min=1)},),
        dynamo=True,
        verbose=False,
    )
    if program is None:
        raise ModelError("torch made no ONNX program of this checkpoint; export it to torch_export instead.")
    proto = program.model_proto
    onnx.helper.set_model_props(proto, {RECORD_NAME: record})
    onnx.checker.check_model(proto)
    return bytes(proto.SerializeToString())


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Hide the exporters' warnings, which are for their developers."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        logger.setLevel(logging.ERROR)
        try:
            yield
        finally:
            logger.setLevel(level)
