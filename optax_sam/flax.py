"""Adapters for Flax: `import optax_sam.flax`. The rest of the package does not need Flax."""

import dataclasses
import difflib
import functools
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.tree_util import Partial

from optax_sam.arithmetic import keys, means, sharding
from optax_sam.arithmetic.jaxprs import handed_back
from optax_sam.engine.oracle import slice_shares
from optax_sam.engine.transformation import SharpnessAware

try:
    from flax import nnx
    from flax.linen.fp8_ops import OVERWRITE_WITH_GRADIENT
except ImportError as error:
    raise ImportError("optax_sam.flax needs Flax, which is not installed: pip install flax.") from error


def apply_gradients(train_state: Any, *, grads: Any, **arguments: Any) -> Any:
    """`train_state.apply_gradients(grads=grads)` that passes `oracle` on to the optimizer.

    Flax's own method takes every further keyword for a field to replace.

    Args:
      train_state: a `flax.training.train_state.TrainState`, or a subclass.
      grads: the gradient that `value_and_grad` returned.
      **arguments: fields of `train_state` are replaced, as in Flax (`batch_stats=...`). All others are extra
        arguments of the optimizer (`oracle=...`, `grad_fn=...`, `value=...`).

    Returns:
      The new `TrainState`.

    Raises:
      ValueError: see `update`. `oracle` and `grad_fn` are both missing, for example. Or `grads` holds the
        scales of FP8 layers.
      TypeError: a keyword is nearly the name of a field.

    Example:
      >>> import jax.numpy as jnp, optax, optax_sam.flax
      >>> from flax.training.train_state import TrainState
      >>> sam = optax_sam.sam(rho=5.0)
      >>> tx = optax.chain(sam, optax.sgd(0.5))
      >>> state = TrainState.create(apply_fn=None, params={"w": jnp.array([3.0, 4.0])}, tx=tx)
      >>> losses = lambda p, batch: 0.5 * jnp.sum(p["w"] ** 2) * jnp.ones_like(batch)
      >>> loss, grads, oracle = sam.value_and_grad(losses)(state.params, jnp.ones(2), state=state.opt_state)
      >>> state = optax_sam.flax.apply_gradients(state, grads=grads, oracle=oracle)
      >>> print(state.params["w"].round(2), state.step)
      [0. 0.] 1
    """
    is_ours = not {"oracle", "grad_fn"}.isdisjoint(arguments)
    if is_ours and isinstance(grads, Mapping) and OVERWRITE_WITH_GRADIENT in grads:
        raise ValueError(
            f"grads holds {OVERWRITE_WITH_GRADIENT!r}, the scales of FP8 layers, which Flax sets to their "
            f"gradient: of the several passes of a step none gives them alone. Compute in bfloat16, or pass "
            f"the scales to the loss behind the batch, where they stay as they are."
        )
    fields = {field.name for field in dataclasses.fields(train_state)}
    replaced = {name: value for name, value in arguments.items() if name in fields}
    extra = {name: value for name, value in arguments.items() if name not in fields}
    for name in extra:
        if meant := difflib.get_close_matches(name, fields, 1, cutoff=0.8):
            raise TypeError(f"{name} is no field of train_state: {meant[0]} is one, so write {meant[0]}=.")
    tx = train_state.tx
    update = optax.with_extra_args_support(tx).update
    bound = optax.GradientTransformation(tx.init, functools.partial(update, **extra))
    return train_state.replace(tx=bound).apply_gradients(grads=grads, **{"tx": tx} | replaced)


def from_0_1(saved: Any) -> Any:
    """A state that version 0.1.0 has saved, as `flax.serialization.from_state_dict` wants it now.

    `multistep_sam`, `sparse_sam` and `fisher_mask_sam` kept a count in their state, which is gone. `aesam`
    and `aelooksam` kept a mean and a variance of squared norms, and keep their roots, in the units of the
    norm. All other states are as they were.

    Args:
      saved: a nested dict, as `flax.serialization.msgpack_restore` returns it.

    Returns:
      A nested dict with these changes.

    Example:
      >>> import optax_sam.flax
      >>> optax_sam.flax.from_0_1({"ascent": {"inner": {}, "evaluations": 1.0}})
      {'ascent': {}}
    """
    if not isinstance(saved, dict):
        return saved
    if set(saved) == {"inner", "evaluations"}:
        return from_0_1(saved["inner"])
    if set(saved) == {"mean", "variance"} and np.ndim(saved["variance"]) == 0:
        return {"root_mean": np.sqrt(saved["mean"]), "root_deviation": np.sqrt(np.sqrt(saved["variance"]))}
    is_count = lambda key, value: key == "evaluations" and np.ndim(value) == 0  # noqa: E731
    return {key: from_0_1(value) for key, value in saved.items() if not is_count(key, value)}


