"""What is out of date, and what is missing."""

from docs.derived import method_pages, pages
from docs.derived.exports import exports
from docs.derived.methods import all_methods
from docs.derived.parts import COMMAND, ROOT, Part


def parts() -> list[Part]:
    """Everything that is derived."""
    methods = all_methods()
    from tests import registry  # names methods that may not be exported yet: `all_methods` goes first

    starts = {name: row.starts_at_params for name, row in registry.ROWS.items()}
    return [exports(), *pages.pages(methods), *method_pages.method_pages(methods, starts)]


def problems() -> list[str]:
    """Derived parts that are out of date, and what the methods lack."""
    methods = all_methods()
    from docs.derived.missing import missing

    old = [part for part in parts() if not part.is_current()]
    stale = [f"{part.file.relative_to(ROOT)}: {part.name} out of date: run {COMMAND}" for part in old]
    names = {method.name for method in methods}
    gone = [file for file in method_pages.FOLDER.glob("*.md") if file.stem not in names]
    left = [f"{file.relative_to(ROOT)}: its method is gone: remove the page" for file in gone]
    return stale + left + missing(methods)
