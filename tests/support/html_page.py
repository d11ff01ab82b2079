"""An HTML page as a test sees it."""

import re
from html.parser import HTMLParser


class Page(HTMLParser):
    """What a browser would see: tags with attributes, text, and which elements were left open."""

    VOID = frozenset({"meta", "br", "hr", "img", "input", "link"})

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str]]] = []
        self.text = ""
        self.open: list[str] = []
        self.feed(page)
        self.close()

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, {name: value or "" for name, value in attrs}))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append((tag, {name: value or "" for name, value in attrs}))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text += data + " "

    @property
    def names(self) -> list[str]:
        return [tag for tag, _ in self.tags]


def assert_loads_nothing(page: str) -> None:
    """Check that a page fetches nothing and runs nothing."""
    parsed = Page(page)
    assert not {"script", "link", "iframe", "img", "image", "object", "embed", "base"} & set(parsed.names)
    for tag, attributes in parsed.tags:
        for name, value in attributes.items():
            if name.startswith("xmlns") or tag.startswith(("rdf:", "cc:", "dc:")):
                continue  # names of vocabularies, which nobody loads
            if name.endswith("href"):
                assert value.startswith("#"), (tag, name, value)
            assert "http:" not in value, (tag, name, value)
            assert "https:" not in value, (tag, name, value)
            assert not value.startswith("//"), (tag, name, value)
            assert name not in {"src", "srcset", "poster", "data", "action"}
    for target in re.findall(r"url\(([^)]*)\)", page):
        assert target.strip("\"'").startswith("#")
    assert "@import" not in page
