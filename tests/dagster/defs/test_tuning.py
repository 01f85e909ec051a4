from __future__ import annotations

from pathlib import Path

import pytest

from brainmri_core.config.experiments import apply_experiment, find_experiment
from brainmri_core.errors import ConfigError
from brainmri_core.project.pointers import TuningPointer
from brainmri_core.project.run_schema import read_manifest, read_plan
from brainmri_core.studies.record import read_report
from brainmri_core.studies.space import with_values
from brainmri_core.verify import verify
from tests.dagster.conftest import PHANTOM, Workbench, failure_of

pytestmark = pytest.mark.training
SPACE = "space: {train.optim.lr: {low: 1e-4, high: 0.1, log: true}, train.loop.epochs: {low: 1, high: 2}}"


def test_a_study_is_an_asset_whose_best_trial_can_be_run_as_an_experiment(
    packed: Workbench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "configs/studies").mkdir(parents=True)
    (tmp_path / "configs/studies/asset.yaml").write_text(SPACE)
    monkeypatch.chdir(tmp_path)
    chosen = ("tune.study=asset", "tune.trials=2", "train.optim.label_smoothing=0.1")
    packed.done(["tuning_study"], *chosen)
    pointer = packed.newest("tuning_study")
    layout = packed.layout
    shown = pointer.metadata
    assert {"macro_f1", "optimism", "note", "history", "trials", "experiment_file"} <= shown.keys()
    (file,) = layout.root.glob(f"outputs/pointers/tuning/{PHANTOM}+asset/latest.json")
    stored = TuningPointer.model_validate_json(file.read_bytes())
    manifest = read_manifest(layout.run_dir(stored.run_id) / "run_manifest.json")
    assert manifest.stages["tune"].metrics["macro_f1"] == stored.headline["macro_f1"]
    assert manifest.stages["tune"].output_hashes
    (planned,) = read_plan(layout.run_dir(stored.run_id) / "plan.json").stages
    assert planned.config["study"] == "asset"
    assert planned.config["train"]["optim"]["label_smoothing"] == 0.1
    assert not verify(layout).problems

    report = read_report(layout.absolute(stored.metrics))
    best = report.trials[report.best or 0]
    file = layout.absolute(stored.experiment_file)
    assert find_experiment(str(file)) == file
    trial = with_values(packed.config(*chosen).train, best.record.values, "best")
    again = apply_experiment(packed.config(), file).train
    assert again.model_copy(update={"data": trial.data}) == trial, "only the seed is filled in"
    with pytest.raises(ConfigError, match="name an experiment with lower-case letters"):
        find_experiment(str(file.with_name("Not It.yaml")))


@pytest.mark.full
def test_a_run_makes_as_many_trials_as_it_is_told_and_the_next_goes_on(
    packed: Workbench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "configs/studies").mkdir(parents=True)
    (tmp_path / "configs/studies/parts.yaml").write_text(SPACE)
    monkeypatch.chdir(tmp_path)
    for made in (1, 2, 2):
        packed.done(["tuning_study"], "tune.study=parts", "tune.trials=2", "tune.per_run=1")
        assert packed.newest("tuning_study").metadata["complete"].value == made
    told = failure_of(packed.run(["tuning_study"], "tune.study=parts", "train.optim.gamma=0.5"))
    assert told.startswith(
        "The study 'parts' was begun with other settings (train.optim.gamma was 0.1 and is 0.5)"
    )
