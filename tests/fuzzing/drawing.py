"""How cases are drawn."""

import dataclasses
from typing import Any

from hypothesis import strategies as st

from tests.fuzzing.cases import Case, Leaf, Variety
from tests.fuzzing.errors import MISTAKES, mistake_applies


def _arguments(draw: Any, method: str, variety: Variety) -> dict[str, Any]:
    """Arguments beside the radius."""

    def one(*values):
        return draw(st.sampled_from(values))

    if method == "asam":
        return {"eta": one(0.01, 0.0, 1.0)}
    if method == "rst":
        return {"probability": one(0.5, 0.0, 1.0), "seed": one(0, 1, 2)}
    if method == "grst":
        return {"probability": one(0.5, 0.0, 1.0), "alpha": one(None, 0.0, 1.0, 2.5, -1.0), "seed": one(0, 1)}
    if method == "vsam":
        window, slices = one((4, 2), (6, 3))
        return {
            "window": window, "slices": slices, "tail": one(1, 10), "reuse_decay": one(0.7, 0.0, 1.0),
            "reuse_steps": one(6, 1, 0), "warmup_steps": one(0, 1), "seed": one(0, 1, 2),
        }  # fmt: skip
    if method == "pugd":
        return {"sum_gradients": one(True, False)}
    if method == "tsam":
        return {
            "tilt": one(1.0, 0.0, 20.0), "num_samples": one(1, 2, 3), "radius": one(0.0, 0.1, 1.0, 1e30),
            "noise_scale": one(1.0, 0.0), "noise": one("gaussian", "uniform"), "seed": one(0, 1),
        }  # fmt: skip
    if method == "ausam":
        return {
            "num_examples": one(*variety.num_examples), "fraction": one(0.5, 1.0, 0.3, 0.1),
            "score": one("loss_difference", "loss_difference", "gradient_norm"), "strata": one(1, 1, 2, 3),
            "ramp_steps": one(0, 3), "seed": one(0, 1),
        }  # fmt: skip
    assert method == "sam", f"no arguments are drawn for {method}"
    return {}


def _trees(variety: Variety) -> st.SearchStrategy:
    leaf = st.builds(
        Leaf,
        shape=st.sampled_from(variety.shapes),
        dtype=st.sampled_from(variety.dtypes),
        kind=st.sampled_from(["jax", "jax", "jax", "numpy"]),
        scale=st.sampled_from([1.0, 1.0, 0.0, 30.0]),
    )
    number = st.builds(
        Leaf, shape=st.just(()), dtype=st.just("float32"), kind=st.just("python"), scale=st.just(1.0)
    )
    names = st.sampled_from(["w", "bias", "kernel", "out_bias"])

    def inside(kids):
        return st.one_of(
            st.dictionaries(names, kids, max_size=3),
            st.lists(kids, max_size=3),
            st.lists(kids, max_size=3).map(tuple),
            leaf.map(lambda x: {"w": x, "again": (x,)}),
        )

    inner = st.recursive(st.one_of(leaf, leaf, leaf, number, st.none()), inside, max_leaves=5)
    return st.one_of(inner, st.dictionaries(names, inner, min_size=1, max_size=3), leaf)


def _wrappers(draw: Any, variety: Variety, size: int) -> tuple[tuple[Any, ...], ...]:
    def wrapper(size):
        divisors = [n for n in range(1, size + 1) if size % n == 0]
        number = draw(st.sampled_from([*divisors, *divisors, 2, 3]))
        kind = draw(st.sampled_from(["per_microbatch", "accumulated"]))
        loop = draw(st.sampled_from(variety.loops)) if kind == "per_microbatch" else None
        return kind, number, loop

    depth = draw(st.sampled_from([0, 0, 0, 1, 1, 1, 2]))
    wrappers = [wrapper(size) for _ in range(min(depth, 1))]
    if depth == 2:
        wrappers.append(wrapper(max(size // wrappers[0][1], 1)))
    return tuple(wrappers)


@st.composite
def cases(draw: Any, methods: tuple[str, ...], variety: Variety) -> Case:
    """Any call, with a mistake in one of four."""

    def one(*values):
        return draw(st.sampled_from(values))

    method = one(*methods)
    x64 = variety.x64
    size = one(*variety.batches)
    wrappers = _wrappers(draw, variety, size)
    is_ausam = method == "ausam"
    needs_oracle = bool(wrappers) or method in ("tsam", "ausam")
    oracles = ["value_and_grad"] * 4 + ["by hand"]
    door = one(*oracles, *oracles, *(["grad_fn"] if needs_oracle else ["grad_fn"] * 4))
    weights = one(None, None, "ones", "some", "none", "various")
    scored = ("distinct", "repeated", "outside", "all outside")
    rare = one(*[False] * 12, True)  # arguments that are refused together with others
    case = Case(
        method=method,
        arguments=_arguments(draw, method, variety),
        rho=one(0.05, 1.0, 0.0, 1e-40, 1e-8, 1e6, 1e30, 3e38),
        rho_kind=one("number", "number", "numpy", "array", "schedule"),
        wrappers=wrappers,
        tree=draw(_trees(variety)),
        slope=one(1.0, 1.0, 1.0, 0.0, 1e-40, 1e-30, 1e30, float("inf"), float("nan")),
        slope_at=one(None, None, 0, 1, 2),
        curvature=one(1.0, 0.0, 0.5, 1000.0),
        size=size,
        weights=weights,
        weights_dtype=one("float32", "float16", "bool", "int8", *(["float64"] if x64 else [])),
        indices=one(*scored) if is_ausam and not rare else one(None, "distinct"),
        indices_dtype=one("int32", "int8", "uint8", "uint32", *(["int64"] if x64 else [])),
        whole_batch=one(False, False, True) if is_ausam else False,
        nan_padding=one(True, False),
        perturb=one(None, None, True, False),
        door=door,
        mean_loss=one(False, False, True) if not is_ausam and weights is None or rare else False,
        has_aux=one(True, True, False) if is_ausam else one(True, False),
        has_key=one(False, False, True),
        loss_scale=one(None, None, None, 1024.0, 0.001),
        wide_grads=one(False, True),
        steps=one(1, 1, 1, 2),
        x64=x64,
        mistake=one(*[None] * 2 * len(MISTAKES), *MISTAKES),
        seed=one(*range(8)),
    )  # fmt: skip
    return case if mistake_applies(case) else dataclasses.replace(case, mistake=None)
