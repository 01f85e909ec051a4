from __future__ import annotations

import json
import logging
import random
import resource
import subprocess
import sys
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from brainmri_core.config.data import ArchiveLimits, FetchConfig, RetryConfig
from brainmri_core.errors import SourceError, StorageError
from brainmri_core.fetch import fetch
from brainmri_core.project.job import Job
from brainmri_core.sources.archive import extract_archive
from brainmri_core.sources.kaggle import Download, current_version, dataset_info, download
from brainmri_core.sources.kaggle_api import retry_after_s
from tests.core.fetch_case import OFFICIAL, make_tree, make_zip
from tests.kaggle_server import DATASET, SETTINGS, SIGNATURE, Fault, KaggleServer, serving

CANARY = "canary-secret-91c2"
RETRY = RetryConfig(attempts=3, base_delay_s=0.001, max_delay_s=0.01, timeout_s=10)


def archive_of(number: int, size: int = 1_000_000) -> bytes:
    """A stored zip of one entry that no other number shares a byte range with."""
    import io

    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as opened:
        opened.writestr(
            zipfile.ZipInfo(f"Training/glioma/{number}.jpg"), random.Random(number).randbytes(size)
        )
    return buffer.getvalue()


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[KaggleServer]:
    (tmp_path / "home").mkdir()
    for name in SETTINGS:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    with serving({number: archive_of(number) for number in (1, 2, 3)}) as state:
        for name, value in state.settings().items():
            monkeypatch.setenv(name, value)
        yield state


@dataclass
class Getter:
    """Downloads into one folder and keeps what was logged and reported."""

    folder: Path
    events: list[dict[str, Any]] = field(default_factory=list)
    progress: list[tuple[int, int | None]] = field(default_factory=list)

    def __call__(
        self, version: int | None = None, *, retry: RetryConfig = RETRY, offline: bool = False
    ) -> Download:
        return download(
            DATASET,
            version=version,
            dest_dir=self.folder,
            retry=retry,
            offline=offline,
            progress=lambda done, total: self.progress.append((done, total)),
            log=lambda event, **fields: self.events.append({"event": event, **fields}),
        )

    def reasons(self) -> list[str]:
        return [event["reason"] for event in self.events if event["event"] == "trying again"]


@pytest.fixture
def get(
    server: KaggleServer,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    capfd: pytest.CaptureFixture[str],
) -> Iterator[Getter]:
    """A getter; whatever the test does, no signature or secret may end up in a log, on a stream or on the disk."""
    caplog.set_level(logging.DEBUG)
    getter = Getter(tmp_path / "downloads")
    yield getter
    printed = capfd.readouterr()
    written = [path.read_text() for path in getter.folder.glob("*.json")] if getter.folder.exists() else []
    for text in (caplog.text, printed.out, printed.err, json.dumps(getter.events), *written):
        assert SIGNATURE not in text
        assert CANARY not in text


def refused(call: Callable[[], object], kind: type[Exception] = SourceError) -> str:
    """Return the text of the error a call ends with, after making sure that nothing hangs on to it."""
    with pytest.raises(kind) as caught:
        call()
    text = str(caught.value)
    assert "\n" not in text and text.endswith(".")
    link: BaseException | None = caught.value
    while link is not None:
        assert SIGNATURE not in repr(link) and CANARY not in repr(link)
        link = link.__cause__ or link.__context__
    return text


def test_a_version_arrives_whole_with_its_facts(get: Getter, server: KaggleServer) -> None:
    got = get()
    assert got.path == get.folder / "owner__brain-set__v3.zip"
    assert got.path.read_bytes() == server.versions[3]
    assert got.info.model_dump() == {
        "dataset": DATASET,
        "version": 3,
        "title": "Brain set",
        "licence": "CC0: Public Domain",
        "total_bytes": len(server.versions[3]),
        "last_updated": "2026-11-02T10:00:00.123000Z",
    }
    assert get.progress[-1] == (len(server.versions[3]), len(server.versions[3]))
    assert [done for done, _ in get.progress] == sorted(done for done, _ in get.progress)
    percents = [event["percent"] for event in get.events if event["event"] == "downloading"]
    assert 5 <= len(percents) <= 10 and percents[-1] == 100
    assert not list(get.folder.glob("*.part*"))
    assert "authorization" not in server.asked("GetDataset")[0].headers


