"""What every method guarantees, over the whole family: many clauses to one compiled step of each.

The clauses are those of `test_guarantees.py` and `test_state.py`, which ask them one by one of fewer
methods. The parameters here have a leaf of every kind, and the loss a factor that turns gradients into
zero, huge, tiny or infinite ones.
"""

import copy
import functools
import pickle

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import optax_sam
from tests.problem import (
    assert_trees_close,
    assert_trees_equal,
    base_trajectory,
    init_params,
    losses,
    make_batch,
    make_indices,
)
from tests.registry import (
    CASES,
    EVERY,
    FAMILY,
    REPRESENTATIVE,
    compiled,
    make_step,
    over,
    train,
)
from tests.rows import own_loss

# All clauses of one method after each other, so that its step is compiled in one process of the tests.
every_method = pytest.mark.parametrize("name", FAMILY, scope="module")
every_kind = pytest.mark.parametrize("name", over(FAMILY), scope="module")
TARGET = jnp.array([0.3 - 1.0j, 1.2 + 0.4j])


def odd_params():
    """The network, and leaves of every other kind."""
    return init_params() | {
        "complex": {"bias": jnp.array([1.0 + 2.0j, -0.5 + 0.3j])},
        "count": jnp.arange(3),
        "empty": jnp.zeros([0, 3]),
        "half": {"bias": jnp.array([0.5, -0.25], jnp.float16), "kernel": jnp.full([2, 4], 0.5, jnp.bfloat16)},
        "none": None,
    }


def odd_losses(params, batch):
    """Reads all of them; `batch["factor"]` multiplies everything, `batch["half"]` those in half precision."""
    assert params["count"].dtype == jnp.int32 and params["none"] is None
    small = sum(jnp.sum(jnp.square(x.astype(jnp.float32))) for x in jax.tree.leaves(params["half"]))
    far = jnp.sum(jnp.abs(params["complex"]["bias"] - TARGET) ** 2)
    z = params["complex"]["bias"]
    bent = jnp.sum(z.real * z.imag)  # its Hessian does not commute with conjugation
    wide = losses(params, batch) + 0.1 * far + 0.05 * bent + jnp.sum(params["empty"])
    return batch["factor"] * wide + batch["half"] * small


def batch_of(factor, half=None):
    factors = {"factor": factor, "half": factor if half is None else half}
    return make_batch() | {name: jnp.full([16], x, jnp.float32) for name, x in factors.items()}


@functools.cache
def prepared(name):
    """The method, and one compiled perturbed step that donates its state."""
    case = FAMILY[name]

    def with_aux(params, batch):
        return odd_losses(params, batch), batch["label"]

    method = case.make(**own_loss(case, with_aux, odd_losses))
    tx = optax.chain(method, optax.apply_if_finite(optax.identity(), 5))
    traces = []

    def step(params, state, batch):
        traces.append(1)
        (loss, _), grads, oracle = method.value_and_grad(with_aux, has_aux=True)(
            params, batch, state=state, indices=make_indices()
        )
        updates, after = tx.update(grads, state, params, oracle=oracle, perturb=True, unknown="ignored")
        return updates, after, (loss, grads)

    return method, tx, jax.jit(step, donate_argnums=1), traces


def run(name, factor, state=None, half=None):
    method, tx, step, traces = prepared(name)
    state = tx.init(odd_params()) if state is None else jax.tree.map(jnp.copy, state)
    updates, after, (loss, grads) = step(odd_params(), state, batch_of(factor, half))
    assert len(traces) == 1
    return updates, after, loss, grads


@every_method
def test_structures_shapes_and_dtypes_are_kept_and_odd_leaves_pass_through(name):
    _, tx, *_ = prepared(name)
    updates, after, _, grads = run(name, 1.0)
    chex.assert_trees_all_equal_structs(updates, odd_params())
    for tree in (updates, grads):
        chex.assert_trees_all_equal_shapes_and_dtypes(tree, odd_params())
        assert np.all(np.asarray(tree["count"]) == 0)
    before = tx.init(odd_params())
    chex.assert_trees_all_equal_shapes_and_dtypes(after, before)
    assert not any(x.weak_type for x in jax.tree.leaves((before, after)))
    chex.assert_tree_all_finite((updates, after))


