"""What must hold of a call: the documented error, or a step that agrees with `reference.py`."""

import re
from typing import Any

import jax
import numpy as np

import optax_sam
from tests.fuzzing.cases import Case
from tests.fuzzing.errors import expected_errors
from tests.fuzzing.problems import Problem, make_problem, numbers_of
from tests.fuzzing.reference import Step, Wanted, dtypes_of_gradients
from tests.fuzzing.running import Outcome, run


def check(case: Case, mode: str) -> list[str]:
    """Runs a case, and says what came of it."""
    with jax.enable_x64(case.x64):
        expected = expected_errors(case)
        problems = [make_problem(case, step) for step in range(case.steps)]
        try:
            outcomes = run(case, problems, mode)
        except (ValueError, TypeError) as error:
            met = [
                p for kind, p in expected if isinstance(error, kind) and re.search(p, str(error), re.DOTALL)
            ]
            if not met:
                raise
            return [f"error: {case.mistake or _kind(met[0])}", "errors", case.method, mode]
        assert not expected, f"nothing was raised, but one of {expected} should have been"
        said, memory = [], None
        for number, (problem, outcome) in enumerate(zip(problems, outcomes, strict=True)):
            due = bool(outcome.before.due) if case.perturb is None else case.perturb
            drawn = None if not case.is_ausam or outcome.aux is None else drawn_rows(outcome)
            check_trees(problem, outcome, dtypes_of_gradients(case, problem))
            check_counts(case, outcome, due)
            if drawn is not None:
                check_draw(case, problem, drawn)
            if case.is_ausam and drawn is None and not _sees_everything(case):
                said.append("draw unknown")
                break
            wanted = Step(case, problem, drawn, due, memory, number).wanted()
            memory = wanted.memory
            check_verdict(case, outcome, wanted)
            check_values(case, problem, outcome, wanted)
            said.append({True: "finite", False: "not finite", None: "on the brink"}[wanted.finite])
        return [*said, "results", case.method, mode, *(kind for kind, *_ in case.wrappers)]


def check_trees(problem: Problem, outcome: Outcome, dtypes: list[Any]) -> None:
    """Structures, shapes and dtypes are kept; integers have no gradient; the state is finite."""
    assert jax.tree.structure(outcome.descent) == jax.tree.structure(problem.params)
    dtypes = iter(dtypes)
    for x, p, slope in zip(jax.tree.leaves(outcome.descent), problem.arrays, problem.slopes, strict=True):
        assert x.shape == p.shape and x.dtype == (p.dtype if slope is None else next(dtypes))
        assert slope is not None or not np.any(numbers_of(x))
    assert jax.tree.structure(outcome.before) == jax.tree.structure(outcome.state)
    for old, new in zip(jax.tree.leaves(outcome.before), jax.tree.leaves(outcome.state), strict=True):
        assert old.shape == new.shape and old.dtype == new.dtype and not getattr(new, "weak_type", False)
        assert np.all(np.isfinite(numbers_of(new))), "the state holds what is not finite"


def check_counts(case: Case, outcome: Outcome, due: bool) -> None:
    """Steps, gradients and the key."""
    before, after = outcome.before, outcome.state
    assert after.step == before.step + 1
    np.testing.assert_array_equal(after.key, before.key)
    info = optax_sam.info(after)
    assert list(info) == list(optax_sam.info(before)) and info["perturbed"] == due
    evaluations, part = 2 if due else 1, 1.0
    if case.method == "tsam":
        evaluations = 2 * case.arguments["num_samples"]
    if case.is_ausam:
        own, size = case.arguments, _slice_size(case)
        evaluations += due and own["score"] == "gradient_norm"
        if not case.whole_batch:
            part = own["strata"] * int(own["fraction"] * size / own["strata"]) / size
    spent = info["gradients"] - optax_sam.info(before)["gradients"]
    np.testing.assert_allclose(spent, evaluations * part, rtol=1e-6)


def drawn_rows(outcome: Outcome) -> np.ndarray:
    """The numbers of the rows that were drawn, -1 for padding."""
    return np.asarray(outcome.aux["number"]) - 1


