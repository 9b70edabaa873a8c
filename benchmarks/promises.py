"""What is promised of compiled programs, and the table in which they stand."""

from collections.abc import Sequence
from typing import Any

from rich.box import Box
from rich.table import Table

from benchmarks import by_hand
from experiments.running import topologies
from tests import registry

MOST_TEMPORARIES, MOST_KERNELS = 1.05, 1.35
MOST_SMALL, MOST_SMALL_OF_DRAWS = 3, 5
FEW = 0.01
"""Of the bytes that are summed without the method."""
DRAWING = ("ausam", "esam", "ksam", "reweighted_sam")
WAIVED = {
    (
        "momentum_sam",
        "temporaries_mb",
    ): "its state changes only where all gradients are finite, and waits for them",
    ("vsam(window=10)", "kernels"): "by hand, its gate does not follow a variance",
}
"""What is not promised, and why."""
LOOPS = {"sparse_sam(num_samples=8)": 1}
"""Where other arguments than the registry's have loops of their own: over the examples of a Fisher mask."""
SAME_PLACE = ("machine", "model", "parameters", "axes")


def missed(lines: Sequence[dict[str, Any]]) -> list[str]:
    """The promises that are not kept, in words."""
    return [f"{_name(line)}: {reason}" for line in lines for reason in _reasons(line, lines)]


def _reasons(line: dict[str, Any], lines: Sequence[dict[str, Any]]) -> list[str]:
    if "error" in line:
        return [line["error"]]
    if line["step"] in {case.name for case in by_hand.CASES} or line["step"].startswith("optax."):
        return []
    found = []
    if line["donated_mb"] < 0.99 * line["kept_mb"]:
        found.append(f"{line['donated_mb']:.1f} of {line['kept_mb']:.1f} MB are donated")
    same = {
        x["step"]: x for x in lines if all(x[key] == line[key] for key in SAME_PLACE) and "error" not in x
    }
    other = same.get(by_hand.LIKE.get(line["step"], ""))
    if other is not None and topologies.is_gpu(line["machine"]):
        for key, most in (("temporaries_mb", MOST_TEMPORARIES), ("kernels", MOST_KERNELS)):
            if key == "temporaries_mb" and line["peak_mb"] <= most * other["peak_mb"]:
                continue  # what is not donated by hand is no temporary there
            if line[key] > most * other[key] and (line["step"], key) not in WAIVED:
                found.append(f"{key} {line[key]:.4g}, by hand {other[key]:.4g} (at most {most:g} times)")
    base = same.get(by_hand.BASE)
    if base is None:
        return found
    method = line["step"].partition("(")[0].partition(",")[0]
    most = MOST_SMALL_OF_DRAWS if method in DRAWING else MOST_SMALL
    if line["parameters"] == "copied" and line["small_collectives"] - base["small_collectives"] > most:
        found.append(f"{line['small_collectives']} small exchanges, {base['small_collectives']} without it")
    (gathers, size), (of_base, base_size) = (x["collectives"].get("all-gather", (0, 0)) for x in (line, base))
    summed = base["collectives"].get("all-reduce", (0, 0))[1]
    # Those who draw may gather a number for each example.
    if line["parameters"] == "copied" and size - base_size > FEW * summed:
        found.append(f"{gathers} gathers of {size} bytes, {of_base} without it")
    row = {**registry.CASES, **registry.ROWS}.get(method)
    if row is not None and "," not in line["step"]:
        least = 2 if method in DRAWING else 1  # two gradients of a part of the examples
        passes = max(least, round(line["product_flops"] / base["product_flops"]))
        own = LOOPS.get(line["step"], row.loops)
        most = base["loops"] * passes + own
        if line["loops"] > most:
            found.append(f"{line['loops']} loops, {base['loops']} in one gradient, {own} of its equation")
        if line["conditionals"] > row.conditionals + row.gated or line["conditionals"] < row.gated:
            found.append(f"{line['conditionals']} conditionals, {int(row.gated)} of its gate")
    return found


def _name(line: dict[str, Any]) -> str:
    return f"{line['step']} for {', '.join(line[key] for key in SAME_PLACE)}"


def table(lines: Sequence[dict[str, Any]], title: str, box: Box) -> Table:
    """The figures of one place."""
    heads = ("step", "loops", "conds", "kernels", "exchanges", "small", "summed in", "temp. MB", "peak MB")
    result = Table(*heads, "kept twice MB", "at best ms", title=title, box=box)
    for line in lines:
        if "error" in line:
            result.add_row(line["step"], line["error"])
            continue
        sent = ", ".join(f"{number} {kind}" for kind, (number, _) in line["collectives"].items())
        lost = max(line["kept_mb"] - line["donated_mb"], 0)
        by, longest = max(line["at_best_ms"].items(), key=lambda item: item[1])
        figures = (line["loops"], line["conditionals"], line["kernels"], sent, line["small_collectives"])
        memory = [f"{line[key]:.1f}" for key in ("temporaries_mb", "peak_mb")]
        at_best = f"{longest:.3f} ({by})"
        result.add_row(
            line["step"], *map(str, figures), line["summed_in"] or "", *memory, f"{lost:.1f}", at_best
        )
    return result
