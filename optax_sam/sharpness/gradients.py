"""How gradients differ: between examples, and between a point and SAM's."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from optax_sam import per_example
from optax_sam.arithmetic import batch_axis, keys, random_trees, sharding, trees
from optax_sam.engine import checks
from optax_sam.sharpness.balls import climbed
from optax_sam.sharpness.problem import (
    Floats,
    NotFiniteError,
    Point,
    Problem,
    alone,
    computing_precision,
    norm,
    random_vector,
)
from optax_sam.sharpness.progress import shown
from optax_sam.sharpness.standard_errors import standard_error

APART, ROUNDINGS = 1e-2, 8.0
"""How far losses and gradients of examples alone may be from those in their batch: by a part of their size,
and by so many times what rounding the parameters changes, which is more in bfloat16 and for losses near 0."""

ALIKE = 1e-3
"""The spread of gradients, as a part of their squares, below which it is summed up around their mean."""


@dataclasses.dataclass(frozen=True)
class GradientNoise:
    """How gradients differ between examples.

    Attributes:
      variance: `tr Cov(g_i)`, summed over all parameters, without bias.
      grad_norm: of the mean gradient over all examples.
      noise_scale: `variance / (grad_norm^2 - variance / n)`, in examples. In much larger batches the noise is
        already small beside the signal. The noise in the mean of n examples is taken off its square. Infinite
        where nothing is left: give more examples.
      norms: `float64[examples]`, each example's gradient norm, in the order of the data.
    """

    variance: float
    grad_norm: float
    noise_scale: float
    norms: np.ndarray = dataclasses.field(repr=False)

    def __str__(self) -> str:
        return (
            f"variance {self.variance:.4g}, norm of the mean {self.grad_norm:.4g}, "
            f"noise scale {self.noise_scale:.4g} examples (n = {len(self.norms)})"
        )


def gradient_noise(
    loss_fn: Callable[[Any, Any], Any],
    params: Any,
    batches: Any,
    *,
    microbatch_size: int | None = None,
    progress: bool = False,
) -> GradientNoise:
    """How much single examples' gradients differ: `tr Cov = n / (n - 1) (mean ||g_i||^2 - ||mean g_i||^2)`.

    Norms per example come from `per_example.gradient_norms`, without gradients per example. The loss is
    called with one example at a time. So a loss with batch norm must be that of evaluation, and one with
    dropout needs a key for each example in the batch. Others are refused: losses and gradients alone must be
    those in the batch to a hundredth of their size, and to the rounding.

    Args:
      loss_fn: see `top_eigenvalues`.
      params: the parameters.
      batches: one batch, or many. See `top_eigenvalues`. Two examples or more.
      microbatch_size: examples in memory at once, a batch by default. Must divide each batch.
      progress: whether a bar is shown.

    Returns:
      A `GradientNoise`, on the host.

    Raises:
      ValueError: there is a single example, or a loss or a gradient is not finite. An example's loss or
        gradient changes with its place in the batch (dropout), or with the other examples (batch norm). Also
        what `hessian_vector_product` refuses.

    Cost:
      About five gradients; another one where the gradients are alike to a thousandth.

    Example:
      >>> import jax.numpy as jnp
      >>> from optax_sam import sharpness
      >>> loss_fn = lambda w, x: x @ w
      >>> print(sharpness.gradient_noise(loss_fn, jnp.ones(1), jnp.array([[1.0], [3.0]])))
      variance 2, norm of the mean 2, noise scale 0.6667 examples (n = 2)

    References:
      Sam McCandlish, Jared Kaplan, Dario Amodei, OpenAI Dota Team, `An Empirical Model of Large-Batch
      Training <https://arxiv.org/abs/1812.06162>`_, 2018.
    """
    problem = Problem.of(loss_fn, params, batches)
    problem.finite_loss()
    if microbatch_size is not None:
        checks.integer("microbatch_size", microbatch_size, low=1)
    program, found = problem.program(_norms_in(microbatch_size)), []
    rounded = _rounded(problem)
    with shown(progress, "gradient noise", problem.count) as steps:
        for batch, _ in problem:
            found.append(_finite(np.asarray(program(problem.point, batch), float)))
            _check_apart(problem, rounded, batch, found[-1], microbatch_size)
            steps.advance()
    norms = np.concatenate(found)
    if norms.size < 2:
        raise ValueError("batches hold one example: the spread of gradients needs two or more.")
    mean = problem.gradient()
    mean_norm, square = float(norm(mean)), float(np.mean(norms**2))
    spread = square - mean_norm**2
    if spread < ALIKE * square:  # single precision has lost the digits of the difference
        away = problem.program(_norms_in(microbatch_size, centred=True))
        far = [np.asarray(away(problem.point, batch, mean), float) for batch, _ in problem]
        spread = np.mean(np.concatenate(far) ** 2)
    variance = float(norms.size / (norms.size - 1) * spread)
    signal = max(mean_norm**2 - variance / norms.size, 0.0)  # the square of the true mean, without bias
    scale = variance / signal if signal else float("inf" if variance else "nan")
    return GradientNoise(variance, mean_norm, scale, norms)


def _rounded(problem: Problem) -> Point:
    """The point with every parameter changed by chance, about as rounding in the loss would change it."""
    point, rounding = problem.point, computing_precision(problem)
    noise = random_vector(random_trees.standard_normal, keys.from_seed(0, "rounding"), point)
    return point.moved([trees.times(rounding, n * w) for n, w in zip(noise, point.floats, strict=True)])


def _check_apart(
    problem: Problem, rounded: Point, batch: Any, norms: np.ndarray, microbatch_size: int | None
) -> None:
    """Refuses a loss of which one example alone says something else."""

    def far(form: Any) -> np.ndarray:
        return np.array(problem.program(form)(problem.point, rounded, batch), float)

    size, by_rounding, single = far(_differences(microbatch_size))
    size[1] = np.sqrt(np.mean(norms**2))
    allowed = APART * size + ROUNDINGS * by_rounding
    if np.all(_finite(single) <= allowed):
        return
    if np.all(far(_turned) <= allowed):
        raise ValueError(
            "loss_fn gives an example another loss or gradient alone than beside others, as batch norm in "
            "training does: measure with its running statistics, and let no other example enter a loss."
        )
    raise ValueError(
        "loss_fn gives an example another loss or gradient in another place of the batch, as dropout does: "
        "measure without it, or put a key for each example into the batch."
    )


@functools.cache
def _differences(microbatch_size: int | None) -> Callable[..., Any]:
    """Of losses and gradients: their size, what a rounding changes, and how far those alone are away."""

    def differences(loss_fn: Any, point: Point, rounded: Point, batch: Any) -> tuple[Any, ...]:
        losses = functools.partial(alone, loss_fn)

        def single(params: Any, rows: Any) -> jax.Array:
            found = per_example.losses(losses, params, rows, microbatch_size=microbatch_size)
            return found if losses(params, rows).ndim else found.mean()

        here = _told(losses, point, batch)
        others = _told(losses, rounded, batch), _told(single, point, batch)
        nothing = jax.tree.map(jnp.zeros_like, here)
        return tuple(_distance(here, other) for other in (nothing, *others))

    return differences


def _turned(loss_fn: Any, point: Point, rounded: Point, batch: Any) -> tuple[jax.Array, jax.Array]:
    """How far losses and gradients are from those of the batch in reverse order."""
    del rounded
    losses, first = functools.partial(alone, loss_fn), jax.tree.leaves(batch)[0]
    order = sharding.split_as(jnp.arange(len(first))[::-1], first)

    def turned(params: Any, rows: Any) -> jax.Array:
        found = losses(params, jax.tree.map(lambda x: batch_axis.look_up(x, order), rows))
        return found[::-1] if found.ndim else found

    return _distance(_told(losses, point, batch), _told(turned, point, batch))


def _told(losses: Callable[[Any, Any], jax.Array], point: Point, batch: Any) -> tuple[jax.Array, Floats]:
    """Losses, and a sum of their gradients with random weights: no two examples' cancel."""
    with jax.default_matmul_precision("highest"):
        found, pull = jax.vjp(lambda floats: losses(point.params(floats), batch), point.floats)
        weights = jnp.ones((), found.dtype)
        if found.ndim:
            weights = jax.random.normal(keys.from_seed(0, "weights"), found.shape) / np.sqrt(len(found))
            weights = sharding.split_as(weights.astype(found.dtype), found)
        return trees.widen((found, pull(weights)[0]))