def nnx_value_and_grad(
    method: SharpnessAware,
    loss_fn: Callable[..., Any],
    has_aux: bool = False,
    *,
    fresh_keys: bool = False,
) -> Callable[..., tuple[Any, Any, Any]]:
    """`method.value_and_grad` for a loss of an NNX model.

    Every gradient is that of a copy of the model, and of the other objects of NNX among `args`: an
    `nnx.Rngs`, metrics, another model. What the first pass changes is written back to these objects: the
    batch statistics, counts and keys of random numbers, parameters that a layer normalizes, flags, and all
    else. What the further passes change is not. All passes begin with the same model, so that dropout masks
    are the same without `fresh_keys` and `key`. Slices, devices and single examples that are taken alone have
    masks of their own. What a pass adds to a model is dropped. Return it as `aux`.

    Args:
      method: a sharpness-aware method.
      loss_fn: `loss_fn(model, batch, *args)` returns one loss per example, shape `[batch]` (or their mean,
        where the method needs no losses of single examples), or `(losses, aux)` with `has_aux`.
      has_aux: whether `loss_fn` returns a pair.
      fresh_keys: each pass has dropout masks of its own, whether the model holds its keys or `args` do. So it
        is with a `key` of yours, too, which `loss_fn` gets as its last argument.

    Returns:
      A function `(model, batch, *args, optimizer, indices=None, weights=None, whole_batch=False,
      key=None, loss_scale=None)` that returns `loss, grads, oracle`, or `(loss, aux), grads, oracle`.
      `optimizer` is the `nnx.Optimizer`. Step it with `optimizer.update(model, grads, oracle=oracle)`. If the
      batch is cut into slices, the model gets the mean of their statistics, weighted as the slices are, and
      the first slice's integers.

    Raises:
      ValueError: `has_aux`, but `loss_fn` returns no pair. Or `loss_fn` writes parameters (as
        `nnx.SpectralNorm` does), and the method's first pass is at perturbed ones. Or it puts an array in the
        place of a plain attribute. Or it writes metrics, and the method takes the batch in slices. See also
        `SharpnessAware.value_and_grad`.
      TypeError: an object of NNX stands in the place of the batch.

    Example:
      >>> import jax.numpy as jnp, optax, optax_sam.flax
      >>> from flax import nnx
      >>> sam, model = optax_sam.sam(rho=0.05), nnx.Linear(3, 1, rngs=nnx.Rngs(0))
      >>> optimizer = nnx.Optimizer(model, optax.chain(sam, optax.sgd(0.1)), wrt=nnx.Param)
      >>> losses = lambda model, batch: jnp.sum(model(batch) ** 2, axis=-1)
      >>> value_and_grad = optax_sam.flax.nnx_value_and_grad(sam, losses)
      >>> loss, grads, oracle = value_and_grad(model, jnp.ones([4, 3]), optimizer=optimizer)
      >>> updated = optimizer.update(model, grads, oracle=oracle)
    """

    def value_and_grad(model, batch, *args, optimizer, **arguments) -> tuple[Any, Any, Any]:
        _refuse_objects(batch)
        args, nodes, together = _without_nodes(args)
        live = model, nodes
        graph, params, rest = nnx.split(live, _of_first(optimizer.wrt), ...)
        params = params.get(0, params)
        variables = jax.tree.structure(params)
        # Arrays alone: no later pass sees what the first one leaves in the model, and the parameters
        # are the tree that nnx.Optimizer hands to the method.
        params, rest = nnx.as_pure((params, rest))
        chosen = {(0, *path) for path, _ in nnx.to_flat_state(params)}
        renewed: list[dict[tuple[Any, ...], Any]] = []  # by each pass; none of this can be traced
        draws, given_key = bool(jax.tree.leaves(nnx.state(live, nnx.RngKey))), arguments.get("key")
        of_batch = keys.from_seed(0, "passes") if given_key is None else given_key
        if draws and given_key is None:
            arguments["key"] = of_batch if fresh_keys else keys.SharedByPasses(of_batch)

        def passed(params, batch, rest, args, *key):
            copies = nnx.merge(graph, {0: params}, rest, copy=True)
            if draws:
                nnx.update(copies, _folded(nnx.state(copies, nnx.RngKey), key[0], of_batch))
            before, plain = _arrays_of(copies), _plain_of(copies)
            key = () if given_key is None else key
            returned = loss_fn(copies[0], batch, *together(args, copies[1]), *key)
            if has_aux and (not isinstance(returned, tuple) or len(returned) != 2):
                raise ValueError(
                    f"has_aux=True, but loss_fn returned {type(returned).__name__}: return (losses, aux)."
                )
            found, aux = returned if has_aux else (returned, None)
            changed = {path: x for path, x in _arrays_of(copies).items() if x is not before.get(path, x)}
            renewed.append({path: x for path, x in _plain_of(copies).items() if x is not plain.get(path, x)})
            _refuse_arrays(renewed[-1])
            return found, (aux, changed)

        def losses(params, *given):
            found, (aux, changed) = passed(params, *given)
            written = [path for path in changed if path in chosen]
            if written and method.method.perturbs_at_start:
                _refuse_written(_computed(lambda p: passed(p, *given)[1][1], params, written))
                changed = {path: x for path, x in changed.items() if path not in written}
            return found, (aux, changed)

        (loss, (aux, after)), grads, oracle = method.value_and_grad(losses, has_aux=True)(
            params, batch, rest, args, state=optimizer.opt_state, **arguments
        )
        shares = slice_shares(oracle)
        if shares is not None:
            _refuse_metrics(live, set(after))
        after = _without_slices(_arrays_of(live), after, shares)
        nnx.update(live, nnx.from_flat_state(after.items()))
        nodes = dict(nnx.iter_graph(live))
        for path, x in renewed[0].items():
            setattr(nodes[path[:-1]], path[-1], x)
        grads = jax.tree.unflatten(variables, jax.tree.leaves(grads))
        return (loss, aux) if has_aux else loss, grads, oracle

    return value_and_grad


