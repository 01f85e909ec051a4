from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from brainmri_core.config import PipelineConfig, load_config
from brainmri_core.config.base import parse_yaml, without_later
from brainmri_core.errors import BrainMRIError, ConfigError
from tests import ROOT

SPEC = ROOT / "tests/fixtures/spec_pipeline.yaml"


def write(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "pipeline.yaml"
    path.write_text(text)
    return path


def test_example_of_the_specification_loads_verbatim() -> None:
    config = load_config(SPEC)
    assert config.run_id == "bt-exp-001"
    assert config.train.optim.lr == 0.001
    assert config.train.data.num_workers == 4
    assert config.split.exts == [".jpg", ".jpeg", ".png"]
    assert config.resize.exts == "all"
    assert config.evaluate.io.top_per_class == 6
    assert config.log.json_lines is False
    assert config.validate_.fail_on == "warning"


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("train:\n  optm:\n    lr: 1\n", ["pipeline.yaml:2", "'train.optm'", "did you mean 'train.optim'"]),
        ("train:\n  optim:\n    lr: fast\n", ["pipeline.yaml:3", "'train.optim.lr'", "'fast'"]),
        ("train:\n  optim:\n    lr: '1e-3'\n", ["'train.optim.lr'", "'1e-3'"]),
        (
            "train:\n  optim:\n    balanced_sampling: true\n",
            ["train.optim", "balanced_sampling and class_weights would", "set one of them to false"],
        ),
        ("split:\n  test_frac: 1.5\n", ["pipeline.yaml:2", "'split.test_frac'", "less than 1", "1.5"]),
        ("split:\n  test_frac: 0.2\n  test_frac: 0.3\n", ["pipeline.yaml:3", "'split.test_frac'", "twice"]),
        ("a: &x [1]\nb: *x\n", ["pipeline.yaml:2", "alias"]),
        ("fetch: [1, 2\n", ["pipeline.yaml", "not valid YAML"]),
        ("- 1\n", ["key: value"]),
        ("split:\n", ["pipeline.yaml:1", "'split' is empty"]),
        ("validate:\n  fail_on: no\n", ["'validate.fail_on'", "'no'"]),
        ("split:\n  exts: ['.psd']\n", ["'split.exts'", ".jpg"]),
        ("run_id: ../x\n", ["'run_id'", "../x"]),
        ("fetch:\n  dataset: a/b\nsplit:\n  dataset: c/d\n", ["a/b and c/d"]),
        ("evaluate:\n  model:\n    name: resnet34\n", ["evaluate.model.name", "resnet34"]),
    ],
)
def test_bad_configuration_is_one_sentence_that_names_the_place(
    tmp_path: Path, text: str, parts: list[str]
) -> None:
    with pytest.raises(ConfigError) as caught:
        load_config(write(tmp_path, text))
    message = str(caught.value)
    assert "\n" not in message
    for part in parts:
        assert part in message


BOMB = "a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]\n" for n in range(1, 12)
)


@pytest.mark.parametrize(
    ("text", "part"),
    [
        (BOMB, "alias"),
        ("a: &a [*a]\n", "alias"),
        ("<<: &x {a: 1}\nb: *x\n", "alias"),
        ("[" * 50_000, "nested"),
        ("{a: " * 30 + "1" + "}" * 30, "nested"),
        ("\n".join("  " * n + "a:" for n in range(30)), "nested"),
        ("a: !!python/object/apply:os.system [true]\n", "tags"),
        ("a: !!timestamp x\n", "tags"),
        ("a: !!int ''\n", "tags"),
        ("a: {b: 1, b: 2}\n", "twice"),
        ("a: \x00\n", "not valid YAML"),
    ],
)
def test_hostile_yaml_is_refused_at_once(text: str, part: str) -> None:
    with pytest.raises(ConfigError, match=part) as caught:
        parse_yaml(text, "x")
    assert str(caught.value).isprintable() and len(str(caught.value)) < 300


def test_overrides_parse_by_the_type_of_the_field(tmp_path: Path) -> None:
    config = load_config(
        write(tmp_path, "train:\n  loop:\n    epochs: 3\n"),
        ["train.optim.lr=3e-4", "train.loop.epochs=5", "fetch.archive=123", "log.json=true", "run_id=2026"],
    )
    assert config.train.optim.lr == 3e-4
    assert config.train.loop.epochs == 5
    assert config.fetch.archive == "123"
    assert config.log.json_lines is True
    assert config.run_id == "2026"


