"""Take the pictures of the documentation: the graph from a running UI, the report from an evaluation of the real data.

python -m tests.e2e.docs_pictures http://127.0.0.1:3000 outputs/evaluation/OWNER/SLUG/RUN/report.html
"""

from __future__ import annotations

import io
import sys
import time
from pathlib import Path
from typing import Any

from PIL import Image

from tests.e2e.conftest import ROOT, chromium
from tests.e2e.test_ui import EXPANDED, OTHERS, PIPELINE, click, wait_for_text

IMAGES = ROOT / "docs" / "images"
_SIDE, _TOP = 375, 110  # what the UI shows left of the graph and above it
_DOTS = 215  # gray level of the grid behind the graph; what is darker belongs to it


def save(image: Image.Image, name: str, width: int) -> None:
    """Write a picture of a certain width, with few colours: it is part of every clone."""
    image = image.resize((width, round(width * image.height / image.width)), Image.Resampling.LANCZOS)
    IMAGES.mkdir(parents=True, exist_ok=True)
    image.quantize(256, kmeans=1, dither=Image.Dither.NONE).save(IMAGES / f"{name}.png", optimize=True)


def screen(browser: Any) -> Image.Image:
    """Return what the browser shows."""
    return Image.open(io.BytesIO(browser.get_screenshot_as_png())).convert("RGB")


def graph(browser: Any, url: str) -> Image.Image:
    """Return a picture of the asset graph alone, without the lists beside it."""
    browser.get(f"{url}/asset-groups/?expanded={EXPANDED}")
    wait_for_text(browser, *PIPELINE, *OTHERS)
    click(browser, "//*[text()='Hide navigation']")
    while "Loading" in browser.find_element("tag name", "body").text:
        time.sleep(0.5)
    whole = screen(browser)
    shown = whole.crop((_SIDE, _TOP, whole.width - 80, whole.height))
    left, top, right, bottom = shown.convert("L").point(lambda gray: 255 * (gray < _DOTS)).getbbox()
    return shown.crop((max(0, left - 20), max(0, top - 20), right + 20, bottom + 20))


def main(url: str, report: str) -> None:
    with chromium(2600, 1900) as browser:
        save(graph(browser, url), "graph", 1600)
    with chromium(1200, 750) as browser:
        browser.get(Path(report).resolve().as_uri())
        browser.execute_script("document.documentElement.style.overflow = 'hidden'")  # no scroll bar
        save(screen(browser), "report", 1200)


if __name__ == "__main__":
    main(*sys.argv[1:3])