@every_method
def test_a_gradient_of_zero_gives_no_perturbation_and_nothing_is_nan(name):
    updates, after, *_ = run(name, 0.0)
    assert all(np.all(np.asarray(x) == 0) for x in jax.tree.leaves(updates))
    chex.assert_tree_all_finite(after)
    if FAMILY[name].perturbs_by_gradient:
        assert optax_sam.info(after)["perturbation_norm"] == 0


# Reweighted SAM compares the sizes of gradients in the units of the loss.
@pytest.mark.parametrize("name", [n for n in FAMILY if n != "reweighted_sam"])
def test_huge_and_tiny_gradients_have_the_right_norm(name):
    wanted = optax_sam.info(run(name, 1.0, half=0.0)[1])
    for factor in (1e30, 1e-30):
        got = optax_sam.info(run(name, factor, half=0.0)[1])
        np.testing.assert_allclose(got["grad_norm"] / factor, wanted["grad_norm"], rtol=2e-2)
        if FAMILY[name].is_scale_free:
            np.testing.assert_allclose(got["perturbation_norm"], wanted["perturbation_norm"], rtol=2e-2)


@every_method
def test_a_step_that_is_not_finite_is_skipped_and_leaves_nothing_behind(name):
    _, state, *_ = run(name, 1.0)
    updates, after, *_ = run(name, np.inf, state)
    assert all(np.all(np.asarray(x) == 0) for x in jax.tree.leaves(updates))
    assert not optax_sam.finite(after) and not after[1].last_finite
    for piece in ("start", "direction", "gate", "reuse", "ascent"):
        assert_trees_equal(getattr(after[0], piece), getattr(state[0], piece))
    chex.assert_tree_all_finite(after[0])


@every_method
def test_the_documented_number_of_gradients_is_told(name):
    _, after, *_ = run(name, 1.0)
    told = optax_sam.info(after)["gradients"]
    np.testing.assert_allclose(told, FAMILY[name].cost_of_first_step, rtol=1e-6)


@every_kind
def test_the_number_of_gradients_that_is_told_is_taken(name):
    case, calls = FAMILY[name], []
    method = case.make()

    @jax.custom_jvp
    def counted(x):
        return x

    @counted.defjvp
    def differentiated(x, dx):  # once in each gradient, and in each Hessian product
        jax.debug.callback(lambda rows: calls.append(rows), jnp.asarray(x[0].shape[0]))
        return x[0], dx[0]

    def counting(params, batch):
        return counted(losses(params, batch))

    if own := own_loss(case, counting):
        method = case.make(**own)
    step = jax.jit(make_step(method, method, counting))
    params = init_params()
    _, state, _ = step(params, method.init(params), make_batch(), make_indices())
    jax.effects_barrier()
    spent = float(optax_sam.info(state)["gradients"])
    np.testing.assert_allclose(sum(map(float, calls)) / 16, spent - case.hessian_products, rtol=1e-6)


@pytest.mark.parametrize("name", over(n for n in FAMILY if FAMILY[n].without_radius is not None))
def test_without_a_radius_it_is_the_base_optimizer(name):
    case = FAMILY[name]
    params, _, _ = train(case.make(**case.without_radius))
    assert_trees_close(params, base_trajectory(), rtol=2e-5, atol=2e-6)


@every_kind
def test_in_loops_and_under_vmap_the_same_happens(name):
    tx, step = compiled(name)
    params, rows = init_params(), (make_batch(), make_indices())
    alone = params, tx.init(params)
    for _ in range(2):
        alone = step(*alone, *rows)[:2]

    @jax.jit
    def both(params):
        stacked = jax.tree.map(lambda x: jnp.stack([x, 1.5 * x]), params)
        carry = stacked, jax.vmap(tx.init)(stacked)
        many = jax.vmap(lambda params, state: step.__wrapped__(params, state, *rows)[:2])
        return jax.lax.scan(lambda carry, _: (many(*carry), None), carry, length=2)[0]

    together = jax.tree.map(lambda x: x[0], both(params))
    assert_trees_close(together[0], alone[0], rtol=1e-4, atol=1e-5)
    chex.assert_trees_all_equal_shapes_and_dtypes(together[1], alone[1])


