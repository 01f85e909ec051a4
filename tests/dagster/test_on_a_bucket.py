from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import dagster as dg
import pandas as pd
import pytest
from typer.testing import CliRunner

from brainmri_core.classifier.search import model_in_use
from brainmri_core.config import PipelineConfig, load_config
from brainmri_core.predict import Classifier
from brainmri_core.project.layout import Layout
from brainmri_core.project.pointer_store import follow, latest_pointer
from brainmri_core.project.pointers import (
    BatchPredictionPointer,
    ChampionPointer,
    CheckpointPointer,
    CrossValidationPointer,
    EmbeddingsPointer,
    EvaluationPointer,
    ExternalEvaluationPointer,
    FoldEnsemblePointer,
    GeneralisationPointer,
    LeaderboardPointer,
    MappingPointer,
    PackPointer,
    TuningPointer,
)
from brainmri_core.studies.record import read_report
from brainmri_core.system.json_files import read_json
from brainmri_core.verify import verify
from brainmri_dagster.cli import app
from brainmri_dagster.graph.asset_table import PIPELINE, pair_key
from tests.dagster.conftest import PHANTOM, TINY, Workbench, bench_in, failure_of
from tests.object_store import BUCKET, StoreServer

pytestmark = [pytest.mark.training, pytest.mark.full]

SECOND = "brainmri/phantom-b"
# of every class for each of five folds
ENOUGH = ("fetch.phantom.subjects_per_class=8", "split.folds=5")


@dataclass
class Machines(Workbench):
    """Machines that share a bucket and the records of runs; each run is on one that has no copies yet."""

    url: str = ""
    folder: Path = field(default_factory=Path)
    number: int = 0

    def config(self, *overrides: str) -> PipelineConfig:
        self.number += 1
        cache = self.folder / f"machine{self.number}"
        self.layout = Layout.at(self.url, str(cache))
        return load_config(None, [*TINY, f"paths.root={self.url}", f"paths.cache={cache}", *overrides])

    def done(self, assets: Sequence[str], *overrides: str, **options: Any) -> dg.ExecuteInProcessResult:
        result = super().done(assets, *overrides, **options)
        self.config()  # whoever looks at the results is yet another machine
        return result

    def pointer(self, asset: str, partition: str = PHANTOM) -> Any:
        return super().pointer(asset, partition)


@pytest.fixture(scope="module")
def machines(object_store: StoreServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Machines]:
    """A bucket in which the six stages have run."""
    folder = tmp_path_factory.mktemp("machines")
    with pytest.MonkeyPatch.context() as patch, bench_in(folder) as bench:
        for name, value in object_store.environment.items():
            patch.setenv(name, value)
        made = Machines(bench.layout, bench.instance, f"s3://{BUCKET}/assets", folder)
        made.done(PIPELINE, *ENOUGH)
        yield made


def test_folds_are_trained_on_one_machine_and_put_together_on_another(machines: Machines) -> None:
    for fold in range(5):
        for assets in (
            (["fold_checkpoint"], ["fold_evaluation"])
            if not fold
            else (["fold_checkpoint", "fold_evaluation"],)
        ):
            machines.done(assets, partition=f"{PHANTOM}|{fold}")
    machines.done(["cross_validation_report"])
    report = machines.pointer("cross_validation_report")
    assert isinstance(report, CrossValidationPointer)
    folder = machines.layout.absolute(report.folder)
    assert len(pd.read_csv(folder / "label_issues.csv")) == read_json(folder / "metrics.json")["label_issues"]
    machines.done(["fold_ensemble"])
    machines.done(["ensemble_evaluation"])
    ensemble = latest_pointer(machines.layout, FoldEnsemblePointer, PHANTOM)
    measured = latest_pointer(machines.layout, EvaluationPointer, PHANTOM)
    assert ensemble and measured and measured.checkpoint_pointer == ensemble.pointer_path
    # a list that one machine wrote is what another splits by
    machines.done(
        ["dataset_split"],
        "split.strategy=predefined",
        f"split.predefined_csv={report.folder}/split_without_label_issues.csv",
    )


def test_models_of_several_machines_are_ranked_and_one_is_the_champion(machines: Machines) -> None:
    machines.done(["champion"])
    first = machines.pointer("champion")
    assert isinstance(first, ChampionPointer) and first.crowned
    machines.done(["model_checkpoint", "evaluation"], "train.optim.lr=0.01", experiment="fast")
    machines.done(["champion"])
    second = machines.pointer("champion")
    assert "validation images" in second.reason or "out-of-fold" in second.reason
    holder = follow(machines.layout, CheckpointPointer, second.champion_checkpoint)
    assert second.weights == holder.checkpoint
    machines.done(["leaderboard"])
    board = machines.pointer("leaderboard")
    assert isinstance(board, LeaderboardPointer) and board.experiments == 2


