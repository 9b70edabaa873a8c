"""Whole training steps of every method, and what each is expected to cost."""

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax import lax

import optax_sam

Step = Callable[[Any, Any, Any, Any], tuple[Any, Any, Any, jax.Array]]
"""`(params, stats, state, batch) -> (params, stats, state, loss)`; all but the batch are donated."""

Losses = Callable[[Any, Any, Any], tuple[jax.Array, Any]]

RHO = 0.05
LEARNING_RATE = 1e-3


@dataclasses.dataclass(frozen=True)
class Case:
    """One program.

    Attributes:
      name: in the table.
      build: from the losses: the initial state from the parameters, and the step.
      gradients: evaluations per step, in units of one full batch.
      straight: whether compiled FLOPs tell the evaluations; not where there is a loop or a
        conditional around a gradient, of which the compiler counts each body once, taken or not.
      limit: another case, and how many times its time this one may take.
      most_flops: the largest number of compiled FLOPs, relative to SGD.
    """

    name: str
    build: Callable[[Losses], tuple[Callable[[Any], Any], Step]]
    gradients: float
    straight: bool = True
    limit: tuple[str, float] | None = None
    most_flops: float = math.inf


def base() -> optax.GradientTransformation:
    """The base optimizer of every case."""
    return optax.sgd(LEARNING_RATE, momentum=0.9)


def sgd(losses: Losses) -> tuple[Callable[[Any], Any], Step]:
    """The plain training step that all others are compared with."""
    tx = base()

    def step(params, stats, state, batch):
        def loss_fn(params):
            values, new = losses(params, stats, batch)
            return values.mean(), new

        (loss, stats), grads = jax.value_and_grad(loss_fn, has_aux=True)(params)
        updates, state = tx.update(grads, state, params)
        return optax.apply_updates(params, updates), stats, state, loss

    return tx.init, step


def contrib_sam(losses: Losses) -> tuple[Callable[[Any], Any], Step]:
    """SAM as Optax has it, in opaque mode."""
    ascent = optax.chain(optax.contrib.normalize(), optax.sgd(RHO))
    tx = optax.contrib.sam(base(), ascent, opaque_mode=True)

    def step(params, stats, state, batch):
        def loss_fn(params):
            values, new = losses(params, stats, batch)
            return values.mean(), new

        def grad_fn(params, _):
            return jax.grad(loss_fn, has_aux=True)(params)[0]

        (loss, new), grads = jax.value_and_grad(loss_fn, has_aux=True)(params)
        updates, state = tx.update(grads, state, params, grad_fn=grad_fn)
        return optax.apply_updates(params, updates), new, state, loss

    return tx.init, step


def ours(
    method: optax_sam.SharpnessAware, perturb: bool | None = None
) -> Callable[[Losses], tuple[Callable[[Any], Any], Step]]:
    """The training step of one of this library's methods."""
    tx = optax.chain(method, base())

    def build(losses):
        def step(params, stats, state, batch):
            def loss_fn(params, batch):
                return losses(params, stats, batch)

            first = method.value_and_grad(loss_fn, has_aux=True)
            (loss, new), grads, oracle = first(params, batch, state=state, indices=batch["index"])
            updates, state = tx.update(grads, state, params, oracle=oracle, perturb=perturb)
            return optax.apply_updates(params, updates), _without_slices(new, stats), state, loss

        return tx.init, step

    return build


def cases() -> list[Case]:
    """Plain SGD first; every public method; gates decided by the program; slices of the batch."""
    sam, rst = optax_sam.sam(RHO), optax_sam.rst(RHO)
    grst, vsam = optax_sam.grst(RHO), optax_sam.vsam(RHO)
    closed, taken = optax_sam.rst(RHO, probability=0.0), optax_sam.rst(RHO, probability=1.0)
    ausam = optax_sam.ausam(50_000)
    by_norm = optax_sam.ausam(50_000, score="gradient_norm")
    m_sam = optax_sam.per_microbatch(sam, 8)
    m_sam_vmap = optax_sam.per_microbatch(sam, 8, loop="vmap")
    return [
        Case("sgd", sgd, 1),
        Case("sgd, again", sgd, 1),
        Case("optax.contrib.sam", contrib_sam, 2),
        Case("sam", ours(sam), 2, limit=("optax.contrib.sam", 1.0)),
        Case("asam", ours(optax_sam.asam()), 2),
        Case("pugd", ours(optax_sam.pugd()), 2),
        Case("rst, perturb=True", ours(rst, True), 2),
        Case("rst, perturb=False", ours(rst, False), 1, limit=("sgd", 1.05)),
        Case("grst, perturb=True", ours(grst, True), 2),
        Case("grst, perturb=False", ours(grst, False), 1, limit=("sgd", 1.05)),
        Case("vsam, perturb=True", ours(vsam, True), 2),
        Case("vsam, perturb=False", ours(vsam, False), 1),
        Case("rst(probability=0)", ours(closed), 1, False, ("sgd", 1.05)),
        Case("rst(probability=1)", ours(taken), 2, False, ("rst, perturb=True", 1.05)),
        Case("ausam(fraction=0.5)", ours(ausam), 1, limit=("sgd", 1.0), most_flops=1.05),
        Case('ausam(score="gradient_norm")', ours(by_norm), 1.5, False),
        Case("tsam(num_samples=3)", ours(optax_sam.tsam(RHO)), 6, False),
        Case("accumulated(sam, 8)", ours(optax_sam.accumulated(sam, 8)), 2, False),
        Case("per_microbatch(sam, 8)", ours(m_sam), 2, False),
        Case('per_microbatch(sam, 8, "vmap")', ours(m_sam_vmap), 2, False),
    ] + family()


