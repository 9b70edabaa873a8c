"""The settings of one training run: what they mean, what they default to, what is refused."""

import contextlib
import dataclasses
import functools
import json
import math
import os
import signal
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

import tyro

# What is not tuned, and not given: the optimizer's numbers of the digits task.
TASK: dict[str, Any] = {"learning_rate": 0.1, "weight_decay": 5e-4}

TUNED = Path(__file__).parent / "tuned"


class SettingsError(Exception):
    """A mistake of the user: one line that names the setting, its value and the repair."""


class DiskError(SettingsError):
    """A disk that is full, read-only or the like: one line, to which the program adds how to go on."""


@dataclasses.dataclass(frozen=True)
class MethodSettings:
    """Settings of the method; None is the tuned value for the data set, else the library's."""

    # How far
    rho: float | None = None
    """Radius of the perturbation (all but sgd, pugd, extrapolation and the random perturbations)."""
    radius: float | None = None
    """Radius of the perturbation (pugd), or of the random start (tsam)."""
    lower_rho: float | None = None
    """Radius of the second, downhill perturbation (bilateral_sam)."""
    step_size: float | None = None
    """How far ahead the gradient is taken; None is the learning rate (extrapolation)."""
    max_leaf_norm: float | None = None
    """Largest norm of one array's perturbation; None is rho (graphsam)."""
    num_steps: int | None = None
    """Ascent steps to the radius (multistep_sam)."""
    eta: float | None = None
    """Floor under the size of a weight (asam, sam_on), or weight of the Fisher diagonal (fisher_sam)."""
    order: float | None = None
    """Norm of the radius: 2, or inf (sam_on)."""
    adaptive: bool | None = None
    """Whether the perturbation is in proportion to the weights (graphsam)."""

    # Whereto
    sigma: float | None = None
    """Share of the mean gradient that is taken out of the direction (friendly_sam)."""
    decay: float | None = None
    """Of a running mean of gradients (friendly_sam, single_step_sam, graphsam, aesam, aelooksam)."""
    theta: float | None = None
    """Weight of the new gradient in the direction (vasso)."""
    friendly: bool | None = None
    """Whether the running mean is taken out of the direction (single_step_sam)."""
    source: Literal["gradient", "previous_gradient", "momentum", "noise"] | None = None
    """What points ahead (extrapolation)."""

    # Which weights
    sparsity: float | None = None
    """Share of the weights that is not perturbed (sparse_sam, fisher_mask_sam)."""
    mask: Literal["fisher", "dynamic"] | None = None
    """How they are chosen (sparse_sam)."""
    pattern: str | None = None
    """unstructured, structured, or N of M such as 2:4 (sparse_sam)."""
    refresh_steps: int | None = None
    """Steps from one choice to the next (sparse_sam, fisher_mask_sam), or from one gradient at the
    weights to the next; None is five epochs, or one (graphsam)."""
    drop_rate: float | None = None
    """Share of the perturbed weights that is exchanged at first (sparse_sam)."""
    weight_fraction: float | None = None
    """Probability of an array to be perturbed (esam)."""

    # When
    probability: float | None = None
    """Share of steps that are perturbed (rst, grst)."""
    every_k: int | None = None
    """Every k-th step is perturbed (looksam, look_layersam, fgsam_plus)."""
    start_step: int | None = None
    """The first perturbed step; None leaves the last fifth of all steps (late_sam)."""
    start_threshold: float | None = None
    """Deviations above the mean from which a gradient is large, at the start (aesam, aelooksam)."""
    end_threshold: float | None = None
    """The same at the end (aesam, aelooksam)."""
    window: int | None = None
    """Steps in which the number of perturbed steps is fixed (vsam)."""
    slices: int | None = None
    """Slices of the variance estimate; they divide the window (vsam)."""
    max_rate: float | None = None
    """Largest share of perturbed steps (vsam)."""
    rate_gain: tuple[float, float] | None = None
    """How fast that share follows the ratio and the variance of the gradients (vsam)."""
    reuse_decay: float | None = None
    """Factor per step on the reused difference of the gradients (vsam)."""
    reuse_steps: int | None = None
    """Steps in which that difference is reused (vsam)."""
    warmup_steps: int | None = None
    """First steps, all of them perturbed (vsam)."""
    tail: int | None = None
    """Last parameter arrays whose norms steer the share of perturbed steps (vsam)."""

    # What becomes of the gradients
    alpha: float | None = None
    """Weight of the perturbed gradient (grst, where the library's default is 1 / probability,
    gradient_norm_penalty, the random perturbations), or of a part of a gradient (looksam,
    look_layersam, aelooksam, gsam, fgsam_plus)."""
    gamma: float | None = None
    """Weight of the sharpness, below 1 (wsam, decoupled_wsam)."""
    mix: float | None = None
    """Weight of the network's own gradient beside the surrogate's (fgsam, fgsam_plus)."""
    minimize_clean: bool | None = None
    """Whether the clean gradient is the main one (gsam)."""
    tilt: float | None = None
    """How strongly samples with a large loss dominate; 0 is their plain mean (tsam)."""

    # Noise
    num_samples: int | None = None
    """Perturbed samples per step (tsam), or examples of a mask's estimate (sparse_sam, fisher_mask_sam)."""
    noise_scale: float | None = None
    """Standard deviation of the noise, in proportion to the weights (random_sam and the random
    perturbations), or before it is cut to the radius (tsam)."""
    noise: Literal["gaussian", "uniform"] | None = None
    """Distribution of the random start (tsam)."""
    split_batch: bool | None = None
    """Whether each gradient has half of the batch (random_perturbation)."""
    fisher_weight: float | None = None
    """How strongly large gradients damp the noise (adaptive_random_perturbation)."""
    fisher_decay: float | None = None
    """How long they are remembered (adaptive_random_perturbation)."""

    # Which examples
    fraction: float | None = None
    """Share of the batch that is used (ausam, ksam)."""
    example_fraction: float | None = None
    """Share of the batch that the second gradient is of (esam)."""
    score_range: tuple[float, float] | None = None
    """Relative weights of the lowest and the highest score in the draw (ausam)."""
    ramp_steps: int | None = None
    """Steps over which the scores gain their full weight in the draw (ausam)."""
    score: Literal["loss_difference", "gradient_norm"] | None = None
    """What an example's score is (ausam)."""
    weight: float | None = None
    """How strongly examples with a large gradient dominate; None is 0.5 (reweighted_sam)."""
    difference_step: float | None = None
    """Length of the step that estimates their gradients; None is 0.001 (reweighted_sam)."""

    num_microbatches: int | None = None
    """Slices of the batch, each perturbed on its own; None is the most up to 8 (bsam, sharded_gsam)."""

    # Whole optimizers
    b1: float | None = None
    """Decay of the mean gradient (adasam, bsam)."""
    b2: float | None = None
    """Decay of the mean square (adasam), or of the scale (bsam)."""
    epsilon: float | None = None
    """Root of the first mean square (adasam)."""
    prior_precision: float | None = None
    """Strength of the prior; None is what the weight decay amounts to (bsam)."""
    damping: float | None = None
    """Floor under the scale (bsam)."""
    initial_scale: float | None = None
    """The first scale (bsam)."""
    augmentation_factor: int | None = None
    """How often each example counts; None is 1 (bsam)."""


