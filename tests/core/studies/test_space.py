from __future__ import annotations

from pathlib import Path

import pytest

from brainmri_core.config.files import SHIPPED
from brainmri_core.config.training import TrainConfig
from brainmri_core.errors import ConfigError
from brainmri_core.studies.space import Setting, find_study, read_space, with_values


def space_of(folder: Path, *lines: str) -> dict[str, Setting]:
    file = folder / "study.yaml"
    file.write_text("space:\n" + "".join(f"  {line}\n" for line in lines))
    return read_space(file)


@pytest.mark.parametrize("file", sorted((SHIPPED / "studies").glob("*.yaml")), ids=lambda file: file.stem)
def test_a_shipped_study_is_found_by_its_name_and_can_be_read(file: Path) -> None:
    assert len(read_space(find_study(file.stem))) > 3


def test_bounds_and_values_that_are_left_out_are_those_of_the_setting(tmp_path: Path) -> None:
    found = space_of(
        tmp_path,
        "train.aug.rotate_deg: {}",
        "train.optim.schedule: {}",
        "train.optim.class_weights: {}",
        "train.loop.epochs: {high: 40, step: 3}",
        "train.data.val_frac: {low: 0.1, high: 0.3}",
        "train.loop.patience: {choices: [null, 5]}",
    )
    assert found == {
        "train.aug.rotate_deg": Setting(kind="float", low=0.0, high=180.0),
        "train.data.val_frac": Setting(kind="float", low=0.1, high=0.3),
        "train.loop.epochs": Setting(kind="int", low=1, high=40, step=3),
        "train.loop.patience": Setting(kind="choice", choices=[None, 5]),
        "train.optim.class_weights": Setting(kind="choice", choices=[False, True]),
        "train.optim.schedule": Setting(kind="choice", choices=["step", "cosine", "one_cycle"]),
    }


@pytest.mark.parametrize(
    ("line", "told"),
    [
        ("train.optim.lrr: {}", "'train.optim.lrr' is not a setting; did you mean 'train.optim.lr'?"),
        ("train.optimiser.lr: {}", "did you mean 'train.optim'?"),
        ("train.optim.lr.peak: {}", "'train.optim.lr' is a value and has no keys below it"),
        ("train.optim: {}", "is a block; name one of its keys: lr, weight_decay"),
        ("evaluate.data.batch_size: {}", "is not a setting of the training; a study searches keys of train"),
        ("train.data.seed: {low: 1, high: 9}", "is chance, and the best of many seeds is luck"),
        ("train.io.out_models: {choices: [a, b]}", "says where results go; remove it from the space"),
        ("train.optim.lr: {low: 1e-4, high: 20}", "holds 20, which the setting itself refuses: Input should be less than or equal to 10"),
        ("train.data.val_frac: {low: 0.1, high: 1.0}", "Input should be less than 1"),
        ("train.data.val_frac: {low: 0.1}", "must stay below 1; give its high"),
        ("train.optim.lr: {high: 1}", "must stay above 0; give its low"),
        ("train.loop.patience: {}", "has no such bound of its own; give its high"),
        ("train.loop.epochs: {low: 2.5, high: 9}", "holds 2.5, which the setting itself refuses"),
        ("train.loop.epochs: {low: 1, high: 9, step: 0.5}", "is an integer but its step is 0.5"),
        ("train.optim.schedule: {choices: [cosine, linear]}", "holds 'linear', which the setting itself refuses"),
        ("train.optim.schedule: {low: 1, high: 2}", "so low, high, step and log do not apply"),
        ("train.model.name: {}", "has no values of its own to choose from; list some in choices"),
        ("train.model.name: {choices: [resnet18]}", "has no other value but 'resnet18'"),
        ("train.optim.schedule: {choices: []}", "has no other value"),
        ("train.loop.epochs: {low: 5, high: 5}", "has no other value but 5"),
        ("train.loop.epochs: {low: 5, high: 8, step: 4}", "has no other value but 5"),
        ("train.loop.epochs: {low: 9, high: 5}", "runs from 9 to 5; exchange low and high"),
        ("train.aug.scale: {log: true}", "is drawn on a logarithmic scale from 0.0; give a low above 0"),
        ("train.optim.lr: {low: 1e-4, high: 1, log: true, step: 0.1}", "leave one of them out"),
        ("train.optim.lr: {lo: 1}", "unknown key 'space.train.optim.lr.lo'; did you mean"),
        ("train.optim.lr: 3", "study.yaml:2"),
    ],
)  # fmt: skip
def test_a_space_that_cannot_be_searched_is_refused_with_its_line(
    tmp_path: Path, line: str, told: str
) -> None:
    with pytest.raises(ConfigError) as caught:
        space_of(tmp_path, line)
    assert told in str(caught.value)
    assert "study.yaml:2" in str(caught.value)


def test_a_study_without_a_space_or_of_an_unknown_name_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "empty.yaml"
    file.write_text("space: {}\n")
    with pytest.raises(ConfigError, match="the space is empty, so there is nothing to search"):
        read_space(file)
    with pytest.raises(ConfigError, match=r"There is no study 'nothing'; known: .*fine-tuning"):
        find_study("nothing")


def test_values_that_do_not_go_together_are_refused_as_any_configuration_is() -> None:
    found = with_values(TrainConfig(), {"train.optim.lr": 0.5, "train.data.start_size": None}, "trial 1")
    assert found == TrainConfig().model_copy(
        update={"optim": TrainConfig().optim.model_copy(update={"lr": 0.5})}
    )
    with pytest.raises(
        ConfigError, match="trial 2: 'optim': balanced_sampling and class_weights would make up"
    ):
        with_values(TrainConfig(), {"train.optim.balanced_sampling": True}, "trial 2")
