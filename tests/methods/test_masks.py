"""Which entries are perturbed: outliers, the first renewal of a mask, groups of inputs."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import optax_sam
from optax_sam import ascents, directions, gates
from optax_sam.pieces.masks import first_until
from tests.problem import init_params, losses, make_batch


@pytest.mark.parametrize(("quantile", "kept"), [(0.9, 4), (1.0, 0)])
@pytest.mark.parametrize("loss_scale", [None, 1000.0])
def test_zsharp_keeps_as_many_entries_as_its_quantile_says(quantile, kept, loss_scale):
    """A gradient that a fusion computes twice has two roundings; what is compared must come from one."""

    def losses(params, batch):
        return jnp.sum((jnp.tanh(batch["x"] @ (0.3 * params["w"])) - batch["y"]) ** 2, axis=1)

    method, found = optax_sam.zsharp(0.05, quantile), []

    # With the optimizations that the tests do without.
    @functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 3})
    def moved(params, batch):
        state = method.init(params)
        _, grads, oracle = method.value_and_grad(losses)(params, batch, state=state, loss_scale=loss_scale)
        point, _ = method.update(grads, state, params, grad_fn=lambda point: point)
        _, state = method.update(grads, state, params, oracle=oracle)
        return jnp.sum(point["w"] != params["w"]), optax_sam.info(state)["perturbation_norm"]

    for seed in range(40):
        rng = np.random.default_rng(seed)
        w, x, y = (jnp.asarray(rng.normal(size=size), jnp.float32) for size in ((5, 7), (16, 5), (16, 7)))
        found.append(moved({"w": w}, {"x": x, "y": y}))
    assert [int(number) for number, _ in found] == [kept] * 40
    np.testing.assert_allclose([norm for _, norm in found], 0.05 * (kept > 0), rtol=1e-5)


RENEWED = {
    "fisher mask": {"ascent": ascents.chained(ascents.to_radius(0.05), ascents.fisher_mask(0.5, 50, 4))},
    "groups of a mask": {
        "ascent": ascents.chained(ascents.to_radius(0.05), ascents.fisher_mask(1.0, 50, 4, "1:2"))
    },
    "top eigenvector": {
        "ascent": ascents.to_radius(0.05),
        "direction": directions.with_top_eigenvector(0.2, 50),
    },
}


@pytest.mark.parametrize("lost", ["gate", "overflow"])
@pytest.mark.parametrize("name", RENEWED)
def test_a_first_renewal_that_is_lost_is_made_up(name, lost):
    """Else nothing, or noise, would be climbed for 50 steps."""
    gate = {"gate": gates.after(1)} if lost == "gate" else {}
    method = optax_sam.sharpness_aware(**RENEWED[name], **gate)
    params, state = init_params(), method.init(init_params())

    @jax.jit
    def step(state, scale):
        batch = make_batch()
        _, grads, oracle = method.value_and_grad(losses)(params, batch, state=state, loss_scale=scale)
        return method.update(grads, state, params, oracle=oracle)[1]

    remembered = lambda state: [np.asarray(x) for x in jax.tree.leaves((state.ascent, state.direction))]
    found = [remembered(state)]
    for number in range(4):
        state = step(state, np.inf if lost == "overflow" and number == 0 else 1.0)
        found.append(remembered(state))
    same = [all(map(np.array_equal, one, two)) for one, two in itertools.pairwise(found)]
    assert same == [True, False, True, True]


def test_groups_of_inputs_with_the_outputs_first_are_those_of_the_transposed_matrix():
    """Of `(out, in)` and `(out, in, height, width)`, as Equinox has them."""
    params = {"dense": jnp.ones([6, 8]), "conv": jnp.ones([5, 2, 2, 2])}
    turned = {"dense": (1, 0), "conv": (1, 2, 3, 0)}
    scores = {name: jax.random.normal(jax.random.key(7), x.shape) for name, x in params.items()}
    masks = []
    for outputs_first in (True, False):

        def here(tree, outputs_first=outputs_first):
            return tree if outputs_first else {name: x.transpose(turned[name]) for name, x in tree.items()}

        def loss(p, batch, here=here):
            return sum(jnp.sum(p[name] * x) for name, x in here(scores).items()) * batch

        method = optax_sam.sparse_sam(0.1, pattern="2:4", num_samples=1, outputs_first=outputs_first)
        state = method.init(here(params))
        _, grads, oracle = method.value_and_grad(loss)(here(params), jnp.ones(2), state=state)
        masks.append(method.update(grads, state, here(params), oracle=oracle)[1].ascent[1].mask)
    for name, axes in turned.items():
        np.testing.assert_array_equal(masks[0][name].transpose(axes), masks[1][name])
    np.testing.assert_array_equal(masks[0]["dense"].reshape(6, 2, 4).sum(-1), 2)


@pytest.mark.parametrize(
    ("sizes", "wanted", "kept"),
    [
        ([4097**2] * 6, 3 * 4097**2, 3),  # float32 counts up to 2^24
        ([4097**2] * 6, 3 * 4097**2 + 1, 4),
        ([20_000_001] * 300, 150 * 20_000_001, 150),  # int32 up to 2^31
        ([3 * 2**30, 1, 5], 3 * 2**30 + 1, 2),
        ([7, 0, 3], 7, 1),
        ([7, 0, 3], 0, 0),
        ([], 0, 0),
    ],
)
def test_leaves_are_kept_until_their_entries_are_enough(sizes, wanted, kept):
    order = jnp.arange(len(sizes))[::-1]
    taken = first_until(sizes[::-1], order, wanted)
    assert int(taken.sum()) == kept and bool((taken[::-1][:kept]).all())


def test_a_dynamic_mask_stays_after_its_last_step():
    """The part that is replaced falls to nothing, and does not rise again."""
    ascent = ascents.chained(
        ascents.dynamic_mask(0.5, 1, drop_rate=0.5, total_steps=4), ascents.to_radius(1.0)
    )
    method, params = optax_sam.sharpness_aware(ascent), jnp.ones(400)
    state, changed = method.init(params), []
    row = jax.random.normal(jax.random.key(0), (1, 400))
    for _ in range(8):
        before = optax.tree.get(state, "mask")
        _, grads, oracle = method.value_and_grad(lambda w, x: x @ w)(params, row, state=state)
        _, state = method.update(grads, state, params, oracle=oracle)
        changed.append(int(jnp.sum(before != optax.tree.get(state, "mask"))))
    assert min(changed[:4]) > 0 and changed[4:] == [0] * 4
