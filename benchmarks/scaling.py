"""On paper: how long a training step takes on many chips, from counts and published figures.

    python -m benchmarks.scaling

Nothing is measured here. A step is its products at a part of the peak, and its all-reduces at the full
bandwidth. `python -m benchmarks.devices` counts both for every method. All assumptions are printed.
"""

import dataclasses
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import tyro
from rich.console import Console
from rich.table import Table

CHIPS = (1, 8, 256, 4096)
UTILISATION = 0.4
MOST_PER_CHIP, MOST_TOGETHER = 128, 32_768
HOP, EXCHANGE, NETWORK_STEP = 1e-6, 2e-6, 5e-6

V5P_LINK = 1200e9 / 2 / 6
V5P_SHAPES = {1: (1, 1, 1), 8: (2, 2, 2), 256: (4, 8, 8), 512: (8, 8, 8), 4096: (16, 16, 16)}
NVLINK, NODE, NETWORK = 900e9 / 2, 8, 400e9 / 8


@dataclasses.dataclass(frozen=True)
class Network:
    """What is trained.

    Attributes:
      multiply_adds: of one forward pass of one image. A gradient takes three times as many.
      norms: layers with batch statistics.
    """

    name: str
    parameters: int
    multiply_adds: float
    norms: int

    def gradient_flops(self, images: float) -> float:
        return 3 * 2 * self.multiply_adds * images


@dataclasses.dataclass(frozen=True)
class Machine:
    """Chips and what connects them.

    Attributes:
      peak: bf16 FLOP/s of a chip, without sparsity.
      bandwidth_time: seconds of an all-reduce, from bytes and chips, where nothing else costs.
      latency: seconds of an all-reduce of nothing, from chips.
    """

    name: str
    peak: float
    bandwidth_time: Callable[[float, int], float]
    latency: Callable[[int], float]

    def all_reduce(self, size: float, chips: int) -> float:
        return self.bandwidth_time(size, chips) + self.latency(chips)


@dataclasses.dataclass(frozen=True)
class Step:
    """What a method takes: gradients, each of a share of the batch, and which of them are reduced."""

    name: str
    shares: tuple[float, ...]
    reduced: tuple[bool, ...]


def torus_bandwidth_time(size: float, chips: int) -> float:
    """Rings along all axes at once; an axis shorter than four has no link around, and so one for two."""
    links = sum(0 if axis == 1 else 1 if axis < 4 else 2 for axis in V5P_SHAPES[chips])
    return 2 * (chips - 1) / chips * size / (links * V5P_LINK) if links else 0.0


