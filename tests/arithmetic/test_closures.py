"""The arrays that a function closes over, found and replaced."""

import functools

import jax.numpy as jnp
import numpy as np

from optax_sam.closures import as_of_now, closed_over

HIDDEN = jnp.ones(2)


def test_arrays_in_cells_pytrees_partials_defaults_and_methods_are_replaced():
    a, b, c, d, e = (jnp.full([1], float(n)) for n in range(5))
    tree = {"b": b, "none": None, "name": "x", "pair": (c, 3)}

    class Scaled:
        def __init__(self, scale):
            self.scale = scale

        def times(self, x, shift):
            return self.scale * x + shift

    def inner(x, default=d, *, keyword=e):
        return x + a + default + keyword

    partial = functools.partial(Scaled(2.0).times, shift=c)

    def loss(x):
        return inner(x) + tree["b"] + tree["pair"][0] * tree["pair"][1] + partial(x)

    arrays, rebuild = closed_over(loss)
    assert {id(x) for x in arrays} == {id(x) for x in (a, b, c, d, e)}
    np.testing.assert_array_equal(rebuild(arrays)(jnp.ones(1)), loss(jnp.ones(1)))
    zeros = [0 * x for x in arrays]
    np.testing.assert_array_equal(rebuild(zeros)(jnp.ones(1)), [1 + 2])


def test_what_holds_no_array_stays_the_same_object():
    seen, weights = [], jnp.ones(1)

    def loss(x):
        seen.append(x)
        return x + HIDDEN + weights

    arrays, rebuild = closed_over(loss)
    assert len(arrays) == 1
    rebuild([2 * weights])(jnp.ones(2))
    assert len(seen) == 1
    assert closed_over(np.sin)[1]([]) is np.sin


def test_a_function_that_calls_itself_is_left_at_peace():
    array = jnp.ones(1)

    def count(n):
        return array if n == 0 else count(n - 1)

    arrays, rebuild = closed_over(count)
    assert len(arrays) == 1
    np.testing.assert_array_equal(rebuild([3 * array])(0), [3.0])


def test_variables_that_the_function_assigns_itself_stay_shared():
    calls, weights = 0, jnp.ones(1)

    def bump():
        nonlocal calls
        calls += 1

    def loss(x):
        bump()

        def inner():
            nonlocal calls
            calls += 10

        inner()
        return x + weights

    as_of_now(loss)(jnp.ones(1))
    arrays, rebuild = closed_over(loss)
    rebuild(arrays)(jnp.ones(1))
    assert calls == 22 and len(arrays) == 1


def test_a_function_is_held_as_it_is_now():
    scale, later = 2.0, None

    def inner(x):
        return scale * x

    def loss(x, *, shift=1.0):
        """Documented."""
        return functools.partial(inner)(x) + shift if later is None else later

    held = as_of_now(loss)
    scale, later = 5.0, 7.0
    assert held(1.0) == 3.0 and held(1.0, shift=0.0) == 2.0 and loss(1.0) == 7.0
    assert held.__doc__ == "Documented." and held.__name__ == "loss"
    assert as_of_now(np.sin) is np.sin
