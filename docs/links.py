"""Checks that every link within the built site has a target: `python -m docs.links runs/site`."""

import sys
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit


class Page(HTMLParser):
    """The addresses that a page links to, and the places in it that can be linked to."""

    def __init__(self, text: str):
        super().__init__()
        self.links: list[str] = []
        self.places: set[str] = set()
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        for name, value in attrs:
            if name in ("href", "src") and value:
                self.links.append(value)
            if name in ("id", "name") and value:
                self.places.add(value)


def broken(site: Path) -> list[str]:
    """The links of all pages that lead nowhere within the site; addresses elsewhere are not asked for."""
    pages = {file.resolve(): Page(file.read_text()) for file in sorted(site.rglob("*.html"))}
    return [
        f"{file.relative_to(site.resolve())}: {link}"
        for file, page in pages.items()
        for link in page.links
        if not leads_somewhere(link, file, pages)
    ]


def leads_somewhere(link: str, file: Path, pages: dict[Path, Page]) -> bool:
    """Whether the file is there, and the place in it."""
    parts = urlsplit(link)
    if parts.scheme or parts.netloc:
        return True
    target = (file.parent / unquote(parts.path)).resolve() if parts.path else file
    if not target.exists():
        return False
    return not parts.fragment or target not in pages or unquote(parts.fragment) in pages[target].places


def main() -> None:
    """Exits with 1 where a link is broken, and names all of these."""
    if found := broken(Path(sys.argv[1])):
        sys.exit("\n".join(["these links lead nowhere:", *found]))


if __name__ == "__main__":
    main()
