"""vSAM's gate: how often a second gradient is worth paying for, estimated from how fast it changes."""

import dataclasses
from collections.abc import Callable
from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp

from optax_sam.arithmetic import shares, trees
from optax_sam.engine import checks
from optax_sam.engine.aliases import Params
from optax_sam.engine.hyperparameters import Count, CountOrZero, Share
from optax_sam.pieces.bases import Gate, Step

ROUNDING = 1e-4
"""How far below a whole number a rate may be that counts as it: a mean over slices makes 0.9999999 of 1."""


class VarianceRateState(NamedTuple):
    """State of `with_variance_rate`. A window begins when `position` is a multiple of its length.

    Attributes:
      rate: `float[]`, `s`: perturbed steps per window, before rounding down. Changes between windows.
      probability: `float[]`, of a perturbed step while the quota lasts. Changes between windows.
      used: `int32[]`, perturbed steps taken in this window.
      position: `int32[]`, steps since the warm-up, counted from 1.
      norms: `float[window]`, the last norms of the PSF, newest last. Changes in perturbed steps,
        as do the next two.
      ratios: `float[window]`, the last ratios of the norm of the PSF and that of the gradient.
      variances: `float[window]`, the last variances of the norms, within slices of similar norms.
    """

    rate: jax.Array
    probability: jax.Array
    used: jax.Array
    position: jax.Array
    norms: jax.Array
    ratios: jax.Array
    variances: jax.Array


@dataclasses.dataclass(frozen=True)
class WithVarianceRate(Gate):
    """See `with_variance_rate`."""

    window: int
    slices: int
    max_rate: float
    rate_gain: tuple[float, float]
    warmup_steps: int
    tail: int | Callable[[Any], Any]

    asks_anew: ClassVar[bool] = False

    def init(self, params: Params, key: jax.Array) -> VarianceRateState:
        del params, key
        return VarianceRateState(
            rate=jnp.ones([], float),
            probability=jnp.full([], 0.5, float),
            used=jnp.zeros([], jnp.int32),
            position=jnp.ones([], jnp.int32),
            norms=jnp.zeros([self.window], float),
            ratios=jnp.zeros([self.window], float),
            variances=jnp.zeros([self.window], float),
        )

    def due(self, state: VarianceRateState, step: Step) -> jax.Array:
        left = jnp.floor(state.rate + ROUNDING).astype(jnp.int32) - state.used
        uniform = jax.random.uniform(step.key, dtype=jnp.float32).astype(state.probability.dtype)
        chosen = (left > 0) & (uniform >= 1 - state.probability)
        forced = self.window - state.position % self.window <= left
        return (step.count < self.warmup_steps) | chosen | forced

    def update(self, state: VarianceRateState, step: Step) -> VarianceRateState:
        if step.perturbed is not None:
            state = self._record(state, step.grads, step.perturbed_grads, step.params)
        warming_up = step.count < self.warmup_steps
        state = state._replace(
            used=jnp.where(warming_up, jnp.ones_like(state.used), state.used),
            position=state.position + (~warming_up).astype(jnp.int32),
        )
        new_window = ~warming_up & (state.position % self.window == 0)
        return trees.where(new_window, self._renewed(state), state)

    def _record(self, state, grads, perturbed_grads, params) -> VarianceRateState:
        """Appends the norms that this perturbed step has shown."""
        grads, perturbed_grads = self._looked_at(grads, perturbed_grads, params)
        psf = trees.map_wide(lambda p, g: p - g, perturbed_grads, grads)
        psf_norm = trees.norm(psf).astype(state.norms.dtype)
        grad_norm = trees.norm(grads).astype(state.norms.dtype)
        norms = _push(state.norms, psf_norm)
        slices = jnp.sort(norms).reshape(self.slices, -1)
        return state._replace(
            used=state.used + 1,
            norms=norms,
            ratios=_push(state.ratios, _divide(psf_norm, grad_norm)),
            variances=_push(state.variances, jnp.var(slices, axis=1, ddof=1).mean()),
        )

    def _renewed(self, state: VarianceRateState) -> VarianceRateState:
        """`s (1 + a1 dR + a2 dV)`, the changes and the result clipped; a new quota begins."""
        ratio_gain, variance_gain = self.rate_gain
        growth = (
            1
            + ratio_gain * jnp.clip(_mean_relative_change(state.ratios), -1, 1)
            + variance_gain * jnp.clip(_mean_relative_change(state.variances), -1, 1)
        )
        most = max(1, shares.down(self.max_rate, self.window))
        rate = jnp.clip(state.rate * growth, 1, most)
        return state._replace(rate=rate, probability=rate / self.window, used=jnp.zeros_like(state.used))

    def _looked_at(self, grads, perturbed_grads, params) -> tuple[list[Any], list[Any]]:
        """The leaves whose norms are watched."""
        leaves = jax.tree.leaves(grads), jax.tree.leaves(perturbed_grads)
        if callable(self.tail):
            chosen = [bool(c) for c in jax.tree.leaves(self.tail(params))]
            if len(chosen) != len(leaves[0]):
                raise ValueError(
                    f"tail returned {len(chosen)} bools for {len(leaves[0])} parameter leaves: "
                    f"return a tree of bools like params."
                )
        else:
            first = len(leaves[0]) - self.tail
            chosen = [number >= first for number in range(len(leaves[0]))]
        looked_at = [[x for x, c in zip(xs, chosen, strict=True) if c] for xs in leaves]
        return looked_at[0], looked_at[1]


