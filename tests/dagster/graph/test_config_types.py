from __future__ import annotations

from typing import Annotated, Literal

import dagster as dg
import pytest
from dagster._config import validate_config as validate_dagster_config
from pydantic import Field

from brainmri_core.config import BLOCKS, PipelineConfig, StageConfig
from brainmri_core.errors import ConfigError
from brainmri_dagster.graph.config_types import config_schema, to_core


class Inner(StageConfig):
    """Inner block."""

    rate: float = Field(0.5, gt=0, le=1, description="Rate.")


class Outer(StageConfig):
    """Outer block."""

    inner: Inner = Inner()
    kind: Literal["a", "b"] = "a"
    exts: Annotated[Literal["all"] | list[str], Field(description="Extensions.")] = "all"
    maybe: int | None = Field(None, ge=3, description="Maybe.")
    renamed_: bool = Field(True, alias="renamed")
    table: dict[str, int] = Field(default_factory=dict)
    either: int | str = 1


def resolved(value: dict[str, object]) -> dict[str, object]:
    @dg.op(config_schema=config_schema(Outer(renamed=False)))
    def capture(context):
        return context.op_config

    @dg.job
    def job():
        capture()

    result = job.execute_in_process(run_config={"ops": {"capture": {"config": value}}})
    return result.output_for_node("capture")


def test_defaults_are_the_instances_values_under_yaml_names():
    value = resolved({})
    assert value == {
        "inner": {"rate": 0.5},
        "kind": "a",
        "exts": "all",
        "maybe": None,
        "renamed": False,
        "table": {},
        "either": 1,
    }
    assert to_core(Outer, value, "here") == Outer(renamed=False)


@pytest.mark.parametrize(
    "value",
    [
        {"exts": [".png", ".jpg"]},
        {"kind": "b", "inner": {"rate": 1}},
        {"maybe": 7, "table": {"x": 2}, "either": "text"},
        {"maybe": None},
    ],
)
def test_values_reach_the_core_model(value):
    core = to_core(Outer, resolved(value), "here")
    assert core == Outer.model_validate({"renamed": False, **value})


@pytest.mark.parametrize(
    "value", [{"kind": "c"}, {"exts": 3}, {"unknown": 1}, {"inner": {"rat": 1.0}}, {"maybe": "three"}]
)
def test_dagster_refuses_at_launch(value):
    with pytest.raises(dg.DagsterInvalidConfigError):
        resolved(value)


def test_bounds_are_checked_by_the_core_with_the_path_of_the_key():
    with pytest.raises(ConfigError, match=r"run config: 'inner\.rate': .*less than or equal to 1; found 7"):
        to_core(Outer, resolved({"inner": {"rate": 7.0}}), "run config")


def test_descriptions_carry_the_bounds():
    schema = config_schema(Outer())
    rate = schema["inner"].config_type.fields["rate"]
    assert rate.description == "Rate. (greater than 0, at most 1)"
    assert schema["inner"].description == "Inner block."
    assert schema["maybe"].description == "Maybe. (at least 3)"
    assert schema["kind"].description == "(one of a, b)"


@pytest.mark.parametrize("stage", BLOCKS)
def test_every_stage_of_the_pipeline_converts_both_ways(stage):
    block = getattr(PipelineConfig(), "validate_" if stage == "validate" else stage)
    value = block.model_dump(mode="json", by_alias=True)
    schema = dg.Field(config_schema(block)).config_type
    checked = validate_dagster_config(schema, value)
    assert checked.success, checked.errors
    assert to_core(type(block), value, stage) == block
    assert all(field.description for field in schema.fields.values()), (
        "every key of the launchpad explains itself"
    )
