"""Makes the tables of docs/radius.md: `python -m experiments.evidence.radius_tables --help`."""

import dataclasses
import statistics
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from experiments.evidence import judge_finder, judge_rules, plan, width
from experiments.evidence.candidates import Point
from experiments.evidence.rules import DESIGN, JUDGING, RULES
from experiments.evidence.summary import Interval, difference
from experiments.evidence.tables import ROOT, table, written_between
from experiments.evidence.tasks import TASKS
from experiments.reports.intervals import share
from experiments.running.records import read_metrics
from experiments.running.scores import Score, score_of
from experiments.settings.command_line import command_line, program

BEGIN, END = "<!-- radius: made by `make results` -->", "<!-- radius: end -->"


@dataclasses.dataclass(frozen=True)
class RadiusTableSettings:
    """Write what the results say of radii into the page, between its markers."""

    results: Path = ROOT / "experiments/results"
    """Folder of the JSON lines."""
    page: Path = ROOT / "docs/radius.md"
    """The page."""


def main(args: list[str] | None = None) -> None:
    """The command line."""
    command_line(RadiusTableSettings, radius_tables, args, "the same command begins again")


def radius_tables(settings: RadiusTableSettings) -> None:
    """Reads the results, writes the page."""
    written_between(settings.page, BEGIN, END, page(settings.results))
    print(f"see {settings.page}")


def page(results: Path) -> str:
    """All tables."""
    parts = ("The constants on the design tasks, test scores:", table(choices(results)))
    parts += ("The frozen rules on the judging tasks, regret:", table(regrets(results)))
    parts += ("## The finder", *finder(results))
    shares = width.shares_table(read_metrics(results / width.FILE))
    parts += ("## The layers of wide networks", width.SHARES, table(shares))
    return "\n\n".join(parts) + "\n"


class Judged(NamedTuple):
    """A rule on one task.

    Attributes:
      regret: the part of SAM's gain that it loses, and its interval; None where SAM's gain is within noise.
      over_sam: difference to SAM in the same seeds; more is better.
      gain: over the base, likewise.
    """

    regret: tuple[float, float, float] | None
    over_sam: Interval
    gain: Interval


def judged(task: str, name: str, results: Path) -> Judged | None:
    """What a rule does on a task, in the seeds of the base and SAM; None if fewer than two were run."""
    rule, file = RULES[name], judge_rules.file_of(task, results)
    if not file.exists():
        return None
    numbers, own = judge_rules.reference(task, results), read_metrics(file)
    others = read_metrics(results / f"{task}.jsonl")
    at = {each: numbers["sam"][each] for each in ("learning_rate", "weight_decay")}
    scores = tested(task, own, name, at | {rule.constant: rule.chosen})
    base, sam = (tested(task, others, each, None) for each in ("base", "sam"))
    common = sorted(set(scores) & set(base) & set(sam))
    if len(common) < 2:  # one has no interval
        return None
    mine, low, high = ({seed: found[seed] for seed in common} for found in (scores, base, sam))
    gains, whole = ([found[seed] - low[seed] for seed in common] for found in (mine, high))
    kept = share(gains, whole)
    regret = None if kept is None else (1 - kept[0], 1 - kept[2], 1 - kept[1])
    return Judged(regret, difference(mine, high), difference(mine, low))


def tested(task: str, rows: Iterable[dict[str, Any]], name: str, point: Point | None) -> dict[int, float]:
    """The score of each test seed, more being better; of the last point that was tested if none is given."""
    score = score_of(vars(TASKS[task].setup))
    found = [row for row in rows if row["phase"] == "test" and row["candidate"] == name]
    found = [row for row in found if row["seed"] >= plan.FIRST_TEST_SEED]
    point = found[-1]["point"] if point is None and found else point
    return {row["seed"]: score.sign * score.value(row["score"]) for row in found if row["point"] == point}


def regrets(results: Path) -> list[tuple[str, ...]]:
    """The regret of every rule on every judging task that was run."""
    found = {name: {task: judged(task, name, results) for task in JUDGING} for name in RULES}
    tasks = [task for task in JUDGING if any(each[task] for each in found.values())]
    rows: list[tuple[str, ...]] = [("rule", *(TASKS[task].title for task in tasks), "median, worst")]
    for name, each in found.items():
        if any(each.values()):
            cells = [cell(each[task], score_of(vars(TASKS[task].setup))) for task in tasks]
            known = [one.regret[0] for one in each.values() if one and one.regret]
            last = f"{statistics.median(known):.2f}, {max(known):.2f}" if known else ""
            rows.append((f"{RULES[name].title}, c = {RULES[name].chosen:g}", *cells, last))
    return rows


def cell(found: Judged | None, score: Score) -> str:
    """The regret and its interval, or the difference to SAM; marked where it is worse than the base."""
    if found is None:
        return ""
    if found.regret is None:
        text = f"{score.text(*found.over_sam)} to SAM"
    else:
        text = "{:.2f} ({:.2f} to {:.2f})".format(*found.regret)
    return f"{text}, **below the base**" if found.gain.mean + found.gain.margin < 0 else text


def choices(results: Path) -> list[tuple[str, ...]]:
    """The mean score of every constant on the design tasks."""
    rows: list[tuple[str, ...]] = [("rule", "radius", *(TASKS[task].title for task in DESIGN))]
    for name, rule in RULES.items():
        tried = [judge_rules.tried(task, name, results) for task in DESIGN]
        if any(tried):
            rows.append((rule.title, rule.formula, *(constants(found, rule.chosen) for found in tried)))
    return rows


def constants(found: dict[float, float], chosen: float | None) -> str:
    """Constants and percentages; the chosen one in bold."""
    texts = {value: f"{value:g}: {100 * score:.1f}" for value, score in sorted(found.items())}
    return ", ".join(f"**{text}**" if value == chosen else text for value, text in texts.items())


def finder(results: Path) -> list[str]:
    """The recommended radius beside the tuned one."""
    rows: list[tuple[str, ...]] = [
        ("task", "tuned", "recommended", "factor", "relative rise at the tuned radius")
    ]
    factors = []
    for task in TASKS:
        found = [
            each for each in read_metrics(judge_finder.file_of(task, results)) if each["phase"] == "find"
        ]
        if not found:
            continue
        tuned = judge_rules.reference(task, results)["sam"]["rho"]
        values = [each["recommended"] for each in found if each["recommended"] is not None]
        middle = float(np.exp(np.mean(np.log(values))))
        factors.append(max(middle / tuned, tuned / middle))
        spread = f"{middle:.2g} ({min(values):.2g} to {max(values):.2g})"
        rise = f"{rise_at(tuned, found):.2g}"
        rows.append((TASKS[task].title, f"{tuned:g}", spread, f"{middle / tuned:.2g}", rise))
    if not factors:
        return []
    said = f"Median factor {statistics.median(factors):.2g}, worst {max(factors):.2g}, up or down."
    return [table(rows), said]


def rise_at(tuned: float, rows: Sequence[dict[str, Any]]) -> float:
    """The mean relative rise at a radius, between those that were measured."""
    rises = []
    for each in rows:
        measured = zip(each["radii"], each["relative_rises"], strict=True)
        known = [(radius, rise) for radius, rise in measured if rise is not None]
        radii, heights = zip(*known, strict=True)
        rises.append(np.interp(np.log(tuned), np.log(radii), heights))
    return float(np.mean(rises))


if __name__ == "__main__":
    program(main)
