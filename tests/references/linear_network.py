"""The network without its tanh: a cheap surrogate that shares the parameters."""

import numpy as np

from .network import Batch
from .trees import Tree


def forward(params: Tree, image: np.ndarray) -> tuple[list[np.ndarray], np.ndarray]:
    """The input of every layer, and the log-probabilities of the classes `[batch, classes]`."""
    inputs = [image]
    for i in range(len(params)):
        inputs.append(inputs[-1] @ params[f"layer_{i}"]["kernel"] + params[f"layer_{i}"]["bias"])
    outputs = inputs.pop()
    outputs = outputs - outputs.max(axis=1, keepdims=True)
    return inputs, outputs - np.log(np.sum(np.exp(outputs), axis=1, keepdims=True))


def losses(params: Tree, batch: Batch) -> np.ndarray:
    """Softmax cross entropy of every example, `[batch]`."""
    _, log_probabilities = forward(params, batch["image"])
    return -log_probabilities[np.arange(len(batch["label"])), batch["label"]]


def gradient(params: Tree, batch: Batch, weights: np.ndarray | None = None) -> Tree:
    """The gradient of sum(w l) / sum(w); rows of weight 0 are left out, not multiplied."""
    if weights is None:
        weights = np.ones(len(batch["label"]))
    kept = weights != 0
    image, label, weights = batch["image"][kept], batch["label"][kept], weights[kept]

    inputs, log_probabilities = forward(params, image)
    delta = np.exp(log_probabilities)
    delta[np.arange(len(label)), label] -= 1.0
    delta *= (weights / weights.sum())[:, None]
    grads = {}
    for i in reversed(range(len(params))):
        grads[f"layer_{i}"] = {"bias": delta.sum(axis=0), "kernel": inputs[i].T @ delta}
        delta = delta @ params[f"layer_{i}"]["kernel"].T
    return {name: grads[name] for name in sorted(grads)}
