"""One run: its epochs, what is said of each, and what is left of it at the end."""

import contextlib
import math
import statistics
import time
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from experiments import methods
from experiments.data import Data
from experiments.running import sharpness
from experiments.running.checkpoints import Checkpoint, Checkpoints
from experiments.running.devices import agreed
from experiments.running.inputs import Inputs
from experiments.running.profile import Profile, profile_of
from experiments.running.programs import Programs
from experiments.running.records import RunFolder, alone_in, digest_of, finite, sha256
from experiments.running.scores import score_of
from experiments.running.training import TrainState, judged
from experiments.settings import Settings

# One call of the compiled loop lasts about so long: the bar moves, and Ctrl-C is answered.
SECONDS_PER_CALL = 0.5

# Called with `advance`, the steps done since the last call, and other numbers worth showing.
Listener = Callable[..., None]

NO_PROFILE = Profile()


def run(
    settings: Settings, data: Data, programs: Programs, listener: Listener
) -> tuple[dict[str, Any], TrainState]:
    """Trains one network, from its last checkpoint if there is one, and keeps the record.

    Args:
      settings: resolved settings.
      data: the data set they name.
      programs: compiled for the same method and data; any seed, learning rate and radius.
      listener: hears of the progress.

    Returns:
      The content of result.json, and the last state.

    Raises:
      SettingsError: the run in the folder began with other settings or other data.
    """
    profile = profile_of(settings, settings.epochs * programs.steps_per_epoch)
    folder = RunFolder(settings)
    with alone_in(settings.out), contextlib.ExitStack() as at_end:
        at_end.callback(programs.close)
        folder.keep_digest(digest_of(data))
        checkpoints = Checkpoints(settings.out)
        inputs = programs.inputs(settings, data)
        done, state, lines = checkpoints.restore(programs.init(inputs))
        folder.write_metrics(lines)
        listener(advance=done * programs.steps_per_epoch)
        for epoch in range(done + 1, settings.epochs + 1):
            before = lines[-1]["seconds"] if lines else 0.0
            state, seconds = train_epoch(programs, state, inputs, epoch, listener, profile)
            line = measured(
                settings, programs, state, inputs, epoch, evaluation(settings, programs, state, inputs, epoch)
            )
            steps = programs.steps_per_epoch
            lines.append(finite(line | {"step_seconds": seconds / steps, "seconds": before + seconds}))
            listener(loss=line["train_loss"], score=line.get(score_of(vars(settings)).name))
            folder.append_metrics(lines[-1])
            if epoch % settings.checkpoint_every == 0 or epoch == settings.epochs:
                checkpoints.save(Checkpoint(epoch, state, [*lines]))  # written while more come
        checkpoints.finish()
        result = summary(settings, programs, state, lines)
        folder.write_result(result)
    return result, state


def train_epoch(
    programs: Programs,
    state: TrainState,
    inputs: Inputs,
    epoch: int,
    listener: Listener,
    profile: Profile = NO_PROFILE,
) -> tuple[TrainState, float]:
    """Takes the steps of one epoch in calls of about half a second.

    Returns:
      The new state, and the seconds that the steps took.
    """
    steps = programs.first_steps if epoch == 1 else programs.steps
    done, last = int(np.ravel(state.step)[0]), epoch * programs.steps_per_epoch
    count, total = 1, 0.0
    while done < last:
        count = profile.limit(done, min(count, last - done))
        profile.before(done)
        start = time.perf_counter()
        state = jax.block_until_ready(steps(state, inputs, np.int32(count)))
        seconds = time.perf_counter() - start
        done, total = done + count, total + seconds
        profile.after(done)
        listener(advance=count, speed=count / seconds)
        count = agreed(max(1, math.floor(count * SECONDS_PER_CALL / seconds)))
    return state, total


def due(settings: Settings, epoch: int) -> bool:
    """Whether the test or the validation part is looked at after an epoch."""
    return epoch % settings.evaluate_every == 0 or epoch == settings.epochs


def evaluation(
    settings: Settings, programs: Programs, state: TrainState, inputs: Inputs, epoch: int
) -> tuple[Any, Any] | None:
    """Loss and accuracy on the test or the validation part, if it is time for them."""
    if not due(settings, epoch):
        return None
    return programs.evaluate(*judged(state), inputs.examples)


def measured(
    settings: Settings,
    programs: Programs,
    state: TrainState,
    inputs: Inputs,
    epoch: int,
    look: tuple[Any, Any] | None,
) -> dict[str, Any]:
    """What there is to say at the end of an epoch, times aside."""
    step = int(state.step)
    line: dict[str, Any] = {
        "epoch": epoch,
        "step": step,
        "train_loss": float(state.loss_sum) / programs.steps_per_epoch,
        "gradients": methods.gradients_spent(state.opt_state, step, settings.method),
    }
    line |= methods.relative_rise(state.opt_state, settings.method)
    if look is not None:
        line |= evaluated(settings, *map(float, look))
    every = settings.sharpness_every
    if every and epoch % every == 0:
        line |= sharpness.measured(programs.trainer, state, inputs)
    return line


def evaluated(settings: Settings, loss: float, accuracy: float) -> dict[str, float]:
    """What a look at the test or the validation part has shown.

    A network whose outputs are NaN names the first class. That is no accuracy.
    """
    part, metric, *_ = score_of(vars(settings))
    accuracy = accuracy if math.isfinite(loss) else math.nan
    return {f"{part}_loss": loss} | ({f"{part}_accuracy": accuracy} if metric == "accuracy" else {})


def summary(
    settings: Settings, programs: Programs, state: TrainState, lines: list[dict[str, Any]]
) -> dict[str, Any]:
    """The content of result.json; `seconds` are those of the training steps alone."""
    last = lines[-1]
    named = {name: getattr(settings, name) for name in ("method", "data", "model", "seed")}
    looks = {name: last[name] for name in evaluated(settings, 0.0, 0.0)}
    return (
        named
        | looks
        | {
            "train_loss": last["train_loss"],
            "epochs": last["epoch"],
            "steps": last["step"],
            "gradients": last["gradients"],
            "gradients_per_step": last["gradients"] / last["step"],
            "step_seconds": statistics.mean(line["step_seconds"] for line in lines),
            "seconds": last["seconds"],
            "compile_seconds": programs.compile_seconds,
            "params_sha256": sha256(state.params),
            "num_params": sum(leaf.size for leaf in jax.tree.leaves(state.params)),
        }
    )
