"""Low-rank adapters of frozen matrices: noise on the merged matrix, and a second adapter that climbs.

SAM over an adapter needs none of this: an adapter's leaves are parameters like any others.
"""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from optax_sam.arithmetic import random_trees, trees
from optax_sam.arithmetic.ghost_rules import Rows, norm_of, norm_of_arrays
from optax_sam.arithmetic.random_bits import for_large_arrays
from optax_sam.engine import checks
from optax_sam.engine.aliases import Params
from optax_sam.engine.hyperparameters import Count, FixedNotNegative


class Adapter(NamedTuple):
    """A matrix of low rank, `a b`, beside a frozen one.

    Attributes:
      lora_a: `a`, `float[inputs, rank]`.
      lora_b: `b`, `float[rank, outputs]`. (A leaf named "b" alone would be a bias for `asam`.)
    """

    lora_a: jax.Array
    lora_b: jax.Array


class Pair(NamedTuple):
    """Two trees of adapters of the same matrices, the parameters of `bi_lora`.

    Attributes:
      descending: the adapters that are kept.
      climbing: the adapters that perturb, and are dropped at the end.
    """

    descending: Any
    climbing: Any


class PairState(NamedTuple):
    """State of `bi_lora`: those of the two optimizers."""

    descending: Any
    climbing: Any


def adapter(key: jax.Array, inputs: Count, outputs: Count, rank: Count, dtype: Any = jnp.float32) -> Adapter:
    """A new adapter, whose product is zero: `a` is normal with deviation `1 / sqrt(inputs)`, `b` is zero.

    Args:
      key: a PRNG key.
      inputs: 1 or more.
      outputs: 1 or more.
      rank: 1 or more.
      dtype: of both.
    """
    for name, value in (("inputs", inputs), ("outputs", outputs), ("rank", rank)):
        checks.integer(name, value, low=1)
    a = random_trees.normal(key, (inputs, rank), dtype, deviation=inputs**-0.5)
    return Adapter(a, jnp.zeros((rank, outputs), dtype))


def product(x: jax.Array, kernel: jax.Array, *adapters: Adapter) -> jax.Array:
    """`x (W + sum a b)`, without the sum: `float[..., inputs]` to `float[..., outputs]`.

    Args:
      x: `float[..., inputs]`.
      kernel: `W`, `[inputs, outputs]`, of floats or integers.
      *adapters: of this kernel, any number.
    """
    _check_shapes(kernel, *adapters)
    return sum(((x @ a) @ b for a, b in adapters), x @ _floats(kernel, x))


def merged(kernel: jax.Array, *adapters: Adapter) -> jax.Array:
    """`W + sum a b` in the dtype of the kernel: one matrix to evaluate and to store.

    With `bi_lora` merge the descending adapter alone.

    Args:
      kernel: `W`, `float[inputs, outputs]`.
      *adapters: of this kernel, any number.

    Raises:
      ValueError: the kernel holds integers, which would cut off `a b`; shapes that do not fit.
    """
    _check_shapes(kernel, *adapters)
    if not trees.is_inexact(kernel):
        raise ValueError(
            f"kernel has the dtype {kernel.dtype}, which would cut off the adapter: dequantize it first, for "
            "example scale * kernel.astype(jnp.float32)."
        )
    wide = trees.widen(kernel)
    return sum((trees.widen(a) @ trees.widen(b) for a, b in adapters), wide).astype(kernel.dtype)


