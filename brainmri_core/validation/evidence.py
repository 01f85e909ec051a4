"""The input of the validation checks."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from brainmri_core.arrays import Mask
from brainmri_core.config.data import ValidateConfig
from brainmri_core.project.pointers import MappingPointer, PackPointer

if TYPE_CHECKING:
    import pandas as pd

    from brainmri_core.images.statistics import PackScan
    from brainmri_core.validation.accounting import Account
    from brainmri_core.validation.leak_report import LeakReport
    from brainmri_core.validation.shortcuts import ShortcutScore


@dataclass(frozen=True)
class Evidence:
    """Everything that the checks use.

    Attributes
    ----------
    samples : pandas.DataFrame
        The pack's sample table, a row per image.
    copies : pandas.DataFrame
        Confirmed copies, with the columns `leaks.COPY_COLUMNS`.
    scan : PackScan
        Properties of the pixels, by row of the pack.
    expected, expected_samples
        The mapping that the pack must agree with, and its sample table.
    leaks : pandas.DataFrame
        Result of `leaks.find_leaks`.
    """

    config: ValidateConfig
    samples: pd.DataFrame
    copies: pd.DataFrame
    scan: PackScan
    pack: PackPointer
    mapping: MappingPointer
    expected: MappingPointer
    expected_samples: pd.DataFrame
    split_record: dict[str, Any]
    leaks: pd.DataFrame
    leak: LeakReport
    shortcuts: list[ShortcutScore]
    account: Account

    @property
    def packed(self) -> pd.DataFrame:
        """The images that have pixels in the pack."""
        return self.samples[self.samples["row"] >= 0]

    @property
    def excluded(self) -> Mask:
        """Mask of the images on neither side, bool ``(N,)``."""
        return np.asarray(self.samples["split"] == "excluded", np.bool_)
