"""Tables and a picture of what `benchmarks.steps` wrote.

python -m benchmarks.report runs/benchmarks/steps.jsonl --picture docs/images/costs.png
"""

import dataclasses
import json
import math
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import tyro
from matplotlib import pyplot as plt
from matplotlib.axes import Axes

Lines = dict[str, dict[str, dict[str, Any]]]
"""What was measured, by model and case; of cases measured again the last."""

NAMED = (
    "sam",
    "tsam",
    "ausam",
    "looksam",
    "rst",
    "per_microbatch(sam, 8)",
    "ausam's draw, vsam's gate",
    "optax.contrib.sam, transparent",
    "momentum_sam",
)
"""Cases that have their name in the picture, the first ones first, as far as there is room."""

ROOM = 0.25  # of names, in powers of two


@dataclasses.dataclass(frozen=True)
class Settings:
    """Print the tables of a file of steps as Markdown, and draw cost against gradients."""

    file: tyro.conf.Positional[Path]
    """JSON lines of `benchmarks.steps`."""
    again: Path | None = None
    """JSON lines of a second run on the same machine. The report then tells how far both agree."""
    picture: Path | None = None
    """File for the picture."""


def read(file: Path) -> Lines:
    """The lines of a file."""
    found: Lines = {}
    for line in map(json.loads, file.read_text().splitlines()):
        found.setdefault(line["model"], {})[line["case"]] = line
    return found


def costs_table(lines: Lines) -> list[str]:
    """One row for each case, the models side by side."""
    models = list(lines)
    heads = ["step", "gradients", *(f"time, {model}" for model in models)]
    heads += ["FLOPs", "bytes", "temporary MB", "state MB", "compile s"]
    rows = []
    for case in _cases(lines):
        each = [lines[model].get(case) for model in models]
        one = next(line for line in each if line)
        gradients = _gradients(one)
        star = "" if one["straight"] else " *"
        rows.append(
            [f"`{case}`", f"{gradients:.3g}"]
            + [_spread(line["wall_ratio"]) if line else "" for line in each]
            + [
                _joined(each, lambda line: f"{line['flops_ratio']:.2f}") + star,
                _joined(each, lambda line: f"{line['bytes'] / lines[line['model']]['sgd']['bytes']:.2f}"),
                _joined(each, lambda line: f"{line['temp_bytes'] / 1e6:.0f}"),
                _joined(each, lambda line: f"{line['state_bytes'] / 1e6:.0f}"),
                _joined(each, lambda line: f"{sum(line['seconds'].values()):.1f}"),
            ]
        )
    return _markdown(heads, rows)


def limits_table(lines: Lines) -> list[str]:
    """What every case with a limit on its time reached."""
    rows = []
    for case in _cases(lines):
        each = [cases.get(case) for cases in lines.values()]
        limits = next(line for line in each if line)["limits"]
        for number, limit in enumerate(limits):
            of_models = [line["limits"][number] if line else None for line in each]
            reached = [f"{x['ratio']['median']:.2f} {x['verdict']}" if x else "" for x in of_models]
            rows.append([f"`{case}`", f"{limit['most']:g} × `{limit['case']}`", *reached])
    return _markdown(["step", "at most", *lines], rows)


def _cases(lines: Lines) -> list[str]:
    """Every case that some model has, in the order of the first."""
    return list(dict.fromkeys(case for cases in lines.values() for case in cases))


def agreement(first: Lines, second: Lines) -> str:
    """How many medians of the second run lie between the quartiles of the first."""
    pairs = [
        (line["wall_ratio"], second[model][case]["wall_ratio"])
        for model, cases in first.items()
        for case, line in cases.items()
        if case != "sgd" and case in second.get(model, {})
    ]
    inside = sum(one["q25"] <= two["median"] <= one["q75"] for one, two in pairs)
    apart = sorted(abs(two["median"] / one["median"] - 1) for one, two in pairs)
    middle, most = apart[len(apart) // 2], apart[-1]
    return (
        f"{inside} of {len(pairs)} medians of the second run lie between the quartiles of the first; "
        f"medians differ by {middle:.1%} in the middle, by {most:.1%} at most"
    )


def draw(lines: Lines, file: Path) -> None:
    """Time of a step against gradients per step, both relative to SGD; a panel for each model."""
    plt.rcParams.update({"font.size": 9, "axes.spines.top": False, "axes.spines.right": False})
    figure, panels = plt.subplots(
        1, len(lines), figsize=(5.2 * len(lines), 5), squeeze=False, layout="constrained"
    )
    for panel, (model, cases) in zip(panels[0], lines.items(), strict=True):
        _draw_model(panel, cases)
        panel.set_title(model, loc="left", fontweight="bold")
    file.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(file, dpi=110)
    plt.close(figure)


def _draw_model(panel: Axes, cases: Mapping[str, Mapping[str, Any]]) -> None:
    panel.plot([0.4, 7], [0.4, 7], color="#bbbbbb", lw=1, zorder=0)
    panel.annotate("gradients alone", (3.4, 3.4), (4, -10), textcoords="offset points", color="#999999")
    for case, line in cases.items():
        gradients, ratio = _gradients(line), line["wall_ratio"]
        colour = "#0072B2" if case in NAMED else "#999999"
        panel.plot([gradients] * 2, [ratio["q25"], ratio["q75"]], color=colour, lw=1, alpha=0.6)
        panel.plot(gradients, ratio["median"], "o", color=colour, ms=4)
    taken: list[tuple[float, float]] = []
    for case in (case for case in NAMED if case in cases):
        x, y = _gradients(cases[case]), cases[case]["wall_ratio"]["median"]
        if any(abs(math.log2(x / u)) < ROOM and abs(math.log2(y / v)) < ROOM for u, v in taken):
            continue
        taken.append((x, y))
        shift, side = ((-6, 3), "right") if y >= x else ((6, -4), "left")
        panel.annotate(case, (x, y), shift, textcoords="offset points", ha=side, fontsize=8)
    panel.set_xscale("log", base=2)
    panel.set_yscale("log", base=2)
    ticks = [0.5, 1, 2, 4, 8]
    panel.set_xticks(ticks, [f"{x:g}" for x in ticks])
    panel.set_yticks(ticks, [f"{x:g}" for x in ticks])
    panel.set_xlim(0.15, 9)
    panel.set_xlabel("gradients per step")
    panel.set_ylabel("time of a step / SGD's")


def _gradients(line: Mapping[str, Any]) -> float:
    """Per step, as it was timed, where that is known."""
    told = [line["gradients"].get(name) for name in ("timed", "info")]
    return next((x for x in told if x is not None), line["gradients"]["counted"])


def _spread(ratio: Mapping[str, float]) -> str:
    return f"{ratio['median']:.2f} [{ratio['q25']:.2f}, {ratio['q75']:.2f}]"


def _joined(each: Sequence[Any], cell: Callable[[Any], str]) -> str:
    return " / ".join(cell(line) if line else "–" for line in each)


def _markdown(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    rule = ["---"] * len(heads)
    return [f"| {' | '.join(row)} |" for row in (heads, rule, *rows)]


def main(settings: Settings) -> None:
    """Prints the tables; draws."""
    lines = read(settings.file)
    tables = [*costs_table(lines), "", *limits_table(lines)]
    if settings.again:
        tables += ["", agreement(lines, read(settings.again))]
    sys.stdout.write("\n".join(tables) + "\n")
    if settings.picture:
        draw(lines, settings.picture)


if __name__ == "__main__":
    main(tyro.cli(Settings))
