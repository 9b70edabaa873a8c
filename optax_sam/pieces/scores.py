"""AUSAM's start: the examples of a step are drawn by a score for each example of the data set."""

import dataclasses
from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from optax_sam.arithmetic import batch_axis, sharding
from optax_sam.engine import checks
from optax_sam.engine.aliases import Params
from optax_sam.engine.hyperparameters import Count, CountOrZero, Fraction
from optax_sam.engine.step_oracle import StepOracle
from optax_sam.pieces.bases import Began, Start, Step
from optax_sam.pieces.selections import check_fraction, draw, number_of


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
class DrawnByScore(Start):
    """See `drawn_by_score`."""

    num_examples: int
    fraction: float
    score_range: tuple[float, float]
    ramp_steps: int
    score: str
    strata: int

    @property
    def asks_anew(self) -> bool:  # pyrefly: ignore[bad-override]
        return self.score == "gradient_norm"

    @property
    def compares(self) -> bool:  # pyrefly: ignore[bad-override]
        return self.score == "loss_difference"

    def init(self, params: Params, key: jax.Array) -> ScoreState:
        del params, key
        return ScoreState(jnp.zeros([self.num_examples], float), jnp.zeros([self.num_examples], float))

    def begin(self, state: ScoreState, step: Step, climb: Callable[[], Any]) -> Began:
        del climb
        oracle = step.oracle.with_losses()
        indices = self._indices(oracle)
        _check_sees_the_batch(oracle)
        oracle = oracle.padded(self._in_range(indices))
        if oracle.whole_batch:
            return Began(step.params, oracle)
        log_weights = self.log_weights(state, indices, oracle.weights, step.count)
        number = number_of(self.fraction, oracle.examples, self.strata)
        return Began(step.params, oracle.take(draw(log_weights, number, self.strata, step.key)))

    def _indices(self, oracle: StepOracle) -> jax.Array:
        if oracle.indices is None:
            raise ValueError(
                "indices=None, but the method keeps a score per example: pass the examples' numbers "
                "in the data set, indices=int[batch]."
            )
        narrow = oracle.indices.dtype.itemsize < 4
        return oracle.indices.astype(jnp.int32) if narrow else oracle.indices

    def log_weights(
        self, state: ScoreState, indices: jax.Array, weights: jax.Array, step: jax.Array
    ) -> jax.Array:
        """`log q`, `float[batch]`: where an example stands among the batch's scores, -inf for padding."""
        real, indices = weights != 0, jnp.clip(indices, 0, self.num_examples - 1)
        score_sum, times_scored = (batch_axis.look_up(x, indices) for x in state)
        seen = times_scored > 0
        scores = jnp.where(seen, score_sum / jnp.where(seen, times_scored, 1), 1.0)
        # Both ends of a split array are one maximum, which is sent once.
        ends = jnp.max(jnp.stack([jnp.where(real, x, -jnp.inf) for x in (-scores, scores)]), axis=1)
        lowest, spread = -ends[0], ends[1] + ends[0]
        place = jnp.where(spread > 0, (scores - lowest) / jnp.where(spread > 0, spread, 1), 1.0)
        low, high = self.score_range
        ramp = jnp.minimum(step.astype(float) / self.ramp_steps, 1) if self.ramp_steps else 1.0
        q = low + place * ramp * (high - low)
        return jnp.where(real, jnp.log(jnp.where(q > 0, q, 1)), -jnp.inf)

    def update(self, state: ScoreState, step: Step) -> ScoreState:
        oracle = step.oracle
        if self.score == "loss_difference":
            scores = jnp.abs(step.perturbed.losses - step.first.losses)
            scores = jnp.where(step.distance > 0, scores, 0.0)  # not what rounding makes of the same point
        else:
            scores = oracle.gradient_norms(oracle.params)
        indices = self._indices(oracle)
        written = (oracle.weights != 0) & self._in_range(indices) & jnp.isfinite(scores)
        scores = scores.astype(state.score_sum.dtype)
        rows, scores = _in_order(jnp.where(written, indices, self.num_examples), scores)
        rows = rows.at[1:].set(jnp.where(rows[1:] == rows[:-1], self.num_examples, rows[1:]))
        return ScoreState(
            state.score_sum.at[rows].add(scores, mode="drop"),
            state.times_scored.at[rows].add(jnp.ones_like(scores), mode="drop"),
        )

    def _in_range(self, indices: jax.Array) -> jax.Array:
        return (indices >= 0) & (indices < self.num_examples)


def _in_order(indices: jax.Array, scores: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Both sorted by the indices, whole on every device; sent as one array, floats as their bits."""
    bits = scores.view(f"int{8 * scores.dtype.itemsize}")
    both = sharding.replicated(jnp.stack([indices.astype(bits.dtype), bits]))
    indices, bits = lax.sort((both[0], both[1]), num_keys=1)
    return indices, bits.view(scores.dtype)


def drawn_by_score(
    num_examples: Count,
    fraction: Fraction = 0.5,
    score_range: tuple[float, float] = (0.1, 0.5),
    ramp_steps: CountOrZero = 0,
    score: Literal["loss_difference", "gradient_norm"] = "loss_difference",
    strata: Count = 1,
) -> DrawnByScore:
    """At the parameters, on examples drawn without replacement by their scores (AUSAM).

    Example `i` has probability proportional to `q_i = smin + (score_i - min) / (max - min) (smax(t) - smin)`,
    minimum and maximum over the batch. `smax(t)` rises linearly from `smin` to its value within `ramp_steps`
    steps. A score is the mean of what the example was given whenever it was drawn, and 1 before. With a
    difference of losses, the selection must see the same examples and loss as this start. Arguments: see
    `ausam`.
    """
    checks.integer("num_examples", num_examples, low=1)
    check_fraction(fraction)
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


def _check_sees_the_batch(oracle: StepOracle) -> None:
    """Refuses a part of the batch, of whose scores every other device would know nothing."""
    axes = sharding.varying_axes((oracle.batch, oracle.indices)) - sharding.varying_axes(oracle.params)
    if axes:
        raise ValueError(
            f"batch and indices differ over the axis {min(axes)!r} of a shard_map, but the scores are one "
            f"array for the whole data set, the same on every device. Take the step under plain jax.jit, "
            f"outside of the shard_map, and split the batch over the mesh, "
            f"jax.device_put(batch, NamedSharding(mesh, PartitionSpec({min(axes)!r})))."
        )
