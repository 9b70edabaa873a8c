"""A small tanh network with backpropagation by hand, and problems for it."""

from typing import NamedTuple

import numpy as np

from .trees import Tree, norm

Batch = dict[str, np.ndarray]


class Problem(NamedTuple):
    """Initial parameters and the batches of a whole run.

    Attributes:
      params: `{"layer_0": {"bias": [h], "kernel": [d, h]}, "layer_1": ...}`, float64.
      batches: one dict per step, `image` float64 `[batch, d]` and `label` int32 `[batch]`.
      indices: one int32 `[batch]` per step, the rows of the data set that make the batch.
      num_examples: the size of the data set.
    """

    params: Tree
    batches: list[Batch]
    indices: list[np.ndarray]
    num_examples: int


def make_problem(
    seed: int,
    batch: int = 12,
    steps: int = 24,
    num_examples: int = 48,
    sizes: tuple[int, ...] = (5, 7, 3),
) -> Problem:
    """Skewed, unbalanced classes, visited in a new random order in every epoch.

    No batch repeats an index if `batch` divides `num_examples`.
    """
    rng = np.random.default_rng(seed)
    features, classes = sizes[0], sizes[-1]
    params = {
        f"layer_{i}": {
            "bias": 0.3 * rng.normal(size=fan_out) + 0.1,
            "kernel": rng.normal(size=(fan_in, fan_out)) / np.sqrt(fan_in),
        }
        for i, (fan_in, fan_out) in enumerate(zip(sizes[:-1], sizes[1:], strict=True))
    }
    shares = np.arange(classes, 0, -1.0)
    label = rng.choice(classes, size=num_examples, p=shares / shares.sum()).astype(np.int32)
    centers = rng.normal(size=(classes, features)) + np.linspace(-0.5, 1.0, features)
    image = centers[label] + rng.exponential(np.linspace(0.3, 1.2, features), (num_examples, features))

    epochs = -(-steps * batch // num_examples)
    order = np.concatenate([rng.permutation(num_examples) for _ in range(epochs)])
    indices = [order[t * batch : (t + 1) * batch].astype(np.int32) for t in range(steps)]
    batches = [{"image": image[rows], "label": label[rows]} for rows in indices]
    return Problem(params, batches, indices, num_examples)


def forward(params: Tree, image: np.ndarray, linear: bool = False) -> tuple[list[np.ndarray], np.ndarray]:
    """The input of every layer, and the log-probabilities of the classes `[batch, classes]`.

    With `linear` it is the network without its tanh: a cheap surrogate that shares the parameters.
    """
    inputs, depth = [image], len(params)
    for i in range(depth):
        layer = params[f"layer_{i}"]
        outputs = inputs[-1] @ layer["kernel"] + layer["bias"]
        if i < depth - 1:
            inputs.append(outputs if linear else np.tanh(outputs))
    outputs = outputs - outputs.max(axis=1, keepdims=True)
    return inputs, outputs - np.log(np.sum(np.exp(outputs), axis=1, keepdims=True))


def losses(params: Tree, batch: Batch, linear: bool = False) -> np.ndarray:
    """Softmax cross entropy of every example, `[batch]`."""
    _, log_probabilities = forward(params, batch["image"], linear)
    return -log_probabilities[np.arange(len(batch["label"])), batch["label"]]


def gradient(
    params: Tree,
    batch: Batch,
    weights: np.ndarray | None = None,
    linear: bool = False,
    outputs_at: Tree | None = None,
) -> Tree:
    """The gradient of sum(w l) / sum(w); rows of weight 0 are left out, not multiplied.

    With `outputs_at`, the loss's derivative by the logits is that of these parameters.
    """
    if weights is None:
        weights = np.ones(len(batch["label"]))
    kept = weights != 0
    image, label, weights = batch["image"][kept], batch["label"][kept], weights[kept]

    inputs, log_probabilities = forward(params, image, linear)
    if outputs_at is not None:
        log_probabilities = forward(outputs_at, image, linear)[1]
    delta = np.exp(log_probabilities)
    delta[np.arange(len(label)), label] -= 1.0
    delta *= (weights / weights.sum())[:, None]
    grads = {}
    for i in reversed(range(len(params))):
        grads[f"layer_{i}"] = {"bias": delta.sum(axis=0), "kernel": inputs[i].T @ delta}
        delta = delta @ params[f"layer_{i}"]["kernel"].T
        delta = delta if linear else delta * (1.0 - inputs[i] ** 2)
    return {name: grads[name] for name in sorted(grads)}


def per_example_gradient_norms(params: Tree, batch: Batch) -> np.ndarray:
    """The norm of every example's own gradient, one example after the other, `[batch]`."""
    rows = [{name: leaf[i : i + 1] for name, leaf in batch.items()} for i in range(len(batch["label"]))]
    return np.array([norm(gradient(params, row)) for row in rows])
