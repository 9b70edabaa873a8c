"""What a random call is: a method, its wrappers, parameters, a batch, and how the step is called."""

import dataclasses
from typing import Any


@dataclasses.dataclass(frozen=True)
class Variety:
    """What costs compilation where each operation is compiled alone: shapes and dtypes to draw from."""

    batches: tuple[int, ...]
    shapes: tuple[tuple[int, ...], ...]
    dtypes: tuple[str, ...] = (
        "float32", "float16", "bfloat16", "complex64", "int32", "bool", "float64", "int8", "key",
    )  # fmt: skip
    num_examples: tuple[int, ...] = (24,)
    loops: tuple[str, ...] = ("scan",)
    x64: bool = False


FEW = Variety((1, 3), ((), (3,), (0,)))

PARTS = (
    Variety((1, 2, 3), ((), (3,), (0,)), ("float32", "float16", "int32", "int8", "key")),
    Variety(
        (5, 7), ((), (2, 2)), ("float32", "bfloat16", "complex64", "bool", "uint8"), num_examples=(24, 300)
    ),
    Variety((11, 4), ((1,), (2, 0)), ("float32", "float16", "float64", "int32")),
    Variety((13, 12), ((), (3,)), ("float32", "bfloat16", "int32"), num_examples=(300,)),
    Variety((17, 6), ((2, 2),), ("float16", "complex64", "float32")),
    Variety((19, 2), ((), (3, 2)), ("float64", "float32", "complex128", "bfloat16"), x64=True),
    Variety((23, 3), ((1,), (4,)), ("float64", "float16", "complex64", "int32"), x64=True),
    Variety((9, 8), ((), (0, 2), (5,)), ("float32", "bool", "float16"), num_examples=(24, 300)),
)
"""One for each part of the slow tests; together primes from 2 to 23."""

# Below a byte only where steps are compiled: XLA aborts on their concatenation, which a loop without jit is.
ALL = Variety(
    (1, 2, 3, 4, 5, 6, 7, 11, 12, 13, 17, 19, 23),
    ((), (1,), (3,), (2, 2), (0,), (2, 0)),
    (*Variety.dtypes, "int4", "uint2"),
    num_examples=(24, 300),
    loops=("scan", "vmap"),
)
ALL_DOUBLE = dataclasses.replace(ALL, dtypes=(*ALL.dtypes, "complex128"), x64=True)


@dataclasses.dataclass(frozen=True, eq=False)
class Leaf:
    """An array of the parameters; two places that hold the same leaf hold the same array.

    `dtype` is that of an array, or "key" for typed keys.
    """

    shape: tuple[int, ...]
    dtype: str
    kind: str
    scale: float


@dataclasses.dataclass(frozen=True, eq=False)
class Case:
    """One call, or two steps of a training."""

    method: str
    arguments: dict[str, Any]
    rho: float
    rho_kind: str
    wrappers: tuple[tuple[Any, ...], ...]
    tree: Any
    slope: float
    slope_at: int | None
    curvature: float
    size: int
    weights: str | None
    weights_dtype: str
    indices: str | None
    indices_dtype: str
    whole_batch: bool
    nan_padding: bool
    perturb: bool | None
    door: str
    mean_loss: bool
    has_aux: bool
    has_key: bool
    loss_scale: float | None
    wide_grads: bool
    steps: int
    x64: bool
    mistake: str | None
    seed: int

    @property
    def is_ausam(self) -> bool:
        return self.method == "ausam"

    @property
    def has_oracle(self) -> bool:
        return self.door != "grad_fn"

    @property
    def surely_perturbed(self) -> bool:
        """Whether the first step is perturbed, whatever is drawn."""
        return self.perturb is True or self.perturb is None and self.method not in ("rst", "grst", "vsam")
