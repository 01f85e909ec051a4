"""The event log and the UI with a thousand trainings of folds, against the same project with ten.

    python -m benchmarks.bench_event_log [--sets 10] [--experiments 20] [--storage sqlite postgres] [--pictures FOLDER]

The graph of one data set, one fold and the leaderboard are made for real, with a small configuration. What their runs recorded
(metadata with pictures, checks, log lines) is then recorded again by cheap assets of the same specifications, in real runs inside
this process: for each data set the data stages, and for each experiment training, evaluation, leaderboard and five folds. Only the
metadata of Dagster's IO managers and the hand-over of inputs are not repeated; the first table says how many events of a run that is.

The pages are opened in a headless Chromium, which notes the GraphQL queries that they send. The webservers of the small and the
large instance then answer the same queries in turn. Milliseconds are the processor's: of the webserver with its code server, and
of Postgres. Nothing but them and this program uses the instances.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import dagster as dg
import psutil
import sqlalchemy
import yaml

from benchmarks.bench_scale import processor_seconds
from tests import ROOT
from tests.deploy.celery_case import free_port, postgres, wait_for
from tests.e2e.conftest import chromium, make_project

FOLDS = 5
SMALL = (1, 2)  # data sets and experiments of the instance that the large one is compared with
DATA = ("raw_dataset", "dataset_split", "resized_images", "validation_report")
MODEL = ("model_checkpoint", "evaluation", "leaderboard")
FOLD = ("fold_checkpoint", "fold_evaluation")
JOBS = {"prepare_data": DATA, "experiment": MODEL, "folds": FOLD}
ASKED = """
window.asked = [];
const asked = window.fetch;
window.fetch = (address, options) => {
  if (String(address.url || address).includes("graphql") && options) window.asked.push(options.body);
  return asked(address, options);
};
"""


def keys(count: int) -> list[str]:
    return [f"bench/set-{number}" for number in range(count)]


@dataclass
class Recorded:
    """What the real run of one asset recorded."""

    metadata: dict[str, Any]
    events: int = 0
    lines: list[str] = field(default_factory=list)
    checks: list[dg.AssetCheckResult] = field(default_factory=list)


@dataclass
class Instance:
    """A filled instance with its webserver."""

    name: str
    home: Path
    instance: dg.DagsterInstance
    address: str = ""
    server: int = 0
    programs: list[int] = field(default_factory=list)

    def used(self) -> float:
        """Return the processor seconds of Postgres and of the webserver."""
        return processor_seconds(self.programs) - sum(os.times()[:4])

    def ask(self, body: bytes) -> int:
        """Send a GraphQL query, and return the bytes of the answer; say so if that is an error."""
        request = urllib.request.Request(
            f"{self.address}/graphql", data=body, headers={"Content-Type": "application/json"}
        )
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        with opener.open(request, timeout=600) as answer:
            text = answer.read()
        if "errors" in json.loads(text):
            print(f"The webserver of {self.name} answered with an error: {text[:500]!r}", file=sys.stderr)
        return len(text)


def make_real_runs(folder: Path, sets: int) -> dict[str, str]:
    """Make the assets of one data set for real; return the environment of the project."""
    project = make_project(folder)
    config = folder / "configs/pipeline.yaml"
    settings = config.read_text().replace("folds: 2", f"folds: {FOLDS}")
    config.write_text(settings.replace("fetch: {", "fetch: {offline: true, "))
    shipped = yaml.safe_load((ROOT / "brainmri_core/defaults/datasets.yaml").read_text())["datasets"]
    catalogue = {"datasets": dict.fromkeys(keys(sets), shipped["brainmri/phantom"])}
    # JSON is YAML without anchors, which the catalogue does not accept.
    (folder / "configs/datasets.yaml").write_text(json.dumps(catalogue))
    own = keys(1)[0]
    module = ("asset", "materialize", "-m", "brainmri_dagster.code_location")
    for done in (
        project.brainmri("pipeline", "--dataset", own),
        project.dagster(*module, "--select", "leaderboard", "--partition", own),
        project.dagster(*module, "--select", ",".join(FOLD), "--partition", f"{own}|0"),
    ):
        if done.returncode:
            raise SystemExit(done.stderr[-3000:])
    return project.env


def recorded(instance: dg.DagsterInstance) -> dict[str, Recorded]:
    """Read what the real runs recorded, by asset."""
    found: dict[str, Recorded] = {}
    for run in instance.get_runs():
        for entry in instance.all_logs(run.run_id):
            if entry.step_key is None:
                continue
            of = found.setdefault(entry.step_key, Recorded({}))
            of.events += 1
            event = entry.dagster_event
            if event is None:
                of.lines.append(entry.user_message)
            elif event.event_type is dg.DagsterEventType.ASSET_MATERIALIZATION:
                made = event.step_materialization_data.materialization
                of.metadata = {key: made.metadata[key] for key in made.metadata if "dagster/" not in key}
            elif event.event_type is dg.DagsterEventType.ASSET_CHECK_EVALUATION:
                check = event.asset_check_evaluation_data
                of.checks.append(
                    dg.AssetCheckResult(
                        passed=check.passed,
                        check_name=check.check_name,
                        metadata=check.metadata,
                        severity=check.severity,
                        description=check.description,
                    )
                )
    return found


def recording(real: dg.AssetsDefinition, found: Recorded) -> dg.AssetsDefinition:
    """Return an asset like a real one, whose run records again what was recorded."""
    from brainmri_dagster.graph.asset_table import EXPERIMENT_TAG

    @dg.multi_asset(
        name=real.key.to_user_string(), specs=list(real.specs), check_specs=list(real.check_specs)
    )
    def again(context) -> Iterator[dg.MaterializeResult[Any]]:
        for line in found.lines:
            context.log.info(line)
        experiment = context.run.tags.get(EXPERIMENT_TAG, "default")
        yield dg.MaterializeResult(
            metadata={**found.metadata, "experiment": experiment}, check_results=found.checks
        )

    return again


def fill(instance: dg.DagsterInstance, found: dict[str, Recorded], sets: int, experiments: int) -> int:
    """Record the runs of some data sets and experiments; return the number of runs."""
    from brainmri_dagster.code_location import defs
    from brainmri_dagster.graph.asset_table import EXPERIMENT_TAG
    from brainmri_dagster.graph.partitions import folds

    real = {asset.key.to_user_string(): asset for asset in defs.assets or []}
    assets = [recording(real[name], found[name]) for names in JOBS.values() for name in names]
    jobs = [
        dg.define_asset_job(job, dg.AssetSelection.assets(*names), executor_def=dg.in_process_executor)
        for job, names in JOBS.items()
    ]
    again = dg.Definitions(assets, jobs=jobs)
    count = 0

    def run(job: str, partition: str, experiment: str) -> None:
        nonlocal count
        again.resolve_job_def(job).execute_in_process(
            run_config={"loggers": {"console": {"config": {"log_level": "CRITICAL"}}}},
            partition_key=partition,
            instance=instance,
            tags={EXPERIMENT_TAG: experiment},
        )
        count += 1

    for key in keys(sets):
        run("prepare_data", key, "default")
        for number in range(experiments):
            run("experiment", key, f"experiment-{number}")
            for fold in range(FOLDS):
                run("folds", folds.get_partition_key_from_str(f"{key}|{fold}"), f"experiment-{number}")
    return count


def size_of(home: Path, url: str | None) -> float:
    """Return the MB that an instance takes: its files, and its Postgres database."""
    total = sum(path.stat().st_size for path in home.rglob("*") if path.is_file())
    if url is not None:
        with sqlalchemy.create_engine(url).connect() as connection:
            total += connection.execute(
                sqlalchemy.text("select pg_database_size(current_database())")
            ).scalar_one()
    return total / 1e6


@contextmanager
def webserver(instance: Instance) -> Iterator[None]:
    """Run the webserver of an instance, as `dagster dev` does but without the daemon."""
    port = free_port()
    command = [sys.executable, "-m", "dagster_webserver", "-w", "workspace.yaml", "-h", "127.0.0.1"]
    with (instance.home.parent / f"{instance.name}.log").open("wb") as log:
        process = subprocess.Popen(
            [*command, "-p", str(port)],
            cwd=ROOT,
            env=os.environ | {"DAGSTER_HOME": str(instance.home)},
            stdout=log,
            stderr=log,
        )
    instance.address, instance.server = f"http://127.0.0.1:{port}", process.pid
    instance.programs.append(process.pid)
    try:
        wait_for(port)
        yield
    finally:
        process.terminate()
        process.wait(60)


def pages(address: str) -> dict[str, str]:
    key = f"{keys(1)[0]}|3".replace("/", "%2F").replace("|", "%7C")
    return {
        "asset graph": f"{address}/asset-groups/?expanded=global@global:data,global@global:model,"
        "global@global:cross_validation",
        "an asset's partitions": f"{address}/assets/fold_evaluation?view=partitions",
        "one partition": f"{address}/assets/fold_evaluation?view=partitions&partition={key}",
        "an asset's checks": f"{address}/assets/validation_report?view=checks",
        "an asset's overview": f"{address}/assets/evaluation?view=overview",
        "an asset's events": f"{address}/assets/evaluation?view=events",
        "runs": f"{address}/runs",
    }


def queries(browser: Any, page: str, picture: Path | None) -> tuple[dict[str, bytes], float]:
    """Open a page, and return its different queries by name and number, and the seconds until it asked no more."""
    browser.get("about:blank")
    start = time.perf_counter()
    browser.get(page)
    found: dict[str, bytes] = {}
    last = start
    while time.perf_counter() - last < 8 and time.perf_counter() - start < 90:
        time.sleep(0.25)
        for body in browser.execute_script("return window.asked || []"):
            if isinstance(body, str) and body.encode() not in found.values():
                name = json.loads(body).get("operationName")
                found[f"{name} {len(found) + 1}"], last = body.encode(), time.perf_counter()
    if picture is not None:
        browser.save_screenshot(str(picture))
    return found, last - start


def compare_pages(small: Instance, large: Instance, rounds: int, pictures: Path | None) -> None:
    """Print, for each page, what its queries cost on both instances."""
    print("\n| page | queries | small | large | ratio | answers | until the last query | most of it |")
    print("| --- | ---: | ---: | ---: | ---: | ---: | ---: | --- |")
    with chromium(1600, 1200) as browser:
        browser.execute_cdp_cmd("Page.addScriptToEvaluateOnNewDocument", {"source": ASKED})
        for name, page in pages(large.address).items():
            picture = pictures / f"{large.name}-{name.replace(' ', '-')}.png" if pictures else None
            bodies, seconds = queries(browser, page, picture)
            browser.get("about:blank")
            costs: dict[str, dict[str, list[float]]] = {
                one.name: {query: [] for query in bodies} for one in (small, large)
            }
            answers = dict.fromkeys(bodies, 0)
            for place in range(rounds + 1):
                for query, body in bodies.items():
                    for one in (small, large):
                        before = one.used()
                        answers[query] = one.ask(body)
                        if place:  # the first round fills caches
                            costs[one.name][query].append(1000 * (one.used() - before))
            few, many = (
                {query: statistics.mean(used) for query, used in costs[one.name].items()}
                for one in (small, large)
            )
            most = max(many, key=lambda query: many[query])
            print(
                f"| {name} | {len(bodies)} | {sum(few.values()):.0f} ms | {sum(many.values()):.0f} ms | "
                f"{sum(many.values()) / sum(few.values()):.1f} | {sum(answers.values()) / 1e3:,.0f} kB | {seconds:.1f} s | "
                f"{most.split()[0]}: {few[most]:.0f} to {many[most]:.0f} ms |",
                flush=True,
            )


def own_reads() -> dict[str, Callable[[dg.DagsterInstance], object]]:
    """Return what the project's own code reads from an instance, by name."""
    from brainmri_dagster.code_location import defs
    from brainmri_dagster.defs import sensors
    from brainmri_dagster.graph.asset_table import PIPELINE
    from brainmri_dagster.graph.resources import default_project, defaults
    from brainmri_dagster.running.recorded_evaluations import newest_evaluations
    from brainmri_dagster.running.staleness import stale_assets

    layout, key = default_project().layout, keys(1)[0]
    first = ("model_checkpoint", "evaluation", "champion")

    def tick(sensor: Callable[[dg.SensorEvaluationContext], Any], instance: dg.DagsterInstance) -> object:
        with dg.build_sensor_context(instance=instance) as context:
            found = sensor(context)
            return list(found) if isinstance(found, Iterator) else found

    def automation(instance: dg.DagsterInstance) -> object:
        return dg.evaluate_automation_conditions(
            defs, instance, asset_selection=dg.AssetSelection.assets(*first)
        )

    return {
        "sensor `new_dataset_version`": lambda instance: tick(sensors.new_dataset_version, instance),
        "sensor `retrain`": lambda instance: tick(sensors.retrain, instance),
        "sensor `dead_runs`": lambda instance: tick(sensors.dead_runs, instance),
        "sensor `automation`, its first tick": automation,
        "what is out of date of a data set": lambda instance: stale_assets(
            instance, layout, defaults(), key, list(PIPELINE)
        ),
        "the leaderboard's evaluations": lambda instance: newest_evaluations(instance, layout, key),
    }


