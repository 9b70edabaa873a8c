"""What a step gives, in literal NumPy: every public method and wrapper, on the loss of `problems.py`."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
import numpy as np

from tests.fuzzing.cases import Case
from tests.fuzzing.near import SINGLE, Near, divided, near, norm
from tests.fuzzing.problems import Problem, wide_dtype

UNKNOWN = Near(np.zeros([]), np.full([], np.inf))


@dataclasses.dataclass(frozen=True)
class Rows:
    """Examples; those that do not count have the weight 0."""

    s: np.ndarray
    t: np.ndarray
    weights: np.ndarray

    def only(self, chosen: Any) -> "Rows":
        """Some of them."""
        return Rows(self.s[chosen], self.t[chosen], self.weights[chosen])

    def parts(self, number: int) -> list["Rows"]:
        """Contiguous slices."""
        return [self.only(chosen) for chosen in np.split(np.arange(len(self.s)), number)]


@dataclasses.dataclass(frozen=True)
class Wanted:
    """What comes of a step.

    Attributes:
      loss: at the start.
      kept_loss: the same, as the state has it.
      perturbed_loss: None in a step that is not perturbed.
      grads: the first gradient.
      descent: the sharpness-aware gradient.
      finite: whether every gradient was finite; None where that hangs on a rounding.
      norms: of the first gradient, the perturbed one, and the perturbation; the last two None in a
        step that is not perturbed.
      memory: the difference of the two gradients that is remembered, if it is.
    """

    loss: Near
    kept_loss: Near
    perturbed_loss: Near | None
    grads: list[Near]
    descent: list[Near]
    finite: bool | None
    norms: tuple[Near, Near | None, Near | None]
    memory: list[Near] | None


def dtypes_of_gradients(case: Case, problem: Problem) -> list[Any]:
    """In which the method sees and gives gradients."""
    is_wide = case.loss_scale is not None if case.has_oracle else case.wide_grads
    return [wide_dtype(x.dtype) if is_wide else x.dtype for x in problem.inexact_arrays]


@dataclasses.dataclass(frozen=True)
class Step:
    """One step of a case.

    Attributes:
      drawn: the numbers of the rows that were drawn, -1 for padding; None for all rows.
      due: whether the step is perturbed.
      memory: what the step before has remembered.
      number: 0 or 1.
    """

    case: Case
    problem: Problem
    drawn: np.ndarray | None
    due: bool
    memory: list[Near] | None
    number: int

    def wanted(self) -> Wanted:
        """What the caller gets."""
        case, real, batch = self.case, self.problem.real, self.problem.batch
        weights = np.ones(case.size) if self.problem.weights is None else self.problem.weights
        if not case.has_oracle:
            real, weights = np.ones(case.size, bool), np.ones(case.size)
        one = np.ones([], batch["s"].dtype)
        rows = Rows(
            s=np.where(np.isnan(batch["s"]), one, batch["s"]),
            t=np.where(np.isnan(batch["t"]), one, batch["t"]),
            weights=np.where(real, weights, 0).astype(np.float64),
        )
        with np.errstate(all="ignore"):
            return self._wrapped(list(case.wrappers), rows, self.drawn, 1)

    def _wrapped(self, wrappers: list[Any], rows: Rows, drawn: Any, slices: int) -> Wanted:
        if not wrappers:
            return self._alone(rows, drawn, slices)
        (kind, number, _), *rest = wrappers
        if kind == "accumulated":
            return self._wrapped(rest, rows, drawn, slices * number)
        parts = rows.parts(number)
        outcomes = [
            self._wrapped(rest, part, None if drawn is None else drawn[n], slices)
            for n, part in enumerate(parts)
        ]
        return self._mean(_shares(parts), outcomes)

    def _mean(self, shares: list[float], outcomes: list[Wanted]) -> Wanted:
        """The mean over slices; those of padding alone count nothing."""
        counted = [(share, o) for share, o in zip(shares, outcomes, strict=True) if share]

        def mean(get: Callable[[Wanted], Any]) -> Any:
            return _total([get(o) * share for share, o in counted])

        def kept(value: Near) -> Near:
            """In the state every slice's number is a float32, and so is their mean."""
            return dataclasses.replace(value.rounded(np.float32), info=SINGLE)

        def tree(get: Callable[[Wanted], list[Near]]) -> list[Near]:
            return [mean(lambda o, n=n: get(o)[n]).rounded(dtype) for n, dtype in enumerate(self._own_dtypes)]

        verdicts = [o.finite for _, o in counted]
        finite = all(verdicts) if None not in verdicts or False in verdicts else None
        norms = tuple(
            None if n and not self.due else mean(lambda o, n=n: kept(o.norms[n])) if finite else UNKNOWN
            for n in range(3)
        )
        memory = None
        if any(o.memory is not None for o in outcomes):
            known = finite and all(o.memory is not None for o in outcomes)
            memory = tree(lambda o: o.memory) if known else [x.plus_or_minus(np.inf) for x in self._params]
        return Wanted(
            mean(lambda o: o.loss),
            mean(lambda o: kept(o.kept_loss)),
            mean(lambda o: kept(o.perturbed_loss)) if self.due else None,
            tree(lambda o: o.grads),
            tree(lambda o: o.descent),
            finite,
            norms,
            memory,
        )

    def _alone(self, rows: Rows, drawn: Any, slices: int) -> Wanted:
        """A step of the method itself."""
        case, arguments, blur = self.case, self.case.arguments, 0.0
        if drawn is not None:
            chosen = np.unique(np.where(drawn >= 0, drawn, np.max(drawn, initial=0)))  # without padding
            rows, slices, blur = rows.only(chosen % len(rows.s)), 1, 2.0 if slices > 1 else 0.0
        start = self._start()
        loss, grads = self._evaluate(rows, start, slices, blur)
        dtypes = self._own_dtypes
        wide = np.float64 if any(jnp.finfo(d).bits == 64 for d in dtypes) else np.float32
        grad_norm = norm(grads, wide)
        if not self.due:
            descent = grads
            if self.memory is not None and arguments["reuse_steps"]:
                past = [x * arguments["reuse_decay"] for x in self.memory]
                descent = [(g + d).rounded(k) for g, d, k in zip(grads, past, dtypes, strict=True)]
            return Wanted(
                loss, loss, None, grads, descent, _verdict(grad_norm), (grad_norm, None, None), None
            )
        perturbation, length = self._climb([g.conj() for g in grads], dtypes, wide)
        point = [
            (x + e).rounded(a.dtype)
            for x, e, a in zip(start, perturbation, self.problem.inexact_arrays, strict=True)
        ]
        perturbed_loss, perturbed_grads = self._evaluate(rows, point, slices, blur)
        perturbed_norm = norm(perturbed_grads, wide)
        descent = [
            x.rounded(d) for x, d in zip(self._combine(grads, perturbed_grads, wide), dtypes, strict=True)
        ]
        finite = _verdict(grad_norm, perturbed_norm, *descent)
        memory = None
        if case.method == "vsam" and finite is not False:
            memory = [
                (p - g).saturated(a.dtype)
                for p, g, a in zip(perturbed_grads, grads, self.problem.inexact_arrays, strict=True)
            ]
        norms = grad_norm, perturbed_norm, length
        return Wanted(loss, loss, perturbed_loss, grads, descent, finite, norms, memory)

    def _start(self) -> list[Near]:
        """The parameters, or somewhere around them."""
        if self.case.method != "tsam":
            return self._params
        own = self.case.arguments
        largest = own["radius"]
        if own["noise"] == "gaussian":
            largest = min(largest, 9 * own["noise_scale"])  # no draw of these tests is larger
        return [
            x.plus_or_minus(largest).rounded(a.dtype) if largest else x
            for x, a in zip(self._params, self.problem.inexact_arrays, strict=True)
        ]

    def _climb(self, uphill: list[Near], dtypes: list[Any], wide: Any) -> tuple[list[Near], Near]:
        """The perturbation, and its norm."""
        case = self.case
        # A NumPy number, and an array where float64 is not enabled, are float32.
        is_single = case.rho_kind == "numpy" or not case.x64
        given = float(np.float32(case.rho)) if is_single else case.rho
        rho = near(given if self.number == 0 or case.rho_kind != "schedule" else given / 2)
        rho = rho.plus_or_minus(case.rho if case.rho < 1e-37 else 0.0)
        weights = [x.abs() for x in self._params]
        if case.method == "asam":
            eta = near(case.arguments["eta"])
            sizes = [
                near(1.0) if bias else w + eta
                for w, bias in zip(weights, self.problem.inexact_is_bias, strict=True)
            ]
            scaled = [x * t for x, t in zip(uphill, sizes, strict=True)]
            dual = [x * t for x, t in zip(scaled, sizes, strict=True)]
            size, length = norm(scaled, wide), norm(dual, wide)
        else:
            dual = [x * w for x, w in zip(uphill, weights, strict=True)] if case.method == "pugd" else uphill
            size = length = norm(dual, wide)
        unit = divided(dual, size)
        if case.method not in ("asam", "pugd"):
            unit = [x.rounded(d) for x, d in zip(unit, dtypes, strict=True)]
        perturbation = [(x * rho).rounded(d) for x, d in zip(unit, dtypes, strict=True)]
        relative = near(np.float32(1)) if length is size and size.is_not_zero else divided([length], size)[0]
        return perturbation, relative * rho

    def _combine(self, grads: list[Near], perturbed_grads: list[Near], wide: Any) -> list[Near]:
        """The descent."""
        case, own = self.case, self.case.arguments
        if case.method == "pugd":
            total = perturbed_grads
            if own["sum_gradients"]:
                total = [g + p for g, p in zip(grads, perturbed_grads, strict=True)]
            return divided(total, norm(total, wide))
        if case.method == "grst":
            alpha = own["alpha"] if own["alpha"] is not None else 1 / (own["probability"] or 1)
            return [g * (1 - alpha) + p * alpha for g, p in zip(grads, perturbed_grads, strict=True)]
        return perturbed_grads

    def _evaluate(self, rows: Rows, point: list[Near], slices: int, blur: float) -> tuple[Near, list[Near]]:
        """The loss and its gradient, the mean over slices; a draw from slices is blurred instead."""
        parts = rows.parts(slices)
        is_cut = slices > 1 or blur > 0
        if is_cut and not np.any(rows.weights):  # nothing of a slice of padding counts, whatever it is
            zeros = [np.zeros(x.shape, wide_dtype(x.dtype)) for x in self.problem.inexact_arrays]
            return near(0.0), [near(x).rounded(d) for x, d in zip(zeros, self._own_dtypes, strict=True)]
        found = [
            (a, *self._gradient(part, point)) for a, part in zip(_shares(parts), parts, strict=True) if a
        ]
        loss = _total([a * one for a, one, _ in found])
        grads = [_total([a * tree[n] for a, _, tree in found]) for n in range(len(point))]
        if blur:  # which row is in which slice is not known
            size = [
                abs(g.value) + 2 * abs(c) + 2 * self.problem.curvature * abs(x.value)
                for g, c, x in zip(grads, self.problem.inexact_slopes, point, strict=True)
            ]
            # With a loss scale, what is rounded to the leaf's dtype is widened after it.
            grads = [
                g.plus_or_minus(blur * float(jnp.finfo(a.dtype).eps) * s)
                for g, a, s in zip(grads, self.problem.inexact_arrays, size, strict=True)
            ]
        return loss, [g.rounded(d) for g, d in zip(grads, self._own_dtypes, strict=True)]

    def _gradient(self, rows: Rows, point: list[Near]) -> tuple[Near, list[Near]]:
        scale = (self.case.loss_scale if self.case.has_oracle else None) or 1.0
        half = near(self.problem.curvature / 2)
        counted = rows.only(rows.weights != 0)
        if not counted.weights.size:
            loss, s, t = near(0.0), near(0.0), near(0.0)
        else:
            shares = counted.weights / counted.weights.sum()
            s, t = (near(counted.s) * shares).sum(), (near(counted.t) * shares).sum()
            loss = (self._losses(counted, point) * shares).sum()
        grads = []
        for x, c, own in zip(point, self.problem.inexact_slopes, self._own_dtypes, strict=True):
            wide, leaf = wide_dtype(c.dtype), self.problem.inexact_arrays[len(grads)].dtype
            outer = (x * (t * scale)).rounded(wide) * half
            uphill = near(c) * (s * scale) + outer + (x * half) * (t * scale)
            kept = uphill.conj().rounded(wide).rounded(own if scale == 1.0 else leaf)
            grads.append(kept if scale == 1.0 else (kept / near(scale)).rounded(own))
        return loss, grads

    def _losses(self, rows: Rows, point: list[Near]) -> Near:
        """One per row; unknown where a part of the sum comes near the largest number."""
        linear = square = near(np.zeros([], rows.s.dtype))
        largest = 0.0
        for x, c in zip(point, self.problem.inexact_slopes, strict=True):
            terms, squares = x * near(c).conj(), x.abs() * (self.problem.curvature / 2) * x.abs()
            linear, square = linear + terms.real().sum(), square + squares.sum()
            largest += np.sum(abs(terms.value)) + np.sum(squares.value)
        losses = near(rows.s) * linear + near(rows.t) * square
        on_the_brink = 4 * largest > float(np.finfo(rows.s.dtype).max)
        return losses.plus_or_minus(np.inf if on_the_brink else 0.0).rounded(rows.s.dtype)

    @property
    def _params(self) -> list[Near]:
        return [near(np.asarray(x).astype(wide_dtype(x.dtype))) for x in self.problem.inexact_arrays]

    @property
    def _own_dtypes(self) -> list[Any]:
        return dtypes_of_gradients(self.case, self.problem)


def _shares(parts: list[Rows]) -> list[float]:
    """What part of all weights each has; equal ones where there are none."""
    weights = [part.weights.sum() for part in parts]
    total = sum(weights)
    return [w / total if total else 1 / len(parts) for w in weights]


def _total(values: list[Near]) -> Near:
    total = values[0]
    for value in values[1:]:
        total = total + value
    return total


def _verdict(*norms: Near) -> bool | None:
    """Whether all are finite."""
    if any(n.is_not_finite for n in norms):
        return False
    return True if all(n.is_finite for n in norms) else None
