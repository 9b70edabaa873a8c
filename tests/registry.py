"""Every public method, once: what the guarantees are checked over.

A public method that is missing here fails `test_every_public_method_is_registered`.
"""

import functools
from collections.abc import Container, Iterable
from typing import Any

import jax
import jax.numpy as jnp
import optax

import optax_sam
from tests import rows
from tests.problem import NUM_EXAMPLES, init_params, losses, make_batch, make_indices
from tests.rows import Case, Timed, surrogate_losses, within

METHODS: dict[str, Case] = {
    "sam": Case(
        optax_sam.sam, timed=Timed(more={"limits": (("optax.contrib.sam, opaque", 1.0), ("sgd", 2.0))})
    ),
    "asam": Case(optax_sam.asam, timed=Timed(arguments={})),
    "rst": Case(optax_sam.rst, gated=True, timed=Timed(more=within(sgd=1.5))),
    "grst": Case(optax_sam.grst, gated=True, timed=Timed(more=within(sgd=1.5))),
    "vsam": Case(
        optax_sam.vsam,
        {"window": 6, "slices": 3, "tail": 3},
        gated=True,
        timed=Timed("vsam(window=10)", {"rho": 0.05, "window": 10}, more={"shut": 1.2}),
    ),
    "pugd": Case(optax_sam.pugd, without_radius=None),
    "tsam": Case(
        optax_sam.tsam,
        {"radius": 0.1, "num_samples": 2},
        gradients=4.0,
        loops=1,
        starts_at_params=False,
        needs_oracle=True,
        without_radius={"rho": 0.0, "radius": 0.0},
        timed=Timed(gradients=6, more=within(sgd=6.3)),
    ),
    "ausam": Case(
        optax_sam.ausam,
        required={"num_examples": NUM_EXAMPLES},
        gradients=1.0,
        examples=0.5,
        needs_oracle=True,
        without_radius={"rho": 0.0, "fraction": 1.0},
        timed=Timed(
            arguments={"num_examples": rows.TRAINING_EXAMPLES},
            straight=True,
            more=within(sgd=0.95, sam=0.5) | {"most_flops": 1.05},
        ),
    ),
}


AHEAD = {"gradients": 1.0, "starts_at_params": False, "needs_oracle": True}
ONE_GRADIENT = {"straight": True, "more": within(sgd=1.05) | {"most_flops": 1.03}}
IN_TRAINING = {"total_steps": rows.TRAINING_STEPS, "rho": 0.05}