def test_a_version_that_is_there_is_not_downloaded_again(get: Getter, server: KaggleServer) -> None:
    first = get()
    count = len(server.seen)
    assert get() == first
    assert [seen.route for seen in server.seen[count:]] == ["GetDataset"]
    count = len(server.seen)
    assert get(3) == first
    assert get(offline=True) == first
    assert len(server.seen) == count


def test_damaged_download_on_the_disk_is_replaced(get: Getter, server: KaggleServer) -> None:
    path = get(2).path
    whole = path.read_bytes()
    for damaged in (whole[:-1], b"x" + whole[1:]):
        path.write_bytes(damaged)
        assert get(2).path.read_bytes() == whole
    path.with_suffix(".json").write_text("{")
    assert get(2).path.read_bytes() == whole
    path.with_suffix(".json").unlink()
    assert get(2).path.read_bytes() == whole
    assert len(server.asked("storage")) == 5


def test_versions_lie_side_by_side(get: Getter, server: KaggleServer) -> None:
    assert get().path.read_bytes() == server.versions[3]
    two = get(2)
    assert two.path.read_bytes() == server.versions[2]
    assert (two.info.version, two.info.last_updated) == (2, "2026-10-02T08:00:00.000000Z")
    assert server.asked("DownloadDataset")[-1].body["datasetVersionNumber"] == 2
    assert get(3).path.read_bytes() == server.versions[3]
    server.versions[4] = archive_of(4)
    assert get().info.version == 4
    assert get(offline=True).info.version == 4
    assert sorted(path.name for path in get.folder.glob("*.zip")) == [
        f"owner__brain-set__v{n}.zip" for n in (2, 3, 4)
    ]


def test_missing_version_is_named_with_those_that_exist(get: Getter, server: KaggleServer) -> None:
    assert "no version 9 of owner/brain-set; it has 1, 2, 3" in refused(lambda: get(9))
    server.fail("DownloadDataset", Fault(status=404))
    assert "no version 2 of owner/brain-set (HTTP 404)" in refused(lambda: get(2))


def test_offline_takes_what_is_there_and_asks_nobody(get: Getter, server: KaggleServer) -> None:
    text = refused(lambda: get(offline=True))
    assert "was not downloaded before and fetch.offline is set" in text
    get(1)
    count = len(server.seen)
    assert get(offline=True).info.version == 1
    assert "version 2" in refused(lambda: get(2, offline=True))
    assert len(server.seen) == count


@pytest.mark.parametrize("cut", [0, 1, 500_000, 999_999])
def test_connection_cut_is_resumed_where_it_broke(get: Getter, server: KaggleServer, cut: int) -> None:
    server.fail("storage", Fault(cut=cut))
    assert get().path.read_bytes() == server.versions[3]
    assert get.reasons() == ["the connection failed or broke"]
    ranges = [seen.headers.get("range") for seen in server.asked("storage")]
    if cut >= 65536:
        start = int(str(ranges[-1]).removeprefix("bytes=").removesuffix("-"))
        assert 0 < cut - start < 65536  # at most one piece is received twice
        assert server.asked("storage")[-1].headers["if-range"].startswith('"')
    assert all("authorization" not in seen.headers for seen in server.asked("storage"))


def test_many_cuts_are_survived_as_long_as_bytes_arrive(get: Getter, server: KaggleServer) -> None:
    opened = Fault()
    server.fail("storage", Fault(cut=90_000), *[opened, Fault(cut=90_000)] * 9)
    assert get().path.read_bytes() == server.versions[3]
    assert len(get.reasons()) == 10 > RETRY.attempts


@pytest.mark.full
def test_download_goes_on_in_another_call_and_from_a_killed_process(
    get: Getter, server: KaggleServer
) -> None:
    server.always["storage"] = Fault(cut=400_000)
    server.fail("storage", Fault(cut=400_000), *[Fault(status=503)] * 20)
    assert "what arrived is kept" in refused(get)
    part = get.folder / "owner__brain-set__v3.zip.part"
    held = part.stat().st_size
    assert 300_000 < held <= 400_000
    server.faults.clear()
    server.always.clear()
    server.fail("storage", Fault(), Fault(stall=200_000))
    program = (
        "from pathlib import Path; from brainmri_core.sources.kaggle import download\n"
        f"download({DATASET!r}, version=3, dest_dir=Path({str(get.folder)!r}))"
    )
    child = subprocess.Popen([sys.executable, "-c", program])
    try:
        while len(server.asked("storage")) < 5 or part.stat().st_size <= held:
            assert child.poll() is None
    finally:
        child.kill()
        child.wait()
    held = part.stat().st_size
    server.closing.set()
    assert get().path.read_bytes() == server.versions[3]
    assert 0 < int(server.asked("storage")[-1].headers["range"][6:-1]) >= held


