"""Programs for accelerators that are not there: what is read from them, and what is promised."""

import jax
import jax.numpy as jnp
import pytest
from jax import lax

from benchmarks import accelerators
from experiments.running import topologies


def test_what_a_program_consists_of_is_read_from_its_text():
    def program(x):
        x = lax.cond(x[0, 0] > 0, jnp.sort, jnp.sin, x)
        return lax.while_loop(lambda x: jnp.sum(x) < 100, lambda x: 2 * x + jnp.cos(x), x)

    compiled = jax.jit(program, donate_argnums=0).lower(jnp.ones((8, 8))).compile()
    found = accelerators.counts(compiled)
    assert (found["loops"], found["conditionals"], found["collectives"]) == (1, 1, {})
    assert found["donated_mb"] == 8 * 8 * 4 / 1e6 and found["flops"] > 64


LINE = {
    "machine": "h100:1x1x1",
    "model": "mlp",
    "loops": 0,
    "conditionals": 0,
    "kernels": 100,
    "temporaries_mb": 10.0,
    "kept_mb": 4.0,
    "donated_mb": 4.0,
}


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({}, None),
        ({"kernels": 134, "temporaries_mb": 10.4}, None),
        ({"kernels": 136}, "kernels 136, by hand 100"),
        ({"temporaries_mb": 10.6}, "temporaries_mb 10.6, by hand 10"),
        ({"loops": 1}, "1 loops, by hand 0"),
        ({"donated_mb": 2.0}, "2.0 of 4.0 MB are donated"),
        ({"error": "ValueError: no"}, "ValueError: no"),
    ],
)
def test_what_is_worse_than_by_hand_is_said(change, words):
    lines = [LINE | {"step": "sam, by hand"}, LINE | {"step": "sam"} | change]
    found = accelerators.missed(lines)
    assert (not found) if words is None else (len(found) == 1 and words in found[0])


@pytest.mark.parametrize("build", [accelerators.sam_by_hand, accelerators.gate_by_hand])
def test_the_steps_by_hand_are_sam(build):
    def losses(params, stats, batch):
        return jnp.square(batch @ params - 1), stats

    init, step = build(losses)
    params, batch = jnp.asarray([0.5, -0.2]), jnp.eye(2)
    moved, _, _, loss = step(params, {}, init(params), batch)
    gradient = jax.grad(lambda p: losses(p, {}, batch)[0].mean())
    there = params + accelerators.RHO * gradient(params) / jnp.linalg.norm(gradient(params))
    assert jnp.allclose(moved, params - 1e-3 * gradient(there), atol=1e-7)
    assert jnp.allclose(loss, losses(params, {}, batch)[0].mean())


def test_a_machine_that_cannot_be_described_is_named_with_those_that_can():
    with pytest.raises(ValueError, match=r"'abacus:1' cannot be described here .* v5e:16x16"):
        topologies.mesh("abacus:1")


@pytest.mark.parametrize("machine", ["h100:1x1x1", "v5e:2x2"])
def test_a_step_compiles_for_a_machine_that_is_not_there(machine):
    """Where this environment has its compiler; no continuous integration has."""
    try:
        mesh = topologies.mesh(machine)
    except ValueError as error:
        pytest.skip(str(error)[:200])
    place = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())
    with jax.set_mesh(mesh):
        shape = jax.ShapeDtypeStruct((8, 8), jnp.float32, sharding=place)
        assert jax.jit(jnp.sin).lower(shape).compile().as_text()
