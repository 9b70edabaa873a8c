"""bSAM: SAM as a relaxation of Bayes, an optimizer that learns a variance for each weight."""

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from optax_sam.arithmetic import means, random_trees, sharding, trees
from optax_sam.engine import checks
from optax_sam.engine import state as states
from optax_sam.engine.aliases import Grads, Params
from optax_sam.engine.arrays import like_arrays
from optax_sam.engine.hyperparameters import (
    AtLeastOne,
    AtLeastZero,
    Count,
    FixedNotNegative,
    FixedPositive,
    FixedProbability,
    NotNegative,
    Radius,
    Scalar,
    ScalarOrSchedule,
    Seed,
    at_step,
)
from optax_sam.engine.meter import Spent, metered, spend
from optax_sam.engine.objective import Evaluation
from optax_sam.engine.state import SharpnessAwareState
from optax_sam.engine.step_oracle import Given, StepOracle
from optax_sam.engine.transformation import Begun, Method, Outcome, SharpnessAware, from_method
from optax_sam.wrappers.slices import of_slice, parts_and_shared


class BSAMState(NamedTuple):
    """State of `bsam`, kept as the state of the ascent: trees like the parameters, new every step.

    Attributes:
      mean_gradient: `m`.
      scale: `s`, the precision of each weight in parts of the number of examples.
    """

    mean_gradient: Any
    scale: Any


class Found(NamedTuple):
    """What a slice of the batch gives, and then the means over all slices.

    Attributes:
      grads: `g`.
      size: `|g|`, what is visible of it.
      perturbed: `g'`, the same.
      measured: `float[]` each, by the names of `info`.
      not_finite: `float[]`, 0 where both gradients are finite, else 1.
    """

    grads: Grads
    size: Any
    perturbed: Grads
    measured: dict[str, jax.Array]
    not_finite: jax.Array


@dataclasses.dataclass(frozen=True, eq=False)
class BSAM(Method):
    """See `bsam`.

    The beginning of a step takes both gradients of each slice, in one loop. A second loop would have to keep
    a tree of first gradients for each slice.
    """

    learning_rate: ScalarOrSchedule
    rho: ScalarOrSchedule
    b1: Scalar
    b2: Scalar
    num_effective: float
    decay: float
    damping: Scalar
    initial_scale: Scalar
    num_microbatches: int
    seed: Scalar

    @property
    def needs_oracle(self) -> bool:
        return True

    @property
    def perturbs_at_start(self) -> bool:
        return True

    @property
    def is_optimizer(self) -> bool:
        return True

    def init(self, params: Any) -> SharpnessAwareState:
        params = like_arrays("params", trees.plain(params))
        zeros = trees.map_inexact(jnp.zeros_like, trees.widen(trees.memory_like(params)))
        scale = trees.map_inexact(lambda x: jnp.full_like(jnp.real(x), self.initial_scale), zeros)
        return states.initial(self.seed, due=jnp.ones([], bool), ascent=BSAMState(zeros, scale))

    def begin(self, state: SharpnessAwareState, given: Given) -> Begun:
        number = self.num_microbatches
        parts, shared = parts_and_shared(number, state, given)
        shares = means.shares(parts.total, number, given.params)

        def on_slice(part):
            own, state_of_slice = of_slice(part, shared, number)
            with metered() as meter:
                found, aux = self._of_slice(state_of_slice, own)
            cost, finite = meter.spent.as_arrays()
            return found._replace(not_finite=1 - finite.astype(jnp.float32)), (aux, cost)

        found, ((aux, inner), cost) = means.mean_by_scan(on_slice, shares, parts)
        grads, of_aux = sharding.split_like(found.grads, given.params), means.shares_within(shares, inner)
        first = Evaluation(grads, found.measured["loss"], aux=aux, shares=of_aux)
        total = None if parts.total is None else parts.total.sum()
        spent = Spent(cost.sum() / number, found.not_finite == 0)
        return Begun(first, total=total, spent=spent, parts=found)

    def _of_slice(self, state: SharpnessAwareState, given: Given) -> tuple[Found, Any]:
        key = jax.random.fold_in(states.key_of(state), state.step)
        rho, scale = at_step(self.rho, state.step), state.ascent.scale
        noise = trees.like_masked(scale, random_trees.standard_normal(key, given.params))

        def deviation(z, s):
            return trees.times(1 / jnp.sqrt(trees.times(float(self.num_effective), s)), trees.widen(z))

        visible = trees.like_masked(scale, given.params)
        oracle = StepOracle(given, given.examples, given.params, visible)
        first = oracle.evaluate_unjudged(oracle.moved(trees.map_inexact(deviation, noise, scale)))
        wide = trees.widen(trees.like_masked(scale, first.grads))
        norm = trees.norm(wide)
        spend(0.0, jnp.isfinite(norm))
        perturbation = trees.map_inexact(
            lambda g, s: trees.times(rho, jnp.conj(g)) / s.astype(g.dtype), wide, scale
        )
        there = oracle.with_key(1).evaluate_moved(perturbation)
        measured = {
            "loss": first.loss,
            "grad_norm": norm,
            "perturbed_loss": there.loss,
            "perturbed_grad_norm": there.norm,
            "perturbation_norm": trees.norm(perturbation),
        }
        size = trees.map_inexact(jnp.abs, wide)
        found = Found(first.grads, size, trees.widen(there.grads), measured, jnp.zeros([]))
        return found, (first.aux, first.shares)

    def finish(
        self,
        grads: Grads,
        begun: Begun,
        state: SharpnessAwareState,
        params: Params,
        given: Given,
        perturb: bool | None,
    ) -> Outcome:
        del given, perturb
        found, old = begun.parts, state.ascent
        size, perturbed = (sharding.split_like(tree, params) for tree in (found.size, found.perturbed))
        rate = at_step(self.learning_rate, state.step)

        def momentum(m, g, w):
            decayed = jnp.conj(g).astype(m.dtype) + self.decay * w.astype(m.dtype)
            return trees.times(self.b1, m) + trees.times(1 - jnp.asarray(self.b1), decayed)

        def renewed(s, size):
            spread = jnp.sqrt(s) * size.astype(s.dtype)
            grown = spread + jnp.asarray(self.damping).astype(s.dtype) + self.decay
            return trees.times(self.b2, s) + trees.times(1 - jnp.asarray(self.b2), grown)

        mean = trees.map_inexact(momentum, old.mean_gradient, perturbed, trees.widen(params))
        updates = trees.map_inexact(lambda m, s: -trees.times(rate, m) / s.astype(m.dtype), mean, old.scale)
        updates = jax.tree.map(lambda u, g: u if trees.is_inexact(g) else jnp.zeros_like(g), updates, grads)
        updates = trees.cast_like(updates, grads)
        spent = begun.spent.plus(Spent(0.0, trees.all_finite(updates)))
        new = state._replace(
            step=jnp.asarray(optax.safe_increment(state.step)),
            ascent=trees.where(
                spent.finite, BSAMState(mean, trees.map_inexact(renewed, old.scale, size)), old
            ),
            diagnostics=states.diagnostics(state.diagnostics, spent, perturbed=True, **found.measured),
        )
        return Outcome(updates, new, found.measured["perturbed_loss"])