FAMILY: dict[str, Case] = {
    "looksam": Case(
        optax_sam.looksam, {"every_k": 2}, gated=True, timed=Timed(gradients=1.2, more=within(sgd=1.25))
    ),
    "look_layersam": Case(optax_sam.look_layersam, {"every_k": 2}, gated=True, timed=Timed(gradients=1.2)),
    "late_sam": Case(
        optax_sam.late_sam,
        required={"start_step": 2},
        gated=True,
        timed=Timed(
            arguments={"start_step": rows.TRAINING_STEPS, "rho": 0.05}, gradients=1, more={"calls": 1}
        ),
    ),
    "aesam": Case(
        optax_sam.aesam, required={"total_steps": 8}, gated=True, timed=Timed(arguments=IN_TRAINING)
    ),
    "aelooksam": Case(
        optax_sam.aelooksam, required={"total_steps": 8}, gated=True, timed=Timed(arguments=IN_TRAINING)
    ),
    "esam": Case(
        optax_sam.esam,
        second_examples=0.5,
        needs_oracle=True,
        without_radius={"rho": 0.0, "example_fraction": 1.0},
    ),
    "ksam": Case(
        optax_sam.ksam,
        gradients=1.0,
        examples=0.5,
        needs_oracle=True,
        without_radius={"rho": 0.0, "fraction": 1.0},
    ),
    "reweighted_sam": Case(
        optax_sam.reweighted_sam,
        required={"weight": 0.5, "difference_step": 1e-2},
        needs_oracle=True,
        timed=Timed(arguments={"rho": 0.05, "weight": 0.1, "difference_step": 0.01}),
    ),
    "friendly_sam": Case(optax_sam.friendly_sam),
    "vasso": Case(optax_sam.vasso),
    "fisher_sam": Case(optax_sam.fisher_sam, is_scale_free=False),
    "sam_on": Case(
        optax_sam.sam_on,
        {"rho": 0.5},
        {"mask": rows.biases},
        timed=Timed("sam_on(vectors)", {"mask": rows.is_vector}),
    ),
    "usam": Case(optax_sam.usam, is_scale_free=False),
    "multistep_sam": Case(
        optax_sam.multistep_sam,
        gradients=3.0,
        loops=1,
        timed=Timed("multistep_sam(num_steps=2)", {"rho": 0.05, "num_steps": 2}),
    ),
    "gsam": Case(optax_sam.gsam),
    "gradient_norm_penalty": Case(optax_sam.gradient_norm_penalty),
    "wsam": Case(optax_sam.wsam),
    "sagm": Case(optax_sam.sagm, {"alpha": 0.02}, is_scale_free=False, without_radius=None),
    "bilateral_sam": Case(
        optax_sam.bilateral_sam,
        gradients=3.0,
        without_radius={"rho": 0.0, "lower_rho": 0.0},
        timed=Timed(straight=True),
    ),
    "sparse_sam": Case(
        optax_sam.sparse_sam,
        {"mask": "dynamic", "sparsity": 0.5, "refresh_steps": 2, "total_steps": 8},
        conditionals=1,
        timed=Timed(
            'sparse_sam(mask="dynamic")',
            {"rho": 0.05, "mask": "dynamic", "total_steps": rows.TRAINING_STEPS},
            straight=False,
        ),
    ),
    "fisher_mask_sam": Case(
        optax_sam.fisher_mask_sam,
        {"refresh_steps": 2, "num_samples": 4},
        gradients=2.25,
        loops=1,
        conditionals=1,
        needs_oracle=True,
        timed=Timed(
            "fisher_mask_sam(num_samples=8)", {"rho": 0.05, "num_samples": 8}, None, more={"calls": 10}
        ),
    ),
    "zsharp": Case(optax_sam.zsharp),
    "lesam": Case(optax_sam.lesam, {"budget": 0.1}, is_scale_free=False, without_radius={"budget": 0.0}),
    "fan_scaled_sam": Case(optax_sam.fan_scaled_sam),
    "spectral_sam": Case(optax_sam.spectral_sam, loops=2),
    "functional_sam": Case(
        optax_sam.functional_sam,
        required={"outputs": rows.logits, "output_losses": rows.cross_entropy},
        needs_oracle=True,
        timed=Timed("functional_sam, losses as outputs"),
    ),
    "preconditioned_sam": Case(optax_sam.preconditioned_sam, needs_oracle=True),
    "sam_sps": Case(optax_sam.sam_sps, needs_oracle=True, without_radius=None),
    "fgsam": Case(
        optax_sam.fgsam,
        required={"surrogate_losses": surrogate_losses},
        needs_oracle=True,
        without_radius=None,
        timed=Timed("fgsam, network as surrogate", straight=True),
    ),
    "fgsam_plus": Case(
        optax_sam.fgsam_plus,
        required={"surrogate_losses": surrogate_losses},
        gradients=3.0,
        gated=True,
        conditionals=2,
        needs_oracle=True,
        without_radius=None,
        timed=Timed("fgsam_plus, network as surrogate", gradients=None, more={"calls": 10}),
    ),
    "random_perturbation": Case(
        optax_sam.random_perturbation,
        gradients=1.0,
        examples=0.5,
        needs_oracle=True,
        without_radius={"noise_scale": 0.0, "split_batch": False},
        perturbs_by_gradient=False,
    ),
    "adaptive_random_perturbation": Case(
        optax_sam.adaptive_random_perturbation,
        without_radius={"noise_scale": 0.0},
        perturbs_by_gradient=False,
        **AHEAD,
    ),
    "random_sam": Case(
        optax_sam.random_sam,
        starts_at_params=False,
        needs_oracle=True,
        without_radius={"rho": 0.0, "noise_scale": 0.0},
    ),
    "momentum_sam": Case(optax_sam.momentum_sam, **AHEAD, timed=Timed(**ONE_GRADIENT)),
    "single_step_sam": Case(optax_sam.single_step_sam, **AHEAD, timed=Timed(**ONE_GRADIENT)),
    "persistent_sam": Case(
        optax_sam.persistent_sam, **AHEAD, is_scale_free=False, timed=Timed(**ONE_GRADIENT)
    ),
    "extrapolation": Case(
        optax_sam.extrapolation,
        required={"step_size": 0.05},
        without_radius={"step_size": 0.0},
        **AHEAD,
        timed=Timed(**ONE_GRADIENT),
    ),
    "eigen_sam": Case(
        optax_sam.eigen_sam,
        {"refresh_steps": 2, "power_iterations": 2},
        gradients=6.0,
        hessian_products=2,
        loops=1,
        conditionals=1,
        timed=Timed(gradients=None, straight=False, more={"calls": 10}),
    ),
    "focal_sam": Case(
        optax_sam.focal_sam,
        required={"class_frequencies": (6, 3, 1), "labels": rows.label, "weight": 0.8, "gamma": 1.0},
        gradients=3.0,
        needs_oracle=True,
    ),
    "graphsam": Case(
        optax_sam.graphsam,
        required={"refresh_steps": 3},
        **AHEAD | {"gradients": 2.0},
        conditionals=1,
        timed=Timed(None, {"refresh_steps": 100, "rho": 0.05}, None, more={"calls": 10}),
    ),
}
"""The rest of the family, each made of pieces. The row of a new method goes here."""

