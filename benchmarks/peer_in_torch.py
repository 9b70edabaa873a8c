"""The peer's side of `benchmarks/peer_curvature.py`: PyTorch and curvlinops, nothing of this project."""

import json
import sys
import time
from importlib.metadata import version

import curvlinops  # pyrefly: ignore[missing-import]
import numpy as np
import scipy.sparse.linalg
import torch  # pyrefly: ignore[missing-import]


def operator(given):
    """The Hessian of the mean loss of the network that the arrays say."""
    first, last = (torch.nn.Linear(*given[name].shape) for name in ("first", "last"))
    model = torch.nn.Sequential(first, torch.nn.Tanh(), last)
    with torch.no_grad():
        for layer, kernel, bias in ((first, "first", "bias"), (last, "last", "last_bias")):
            layer.weight.copy_(torch.tensor(given[kernel].T))
            layer.bias.copy_(torch.tensor(given[bias]))
    data = [(torch.tensor(given["x"]), torch.tensor(given["label"]))]
    params = [*model.parameters()]
    return curvlinops.HessianLinearOperator(model, torch.nn.CrossEntropyLoss(), params, data)


def timed(call, rounds):
    """What a call returns, and the CPU seconds of some calls after the first."""
    found, seconds = call(), []
    for _ in range(rounds):
        begin = time.process_time()
        call()
        seconds.append(time.process_time() - begin)
    return found, seconds


def main(file, rounds, tolerance, products):
    """Prints the numbers as JSON."""
    hessian = operator(np.load(file))
    outside = hessian.to_scipy()

    def top():
        return scipy.sparse.linalg.eigsh(
            outside, k=1, which="LA", tol=float(tolerance), return_eigenvectors=False
        )[0]

    values, top_seconds = timed(top, int(rounds))
    trace, trace_seconds = timed(lambda: float(curvlinops.xtrace(hessian, int(products))), int(rounds))
    found = {"top": float(values), "top_seconds": top_seconds, "trace": trace, "trace_seconds": trace_seconds}
    about = f"curvlinops {version('curvlinops-for-pytorch')}, torch {version('torch')}"
    print(json.dumps(found | {"versions": about}))


if __name__ == "__main__":
    main(*sys.argv[1:])
