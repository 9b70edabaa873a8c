"""Where, and on which examples, the first gradient of a step is taken."""

import dataclasses
import math
from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp

from optax_sam import checks, per_example, sharding, trees
from optax_sam.hyperparameters import Scalar
from optax_sam.oracle import Evaluation, Oracle
from optax_sam.pieces import Context
from optax_sam.selections import draw


@dataclasses.dataclass(frozen=True)
class AtParams:
    """See `at_params`."""

    needs_oracle: ClassVar[bool] = False
    perturbs: ClassVar[bool] = False

    @property
    def evaluations(self) -> int:
        return 0

    def init(self, params: Any) -> Any:
        del params
        return ()

    def begin(self, state: Any, opt_state: Any, context: Context) -> tuple[Any, Oracle]:
        del state, opt_state
        return context.params, context.oracle

    def update(self, state: Any, here: Evaluation, there: Evaluation, context: Context) -> Any:
        del here, there, context
        return state


def at_params() -> AtParams:
    """At the parameters, on the whole batch."""
    return AtParams()


@dataclasses.dataclass(frozen=True)
class AtRandom(AtParams):
    """See `at_random`."""

    radius: Scalar
    noise_scale: Scalar
    noise: str

    needs_oracle: ClassVar[bool] = True
    perturbs: ClassVar[bool] = True

    def begin(self, state: Any, opt_state: Any, context: Context) -> tuple[Any, Oracle]:
        del state, opt_state
        normal, uniform = jax.random.split(context.key)
        z = _standard_normal(normal, context.params)
        norm = trees.norm(z)
        radius = jnp.asarray(self.radius).astype(norm.dtype)
        if self.noise == "gaussian":
            length = jnp.minimum(jnp.asarray(self.noise_scale).astype(norm.dtype) * norm, radius)
        else:
            length = radius * jax.random.uniform(uniform, dtype=norm.dtype) ** 1e-8
        unit = trees.divide(z, norm)
        noise = trees.map_wide(lambda x: trees.times(length, x), unit)
        return trees.add_perturbation(context.params, noise), context.oracle


def at_random(radius: Scalar = 1.0, noise_scale: Scalar = 1.0, noise: str = "gaussian") -> AtRandom:
    """At `params + n`, `n` random: Gaussian and clipped to a ball, or uniform in a ball.

    Gaussian: `n = z min(||z||, R) / ||z||`, `z ~ N(0, noise_scale^2)` in every entry. Uniform:
    `n = R u^(1/1e8) z / ||z||`, `u ~ U(0, 1)`: the ball of a space of 1e8 dimensions, in practice the
    sphere. All norms are global L2 norms.

    Args:
      radius: `R`, 0 or more.
      noise_scale: standard deviation of the Gaussian, 0 or more.
      noise: "gaussian" or "uniform".
    """
    checks.number("radius", radius, low=0)
    checks.number("noise_scale", noise_scale, low=0)
    checks.one_of("noise", noise, ("gaussian", "uniform"))
    return AtRandom(radius, noise_scale, noise)


class ScoreState(NamedTuple):
    """State of `drawn_by_score`.

    Attributes:
      score_sum: `float[num_examples]`, sum of the scores that an example was given.
      times_scored: `float[num_examples]`, how often it was given one. Both change for drawn examples,
        in perturbed steps.
    """

    score_sum: jax.Array
    times_scored: jax.Array


