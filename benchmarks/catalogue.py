"""Every public method, as its row in `tests/registry.py` says, and what its step is expected to cost."""

import inspect
from typing import Any

import optax_sam
from benchmarks.cases import (
    LEARNING_RATE,
    RHO,
    Case,
    always,
    contrib_sam,
    contrib_sam_transparent,
    gated,
    ours,
    sgd,
    usual_base,
    whole,
    with_outputs,
    with_surrogate,
)
from tests import registry, rows

NUM_EXAMPLES = rows.TRAINING_EXAMPLES


def all_cases() -> list[Case]:
    """Plain SGD first, twice: what the machine's noise makes of one program."""
    return [
        Case("sgd", sgd, 1),
        Case("sgd, again", sgd, 1),
        Case("optax.contrib.sam, opaque", contrib_sam, 2),
        Case("optax.contrib.sam, transparent", contrib_sam_transparent, 2, False),
        *(case for row in registry.ROWS.values() for case in of_row(row)),
        *other_arguments(),
        *compositions(),
    ]


def of_row(row: rows.Case) -> list[Case]:
    """A method as its row says; three cases where a gate may stand open or closed."""
    timed, name = row.timed, row.timed.name or row.method.__name__
    gradients, straight, more = timed.gradients, timed.straight, timed.more
    if gradients == rows.AS_THE_ROW:  # the mean over a gate's decisions is known to the row alone
        gradients = None if row.gated else row.cost_of_first_step
    if straight is None:
        straight = gradients == 2 and not row.needs_oracle
    if "surrogate_losses" in row.required:
        build = with_surrogate(lambda losses: row.method(losses, RHO))
        return [Case(name, build, gradients, straight, **more)]
    if "outputs" in row.required:
        build = with_outputs(lambda outputs: row.method(outputs, lambda given, batch: given, RHO))
        return [Case(name, build, gradients, straight, **more)]
    method = row.method(**arguments(row))
    if row.gated:
        return gated(method, name, gradients, **more)
    build = whole(method) if row in registry.OPTIMIZERS.values() else ours(method)
    return [Case(name, build, gradients, straight, **more)]


def arguments(row: rows.Case) -> dict[str, Any]:
    """What the method is built with: by default what it requires, and the radius of all cases."""
    if row.timed.arguments is not None:
        return row.timed.arguments
    has_radius = "rho" in inspect.signature(row.method).parameters
    return row.required | ({"rho": RHO} if has_radius else {})


def other_arguments() -> list[Case]:
    """Arguments of a method that cost what its others do not."""
    by_norm = optax_sam.ausam(NUM_EXAMPLES, score="gradient_norm")
    fisher = optax_sam.sparse_sam(RHO, num_samples=8)
    return [
        always(by_norm, 'ausam(score="gradient_norm")', 1.5, straight=False),
        Case("sparse_sam(num_samples=8)", ours(fisher), None, False, 10),
    ]


def compositions() -> list[Case]:
    """Two papers in one, a method and its base, and slices of the batch."""
    sam = optax_sam.sam(RHO)
    composed = optax_sam.sharpness_aware(
        optax_sam.ascents.to_radius(RHO),
        start=optax_sam.starts.drawn_by_score(NUM_EXAMPLES),
        gate=optax_sam.gates.with_variance_rate(window=10),
        reuse=optax_sam.reuses.decayed_difference(0.7, steps=6),
    )
    decoupled = optax_sam.decoupled(optax_sam.wsam(RHO), usual_base(), LEARNING_RATE)
    return [
        Case("decoupled(wsam)", whole(decoupled), 2),
        *gated(composed, "ausam's draw, vsam's gate", shut=0.75, part=0.5),
        always(optax_sam.accumulated(sam, 8), "accumulated(sam, 8)", straight=False),
        always(optax_sam.per_microbatch(sam, 8), "per_microbatch(sam, 8)", straight=False),
    ]
