"""One page for each method, and the index of these pages."""

import dataclasses
import functools
import re

import optax_sam
from docs.derived.groups import grouped
from docs.derived.methods import Method
from docs.derived.parts import ROOT, Part
from experiments.evidence.summary import Kept, Summary, read
from experiments.evidence.tables import signed

FOLDER = ROOT / "docs/api/method"


@dataclasses.dataclass(frozen=True)
class Page(Part):
    """A page that is derived as a whole."""

    def whole(self) -> str:
        return self.text

    def is_current(self) -> bool:
        return self.file.exists() and self.file.read_text() == self.text

    def write(self) -> None:
        self.file.parent.mkdir(exist_ok=True)
        self.file.write_text(self.text)


def method_pages(methods: list[Method], starts_at_params: dict[str, bool]) -> list[Part]:
    """The pages, and the index."""
    shown = [method for method in methods if method.makes_a_method]
    helpers = {
        method.name: [each for each in methods if each.file == method.file and not each.makes_a_method]
        for method in shown
        if method.name == next(other.name for other in shown if other.file == method.file)
    }
    return [
        Part(ROOT / "docs/api/methods.md", "methods by group", index(shown)),
        *(
            Page(FOLDER / f"{m.name}.md", "page", page(m, helpers.get(m.name, []), starts_at_params))
            for m in shown
        ),
    ]


def index(methods: list[Method]) -> str:
    """A line for each method, and the order of the pages."""
    by_name = {method.name: method for method in methods}
    text, pages = "", []
    for heading, names in grouped(list(by_name)).items():
        pages += [f"method/{name}" for name in names]
        lines = [f"* [`{n}`](method/{n}.md), {by_name[n].title}: {by_name[n].gist}" for n in names]
        text += f"## {heading}\n\n" + "\n".join(lines) + "\n\n"
    return "```{toctree}\n:hidden:\n\n" + "\n".join(pages) + "\n```\n\n" + text.strip("\n") + "\n"


def page(method: Method, helpers: list[Method], starts_at_params: dict[str, bool]) -> str:
    """What a method is, costs and came to, and how it is cited."""
    documented = "\n\n".join(f".. autofunction:: optax_sam.{each.name}" for each in [method, *helpers])
    parts = [
        f"# {method.title}",
        method.gist[0].upper() + method.gist[1:],
        facts(method, starts_at_params),
        f"## Equation and arguments\n\n```{{eval-rst}}\n{documented}\n```",
        *measured(method),
        f"## Citation\n\n```bibtex\n{optax_sam.citation(method.function)}\n```",
    ]
    return "\n\n".join(parts) + "\n"


def facts(method: Method, starts_at_params: dict[str, bool]) -> str:
    """The cost of a step, and what it needs."""
    gradients, buffers = method.cost
    needs = re.sub("^losses", "losses of single examples", method.needs)
    needs = re.sub("^oracle", "the oracle of a step (`optax_sam.step` passes it)", needs)
    start = {True: "yes", False: "no"}.get(starts_at_params.get(method.name), "not known")
    source = f"optax_sam/methods/{method.file}.py"
    rows = {
        "Gradients per step": gradients,
        "Parameter-sized buffers": buffers,
        "Needs": needs or "nothing beyond the gradient function",
        "First gradient at `params`": start,
        "Source": f"[{source}](../../../{source})",
        "See also": "[Every method](../../methods.md), [Which method](../../choosing.md)",
    }
    return "\n".join(["| | |", "| --- | --- |", *(f"| {name} | {value} |" for name, value in rows.items())])


@functools.cache
def evidence() -> list[Summary]:
    """What `experiments/results` says of each task."""
    return read(ROOT / "experiments/results")


def measured(method: Method) -> list[str]:
    """The rows of the tasks on which the method was searched and tested."""
    found = [(task, task.kept[method.name]) for task in evidence() if method.name in task.kept]
    if not found:
        return []
    head = [
        "task",
        "score",
        "gain over the base",
        "share of SAM's gain %",
        "gradients / step",
        "time / base's",
    ]
    lines = [f"| {' | '.join(head)} |", "| " + " | ".join(["---"] * len(head)) + " |"]
    lines += [f"| {' | '.join(cells(task, kept))} |" for task, kept in found]
    note = (
        "Means with 95 % intervals over seeds. [Results](../../results.md) has the commands and all methods."
    )
    return ["## Measured\n\n" + "\n".join(lines) + "\n\n" + note]


def cells(task: Summary, kept: Kept) -> list[str]:
    """A row of the table."""
    share = (
        "" if kept.share is None else "{:.0f} ({:.0f} to {:.0f})".format(*(100 * each for each in kept.share))
    )
    return [
        f"{task.task.title} (n = {kept.seeds})",
        f"{task.score.label} {task.score.text(*kept.score)}",
        "" if kept.gain is None else signed(kept.gain, task.score),
        share,
        f"{kept.gradients:.2f}",
        "" if kept.time is None else f"{kept.time[0]:.2f}",
    ]