@dataclasses.dataclass(frozen=True)
class DrawnByScore:
    """See `drawn_by_score`."""

    num_examples: int
    fraction: float
    score_range: tuple[float, float]
    ramp_steps: int
    score: str
    strata: int

    needs_oracle: ClassVar[bool] = True
    perturbs: ClassVar[bool] = False

    @property
    def evaluations(self) -> int:
        return 0 if self.score == "loss_difference" else 1

    def init(self, params: Any) -> ScoreState:
        del params
        return ScoreState(jnp.zeros([self.num_examples], float), jnp.zeros([self.num_examples], float))

    def begin(self, state: ScoreState, opt_state: Any, context: Context) -> tuple[Any, Oracle]:
        del opt_state
        oracle = context.oracle
        if oracle.indices is None:
            raise ValueError(
                "indices=None, but the method keeps a score per example: pass the examples' numbers "
                "in the data set, indices=int[batch]."
            )
        if oracle.indices.dtype.itemsize < 4:
            oracle = dataclasses.replace(oracle, indices=oracle.indices.astype(jnp.int32))
        real = self._in_range(oracle.indices)
        weights = real.astype(float)
        if oracle.weights is not None:
            weights = jnp.where(real, oracle.weights, jnp.zeros_like(oracle.weights))
        oracle = dataclasses.replace(oracle, weights=weights, needs_losses=True)
        if oracle.whole_batch:
            return context.params, oracle
        log_weights = self.log_weights(state, oracle.indices, weights, context.step)
        return context.params, oracle.take(
            draw(log_weights, self._num_drawn(oracle.size), self.strata, context.key)
        )

    def log_weights(
        self, state: ScoreState, indices: jax.Array, weights: jax.Array, step: jax.Array
    ) -> jax.Array:
        """`log q`, `float[batch]`: where each example stands between the batch's scores; -inf for padding."""
        indices, real = map(sharding.replicated, (indices, weights != 0))
        seen = state.times_scored > 0
        scores = jnp.where(seen, state.score_sum / jnp.where(seen, state.times_scored, 1), 1.0)
        scores = scores[jnp.clip(indices, 0, self.num_examples - 1)]
        lowest = jnp.min(jnp.where(real, scores, jnp.inf))
        spread = jnp.max(jnp.where(real, scores, -jnp.inf)) - lowest
        place = jnp.where(spread > 0, (scores - lowest) / jnp.where(spread > 0, spread, 1), 1.0)
        low, high = self.score_range
        ramp = jnp.minimum(step.astype(float) / self.ramp_steps, 1) if self.ramp_steps else 1.0
        q = low + place * ramp * (high - low)
        return jnp.where(real, jnp.log(jnp.where(q > 0, q, 1)), -jnp.inf)

    def update(self, state: ScoreState, here: Evaluation, there: Evaluation, context: Context) -> ScoreState:
        oracle = context.oracle
        if self.score == "loss_difference":
            scores = jnp.abs(there.losses - here.losses)
        else:
            size = None if oracle.num_slices == 1 else oracle.size // oracle.num_slices
            scores = per_example.gradient_norms(
                oracle.losses_alone, oracle.params, oracle.batch, microbatch_size=size
            )
        written = (oracle.weights != 0) & self._in_range(oracle.indices) & jnp.isfinite(scores)
        indices = jnp.where(written, oracle.indices, self.num_examples)
        indices, scores = map(sharding.replicated, (indices, scores))
        rows, first = jnp.unique(indices, return_index=True, size=indices.size, fill_value=self.num_examples)
        scores = scores[first].astype(state.score_sum.dtype)
        return ScoreState(
            state.score_sum.at[rows].add(scores, mode="drop"),
            state.times_scored.at[rows].add(jnp.ones_like(scores), mode="drop"),
        )

    def _in_range(self, indices: jax.Array) -> jax.Array:
        return (indices >= 0) & (indices < self.num_examples)

    def _num_drawn(self, size: int) -> int:
        if size % self.strata:
            raise ValueError(
                f"strata={self.strata} does not divide the batch of {size} examples: choose a divisor."
            )
        num_drawn = int(self.fraction * size / self.strata)
        if num_drawn < 1:
            enough = math.ceil(1000 * self.strata / size) / 1000
            raise ValueError(
                f"fraction={self.fraction} of a batch of {size} examples in strata={self.strata} "
                f"parts leaves no example: raise fraction to {enough:g} or more, or take a larger batch."
            )
        return num_drawn


def drawn_by_score(
    num_examples: int,
    fraction: float = 0.5,
    score_range: tuple[float, float] = (0.1, 0.5),
    ramp_steps: int = 0,
    score: str = "loss_difference",
    strata: int = 1,
) -> DrawnByScore:
    """At the parameters, on examples drawn without replacement by their scores (AUSAM).

    Example `i` has probability proportional to
    `q_i = smin + (score_i - min) / (max - min) (smax(t) - smin)`, minimum and maximum over the batch;
    `smax(t)` rises linearly from `smin` to its value within `ramp_steps` steps. A score is the mean
    of what the example was given whenever it was drawn, and 1 before. Arguments: see `ausam`.
    """
    checks.integer("num_examples", num_examples, low=1)
    checks.static_number("fraction", fraction, low=0, high=1)
    if fraction == 0:
        raise ValueError("fraction=0 leaves no example: pass a number above 0, up to 1.")
    if not isinstance(score_range, tuple | list) or len(score_range) != 2:
        raise TypeError(f"score_range={score_range!r} is no pair: pass two numbers (smin, smax).")
    low, high = score_range
    checks.static_number("score_range[0]", low, low=0)
    if low == 0:
        raise ValueError("score_range[0]=0 would never draw some examples: pass a number above 0.")
    checks.static_number("score_range[1]", high, low=low)
    checks.integer("ramp_steps", ramp_steps, low=0)
    checks.one_of("score", score, ("loss_difference", "gradient_norm"))
    checks.integer("strata", strata, low=1)
    return DrawnByScore(num_examples, fraction, (low, high), ramp_steps, score, strata)


def _standard_normal(key: jax.Array, params: Any) -> Any:
    """Independent standard normal entries like the inexact leaves; integer leaves get zeros."""
    leaves, treedef = jax.tree.flatten(params)
    keys = jax.random.split(key, max(len(leaves), 1))
    noise = [
        jax.random.normal(k, x.shape, x.dtype) if trees.is_inexact(x) else jnp.zeros_like(x)
        for k, x in zip(keys, leaves, strict=False)
    ]
    return jax.tree.unflatten(treedef, noise)