def with_variance_rate(
    window: Count = 50,
    slices: Count = 5,
    max_rate: Share = 0.8,
    rate_gain: tuple[float, float] = (0.13, 0.13),
    warmup_steps: CountOrZero = 0,
    tail: int | Callable[[Any], Any] = 10,
) -> WithVarianceRate:
    """Perturb `int(s)` steps of every window, `s` following how fast the PSF changes (vSAM).

    The PSF is `g' - g`. At the end of each window
    `s <- clip(s (1 + a1 dR + a2 dV), 1, int(max_rate window))`, where `dR` is the mean relative
    change of `||PSF|| / ||g||` over the last `window` perturbed steps, and `dV` that of the variance
    of `||PSF||`, both clipped to [-1, 1]. Within a window, steps are drawn with probability
    `s / window` until the quota `int(s)` is spent. What is left is spent in the last steps.

    Args:
      window: steps in a window. A multiple of `slices`, twice it or more.
      slices: the number of slices of the sorted norms. The variance is taken in each.
      max_rate: the largest part of a window that may be perturbed. From 1 / window to 1.
      rate_gain: `(a1, a2)`.
      warmup_steps: steps at the start that are all perturbed, before the first window.
      tail: the norms look at the last `tail` leaves of the parameters, or at all of them where there are
        fewer. The order is that of `jax.tree.leaves`, which sorts the keys of a dict. Or a function from
        params to a tree of bools.
    """
    checks.integer("slices", slices, low=1)
    checks.integer("window", window, low=2 * slices)
    if window % slices:
        raise ValueError(f"window={window} is no multiple of slices={slices}: choose one that is.")
    checks.static_number("max_rate", max_rate, low=1 / window, high=1)
    if not isinstance(rate_gain, tuple | list) or len(rate_gain) != 2:
        raise TypeError(f"rate_gain={rate_gain!r} is no pair: pass two numbers (a1, a2).")
    for gain in rate_gain:
        checks.number("rate_gain", gain)
    checks.integer("warmup_steps", warmup_steps, low=0)
    if not callable(tail):
        checks.integer("tail", tail, low=1)
    return WithVarianceRate(window, slices, max_rate, tuple(rate_gain), warmup_steps, tail)


def _push(values: jax.Array, value: jax.Array) -> jax.Array:
    """Drops the oldest value; what overflowed is kept as the largest finite number."""
    return jnp.append(values[1:], jnp.nan_to_num(value))


def _divide(x: jax.Array, y: jax.Array) -> jax.Array:
    """`x / y`, and 0 where `y` is 0."""
    return jnp.where(y != 0, x / jnp.where(y != 0, y, jnp.ones_like(y)), jnp.zeros_like(x))


def _mean_relative_change(values: jax.Array) -> jax.Array:
    """The mean of `(x[l+1] - x[l]) / x[l]`; 0 where `x[l]` is not yet filled."""
    return jnp.mean(_divide(values[1:] - values[:-1], values[:-1]))
