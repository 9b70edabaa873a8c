"""BibTeX of the papers that a docstring names."""

import dataclasses
import inspect
import re
import unicodedata
from collections.abc import Callable
from typing import Any


def citation(method: Callable[..., Any]) -> str:
    """The BibTeX entries of a method's papers, for the bibliography of yours.

    Args:
      method: a method of this library, not yet called, such as `optax_sam.vsam`, or a wrapper with a paper.

    Returns:
      One entry for each paper in the References of its docstring, with the year of the first version.

    Raises:
      TypeError: `method` is no function, or its docstring names no paper.

    Example:
      >>> import optax_sam
      >>> print(optax_sam.citation(optax_sam.usam))
      @misc{andriushchenko2022towards,
        author = {Maksym Andriushchenko and Nicolas Flammarion},
        title = {{Towards Understanding Sharpness-Aware Minimization}},
        year = {2022},
        archiveprefix = {arXiv},
        eprint = {2206.06232},
        url = {https://arxiv.org/abs/2206.06232},
      }
    """
    if not inspect.isroutine(method):
        raise TypeError(
            f"method={method!r} is no function: pass the method itself, for example optax_sam.vsam."
        )
    found = papers(inspect.getdoc(method) or "")
    if not found:
        raise TypeError(
            f"method={method!r} names no paper in its docstring: pass a method of this library, for example "
            f"optax_sam.vsam. CITATION.cff cites the library itself."
        )
    return "\n\n".join(paper.bibtex() for paper in found)


@dataclasses.dataclass(frozen=True)
class Paper:
    """A paper as a docstring names it.

    Attributes:
      authors: full names. "others" at the end, where the docstring says "et al."
      title: as it is printed.
      url: of its first version.
      venue: where it appeared. Empty for arXiv.
      year: of its first version.
    """

    authors: tuple[str, ...]
    title: str
    url: str
    venue: str
    year: str

    @property
    def key(self) -> str:
        """The first author's family name, the year, and the first word of the title that tells something."""
        words = [_letters(word) for word in self.title.split()]
        word = next(word for word in words if word not in ("", "a", "an", "the", "on", "as", "sam"))
        return _letters(self.authors[0].split()[-1]) + self.year + word

    def bibtex(self) -> str:
        """The entry."""
        fields = {
            "author": " and ".join(self.authors),
            "title": f"{{{self.title}}}",
            "year": self.year,
        }
        if "arxiv.org" in self.url:
            fields |= {"archiveprefix": "arXiv", "eprint": self.url.split("/")[-1]}
        elif self.venue:
            fields["howpublished"] = self.venue
        lines = [f"  {name} = {{{value}}},\n" for name, value in (fields | {"url": self.url}).items()]
        return f"@misc{{{self.key},\n{''.join(lines)}}}"


def papers(docstring: str) -> tuple[Paper, ...]:
    """The papers of a docstring's References: `` Authors, `Title <address>`_, venue year ``."""
    text = " ".join(sections(docstring).get("References", "").split())
    found = re.finditer(r"([^;:`]+), `([^`<]+) <(https?://[^>]+)>`_, (?:(\w+) )?(\d{4})", text)
    return tuple(Paper(_authors(m[1]), m[2], m[3], m[4] or "", m[5]) for m in found)


SECTIONS = "Args Attributes Returns Raises Cost Guarantees Example References Limits Deviations".split()


def sections(docstring: str) -> dict[str, str]:
    """The sections of a docstring by their names, in its order. What stands before them has no name."""
    names = "|".join(SECTIONS)
    parts = re.split(rf"^({names}):(?=\s)", inspect.cleandoc(docstring), flags=re.MULTILINE)
    return {"": parts[0].strip()} | dict(zip(parts[1::2], map(str.strip, parts[2::2]), strict=True))


def _authors(text: str) -> tuple[str, ...]:
    names = re.split(r", and |, | and ", text.strip().replace(" et al.", ", others"))
    return tuple(name.strip() for name in names)


def _letters(word: str) -> str:
    plain = unicodedata.normalize("NFKD", word.lower()).encode("ascii", "ignore").decode()
    return re.sub(r"[^a-z0-9]", "", plain)
