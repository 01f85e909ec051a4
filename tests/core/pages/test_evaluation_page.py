from __future__ import annotations

import re
from html.parser import HTMLParser
from pathlib import Path

import pandas as pd
import pytest

from brainmri_core.evaluation.prediction_table import read_predictions
from brainmri_core.project.pointers import EvaluationPointer
from tests.core.evaluation_case import HOSTILE_CLASSES, HOSTILE_FILE, Case, hostile_case

pytestmark = pytest.mark.training

SECTIONS = {
    "summary", "purpose", "data", "model", "results", "baselines", "subsets", "errors", "explanations", "limits", "reproduce",
}  # fmt: skip
VOID = {"meta", "img", "input", "br", "line", "rect"}


class Page(HTMLParser):
    """The elements of a page with their attributes, and the text of each figure's caption and of the whole."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str]]] = []
        self.captions: list[str] = []
        self.words: list[str] = []
        self._open: list[str] = []
        self.feed(text)
        self.close()
        assert self._open == [], "every element is closed"
        self.text = " ".join(" ".join(self.words).split())

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, {name: value or "" for name, value in attrs}))
        if tag not in VOID:
            self._open.append(tag)
        if tag == "figcaption":
            self.captions.append("")

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, {name: value or "" for name, value in attrs}))

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag

    def handle_data(self, data: str) -> None:
        if "style" in self._open:
            return
        self.words.append(data)
        if "figcaption" in self._open:
            self.captions[-1] += data

    def attributes(self, name: str) -> list[str]:
        return [found[name] for _, found in self.elements if name in found]


def assert_self_contained(path: Path, links: set[str]) -> Page:
    text = path.read_text()
    page = Page(text)
    assert path.stat().st_size < 10_000_000
    assert all(item.startswith("data:image/") for item in page.attributes("src"))
    assert {item for item in page.attributes("href") if not item.startswith("#")} == links
    assert {tag for tag, _ in page.elements}.isdisjoint(
        {"script", "link", "iframe", "object", "embed", "base"}
    )
    assert not [name for _, found in page.elements for name in found if name.startswith("on")]
    style = re.findall(r"<style>(.*?)</style>", text, re.S)
    assert len(style) == 1
    assert not re.search(r"url\(|@import", style[0])
    images = [found for tag, found in page.elements if tag == "img"]
    assert images
    assert all(found.get("alt", "").strip() for found in images)
    return page


@pytest.fixture(scope="module")
def page(case: Case, pointer: EvaluationPointer) -> Page:
    return assert_self_contained(case.file(pointer, "report.html"), set())


def test_the_report_has_every_part_and_says_what_it_is_not(
    page: Page, case: Case, pointer: EvaluationPointer
) -> None:
    assert {found["id"] for tag, found in page.elements if tag == "section" and "id" in found} == SECTIONS
    anchors = {item.removeprefix("#") for item in page.attributes("href") if item.startswith("#")}
    assert anchors == SECTIONS
    assert "Research software, not a medical device" in page.text
    assert "width=device-width" in " ".join(page.attributes("content"))
    css = case.file(pointer, "report.html").read_text()
    assert "@media print" in css
    assert "@media (max-width" in css
    for needed in (
        case.job.entry.licence, case.fetched.content_hash, case.mapping.content_hash, case.pack.content_hash,
        case.checkpoint.checkpoint_sha256, "Leaks between training and test", "Excluded:", "Selection rule",
        "Nearest neighbour", "Majority class", "Both shortcuts", "Official Testing folder", "By image plane",
        "evaluation 42, training 42", "One temperature", "The map of another image",
    ):  # fmt: skip
        assert str(needed) in page.text, needed


def test_captions_in_the_page_follow_the_table(page: Page, case: Case, pointer: EvaluationPointer) -> None:
    rows = read_predictions(case.file(pointer, "predictions.parquet"))[0].set_index("path")
    galleries = pd.read_csv(case.file(pointer, "galleries/galleries.csv"))
    captions = [item for item in page.captions if "%" in item]
    assert len(captions) == len(galleries)
    for found, item in zip(captions, galleries.to_dict("records"), strict=True):
        row = rows.loc[item["path"]]
        wrong = "" if row["correct"] else f", is {row['label']}"
        share = f"{100 * row['prob_' + row['predicted']]:.1f}%"
        assert " ".join(found.split()) == f"{row['predicted']} {share}{wrong}{item['path']}".replace(
            "  ", " "
        )


def test_every_picture_of_a_map_has_its_image_and_colour_bar(page: Page) -> None:
    kinds = [found.get("class") for tag, found in page.elements if tag == "img"]
    assert kinds.count("image") == kinds.count("gradcam") == kinds.count("plus") > 8
    assert any("colour bar" in item for item in page.attributes("alt"))


def test_the_model_card_holds_the_headline(case: Case, pointer: EvaluationPointer) -> None:
    card = case.file(pointer, "model_card.md").read_text()
    assert "not a medical device" in card
    assert f"| macro F1 | {pointer.headline['macro_f1']:.3f} |" in card
    assert case.checkpoint.checkpoint_sha256 in card
    assert all(f"| {name} |" in card for name in case.pack.classes)


@pytest.fixture(scope="module")
def hostile(tmp_path_factory: pytest.TempPathFactory) -> tuple[Case, EvaluationPointer]:
    found = hostile_case(tmp_path_factory.mktemp("names") / "project")
    return found, found.evaluate("e1")


@pytest.mark.full
def test_names_that_would_break_a_page_are_only_text(hostile: tuple[Case, EvaluationPointer]) -> None:
    case, pointer = hostile
    page = assert_self_contained(case.file(pointer, "report.html"), set())
    names = [name.replace("/", "∕") for name in HOSTILE_CLASSES]
    for name in (*names, case.job.entry.title, case.job.entry.licence):
        assert name in page.text
    assert page.text.count("<img src=x onerror=alert(1)>") > 10
    assert "49" not in re.findall(r"\{\{7\*7\}\}|onerror=alert\(1\)> \d+ (\d+)", page.text)
    files = {HOSTILE_FILE.replace("{i}", str(i)) for i in range(24)}
    captions = [item for item in page.captions if "onerror" in item]
    assert captions
    assert all(any(item.endswith(file) for file in files) for item in captions)


def test_names_that_would_break_a_card_are_only_text(hostile: tuple[Case, EvaluationPointer]) -> None:
    case, pointer = hostile
    card = case.file(pointer, "model_card.md").read_text()
    assert not re.search(r"(?<!\\)<(b|i|u|img|/script)", card)
    table = [line for line in card.splitlines() if "gli" in line and line.startswith("| gli")]
    assert len(table) == 1
    assert len(re.findall(r"(?<!\\)\|", table[0])) == 7
