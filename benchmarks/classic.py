"""The classic recipe, as most projects write it: class folders, PIL transforms in two workers, fp32, RGB, NCHW.

It is the other side of the training benchmarks: torchvision's ImageFolder and resnet18, AdamW with StepLR as in pipeline.yaml.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import torch
import torch.nn.functional as F
from PIL import Image
from sklearn.metrics import f1_score
from torch import nn
from torch.utils.data import DataLoader
from torchvision import transforms
from torchvision.datasets import ImageFolder
from torchvision.models import resnet18

from brainmri_core.arrays import I64, U8

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def processor_seconds() -> float:
    """Return the processor time of this process and its children, living or ended."""
    own = sum(os.times()[:4])
    tick = os.sysconf("SC_CLK_TCK")
    for children in Path("/proc/self/task").glob("*/children"):
        for child in children.read_text().split():
            fields = Path(f"/proc/{child}/stat").read_text().rpartition(")")[2].split()
            own += (int(fields[11]) + int(fields[12])) / tick
    return own


def write_folders(pack: U8, rows: I64, labels: I64, folder: Path) -> None:
    """Write gray images of a pack as ``<class>/<row>.jpg`` in RGB, like a resize stage that writes files."""
    for row in rows.tolist():
        target = folder / f"{labels[row]:02d}" / f"{row:06d}.jpg"
        target.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pack[row]).convert("RGB").save(target, quality=95)


class Classic:
    """The recipe with its loaders and optimiser.

    Parameters
    ----------
    train, val : pathlib.Path
        Class-folder trees.
    size, batch_size : int
        Side in pixels of what the model sees; images a step.
    epochs : int
        StepLR drops tenfold after each half of them, as pipeline.yaml's 10 of 20.
    """

    def __init__(
        self, train: Path, val: Path, *, size: int, batch_size: int, epochs: int, seed: int, workers: int = 2
    ) -> None:
        torch.manual_seed(seed)
        end = [transforms.ToTensor(), transforms.Normalize(MEAN, STD)]
        augmented = transforms.Compose(
            [
                transforms.Resize((size, size)),
                transforms.RandomRotation(10),
                transforms.RandomHorizontalFlip(),
                transforms.ColorJitter(0.05, 0.05),
                *end,
            ]
        )
        plain = transforms.Compose([transforms.Resize((size, size)), *end])
        self.train = DataLoader(
            ImageFolder(train, augmented),
            batch_size,
            shuffle=True,
            drop_last=True,
            num_workers=workers,
            persistent_workers=workers > 0,
        )
        self.val = DataLoader(ImageFolder(val, plain), batch_size, num_workers=workers)
        classes = len(self.train.dataset.classes)  # type: ignore[attr-defined]
        self.model: nn.Module = resnet18(weights=None, num_classes=classes)
        self.optimiser = torch.optim.AdamW(self.model.parameters(), lr=1e-3, weight_decay=1e-4)
        self.schedule = torch.optim.lr_scheduler.StepLR(self.optimiser, max(1, epochs // 2), 0.1)

    def epoch(self) -> int:
        """Train one epoch and return the number of images seen."""
        self.model.train()
        seen = 0
        for images, labels in self.train:
            self.optimiser.zero_grad()
            loss = F.cross_entropy(self.model(images), labels)
            loss.backward()
            self.optimiser.step()
            loss.item()
            seen += len(images)
        self.schedule.step()
        return seen

    def macro_f1(self) -> float:
        """Return the macro F1 on the validation folder."""
        self.model.eval()
        predicted, wanted = [], []
        with torch.no_grad():
            for images, labels in self.val:
                predicted.append(self.model(images).argmax(1))
                wanted.append(labels)
        return float(f1_score(torch.cat(wanted), torch.cat(predicted), average="macro", zero_division=0))

    def scores(self, epochs: int) -> Iterator[float]:
        """Train, yielding the validation macro F1 after every epoch."""
        for _ in range(epochs):
            self.epoch()
            yield self.macro_f1()