def test_server_errors_are_tried_again(get: Getter, server: KaggleServer) -> None:
    server.fail("GetDataset", Fault(status=500), Fault(status=502))
    server.fail("DownloadDataset", Fault(status=500))
    server.fail("storage", Fault(status=503))
    assert get().path.read_bytes() == server.versions[3]
    assert get.reasons() == [f"the server answered HTTP {status}" for status in (500, 502, 500, 503)]


def test_server_errors_end_in_one_sentence(get: Getter, server: KaggleServer) -> None:
    server.always["GetDataset"] = Fault(status=503, body=b"secret internals")
    text = refused(get)
    assert "HTTP 503 (3 tries)" in text and "fetch.offline" in text and "internals" not in text
    assert len(server.asked("GetDataset")) == RETRY.attempts


def test_error_code_inside_a_json_answer_is_understood(get: Getter, server: KaggleServer) -> None:
    answer = Fault(status=200, headers={"Content-Type": "application/json"})
    server.fail("GetDataset", replace(answer, body=b'{"code": 429, "message": "slow down"}'))
    assert dataset_info(DATASET, retry=RETRY).version == 3
    server.fail("GetDataset", replace(answer, body=b'{"code": 404, "message": "none"}'))
    assert "HTTP 404" in refused(lambda: dataset_info(DATASET, retry=RETRY))


@pytest.mark.parametrize(
    ("asked", "least", "longest"), [("1", 1.0, 1.1), ("0", 0, 0.01), ("no number", 0, 0.01)]
)
def test_retry_after_is_honoured(
    get: Getter, server: KaggleServer, asked: str, least: float, longest: float
) -> None:
    """Also where it is longer than the longest pause of our own."""
    server.fail("DownloadDataset", Fault(status=429, headers={"Retry-After": asked}))
    get()
    pauses = [event["pause_s"] for event in get.events if event["event"] == "trying again"]
    assert len(pauses) == 1 and least <= pauses[0] <= longest


@pytest.mark.parametrize("asked", ["4000", "9" * 5000, "Fri, 31 Dec 9999 23:59:59 GMT"])
def test_too_long_a_pause_is_said_and_not_waited_for(get: Getter, server: KaggleServer, asked: str) -> None:
    server.fail("DownloadDataset", Fault(status=429, headers={"Retry-After": asked}))
    assert "longer than fetch.retry.max_retry_after_s" in refused(get)
    assert len(server.asked("DownloadDataset")) == 1


def test_both_forms_of_retry_after_are_read() -> None:
    now = datetime(2026, 11, 2, 10, 0, 0, tzinfo=UTC)
    assert retry_after_s("120", now) == 120
    assert retry_after_s("Mon, 02 Nov 2026 10:01:30 GMT", now) == 90
    assert retry_after_s("Mon, 02 Nov 2026 11:01:30 +0100", now) == 90
    assert retry_after_s("Mon, 02 Nov 2026 09:00:00 GMT", now) == 0
    assert retry_after_s(None, now) is None


NUMBERS = st.integers(0, 99999).map(str) | st.sampled_from(["0", "00", "-1", "1e9", "9" * 30, "\u0663"])
DATES = st.tuples(
    st.sampled_from(["Mon, ", ""]), NUMBERS, st.sampled_from([" Nov ", " Dec ", " Foo ", "-"]), NUMBERS, st.just(" "),
    NUMBERS, st.just(":"), NUMBERS, st.sampled_from([":00", ""]), st.sampled_from([" GMT", " +9999", " -2359", " +99999999", ""]),
).map("".join)  # fmt: skip


@given(st.text(max_size=40) | NUMBERS | DATES)
def test_any_retry_after_is_a_pause_or_nothing(header: str) -> None:
    seconds = retry_after_s(header, datetime(2026, 11, 2, tzinfo=UTC))
    assert seconds is None or seconds >= 0


