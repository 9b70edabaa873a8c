"""Programs for accelerators that are not there: what is read from them, and what is promised."""

import jax
import jax.numpy as jnp
import pytest
from jax import lax

import optax_sam
from benchmarks import accelerators, by_hand, cases, models, promises, roofline
from experiments.running import topologies
from tests import machines


def test_what_a_program_consists_of_is_read_from_its_text():
    def program(x):
        x = lax.cond(x[0, 0] > 0, jnp.sort, jnp.sin, x)
        return lax.while_loop(lambda x: jnp.sum(x) < 100, lambda x: 2 * x + jnp.cos(x), x)

    compiled = jax.jit(program, donate_argnums=0).lower(jnp.ones((8, 8))).compile()
    found = accelerators.counts(compiled, "h100:1x1x1", 0.0)
    assert (found["loops"], found["conditionals"], found["collectives"]) == (1, 1, {})
    assert found["donated_mb"] == 8 * 8 * 4 / 1e6 and found["compiler_flops"] > 64
    assert found["at_best_ms"]["memory"] >= 2 * 8 * 8 * 4 / 3.35e9


LINE = {
    "machine": "h100:1x1x1",
    "model": "mlp",
    "parameters": "copied",
    "axes": "auto",
    "loops": 0,
    "conditionals": 0,
    "kernels": 100,
    "collectives": {},
    "small_collectives": 1,
    "temporaries_mb": 10.0,
    "peak_mb": 14.0,
    "kept_mb": 4.0,
    "donated_mb": 4.0,
    "product_flops": 2e9,
}


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({}, None),
        ({"kernels": 134, "temporaries_mb": 10.4, "small_collectives": 4}, None),
        ({"kernels": 136}, "kernels 136, by hand 100"),
        ({"temporaries_mb": 10.6}, None),
        ({"temporaries_mb": 10.6, "peak_mb": 14.8}, "temporaries_mb 10.6, by hand 10"),
        ({"loops": 1}, "1 loops, 0 in one gradient, 0 of its equation"),
        ({"conditionals": 1}, "1 conditionals, 0 of its gate"),
        ({"small_collectives": 5}, "5 small exchanges, 1 without it"),
        ({"collectives": {"all-gather": [1, 80]}}, "1 gathers of 80 bytes, 0 without it"),
        ({"donated_mb": 2.0}, "2.0 of 4.0 MB are donated"),
        ({"error": "ValueError: no"}, "ValueError: no"),
    ],
)
def test_what_is_worse_than_by_hand_is_said(change, words):
    base = LINE | {"step": "base alone", "product_flops": 1e9}
    lines = [base, LINE | {"step": "sam, by hand"}, LINE | {"step": "sam"} | change]
    found = promises.missed(lines)
    assert (not found) if words is None else (len(found) == 1 and words in found[0])


@pytest.mark.parametrize(("found", "kept"), [(0, False), (1, True), (2, False)])
def test_a_gate_is_one_conditional(found, kept):
    base = LINE | {"step": "base alone", "product_flops": 1e9}
    assert (not promises.missed([base, LINE | {"step": "rst", "conditionals": found}])) == kept


@pytest.mark.parametrize(
    ("step", "flops", "loops", "kept"),
    [
        ("ausam", 1e9, 4, True),
        ("ausam", 1e9, 5, False),
        ("sam", 2e9, 4, True),
        ("momentum_sam", 1e9, 3, False),
    ],
)
def test_every_gradient_has_the_loops_of_its_loss_also_one_of_few_examples(step, flops, loops, kept):
    base = LINE | {"step": "base alone", "product_flops": 1e9, "loops": 2}
    line = LINE | {"step": step, "product_flops": flops, "loops": loops}
    assert (not promises.missed([base, line])) == kept


def test_a_step_that_is_asked_for_brings_what_it_is_compared_with():
    place = accelerators.Place("v5p:8x8x8", "mlp", "copied", "auto")
    settings = accelerators.Settings(only=("sam", accelerators.IN_STRATA))
    found = accelerators.cases(settings, place)
    assert [case.name for case in found] == ["base alone", "sam, by hand", "sam", accelerators.IN_STRATA]
    assert place.chips == 512
    one_a_chip = accelerators.Place("v5e:2x2", "decoder_1b", "split", "auto")
    found = accelerators.cases(accelerators.Settings(only=(accelerators.IN_STRATA,)), one_a_chip)
    assert [case.name for case in found] == ["base alone"]


