"""Makes the tables and the picture of docs/results.md: `python -m experiments.evidence.tables --help`."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path

from experiments.evidence.candidates import CANDIDATES
from experiments.evidence.picture import draw
from experiments.evidence.summary import AS_CHEAP, ENOUGH, Interval, Kept, Summary, answering, read
from experiments.running import records
from experiments.running.scores import Score
from experiments.settings import SettingsError
from experiments.settings.command_line import command_line, program

ROOT = Path(__file__).parents[2]
BEGIN, END = "<!-- evidence: made by `make results` -->", "<!-- evidence: end -->"

COLUMNS = (
    "method",
    "{score}",
    "gain over the base",
    "difference to SAM",
    "share of SAM's gain %",
    "gradients / step",
    "time / base's",
    "largest eigenvalue",
    "chosen",
)


@dataclasses.dataclass(frozen=True)
class TableSettings:
    """Write what the results say into the page, between its markers, and draw the picture."""

    results: Path = ROOT / "experiments/results"
    """Folder of the JSON lines."""
    page: Path = ROOT / "docs/results.md"
    """The page."""
    picture: Path = ROOT / "docs/images/results_evidence.png"
    """The picture."""


def main(args: list[str] | None = None) -> None:
    """The command line."""
    command_line(TableSettings, tables, args, "the same command begins again")


def tables(settings: TableSettings) -> None:
    """Reads the results, writes the page, draws the picture."""
    summaries = read(settings.results)
    if not summaries:
        raise SettingsError(
            f"--results {settings.results} holds no tested task: run experiments.evidence first"
        )
    written_between(settings.page, BEGIN, END, page(summaries))
    draw(summaries, settings.picture)
    print(f"see {settings.page} and {settings.picture}")


def written_between(page: Path, begin: str, end: str, text: str) -> None:
    """Puts a text into a page, between two markers, in the place of what stood there.

    Raises:
      SettingsError: the page has not these markers.
    """
    before, first, rest = page.read_text().partition(begin)
    _, last, after = rest.partition(end)
    if not first or not last:
        raise SettingsError(f"--page {page} has no lines {begin} and {end}: put them in")
    with records.disk_errors(page.parent):
        page.write_text(f"{before}{begin}\n\n{text}\n{end}{after}")


def page(summaries: Sequence[Summary]) -> str:
    """All tables: one over the tasks, then one for each."""
    parts = [overview(summaries), *map(section, summaries)]
    return "\n".join(parts)


def overview(summaries: Sequence[Summary]) -> str:
    """What each candidate keeps and costs, task by task."""
    names = [name for name in CANDIDATES if any(name in each.kept for each in summaries) and name != "base"]
    lines = [
        row(
            [
                "kept of SAM's gain %, time / base's",
                *(each.task.title for each in summaries),
                "tasks that answer",
            ]
        ),
        row(["---"] * (len(summaries) + 2)),
        row(["SAM's gain", *(gain_cell(each) for each in summaries), ""]),
    ]
    answers = answering(summaries)
    for name in names:
        cells = [overview_cell(each.kept.get(name)) for each in summaries]
        lines.append(row([CANDIDATES[name].title, *cells, str(len(answers[name])) if name != "sam" else ""]))
    gaining = sum(each.gains for each in summaries)
    lines += [
        "",
        f"Tasks that answer: of the {gaining} on which SAM's gain is beyond its interval, those on which the "
        f"method keeps {ENOUGH:.0%} of it or more, in at most {AS_CHEAP:g} times the base's time.",
        "",
    ]
    return "\n".join(lines)


def gain_cell(summary: Summary) -> str:
    """SAM's gain, and whether it is beyond its interval."""
    gain = summary.kept["sam"].gain if "sam" in summary.kept else None
    if gain is None:
        return ""
    return signed(gain, summary.score) + ("" if summary.gains else " (within noise)")


def overview_cell(kept: Kept | None) -> str:
    """The share and the time."""
    if kept is None:
        return ""
    time = "" if kept.time is None else f"{kept.time[0]:.2f} x"
    if kept.name == "sam":
        return f"100, {time}".rstrip(", ")
    if kept.share is None:
        return f"?, {time}".rstrip(", ")
    return f"{100 * kept.share[0]:.0f}, {time}".rstrip(", ")


def section(summary: Summary) -> str:
    """One task's table."""
    environment = summary.environment
    versions = environment["versions"]
    lines = [
        f"### {summary.task.title}",
        "",
        "```sh",
        command(summary),
        "```",
        "",
        row([column.format(score=summary.score.label) for column in COLUMNS]),
        row(["---"] * len(COLUMNS)),
        *(row(cells(kept, summary.score)) for kept in summary.kept.values()),
        "",
        f"{summary.task.seeds} seeds; jax {versions['jax']}, optax {versions['optax']}; "
        f"{environment['machine']['cores']} cores; revision {environment['source_revision'][:8]}. The search "
        f"of each method took {search_costs(summary)} trainings of the base.",
        "",
    ]
    return "\n".join(lines)


def command(summary: Summary) -> str:
    """What makes a task's results."""
    words = ["python -m experiments.evidence", summary.name]
    words += ["--data DATA"] if summary.task.folder else []
    words += [] if set(summary.kept) == set(CANDIDATES) else ["--candidates", *summary.kept]
    return " ".join(words)


def search_costs(summary: Summary) -> str:
    """The least and the most that a candidate's search took, in gradients."""
    costs = [kept.cost for kept in summary.kept.values()]
    return f"{min(costs):.0f} to {max(costs):.0f}"


def cells(kept: Kept, score: Score) -> list[str]:
    """A row of a task's table."""
    chosen = ", ".join(f"{name.replace('_', ' ')} {value:g}" for name, value in kept.point.items())
    return [
        CANDIDATES[kept.name].title,
        score.text(*kept.score),
        "" if kept.gain is None else signed(kept.gain, score),
        "" if kept.over_sam is None else signed(kept.over_sam, score),
        ""
        if kept.share is None
        else "{:.0f} ({:.0f} to {:.0f})".format(*(100 * each for each in kept.share)),
        f"{kept.gradients:.2f}",
        "" if kept.time is None else f"{kept.time[0]:.2f}",
        "" if kept.eigenvalue is None else f"{kept.eigenvalue:.3g}",
        chosen,
    ]


def signed(interval: Interval, score: Score) -> str:
    """A difference with its sign: more is better."""
    return ("+" if interval.mean >= 0 else "") + score.text(*interval)


def row(cells: Sequence[str]) -> str:
    """A line of a Markdown table."""
    return "| " + " | ".join(cells) + " |"


if __name__ == "__main__":
    program(main)