def test_pauses_double(get: Getter, server: KaggleServer) -> None:
    server.fail("GetDataset", *[Fault(status=500)] * 4)
    get(retry=RetryConfig(attempts=5, base_delay_s=0.01, max_delay_s=1))
    pauses = [event["pause_s"] for event in get.events if event["event"] == "trying again"]
    assert all(0.5 * 0.01 * 2**n - 0.001 <= pause <= 0.01 * 2**n for n, pause in enumerate(pauses))
    assert len(pauses) == 4


def test_503_while_resuming_is_not_written_into_the_archive(get: Getter, server: KaggleServer) -> None:
    server.fail("storage", Fault(cut=300_000), Fault(), Fault(status=503, body=b"busy" * 1000))
    assert get().path.read_bytes() == server.versions[3]
    assert get.reasons()[1] == "the server answered HTTP 503 when asked for the rest"


def test_expired_signature_gets_a_fresh_one(get: Getter, server: KaggleServer) -> None:
    server.fail("storage", Fault(cut=300_000), Fault(), Fault(status=403), Fault(status=403))
    assert get(retry=RETRY.model_copy(update={"attempts": 4})).path.read_bytes() == server.versions[3]


def test_remote_that_changes_in_mid_download_is_started_anew(get: Getter, server: KaggleServer) -> None:
    new = archive_of(77, 1_200_000)
    server.fail("storage", Fault(cut=600_000), Fault(before=lambda: server.versions.update({3: new})))
    assert get().path.read_bytes() == new


def test_remote_that_changes_between_question_and_range_is_started_anew(
    get: Getter, server: KaggleServer
) -> None:
    new = archive_of(78)
    server.fail(
        "storage", Fault(cut=600_000), Fault(), Fault(before=lambda: server.versions.update({3: new}))
    )
    assert get().path.read_bytes() == new
    assert server.asked("storage")[-1].headers["range"]


def test_remote_that_never_stays_the_same_is_given_up(get: Getter, server: KaggleServer) -> None:
    numbers = iter(range(100, 1000))

    def change() -> None:
        server.versions[3] = archive_of(next(numbers), 200_000)

    server.always["storage"] = Fault(cut=100_000, before=change)
    assert "tries without progress" in refused(get)


@pytest.mark.parametrize("hashes", [True, False])
def test_flipped_bit_is_noticed_and_received_again(get: Getter, server: KaggleServer, hashes: bool) -> None:
    server.hashes = hashes
    server.fail("storage", Fault(flip=500_000))
    assert get().path.read_bytes() == server.versions[3]
    assert "checksum was wrong" in get.reasons()[0]


def test_flipped_bit_in_the_kept_part_is_noticed(get: Getter, server: KaggleServer) -> None:
    server.fail("storage", Fault(cut=400_000), *[Fault(status=503)] * 2)
    refused(get)
    part = get.folder / "owner__brain-set__v3.zip.part"
    data = bytearray(part.read_bytes())
    data[1000] ^= 1
    part.write_bytes(data)
    assert get().path.read_bytes() == server.versions[3]
    assert "its checksum was wrong" in get.reasons()[-1]


def test_wrong_checksum_twice_is_an_error(get: Getter, server: KaggleServer) -> None:
    server.always["storage"] = Fault(flip=500_000)
    assert "arrived twice and its checksum was wrong" in refused(get)
    assert len(server.asked("storage")) == 2
    assert not list(get.folder.glob("*.zip"))


@pytest.mark.parametrize("etag", [True, False])
def test_server_without_checksums_is_held_to_size_and_the_archives_own(
    get: Getter, server: KaggleServer, etag: bool
) -> None:
    server.hashes, server.etag = False, etag
    server.fail("storage", Fault(cut=500_000))
    assert get().path.read_bytes() == server.versions[3]
    assert server.asked("storage")[-1].headers["if-range"]
    server.versions[2] = b"<html>sign in</html>"
    assert "no whole zip archive" in refused(lambda: get(2))


def test_size_that_never_arrives_is_an_error(get: Getter, server: KaggleServer) -> None:
    server.always["storage"] = Fault(declare=1000)
    assert "what arrived is kept" in refused(get)
    assert not list(get.folder.glob("*.zip"))