def test_features_that_a_machine_has_computed_are_read_on_others(machines: Machines) -> None:
    made = []
    for _ in range(2):
        machines.done(
            ["embeddings"],
            "embeddings.model.name=mobilenet_v3_small",
            "embeddings.model.pretrained=false",
            "embeddings.probe.depths=1",
        )
        pointer = machines.pointer("embeddings")
        assert isinstance(pointer, EmbeddingsPointer)
        log = machines.layout.store.newest(
            machines.layout.relative(machines.layout.run_dir(pointer.run_id) / "logs/embeddings.log")
        )
        made.append((pointer.features, pointer.content_hash, "features computed before" in log.read_text()))
    assert made[0][:2] == made[1][:2]
    assert [item[2] for item in made] == [False, True]


def test_a_model_is_measured_on_a_data_set_of_another_machine(machines: Machines) -> None:
    machines.done(["raw_dataset", "dataset_split", "resized_images"], partition=SECOND)
    pair = pair_key(PHANTOM, SECOND)
    quick = (
        "external.bootstrap_resamples=100",
        "external.shift_permutations=99",
        "external.recalibration_images=[10]",
    )
    machines.done(["external_evaluation"], *quick, partition=pair)
    assert isinstance(machines.pointer("external_evaluation", pair), ExternalEvaluationPointer)
    machines.done(["generalisation"], partition=None)
    pointer = latest_pointer(machines.layout, GeneralisationPointer, "every/every")
    assert pointer is None or pointer.pairs == 1


def test_images_are_predicted_by_the_model_of_another_machine(machines: Machines) -> None:
    machines.done(["raw_dataset"], partition=SECOND)
    for again in (False, True):
        machines.done(["batch_predictions"], f"batch_predict.model_of={PHANTOM}", partition=SECOND)
        report = read_json(machines.layout.absolute(machines.pointer("batch_predictions", SECOND).report))
        assert report["reused"] == (report["images"] - report["unusable"] if again else 0)
    pointer = machines.pointer("batch_predictions", SECOND)
    assert isinstance(pointer, BatchPredictionPointer) and pointer.images > 0
    classifier = Classifier.load(model_in_use(machines.layout, PHANTOM, "--dataset"))
    assert classifier.evaluation is not None, "it is as sure as the other machine has measured"


def test_a_mapping_of_another_machine_chooses_the_images(machines: Machines) -> None:
    pack = machines.pointer("resized_images")
    assert isinstance(pack, PackPointer)
    first = follow(machines.layout, MappingPointer, pack.mapping_pointer)
    machines.done(PIPELINE[1:3], "split.test_frac=0.4")
    for value in (first.pointer_path, first.path):
        machines.done(["model_checkpoint"], f"train.data.mapping_pointer={value}")
        assert machines.pointer("model_checkpoint").pack_pointer == pack.pointer_path
    for asset, key in (("model_checkpoint", "train.data"), ("validation_report", "validate")):
        refused = machines.run([asset], f"{key}.mapping_pointer=outputs/pointers/mapping/a/b")
        assert "there is no mapping pointer" in failure_of(refused) or "does not exist" in failure_of(refused)


def test_two_data_sets_of_other_machines_are_searched_for_what_they_have_in_common(
    machines: Machines,
) -> None:
    machines.done(["raw_dataset", "dataset_split"], partition=SECOND)
    config = machines.folder / "config.yaml"
    config.write_text(f"paths: {{root: {machines.url}, cache: {machines.folder / 'looks'}}}\n")
    told = CliRunner().invoke(app, ["overlap", PHANTOM, SECOND, "--config", str(config)])
    assert told.exit_code == 0, told.output
    assert f"A: {PHANTOM}, " in told.output


def test_several_processes_train_for_a_bucket(machines: Machines) -> None:
    machines.done(["model_checkpoint"], "train.distributed.nproc=2")
    pointer = machines.pointer("model_checkpoint")
    assert isinstance(pointer, CheckpointPointer)
    assert machines.layout.absolute(pointer.checkpoint).is_file()


def test_a_study_is_continued_on_another_machine(
    machines: Machines, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "configs/studies").mkdir(parents=True)
    (tmp_path / "configs/studies/shared.yaml").write_text("space: {train.optim.lr: {low: 1e-4, high: 0.1}}")
    monkeypatch.chdir(tmp_path)
    for made in (1, 2):
        machines.done(["tuning_study"], "tune.study=shared", "tune.trials=2", "tune.per_run=1")
        assert machines.newest("tuning_study").metadata["complete"].value == made
    pointer = latest_pointer(machines.layout, TuningPointer, f"{PHANTOM}+shared")
    assert pointer is not None and pointer.headline["optimism"] is not None
    assert read_report(machines.layout.absolute(pointer.metrics)).count("complete") == 2
    told = failure_of(machines.run(["tuning_study"], "tune.study=shared", "train.optim.gamma=0.5"))
    assert told.startswith("The study 'shared' was begun with other settings")


def test_what_all_of_them_left_is_well(machines: Machines) -> None:
    found = verify(machines.layout)
    assert found.problems == [] and found.runs == len(machines.instance.get_runs())