@dataclasses.dataclass(frozen=True)
class Settings:
    """Train one network with one method, and keep the whole record in one folder.

    The folder receives config.json (settings, versions, source revision), metrics.jsonl (one line
    per epoch), checkpoints, and at the end result.json.
    """

    method: str = "sam"
    """sgd, sam, asam, looksam, ... (any other word lists all of them)."""
    data: str = "digits"
    """digits (comes with scikit-learn), or any TFDS image set: cifar10, fashion_mnist, ..."""
    model: str = "conv"
    """conv (three convolutions), resnet18, resnet50, wrn16_8, wrn28_10, pyramidnet110, mobilenet, vit_ti or
    vit_s; in their forms for small images up to a side of 64, else ImageNet's."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """What the network computes in; parameters, losses and batch statistics are float32."""
    out: Path = Path("runs/train")
    """Folder of the run; it must not hold another one."""
    resume: bool = False
    """Go on from the last checkpoint in the folder; in an empty folder, just start."""
    seed: int = 0
    """Decides initial weights, order of examples, augmentation and the method's draws."""
    epochs: int = 60
    """Passes over the training examples; the cosine schedule ends with the last one."""
    batch_size: int = 50
    """Examples per step."""
    learning_rate: float | None = None
    """Start of the cosine schedule, which ends at 0; None is the tuned value, else 0.1."""
    weight_decay: float | None = None
    """Added to the sharpness-aware gradient, times the weights; None: tuned, else 0.0005."""
    momentum: float = 0.9
    """Momentum of SGD, the base optimizer of every method."""
    augment: tuple[Literal["crop", "flip", "cutout"], ...] | None = None
    """Random changes of the training images; None is the data set's choice (digits: none)."""
    data_dir: Path | None = None
    """Folder with prepared TFDS data; None is TFDS_DATA_DIR, else TFDS's own, with download."""
    train_examples: int | None = None
    """Use only so many training examples; None is all of them (digits has 500)."""
    label_noise: float | None = None
    """Share of training labels that are made random; None is 0.2 for digits, else 0."""
    checkpoint_every: int = 1
    """Epochs from one checkpoint to the next; the last epoch always gets one."""
    sharpness_every: int = 0
    """Epochs from one record of the sharpness in metrics.jsonl to the next; 0 is never."""
    method_settings: tyro.conf.OmitArgPrefixes[MethodSettings] = MethodSettings()
    """Settings of the method."""