def nnx_losses(loss_fn: Callable[..., Any], model: Any, wrt: Any = nnx.Param) -> tuple[Partial, Any]:
    """The loss of an NNX model as a function of its parameters, and these, for `optax_sam.sharpness`.

    Each call of the loss is that of a copy of the model. What it writes there, batch statistics or counts of
    random numbers, is dropped with the copy. All calls begin with the same counts, so that dropout masks are
    those of one fixed function. The model stays as it is.

    Args:
      loss_fn: `loss_fn(model, batch)` returns one loss per example, shape `[batch]`, or their mean, or
        either with auxiliary values.
      model: the model, as you want to measure it. Call `model.eval()` before, for running statistics.
      wrt: which variables are parameters, a filter of NNX.

    Returns:
      `(losses, params)`: a `jax.tree_util.Partial` to be called as `losses(params, batch)`, and a tree of
      arrays. The other variables are among the arrays of the Partial, as they are now.

    Raises:
      ValueError: `wrt` chooses no variable of the model.

    Example:
      >>> import jax.numpy as jnp, optax_sam.flax
      >>> from flax import nnx
      >>> from optax_sam import sharpness
      >>> model = nnx.Linear(3, 1, use_bias=False, rngs=nnx.Rngs(0))
      >>> losses, params = optax_sam.flax.nnx_losses(lambda model, x: jnp.sum(model(x) ** 2, axis=-1), model)
      >>> print(sharpness.top_eigenvalues(losses, params, jnp.ones([4, 3])).values.round(3))
      [6.]
    """
    graph, params, rest = nnx.split(model, wrt, ...)
    params, rest = nnx.as_pure((params, rest))
    if not jax.tree.leaves(params):
        raise ValueError(f"wrt={wrt!r} chooses no variable of the model: pass a filter such as nnx.Param.")

    def losses(rest, params, batch):
        return loss_fn(nnx.merge(graph, params, rest, copy=True), batch)

    return Partial(losses, rest), params


def _without_nodes(tree: Any) -> tuple[list[Any], list[Any], Callable[..., Any]]:
    """The leaves of a tree without NNX's objects, these objects, and how both become the tree again."""
    leaves, treedef = jax.tree.flatten(tree, is_leaf=nnx.graph.is_graph_node)
    is_node = [nnx.graph.is_graph_node(x) for x in leaves]

    def together(others, nodes):
        supply = {False: iter(others), True: iter(nodes)}
        return treedef.unflatten([next(supply[kind]) for kind in is_node])

    others, nodes = ([x for x, n in zip(leaves, is_node, strict=True) if n is kind] for kind in (False, True))
    return others, nodes, together


