from __future__ import annotations

import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from brainmri_core.project.foreign_names import compared, stored_names


@pytest.mark.parametrize(
    "other",
    [
        "train\\Hirntumor-\u00e4\\a.jpg",
        "Train/hirntumor-\u00e4/A.JPG",
        "train/Hirntumor-a\u0308/a.jpg",
        "train /Hirntumor-\u00e4 / a.jpg",
        "./train//Hirntumor-\u00e4/a.jpg",
    ],
)
def test_names_that_a_person_takes_for_one_compare_equal(other: str) -> None:
    stored = "train/Hirntumor-\u00e4/a.jpg"
    assert compared(other) == compared(stored)
    assert stored_names([other], [stored]) == [stored]


def test_the_same_text_goes_before_a_name_that_only_compares_equal() -> None:
    assert stored_names(["a ", "A", "b"], ["a", "a "]) == ["a ", "a ", None]


@given(st.text())
def test_a_compared_name_compares_equal_to_its_forms_and_to_itself(name: str) -> None:
    for form in (name, name.upper(), f" {name} ", unicodedata.normalize("NFD", name)):
        assert compared(compared(form)) == compared(form)
    assert compared(f"{name}\\x") == compared(f"{name}/x ")