def _distance(one: tuple[jax.Array, Floats], other: tuple[jax.Array, Floats]) -> tuple[jax.Array, jax.Array]:
    """Between losses, their mean; between sums of gradients."""
    losses, gradient = jax.tree.map(jnp.subtract, one, other)
    return jnp.mean(jnp.abs(losses)), trees.norm(gradient)


def _finite(norms: np.ndarray) -> np.ndarray:
    if not np.all(np.isfinite(norms)):
        raise NotFiniteError(
            "a gradient is not finite: make sure that the loss is smooth at params, and within rho of it."
        )
    return norms


@functools.cache
def _norms_in(microbatch_size: int | None, centred: bool = False) -> Callable[..., Any]:
    """Norms of the examples' gradients, or of what they are away from the mean."""

    def norms(loss_fn: Any, point: Point, batch: Any, mean: Floats | None = None) -> Any:
        def losses(params, rows):
            found = alone(loss_fn, params, rows)
            return found - trees.inner(point.params(mean), params) if centred else found

        return per_example.gradient_norms(losses, point.params(), batch, microbatch_size=microbatch_size)

    return norms


@dataclasses.dataclass(frozen=True)
class PsfNorm:
    """How much SAM's gradients differ from the ordinary ones.

    Attributes:
      value: `||g' - g||`, the mean over batches, each weighted by the number of its examples.
      standard_error: of that mean. NaN with one batch.
      grad_norm: `||g||`, the same mean.
      perturbed_grad_norm: `||g'||`, the same mean.
      norms: `float64[batches]`, each batch's `||g' - g||`.
    """

    value: float
    standard_error: float
    grad_norm: float
    perturbed_grad_norm: float
    norms: np.ndarray = dataclasses.field(repr=False)

    def __str__(self) -> str:
        spread = "" if np.isnan(self.standard_error) else f" ± {self.standard_error:.1g}"
        return f"{self.value:.4g}{spread} beside a gradient of {self.grad_norm:.4g} (n = {len(self.norms)})"


