"""Draws the pictures of `optax_sam.sharpness.plots`: `python docs/drawing/pictures.py`.

SGD, SAM and vSAM on 500 digits of which a fifth have a random label; a net of two hidden layers with batch
norm, 60 epochs, batch 50, three seeds (all but the accuracy: the first seed).
"""

import time
from pathlib import Path

import flax.linen as nn
import jax
import jax.numpy as jnp
import matplotlib
import numpy as np
import optax
from jax.tree_util import Partial
from sklearn.datasets import load_digits

import optax_sam
from optax_sam import sharpness

matplotlib.use("agg")

from matplotlib import pyplot as plt  # noqa: E402 (after the choice of a backend)

from optax_sam.sharpness import plots  # noqa: E402

EPOCHS, RHO, SEEDS = 60, 1.0, 3
WIDE = (8.2, 4.6)
METHODS = {
    "SGD": optax_sam.momentum_sam(0.0),
    "SAM": optax_sam.sam(RHO),
    "vSAM": optax_sam.vsam(RHO, window=10),
}


class Net(nn.Module):
    """Two hidden layers; with momentum 0 the statistics are those of the last batch."""

    @nn.compact
    def __call__(self, x, train):
        for _ in range(2):
            x = nn.Dense(64, use_bias=False)(x)
            x = nn.relu(nn.BatchNorm(use_running_average=not train, momentum=0.0)(x))
        return nn.Dense(10)(x)


def digits():
    images, labels = load_digits(return_X_y=True)
    order = np.random.default_rng(0).permutation(len(labels))
    images, labels = jnp.asarray(images[order] / 16, jnp.float32), labels[order]
    random = np.random.default_rng(1)
    noisy = np.where(random.random(500) < 0.2, random.integers(0, 10, 500), labels[:500])
    train = {"image": images[:500], "label": jnp.asarray(noisy)}
    return train, {"image": images[500:], "label": jnp.asarray(labels[500:])}


def forward(params, batch):
    logits, new = Net().apply({"params": params}, batch["image"], train=True, mutable="batch_stats")
    return logits, new["batch_stats"]


@Partial
def losses(params, batch):
    return optax.softmax_cross_entropy_with_integer_labels(forward(params, batch)[0], batch["label"])


@Partial
def statistics(params, batch):
    return forward(params, batch)[1]


@Partial
def losses_with(params, batch, batch_stats):
    logits = Net().apply({"params": params, "batch_stats": batch_stats}, batch["image"], train=False)
    return optax.softmax_cross_entropy_with_integer_labels(logits, batch["label"])


def training(method, train, test):
    """The start of a training from its seed, and, compiled, an epoch and the test accuracy."""
    schedule = optax.cosine_decay_schedule(0.05, EPOCHS * 10)
    tx = optax.chain(method, optax.sgd(schedule, momentum=0.9))

    def step(carry, rows):
        params, state = carry
        batch = jax.tree.map(lambda x: x[rows], train)
        loss, grads, oracle = method.value_and_grad(losses)(params, batch, state=state)
        updates, state = tx.update(grads, state, params, oracle=oracle)
        return (optax.apply_updates(params, updates), state), (loss, optax_sam.info(state)["perturbed"])

    def accuracy(params):
        variables = {"params": params, "batch_stats": statistics(params, train)}
        return jnp.mean(Net().apply(variables, test["image"], train=False).argmax(-1) == test["label"])

    def epoch(carry, key):
        carry, (loss, paid) = jax.lax.scan(step, carry, jax.random.permutation(key, 500).reshape(10, 50))
        return carry, (loss.mean(), paid.mean())

    def start(seed):
        params = Net().init(jax.random.key(seed), train["image"], train=True)["params"]
        return params, tx.init(params)

    return start, jax.jit(epoch), jax.jit(accuracy)


def watched(method, train, test, seed, program):
    """One training: its end, and for each epoch what is drawn."""
    start, epoch, accuracy = program
    batches = [jax.tree.map(lambda x, i=i: x[i : i + 50], train) for i in range(0, 500, 50)]
    carry, seconds, found = start(seed), 0.0, []
    for key in jax.random.split(jax.random.key(seed + 100), EPOCHS):
        began = time.perf_counter()
        carry, (loss, paid) = jax.block_until_ready(epoch(carry, key))
        seconds += time.perf_counter() - began
        row = {"seconds": seconds, "loss": loss, "rate": paid, "accuracy": accuracy(carry[0])}
        if seed == 0:
            row["psf"] = sharpness.psf_norm(losses, carry[0], batches, RHO).value
            row["top"] = sharpness.top_eigenvalues(losses, carry[0], train, tolerance=0.05).values[0]
        found.append({name: float(value) for name, value in row.items()})
    return carry[0], {name: np.array([row[name] for row in found]) for name in found[0]}