OPTIMIZERS: dict[str, Case] = {
    "adasam": Case(optax_sam.adasam, required={"learning_rate": 1e-3}),
    "bsam": Case(
        optax_sam.bsam,
        required={"num_examples": NUM_EXAMPLES},
        starts_at_params=False,
        needs_oracle=True,
        loops=1,
        timed=Timed(arguments={"num_examples": rows.TRAINING_EXAMPLES}),
    ),
}
"""Whole optimizers, whose guarantees are others, and stand in files of their own."""

ROWS = {**METHODS, **FAMILY, **OPTIMIZERS}
"""Every public method by its name."""


VARIANTS: dict[str, Case] = {
    **METHODS,
    "ausam_strata": METHODS["ausam"].but(own={"strata": 8}),
    "ausam_gradient_norm": METHODS["ausam"].but(own={"score": "gradient_norm"}, gradients=1.5),
    "tsam_uniform": METHODS["tsam"].but(own={"radius": 0.1, "num_samples": 2, "noise": "uniform"}),
    "m_sam": METHODS["sam"].but(wrap=rows.slices(), needs_oracle=True, loops=2),
    "m_sam_vmap": METHODS["sam"].but(wrap=rows.slices("vmap"), needs_oracle=True),
    "accumulated": METHODS["sam"].but(wrap=lambda m: optax_sam.accumulated(m, 4), needs_oracle=True, loops=2),
    "m_rst": METHODS["rst"].but(wrap=rows.slices(), needs_oracle=True, loops=2),
    "every": Case(rows.every_third, gated=True),
}
"""The methods, and forms of them that run other code."""

WRAPPED = [*METHODS, "accumulated", "m_sam", "m_rst"]
"""The methods, and wrappers around an ungated and a gated one."""

EVERY = [*WRAPPED, *FAMILY]
"""Those, and the rest of the family."""

GATED = [name for name, case in VARIANTS.items() if case.gated]

CASES = {**VARIANTS, **FAMILY}
"""Every case by its name."""

REPRESENTATIVE = (
    "sam",
    "vsam",  # gated, keeps a gate and a gradient
    "ausam",  # chooses examples, keeps their scores
    "m_rst",  # in slices, gated
    "momentum_sam",  # keeps a direction, starts ahead
    "sparse_sam",  # keeps a mask
    "esam",  # fewer examples in the second gradient
    "fgsam_plus",  # a surrogate, gated, keeps a gradient
    "eigen_sam",  # Hessian products
)
"""One case or more of each kind, of the kinds that `kinds_of` knows.

Each method alone is compared with its reference, and asked by one compiled step for what it guarantees, in
`make test`. Products of all methods with wrappers, devices, dtypes and other transformations are asked there
of these; of all the others, in `make test-slow`.
"""


