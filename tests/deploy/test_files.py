"""The files of `deploy/`, as far as they can be tried without the engines that read them."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import urlsplit

import dagster as dg
import kubernetes_validate
import pytest
import yaml
from dagster._core.instance.config import dagster_instance_config
from dagster_k8s import K8sRunLauncher
from dagster_k8s.job import construct_dagster_k8s_job
from kubernetes.client import ApiClient

from brainmri_core.config import PathsConfig, load_config
from brainmri_core.system.store_url import is_url
from brainmri_dagster.code_location import defs
from brainmri_dagster.defs.jobs import JOBS
from tests import ROOT

DEPLOY = ROOT / "deploy"
DOCS = (ROOT / "docs/deployment.md").read_text()
CLUSTERS = ["1.33", "1.37"]
KUBERNETES = DOCS.split("## Kubernetes")[1].split("\n## ")[0]
Objects = list[dict[str, Any]]


@pytest.fixture(scope="module", params=["folder", "bucket"])
def place(request: pytest.FixtureRequest) -> str:
    """Where the project of the cluster lies."""
    return str(request.param)


@pytest.fixture(scope="module")
def objects(place: str, tmp_path_factory: pytest.TempPathFactory) -> Objects:
    """The manifests; for a bucket, as the documentation's command changes them."""
    checkout = tmp_path_factory.mktemp("checkout")
    folder = shutil.copytree(DEPLOY / "kubernetes", checkout / "deploy/kubernetes")
    if place == "bucket":
        (command,) = re.findall(r"(?m)^sed .*$", KUBERNETES)
        subprocess.run(command, shell=True, check=True, cwd=checkout)
    return [item for path in sorted(folder.glob("*.yaml")) for item in yaml.safe_load_all(path.read_text())]


def of_kind(objects: Objects, kind: str) -> dict[str, Any]:
    return {item["metadata"]["name"]: item for item in objects if item["kind"] == kind}


