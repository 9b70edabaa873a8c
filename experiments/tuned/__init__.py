"""The best settings that `experiments.tune` has found, one file for each task."""

import dataclasses
import functools
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from experiments.data import with_defaults
from experiments.settings import Settings, Setup

FOLDER = Path(__file__).parent

# What is not tuned, and not given.
DEFAULTS: Mapping[str, dict[str, Any]] = {
    "sgd": {"learning_rate": 0.1, "weight_decay": 5e-4},
    "adamw": {"learning_rate": 1e-3, "weight_decay": 1e-2},
    "lamb": {"learning_rate": 1e-2, "weight_decay": 1e-2},
}

# Settings that make another task of the same data and network; numbers tuned for one are not given to
# another. Passes, batch size and the like are not among them: a longer training may use them.
TUNED_FOR = (
    "model",
    "quantize_bits",
    "adapter_rank",
    "optimizer",
    "train_examples",
    "label_noise",
    "labels",
    "horizon",
    "augment",
    "mixup",
    "label_smoothing",
    "decay_in_loss",
)


def with_tuned(settings: Settings) -> Settings:
    """Fills in settings that are None: with tuned values of the task, else the optimizer's."""
    best = DEFAULTS[settings.optimizer] | tuned(settings).get(settings.method, {})

    def filled(part: Any) -> dict[str, Any]:
        return {name: best[name] for name in vars(part) if name in best and vars(part)[name] is None}

    method_settings = dataclasses.replace(settings.method_settings, **filled(settings.method_settings))
    return dataclasses.replace(settings, method_settings=method_settings, **filled(settings))


def tuned(settings: Setup) -> Mapping[str, dict[str, Any]]:
    """The best settings for a task, by method; often empty."""
    return {name: entry["best"] for name, entry in _read(file_of(settings))["methods"].items()}


def file_of(settings: Setup) -> Path:
    """The file of a task, named after the data and every setting that is not the data set's usual one."""
    settings, usual = with_defaults(settings), with_defaults(Setup(data=settings.data))
    values = {name: getattr(settings, name) for name in TUNED_FOR}
    parts = [part(name, value) for name, value in values.items() if value != getattr(usual, name)]
    return FOLDER / ("-".join([settings.data.replace("/", "_"), *parts]) + ".json")


def part(name: str, value: Any) -> str:
    """What a setting adds to the name of a file; words stand for themselves."""
    if isinstance(value, tuple):
        return f"{name}_{'_'.join(value) or 'none'}"
    return value if isinstance(value, str) else f"{name}_{value}"


@functools.cache
def _read(file: Path) -> dict[str, Any]:
    return json.loads(file.read_text()) if file.is_file() else {"methods": {}}