def family() -> list[Case]:
    """The rest of the public methods, by what they cost."""
    looksam, s2sam = optax_sam.looksam(RHO), optax_sam.single_step_sam(RHO)
    arwp, rwp = optax_sam.adaptive_random_perturbation(), optax_sam.random_perturbation()
    fisher_mask = optax_sam.fisher_mask_sam(RHO, num_samples=8)
    dynamic_mask = optax_sam.sparse_sam(RHO, mask="dynamic", total_steps=10_000)
    return [
        Case("momentum_sam", ours(optax_sam.momentum_sam(RHO)), 1, limit=("sgd", 1.05), most_flops=1.03),
        Case("single_step_sam", ours(s2sam), 1, limit=("sgd", 1.05), most_flops=1.03),
        Case("extrapolation", ours(optax_sam.extrapolation(RHO)), 1),
        Case("adaptive_random_perturbation", ours(arwp), 1, False),
        Case("random_perturbation", ours(rwp), 1, False),
        Case("ksam(fraction=0.5)", ours(optax_sam.ksam(RHO)), 1, False),
        Case("looksam, perturb=True", ours(looksam, True), 2),
        Case("looksam, perturb=False", ours(looksam, False), 1, limit=("sgd", 1.03)),
        Case("aesam, perturb=False", ours(optax_sam.aesam(1000), False), 1, limit=("sgd", 1.03)),
        Case("late_sam(10**6)", ours(optax_sam.late_sam(10**6, RHO)), 1, False, ("sgd", 1.03)),
        Case("esam", ours(optax_sam.esam(RHO)), 1.5, False),
        Case(
            "reweighted_sam", ours(optax_sam.reweighted_sam(RHO, weight=0.1, difference_step=0.01)), 2, False
        ),
        Case("friendly_sam", ours(optax_sam.friendly_sam(RHO)), 2),
        Case("vasso", ours(optax_sam.vasso(RHO)), 2),
        Case("fisher_sam", ours(optax_sam.fisher_sam(RHO)), 2),
        Case("usam", ours(optax_sam.usam(RHO)), 2),
        Case("random_sam", ours(optax_sam.random_sam(RHO)), 2, False),
        Case("gsam", ours(optax_sam.gsam(RHO)), 2),
        Case("gradient_norm_penalty", ours(optax_sam.gradient_norm_penalty(RHO)), 2),
        Case("wsam", ours(optax_sam.wsam(RHO)), 2),
        Case("bilateral_sam", ours(optax_sam.bilateral_sam(RHO)), 3),
        Case("multistep_sam(num_steps=2)", ours(optax_sam.multistep_sam(RHO, 2)), 3, False),
        Case("sparse_sam(dynamic)", ours(dynamic_mask), 2, False),
        Case("fisher_mask_sam(num_samples=8)", ours(fisher_mask), 2, False),
    ]


def traps() -> list[Case]:
    """One gradient step: straight-line, in a taken conditional, and there with canonical convolutions."""
    canonical = optax_sam.canonical_convolutions
    return [
        Case("gradient", in_conditional(None), 1),
        Case("in lax.cond", in_conditional(lambda fn: fn), 1, False),
        Case("in lax.cond, canonical", in_conditional(canonical), 1, False, ("gradient", 1.05)),
    ]


def in_conditional(
    transform: Callable[[Any], Any] | None,
) -> Callable[[Losses], tuple[Callable[[Any], Any], Step]]:
    """A step without optimizer, the gradient of which is taken in a conditional; None: in none."""

    def build(losses):
        def step(params, stats, taken, batch):
            def loss_fn(params):
                values, new = losses(params, stats, batch)
                return values.mean(), new

            gradient = jax.value_and_grad(loss_fn, has_aux=True)
            if transform is None:
                (loss, new), grads = gradient(params)
            else:

                def skipped(params):
                    return (jnp.zeros([]), stats), jax.tree.map(jnp.zeros_like, params)

                (loss, new), grads = lax.cond(taken, transform(gradient), skipped, params)
            updates = optax.tree.scale(-LEARNING_RATE, grads)
            return optax.apply_updates(params, updates), new, taken, loss

        return lambda params: jnp.ones([], bool), step

    return build


def _without_slices(new: Any, old: Any) -> Any:
    """Statistics as they were: the mean over slices of the batch, where there are slices."""
    return jax.tree.map(lambda x, y: x.mean(0) if x.ndim > y.ndim else x, new, old)
