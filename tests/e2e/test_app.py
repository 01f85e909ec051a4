"""The local page in a real browser, served by the real command."""

from __future__ import annotations

import http.client
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import numpy as np
import pytest
from PIL import Image

from brainmri_core.app import MAX_UPLOAD_BYTES
from brainmri_core.project.pointer_store import write_pointer
from tests.core.evaluation_case import Case, evaluated_case
from tests.counts import PATIENCE_S
from tests.e2e.conftest import ROOT, SCREENSHOTS

pytestmark = pytest.mark.e2e


@dataclass(frozen=True)
class Site:
    url: str
    case: Case

    @property
    def images(self) -> list[Path]:
        root = self.case.job.layout.absolute(self.case.fetched.dataset_root)
        return sorted((root / "Training").rglob("*.jpg")) or sorted((root / "Training").rglob("*.png"))

    def request(
        self, method: str, path: str, body: bytes = b"", **headers: str
    ) -> tuple[int, dict[str, str], str]:
        connection = http.client.HTTPConnection(urlsplit(self.url).netloc, timeout=PATIENCE_S)
        try:
            connection.request(
                method, path, body, {name.replace("_", "-"): value for name, value in headers.items()}
            )
            answer = connection.getresponse()
            return answer.status, dict(answer.headers), answer.read().decode()
        finally:
            connection.close()


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    case, evaluation = evaluated_case(tmp_path_factory, tmp_path_factory.mktemp("app") / "project")
    write_pointer(case.job.layout, evaluation)
    env = {**os.environ, "BRAINMRI_HOME": str(case.job.layout.root), "PYTHONPATH": str(ROOT)}
    process = subprocess.Popen(
        [sys.executable, "-m", "brainmri_dagster.cli", "app", "--port", "0"],
        cwd=ROOT,
        env=env,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    try:
        line = process.stdout.readline()
        assert line.startswith("http://127.0.0.1:"), "the page says where it is"
        yield Site(line.split()[0].rstrip("/"), case)
    finally:
        process.send_signal(signal.SIGINT)
        process.wait(300)
        process.stdout.close()


def shown(browser: Any, site: Site, file: Path, expected: str) -> str:
    """Choose a file on the page and return what it shows."""
    from selenium.webdriver.common.by import By
    from selenium.webdriver.support.ui import WebDriverWait

    browser.get(site.url)
    browser.find_element(By.ID, "file").send_keys(str(file))
    result = browser.find_element(By.ID, "result")
    WebDriverWait(browser, PATIENCE_S).until(
        lambda _: expected in result.text, f"the page does not show {expected!r}"
    )
    return str(browser.find_element(By.TAG_NAME, "body").text)


def screenshot(browser: Any, name: str) -> None:
    SCREENSHOTS.mkdir(exist_ok=True)
    browser.execute_script("document.getElementById('result').scrollIntoView()")
    assert browser.save_screenshot(str(SCREENSHOTS / f"{name}.png"))


def test_a_training_image_is_classified_and_recognised(site: Site, browser: Any) -> None:
    from selenium.webdriver.common.by import By

    browser.get_log("browser")  # what other pages said
    text = shown(browser, site, site.images[0], "The nearest training images")
    assert "Research software, not a medical device" in text
    assert "Calibrated probabilities" in text
    assert "is among the training images" in text
    shares = [
        float(item.text.rstrip("%")) for item in browser.find_elements(By.CSS_SELECTOR, ".shares .number")
    ]
    assert sum(shares) == pytest.approx(100, abs=0.3)
    assert shares == sorted(shares, reverse=True)
    pictures = browser.find_elements(By.CSS_SELECTOR, "#result img")
    assert len(pictures) >= 2 + 4
    assert all(browser.execute_script("return arguments[0].naturalWidth", item) > 0 for item in pictures)
    refused = [item for item in browser.get_log("browser") if "Content Security Policy" in item["message"]]
    assert not refused, "the page keeps to its own policy"
    screenshot(browser, "app-wide")
    browser.set_window_size(420, 900)
    assert browser.execute_script("return document.documentElement.scrollWidth <= window.innerWidth")
    screenshot(browser, "app-narrow")
    browser.set_window_size(1600, 1000)


def test_an_image_unlike_the_training_images_and_a_file_that_is_no_image_are_named(
    site: Site, browser: Any, tmp_path: Path
) -> None:
    noise = np.random.default_rng(0).integers(0, 255, (200, 200), np.uint8)
    hostile = tmp_path / "<img src=x onerror=alert(1)>.png"
    Image.fromarray(noise).save(hostile)
    text = shown(browser, site, hostile, "unlike the images the model was trained on")
    assert hostile.name in text, "shown as text"
    bad = tmp_path / "bad.png"
    bad.write_bytes(b"<script>alert(1)</script>")
    assert "This file is not a readable image" in shown(browser, site, bad, "readable image")


def test_only_this_machine_and_this_page_are_answered(site: Site) -> None:
    status, headers, page = site.request("GET", "/")
    assert status == 200
    policy = headers["content-security-policy"]
    assert "default-src 'none'" in policy
    assert "unsafe" not in policy
    assert "http://" not in page.replace("http://www.w3.org", "")
    assert site.request("GET", "/", Host="evil.example")[0] == 400
    data = site.images[0].read_bytes()
    assert site.request("POST", "/classify", data, Content_Type="text/plain")[0] == 415
    kind = "application/octet-stream"
    assert site.request("POST", "/classify", data, Content_Type=kind, Host="evil.example")[0] == 400
    assert site.request("POST", "/classify", b"", Content_Type=kind)[0] == 422
    assert site.request("GET", "/classify")[0] == 405


def test_a_large_upload_is_refused_before_it_is_read(site: Site) -> None:
    connection = http.client.HTTPConnection(urlsplit(site.url).netloc, timeout=PATIENCE_S)
    connection.putrequest("POST", "/classify")
    connection.putheader("Content-Type", "application/octet-stream")
    connection.putheader("Content-Length", str(MAX_UPLOAD_BYTES + 1))
    connection.endheaders()
    assert connection.getresponse().status == 413
    connection.close()


def test_nothing_of_an_upload_is_kept(site: Site) -> None:
    before = {path for path in site.case.job.layout.root.rglob("*") if path.is_file()}
    data = site.images[1].read_bytes()
    status, _, text = site.request("POST", "/classify", data, Content_Type="application/octet-stream")
    assert status == 200, text
    assert {path for path in site.case.job.layout.root.rglob("*") if path.is_file()} == before