def noisy_product(
    x: jax.Array, kernel: jax.Array, adapter: Adapter, key: jax.Array, noise_scale: Any
) -> jax.Array:
    """Flat-LoRA: `x (W' + e)` with noise `e` on the merged matrix `W' = W + a b`.

    An adapter that is flat among its own entries may be sharp for the whole matrix. The noise is on all
    of it. The backward pass draws it again from its key, so that no noise is kept between the passes.

    `e_ij = noise_scale ||W'_j|| z_ij / sqrt(inputs)`, `z` standard normal, `W'_j` what leads to output `j`.
    It counts as a constant: the gradient by `a` and `b` is that at the noisy matrix.

    Args:
      x: `float[..., inputs]`.
      kernel: `W`, `[inputs, outputs]`, of floats or integers, not to be trained. The noise on integers has
        the dtype of `x`.
      adapter: the one that is trained.
      key: a PRNG key, another one for each matrix and each step.
      noise_scale: the length of the noise of an output, as a part of `||W'_j||`. A number or a `float[]`.
        Pass 0 in evaluation.

    Returns:
      `float[..., outputs]`.

    Cost:
      The noise is drawn twice, and `a b` is made twice. The memory is that of one more matrix at a time,
      however many layers there are. This holds for keys of JAX's default generator.

    Guarantees:
      `noise_scale=0` is `product(x, kernel, adapter)`.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from optax_sam import lora
      >>> keys = jax.random.split(jax.random.key(0), 2)
      >>> kernel, adapter = jnp.eye(4), lora.adapter(keys[0], 4, 4, 2)
      >>> lora.noisy_product(jnp.ones((3, 4)), kernel, adapter, keys[1], 0.05).shape
      (3, 4)

    References:
      Tao Li, Zhengbao He, Yujun Li, Yasheng Wang, Lifeng Shang, Xiaolin Huang, `Flat-LoRA: Low-Rank
      Adaptation over a Flat Loss Landscape <https://arxiv.org/abs/2409.14396>`_, 2024.

    Deviations:
      Only the abstract of the paper was read, and the rule at second hand. Its code was not read. The authors
      let `noise_scale` rise along a cosine, from 0 to its last value. They scale by the rows of `W'`, since a
      kernel of PyTorch is the transpose of one here.
    """
    _check_shapes(kernel, adapter)
    checks.number("noise_scale", noise_scale, low=0)

    scale = jnp.asarray(noise_scale, float)
    still = jax.lax.stop_gradient((*adapter, scale))
    key = _typed(key)
    noisy = _with_noise(jax.random.key_impl(key), x, kernel, still, jax.random.key_data(key))
    return noisy + (x @ adapter.lora_a) @ adapter.lora_b


def _typed(key: jax.Array) -> jax.Array:
    return key if trees.is_key(key.dtype) else jax.random.wrap_key_data(key)


def _floats(kernel: jax.Array, x: jax.Array) -> jax.Array:
    """The kernel; integers in the dtype of what they are multiplied with."""
    return kernel if trees.is_inexact(kernel) else kernel.astype(x.dtype)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _with_noise(generator: Any, x: jax.Array, kernel: jax.Array, still: Any, key: jax.Array) -> jax.Array:
    """`x (W + e)`; the key is data of this generator."""
    return x @ _noisy(generator, kernel, still, key, after=x)


def _forward(
    generator: Any, x: jax.Array, kernel: jax.Array, still: Any, key: jax.Array
) -> tuple[jax.Array, Any]:
    return _with_noise(generator, x, kernel, still, key), (x, kernel, still, key)


def _backward(generator: Any, residuals: Any, change: jax.Array) -> tuple[Any, ...]:
    x, kernel, still, key = residuals
    by_x = (change @ _noisy(generator, kernel, still, key, after=change).T).astype(x.dtype)
    if not trees.is_inexact(kernel):
        return by_x, None, None, None
    by_kernel = jnp.einsum("...i,...j->ij", x, change).astype(kernel.dtype)
    return by_x, by_kernel, None, None


_with_noise.defvjp(_forward, _backward)