def _refuse_objects(batch: Any) -> None:
    """Flax's own examples have the batch last: `loss_fn(model, rngs, batch)`."""
    for x in _without_nodes(batch)[1]:
        if not isinstance(x, nnx.Variable):
            raise TypeError(
                f"batch has an NNX object in it ({type(x).__name__}): pass the batch first, and what is "
                f"no batch behind it, loss_fn(model, batch, rngs)."
            )


def _of_first(wrt: Any) -> Callable[[Any, Any], bool]:
    """The filter `wrt` for the first of several objects; nothing of the others."""
    is_chosen = nnx.filterlib.to_predicate(wrt)
    return lambda path, x: path[0] == 0 and is_chosen(path[1:], x)


def _folded(keys: Any, key: jax.Array, of_batch: jax.Array) -> Any:
    """The model's keys, each with the number that `key` stands for. The first pass of the batch has them."""
    number = jax.random.bits(key)
    is_own = number == jax.random.bits(of_batch)

    def on_leaf(keys):
        folded = jax.vmap(jax.random.fold_in, in_axes=(0, None))(keys.reshape(-1), number)
        return jnp.where(is_own, keys, folded.reshape(keys.shape))

    return jax.tree.map(on_leaf, keys)


def _arrays_of(objects: Any) -> dict[tuple[Any, ...], Any]:
    """The arrays of NNX's objects by their paths, a shared one once."""
    return dict(nnx.to_flat_state(nnx.as_pure(nnx.state(objects))))


def _plain_of(objects: Any) -> dict[tuple[Any, ...], Any]:
    """What NNX's modules have beside variables and modules, such as flags and counts, by its path."""
    found, arrays = dict(nnx.iter_graph(objects)), _arrays_of(objects)
    return {
        path: x
        for path, x in found.items()
        if path
        and isinstance(found.get(path[:-1]), nnx.Module)
        and not str(path[-1]).startswith(("_pytree__", "_object__"))
        and not isinstance(x, nnx.Variable)
        and not nnx.graph.is_node(x)
        and path not in arrays
    }


def _refuse_arrays(renewed: dict[tuple[Any, ...], Any]) -> None:
    """An array that takes the place of a Python value is no state of the model."""
    paths = {path for path, x in renewed.items() if isinstance(x, jax.Array)}
    if paths:
        raise ValueError(
            f"loss_fn sets the attributes {_names(paths)} of the model, which held no arrays, to arrays: "
            f"keep them in an nnx.Variable from the beginning."
        )


def _computed(changed: Callable[[Any], dict], params: Any, paths: list[tuple[Any, ...]]) -> set:
    """Of the parameters that a pass leaves other objects for, those with other values: not `nnx.remat`'s."""
    jaxpr = jax.make_jaxpr(lambda params: [changed(params)[path] for path in paths])(params)
    inputs = [(0, *path) for path, _ in nnx.to_flat_state(params)]
    found = handed_back(jaxpr)
    return {path for path, at in zip(paths, found, strict=True) if at is None or inputs[at] != path}


def _refuse_written(paths: set[tuple[Any, ...]]) -> None:
    """What is written at the perturbed parameters says nothing of the parameters."""
    if paths:
        raise ValueError(
            f"loss_fn writes the parameters {_names(paths)} (as nnx.SpectralNorm and nnx.WeightNorm do), but "
            f"this method's first pass is at perturbed ones: choose a method that begins at the parameters, "
            f"such as sam, or normalize the weights without writing them."
        )


def _refuse_metrics(live: Any, paths: set[tuple[Any, ...]]) -> None:
    """What slices have counted is neither a mean of theirs nor one slice's."""
    metrics = paths & {path for path, _ in nnx.to_flat_state(nnx.state(live, nnx.metrics.MetricState))}
    if metrics:
        raise ValueError(
            f"the loss writes the metrics {_names(metrics)}, but the method takes the batch in slices, which "
            "all begin with what the metrics held before: return logits or losses as aux, and update the "
            "metrics outside of the loss."
        )


def _names(paths: set[tuple[Any, ...]]) -> str:
    return ", ".join(sorted(".".join(map(str, path[1:])) for path in paths))


def _without_slices(before: dict, after: dict, shares: jax.Array | None) -> dict:
    """What a pass has changed as the model has it: the mean over slices; of integers and keys the first's."""
    if shares is None:
        return after

    def of_all(x, like):
        if x.shape == like.shape:
            return x
        return means.mean(shares, sharding.replicated(x).reshape(-1, *like.shape))

    return {path: of_all(x, before[path]) for path, x in after.items()}
