"""Arrays with a bound on how far float arithmetic may be from them: tolerances that need no tuning.

Every operation is done in float64 and adds its rounding error, to first order. What is known not to be
finite has a value of inf or NaN and the error 0. Where the outcome hangs on a rounding (near an
overflow, or a division by what may be zero), the value is 0 and the error infinite.
"""

import dataclasses
from typing import Any

import jax.numpy as jnp
import numpy as np

SINGLE, DOUBLE = np.finfo(np.float32), np.finfo(np.float64)


@dataclasses.dataclass(frozen=True)
class Near:
    """`value`, in float64 or complex128, give or take `error`; computed in the precision of `info`."""

    value: Any
    error: Any
    info: Any = DOUBLE

    def __add__(self, other: Any) -> "Near":
        other = near(other)
        return _computed(self.value + other.value, self.error + other.error, self, other)

    def __sub__(self, other: Any) -> "Near":
        return self + near(other) * -1.0

    def __mul__(self, other: Any) -> "Near":
        other = near(other)
        x, y, dx, dy = abs(self.value), abs(other.value), self.error, other.error
        return _computed(self.value * other.value, x * dy + y * dx + dx * dy, self, other)

    def __truediv__(self, other: Any) -> "Near":
        other = near(other)
        value = self.value / other.value
        smallest = np.maximum(abs(other.value) - other.error, 0)
        return _computed(value, (self.error + abs(value) * other.error) / smallest, self, other)

    __rmul__ = __mul__

    def abs(self) -> "Near":
        return _computed(abs(self.value), self.error, self)

    def conj(self) -> "Near":
        return dataclasses.replace(self, value=np.conj(self.value))

    def real(self) -> "Near":
        return dataclasses.replace(self, value=np.real(self.value))

    def sum(self) -> "Near":
        """The sum of all entries, added up in any order."""
        rounding = float(self.info.eps) * np.size(self.value) * np.sum(abs(self.value))
        return _computed(np.sum(self.value), np.sum(self.error) + rounding, self)

    def plus_or_minus(self, error: Any) -> "Near":
        """With a larger bound."""
        return dataclasses.replace(self, error=self.error + error)

    def rounded(self, dtype: Any) -> "Near":
        """Kept as an array of `dtype`."""
        info = jnp.finfo(dtype)
        largest, tiny, smallest = map(float, (info.max, info.tiny, info.smallest_subnormal))
        size = np.maximum(abs(np.real(self.value)), abs(np.imag(self.value)))
        low, high = size - self.error, size + self.error
        error = self.error + float(info.eps) / 2 * size
        # float16 keeps numbers below its normal ones, which XLA on a CPU sets to zero in wider dtypes.
        lost = smallest if jnp.dtype(dtype) == jnp.float16 else np.minimum(high, tiny)
        error = np.where(low < tiny, error + np.where(high > 0, lost, 0.0), error)
        overflows, may_overflow = low > largest * (1 + float(info.eps)), high >= largest
        vanishes = high < smallest / 2
        value = np.where(vanishes, 0, np.where(overflows, np.inf, self.value))
        error = np.where(vanishes, 0.0, np.where(may_overflow & ~overflows, np.inf, error))
        return _settled(value, error, overflows | ~np.isfinite(self.value), self.info)

    def saturated(self, dtype: Any) -> "Near":
        """Kept as an array of `dtype`, the largest number in the place of what overflows."""
        kept = self.rounded(dtype)
        over = ~np.isfinite(kept.value) & np.isfinite(self.value)
        value = np.where(over, np.sign(self.value) * float(jnp.finfo(dtype).max), kept.value)
        return Near(value, np.where(over & np.iscomplexobj(value), np.inf, kept.error), self.info)

    @property
    def is_finite(self) -> bool:
        """Whether every entry is known to be finite."""
        return bool(np.all(np.isfinite(self.value) & np.isfinite(self.error)))

    @property
    def is_not_finite(self) -> bool:
        """Whether some entry is known not to be finite."""
        return not np.all(np.isfinite(self.value))

    @property
    def is_zero(self) -> bool:
        """Whether every entry is known to be zero."""
        return bool(np.all((self.value == 0) & (self.error == 0)))

    @property
    def is_not_zero(self) -> bool:
        """Whether every entry is known not to be zero."""
        return bool(np.all(abs(self.value) > 2 * self.error))

    def allows(self, got: Any) -> bool:
        """Whether `got` may have come out: finite or not, and within twice the error."""
        got = np.asarray(got)
        if got.shape != np.shape(self.value):
            return False
        got = got.astype(np.complex128 if np.iscomplexobj(got) else np.float64)
        with np.errstate(all="ignore"):
            off = np.where(np.isfinite(got), abs(got - self.value), np.inf)
        known_finite = np.isfinite(self.value) & np.isfinite(self.error)
        alike = np.where(known_finite, off <= 2 * self.error, ~np.isfinite(got) | np.isinf(self.error))
        return bool(np.all(alike))