@pytest.mark.parametrize("name", over(n for n in FAMILY if FAMILY[n].gated))
def test_the_program_and_the_host_take_the_same_decisions(name):
    method = FAMILY[name].make()
    params = init_params()

    def taken(perturb):
        @jax.jit
        def step(params, state, batch):
            _, grads, oracle = method.value_and_grad(losses)(params, batch, state=state)
            descent, after = method.update(grads, state, params, oracle=oracle, perturb=perturb)
            return descent, after, grads

        return step

    step = {perturb: taken(perturb) for perturb in (None, False, True)}
    inside = outside = method.init(params)
    for number in range(4):
        batch = make_batch(number)
        grads = step[None](params, outside, batch)[2]
        decision = bool(method.due(outside, grads))
        descent, inside, _ = step[None](params, inside, batch)
        again, outside, _ = step[decision](params, outside, batch)
        assert optax_sam.info(inside)["perturbed"] == decision
        assert_trees_close(again, descent, rtol=1e-5, atol=1e-6)
    assert 0 < optax_sam.info(inside)["gradients"] - 4


@pytest.mark.parametrize("name", ["late_sam", "aesam"])
def test_a_closed_gate_that_reuses_nothing_hands_the_gradient_on(name):
    method, params = FAMILY[name].make(), init_params()

    @jax.jit
    def step(params):
        state = method.init(params)
        _, grads, oracle = method.value_and_grad(losses)(params, make_batch(), state=state)
        descent, _ = method.update(grads, state, params, oracle=oracle, perturb=False)
        return descent, grads

    assert_trees_equal(*step(params))


@pytest.mark.parametrize("name", ["aesam", "aelooksam"])
def test_a_gate_that_must_see_the_gradient_says_so(name):
    method = CASES[name].make()
    state = method.init(init_params())
    for due in (optax_sam.due, method.due):
        with pytest.raises(ValueError, match=r"gate must see the first gradient .* sam.due\(state, grads\)"):
            due(state)
    assert method.due(state, init_params()).dtype == bool


@pytest.mark.parametrize("name", [n for n in EVERY if CASES[n].needs_oracle])
def test_what_needs_an_oracle_refuses_a_gradient_function(name):
    method, params = CASES[name].make(), init_params()
    state = method.init(params)
    with pytest.raises(ValueError, match="grad_fn is given, but"):
        jax.eval_shape(lambda: method.update(params, state, params, grad_fn=lambda p: p, perturb=True))


