"""The store of `deploy/compose/compose.bucket.yaml`, run by the commands that stand there; only its ports are others."""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Iterator
from typing import Any

import grpc
import pytest
import yaml

from brainmri_core.errors import StorageError
from brainmri_core.system.object_store import Bucket
from tests import ROOT
from tests.object_store import WEED, running_weed

pytestmark = pytest.mark.e2e

FILE: dict[str, Any] = yaml.safe_load((ROOT / "deploy/compose/compose.bucket.yaml").read_text())
URL = FILE["x-bucket"]["environment"]["BRAINMRI_HOME"]


def environment(given: dict[str, str]) -> dict[str, str]:
    """Variables as compose gives them to a container, each required one with its own name as value."""
    return {name: re.sub(r"\$\{(\w+):\?[^}]*\}", r"canary-\1", value) for name, value in given.items()}


@pytest.fixture(scope="module")
def ports(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, int]]:
    """The store, with the bucket that the service `bucket` has made, twice, as each start of the server asks for it."""
    folder, store = tmp_path_factory.mktemp("store"), FILE["services"]["store"]
    command = [WEED if word == "weed" else word for word in [*store["entrypoint"], *store["command"]]]
    # A test listens on loopback only.
    here = {"-dir=/data": f"-dir={folder}", "-s3.ip.bind=0.0.0.0": "-s3.ip.bind=127.0.0.1"}
    assert here.keys() <= set(command)
    command = [here.get(word, word) for word in command]
    env = {**os.environ, **environment(store["environment"])}
    with running_weed(command, folder, env) as (_, ports):
        bucket = FILE["services"]["bucket"]
        where = f"{WEED} shell -master=127.0.0.1:{ports['master.port']}.{ports['master.port.grpc']} -filer=127.0.0.1:{ports['filer.port']}.{ports['filer.port.grpc']}"
        (script,) = bucket["command"]
        for _ in range(2):
            made = subprocess.run(
                [*bucket["entrypoint"], script.replace("weed shell", where)],
                capture_output=True,
                text=True,
                check=False,
            )
            assert made.returncode == 0, made.stdout + made.stderr
        yield ports


@pytest.fixture
def program(ports: dict[str, int], monkeypatch: pytest.MonkeyPatch) -> None:
    """The variables of the programs, which reach the store on loopback."""
    for name, value in environment(FILE["x-bucket"]["environment"]).items():
        monkeypatch.setenv(name, value.replace("store:8333", f"127.0.0.1:{ports['s3.port']}"))


def test_the_programs_write_into_the_bucket_that_was_made_for_them(program: None) -> None:
    bucket = Bucket(URL, patience=5)
    assert bucket.put_new("a", b"1") and not bucket.put_new("a", b"2")
    assert (bucket.get("a"), bucket.list("")) == (b"1", ["a"])


def test_others_are_refused(program: None, ports: dict[str, int], monkeypatch: pytest.MonkeyPatch) -> None:
    def field(number: int, content: bytes) -> bytes:
        return bytes([number << 3 | 2, len(content)]) + content

    key, secret = "stranger", "canary-secret-of-a-stranger"
    account = field(1, b"stranger") + field(2, field(1, key.encode()) + field(2, secret.encode()))
    channel = grpc.insecure_channel(f"127.0.0.1:{ports['s3.port.grpc']}")
    make_account = channel.unary_unary("/messaging_pb.SeaweedS3IamCache/PutIdentity")
    with channel, pytest.raises(grpc.RpcError) as refused:
        make_account(field(1, account + field(3, b"Admin")), timeout=30)
    assert refused.value.code() == grpc.StatusCode.UNAUTHENTICATED
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", key)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", secret)
    with pytest.raises(StorageError, match="the credentials are wrong"):
        Bucket(URL, patience=5).get("a")


def test_the_image_is_of_the_version_that_was_tried() -> None:
    version = subprocess.run([WEED, "version"], capture_output=True, text=True, check=True).stdout.split()[2]
    assert FILE["x-store"]["image"] == f"chrislusf/seaweedfs:{version}"