def near(x: Any) -> Near:
    """A number or an array as exact; of arrays, those below the normal numbers may count as zero."""
    if isinstance(x, Near):
        return x
    is_array = isinstance(x, np.ndarray | np.generic)
    info = DOUBLE if not is_array or x.dtype.itemsize // (1 + np.iscomplexobj(x)) == 8 else SINGLE
    x = np.asarray(x)
    x = x.astype(np.complex128 if np.iscomplexobj(x) else np.float64)
    return Near(x, np.where(abs(x) < float(info.tiny), abs(x), 0.0) if is_array else np.zeros(x.shape), info)


def norm(leaves: list[Near], dtype: Any = np.float32) -> Near:
    """The global L2 norm, kept in `dtype`."""
    leaves = [x for x in leaves if np.size(x.value)]
    if not leaves:
        return near(0.0)
    sizes = np.concatenate([np.ravel(abs(x.value)) for x in leaves])
    errors = np.concatenate([np.ravel(x.error) for x in leaves])
    scale = sizes.max() if 0 < sizes.max() < np.inf else 1.0
    value = scale * np.sqrt(np.sum((sizes / scale) ** 2))
    error = np.sqrt(np.sum(errors**2)) + float(leaves[0].info.eps) * sizes.size * value
    return _computed(value, error, *(x.sum() for x in leaves)).rounded(dtype)


def divided(leaves: list[Near], divisor: Near) -> list[Near]:
    """`leaves / divisor`, and zeros where the divisor is zero."""
    if divisor.is_zero:
        return [near(np.zeros(np.shape(x.value), x.value.dtype)) for x in leaves]
    if divisor.is_not_zero or divisor.is_not_finite:
        return [x / divisor for x in leaves]
    return [x.plus_or_minus(np.inf) for x in leaves]


def _computed(value: Any, error: Any, *operands: Near) -> Near:
    """With the rounding of one operation; a result below the normal numbers may have become zero."""
    info = max((operand.info for operand in operands), key=lambda i: i.eps)
    size = abs(value)
    rounding = np.where(size > 0, float(info.eps) * size + np.minimum(size, float(info.tiny)), 0.0)
    broken = np.any(np.stack([np.any(~np.isfinite(o.value)) for o in operands]))
    return _settled(value, error + rounding, broken, info)


def _settled(value: Any, error: Any, broken: Any, info: Any) -> Near:
    """Not finite for a reason that is known, or unknown."""
    value = np.asarray(value)
    finite, shape = np.isfinite(value), value.shape
    error = np.where(np.asarray(error) > float(info.max), np.inf, error)
    error = np.where(finite & ~np.isnan(error), error, np.where(finite | ~np.asarray(broken), np.inf, 0.0))
    return Near(np.where(np.isinf(error), np.zeros_like(value), value), np.broadcast_to(error, shape), info)