def torus_latency(chips: int) -> float:
    """There and back along every axis, both ways round where there is a way round."""
    hops = sum(axis - 1 if axis < 4 else axis // 2 for axis in V5P_SHAPES[chips])
    return 2 * hops * HOP


def nodes_bandwidth_time(size: float, chips: int) -> float:
    """Scatter the sum inside a node, reduce each eighth between nodes, gather inside the node."""
    inside, nodes = min(chips, NODE), max(1, chips // NODE)
    between = 2 * (nodes - 1) / nodes * (size / inside) / NETWORK
    return 2 * (inside - 1) / inside * size / NVLINK + between


def nodes_latency(chips: int) -> float:
    """Two exchanges inside a node, and a tree up and down between nodes."""
    nodes = max(1, chips // NODE)
    return 2 * EXCHANGE * (chips > 1) + 2 * math.log2(nodes) * NETWORK_STEP


COMPILED_NETWORKS = {
    "mlp": (Network("dense net", 2_913_290, 2.910e6, 0), 128),
    "vit_l": (Network("ViT-L/16", 304_326_632, 61.55e9, 0), 32),
}
"""Of `benchmarks.accelerators`, with images on a chip; ViT-L as published for its thousand classes."""

NETWORKS = (Network("ResNet-50", 25_557_032, 4.089e9, 53), Network("ViT-B/16", 86_567_656, 17.564e9, 0))
MACHINES = (
    Machine("TPU v5p", 459e12, torus_bandwidth_time, torus_latency),
    Machine("DGX H100", 989e12, nodes_bandwidth_time, nodes_latency),
)
STEPS = (
    Step("SGD", (1.0,), (True,)),
    Step("SAM", (1.0, 1.0), (True, True)),
    Step("per_device(SAM)", (1.0, 1.0), (False, True)),
    Step("AUSAM(0.5), strata", (0.5, 0.5), (True, True)),
)

COMPILED_STEPS = {
    "base alone": STEPS[0],
    "sam": STEPS[1],
    "rst": STEPS[1],
    "vsam(window=10)": STEPS[1],
    "momentum_sam": STEPS[0],
    "ausam(strata=chips)": STEPS[3],
}
"""What a compiled step is on paper; a gate is open."""

COMPILED = {"v5p:8x8x8": (MACHINES[0], 512), "h100:4x1x8": (MACHINES[1], 32)}
RESULTS = Path(__file__).parent / "results"

ASSUMPTIONS = f"""Assumptions, none of them measured:
* TPU v5p as published: 459 TFLOP/s bf16, 1200 GB/s of links in both directions together (six links, so
  100 GB/s each way), 3D torus; 8 chips are 2x2x2 without links around, 256 are 4x8x8, 4,096 are 16x16x16.
  https://docs.cloud.google.com/tpu/docs/v5p
* DGX H100 as published by the vendor: 989 TFLOP/s bf16 without sparsity, NVLink 900 GB/s in both directions
  together inside a node of 8, one 400 Gb/s port of the network for each GPU, at full bisection.
  https://www.nvidia.com/en-us/data-center/h100, https://jax-ml.github.io/scaling-book/gpus
* Products run at {UTILISATION:.0%} of the peak, on however few images; norms, noise and memory are free.
* A gradient is 3 forward passes. ResNet-50: 25,557,032 parameters, 4.089e9 multiplications and additions
  an image; ViT-B/16: 86,567,656 and 17.564e9. https://docs.pytorch.org/vision/stable/models.html
* {MOST_PER_CHIP} images per chip, but no more than {MOST_TOGETHER:,} together, so 8 per chip on 4,096.
* Parameters on all chips. An all-reduce sends 2 (n - 1) / n of its bytes through all links of a chip at once;
  on the DGX within the node, and an eighth of them for each GPU between nodes.
* Latencies: {HOP * 1e6:g} us a hop on the torus, {EXCHANGE * 1e6:g} us an exchange inside a node,
  {NETWORK_STEP * 1e6:g} us a step of a tree between nodes.
* Overlap at best: an all-reduce hides behind its gradient's own backward pass, two thirds of the gradient.
* Gradients and all-reduces as counted: SGD 1 and 1, SAM 2 and 2, one perturbation per device 2 and 1, AUSAM
  two of half the batch and 2; its scores, a few numbers per image, are left out.
* Batch statistics of each chip's own images. Statistics of the global batch under plain jit cost the
  column "statistics" for each gradient: two small all-reduces a layer, one after the other."""


def images_per_chip(chips: int) -> int:
    return min(MOST_PER_CHIP, MOST_TOGETHER // chips)


def step_time(
    step: Step,
    network: Network,
    machine: Machine,
    chips: int,
    bytes_each: int,
    overlap: bool,
    images: int | None = None,
) -> float:
    """Seconds of one step; `bytes_each` of a gradient's numbers, `images` on a chip."""
    images = images_per_chip(chips) if images is None else images
    reduction = machine.all_reduce(network.parameters * bytes_each, chips)
    total = 0.0
    for share, reduced in zip(step.shares, step.reduced, strict=True):
        flops = network.gradient_flops(share * images)
        gradient = flops / (UTILISATION * machine.peak)
        sent = reduction * reduced
        total += gradient / 3 + max(2 / 3 * gradient, sent) if overlap else gradient + sent
    return total


def statistics_time(network: Network, machine: Machine, chips: int) -> float:
    """What batch statistics of the global batch add to each gradient, seconds."""
    return 2 * network.norms * machine.latency(chips)


def table(network: Network, machine: Machine) -> Table:
    """Milliseconds of SGD, and the other steps relative to it, without and with overlap."""
    result = Table(title=f"{network.name} on {machine.name}: predicted")
    for heading in ("chips", "images/chip", "gradient in", "all-reduce ms", "statistics ms", "SGD ms"):
        result.add_column(heading, justify="right")
    for step in STEPS[1:]:
        result.add_column(f"{step.name} / SGD", justify="right")
    for chips in CHIPS:
        for bytes_each in (4, 2) if chips > 1 else (4,):
            times = [
                [step_time(step, network, machine, chips, bytes_each, overlap) for overlap in (False, True)]
                for step in STEPS
            ]
            ratios = [[a / b for a, b in zip(of, times[0], strict=True)] for of in times[1:]]
            result.add_row(
                f"{chips:,}",
                str(images_per_chip(chips)),
                {4: "f32", 2: "bf16"}[bytes_each],
                f"{1e3 * machine.all_reduce(network.parameters * bytes_each, chips):.3f}",
                f"{1e3 * statistics_time(network, machine, chips):.2f}",
                " / ".join(f"{1e3 * t:.2f}" for t in times[0]),
                *(" / ".join(f"{r:.2f}" for r in of) for of in ratios),
            )
    return result


def exchanged(line: dict[str, Any]) -> tuple[int, int]:
    """How many exchanges a compiled program has, and the bytes that it sums over chips."""
    return sum(number for number, _ in line["collectives"].values()), line["collectives"]["all-reduce"][1]


def compiled_time(line: dict[str, Any], machine: Machine, chips: int) -> float:
    """Seconds of what a compiled program multiplies and exchanges, at the same rates, one by one."""
    number, size = exchanged(line)
    products = line["product_flops"] / (UTILISATION * machine.peak)
    return products + machine.bandwidth_time(size, chips) + number * machine.latency(chips)


def held_against_compiled(lines: list[dict[str, Any]]) -> Table:
    """Steps on paper, gradients summed in float32, beside the same of their programs."""
    heads = ("machine, network", "step", "exchanges", "MB summed", "products / SGD", "time / SGD")
    result = Table(*heads, title="on paper / compiled")
    known = [x for x in lines if x["machine"] in COMPILED and x["model"] in COMPILED_NETWORKS]
    known = [x for x in known if (x["parameters"], x["axes"]) == ("copied", "auto") and "error" not in x]
    bases = {(x["machine"], x["model"]): x for x in known if x["step"] == "base alone"}
    for line in known:
        if line["step"] not in COMPILED_STEPS:
            continue
        (machine, chips), step = COMPILED[line["machine"]], COMPILED_STEPS[line["step"]]
        network, images = COMPILED_NETWORKS[line["model"]]
        base = bases[line["machine"], line["model"]]
        paper, sgd = (step_time(x, network, machine, chips, 4, False, images) for x in (step, STEPS[0]))
        time = compiled_time(line, machine, chips) / compiled_time(base, machine, chips)
        number, size = exchanged(line)
        result.add_row(
            f"{line['machine']}, {network.name}",
            line["step"],
            f"{sum(step.reduced)} / {number}",
            f"{4e-6 * network.parameters * sum(step.reduced):,.1f} / {size / 1e6:,.1f}",
            f"{sum(step.shares):.3f} / {line['product_flops'] / base['product_flops']:.3f}",
            f"{paper / sgd:.2f} / {time:.2f}",
        )
    return result


def main() -> None:
    """Predict step times on many chips from counts and published figures."""
    console = Console(width=180)
    console.print(ASSUMPTIONS, markup=False, highlight=False)
    console.print("Pairs: one after the other / all-reduces hidden at best.")
    for network in NETWORKS:
        for machine in MACHINES:
            console.print(table(network, machine))
    files = sorted(RESULTS.glob("accelerators-*.jsonl"))
    lines = [json.loads(line) for file in files for line in file.read_text().splitlines()]
    console.print(held_against_compiled(lines))


if __name__ == "__main__":
    tyro.cli(main)