@pytest.mark.parametrize("name", over(n for n in FAMILY if not CASES[n].needs_oracle))
def test_a_gradient_function_serves_what_needs_no_losses(name):
    method, params = CASES[name].make(), init_params()
    state, batch = method.init(params), make_batch()

    def grad_fn(params):
        return jax.grad(lambda p: jnp.mean(losses(p, batch)))(params)

    @jax.jit
    def both():
        narrow = method.update(grad_fn(params), state, params, grad_fn=grad_fn, perturb=True)[0]
        _, grads, oracle = method.value_and_grad(losses)(params, batch, state=state)
        return narrow, method.update(grads, state, params, oracle=oracle, perturb=True)[0]

    assert_trees_close(*both(), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", [n for n in EVERY if not CASES[n].starts_at_params])
def test_what_perturbs_at_its_start_cannot_be_left_unperturbed(name):
    method, params = CASES[name].make(), init_params()
    state = method.init(params)
    oracle = optax_sam.Oracle(losses, make_batch())
    with pytest.raises(ValueError, match="perturb=False, but this method's first gradient"):
        jax.eval_shape(lambda: method.update(params, state, params, oracle=oracle, perturb=False))


# What looks at single entries or leaves, or draws, sees a complex leaf as one, not as two.
BY_ENTRY = {"sam_on", "fisher_sam", "sparse_sam", "fisher_mask_sam", "zsharp", "graphsam", "look_layersam"}
BY_ENTRY |= {"fan_scaled_sam", "spectral_sam", "preconditioned_sam"}
DRAWING = {"esam", "reweighted_sam", "random_sam", "random_perturbation", "adaptive_random_perturbation"}
DRAWING |= {"eigen_sam"}
COMPLEX = {*REPRESENTATIVE, "gsam", "friendly_sam", "looksam"}  # which take products and lengths


@pytest.mark.parametrize("name", over([n for n in FAMILY if n not in BY_ENTRY | DRAWING], COMPLEX))
def test_a_complex_leaf_moves_as_its_real_and_imaginary_part(name):
    def complex_losses(params, batch):
        return real_losses({"re": params["z"].real, "im": params["z"].imag, "w": params["w"]}, batch)

    def real_losses(params, batch):
        x, y, w = params["re"], params["im"], params["w"]
        inner = jnp.sum(x**2 + 0.7 * x * y + 0.3 * y**2) + jnp.sum(w**4)
        return batch["image"][:, 0] ** 2 * inner + batch["image"][:, 1] * jnp.sum(jnp.sin(x + 2 * y))

    z, w = jnp.array([1.0 + 2.0j, -0.5 + 0.3j]), jnp.array([0.3, -0.2])
    forms = [({"z": z, "w": w}, complex_losses), ({"re": z.real, "im": z.imag, "w": w}, real_losses)]
    found = []
    for params, loss in forms:
        method = FAMILY[name].make(**own_loss(FAMILY[name], loss))
        state = method.init(params)

        @jax.jit
        def step(params, state, batch, method=method, loss=loss):
            _, grads, oracle = method.value_and_grad(loss)(params, batch, state=state, indices=make_indices())
            descent, state = method.update(grads, state, params, oracle=oracle)
            down = jax.tree.map(lambda p, d: p - 0.01 * jnp.conj(d), params, descent)
            return down, state

        for number in range(3):
            params, state = step(params, state, make_batch(number))
        found.append(params)
    one, other = found
    for part, wanted in ((one["z"].real, other["re"]), (one["z"].imag, other["im"]), (one["w"], other["w"])):
        np.testing.assert_allclose(part, wanted, rtol=1e-4, atol=1e-5)


@every_method
def test_copies_and_pickles_are_the_method(name):
    method = FAMILY[name].make()
    for form in (copy.deepcopy(method), method._replace(), pickle.loads(pickle.dumps(method))):
        assert isinstance(form, optax_sam.SharpnessAware)
        chex.assert_trees_all_equal(form.init(init_params()), method.init(init_params()))


def test_whole_optimizers_copy_and_pickle_and_have_no_wrapper_around_them():
    method = optax_sam.adasam(0.1)
    for form in (copy.deepcopy(method), pickle.loads(pickle.dumps(method))):
        chex.assert_trees_all_equal(form.init(init_params()), method.init(init_params()))
    for optimizer in (method, optax_sam.decoupled(optax_sam.wsam(), optax.sgd(0.1), 0.1)):
        with pytest.raises(TypeError, match=r"pass followed_by\(per_microbatch\(sam\(\), 4\), base\)"):
            optax_sam.per_microbatch(optimizer, 2)


def test_slices_that_decide_each_for_itself_have_no_common_decision():
    method, params = optax_sam.per_microbatch(optax_sam.aesam(10), 4), init_params()
    with pytest.raises(ValueError, match="every slice decides by its own gradient"):
        method.due(method.init(params), params)


def test_every_draw_follows_the_momentum_of_the_base_optimizer():
    """Draws of a method that does not draw are all the same."""
    method = optax_sam.momentum_sam(0.5, momentum=0.0)
    draws = optax_sam.over_draws(method, 2, optax_sam.tilted(0.0))
    sliced = optax_sam.per_microbatch(draws, 1)

    @jax.jit
    def steps(params):
        found = []
        for form in (method, draws, sliced):
            tx = optax.chain(form, optax.sgd(0.1, momentum=0.9))
            carry = params, tx.init(params)
            for number in range(3):
                carry = make_step(form, tx)(*carry, make_batch(number), make_indices(number))[:2]
            found.append(carry[0])
        return found

    alone, *others = steps(init_params())
    for other in others:
        assert_trees_close(other, alone, rtol=1e-5, atol=1e-6)


def test_a_reuse_that_asks_a_surrogate_refuses_a_gradient_function():
    reuse = optax_sam.reuses.components_beyond(losses, 0.5, 0.5)
    method, params = optax_sam.sharpness_aware(optax_sam.ascents.to_radius(0.1), reuse=reuse), init_params()
    with pytest.raises(ValueError, match="grad_fn is given, but"):
        method.update(params, method.init(params), params, grad_fn=lambda p: p)