def early(train, test):
    """SGD's parameters after a tenth of its training."""
    start, epoch, _ = training(METHODS["SGD"], train, test)
    carry = start(0)
    for key in jax.random.split(jax.random.key(100), EPOCHS // 10):
        carry, _ = epoch(carry, key)
    return carry[0]


def save(panel, name):
    panel.figure.savefig(Path(__file__).parents[1] / "images" / f"sharpness_{name}.png", dpi=110)
    plt.close(panel.figure)


def new_axes(size=WIDE, **options):
    return plt.figure(figsize=size, layout="constrained").add_subplot(**options)


def main():
    train, test = digits()
    ends, records, curves = {}, {}, {}
    for name, method in METHODS.items():
        program = training(method, train, test)
        start, epoch, _ = program
        epoch(start(0), jax.random.key(0))  # compiles
        runs = [watched(method, train, test, seed, program) for seed in range(SEEDS)]
        ends[name], records[name] = runs[0]
        accuracy = np.array([record["accuracy"] for _, record in runs])
        seconds = np.mean([record["seconds"] for _, record in runs], axis=0)
        curves[name] = seconds, accuracy.mean(0), accuracy.std(0, ddof=1)
        print(name, f"{accuracy[:, -1].mean():.1%}", records[name]["top"][-1])

    panel = plots.accuracy_against_time(curves, new_axes())
    panel.set(ylabel="test accuracy", ylim=(0.8, 0.97))
    save(panel, "accuracy")

    epochs = np.arange(1, EPOCHS + 1)
    names = {
        "loss": "training loss",
        "top": "top eigenvalue",
        "psf": r"$\|g' - g\|$",
        "rate": "second gradients",
    }
    series = {
        title: {name: (epochs, record[key]) for name, record in records.items()}
        for key, title in names.items()
    }
    series["second gradients"].pop("SGD")
    _, panels = plt.subplots(4, sharex=True, figsize=(8.2, 7.2), layout="constrained")
    panels[0].figure.align_ylabels()
    save(plots.trajectories(series, list(panels))[0], "trajectories")

    densities = {
        name: sharpness.spectral_density(losses, ends[name], train, num_steps=80) for name in ("SGD", "SAM")
    }
    save(plots.spectral_density(densities, new_axes()), "spectrum")

    batches = [jax.tree.map(lambda x, i=i: x[i : i + 50], train) for i in range(0, 500, 50)]
    found = sharpness.radius_test(losses, early(train, test), batches, learning_rate=0.05)
    save(plots.radius_test(found, new_axes()), "radius")
    reports = {name: sharpness.report(losses, ends[name], batches) for name in ("SGD", "SAM")}
    save(plots.by_layer({name: each.layers for name, each in reports.items()}, new_axes()), "layers")
    save(plots.report(reports).axes[0], "report")

    levels = [0.005, 0.02, 0.05, 0.1, 0.2, 0.5, 0.7, 1, 1.4, 2, 3, 4, 6]
    _, panels = plt.subplots(1, 2, figsize=(8.2, 4.1), layout="constrained")
    for name, panel in zip(("SGD", "SAM"), panels, strict=True):
        directions = [sharpness.random_direction(ends[name], seed) for seed in (0, 1)]
        around = sharpness.landscape(
            losses_with, ends[name], train, directions, num_points=31, statistics=statistics
        )
        plots.landscape_contour(around, panel, levels).set_title(name)
        if name == "SGD":
            save(plots.landscape_surface(around, new_axes((8.2, 6.0), projection="3d")), "surface")
    save(panels[0], "contour")

    line = [sharpness.difference(ends["SGD"], ends["SAM"])]
    options = {"span": (-0.5, 1.5), "num_points": 81, "statistics": statistics}

    def of_test(params, batch, batch_stats):
        return losses_with(params, test, batch_stats).mean()

    between = {
        "training": sharpness.landscape(losses_with, ends["SGD"], train, line, **options),
        "test": sharpness.landscape(of_test, ends["SGD"], train, line, **options),
    }
    panel = plots.landscape_line(between, new_axes())
    panel.axvline(1, color="0.7", linewidth=0.8)
    panel.set_xlabel("0 is SGD, 1 is SAM")
    save(panel, "line")


if __name__ == "__main__":
    main()