def test_archive_that_lies_about_an_entrys_size_is_refused_when_unpacked(
    get: Getter, server: KaggleServer, tmp_path: Path
) -> None:
    size = (1_000_000).to_bytes(4, "little")
    server.versions[3] = server.versions[3].replace(size, (999_000).to_bytes(4, "little"))
    path = get().path
    (tmp_path / "dest").mkdir()
    assert "damaged" in refused(lambda: extract_archive(path, tmp_path / "dest", ArchiveLimits()))


@pytest.mark.parametrize("stall", [0, 300_000])
def test_stalled_server_is_left(get: Getter, server: KaggleServer, stall: int) -> None:
    server.fail("storage", Fault(stall=stall))
    assert get(retry=RETRY.model_copy(update={"timeout_s": 2.0})).path.read_bytes() == server.versions[3]
    assert get.reasons() == ["the server stayed silent for 2 s (fetch.retry.timeout_s)"]


def test_default_timeout_is_thirty_seconds() -> None:
    assert RetryConfig().timeout_s == 30


def test_no_server_is_one_sentence(
    get: Getter, monkeypatch: pytest.MonkeyPatch, server: KaggleServer
) -> None:
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:1")
    assert "fetch.archive" in refused(get)


@pytest.mark.parametrize(
    ("status", "credentials", "parts"),
    [
        (401, True, ["refused the credentials", "KAGGLE_API_TOKEN", "kaggle.json"]),
        (401, False, ["no credentials were found", "KAGGLE_API_TOKEN", "kaggle.json"]),
        (403, True, ["accept the terms", "https://www.kaggle.com/datasets/owner/brain-set"]),
        (403, False, ["no credentials were found", "https://www.kaggle.com/datasets/owner/brain-set"]),
        (404, True, ["no data set owner/brain-set"]),
        (418, False, ["HTTP 418"]),
    ],
)
def test_refusals_say_what_to_do(
    get: Getter,
    server: KaggleServer,
    monkeypatch: pytest.MonkeyPatch,
    status: int,
    credentials: bool,
    parts: list[str],
) -> None:
    if credentials:
        monkeypatch.setenv("KAGGLE_API_TOKEN", CANARY)
    server.fail(
        "GetDataset", Fault(status=status, body=CANARY.encode(), headers={"Content-Type": "text/plain"})
    )
    text = refused(get)
    assert all(part in text for part in parts)
    assert len(server.seen) == 1


def test_terms_may_be_asked_for_only_at_the_download(get: Getter, server: KaggleServer) -> None:
    server.fail("DownloadDataset", Fault(status=403))
    assert "https://www.kaggle.com/datasets/owner/brain-set" in refused(get)
    assert "no data set owner/other" in refused(lambda: dataset_info("owner/other", retry=RETRY))


BASIC = "Basic dXNlcjpjYW5hcnktc2VjcmV0LTkxYzI="
KEY_FILE = json.dumps({"username": "user", "key": CANARY})


@pytest.mark.parametrize(
    ("variables", "files", "expected"),
    [
        ({"KAGGLE_API_TOKEN": CANARY}, {}, f"Bearer {CANARY}"),
        ({"KAGGLE_API_TOKEN": f"{CANARY}\n"}, {}, f"Bearer {CANARY}"),
        ({"KAGGLE_API_TOKEN": CANARY + "x" * 300}, {}, f"Bearer {CANARY}{'x' * 300}"),
        ({}, {".kaggle/access_token": CANARY}, f"Bearer {CANARY}"),
        ({"KAGGLE_USERNAME": "user", "KAGGLE_KEY": CANARY}, {}, BASIC),
        ({}, {".kaggle/kaggle.json": KEY_FILE}, BASIC),
        ({}, {".config/kaggle/kaggle.json": KEY_FILE}, BASIC),
        ({"KAGGLE_CONFIG_DIR": "~/elsewhere"}, {"elsewhere/kaggle.json": KEY_FILE}, BASIC),
    ],
)
def test_every_kind_of_credentials_is_sent_to_kaggle_only(
    get: Getter,
    server: KaggleServer,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    variables: dict[str, str],
    files: dict[str, str],
    expected: str,
) -> None:
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    for name, text in files.items():
        (tmp_path / "home" / name).parent.mkdir(parents=True)
        (tmp_path / "home" / name).write_text(text)
    server.authorization = expected
    server.fail("storage", Fault(cut=300_000))
    assert get().path.read_bytes() == server.versions[3]
    assert all("authorization" not in seen.headers for seen in server.asked("storage"))


