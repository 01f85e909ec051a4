"""Names that would forge log lines, run commands in a terminal, or become HTML, links and pictures in a page."""

from __future__ import annotations

import io
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from brainmri_core.errors import BrainMRIError, DataError
from brainmri_core.escaping import markdown, printable
from brainmri_core.pages.environment import environment_of_templates
from brainmri_core.pages.validation_page import render_shortcut_section
from brainmri_core.project.logs import StageLog, stream_sink
from brainmri_core.validation.shortcuts import ShortcutScore
from brainmri_dagster.defs.metadata import table
from tests.security.escaping_case import Tags, rendered

HOSTILE = [
    "x\n12:00:00 fetch    finished images=1",
    "x\r\nERROR forged",
    "\x1b]0;title\x07\x1b[31mred",
    "a\u2028b\x85c",
    "\u202etxt.exe",
    "\udcff",
    "<script>alert(1)</script>",
    '"><img src=x onerror=alert(1)>',
    "![x](https://evil.example/pixel.png)",
    "[click](javascript:alert(1))",
    "a | b | c",
    "`code` *bold* &lt;i&gt;",
    "\\| escaped \\",
    "{{ 7*7 }}{% raw %}",
]


@pytest.mark.parametrize("name", HOSTILE)
def test_log_has_one_line_for_each_event_whatever_the_names(name: str) -> None:
    for json_lines in (False, True):
        stream = io.StringIO()
        log = StageLog("split", "r1", "o/s", [stream_sink(stream, json_lines=json_lines)])
        log.info(name, path=name, reason=[name])
        log.info("second")
        lines = stream.getvalue().split("\n")
        assert len(lines) == 3 and lines[2] == ""
        assert all(line.isprintable() for line in lines)
        assert len(stream.getvalue().splitlines()) == 2
        if json_lines:
            assert json.loads(lines[0])["path"] == name


@pytest.mark.parametrize("name", HOSTILE)
def test_error_is_one_printable_line_whatever_it_quotes(name: str) -> None:
    error = DataError(f"The file {name} cannot be used.")
    assert isinstance(error, BrainMRIError)
    assert str(error).isprintable() and len(str(error).splitlines()) == 1


@given(st.text())
def test_printable_text_stays_as_it_is_and_other_text_becomes_so(text: str) -> None:
    found = printable(text)
    assert found.isprintable()
    assert printable(found) == found
    assert (found == text) == text.isprintable()


@pytest.mark.parametrize("name", HOSTILE)
def test_markdown_table_has_no_tag_and_no_cell_from_a_name(name: str) -> None:
    page = rendered(table({name: {name: 1}, "good": {name: 2}}, "class").md_str)
    assert set(page.tags) == {"table", "thead", "tbody", "tr", "th", "td"}
    assert len(page.cells) == 6
    assert page.cells[2].strip() == printable(name).strip()


@given(st.text(max_size=30) | st.text(alphabet="[]()<>!*`|\\&ab:/_", max_size=30))
def test_markdown_shows_any_text_as_it_is(text: str) -> None:
    page = rendered(f"| x{markdown(text)}y |\n|---|\n| z |")
    assert set(page.tags) <= {"table", "thead", "tbody", "tr", "th", "td", "em"}
    assert "em" not in page.tags or "_" in text
    if "em" not in page.tags:
        assert page.cells[0] == f"x{printable(text)}y"


@pytest.mark.parametrize("name", HOSTILE)
def test_pages_escape_names(name: str) -> None:
    page = environment_of_templates().from_string("{{ name }}").render(name=name)
    assert "<" not in page and '"' not in page
    assert environment_of_templates().filters["md"](name) == markdown(name)


@pytest.mark.parametrize("name", HOSTILE)
def test_section_of_the_reports_escapes_class_names(name: str) -> None:
    score = ShortcutScore(
        features="file metadata",
        names=("width",),
        folds=2,
        n_images=8,
        balanced_accuracy=0.5,
        chance=0.5,
        auroc={name: 0.5},
        reason=name,
    )
    plain, hostile = Tags(), Tags()
    plain.feed(str(render_shortcut_section([score.model_copy(update={"auroc": {"x": 0.5}, "reason": "x"})])))
    hostile.feed(str(render_shortcut_section([score])))
    assert hostile.tags == plain.tags
