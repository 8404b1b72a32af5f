"""Reading a page as a browser would: its tags, its texts, its tables."""

from __future__ import annotations

from html.parser import HTMLParser
from pathlib import Path

_VOID = {"meta", "br", "wbr", "link", "img", "input", "hr", "source"}


class Page(HTMLParser):
    """A parsed page.

    Attributes:
        tags: (tag, attributes) of every element.
        tables: of each table its id or class and its rows of cells; a cell is its text and the numbers in it.
        text: all that is shown.
    """

    def __init__(self, path: Path):
        super().__init__()
        self.source = path.read_text(encoding="utf-8")
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.tables: list[tuple[str, list[list[tuple[str, list[float]]]]]] = []
        self.text = ""
        self._open: list[str] = []
        self.feed(self.source)
        self.close()
        assert self._open == []  # every element is closed, and in its place

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self._start(tag, dict(attrs))
        if tag not in _VOID:
            self._open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self._start(tag, dict(attrs))

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag

    def handle_data(self, data: str) -> None:
        if "style" in self._open:
            return
        self.text += data
        if self._open and {"td", "th"} & set(self._open):
            shown, numbers = self._rows[-1][-1]
            self._rows[-1][-1] = (shown + data, numbers)

    def table(self, name: str, number: int = 0) -> list[list[tuple[str, list[float]]]]:
        """The rows of a table, without its head."""
        return [rows for table_name, rows in self.tables if table_name == name][number][1:]

    def _start(self, tag: str, attributes: dict[str, str | None]) -> None:
        self.tags.append((tag, attributes))
        if tag == "table":
            self.tables.append((attributes.get("id") or attributes["class"] or "", []))
        elif tag == "tr":
            self._rows.append([])
        elif tag in ("td", "th"):
            self._rows[-1].append(("", []))
        elif tag == "data" and {"td", "th"} & set(self._open):
            self._rows[-1][-1][1].append(float(attributes["value"] or "nan"))

    @property
    def _rows(self) -> list[list[tuple[str, list[float]]]]:
        return self.tables[-1][1]


def check_self_contained(page: Page) -> None:
    """Nothing runs, and nothing is loaded from anywhere."""
    assert not {"script", "link", "iframe", "object", "embed", "img", "base", "form"} & {tag for tag, _ in page.tags}
    for _, attributes in page.tags:
        assert not any(name.startswith("on") for name in attributes)
        for name in ("src", "href", "xlink:href", "action", "data"):
            assert (attributes.get(name) or "#").startswith("#")
    assert page.source.count("url(") == page.source.count("url(#")
    assert "@import" not in page.source
    ids = [attributes["id"] for _, attributes in page.tags if "id" in attributes]
    assert len(ids) == len(set(ids))
    for _, attributes in page.tags:
        for name in ("href", "xlink:href"):
            if name in attributes:
                assert (attributes[name] or "").removeprefix("#") in ids
    policy = dict(page.tags[[tag for tag, _ in page.tags].index("title") - 1][1])
    assert policy["content"] == "default-src 'none'; style-src 'unsafe-inline'"
