"""Does the best radius move with a network's width? `python -m experiments.evidence.width --help`."""

import dataclasses
import itertools
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from matplotlib import pyplot as plt
from rich.progress import Progress

from experiments.data import load
from experiments.evidence.__main__ import RESULTS, Book, alone_with
from experiments.evidence.tables import ROOT
from experiments.models import MODELS
from experiments.running import records
from experiments.running.programs import compile_programs
from experiments.running.progress import progress_bar
from experiments.running.run import train_epoch
from experiments.running.scores import Score
from experiments.running.side_by_side import compile_side_by_side, run_side_by_side
from experiments.running.standing import Standing, standing_at
from experiments.settings import Settings, SettingsError
from experiments.settings.command_line import command_line, program
from experiments.settings.defaults import resolved
from experiments.settings.of_method import MethodSettings
from optax_sam.sharpness.plots import COLOURS

FILE = "width.jsonl"
EPOCHS = 40  # in 15, SAM gains nothing at any radius
RATES = (0.1, 0.2)
RADII = {"sam": (0.1, 0.2, 0.4, 0.8), "fan_scaled_sam": (0.02, 0.04, 0.08, 0.16)}
TITLES = {"sam": "SAM", "fan_scaled_sam": "fan-scaled SAM"}
LOOKS = (0, 10)  # after so many epochs the layers are looked at
LAYERS = ("Dense_0", "Dense_1", "Dense_2")
SHARES = (
    "The first, the hidden and the last layer's part of the squared gradient, in percent. "
    "MNIST-1D, SAM with radius 0.4 at learning rate 0.2, means over seeds:"
)
UNITS_SIDE_BY_SIDE = 4096  # of all networks that train at once, so that a group takes minutes

ACCURACY = Score("test", "accuracy")


@dataclasses.dataclass(frozen=True)
class WidthSettings:
    """Train dense networks of several widths on MNIST-1D with SAM and fan-scaled SAM, and draw the picture.

    Every finished run is a line of the results. The same command continues after an interruption.
    """

    widths: tuple[int, ...] = (64, 128, 256, 512)
    """Of both hidden layers."""
    rates: tuple[float, ...] = RATES
    """Learning rates."""
    seeds: int = 5
    """Runs of each point."""
    results: Path = RESULTS
    """Folder of the JSON lines."""
    picture: Path = ROOT / "docs/images/radius_width.png"
    """The picture."""


def main(args: list[str] | None = None) -> None:
    """The command line."""
    command_line(WidthSettings, width, args, "the same command continues")


def width(settings: WidthSettings) -> None:
    """Trains what is not in the results yet, draws."""
    for each in settings.widths:
        if model_of(each) not in MODELS:
            known = [name.removeprefix("mlp") for name in MODELS if name.startswith("mlp") and name != "mlp"]
            raise SettingsError(f"--widths {each} is not there: give some of 256, {', '.join(known)}")
    file = settings.results / FILE
    with alone_with(file), progress_bar() as bar:
        book = Book(file)
        for each in settings.widths:
            look(settings, each, book)
            for method in RADII:
                train(settings, each, method, book, bar)
    draw(book.rows, settings.picture)
    print(f"see {settings.picture}")


def model_of(width: int) -> str:
    """The network of this width."""
    return "mlp" if width == 256 else f"mlp{width}"