def compare_own(small: Instance, large: Instance, rounds: int) -> None:
    """Print what the project's own reads cost on both instances, in this process and in Postgres."""
    print("\n| own code | small | large | ratio |\n| --- | ---: | ---: | ---: |")
    for name, read in own_reads().items():
        costs: dict[str, list[float]] = {small.name: [], large.name: []}
        for place in range(rounds + 1):
            for one in (small, large):
                before, start = one.used(), time.process_time()
                read(one.instance)
                if place:
                    costs[one.name].append(1000 * (one.used() - before + time.process_time() - start))
        few, many = (statistics.mean(costs[one.name]) for one in (small, large))
        print(f"| {name} | {few:.0f} ms | {many:.0f} ms | {many / max(few, 1e-9):.1f} |", flush=True)


def compare(folder: Path, storage: str, sizes: list[tuple[int, int]], options: argparse.Namespace) -> None:
    """Fill a small and a large instance with one storage, and print what they take."""
    with dg.DagsterInstance.from_config(os.environ["DAGSTER_HOME"]) as real:
        found = recorded(real)
    print(f"\n{storage}\n\n| instance | runs | events of folds, real and here | size | filled in |")
    print("| --- | ---: | ---: | ---: | ---: |")
    with ExitStack() as opened:
        instances = []
        for name, (sets, experiments) in zip(("small", "large"), sizes, strict=True):
            home = folder / f"{storage}-{name}"
            home.mkdir()
            settings = yaml.safe_load((ROOT / "brainmri_dagster/dagster.yaml").read_text())
            database = opened.enter_context(postgres()) if storage == "postgres" else None
            if database is not None:
                settings["storage"] = {"postgres": {"postgres_url": database.url}}
            (home / "dagster.yaml").write_text(yaml.safe_dump(settings))
            instance = opened.enter_context(dg.DagsterInstance.from_config(str(home)))
            start = time.process_time()
            runs = fill(instance, found, sets, experiments)
            seconds = time.process_time() - start
            (last,) = instance.get_runs(dg.RunsFilter(job_name="folds"), limit=1)
            events = sum(entry.step_key is not None for entry in instance.all_logs(last.run_id))
            print(
                f"| {name}: {sets * FOLDS * experiments:,} trainings of folds | {runs:,} | "
                f"{sum(found[asset].events for asset in FOLD)} and {events} | "
                f"{size_of(home, database.url if database else None):,.0f} MB | {seconds:.0f} s |",
                flush=True,
            )
            programs = [database.process.pid] if database and database.process else []
            instances.append(Instance(f"{storage}-{name}", home, instance, programs=programs))
        small, large = instances
        compare_own(small, large, options.rounds)
        for one in instances:
            opened.enter_context(webserver(one))
        compare_pages(small, large, options.rounds, options.pictures)
        for one in instances:
            used = psutil.Process(one.server).memory_info().rss / 1e6
            print(f"\nwebserver of {one.name}: {used:,.0f} MB of memory", end="")
        print()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sets", type=int, default=10)
    parser.add_argument("--experiments", type=int, default=20)
    parser.add_argument("--storage", nargs="+", choices=("sqlite", "postgres"), default=["sqlite"])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument(
        "--pictures", type=Path, help="where to leave pictures of the pages of the large instance"
    )
    parser.add_argument("--inside", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    sizes = [SMALL, (options.sets, options.experiments)]
    if options.inside:
        for storage in options.storage:
            compare(options.inside, storage, sizes, options)
        return
    # The project's code reads its environment when it is imported, so a second process goes on.
    with tempfile.TemporaryDirectory() as name:
        environment = make_real_runs(Path(name) / "real", options.sets)
        again = [sys.executable, "-m", "benchmarks.bench_event_log", *sys.argv[1:], "--inside", name]
        subprocess.run(again, cwd=ROOT, env=environment, check=True)


if __name__ == "__main__":
    main()
