"""Take the pictures of the documentation from a running UI whose project has evaluated a data set.

python -m tests.e2e.docs_pictures http://127.0.0.1:3000 owner/slug
"""

from __future__ import annotations

import sys
from typing import Any

from tests.e2e.conftest import ROOT, chromium
from tests.e2e.test_ui import EXPANDED, OTHERS, PIPELINE, wait_for_text

IMAGES = ROOT / "docs" / "images"


def save(browser: Any, name: str) -> None:
    IMAGES.mkdir(parents=True, exist_ok=True)
    assert browser.save_screenshot(str(IMAGES / f"{name}.png"))


def main(url: str, dataset: str) -> None:
    with chromium(1500, 900) as browser:
        browser.get(f"{url}/asset-groups/?expanded={EXPANDED}")
        wait_for_text(browser, *PIPELINE, *OTHERS)
        save(browser, "graph")
    # Not high enough for the rows that name paths of the machine.
    with chromium(1500, 760) as browser:
        browser.get(f"{url}/assets/evaluation?view=partitions&partition={dataset.replace('/', '%2F')}")
        wait_for_text(browser, "macro_f1", "confusion_matrix")
        save(browser, "evaluation")


if __name__ == "__main__":
    main(*sys.argv[1:3])
