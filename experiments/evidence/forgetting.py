"""What a language model forgets, by how it was trained: `python -m experiments.evidence.forgetting --help`.

A character model is trained on Shakespeare. Its weights are rounded to 4 bits, and it is fine-tuned on the
sentences of SST-2: how much does the loss on Shakespeare rise? `experiments.evidence.forgetting_tables` makes
the table.
"""

import dataclasses
import functools
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from rich.progress import Progress

from experiments.data import Data, load
from experiments.data.arrays import in_batches
from experiments.data.characters import as_numbered
from experiments.data.prepared import builder_of
from experiments.data.text import sentences
from experiments.evidence import plan
from experiments.evidence.__main__ import RESULTS, Book, EvidenceSettings, alone_with, train
from experiments.evidence.candidates import CANDIDATES, Point
from experiments.evidence.tasks import TASKS
from experiments.running.inputs import evaluation_batch
from experiments.running.programs import Programs, compile_programs
from experiments.running.progress import progress_bar
from experiments.running.run import run
from experiments.settings import Settings, require
from experiments.settings.command_line import command_line, program
from experiments.settings.of_method import MethodSettings

FILE = "forgetting.jsonl"
TASK, SECOND = "characters", "glue/sst2"
METHODS = ("base", "sam", "momentum_sam", "late_sam")

# The grid, on validation stretches with one seed: of the base the learning rate, of a method its radius at
# the base's best one. The task's radii are scaled as those of the evidence.
RATES = (1.25e-3, 2.5e-3, 5e-3, 1e-2)

# Fine-tuning is the same for all: AdamW, its learning rate falling to 0 along a cosine.
TUNING_STEPS, TUNING_RATE = 1000, 1e-3
BITS = 4


@dataclasses.dataclass(frozen=True)
class ForgettingSettings:
    """Train a character model by each method, then round it, and fine-tune it on another text.

    Every finished run is a line of the results; the same command continues after an interruption.
    """

    data: Path
    """Folder that holds `text/tinyshakespeare.txt` and `tensorflow_datasets` with glue/sst2."""
    seeds: int = 10
    """Runs of each method; their seeds are the same for all."""
    results: Path = RESULTS
    """Folder of the JSON lines."""
    out: Path = Path("runs/evidence")
    """Folder of the trainings, with their checkpoints."""


def main(args: list[str] | None = None) -> None:
    """The command line."""
    command_line(ForgettingSettings, forgetting, args, "the same command continues")


def forgetting(settings: ForgettingSettings) -> None:
    """Does what is not in the results yet: searches, then a seed of every method before the next seed."""
    require(settings.seeds >= 2, settings, "seeds", "give 2 or more")
    file = settings.results / FILE
    with alone_with(file), progress_bar() as bar:
        book = Book(file)
        for name in METHODS:
            search(settings, name, book, bar)
        points = {name: plan.best_point(TASKS[TASK], book.rows, name) for name in METHODS}
        measure(settings, points, book, bar)


def search(settings: ForgettingSettings, name: str, book: Book, bar: Progress) -> None:
    """Tries a method's points on validation stretches."""
    wanted = [(point, 0) for point in points_of(name, book)]
    where = EvidenceSettings(TASK, data=settings.data, results=settings.results, out=settings.out)
    train(where, "tune", name, wanted, book, bar)


def points_of(name: str, book: Book) -> list[Point]:
    """As many points for the base as for each method."""
    if name == "base":
        return [{"learning_rate": rate} for rate in RATES]
    best = plan.best_point(TASKS[TASK], book.rows, "base")
    return [best | {"rho": radius} for radius in CANDIDATES[name].grid(TASKS[TASK])["rho"]]