def _noisy(generator: Any, kernel: jax.Array, still: Any, key: jax.Array, after: jax.Array) -> jax.Array:
    """`W + e`, drawn when `after` is there: else XLA draws all matrices' noise at once, and keeps it.

    A barrier does not last: XLA takes it away before it decides when a number is computed. So the key depends
    on `after`, in a way that never changes it and that XLA does not see through. Other generators draw other
    numbers by a key that `vmap` has made one of many: their noise may be kept.
    """
    a, b, scale = still
    if generator == "threefry2x32":
        largest = jnp.max(after, initial=-jnp.inf).astype(jnp.float32)
        ones = jax.lax.population_count(jax.lax.bitcast_convert_type(largest, jnp.uint32))
        key = key ^ (ones > 32).astype(key.dtype)  # never, of 32 bits
    kernel = _floats(kernel, after)
    wide = trees.widen(kernel)
    whole = wide + trees.widen(a) @ trees.widen(b)
    lengths = jnp.linalg.norm(whole, axis=0, keepdims=True) / kernel.shape[0] ** 0.5
    key = for_large_arrays(jax.random.wrap_key_data(key, impl=generator))
    z = jax.random.normal(key, kernel.shape, whole.dtype)
    return (wide + scale.astype(whole.dtype) * lengths * z).astype(kernel.dtype)


def bi_lora(
    descent: optax.GradientTransformation, ascent: optax.GradientTransformation, rho: FixedNotNegative = 0.05
) -> optax.GradientTransformation:
    """Bi-LoRA: a second adapter climbs where the first one descends, by the same backward pass.

    SAM over an adapter perturbs the matrix inside the adapter's own subspace, and takes two gradients. The
    second adapter has a subspace of its own, and stands where the last step has left it. One gradient then
    serves both the descent and the ascent.

    With the losses at `W + a_1 b_1 + a_2 b_2` and their gradient `g`: `(a_1, b_1)` take the step of `descent`
    along `g`, `(a_2, b_2)` that of `ascent` along `-g`. Then `sqrt(sum ||a_2 b_2||_F^2)`, over all matrices,
    is clipped to `rho`: `a_2` and `b_2` are multiplied by the same number.

    Args:
      descent: any optimizer, of the descending adapters.
      ascent: any optimizer, of the climbing adapters, such as `optax.sgd(0.1)`. It gets the negative
        gradient.
      rho: the most by which the climbing adapters move all matrices together, in the L2 norm.

    Returns:
      An Optax transformation of parameters `Pair(descending, climbing)`, two trees of `Adapter`. Its gradient
      is `jax.grad` of losses that add both products, such as `product(x, kernel, first, second)`.

    Raises:
      ValueError: `rho` is negative. In a step, `params` is missing.
      TypeError: `params` is no `Pair` of trees of `Adapter`.

    Cost:
      1 gradient per step. No parameter-sized buffer beside those of the two optimizers. The norm is computed
      from matrices of rank by rank.

    Guarantees:
      After each step the norm is `rho` at most, up to rounding. `rho=0` is LoRA with `descent`: the climbing
      products are zero.

    Example:
      >>> import jax, jax.numpy as jnp, optax
      >>> from optax_sam import lora
      >>> first, second = (lora.adapter(key, 4, 3, 2) for key in jax.random.split(jax.random.key(0)))
      >>> tx = lora.bi_lora(optax.adamw(1e-3), optax.sgd(0.1), rho=0.05)
      >>> state = tx.init(lora.Pair({"layer": first}, {"layer": second}))

    References:
      Yuhang Liu, Tao Li, Zhehao Huang, Zuopeng Yang, Xiaolin Huang, `Bi-LoRA: Efficient Sharpness-Aware
      Minimization for Fine-Tuning Large-Scale Models <https://arxiv.org/abs/2508.19564>`_, 2025.

    Deviations:
      Only the abstract of the paper was read, and the rule at second hand. It is not known here which of
      `a_2` and `b_2` is shortened, and how both are initialized. New adapters begin as those of LoRA do.
    """
    checks.transformation("descent", descent, "optax.adamw(1e-3)")
    checks.transformation("ascent", ascent, "optax.sgd(0.1)")
    checks.number("rho", rho, low=0)

    def init(params: Params) -> PairState:
        pair = _checked(params)
        return PairState(descent.init(pair.descending), ascent.init(pair.climbing))

    def update(updates: Any, state: Any, params: Params = None) -> tuple[Any, PairState]:
        if params is None:
            raise ValueError("params=None: pass the parameters, update(grads, state, params).")
        grads, pair = Pair(*updates), _checked(params)
        down, first = descent.update(grads.descending, state.descending, pair.descending)
        uphill = jax.tree.map(jnp.negative, grads.climbing)
        up, second = ascent.update(uphill, state.climbing, pair.climbing)
        short = _clipped(optax.apply_updates(pair.climbing, up), rho)
        return Pair(down, jax.tree.map(jnp.subtract, short, pair.climbing)), PairState(first, second)

    return optax.GradientTransformation(init, update)