def kinds_of(case: Case) -> set[str]:
    """What tells a method from others in products: the state that it keeps, where it looks and at what."""
    state = jax.eval_shape(case.make().init, init_params())
    pieces = ("start", "direction", "gate", "reuse", "ascent")
    traits = {
        "gated": case.gated,
        "starts elsewhere": not case.starts_at_params,
        "chooses examples": case.examples < 1,
        "other examples in the second gradient": case.second_examples is not None,
        "needs losses": case.needs_oracle,
        "a surrogate": "surrogate_losses" in case.required,
        "Hessian products": case.hessian_products > 0,
        "wrapped": case.wrap is not Case.wrap,
    }
    return {f"keeps a {piece}" for piece in pieces if jax.tree.leaves(getattr(state, piece))} | {
        trait for trait, has in traits.items() if has
    }


def over(names: Iterable[Any], kept: Container[Any] = REPRESENTATIVE) -> list[Any]:
    """Names for `parametrize`: those that do not represent their kind are slow."""
    import pytest  # which the benchmarks, that read this file, do without

    return [name if name in kept else pytest.param(name, marks=pytest.mark.slow) for name in names]


def make_step(method: optax_sam.SharpnessAware, tx: Any, loss_fn: Any = losses, **fixed: Any) -> Any:
    """The training step of the contract."""

    def step(params, state, batch, indices):
        loss, grads, oracle = method.value_and_grad(loss_fn)(
            params, batch, state=state, indices=indices, **fixed
        )
        updates, state = tx.update(grads, state, params, oracle=oracle)
        return optax.apply_updates(params, updates), state, loss

    return step


def one_step(
    method: optax_sam.SharpnessAware,
    params: Any,
    batch: Any,
    loss_fn: Any = losses,
    state: Any = None,
    indices: Any = None,
    **fixed: Any,
) -> tuple[Any, Any, Any]:
    """`(descent, state, first gradient)` of one jitted step of the method alone."""
    state = method.init(params) if state is None else state
    indices = make_indices() if indices is None else indices

    @jax.jit
    def step(params, state, batch, indices):
        _, grads, oracle = method.value_and_grad(loss_fn)(params, batch, state=state, indices=indices)
        return *method.update(grads, state, params, oracle=oracle, **fixed), grads

    return step(params, state, batch, indices)


@functools.cache
def first_step(name: str, **fixed: Any) -> tuple[Any, Any, Any]:
    """`one_step` of a case at the first parameters and batch, with which many tests compare."""
    return one_step(CASES[name].make(), init_params(), make_batch(), **fixed)


def before_sgd(method: optax_sam.SharpnessAware, **fixed: Any) -> tuple[Any, Any]:
    """`(tx, step)`: a method before SGD, and its training step, to be compiled when it is called."""
    tx = optax.chain(method, optax.sgd(0.1, momentum=0.9))
    return tx, jax.jit(make_step(method, tx, **fixed))


@functools.cache
def compiled(name: str) -> tuple[Any, Any]:
    """The same of a case; many tests share its compiled step."""
    return before_sgd(CASES[name].make())


def train(
    method: optax_sam.SharpnessAware | str,
    *,
    steps: int = 4,
    params: Any = None,
    dtype: Any = jnp.float32,
    **fixed: Any,
) -> tuple[Any, Any, jax.Array]:
    """Some steps of a method, or of a case by its name, on changing batches: `(params, state, losses)`."""
    tx, step = compiled(method) if isinstance(method, str) and not fixed else before_sgd(method, **fixed)
    params = init_params(dtype) if params is None else params
    state, seen = tx.init(params), []
    for number in range(steps):
        batch = make_batch(number, dtype=dtype)
        params, state, loss = step(params, state, batch, make_indices(number))
        seen.append(loss)
    return params, state, jnp.stack(seen)
