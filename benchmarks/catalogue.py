"""Every public method at its defaults, and what its step is expected to cost."""

from typing import Any

import optax_sam
from benchmarks.cases import (
    LEARNING_RATE,
    RHO,
    Case,
    always,
    base,
    contrib_sam,
    contrib_sam_transparent,
    gated,
    ours,
    sgd,
    whole,
    with_surrogate,
)
from optax_sam import sharpness_aware, to_radius

NUM_EXAMPLES = 50_000

ONE_GRADIENT = {"gradients": 1, "limits": (("sgd", 1.05),), "most_flops": 1.03}


def all_cases() -> list[Case]:
    """Plain SGD first, twice: what the machine's noise makes of one program."""
    return [
        Case("sgd", sgd, 1),
        Case("sgd, again", sgd, 1),
        Case("optax.contrib.sam, opaque", contrib_sam, 2),
        Case("optax.contrib.sam, transparent", contrib_sam_transparent, 2, False),
        *first_papers(),
        *gates(),
        *directions(),
        *combinations(),
        *one_gradient(),
        *examples(),
        *wrappers(),
    ]


def first_papers() -> list[Case]:
    """SAM, and the methods of the papers that the library began with."""
    peer = "optax.contrib.sam, opaque"
    ausam = optax_sam.ausam(NUM_EXAMPLES)
    return [
        always(optax_sam.sam(RHO), "sam", limits=((peer, 1.0), ("sgd", 2.0))),
        *gated(optax_sam.rst(RHO), "rst", limits=(("sgd", 1.5),)),
        *gated(optax_sam.grst(RHO), "grst", limits=(("sgd", 1.5),)),
        *gated(optax_sam.vsam(RHO, window=10), "vsam(window=10)", shut=1.2),
        always(optax_sam.pugd(), "pugd"),
        always(optax_sam.tsam(RHO), "tsam", 6, straight=False, limits=(("sgd", 6.3),)),
        always(ausam, "ausam", 1, limits=(("sgd", 0.95), ("sam", 0.5)), most_flops=1.05),
        always(
            optax_sam.ausam(NUM_EXAMPLES, score="gradient_norm"),
            'ausam(score="gradient_norm")',
            1.5,
            straight=False,
        ),
    ]


def gates() -> list[Case]:
    """Not every step is perturbed."""
    steps = 10_000
    return [
        *gated(optax_sam.looksam(RHO), "looksam", 1.2, limits=(("sgd", 1.25),)),
        *gated(optax_sam.look_layersam(RHO), "look_layersam", 1.2),
        *gated(optax_sam.aesam(steps, RHO), "aesam"),
        *gated(optax_sam.aelooksam(steps, RHO), "aelooksam"),
        *gated(optax_sam.late_sam(steps, RHO), "late_sam", 1, calls=1),
        *gated(
            sharpness_aware(
                to_radius(RHO),
                start=optax_sam.starts.drawn_by_score(NUM_EXAMPLES),
                gate=optax_sam.gates.with_variance_rate(window=10),
                reuse=optax_sam.reuses.decayed_difference(0.7, steps=6),
            ),
            "ausam's draw, vsam's gate",
            shut=0.75,
            part=0.5,
        ),
    ]


def directions() -> list[Case]:
    """SAM with another direction, geometry or mask."""
    dynamic = optax_sam.sparse_sam(RHO, mask="dynamic", total_steps=10_000)
    return [
        always(optax_sam.asam(), "asam"),
        always(optax_sam.usam(RHO), "usam"),
        always(optax_sam.fisher_sam(RHO), "fisher_sam"),
        always(optax_sam.sam_on(is_vector), "sam_on(vectors)"),
        always(optax_sam.friendly_sam(RHO), "friendly_sam"),
        always(optax_sam.vasso(RHO), "vasso"),
        always(optax_sam.random_sam(RHO), "random_sam", straight=False),
        always(optax_sam.multistep_sam(RHO, 2), "multistep_sam(num_steps=2)", 3, straight=False),
        always(dynamic, 'sparse_sam(mask="dynamic")', straight=False),
        Case("sparse_sam(num_samples=8)", ours(optax_sam.sparse_sam(RHO, num_samples=8)), None, False, 10),
        Case(
            "fisher_mask_sam(num_samples=8)",
            ours(optax_sam.fisher_mask_sam(RHO, num_samples=8)),
            None,
            False,
            10,
        ),
    ]


def is_vector(path: Any, leaf: Any) -> bool:
    """Scales and biases, whose share of the parameters is small in every network."""
    del path
    return leaf.ndim == 1


def combinations() -> list[Case]:
    """What becomes of the two gradients, or of more; whole optimizers."""
    return [
        always(optax_sam.gsam(RHO), "gsam"),
        always(optax_sam.gradient_norm_penalty(RHO), "gradient_norm_penalty"),
        always(optax_sam.wsam(RHO), "wsam"),
        Case("decoupled(wsam)", whole(optax_sam.decoupled(optax_sam.wsam(RHO), base(), LEARNING_RATE)), 2),
        always(optax_sam.bilateral_sam(RHO), "bilateral_sam", 3),
        Case("adasam", whole(optax_sam.adasam(LEARNING_RATE, RHO)), 2),
        Case("bsam", whole(optax_sam.bsam(NUM_EXAMPLES)), 2, False),
        Case("fgsam, network as surrogate", with_surrogate(lambda f: optax_sam.fgsam(f, RHO)), 2),
        Case(
            "fgsam_plus, network as surrogate",
            with_surrogate(lambda f: optax_sam.fgsam_plus(f, RHO)),
            None,
            False,
            10,
        ),
    ]


def one_gradient() -> list[Case]:
    """The step's one gradient is taken ahead, or two on half of the batch."""
    return [
        always(optax_sam.momentum_sam(RHO), "momentum_sam", **ONE_GRADIENT),
        always(optax_sam.single_step_sam(RHO), "single_step_sam", **ONE_GRADIENT),
        always(optax_sam.extrapolation(RHO), "extrapolation", **ONE_GRADIENT),
        always(optax_sam.graphsam(100, RHO), "graphsam", None, straight=False, calls=10),
        always(optax_sam.random_perturbation(), "random_perturbation", 1, straight=False),
        always(optax_sam.adaptive_random_perturbation(), "adaptive_random_perturbation", 1, straight=False),
    ]


def examples() -> list[Case]:
    """Some examples, or each with a weight of its own."""
    reweighted = optax_sam.reweighted_sam(RHO, weight=0.1, difference_step=0.01)
    return [
        always(optax_sam.ksam(RHO), "ksam", 1, straight=False),
        always(optax_sam.esam(RHO), "esam", 1.5, straight=False),
        always(reweighted, "reweighted_sam", straight=False),
    ]


def wrappers() -> list[Case]:
    """Slices of the batch."""
    sam = optax_sam.sam(RHO)
    return [
        always(optax_sam.accumulated(sam, 8), "accumulated(sam, 8)", straight=False),
        always(optax_sam.per_microbatch(sam, 8), "per_microbatch(sam, 8)", straight=False),
    ]