def joint_norm(adapters: Any) -> jax.Array:
    """`sqrt(sum ||a b||_F^2)` over all adapters of a tree, `float[]`, from matrices of rank by rank.

    Adapters of several layers may be stacked along leading axes, as for `jax.lax.scan`.

    Rounding is that of the product itself up to rank 3. Above, a product whose terms cancel to the part `p`
    of `s = sum_r ||a_r|| ||b_r||` is right to about `1e-7 / p^2`, in float32. Where `p` is below 3e-4,
    `3e-4 s` stands for it: `bi_lora` then clips too much, not too little. The derivative at zero is zero.
    """
    found = [norm_of(Rows(_stacked(a.mT), _stacked(b))) for a, b in _adapters(adapters)]
    return norm_of_arrays(found)


def _stacked(matrix: jax.Array) -> jax.Array:
    """One matrix, or all those of layers that a scan goes through: `[layers, rows, columns]`."""
    return matrix.reshape(-1, *matrix.shape[-2:])


def _clipped(adapters: Any, rho: Any) -> Any:
    """The adapters, shortened until their joint norm is `rho` at most."""
    norm = joint_norm(adapters)
    rho = jnp.asarray(rho, norm.dtype)
    part = jnp.where(norm > rho, rho / jnp.where(norm > 0, norm, 1.0), 1.0)
    return trees.map_wide(lambda x: trees.times(jnp.sqrt(part), x), adapters)


def _adapters(tree: Any) -> list[Any]:
    return jax.tree.leaves(tree, is_leaf=_is_adapter)


def _is_adapter(part: Any) -> bool:
    return isinstance(part, Adapter)


def _checked(params: Any) -> Pair:
    """The pair, refused where it is none, or holds something else than adapters."""
    if not isinstance(params, Pair):
        raise TypeError(
            f"params is a {type(params).__name__}: pass optax_sam.lora.Pair(descending, climbing), two trees "
            f"of optax_sam.lora.Adapter."
        )
    for name, tree in zip(Pair._fields, params, strict=True):
        if strange := [type(x).__name__ for x in _adapters(tree) if not _is_adapter(x)]:
            raise TypeError(
                f"params.{name} has a leaf of type {strange[0]}: make each matrix an "
                f"optax_sam.lora.Adapter(a, b), and keep frozen arrays outside of params."
            )
    return params


def _check_shapes(kernel: Any, *adapters: Adapter) -> None:
    """Refuses adapters of another matrix."""
    for a, b in adapters:
        shape, rank = jnp.shape(kernel), (jnp.shape(a)[-1:], jnp.shape(b)[:1])
        if (jnp.shape(a)[0], jnp.shape(b)[-1]) != shape or rank[0] != rank[1]:
            raise ValueError(
                f"adapter has a of shape {jnp.shape(a)} and b of shape {jnp.shape(b)}, but kernel has the "
                f"shape {shape}: a is [inputs, rank], b is [rank, outputs], the kernel [inputs, outputs]."
            )
