"""A page as a reader of it finds it."""

from __future__ import annotations

from html.parser import HTMLParser

from markdown_it import MarkdownIt


class Tags(HTMLParser):
    """Collects the tags of a page."""

    def __init__(self) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.cells: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        if tag in ("td", "th"):
            self.cells.append("")

    def handle_data(self, data: str) -> None:
        if self.cells and data.strip():
            self.cells[-1] += data


def rendered(text: str) -> Tags:
    found = Tags()
    found.feed(MarkdownIt("commonmark", {"html": True}).enable("table").render(text))
    return found