def measure(settings: ForgettingSettings, points: dict[str, Point], book: Book, bar: Progress) -> None:
    """Trains and measures every method in every seed."""
    first, second = None, None
    compiled: dict[str, Programs] = {}
    for seed in range(plan.FIRST_TEST_SEED, plan.FIRST_TEST_SEED + settings.seeds):
        for name, point in points.items():
            if book.has("forget", name, point, seed):
                continue
            trained = plan.settings_of(
                TASKS[TASK], name, point, seed, "test", settings.data, settings.out / TASK
            )
            if first is None or second is None:
                first = load(trained)
                second = second_text(settings.data, first)
            if name not in compiled:
                compiled[name] = compile_programs(trained, first)
            task = bar.add_task(f"train by {name}", total=trained.epochs * compiled[name].steps_per_epoch)
            result, state = run(trained, first, compiled[name], functools.partial(bar.update, task))
            bar.remove_task(task)
            tuning = tuning_of(trained)
            if "tuning" not in compiled:
                compiled["tuning"] = compile_programs(tuning, second)
            losses = forgotten(state.params, tuning, second, compiled["tuning"])
            kept = {each: result[each] for each in ("train_loss", "gradients_per_step", "seconds")}
            book.add({"phase": "forget", "candidate": name, "point": point, "seed": seed} | losses | kept)


def second_text(folder: Path, first: Data) -> Data:
    """SST-2's sentences as text: as many stretches as fine-tuning sees; tested on both texts' test parts."""
    size = TASKS[TASK].setup.batch_size
    train, test = (
        as_numbered(part, folder / "text")
        for part in sentences(builder_of(SECOND, folder / "tensorflow_datasets"), SECOND)
    )
    seen = {"text": train[: TUNING_STEPS * size]}
    return first._replace(train=seen, test={"text": test}, validation=first.test)


def tuning_of(trained: Settings) -> Settings:
    """Fine-tuning of a trained network: one pass, by AdamW alone, with the run's seed."""
    return dataclasses.replace(
        trained,
        method="sgd",
        method_settings=MethodSettings(),
        learning_rate=TUNING_RATE,
        weight_decay=TASKS[TASK].decays[1],
        epochs=1,
        evaluate_every=1,
        evaluate_on="test",
    )


def forgotten(params: Any, tuning: Settings, second: Data, programs: Programs) -> dict[str, float]:
    """The losses of a trained network, rounded, and fine-tuned.

    Returns:
      `first` and `second`, on the test parts of the two texts; `first_rounded`; after fine-tuning
      `first_tuned` and `second_tuned`.
    """
    inputs = programs.inputs(tuning, second)
    assert second.validation is not None
    of_first = in_batches(second.validation, evaluation_batch(programs.trainer.mesh))
    places = {"first": inputs.examples._replace(test=of_first), "second": inputs.examples}
    evaluate = jax.jit(programs.trainer.evaluate)
    loss = lambda params, text: float(evaluate(params, {}, places[text])[0])  # noqa: E731
    found = {text: loss(params, text) for text in places}
    found["first_rounded"] = loss(rounded(params, BITS), "first")
    state = programs.init(inputs)._replace(params=params)
    state = programs.steps(state, inputs, np.int32(programs.steps_per_epoch))
    return found | {f"{text}_tuned": loss(state.params, text) for text in places}


def rounded(params: Any, bits: int) -> Any:
    """Every matrix with so few levels: symmetric, a scale for each output; biases and norms stay.

    A kernel's output is an entry of its bias. In the two tables each row is one, a character's or a place's.
    """

    def of(part: dict[str, Any]) -> dict[str, Any]:
        found: dict[str, Any] = {}
        for name, value in part.items():
            if isinstance(value, dict):
                found[name] = of(value)
            elif name == "kernel":
                found[name] = to_levels(value, tuple(range(value.ndim - part["bias"].ndim)), bits)
            elif name in ("embedding", "places"):
                found[name] = to_levels(value, (-1,), bits)
            else:
                found[name] = value
        return found

    return of(params)


def to_levels(weights: jax.Array, axes: tuple[int, ...], bits: int) -> jax.Array:
    """Weights at the nearest of `2^bits - 1` levels, evenly on both sides of 0; `axes` share a scale."""
    highest = 2 ** (bits - 1) - 1
    scale = jnp.max(jnp.abs(weights), axes, keepdims=True) / highest
    return jnp.where(scale > 0, jnp.round(weights / jnp.where(scale > 0, scale, 1)) * scale, 0)


if __name__ == "__main__":
    program(main)
