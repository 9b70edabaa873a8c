"""Makes the tables and the picture of docs/results.md: `python -m experiments.evidence.tables --help`."""

import dataclasses
import statistics
from collections.abc import Sequence
from pathlib import Path

from experiments.evidence.candidates import CANDIDATES, candidates_of
from experiments.evidence.picture import draw
from experiments.evidence.summary import AS_CHEAP, ENOUGH, Interval, Kept, Summary, answering, read
from experiments.running import records
from experiments.running.scores import Score
from experiments.settings import SettingsError
from experiments.settings.command_line import command_line, program

ROOT = Path(__file__).parents[2]
BEGIN, END = "<!-- evidence: made by `make results` -->", "<!-- evidence: end -->"

COLUMNS = ("method", "{score}", "over the base", "over SAM", "share of SAM's gain %", "time / base's")
CHOICES = ("method", "gradients / step", "largest eigenvalue", "chosen by the search", "cost of the search")


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
    """Two tables: the best cheap method on each task, and every method over all tasks."""
    best = best_of(summaries)
    tasks = [("task", "base", "SAM", f"{(title := CANDIDATES[best].title)}", "share %", "time / base's")]
    tasks += [task_row(each, best) for each in summaries]
    header = ("method", "tasks", "share of SAM's gain %: median (range)", "time / base's: median (range)")
    methods = [(*header, "tasks that answer")]
    methods += [method_row(summaries, name) for name in CANDIDATES if name not in ("base", "sam")]
    gaining = sum(each.gains for each in summaries)
    said = (
        f"Tasks that answer: of the {gaining} on which SAM's gain is beyond its interval, those on which the "
        f"method keeps {ENOUGH:.0%} of it or more, in at most {AS_CHEAP:g} times the base's time."
    )
    above = (
        f"Accuracies are in %, forecasts have mean squared errors. {title}'s share stands with its interval."
    )
    return "\n".join([above, "", table(tasks), "", table([each for each in methods if each]), "", said, ""])


def best_of(summaries: Sequence[Summary]) -> str:
    """The method that answers on most tasks; Momentum SAM where none does."""
    answers = answering(summaries)
    return max(answers, key=lambda name: (len(answers[name]), name == "momentum_sam"))


def task_row(summary: Summary, best: str) -> tuple[str, ...]:
    """What SAM and the best cheap method do on a task."""
    scores = [
        summary.score.text(*summary.kept[name].score) if name in summary.kept else ""
        for name in ("base", "sam", best)
    ]
    if not summary.gains:
        return (summary.task.title, *scores, "no gain of SAM's", "")
    kept = summary.kept.get(best)
    return (summary.task.title, *scores, "" if kept is None else share_text(kept), time_text(kept))


def method_row(summaries: Sequence[Summary], name: str) -> tuple[str, ...]:
    """What a method keeps and costs over the tasks on which SAM gains."""
    kept = [each.kept[name] for each in summaries if each.gains and name in each.kept]
    if not kept:
        return ()
    shares = [100 * each.share[0] for each in kept if each.share is not None]
    times = [each.time[0] for each in kept if each.time is not None]
    cells = (spread(shares, "{:.0f}"), spread(times, "{:.2f}"))
    return (CANDIDATES[name].title, str(len(kept)), *cells, str(len(answering(summaries)[name])))


def spread(values: Sequence[float], form: str) -> str:
    """Median, and least and greatest where there are several."""
    if not values:
        return ""
    middle = form.format(statistics.median(values))
    if len(values) == 1:
        return middle
    return f"{middle} ({form.format(min(values))} to {form.format(max(values))})"


def share_text(kept: Kept) -> str:
    """The share of SAM's gain in percent, and its interval."""
    if kept.share is None:
        return ""
    return "{:.0f} ({:.0f} to {:.0f})".format(*(100 * each for each in kept.share))


def time_text(kept: Kept | None) -> str:
    """The time relative to the base's."""
    return "" if kept is None or kept.time is None else f"{kept.time[0]:.2f}"


def section(summary: Summary) -> str:
    """One task's tables."""
    environment = summary.environment
    versions = environment["versions"]
    scores = [tuple(column.format(score=summary.score.label) for column in COLUMNS)]
    scores += [cells(kept, summary.score) for kept in summary.kept.values()]
    choices = [CHOICES, *map(choice, summary.kept.values())]
    lines = [
        f"### {summary.task.title}",
        "",
        "```sh",
        command(summary),
        "```",
        "",
        table(scores),
        "",
        table(choices),
        "",
        f"{summary.task.seeds} seeds; jax {versions['jax']}, optax {versions['optax']}; "
        f"{environment['machine']['cores']} cores; revision {environment['source_revision'][:8]}. A search "
        "costs so many trainings of the base.",
        "",
    ]
    return "\n".join(lines)


def command(summary: Summary) -> str:
    """What makes a task's results."""
    words = ["python -m experiments.evidence", summary.name]
    words += ["--data DATA"] if summary.task.folder else []
    words += [] if set(summary.kept) == set(candidates_of(summary.task)) else ["--candidates", *summary.kept]
    return " ".join(words)


def cells(kept: Kept, score: Score) -> tuple[str, ...]:
    """What a method reaches and costs."""
    gains = ["" if each is None else signed(each, score) for each in (kept.gain, kept.over_sam)]
    own = score.text(*kept.score)
    return (CANDIDATES[kept.name].title, own, *gains, share_text(kept), time_text(kept))


def choice(kept: Kept) -> tuple[str, ...]:
    """What was chosen for a method, and what it is like."""
    chosen = ", ".join(f"{name.replace('_', ' ')} {value:g}" for name, value in kept.point.items())
    eigenvalue = "" if kept.eigenvalue is None else f"{kept.eigenvalue:.3g}"
    return (CANDIDATES[kept.name].title, f"{kept.gradients:.2f}", eigenvalue, chosen, f"{kept.cost:.0f}")


def signed(interval: Interval, score: Score) -> str:
    """A difference with its sign: more is better."""
    return ("+" if interval.mean >= 0 else "") + score.text(*interval)


def table(rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table; the first row is its head."""
    head, *others = rows
    lines = [head, ["---"] * len(head), *others]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in lines)


if __name__ == "__main__":
    program(main)