def bsam(
    num_examples: Count,
    learning_rate: NotNegative = 0.5,
    rho: Radius = 0.01,
    b1: FixedProbability = 0.9,
    b2: FixedProbability = 0.999,
    prior_precision: AtLeastZero = 40.0,
    damping: FixedNotNegative = 0.1,
    initial_scale: FixedPositive = 1.0,
    augmentation_factor: AtLeastOne = 4,
    num_microbatches: Count = 8,
    seed: Seed = 0,
) -> SharpnessAware:
    """bSAM: an Adam-like optimizer of a Gaussian over the weights, whose ascent is SAM's.

    SAM's maximum over a ball is a relaxation of the mean over a Gaussian in Bayes' objective. Taken
    seriously, this gives each weight a variance of its own. The optimizer learns the variances beside the
    weights.

    In each of `n` slices of the batch, with `N = augmentation_factor num_examples`,
    `wd = prior_precision / N`: `g = grad L(w + z / sqrt(N s))`, `z ~ N(0, I)`; `e = rho g / s`;
    `g' = grad L(w + e)`. With the means over slices
    `m = b1 m + (1 - b1) (g' + wd w)`, `w = w - learning_rate m / s`,
    `s = b2 s + (1 - b2) (sqrt(s) |g| + damping + wd)`, `w` by the old `s`.

    Args:
      num_examples: of the training set.
      learning_rate: a number, or a schedule of the step.
      rho: of the ascent, in units of `s / g`. A number or a schedule of the step.
      b1: decay of the momentum, from 0 to 1.
      b2: decay of `s`, from 0 to 1.
      prior_precision: of the Gaussian prior, 0 or more.
      damping: added to `s`, 0 or more.
      initial_scale: `s` at first, above 0.
      augmentation_factor: how many examples augmentation makes of one.
      num_microbatches: `n`, the number of slices. Must divide the batch.
      seed: of the noise. An integer, or an integer array.

    Returns:
      A `SharpnessAware` that is a whole optimizer. Its updates are added to the parameters. It needs an
      oracle. `aux` gets a leading axis of slices.

    Raises:
      ValueError: a number is outside its range. `n` does not divide the batch. `grad_fn` comes in place of an
        oracle.
      TypeError: `num_examples` or `num_microbatches` is no Python integer.

    Cost:
      2 gradients per step; two parameter-sized buffers, and two while it goes through the slices.

    Guarantees:
      The method's predictions are averages over samples `w + z / sqrt(N s)`. `s` is `opt_state.ascent.scale`.
      A step that is not finite leaves the state as it was. Its updates are not finite, and
      `finite(opt_state)` is False.

    Example:
      >>> import optax_sam
      >>> tx = optax_sam.bsam(num_examples=50_000, learning_rate=0.5)

    References:
      Thomas Moellenhoff, Mohammad Emtiyaz Khan, `SAM as an Optimal Relaxation of Bayes
      <https://arxiv.org/abs/2210.01620>`_, 2022; code github.com/team-approx-bayes/bayesian-sam.

    Deviations:
      None from the authors' code, except its warm-up and its schedule. Take those of Optax.
    """
    checks.integer("num_examples", num_examples, low=1)
    for name, value in (("learning_rate", learning_rate), ("rho", rho)):
        checks.number_or_schedule(name, value, low=0)
    for name, value in (("b1", b1), ("b2", b2)):
        checks.long_decay(name, value)
    checks.static_number("prior_precision", prior_precision, low=0)
    checks.number("damping", damping, low=0)
    checks.positive("initial_scale", initial_scale)
    checks.static_number("augmentation_factor", augmentation_factor, low=1)
    checks.integer("num_microbatches", num_microbatches, low=1)
    checks.seed(seed)
    num_effective = num_examples * augmentation_factor
    decay = prior_precision / num_effective
    return from_method(
        BSAM(
            learning_rate,
            rho,
            b1,
            b2,
            num_effective,
            decay,
            damping,
            initial_scale,
            num_microbatches,
            seed,
        )
    )