@pytest.mark.parametrize(
    ("override", "part"),
    [
        ("train.optm.lr=1", "did you mean 'train.optim'"),
        ("train.optim=1", "is a block"),
        ("train.optim.lr.x=1", "has no keys below it"),
        ("train.optim.lr", "key=value"),
        ("=3", "key=value"),
        ("train.loop.epochs=2.5", "train.loop.epochs"),
    ],
)
def test_bad_overrides_are_refused(tmp_path: Path, override: str, part: str) -> None:
    with pytest.raises(ConfigError, match=part):
        load_config(write(tmp_path, ""), [override])


def test_open_seeds_follow_env_seed_and_given_ones_stay(tmp_path: Path) -> None:
    config = load_config(write(tmp_path, "env:\n  seed: 7\ntrain:\n  data:\n    seed: 3\n"))
    resolved = config.resolved()
    assert resolved["split"]["seed"] == 7
    assert resolved["train"]["data"]["seed"] == 3
    assert resolved["evaluate"]["data"]["seed"] == 7


def test_a_seed_is_empty_until_the_configuration_is_resolved() -> None:
    config = PipelineConfig.model_validate({"env": {"seed": 7}, "train": {"data": {"val_seed": 9}}})
    with pytest.raises(
        ConfigError, match=r"seed of this configuration is empty; set it, or take .* fills it from env\.seed"
    ):
        _ = config.split.resolved_seed
    filled = config.with_seeds()
    assert (filled.split.resolved_seed, filled.evaluate.data.resolved_seed) == (7, 7)
    assert (filled.train.data.resolved_seed, filled.train.data.validation_seed) == (7, 9)
    assert PipelineConfig().with_seeds().train.data.validation_seed == 42, (
        "that of the training, which is env.seed"
    )


def test_resolved_configuration_loads_again_to_the_same_value() -> None:
    resolved = load_config(SPEC).resolved()
    assert PipelineConfig.model_validate(resolved).resolved() == resolved


def test_settings_that_came_later_count_only_away_from_their_default() -> None:
    usual = load_config(SPEC).resolved()
    counted = without_later(PipelineConfig, usual)
    later = usual["train"]["aug"].keys() - counted["train"]["aug"].keys()
    assert later == {
        "jitter_gamma",
        "bias_field",
        "randaugment_ops",
        "randaugment_magnitude",
        "erase_prob",
        "erase_area",
    }
    assert usual["train"]["optim"].keys() - counted["train"]["optim"].keys() == {"batch_norm", "snapshots"}
    assert usual["resize"].keys() - counted["resize"].keys() == {"shard_mib"}
    back = {name: usual["train"][name] for name in ("aug", "optim")}
    assert {**counted, "train": {**counted["train"], **back}, "resize": usual["resize"]} == usual
    assert PipelineConfig.model_validate(counted).resolved() == usual, "what is left out reads as it was"
    used = load_config(SPEC, ["train.aug.erase_area=0.3", "train.aug.bias_field=0.5"]).resolved()
    kept = without_later(PipelineConfig, used)["train"]["aug"]
    assert kept == {**counted["train"]["aug"], "erase_area": 0.3, "bias_field": 0.5}


def test_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"gone\.yaml"):
        load_config(tmp_path / "gone.yaml")


def test_yaml_scalars_mean_what_they_say() -> None:
    value, _ = parse_yaml("a: no\nb: 1e-3\nc: true\nd: 1.5\ne: 012\nf: .5\ng: off\n", "x")
    assert value["a"] == "no"
    assert value["b"] == 0.001
    assert value["c"] is True
    assert value["d"] == 1.5
    assert value["f"] == 0.5
    assert value["g"] == "off"


@settings(max_examples=300, deadline=None)
@given(st.text(max_size=200) | st.text(alphabet="ab:-[]{}&*!|>'\" \n\t#0%", max_size=60))
def test_any_text_is_read_or_refused_with_our_error(text: str) -> None:
    try:
        parse_yaml(text, "fuzz")
    except BrainMRIError as error:
        assert str(error)
