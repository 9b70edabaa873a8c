"""Trains with the PyTorch calls of `docs/migrating_from_pytorch.md`, and writes down the weights.

    pip install torch pytorch_optimizer
    python -m tests.migration.record

The tests compare with `trajectories.json`, and need no PyTorch.
"""

import json
import re
from importlib.metadata import version
from pathlib import Path

import pytorch_optimizer
import torch
from pytorch_optimizer.lr_scheduler import ProportionScheduler
from torch.optim import SGD, Adam, AdamW
from torch.optim.lr_scheduler import LambdaLR

from tests.migration.pages import PROBLEM, pairs
from tests.references.trees import leaves

FILE = Path(__file__).with_name("trajectories.json")
PAGE = "migrating_from_pytorch.md"
STEPS = (1, 8, 24)  # whose weights are written down
BSAM = "BSAM(params, num_data=1e30, lr=0.1, betas=(0.9, 0.99), weight_decay=0.01, rho=0.02)"  # without noise


class Net(torch.nn.Module):
    """The network of the references; its weights in their order, biases before kernels."""

    def __init__(self):
        super().__init__()
        self.weights = torch.nn.ParameterList(torch.tensor(leaf) for leaf in leaves(PROBLEM.params))

    def forward(self, image):
        bias, kernel, last_bias, last_kernel = self.weights
        return torch.tanh(image @ kernel + bias) @ last_kernel + last_bias


class TwoPasses:
    """The rule of github.com/davda54/sam, in other words."""

    def __init__(self, params, base, rho=0.05, adaptive=False, **settings):
        self.adaptive, self.base = adaptive, base(params, **settings)
        for group in self.base.param_groups:
            group.setdefault("rho", rho)
        self.zero_grad = self.base.zero_grad

    def step(self, closure):
        rhos = {p: group["rho"] for group in self.base.param_groups for p in group["params"]}
        with torch.no_grad():
            saved = {p: p.clone() for p in rhos}
            sizes = {p: p.abs() if self.adaptive else torch.ones_like(p) for p in rhos}
            norm = torch.cat([(sizes[p] * p.grad).ravel() for p in rhos]).norm() + 1e-12
            for p, rho in rhos.items():
                p += rho * sizes[p] ** 2 * p.grad / norm
        closure()
        with torch.no_grad():
            for p in rhos:
                p.copy_(saved[p])
        self.base.step()


def namespace(net, theirs):
    """What the calls of the page refer to."""
    params = list(net.parameters())
    settings = {"lr": 0.05, "momentum": 0.9, "weight_decay": 1e-3}
    base = SGD(params, **settings)
    schedule = LambdaLR(base, lambda step: 1 - step / 48)
    biases = {"params": params[0::2], "rho": 0.01, "weight_decay": 0.0}
    kernels = {"params": params[1::2], "rho": 0.2, "weight_decay": 0.01}
    return theirs | {
        "model": net, "params": params, "groups": [biases, kernels], "sgd": settings, "base": base,
        "SGD": SGD, "Adam": Adam, "AdamW": AdamW, "schedule": schedule,
        "radius": ProportionScheduler(schedule, max_lr=0.05, max_value=0.2, min_value=0.1),
    }  # fmt: skip


def record(call, theirs):
    """The weights after some steps, and how many gradients were taken."""
    torch.manual_seed(0)
    net = Net()
    names = namespace(net, theirs)
    optimizer = eval(call, names)
    passes, snapshots = 0, []
    for number, batch in enumerate(PROBLEM.batches, start=1):
        image, label = torch.tensor(batch["image"]), torch.tensor(batch["label"], dtype=torch.long)

        @torch.enable_grad()
        def closure(image=image, label=label):
            nonlocal passes
            passes += 1
            optimizer.zero_grad()
            loss = torch.nn.functional.cross_entropy(net(image), label)
            loss.backward()
            return (None, loss) if call.startswith("GSAM") else loss

        if not call.startswith(("GSAM", "WSAM")):  # these call it twice themselves
            closure()
        optimizer.step(closure)
        if call.startswith("GSAM"):
            names["schedule"].step()
            optimizer.update_rho_t()
        if number in STEPS:
            weights = torch.cat([p.detach().ravel() for p in net.parameters()])
            snapshots.append([float(f"{x:.12g}") for x in weights.tolist()])
    return {"passes": passes, "weights": snapshots}


def main():
    names = ("SAM", "GSAM", "WSAM", "LookSAM", "FriendlySAM", "BSAM")
    classes = {
        "davda54": ("The class of davda54", {"SAM": TwoPasses}),
        "pytorch_optimizer": (
            "The classes of pytorch_optimizer",
            {name: getattr(pytorch_optimizer, name) for name in names},
        ),
    }
    found = {"versions": {name: version(name) for name in ("torch", "pytorch_optimizer")}, "steps": STEPS}
    for kind, (heading, theirs) in classes.items():
        found[kind] = {call: record(call, theirs) for call in pairs(PAGE, heading)}
    found["pytorch_optimizer"][BSAM] = record(BSAM, classes["pytorch_optimizer"][1])
    text = json.dumps(found, indent=1)
    FILE.write_text(re.sub(r"\n +(?=[-\d])|(?<=\d)\n +(?=])", "", text) + "\n")


if __name__ == "__main__":
    main()