def check_draw(case: Case, problem: Problem, drawn: np.ndarray) -> None:
    """As many as documented from every stratum, none twice, and padding last."""
    own, size = case.arguments, _slice_size(case)
    strata = 1 if case.whole_batch else own["strata"]
    number = size if case.whole_batch else int(own["fraction"] * size / strata)
    for numbers, real in zip(
        drawn.reshape(case.size // size, -1), problem.real.reshape(-1, size), strict=True
    ):
        assert numbers.size == number * strata
        chosen = np.zeros(size, bool)
        chosen[numbers[numbers >= 0] % size] = True
        assert not np.any(chosen & ~real)
        if real.any():
            wanted = np.minimum(real.reshape(strata, -1).sum(1), number)
            np.testing.assert_array_equal(chosen.reshape(strata, -1).sum(1), wanted)


def check_verdict(case: Case, outcome: Outcome, wanted: Wanted) -> None:
    """`finite` is right; a step that is not finite leaves nothing behind."""
    before, after = outcome.before, outcome.state
    if wanted.finite is not None:
        assert optax_sam.finite(after) == wanted.finite
    is_whole = case.method != "tsam" and not any(kind == "per_microbatch" for kind, *_ in case.wrappers)
    if wanted.finite is False and is_whole:
        for name in ("start", "direction", "gate", "reuse"):
            old, new = jax.tree.leaves(getattr(before, name)), jax.tree.leaves(getattr(after, name))
            for x, y in zip(old, new, strict=True):
                np.testing.assert_array_equal(numbers_of(x), numbers_of(y))
    if wanted.finite and case.is_ausam and not case.wrappers and wanted.perturbed_loss is not None:
        if wanted.loss.is_finite and wanted.perturbed_loss.is_finite and outcome.aux is not None:
            _check_scores(case, outcome)


def _check_scores(case: Case, outcome: Outcome) -> None:
    """Every drawn example that counts has one score more, a repeated one too."""
    problem = make_problem(case)
    drawn = drawn_rows(outcome)
    rows = np.unique(drawn[drawn >= 0])
    scored = np.zeros(case.arguments["num_examples"])
    scored[problem.indices.astype(int)[rows]] = 1
    old, new = outcome.before.start, outcome.state.start
    np.testing.assert_array_equal(new.times_scored - old.times_scored, scored)
    assert np.all((new.score_sum >= old.score_sum) & ((scored == 1) | (new.score_sum == old.score_sum)))


def check_values(case: Case, problem: Problem, outcome: Outcome, wanted: Wanted) -> None:
    """Everything that is returned agrees with the literal step, as far as rounding lets it."""
    descent = [
        x for x, c in zip(jax.tree.leaves(outcome.descent), problem.slopes, strict=True) if c is not None
    ]
    if wanted.finite:
        assert not any(np.any(np.isnan(x)) for x in descent), "NaN from finite gradients"
        for got, near in zip(descent, wanted.descent, strict=True):
            assert near.allows(got), f"descent {got}, not {near}"
    if outcome.loss is not None:
        assert wanted.loss.rounded(outcome.loss.dtype).allows(outcome.loss), (
            f"loss {outcome.loss}, not {wanted.loss}"
        )
        for got, near in zip(jax.tree.leaves(outcome.grads), wanted.grads, strict=True):
            assert near.allows(got), f"first gradient {got}, not {near}"
    if not wanted.finite:
        return
    info = optax_sam.info(outcome.state)
    names = ("grad_norm", "perturbed_grad_norm", "perturbation_norm", "loss", "perturbed_loss")
    for name, near in zip(names, (*wanted.norms, wanted.kept_loss, wanted.perturbed_loss), strict=True):
        if near is None or not case.has_oracle and "loss" in name:
            assert np.isnan(info[name])
        else:
            assert near.rounded(np.float32).allows(info[name]), f"{name} {info[name]}, not {near}"


def _kind(pattern: str) -> str:
    """The first words of an error."""
    return re.sub(r"\d+", "n", pattern)[:30]


def _slice_size(case: Case) -> int:
    """How many examples one slice has."""
    size = case.size
    for kind, number, _ in case.wrappers:
        size //= number if kind == "per_microbatch" else 1
    return size


def _sees_everything(case: Case) -> bool:
    return case.whole_batch or case.arguments["fraction"] == 1
