"""The common gray range of a data set's files of more than 8 bits."""

from __future__ import annotations

from collections.abc import Sequence

from brainmri_core.images.decode import DecodeError, decode
from brainmri_core.images.isolation import Reader
from brainmri_core.images.levels import GrayRange, common_range, is_whole, own_range
from brainmri_core.system.threads import cores, threads


def measure_ranges(read: Reader, names: Sequence[str], wanted: Sequence[int]) -> dict[str, GrayRange]:
    """Decode some files and return a gray range for each depth whose files declare none.

    Parameters
    ----------
    read : callable
        Returns the bytes of a file by its position.
    names : sequence of str
        Names of the files.
    wanted : sequence of int
        Positions of the files to decode; only a few are in memory at a time.

    Returns
    -------
    dict
        Depth (``16-bit``, ``float`` ...) to the values of black and white, independent of the order of the files.
    """

    def measure(index: int) -> tuple[str, GrayRange] | None:
        try:
            found = decode(read(index), name=names[index], colour_check=False)
        except DecodeError:  # resizing excludes the file and gives the reason
            return None
        if found.values is None or found.scaled_by != "file":
            return None
        limits = own_range(found.values, whole=is_whole(found.mode))
        return (found.depth, limits) if limits else None

    with threads(cores()) as pool:
        found = [item for item in pool.map(measure, wanted) if item is not None]
    shared = {
        depth: common_range(limits for other, limits in found if other == depth)
        for depth in sorted({depth for depth, _ in found})
    }
    return {depth: limits for depth, limits in shared.items() if limits is not None}
