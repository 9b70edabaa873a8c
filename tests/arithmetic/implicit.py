"""Layers whose equations hold jaxprs inside named tuples, or rules of derivatives: solves, roots, loops."""

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.experimental.ode import odeint
from jax.scipy.sparse.linalg import bicgstab, cg, gmres

TABLE = np.array([1.0, 0.5, 2.0, -1.0], np.float32)


def plain(v):
    """What stands in the place of `blurred` where there is no convolution."""
    return 0.1 * v


def blurred(v):
    """A convolution: symmetric, and smaller than the identity."""
    return jnp.convolve(v, jnp.array([0.1, 0.2, 0.1]), mode="same")


def _matrix(d, inner):
    """`v -> (d^2 + 2) v + inner(v)`: symmetric, positive definite, linear in `v`."""
    return lambda v: (2 + d**2) * v + inner(v)


def linear_solve(d, x, inner):
    def direct(matvec, b):
        return jnp.linalg.solve(jax.jacfwd(matvec)(jnp.zeros_like(b)), b)

    return lax.custom_linear_solve(_matrix(d, inner), x, direct, transpose_solve=direct)


def solve_by_its_own_weights(d, x, inner):
    """The solve reads the parameter in another place than the matrix does."""
    del inner
    return lax.custom_linear_solve(lambda v: (2 + d**2) * v, x, lambda _, b: b / (2 + d**2), symmetric=True)


def solve_of_trees(d, x, inner):
    def matvec(v):
        return {"a": (2 + d**2) * v["a"] + inner(v["a"]), "b": (v["b"][0] * (3 + x**2),)}

    def direct(matvec, b):
        return cg(matvec, b, maxiter=8)[0]

    found = lax.custom_linear_solve(matvec, {"a": x, "b": (x * d,)}, direct, symmetric=True)
    return found["a"] + found["b"][0]


def preconditioned(d, x, inner):
    """The parameter of the preconditioner has no gradient."""
    return cg(_matrix(x, inner), d * x, M=lambda v: v / (1 + d**2), maxiter=8)[0]


def root(d, x, inner):
    def newton(f, y):
        return lax.fori_loop(0, 12, lambda _, y: y - jnp.linalg.solve(jax.jacfwd(f)(y), f(y)), y)

    def tangent(g, y):
        return jnp.linalg.solve(jax.jacfwd(g)(y), y)

    return lax.custom_root(lambda y: 2 * y + d**2 * jnp.tanh(y) + inner(y) - x, x, newton, tangent)


def ode(d, x, inner):
    return odeint(lambda y, t, d: -inner(y) * d - jnp.sin(t) * y, x, jnp.array([0.0, 0.5]), d)[-1]


def loop(d, x, inner):
    """A loop until the step is small, whose length the example decides, around what is differentiated."""
    size = lax.while_loop(lambda s: s[0] < 3, lambda s: (s[0] + 1, s[1] + inner(s[1])), (0, x))[1]
    return d * lax.stop_gradient(size) + x


def stopped_loop(d, x, inner):
    """The loop reads the parameter, and is not differentiated."""
    carry = 0, lax.stop_gradient(d * x)
    return d * lax.while_loop(lambda s: s[0] < 3, lambda s: (s[0] + 1, s[1] + inner(s[1])), carry)[1]


def scanned(d, x, inner):
    """Reads the parameter as a constant, as a carry and, twice, slice by slice."""

    def turn(carry, slices):
        y, scale = carry
        return (jnp.tanh(y * scale + d * inner(y)) + slices[0] * slices[1], scale * d), None

    return lax.scan(turn, (x, d), (jnp.stack([d, 2 * d]), jnp.stack([d, d])))[0][0]


def chosen(d, x, inner):
    return lax.cond(jnp.sum(x) > 0, lambda d, x: d * inner(x), lambda d, x: x + d**3, d, x)


def nested(d, x, inner):
    """A solve inside a loop inside a conditional inside a call."""

    def turn(x, _):
        return lax.cond(x[0] > -9, lambda: linear_solve(d, x, inner), lambda: x), None

    return jax.jit(lambda x: lax.scan(turn, x, length=2)[0])(x)


@jax.custom_vjp
def _looked_up(x, d, table, at):
    return x * d * table[at]


def _look_up_backward(kept, g):
    x, d, table, at = kept
    value = table.at[at].get()  # what arrays of NumPy do not have
    return g * d * value, g * x * table[at], None, None


_looked_up.defvjp(lambda *args: (_looked_up(*args), args), _look_up_backward)


def looked_up(d, x, inner):
    """A rule whose backward pass reads a constant of NumPy at a place that is traced."""
    at = (x[0] > 0).astype(jnp.int32) + 1
    return _looked_up(inner(x), d, jnp.asarray(TABLE), at)


@jax.custom_vjp
def _scaled(x, d, scale):
    return x * d * scale


_scaled.defvjp(
    lambda *args: (_scaled(*args), args),
    lambda kept, g: (g * kept[1] * kept[2].at[()].get(), g * kept[0] * kept[2].reshape([]), None),
)


def scaled(d, x, inner):
    """The same with a number, which stands in the equation itself."""
    return _scaled(inner(x), d, jnp.asarray(np.float32(1.5)))


LAYERS = {
    "custom_linear_solve": linear_solve,
    "a solve with weights of its own": solve_by_its_own_weights,
    "a solve of trees": solve_of_trees,
    "cg": lambda d, x, inner: cg(_matrix(d, inner), x, maxiter=8)[0],
    "preconditioned cg": preconditioned,
    "gmres": lambda d, x, inner: gmres(_matrix(d, inner), x, maxiter=4, solve_method="batched")[0],
    "bicgstab": lambda d, x, inner: bicgstab(_matrix(d, inner), x, maxiter=8)[0],
    "custom_root": root,
    "odeint": ode,
    "while_loop": loop,
    "a while_loop behind stop_gradient": stopped_loop,
    "scan": scanned,
    "cond": chosen,
    "a solve in a loop in a conditional": nested,
    "custom_vjp with a constant table": looked_up,
    "custom_vjp with a constant number": scaled,
}
"""`layer(d, x, inner)`, of two vectors of `SIZE` entries; `inner` is `plain` or `blurred`."""

SIZE = 4