def train(settings: WidthSettings, width: int, method: str, book: Book, bar: Progress) -> None:
    """All points of one network and method that are not in the results yet."""
    points = itertools.product(settings.rates, RADII[method], range(settings.seeds))
    wanted = [
        {"width": width, "method": method, "learning_rate": rate, "rho": rho, "seed": seed}
        for rate, rho, seed in points
    ]
    left = [each for each in wanted if not any(each.items() <= row.items() for row in book.rows)]
    if not left:
        return
    runs = [run_of(each) for each in left]
    data, count = load(runs[0]), min(UNITS_SIDE_BY_SIDE // width, len(runs))
    programs = compile_side_by_side(runs[0], data, count)
    task = bar.add_task(f"width {width}, {method}", total=len(runs))
    for first in range(0, len(runs), count):
        group = runs[first : first + count]
        filled = group + [group[-1]] * (count - len(group))
        done = run_side_by_side(filled, data, programs, lambda **_: None)
        for each, (result, _, _) in zip(left[first : first + count], done, strict=False):
            kept = {"score": result["test_accuracy"], "train_loss": result["train_loss"]}
            book.add({"phase": "width"} | each | kept)
        bar.advance(task, len(group))
    bar.remove_task(task)


def look(settings: WidthSettings, width: int, book: Book) -> None:
    """How much of the squared gradient each layer has, in the beginning of a training with SAM."""
    seen = {row["seed"] for row in book.rows if row["phase"] == "layers" and row["width"] == width}
    for seed in set(range(settings.seeds)) - seen:
        run = run_of({"width": width, "method": "sam", "learning_rate": 0.2, "rho": 0.4, "seed": seed})
        data = load(run)
        programs = compile_programs(run, data)
        inputs = programs.inputs(run, data)
        state = programs.init(inputs)
        found = [layers(standing_at(programs.trainer, inputs, state))]
        for epoch in range(1, LOOKS[-1] + 1):
            state, _ = train_epoch(programs, state, inputs, epoch, lambda **_: None)
            if epoch in LOOKS:
                found.append(layers(standing_at(programs.trainer, inputs, state)))
        book.add({"phase": "layers", "width": width, "seed": seed, "epochs": LOOKS, "shares": found})


def layers(here: Standing) -> list[float]:
    """The share of each layer in the squared gradient of a batch, over the batches."""
    gradient = jax.jit(jax.grad(lambda params, batch: jnp.mean(here.loss(params, batch))))
    squares = np.zeros(len(LAYERS))
    for batch in here.parts:
        grads = gradient(here.params, batch)
        squares += [sum(float(jnp.sum(g**2)) for g in jax.tree.leaves(grads[layer])) for layer in LAYERS]
    return [float(x) for x in squares / squares.sum()]


def shares_table(rows: list[dict[str, Any]]) -> list[tuple[str, ...]]:
    """For each width the mean share of each layer, in percent, at both looks."""
    found: dict[int, list[list[list[float]]]] = {}
    for row in rows:
        if row["phase"] == "layers":
            found.setdefault(row["width"], []).append(row["shares"])
    texts: list[tuple[str, ...]] = [("width", *(f"after {epochs} epochs" for epochs in LOOKS))]
    for width, shares in sorted(found.items()):
        means = 100 * np.mean(shares, axis=0)
        texts.append((str(width), *(", ".join(f"{share:.0f}" for share in look) for look in means)))
    return texts


def run_of(point: dict[str, Any]) -> Settings:
    """One training."""
    return resolved(
        Settings(
            data="mnist1d",
            model=model_of(point["width"]),
            batch_size=100,
            epochs=EPOCHS,
            evaluate_every=EPOCHS,
            weight_decay=1.5e-3,
            learning_rate=point["learning_rate"],
            method=point["method"],
            seed=point["seed"],
            method_settings=MethodSettings(rho=point["rho"]),
        )
    )


def curves(rows: list[dict[str, Any]], method: str) -> dict[int, dict[float, list[float]]]:
    """For each width and radius the scores at the rate whose mean is the best."""
    found: dict[int, dict[float, dict[float, list[float]]]] = {}
    for each in rows:
        if each["phase"] == "width" and each["method"] == method:
            rates = found.setdefault(each["width"], {}).setdefault(each["rho"], {})
            rates.setdefault(each["learning_rate"], []).append(ACCURACY.unit * ACCURACY.value(each["score"]))
    return {
        width: {rho: max(rates.values(), key=np.mean) for rho, rates in sorted(radii.items())}
        for width, radii in sorted(found.items())
    }


def best_radii(rows: list[dict[str, Any]], method: str) -> dict[int, float]:
    """For each width the radius of the best mean score."""
    return {
        width: max(radii, key=lambda rho: np.mean(radii[rho]))
        for width, radii in curves(rows, method).items()
    }


def draw(rows: list[dict[str, Any]], file: Path) -> None:
    """Accuracy against the radius, a line for each width; the best of a width is marked."""
    plt.rcParams.update({"font.size": 11, "axes.spines.top": False, "axes.spines.right": False})
    figure, panels = plt.subplots(1, len(RADII), figsize=(10, 4.2), layout="constrained", sharey=True)
    for panel, method in zip(panels, RADII, strict=True):
        for (width, radii), colour in zip(curves(rows, method).items(), COLOURS, strict=False):
            means = [np.mean(scores) for scores in radii.values()]
            errors = [np.std(scores, ddof=1) / len(scores) ** 0.5 for scores in radii.values()]
            best = int(np.argmax(means))
            panel.errorbar([*radii], means, errors, fmt=".-", color=colour, capsize=2, label=f"width {width}")
            panel.plot([*radii][best], means[best], "o", color=colour, ms=10, mfc="none")
        panel.set(xscale="log", xlabel="radius", title=TITLES[method])
        panel.set_xticks(RADII[method], labels=[f"{radius:g}" for radius in RADII[method]])
        panel.minorticks_off()
        panel.grid(alpha=0.2)
    panels[0].set_ylabel("test accuracy (%)")
    panels[0].legend(frameon=False)
    with records.disk_errors(file.parent):
        figure.savefig(file, dpi=130)
    plt.close(figure)


if __name__ == "__main__":
    program(main)
