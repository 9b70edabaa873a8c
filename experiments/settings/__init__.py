"""The settings of one training run: what they mean, what they default to, what is refused."""

import dataclasses
import math
from pathlib import Path
from typing import Any, Literal

import tyro

from experiments.settings.of_method import MethodSettings

Change = Literal["crop", "flip", "cutout"]


class SettingsError(Exception):
    """A mistake of the user: one line that names the setting, its value and the repair."""


class InUseError(SettingsError):
    """A folder in which another process is at work."""


class DiskError(SettingsError):
    """A disk that is full, read-only or the like: one line. The program adds how to continue."""


@dataclasses.dataclass(frozen=True)
class Setup:
    """What is the same for every method: data, network, optimizer, and how they are run."""

    data: str = "digits"
    """digits, mnist1d, stick_figures, mpii, etth1, etth2, tinyshakespeare, or a TFDS set, such as cifar10."""
    model: str | None = None
    """conv, resnet18, vit_s, ... Any other word lists all. None takes the usual one for the kind of data."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """What the network computes in. Parameters, losses and batch statistics are float32."""
    quantize_bits: int | None = None
    """Bits that weights and activations are quantized to in training (LSQ). None does not quantize."""
    adapter_rank: int | None = None
    """Train adapters of this rank and the last layer alone (minilm). None trains all."""
    epochs: int = 60
    """Passes over the training examples. The schedule ends with the last one."""
    batch_size: int = 50
    """Examples per step, on all devices together."""
    optimizer: Literal["sgd", "adamw", "lamb"] = "sgd"
    """The base optimizer of every method."""
    learning_rate: float | None = None
    """The highest of the schedule. None takes the tuned value, else 0.1 (sgd), 0.001 (adamw), 0.01 (lamb)."""
    schedule: Literal["cosine", "constant"] = "cosine"
    """The learning rate falls to 0 along a cosine, or stays."""
    warmup_epochs: float = 0.0
    """Epochs in which the learning rate first rises from 0."""
    weight_decay: float | None = None
    """Multiplies the weights. None takes the tuned value, else 0.0005 (sgd) or 0.01 (adamw, lamb)."""
    decay_in_loss: bool = False
    """Make the decay a term of the loss, of train_loss too, and so perturbed. Else it follows the method."""
    momentum: float = 0.9
    """Momentum of sgd, b1 of adamw and lamb."""
    nesterov: bool = False
    """Nesterov's momentum (sgd)."""
    clip_norm: float | None = None
    """Largest norm of the sharpness-aware gradient. None does not clip."""
    augment: tuple[Change, ...] | None = None
    """Random changes of the training images. None takes the data set's choice (digits: none)."""
    mixup: float = 0.0
    """Mix pairs of training images by a weight from Beta(mixup, mixup). 0 does not mix."""
    label_smoothing: float = 0.0
    """Share of a training label's weight that is spread over all."""
    label_noise: float | None = None
    """Share of training labels that are made random. None is 0.2 for digits, else 0."""
    labels: str | None = None
    """FILE.npz:NAME: training labels of that name from that file, in the data set's order (CIFAR-10N)."""
    horizon: int | None = None
    """Hours to forecast (etth1, etth2). None is 96."""
    train_examples: int | None = None
    """How many training examples to use. None uses all."""
    data_dir: Path | None = None
    """Folder of the data. For TFDS data None takes TFDS_DATA_DIR, else TFDS's own folder, with download."""
    stream: bool | None = None
    """Read batches while training, instead of all data at first. None does so for large data sets."""
    workers: int = 0
    """Processes that read a stream. 0 reads in this process."""
    fsdp: bool = False
    """Split parameters and optimizer state over the devices, instead of a copy on each."""
    checkpoint_every: int = 1
    """Epochs from one checkpoint to the next. The last epoch always gets one."""
    evaluate_every: int = 1
    """Epochs from one look at the test part to the next. The last epoch always gets one."""
    evaluate_on: Literal["test", "validation"] = "test"
    """validation is the data set's own part to choose settings by, else every fifth training example."""
    sharpness_every: int = 0
    """Epochs from one record of the sharpness in metrics.jsonl to the next. 0 records none."""


