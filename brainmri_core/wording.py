"""Singular and plural of nouns and verbs in sentences with numbers."""

from __future__ import annotations

_OF_ONE = {
    "are": "is",
    "were": "was",
    "have": "has",
    "look": "looks",
    "carry": "carries",
    "show": "shows",
    "copies": "a copy",
}


def counted(count: int, noun: str, form: str = "") -> str:
    """Return ``1 image`` or ``7 images``; `form` is a format specification, such as ``,`` for 1,234."""
    return f"{count:{form}} {noun}{'' if count == 1 else 's'}"


def agreeing(text: str, count: int, noun: str = "image") -> str:
    """Fill ``{n}`` with the counted noun, and ``{are}``, ``{have}`` and the like with the form that agrees with it."""
    text = text.replace("{n}", counted(count, noun))
    for many, one in _OF_ONE.items():
        text = text.replace(f"{{{many}}}", one if count == 1 else many)
    return text