def check_ranges(settings: Settings) -> None:
    """Refuses numbers outside their range, before anything is read, compiled or written."""
    for name, least in (("epochs", 1), ("batch_size", 1), ("checkpoint_every", 1)):
        require(getattr(settings, name) >= least, settings, name, f"give {least} or more")
    every = 0 <= settings.sharpness_every <= settings.epochs
    require(every, settings, "sharpness_every", "give 0 or more, and at most the number of epochs")
    require(0 <= settings.seed < 2**31, settings, "seed", "give a number from 0 to 2147483647")
    require(0 <= settings.momentum < 1, settings, "momentum", "give a number in [0, 1)")
    for name in ("learning_rate", "weight_decay"):
        value = getattr(settings, name)
        fine = value is None or (math.isfinite(value) and value >= 0)
        require(fine, settings, name, "give a finite number, 0 or more")
    examples, noise = settings.train_examples, settings.label_noise
    require(examples is None or examples >= 1, settings, "train_examples", "give 1 or more")
    require(noise is None or 0 <= noise <= 1, settings, "label_noise", "give a share in [0, 1]")


def flag(name: str) -> str:
    """The command line's spelling of a setting."""
    return "--" + name.replace("_", "-")


def with_tuned(settings: Settings) -> Settings:
    """Fills in settings that are None: with tuned values of the data set, else the task's."""
    best = TASK | tuned(settings).get(settings.method, {})

    def filled(part: Any) -> dict[str, Any]:
        return {name: best[name] for name in vars(part) if name in best and vars(part)[name] is None}

    method_settings = dataclasses.replace(settings.method_settings, **filled(settings.method_settings))
    return dataclasses.replace(settings, method_settings=method_settings, **filled(settings))


def task_of(settings: Any) -> dict[str, Any]:
    """What makes another task of a data set, as in a JSON file; None where the data set decides."""
    augment = settings.augment if settings.augment is None else list(settings.augment)
    return {
        "train_examples": settings.train_examples,
        "label_noise": settings.label_noise,
        "augment": augment,
    }


def tuned(settings: Settings) -> Mapping[str, dict[str, Any]]:
    """The best settings that `experiments.tune` found for a data set, by method; often empty.

    What was tuned on a part of the data, with other labels or images, is not meant for the whole.
    """
    content = _tuned_file(settings.data)
    if content.get("task", task_of(settings)) != task_of(settings):
        return {}
    return {name: entry["best"] for name, entry in content["methods"].items()}


@functools.cache
def _tuned_file(data: str) -> dict[str, Any]:
    file = TUNED / f"{data}.json"
    return json.loads(file.read_text()) if file.is_file() else {"methods": {}}


def command_line(kind: type, run: Callable[[Any], Any], args: list[str] | None, how_to_go_on: str) -> None:
    """Reads a dataclass from the command line and runs with it.

    Exits with code 2 and one line after a mistake of the user or a failure of the disk. Ctrl-C, and
    SIGTERM with which clusters end a job, end the process at once, with code 130 or 143 and a line
    that says how to go on.
    """
    prog = f"python -m experiments.{run.__name__}"
    try:
        with _ending_at_once(f"interrupted: {how_to_go_on}\n"):
            run(tyro.cli(kind, prog=prog, args=args, config=(tyro.conf.FlagCreatePairsOff,)))
    except DiskError as error:
        print(f"error: {error}: make room there or make it writable, then {how_to_go_on}", file=sys.stderr)
        sys.exit(2)
    except SettingsError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)


@contextlib.contextmanager
def _ending_at_once(line: str) -> Iterator[None]:
    # The files are good at every moment. An exception would be lost in a callback of JAX's every so
    # often, and would leave threads to the end of the interpreter that print, or crash it.
    def end(number: int, _: Any) -> None:
        terminal = "\n\x1b[?25h" if os.isatty(2) else ""  # below the progress bar, the cursor visible again
        with contextlib.suppress(OSError):
            os.write(2, (terminal + line).encode())
        os._exit(128 + number)

    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    for number, handler in before.items():
        if handler is not signal.SIG_IGN:  # as a shell sets it for jobs in the background
            signal.signal(number, end)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def require(fine: bool, settings: Any, name: str, repair: str) -> None:
    """Refuses a setting by its name, with its value and the repair."""
    if not fine:
        raise SettingsError(f"{flag(name)} {getattr(settings, name)} is out of range: {repair}")