def psf_norm(
    loss_fn: Callable[[Any, Any], Any], params: Any, batches: Any, rho: float, *, progress: bool = False
) -> PsfNorm:
    """How far SAM's gradient is from the ordinary one: `||g' - g||` with `g' = grad L_B(w + rho g / ||g||)`.

    This is the norm of the projection onto the second-order gradient (PSF), here for every batch `B`. vSAM
    watches it to decide how often a second gradient is worth its cost.

    Args:
      loss_fn: see `top_eigenvalues`.
      params: the parameters.
      batches: one batch, or many, of the size of training's. See `top_eigenvalues`.
      rho: radius of the perturbation, 0 or more.
      progress: whether a bar is shown.

    Returns:
      A `PsfNorm`, on the host.

    Raises:
      ValueError: as `ascent_sharpness`.

    Cost:
      Two gradients and a forward pass.

    Example:
      >>> import jax.numpy as jnp
      >>> from optax_sam import sharpness
      >>> loss_fn = lambda w, scale: scale @ w**2
      >>> print(sharpness.psf_norm(loss_fn, jnp.ones(1), jnp.array([[1.0]]), rho=0.5))
      1 beside a gradient of 2 (n = 1)

    References:
      Jiaxin Deng, Junbiao Pang, Baochang Zhang, Tian Wang, `Effective Gradient Sample Size via
      Variation Estimation for Accelerating Sharpness aware Minimization
      <https://arxiv.org/abs/2403.08821>`_, 2024.
    """
    checks.number("rho", rho, low=0)
    problem = Problem.of(loss_fn, params, batches)
    found, sizes = [], []
    with shown(progress, "PSF", problem.count) as steps:
        for part, size in problem.parts(None):
            part.finite_loss()
            here = part.gradient()
            there = part.at(part.point.moved(climbed(part, here, rho))).gradient()
            difference = [x - y for x, y in zip(there, here, strict=True)]
            found.append(_finite(np.array([float(norm(x)) for x in (difference, here, there)])))
            sizes.append(size)
            steps.advance()
    means = np.average(found, axis=0, weights=sizes)
    norms = np.array(found)[:, 0]
    error = standard_error(list(norms), sizes)
    return PsfNorm(float(means[0]), error, float(means[1]), float(means[2]), norms)
