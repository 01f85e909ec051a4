"""Escape foreign text, such as file names and labels, for one line of a log, a terminal or a Markdown page."""

from __future__ import annotations

import re

_MARKDOWN = re.compile(r"([\\`*\[\]<>|&])")


def printable(text: str) -> str:
    """Escape characters that could forge a log line or control a terminal: control characters, line ends, direction marks."""
    if text.isprintable():
        return text
    return "".join(char if char.isprintable() else char.encode("unicode_escape").decode() for char in text)


def markdown(text: str) -> str:
    """Escape text for one line or table cell of Markdown, so that none of it is read as a link, picture, HTML or column."""
    return _MARKDOWN.sub(r"\\\1", printable(text))


def shared_reason(path: str, reason: str) -> str:
    """Return the reason why a file is left out, without the file's name, so that files can be counted by reason."""
    return reason.removeprefix(printable(path)).strip() or "no reason given"
