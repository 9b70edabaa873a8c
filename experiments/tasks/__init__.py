"""What a network is to learn: from examples to one loss, and one score, for each of them."""

from typing import Any, Protocol

import jax

from experiments.data import Batch
from experiments.data.kinds import kind_of
from experiments.settings import Settings, SettingsError, Setup, flag
from experiments.tasks.classification import Classification
from experiments.tasks.forecast import Forecast
from experiments.tasks.next_character import NextCharacter
from experiments.tasks.pose import Pose


class Task(Protocol):
    """Everything about a problem that is neither the data nor the network."""

    @property
    def inputs(self) -> str:
        """The array of a batch that the network is given."""
        ...

    def constants(self, train: Batch) -> Batch:
        """What `prepare` needs to know of the training examples."""
        ...

    def prepare(self, rows: Batch, constants: Batch, key: jax.Array | None) -> Batch:
        """Examples as the network takes them; with a key, as in training, changed at random."""
        ...

    def losses(self, outputs: Any, batch: Batch) -> jax.Array:
        """What is minimized: float32 [n]."""
        ...

    def scores(self, outputs: Any, batch: Batch) -> jax.Array | None:
        """How much of each example is right, from 0 to 1: float32 [n]; None where the loss is what counts."""
        ...


def check_task(settings: Setup) -> None:
    """Refuses settings that the kind of data has no use for."""
    kind = kind_of(settings.data)
    labelled = kind in ("image", "text", "series")
    useless = {
        "augment": kind != "image" and bool(settings.augment),
        "mixup": kind != "image" and settings.mixup > 0,
        "label_noise": not labelled and bool(settings.label_noise),
        "label_smoothing": not labelled and settings.label_smoothing > 0,
        "labels": not labelled and settings.labels is not None,
        "horizon": kind != "forecast" and settings.horizon is not None,
    }
    for name, wrong in useless.items():
        if wrong:
            value = getattr(settings, name)
            value = " ".join(value) if isinstance(value, tuple) else value
            raise SettingsError(f"{flag(name)} {value} is not for --data {settings.data}: leave it out")


def make(settings: Settings) -> Task:
    """The task of a data set."""
    kind = kind_of(settings.data)
    if kind == "pose":
        return Pose()
    if kind == "forecast":
        return Forecast()
    if kind == "characters":
        return NextCharacter()
    if kind in ("text", "series"):
        inputs = "tokens" if kind == "text" else "series"
        return Classification(label_smoothing=settings.label_smoothing, inputs=inputs)
    return Classification(settings.augment or (), settings.mixup, settings.label_smoothing)