def instance_of(folder: Path, text: str, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Read an instance's file as Dagster does: an unknown key, class or kind of value is refused."""
    for name in re.findall(r"env: (BRAINMRI_\w+)", text):
        monkeypatch.setenv(name, str(folder))
    (folder / "dagster.yaml").write_text(text)
    found, _ = dagster_instance_config(str(folder))
    return dict(found)


@pytest.mark.parametrize("version", CLUSTERS)
def test_a_cluster_of_this_version_knows_every_field_of_the_manifests(version: str, objects: Objects) -> None:
    assert len(objects) > 12
    for item in objects:
        kubernetes_validate.validate(item, version, strict=True)
        assert item["kind"] == "Namespace" or item["metadata"]["namespace"] == "brainmri"


def test_a_field_that_no_cluster_knows_is_refused(objects: Objects) -> None:
    service = of_kind(objects, "Service")["webserver"]
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(
            service | {"spec": service["spec"] | {"ports": "3000"}}, CLUSTERS[0], strict=True
        )


@pytest.mark.parametrize("version", CLUSTERS)
@pytest.mark.parametrize(("job", "gpus"), [("retrain", "1"), ("prepare_data", "0")])
def test_the_pod_of_a_run_is_one_that_a_cluster_takes(
    job: str,
    gpus: str,
    version: str,
    place: str,
    objects: Objects,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    pod_job = job_of_run(job, objects, tmp_path, monkeypatch)
    kubernetes_validate.validate(pod_job, version, strict=True)
    pod = pod_job["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    assert container["resources"]["limits"] == {"memory": "16Gi", "nvidia.com/gpu": gpus}
    check_restricted(pod)
    assert pod_job["spec"]["template"]["metadata"]["labels"]["app"] == "run"
    check_project(pod, place, objects)


def check_project(pod: dict[str, Any], place: str, objects: Objects) -> None:
    """Check that a pod reaches the project, and that all it asks for exists."""
    (container,) = pod["containers"]
    sources = [(kind, item["name"]) for entry in container["envFrom"] for kind, item in entry.items()]
    secrets = {name for kind, name in sources if kind == "secretRef"}
    assert secrets == {"brainmri-postgres"} | ({"brainmri-store"} if place == "bucket" else set())
    assert secrets <= set(re.findall(r"create secret generic (\S+)", KUBERNETES))
    maps = of_kind(objects, "ConfigMap")
    assert [name for kind, name in sources if kind == "configMapRef"] == ["environment"]
    environment = maps["environment"]["data"]
    volumes = {item["name"]: item for item in pod["volumes"]}
    mounts = {item["mountPath"]: volumes[item["name"]] for item in container["volumeMounts"]}
    for volume in volumes.values():
        claim, settings = volume.get("persistentVolumeClaim"), volume.get("configMap")
        assert claim is None or claim["claimName"] in of_kind(objects, "PersistentVolumeClaim")
        assert settings is None or settings["name"] in maps
    if place == "folder":
        assert "BRAINMRI_CONFIG" not in environment
        assert "persistentVolumeClaim" in mounts[environment["BRAINMRI_HOME"]]
        return
    assert is_url(environment["BRAINMRI_HOME"])
    config = PurePosixPath(environment["BRAINMRI_CONFIG"])
    settings = maps[mounts[str(config.parent)]["configMap"]["name"]]["data"][config.name]
    paths = PathsConfig.model_validate(yaml.safe_load(settings)["paths"])
    assert paths.cache is not None
    limit = mounts[paths.cache]["emptyDir"]["sizeLimit"]
    assert paths.cache_gib < int(limit.removesuffix("Gi"))


def job_of_run(name: str, objects: Objects, folder: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Return the Kubernetes job that Dagster's launcher makes of a run of ours; only the cluster is missing."""
    text = of_kind(objects, "ConfigMap")["instance"]["data"]["dagster.yaml"]
    given = instance_of(folder, text, monkeypatch)["run_launcher"]["config"]
    kubeconfig = folder / "kubeconfig"
    kubeconfig.write_text(yaml.safe_dump({
        "clusters": [{"name": "none", "cluster": {"server": "http://127.0.0.1:1"}}],
        "contexts": [{"name": "none", "context": {"cluster": "none", "user": "none"}}],
        "users": [{"name": "none", "user": {}}], "current-context": "none", "apiVersion": "v1", "kind": "Config",
    }))  # fmt: skip
    launcher = K8sRunLauncher.from_config_value(
        None, given | {"load_incluster_config": False, "kubeconfig_file": str(kubeconfig)}
    )
    with dg.DagsterInstance.ephemeral() as instance:
        launcher.register_instance(instance)
        job = defs.resolve_job_def(name)
        run = instance.create_run_for_job(job, tags=job.run_tags)
        context = launcher.get_container_context_for_run(run)
        made = construct_dagster_k8s_job(
            job_config=context.get_k8s_job_config(job_image=None, run_launcher=launcher),
            args=["dagster", "api", "execute_run"],
            job_name="dagster-run-x",
            component="run_worker",
            user_defined_k8s_config=context.run_k8s_config,
        )
    value: dict[str, Any] = ApiClient().sanitize_for_serialization(made)
    return value


def check_restricted(pod: dict[str, Any]) -> None:
    """Check what the namespace's level `restricted` asks of a pod."""
    assert pod["securityContext"]["runAsNonRoot"] is True
    assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    for container in pod["containers"]:
        security = container["securityContext"]
        assert security["allowPrivilegeEscalation"] is False and security["readOnlyRootFilesystem"] is True
        assert security["capabilities"] == {"drop": ["ALL"]}


def test_pods_are_restricted_and_what_they_name_exists(place: str, objects: Objects) -> None:
    assert of_kind(objects, "Namespace")["brainmri"]["metadata"]["labels"] == {
        "pod-security.kubernetes.io/enforce": "restricted"
    }
    for name, item in of_kind(objects, "Deployment").items():
        pod = item["spec"]["template"]["spec"]
        check_restricted(pod)
        check_project(pod, place, objects)
        assert pod["serviceAccountName"] in of_kind(objects, "ServiceAccount"), name
    claims = of_kind(objects, "PersistentVolumeClaim")
    modes = {name: claim["spec"]["accessModes"] for name, claim in claims.items()}
    assert modes == ({"project": ["ReadWriteMany"]} if place == "folder" else {})


def test_only_the_daemon_has_rights_and_the_ui_only_shows(objects: Objects) -> None:
    (binding,) = of_kind(objects, "RoleBinding").values()
    assert [subject["name"] for subject in binding["subjects"]] == ["daemon"]
    deployments = of_kind(objects, "Deployment")
    with_rights = [
        name
        for name, item in deployments.items()
        if item["spec"]["template"]["spec"]["serviceAccountName"] == "daemon"
    ]
    assert with_rights == ["daemon"]
    assert "--read-only" in deployments["webserver"]["spec"]["template"]["spec"]["containers"][0]["command"]
    assert {service["spec"]["type"] for service in of_kind(objects, "Service").values()} == {"ClusterIP"}


def test_nothing_is_reached_that_no_policy_names(place: str, objects: Objects) -> None:
    policies = of_kind(objects, "NetworkPolicy")
    assert policies["nothing"]["spec"] == {"podSelector": {}, "policyTypes": ["Ingress", "Egress"]}
    apps = {*of_kind(objects, "Deployment"), "run"}
    named = {
        app
        for item in policies.values()
        for rule in item["spec"]["podSelector"].get("matchExpressions", [])
        for app in rule["values"]
    }
    assert named <= apps, "a policy for pods that do not exist"
    opened = [name for name, item in policies.items() if item["spec"].get("ingress")]
    assert opened == ["code-is-asked"]
    environment = of_kind(objects, "ConfigMap")["environment"]["data"]
    everywhere = policies["names-and-postgres"]["spec"]
    ports = {port["port"] for rule in everywhere["egress"] for port in rule["ports"]}
    if place == "bucket":
        store = urlsplit(environment["AWS_ENDPOINT_URL"])
        ports.remove(store.port or {"https": 443, "http": 80}[store.scheme])
    assert everywhere["podSelector"] == {} and ports == {53, 5432}


def texts() -> dict[Path, str]:
    """All files of `deploy/`."""
    files = [path for path in DEPLOY.rglob("*") if path.is_file() and path.suffix != ".pyc"]
    return {path: path.read_text() for path in files}


def test_no_secret_stands_in_a_file(objects: Objects) -> None:
    assert not of_kind(objects, "Secret")
    assert not re.search(r"AWS_(ACCESS|SECRET|SESSION)", yaml.safe_dump_all(objects))
    for path, text in texts().items():
        assert not re.search(
            r"(?i)(password|secret|token|auth)\w* *[:=] *['\"]?(?!\$|CHANGE-ME)[\w-]{6,}", text
        ), path
        for password in re.findall(r"://\w*:([^@/\s]+)@", text):
            assert password == "CHANGE-ME" or password.startswith("${"), path


def test_no_file_names_settings_that_nothing_makes() -> None:
    named = {path.name for path, text in texts().items() if re.search(r"(?m)^[^#\n]*BRAINMRI_CONFIG", text)}
    assert named == {"compose.bucket.yaml"}, "and another test shows where it has that file from"


@pytest.mark.parametrize("where", ["celery", "kubernetes"])
def test_the_instance_is_one_that_dagster_reads_and_keeps_the_rules_of_one_machine(
    where: str, objects: Objects, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = (DEPLOY / "celery/dagster.yaml").read_text()
    if where == "kubernetes":
        text = of_kind(objects, "ConfigMap")["instance"]["data"]["dagster.yaml"]
    found = instance_of(tmp_path, text, monkeypatch)
    alone = yaml.safe_load((ROOT / "brainmri_dagster/dagster.yaml").read_text())
    assert found["retention"] == alone["retention"]
    assert found["telemetry"] == {"enabled": False}
    limits = found["concurrency"]["runs"]["tag_concurrency_limits"]
    assert alone["concurrency"]["runs"]["tag_concurrency_limits"][0] in limits
    assert found["concurrency"]["pools"]["granularity"] == "run"
    assert found["run_retries"] == {"enabled": True, "max_retries": 2, "retry_on_asset_or_op_failure": False}
    assert "celery_executor" not in {line.strip() for line in text.splitlines()}


def test_only_the_job_that_trains_and_predicts_nothing_goes_without_a_gpu() -> None:
    without = [job.name for job in JOBS if "dagster-celery/queue" in (job.tags or {})]
    assert without == ["prepare_data"]
    job = defs.resolve_job_def("prepare_data")
    pools = {node.definition.pool for node in job.nodes}
    assert pools == {"dataset"}


SERVERS = {
    "folder": ["compose.yaml"],
    "gpu": ["compose.yaml", "compose.gpu.yaml"],
    "bucket": ["compose.yaml", "compose.bucket.yaml"],
    "gpu and bucket": ["compose.yaml", "compose.gpu.yaml", "compose.bucket.yaml"],
}
PROGRAMS = {"webserver", "reader", "code", "daemon", "worker-gpu", "worker-cpu"}


@pytest.fixture(params=SERVERS)
def server(request: pytest.FixtureRequest) -> dict[str, Any]:
    """A server's files in one, as `docker compose` merges them: maps by key, lists one after the other."""

    def merged(one: Any, other: Any) -> Any:
        if isinstance(one, dict):
            return one | {key: merged(one[key], other[key]) if key in one else other[key] for key in other}
        return one + other if isinstance(one, list) else other

    value: dict[str, Any] = {}
    for name in SERVERS[request.param]:
        value = merged(value, yaml.safe_load((DEPLOY / "compose" / name).read_text()))
    return value


def test_the_compose_files_are_by_the_specification() -> None:
    files = sorted((DEPLOY / "compose").glob("compose*.yaml"))
    assert {file.name for file in files} == {name for names in SERVERS.values() for name in names}
    check = [sys.executable, "-m", "check_jsonschema", "--builtin-schema", "vendor.compose-spec"]
    done = subprocess.run([*check, *files], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout


def test_only_the_proxy_is_reached_from_outside(server: dict[str, Any]) -> None:
    services = server["services"]
    assert [name for name, item in services.items() if "ports" in item] == ["proxy"]
    assert server["networks"]["inside"] == {"internal": True}
    outside = {"proxy", "worker-gpu", "worker-cpu"}
    for name, item in services.items():
        if "network_mode" in item:
            assert item["network_mode"] == "service:store"
        else:
            assert item["networks"] == (["inside", "outside"] if name in outside else ["inside"]), name
    proxied = re.findall(r"reverse_proxy \{\$\w+:(\w+):3000\}", (DEPLOY / "compose/Caddyfile").read_text())
    assert proxied == ["webserver", "reader"]
    assert (
        "--read-only" in services["reader"]["command"]
        and "--read-only" not in services["webserver"]["command"]
    )


def test_the_composed_programs_are_set_up_as_their_units_are(server: dict[str, Any]) -> None:
    services = server["services"]
    assert services.keys() - PROGRAMS <= {"proxy", "postgres", "valkey", "store", "bucket"}
    wanted = set(re.findall(r"env: (BRAINMRI_\w+)", (DEPLOY / "celery/dagster.yaml").read_text()))
    for name in PROGRAMS:
        assert wanted <= services[name]["environment"].keys()
    for name in services.keys() - {"proxy", "postgres", "valkey"}:
        item = services[name]
        assert item["user"] == "${BRAINMRI_UID:-10001}:${BRAINMRI_GID:-10001}"
        assert item["read_only"] is True and item["cap_drop"] == ["ALL"], name
        # Compose cannot copy a file that it makes itself into a file system that is read-only.
        assert not any("content" in server["configs"][config["source"]] for config in item.get("configs", []))
    for item in services.values():
        assert item["security_opt"] == ["no-new-privileges:true"]
        assert item.get("depends_on", {}).keys() <= services.keys()
    for config in server["configs"].values():
        assert "content" in config or (DEPLOY / "compose" / config["file"]).resolve().is_file()
    asked = set(re.findall(r"\$\{(\w+):\?", yaml.safe_dump(server)))
    offered = set(re.findall(r"(?m)^(\w+)=", (DEPLOY / "compose/.env.example").read_text()))
    assert asked <= offered
    queues = [
        word for item in services.values() for word in item.get("command", []) if word in ("gpu", "cpu")
    ]
    assert sorted(queues) == ["cpu", "gpu"]


def test_all_composed_programs_share_one_project_and_its_settings(server: dict[str, Any]) -> None:
    services = server["services"]
    first = services["code"]["environment"]
    for name in PROGRAMS:
        item = services[name]
        assert item["environment"] == first
        assert "${BRAINMRI_PROJECT:?is set in .env}:/project" in item["volumes"]
        if "store" not in services:
            assert first["BRAINMRI_HOME"] == "/project" and "BRAINMRI_CONFIG" not in first
            continue
        assert is_url(first["BRAINMRI_HOME"]) and first["AWS_ENDPOINT_URL"] == "http://store:8333"
        assert "./configs:/etc/brainmri/configs:ro" in item["volumes"]
        settings = Path(first["BRAINMRI_CONFIG"]).relative_to("/etc/brainmri")
        cache = load_config(DEPLOY / "compose" / settings).paths.cache
        assert cache is not None and cache.startswith("/project/")
        assert item["depends_on"]["bucket"] == {"condition": "service_completed_successfully"}


def test_the_proxy_reads_its_file() -> None:
    program = shutil.which("caddy")
    if program is None:
        pytest.skip("no caddy: install it to have the proxy's file read")
    some = "$2a$14$BqCnrPv8TtybyMTDfXCRWODmLIZiUdu3HC248aze3Ty7qiDhSvY0G"
    env = {
        "BRAINMRI_SITE": "localhost",
        "BRAINMRI_USER_HASH": some,
        "BRAINMRI_READER_HASH": some,
        "HOME": "/tmp",
    }
    done = subprocess.run(
        [program, "validate", "--config", DEPLOY / "compose/Caddyfile", "--adapter", "caddyfile"],
        env=env,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr


def test_the_units_are_ones_that_systemd_reads(tmp_path: Path) -> None:
    program = shutil.which("systemd-analyze")
    if program is None:
        pytest.skip("no systemd-analyze: install systemd to have the units read")
    units = sorted((DEPLOY / "celery").glob("*.service"))
    assert len(units) == 3
    here = [tmp_path / unit.name.replace("@", "@gpu") for unit in units]
    for unit, copy in zip(units, here, strict=True):
        copy.write_text(unit.read_text().replace("/opt/brainmri/bin", str(Path(sys.executable).parent)))
    done = subprocess.run([program, "verify", *here], capture_output=True, text=True, check=False)
    assert (done.returncode, [line for line in done.stderr.splitlines() if "brainmri" in line]) == (0, [])


def test_what_is_installed_beside_the_units_is_installed_by_the_environments_own_programs() -> None:
    steps = DOCS.split("## Several machines under systemd")[1].split("```")[1]
    named = re.findall(r"(?m)^(\S*\b(?:pip|uv)) ", steps)
    assert set(named) == {"/opt/brainmri/bin/pip", "/opt/brainmri/bin/uv"}


def test_the_environment_of_the_units_has_all_that_their_files_ask_for() -> None:
    folder = DEPLOY / "celery"
    texts = [(folder / "dagster.yaml").read_text(), (folder / "dagster_celery_config.py").read_text()]
    asked = set(re.findall(r"env: (BRAINMRI_\w+)|environ\[\"(\w+)\"\]", "".join(texts)))
    offered = set(re.findall(r"(?m)^(\w+)=", (folder / "brainmri.env.example").read_text()))
    assert {one or other for one, other in asked} <= offered
