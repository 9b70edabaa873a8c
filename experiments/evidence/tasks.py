"""The tasks: small enough for two cores, and trained until the training examples fit."""

import dataclasses
from pathlib import Path

from experiments.settings import Setup

HORIZONS = (96, 192, 336, 720)


@dataclasses.dataclass(frozen=True)
class EvidenceTask:
    """A task, and where its numbers are searched.

    Attributes:
      title: in tables.
      setup: data, network and base optimizer, the same for every candidate.
      rates: learning rates of the coarse grid; the base has one more, half a step beyond the last.
      decays: weight decays of the base's coarse grid; the middle one is the others'.
      radii: SAM's, from which those of the other methods follow.
      seeds: of the test.
      trials: seeds of each point of a grid.
      refines: whether points around the best one of the coarse grid are tried.
      side_by_side: runs in one program.
      folder: of the data, below the folder that is given on the command line; None reads none.
      labels: FILE.npz:NAME, likewise.
      eigenvalue: whether the largest one is measured.
      searched_on: the task whose search gives this one's numbers; None is its own.
    """

    title: str
    setup: Setup
    rates: tuple[float, ...]
    decays: tuple[float, float, float]
    radii: tuple[float, ...]
    seeds: int = 10
    trials: int = 2
    refines: bool = True
    side_by_side: int = 1
    folder: str | None = None
    labels: str | None = None
    eigenvalue: bool = True
    searched_on: str | None = None

    def with_data_in(self, folder: Path | None) -> Setup:
        """The setup, reading its data from below a folder."""
        if self.folder is None or folder is None:
            return self.setup
        labels = None if self.labels is None else str(folder / self.labels)
        return dataclasses.replace(self.setup, data_dir=folder / self.folder, labels=labels)


def _mnist1d(title: str, **changes: object) -> EvidenceTask:
    setup = Setup(data="mnist1d", model="mlp", batch_size=100, epochs=60, evaluate_every=60)
    return EvidenceTask(
        title,
        dataclasses.replace(setup, **changes),  # pyrefly: ignore[bad-argument-type]
        rates=(0.1, 0.2, 0.3),
        decays=(1.5e-4, 5e-4, 1.5e-3),
        radii=(0.1, 0.2, 0.4, 0.8),
        seeds=20,
        side_by_side=12,
    )


def _ett(name: str, horizon: int) -> EvidenceTask:
    setup = Setup(
        data=name,
        horizon=horizon,
        model="samformer",
        optimizer="adamw",
        schedule="constant",
        batch_size=256,
        epochs=15,
        evaluate_every=15,
    )
    return EvidenceTask(
        f"{name.upper().replace('ETTH', 'ETTh')}, {horizon} hours",
        setup,
        rates=(0.0005, 0.001, 0.002),
        decays=(0.0, 0.1, 1.0),
        radii=(0.25, 0.5, 1.0, 2.0),
        trials=1,
        folder="ett",
        searched_on=None if horizon == HORIZONS[0] else f"{name}_{HORIZONS[0]}",
    )


def _cifar10(title: str, labels: str | None = None, searched_on: str | None = None) -> EvidenceTask:
    """Without changes of the images, so that twenty epochs fit them."""
    setup = Setup(
        data="cifar10",
        model="strided",
        train_examples=5000,
        augment=(),
        batch_size=100,
        epochs=20,
        evaluate_every=20,
    )
    return EvidenceTask(
        title,
        setup,
        rates=(0.025, 0.05, 0.1),
        decays=(4e-3, 1.6e-2, 6.4e-2),
        radii=(0.05, 0.1, 0.2, 0.4),
        folder="tensorflow_datasets",
        labels=None if labels is None else f"cifar10n/labels_tfds_order.npz:{labels}",
        searched_on=searched_on,
    )


def _minilm(
    title: str,
    data: str,
    sentences: int,
    rank: int | None,
    epochs: int = 3,
    searched_on: str | None = None,
) -> EvidenceTask:
    setup = Setup(
        data=data,
        model="minilm",
        adapter_rank=rank,
        train_examples=sentences,
        optimizer="adamw",
        batch_size=32,
        epochs=epochs,
        evaluate_every=epochs,
    )
    return EvidenceTask(
        title,
        setup,
        rates=(1e-3, 2e-3, 4e-3) if rank else (1e-4, 2e-4, 4e-4),
        decays=(0.0, 0.01, 0.1),
        radii=(0.02, 0.06, 0.2),
        seeds=5,
        trials=1,
        refines=False,
        eigenvalue=False,
        folder="tensorflow_datasets",
        searched_on=searched_on,
    )


def _few_and_many_sentences() -> dict[str, EvidenceTask]:
    """MiniLM whole and by adapter; 5,000 sentences are seen once, with the numbers found on 500."""
    found = {}
    for name, title, data in (("sst2", "SST-2", "glue/sst2"), ("trec", "TREC", "trec")):
        for ending, kind, rank in (("", "", None), ("_adapter", ", adapter", 8)):
            few, many = (f"minilm_{name}_{count}{ending}" for count in (500, 5000))
            title_of = f"{title}, MiniLM{kind}, {{}} sentences".format
            found[few] = _minilm(title_of("500"), data, 500, rank)
            found[many] = _minilm(title_of("5,000"), data, 5000, rank, epochs=1, searched_on=few)
    return found


TASKS = {
    "mnist1d": _mnist1d("MNIST-1D, dense"),
    "mnist1d_conv": _mnist1d("MNIST-1D, convolutional", model="conv1d"),
    "mnist1d_noise20": _mnist1d("MNIST-1D, 20 % random labels", label_noise=0.2),
    "mnist1d_noise40": _mnist1d("MNIST-1D, 40 % random labels", label_noise=0.4),
    **{f"{name}_{horizon}": _ett(name, horizon) for name in ("etth1", "etth2") for horizon in HORIZONS},
    "digits": EvidenceTask(
        "digits, 20 % random labels",
        Setup(data="digits", evaluate_every=60),
        rates=(0.01, 0.025, 0.06),
        decays=(0.008, 0.03, 0.1),
        radii=(0.3, 0.6, 1.2, 2.4),
    ),
    "trec": EvidenceTask(
        "TREC, 20 % random labels",
        Setup(data="trec", optimizer="adamw", label_noise=0.2, epochs=6, evaluate_every=6),
        rates=(0.001, 0.002, 0.004),
        decays=(0.01, 0.1, 1.0),
        radii=(0.05, 0.1, 0.2, 0.4),
        folder="tensorflow_datasets",
    ),
    "cifar10_5000": _cifar10("CIFAR-10, 5,000 images"),
    "cifar10n_random1": _cifar10("CIFAR-10N, 5,000 images, 17 % wrong", "random_label1"),
    **{
        f"cifar10n_{name}": _cifar10(f"CIFAR-10N, 5,000 images, {wrong} % wrong", labels, "cifar10n_random1")
        for name, wrong, labels in (("aggregate", 9, "aggre_label"), ("worse", 40, "worse_label"))
    },
    **_few_and_many_sentences(),
    "characters": EvidenceTask(
        "Shakespeare, character by character",
        Setup(
            data="tinyshakespeare",
            model="decoder",
            optimizer="adamw",
            batch_size=4,
            epochs=4,
            evaluate_every=4,
        ),
        rates=(2.5e-3, 5e-3, 1e-2),
        decays=(0.0, 0.1, 1.0),
        radii=(0.02, 0.05, 0.1, 0.2),
        trials=1,
        folder="text",
    ),
}
