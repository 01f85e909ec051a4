from __future__ import annotations

import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pytest

from brainmri_core.errors import ConfigError, StorageError
from brainmri_core.system.object_store import PATIENCE_VARIABLE, Bucket, LostRaceError
from brainmri_core.system.store_url import checked_url
from tests.counts import rest, trials
from tests.object_store import OWNER, READER, Proxy, StoreServer, environment

WRITERS = 5


def test_of_many_who_create_one_object_one_wins(store_url: str) -> None:
    bucket = Bucket(store_url)
    with ThreadPoolExecutor(WRITERS) as pool:
        for number in range(trials(2, 40)):
            name = f"created/{number}"
            won = [*pool.map(lambda who, name=name: bucket.put_new(name, b"%d" % who), range(WRITERS))]
            assert won.count(True) == 1
            assert bucket.get(name) == b"%d" % won.index(True)


@pytest.mark.full
def test_a_write_to_an_object_that_somebody_has_changed_is_refused(store_url: str) -> None:
    bucket = Bucket(store_url)
    bucket.put("shared", b"first")
    found = bucket.get_tagged("shared")
    assert found is not None
    bucket.compare_and_put("shared", b"second", found[1])
    with pytest.raises(LostRaceError):
        bucket.compare_and_put("shared", b"third", found[1])
    assert bucket.get("shared") == b"second"
    bucket.remove("shared")
    bucket.remove("shared")
    with pytest.raises(LostRaceError):
        bucket.compare_and_put("shared", b"fourth", found[1])
    assert bucket.get("shared") is None


@pytest.mark.parametrize("fault", ["reset after", *rest("500", "503", "reset", "short", "cut")])
def test_a_fault_that_passes_costs_time_and_nothing_else(store_url: str, proxy: Proxy, fault: str) -> None:
    bucket = Bucket(store_url)
    bucket.put("there", b"content" * 100)
    found = bucket.get_tagged("there")
    assert found is not None
    left = 0

    def some(method: str, path: str) -> str | None:
        nonlocal left
        left -= 1
        return fault if left >= 0 else None

    actions: dict[str, tuple[Callable[[], object], object]] = {
        "create": (lambda: bucket.put_new("new", b"mine"), True),
        "get": (lambda: bucket.get("there"), b"content" * 100),
        "size": (lambda: bucket.size("there"), 700),
        "list": (lambda: bucket.list(""), ["new", "there"]),
        "put": (lambda: bucket.put("put", b"put"), None),
        "remove": (lambda: bucket.remove("put"), None),
    }
    proxy.fault = some
    for name, (action, expected) in actions.items():
        left = 3
        proxy.hit.clear()
        assert action() == expected, name
        assert proxy.hit, f"{name}: the fault was never met"
    assert bucket.list("") == ["new", "there"]


@pytest.mark.parametrize(
    ("account", "where", "sentence"),
    [
        ({**OWNER, "AWS_SECRET_ACCESS_KEY": "canary-other"}, "", "the credentials are wrong or have expired"),
        (READER, "", "permission is denied; let the account read, list and write there"),
        (OWNER, "s3://nowhere/project", "there is no such bucket; create it, or correct paths.root"),
        *rest(
            ({**OWNER, "AWS_ACCESS_KEY_ID": "canary-nobody"}, "", "the credentials are wrong or have expired")
        ),
    ],
)
@pytest.mark.parametrize("action", ["put_new", *rest("upload")])
def test_what_is_wrong_with_the_account_or_bucket_is_said_at_once(
    store_url: str,
    object_store: StoreServer,
    monkeypatch: pytest.MonkeyPatch,
    account: dict[str, str],
    where: str,
    sentence: str,
    action: str,
    request: pytest.FixtureRequest,
) -> None:
    for name, value in environment(object_store.port, account).items():
        monkeypatch.setenv(name, value)
    bucket = Bucket(where or store_url)
    monkeypatch.setattr(time, "sleep", lambda seconds: pytest.fail("patience does not help here"))
    with pytest.raises(StorageError, match=sentence) as caught:
        bucket.put_new("new", b"") if action == "put_new" else bucket.upload("new", request.path)
    assert (where or store_url) in str(caught.value)
    assert "canary" not in str(caught.value)


def test_a_store_that_is_gone_is_waited_for_and_then_named(
    store_url: str, proxy: Proxy, monkeypatch: pytest.MonkeyPatch, slept: list[float]
) -> None:
    monkeypatch.setenv(PATIENCE_VARIABLE, "1")
    bucket = Bucket(store_url)
    bucket.put("there", b"before")
    slept.clear()
    proxy.fault = lambda method, path: "reset"
    with pytest.raises(StorageError, match="the store does not answer; nothing was changed there, run again"):
        bucket.put("there", b"after")
    assert slept and len(proxy.hit) > 1
    proxy.fault = lambda method, path: None
    assert bucket.get("there") == b"before"


def test_a_wrong_clock_is_named(store_url: str, proxy: Proxy) -> None:
    proxy.fault = lambda method, path: "skewed"
    with pytest.raises(StorageError, match="this machine's clock is wrong; set it"):
        Bucket(store_url).put_new("new", b"")


def test_without_credentials_it_is_said_which_to_set(store_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in OWNER:
        monkeypatch.delenv(name)
    monkeypatch.setenv(PATIENCE_VARIABLE, "1")
    with pytest.raises(StorageError, match="there are no credentials; set AWS_ACCESS_KEY_ID and AWS_SECRET"):
        Bucket(store_url).get("x")


@pytest.mark.parametrize(
    ("url", "sentence"),
    [
        ("https://bucket/project", "begins with https://; write a folder, or s3://, gs:// or az://"),
        ("s3://key:canary@bucket/project", "leave credentials to the environment"),
        ("s3://bucket/project?secret=canary", "leave credentials to the environment"),
        ("s3:///project", "names no bucket"),
        ("gs://bucket/../other", "names no bucket"),
    ],
)
def test_a_url_that_is_no_place_in_an_object_store_is_refused(url: str, sentence: str) -> None:
    with pytest.raises(ConfigError, match=sentence) as caught:
        checked_url(url)
    assert "canary" not in str(caught.value)


def test_one_place_has_one_url() -> None:
    assert checked_url("S3://bucket//a/b/") == checked_url("s3://bucket/a/b") == "s3://bucket/a/b"


@pytest.mark.parametrize("value", ["soon", "-1", "nan"])
def test_a_patience_that_is_no_number_of_seconds_is_refused(
    monkeypatch: pytest.MonkeyPatch, value: str
) -> None:
    monkeypatch.setenv(PATIENCE_VARIABLE, value)
    with pytest.raises(ConfigError, match=f"{PATIENCE_VARIABLE} is '{value}'"):
        Bucket("s3://bucket")