def test_sdk_that_is_told_to_be_verbose_prints_no_secret(
    get: Getter, server: KaggleServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VERBOSE", "1")
    monkeypatch.setenv("KAGGLE_API_TOKEN", CANARY)
    server.fail("GetDataset", Fault(status=500, body=CANARY.encode()))
    server.fail("DownloadDataset", Fault(status=500))
    assert get().path.read_bytes() == server.versions[3]
    assert server.asked("GetDataset")[0].headers["authorization"] == f"Bearer {CANARY}"


@pytest.mark.parametrize(
    ("variables", "files"),
    [
        ({"KAGGLE_API_TOKEN": f"{CANARY}\r\nX-Other: 1"}, {}),
        ({"KAGGLE_API_TOKEN": f"{CANARY}\u20ac"}, {}),
        ({"KAGGLE_USERNAME": "us er", "KAGGLE_KEY": CANARY}, {}),
        ({}, {".kaggle/kaggle.json": f"[{CANARY!r}]"}),
        ({}, {".kaggle/kaggle.json": json.dumps([CANARY])}),
        ({}, {".kaggle/kaggle.json": json.dumps({"username": CANARY})}),
        ({}, {".kaggle/kaggle.json": ""}),
    ],
)
def test_unusable_credentials_are_named_but_not_shown(
    get: Getter,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    variables: dict[str, str],
    files: dict[str, str],
) -> None:
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    for name, text in files.items():
        (tmp_path / "home" / name).parent.mkdir(parents=True)
        (tmp_path / "home" / name).write_text(text)
    assert "credentials cannot be read" in refused(get)


@pytest.mark.parametrize("signed_in", [False, True])
def test_the_storage_gets_no_credentials(
    get: Getter, server: KaggleServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, signed_in: bool
) -> None:
    """Neither Kaggle's own nor, where a redirect leads, those that .netrc has for that host."""
    (tmp_path / "home" / ".netrc").write_text(f"machine storage.localhost login user password {CANARY}\n")
    if signed_in:
        monkeypatch.setenv("KAGGLE_API_TOKEN", CANARY)
    server.fail(
        "storage", Fault(cut=300_000), Fault(status=302, headers={"Location": "http://storage.localhost/x"})
    )
    server.fail("storage", Fault(status=503), Fault(cut=500_000))
    get(retry=RETRY.model_copy(update={"attempts": 6}))
    asked = server.asked("storage")
    assert len(asked) > 4
    assert not [seen for seen in asked if "authorization" in seen.headers]
    sent = [seen.headers.get("authorization") for seen in server.asked("DownloadDataset")]
    assert set(sent) == ({f"Bearer {CANARY}"} if signed_in else {None})


def test_an_archive_of_another_data_set_under_the_same_name_is_not_taken_for_it(
    get: Getter, server: KaggleServer
) -> None:
    """Owner a__b with c, and owner a with b__c, share a file name."""
    got = get(version=3)
    beside = got.path.with_suffix(".json")
    beside.write_text(beside.read_text().replace(DATASET, "owner__brain/set"))
    assert "was not downloaded before" in refused(lambda: get(version=3, offline=True))
    asked = len(server.asked("storage"))
    assert get(version=3).info.dataset == DATASET
    assert len(server.asked("storage")) > asked


def test_an_archive_without_its_beginning_and_checksum_is_received_anew_and_then_refused(
    get: Getter, server: KaggleServer
) -> None:
    server.hashes = False
    server.versions[3] = server.versions[3][200:]
    for _ in range(2):  # nothing is left that would keep a later try from a whole one
        assert "it was no whole zip archive both times" in refused(get)


def test_no_memory_to_check_an_archive_keeps_what_arrived(
    get: Getter, server: KaggleServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    def exhausted(*_: object) -> None:
        raise MemoryError

    server.hashes = False
    monkeypatch.setattr(zipfile, "ZipFile", exhausted)
    assert "there is no memory for it" in refused(get, StorageError)
    assert (get.folder / "owner__brain-set__v3.zip.part").stat().st_size == len(server.versions[3])


def test_more_bytes_than_declared_are_not_taken(get: Getter, server: KaggleServer) -> None:
    server.fail("storage", Fault(cut=500_000), Fault(), Fault(declare=None, endless=True))
    assert get().path.read_bytes() == server.versions[3]
    assert "more bytes arrived than the server had declared" in get.reasons()
    assert max(done for done, _ in get.progress) <= len(server.versions[3])


@pytest.mark.parametrize("declared", [True, False])
def test_an_archive_larger_than_allowed_is_refused(get: Getter, server: KaggleServer, declared: bool) -> None:
    size = len(server.versions[3])
    if not declared:
        server.always["storage"] = Fault(declare=None)
    limits = ArchiveLimits(max_archive_bytes=size - 1)
    said = refused(lambda: download(DATASET, version=3, dest_dir=get.folder, retry=RETRY, limits=limits))
    assert "max_archive_bytes" in said
    assert not list(get.folder.glob("*.zip"))


def test_a_disk_without_room_is_told_before_the_download(get: Getter, server: KaggleServer) -> None:
    server.fail("storage", Fault(declare=10**17))
    limits = ArchiveLimits(max_archive_bytes=10**18)
    said = refused(lambda: download(DATASET, version=3, dest_dir=get.folder, limits=limits), StorageError)
    assert "bytes are still to come and the disk has" in said


@pytest.mark.parametrize(
    ("body", "kind"),
    [
        (b"<html>Please sign in to the hospital network</html>", "text/html"),
        (b"[1, 2]", "application/json"),
        (b'{"currentVersionNumber": "three", "lastUpdated": 7}', "application/json"),
        (b"{", "application/json"),
        (b'{"code": "x"}', "application/json"),
        (b"\xff\xfe", "application/json"),
    ],
)
def test_foreign_answers_are_recognised(get: Getter, server: KaggleServer, body: bytes, kind: str) -> None:
    server.fail("GetDataset", Fault(status=200, headers={"Content-Type": kind}, body=body))
    assert "is not from Kaggle's API" in refused(get)


def test_malformed_keys_and_environments_are_refused(
    get: Getter, server: KaggleServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    for key in ("plain", "../up", "a/b/c", "a b/c"):
        assert "write owner/slug" in refused(lambda key=key: dataset_info(key))  # type: ignore[misc]
    monkeypatch.setenv("KAGGLE_API_ENVIRONMENT", "STAGING")
    assert "unset it" in refused(get)
    assert not server.seen


def test_folder_that_cannot_be_written_is_named(get: Getter, server: KaggleServer, tmp_path: Path) -> None:
    get.folder.mkdir()
    (get.folder / "owner__brain-set__v3.zip.part").mkdir()
    assert "owner__brain-set__v3.zip.part" in refused(get, StorageError)


def test_disk_that_takes_no_more_is_one_sentence_and_keeps_what_arrived(
    get: Getter, server: KaggleServer
) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (300_000, hard))
    try:
        text = refused(get, StorageError)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert "owner__brain-set__v3.zip.part: the system says File too large" in text
    assert get().path.read_bytes() == server.versions[3]
    assert int(server.asked("storage")[-1].headers["range"][6:-1]) > 200_000


def test_fetch_takes_a_kaggle_data_set_end_to_end(
    get: Getter, server: KaggleServer, job: Job, tmp_path: Path
) -> None:
    server.versions = {5: make_zip(make_tree(tmp_path / "tree", OFFICIAL), tmp_path / "a.zip").read_bytes()}
    server.fail("storage", Fault(cut=len(server.versions[5]) // 2))
    entry = job.entry.model_copy(update={"key": DATASET, "source": "kaggle", "licence": ""})
    config = FetchConfig(retry=RETRY)
    pointer = fetch(config, replace(job, entry=entry))
    assert (pointer.source, pointer.version, pointer.n_images) == ("kaggle", 5, len(OFFICIAL))
    assert pointer.licence == "CC0: Public Domain"
    assert pointer.last_updated == "2026-11-02T10:00:00.123000Z"
    count = len(server.asked("DownloadDataset"))
    again = fetch(config, replace(job, entry=entry))
    assert again.content_hash == pointer.content_hash
    offline = fetch(config.model_copy(update={"offline": True}), replace(job, entry=entry))
    assert offline.content_hash == pointer.content_hash
    assert len(server.asked("DownloadDataset")) == count
    assert current_version(DATASET, retry=RETRY) == 5


def test_nothing_is_imported_or_asked_before_it_is_needed(server: KaggleServer) -> None:
    program = (
        "import sys, brainmri_core.sources.kaggle\n"
        "assert not {'kaggle', 'kagglesdk'} & set(sys.modules), 'imported early'"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert not server.seen