@dataclasses.dataclass(frozen=True)
class Settings(Setup):
    """Train one network with one method, and keep the whole record in one folder.

    The folder receives config.json (settings, versions, source revision), metrics.jsonl (one line
    per epoch) and the same as TensorBoard events, checkpoints, and at the end result.json.
    """

    method: str = "sam"
    """sgd (the optimizer alone), sam, ... Any other word lists all. --help shows its settings too."""
    seed: int = 0
    """Decides the initial weights, the order of examples, the augmentation and the method's draws."""
    out: Path = Path("runs/train")
    """Folder of the run. It must not hold another run."""
    resume: bool = False
    """Continue from the last checkpoint in the folder. In an empty folder, start."""
    distributed: bool = False
    """One of several processes: on a TPU slice, under SLURM, or as JAX_COORDINATOR_ADDRESS etc. say."""
    profile: tuple[int, int] | None = None
    """First and last step of a profiler trace, which is written into the folder."""
    compile_only: str | None = None
    """A machine, h100:1x1x8 or v5e:16x16. Print what the run's programs need there, and train nothing."""
    method_settings: tyro.conf.OmitArgPrefixes[MethodSettings] = MethodSettings()
    """Settings of the method."""


def check_ranges(settings: Settings) -> None:
    """Refuses numbers outside their range, before anything is read, compiled or written."""
    for name, least in (
        ("epochs", 1),
        ("batch_size", 1),
        ("checkpoint_every", 1),
        ("evaluate_every", 1),
        ("workers", 0),
    ):
        require(getattr(settings, name) >= least, settings, name, f"give {least} or more")
    every = 0 <= settings.sharpness_every <= settings.epochs
    require(every, settings, "sharpness_every", "give 0 or more, and at most the number of epochs")
    require(0 <= settings.seed < 2**31, settings, "seed", "give a number from 0 to 2147483647")
    for name in ("momentum", "label_smoothing"):
        require(0 <= getattr(settings, name) < 1, settings, name, "give a number in [0, 1)")
    for name in ("learning_rate", "weight_decay", "mixup"):
        value = getattr(settings, name)
        fine = value is None or (math.isfinite(value) and value >= 0)
        require(fine, settings, name, "give a finite number, 0 or more")
    clip, bits, profile = settings.clip_norm, settings.quantize_bits, settings.profile
    require(clip is None or clip > 0, settings, "clip_norm", "give a number above 0")
    require(bits is None or 2 <= bits <= 8, settings, "quantize_bits", "give a number from 2 to 8")
    rank = settings.adapter_rank
    require(rank is None or rank >= 1, settings, "adapter_rank", "give 1 or more")
    warm = 0 <= settings.warmup_epochs < settings.epochs
    require(warm, settings, "warmup_epochs", "give 0 or more, and less than the number of epochs")
    ordered = profile is None or 1 <= profile[0] <= profile[1]
    require(ordered, settings, "profile", "give two steps, the first 1 or later, the last no earlier")
    examples, noise, horizon = settings.train_examples, settings.label_noise, settings.horizon
    fine = horizon is None or 1 <= horizon <= 720
    require(fine, settings, "horizon", "give a number from 1 to 720")
    require(examples is None or examples >= 1, settings, "train_examples", "give 1 or more")
    require(noise is None or 0 <= noise <= 1, settings, "label_noise", "give a share in [0, 1]")
    for name in ("decay_in_loss", "nesterov"):
        fine = settings.optimizer == "sgd" or not getattr(settings, name)
        require(fine, settings, name, f"leave it out with --optimizer {settings.optimizer}, or take sgd")


def require(fine: bool, settings: Any, name: str, repair: str) -> None:
    """Refuses a setting by its name, with its value and the repair."""
    if not fine:
        raise SettingsError(f"{flag(name)} {getattr(settings, name)} is out of range: {repair}")


def flag(name: str) -> str:
    """The command line's spelling of a setting."""
    return "--" + name.replace("_", "-")


def setup_of(settings: Setup) -> dict[str, Any]:
    """The part of settings that is the same for every method."""
    return {field.name: getattr(settings, field.name) for field in dataclasses.fields(Setup)}
