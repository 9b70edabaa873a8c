"""States on disk: restored in the middle of a cycle, and as an earlier release has saved them.

`python -m tests.guarantees.test_checkpoints 0.1.0` keeps the states of a release in `states/` beside it.
"""

import functools
import sys
import warnings
from pathlib import Path

import flax.serialization
import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest

import optax_sam.flax
from tests.problem import assert_trees_equal, init_params, make_batch, make_indices
from tests.registry import CASES, METHODS, VARIANTS, compiled, over

STATES = Path(__file__).parent / "states"
SAVED_AT, LENGTH = 3, 6


@functools.cache
def a_run(name):
    """`(go_on, fresh, saved, last)`: a jitted loop, and the run at its beginning, middle and end."""
    tx, step = compiled(name)

    def go_on(run, first, last):
        for number in range(first, last):
            run = step(*run, make_batch(number), make_indices(number))[:2]
        return run

    fresh = init_params(), tx.init(init_params())
    saved = go_on(fresh, 0, SAVED_AT)
    return go_on, fresh, saved, go_on(saved, SAVED_AT, LENGTH)


@pytest.mark.parametrize("name", over(VARIANTS))
def test_flax_and_orbax_restore_and_the_run_goes_on_bit_for_bit(name, tmp_path):
    go_on, fresh, saved, last = a_run(name)
    restored = [flax.serialization.from_bytes(fresh, flax.serialization.to_bytes(saved))]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Orbax's own
        with ocp.StandardCheckpointer() as checkpointer:
            checkpointer.save(tmp_path / "saved", saved)
            checkpointer.wait_until_finished()
            restored.append(checkpointer.restore(tmp_path / "saved", jax.eval_shape(lambda: fresh)))
    for again in restored:
        assert_trees_equal(jax.tree.map(np.asarray, again), jax.tree.map(np.asarray, saved))
        assert_trees_equal(go_on(again, SAVED_AT, LENGTH), last)


@pytest.mark.parametrize("file", sorted(STATES.glob("*.msgpack")), ids=lambda file: file.stem)
def test_states_of_earlier_releases_load_and_go_on(file):
    kept = flax.serialization.msgpack_restore(file.read_bytes())
    assert set(kept) <= set(CASES) and kept
    for name, (saved, wanted) in ((name, (run["saved"], run["last"])) for name, run in kept.items()):
        go_on, fresh, _, _ = a_run(name)
        saved = optax_sam.flax.from_0_1(saved)
        got, _ = go_on(flax.serialization.from_state_dict(fresh, saved), SAVED_AT, LENGTH)
        for x, y in zip(jax.tree.leaves(got), jax.tree.leaves(wanted), strict=True):
            np.testing.assert_allclose(x, y, rtol=1e-4, atol=1e-5, err_msg=name)


def test_a_first_release_is_kept():
    assert (STATES / "0.1.0.msgpack").exists()


def write(version):
    """Keeps the states of all methods."""
    runs = {name: a_run(name) for name in METHODS}
    kept = {
        name: {"saved": flax.serialization.to_state_dict(saved), "last": last[0]}
        for name, (_, _, saved, last) in runs.items()
    }
    STATES.mkdir(exist_ok=True)
    kept = jax.tree.map(np.asarray, kept)
    (STATES / f"{version}.msgpack").write_bytes(flax.serialization.msgpack_serialize(kept))


if __name__ == "__main__":
    write(sys.argv[1])
