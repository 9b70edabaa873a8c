"""The training steps on a batch that is split over devices, and what they promise there."""

import dataclasses
import math

import jax
from jax.sharding import PartitionSpec

import optax_sam
from benchmarks.cases import RHO, Build, ours
from benchmarks.catalogue import NUM_EXAMPLES, all_cases


@dataclasses.dataclass(frozen=True)
class Promise:
    """The most that a step may send and compute, with parameters on all devices and the batch split.

    Attributes:
      all_reduced: in units of the parameters, beside losses, norms and batch statistics.
      per_example: further numbers that are summed, for each example of the batch.
      rows: further examples that are summed: the real one that stands in the place of padding.
      moved: gathers, exchanges and permutations, in units of the batch.
      flops: on each device, relative to SGD.
    """

    all_reduced: int
    per_example: int = 0
    rows: int = 0
    moved: float = 0.0
    flops: float = math.inf


PROMISES = {
    "sgd": Promise(1),
    "sam": Promise(2),
    "momentum_sam": Promise(1),
    "per_device(sam)": Promise(1),
    "accumulated(sam, 8), placed": Promise(16, moved=1.01, flops=2.05),
    "per_microbatch(sam, 8), placed": Promise(16, moved=1.01, flops=2.05),
    "ausam(strata=8)": Promise(2, per_example=4, rows=2, moved=0.01, flops=1.05),
}
"""By the names of `steps_on`. AUSAM's scores, a few numbers for each example, go to all devices."""

PLACED = ("ausam", "esam", "ksam", "random_perturbation", "accumulated(sam, 8)", "per_microbatch(sam, 8)")
"""What takes parts of the batch, and splits them if the loss says that its batch is split."""


def steps_on(devices: int) -> dict[str, Build]:
    """What builds each training step, by its name: the whole catalogue, and the forms for split batches."""
    ausam = optax_sam.ausam(NUM_EXAMPLES)
    by_device = {
        "sam": optax_sam.sam(RHO),
        "gsam": optax_sam.gsam(RHO),
        "momentum_sam": optax_sam.momentum_sam(RHO),
        "ausam": ausam,
    }
    in_strata = {
        "ausam": optax_sam.ausam(NUM_EXAMPLES, strata=devices),
        "esam": optax_sam.esam(RHO, strata=devices),
        "ksam": optax_sam.ksam(RHO, strata=devices),
    }
    built = {case.name: case.build for case in all_cases() if case.name != "sgd, again"}
    built |= {f"per_device({name})": ours(optax_sam.per_device(m)) for name, m in by_device.items()}
    built |= {f"{name}(strata={devices})": ours(method) for name, method in in_strata.items()}
    return built | {f"{name}, placed": placed(built[name]) for name in PLACED}


def placed(build: Build) -> Build:
    """The training step whose loss says that its batch is split: so is then every slice."""

    def with_loss(losses, base):
        def of_split(params, stats, batch):
            return losses(params, stats, jax.lax.with_sharding_constraint(batch, PartitionSpec("data")))

        return build(of_split, base)

    return with_loss