def losses(params, stats, batch):
    return jnp.square(batch["input"] @ params - 1), stats


@pytest.mark.parametrize(
    ("build", "method"),
    [
        (by_hand.sam, optax_sam.sam(cases.RHO)),
        (by_hand.momentum_sam, optax_sam.momentum_sam(cases.RHO)),
        (by_hand.gate, None),
        (by_hand.reuse, None),
    ],
)
def test_the_steps_by_hand_are_those_of_the_methods(build, method):
    """A gate's first step is perturbed here or not: each is one of two gradients."""
    batch = {"input": jnp.eye(2), "index": jnp.arange(2)}
    params = jnp.asarray([0.5, -0.2])
    init, step = build(losses, cases.usual_base())
    stats, state, seen = {}, init(params), []
    for _ in range(3):
        params, stats, state, loss = step(params, stats, state, batch)
        seen.append(params)
    if method is None:
        assert jnp.all(jnp.isfinite(params)) and seen[0][0] != seen[1][0]
        return
    other = jnp.asarray([0.5, -0.2])
    init, step = cases.ours(method)(losses, cases.usual_base())
    state = init(other)
    for wanted in seen:
        other, _, state, loss_of_method = step(other, {}, state, batch)
        assert jnp.allclose(other, wanted, atol=1e-7)
    assert jnp.allclose(loss, loss_of_method)


def test_products_are_counted_through_loops_and_by_the_dearest_branch():
    def program(x, kernel):
        x = lax.scan(lambda x, _: (x @ x, None), x, length=5)[0]
        x = lax.cond(x[0, 0] > 0, lambda x: x @ x @ x, lambda x: x, x)
        return jax.checkpoint(lambda x: x @ x)(x), lax.conv(x.reshape(1, 2, 4, 8), kernel, (1, 1), "VALID")

    shapes = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in ((8, 8), (3, 2, 3, 3))]
    found = roofline.product_flops(jax.make_jaxpr(program)(*shapes).jaxpr)
    assert found == (5 + 2 + 1) * 2 * 8**3 + 2 * (3 * 2 * 6) * (2 * 3 * 3)


def test_the_slowest_of_three_limits_a_step():
    found = roofline.limits("v5e:2x2", flops=197e9, size=819e6 * 2, sent=200e6 * 3)
    assert found == pytest.approx({"products": 1.0, "memory": 2.0, "exchanges": 3.0})


def test_a_machine_that_cannot_be_described_is_named_with_those_that_can():
    with pytest.raises(ValueError, match=r"'abacus:1' cannot be described here .* v5e:16x16"):
        topologies.mesh("abacus:1")


@pytest.mark.parametrize("machine", ["h100:1x1x1", "v5e:2x2"])
def test_a_step_compiles_for_a_machine_that_is_not_there(machine):
    """Where this environment has its compiler; no continuous integration has."""
    mesh = machines.mesh_of(machine)
    place = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())
    with jax.set_mesh(mesh):
        shape = jax.ShapeDtypeStruct((8, 8), jnp.float32, sharding=place)
        assert jax.jit(jnp.sin).lower(shape).compile().as_text()


@pytest.mark.slow
def test_what_a_gate_keeps_is_donated_where_it_is_split(as_optax_promotes):
    """XLA for GPUs would gather it on every device, if it were not told."""
    place = accelerators.Place("h100:1x1x8", "decoder", "split", "auto")
    machines.mesh_of(place.machine)
    problem = models.make("decoder", 8, make_arrays=jax.eval_shape)
    case = cases.Case("vsam(window=10)", cases.ours(optax_sam.vsam(window=10)), None)
    line = accelerators.compile_case(case, problem, place)
    assert line["donated_mb"] == pytest.approx(line["kept_mb"], rel=0.01)
