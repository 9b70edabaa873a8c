"""Which documented errors a case must raise: one pattern for each thing that is wrong with it."""

import jax

from tests.fuzzing.cases import Case

VALUE, TYPE = ValueError, TypeError
Expected = set[tuple[type[Exception], str]]

CONSTRUCTION = {
    "negative rho": (VALUE, r"^(rho|radius)=-0.1 is outside \[0, inf\]"),
    "rho of NaN": (VALUE, r"^(rho|radius)=nan is not a number"),
    "rho a string": (TYPE, r"^(rho|radius)='0.1' is a str"),
    "num_microbatches of 0": (VALUE, r"^num_microbatches=0 is outside"),
    "num_microbatches a float": (TYPE, r"^num_microbatches=2.0 is a float"),
}
UPDATE = {
    "neither door": (VALUE, r"^none of oracle and grad_fn is given"),
    "both doors": (VALUE, r"^both of oracle and grad_fn is given"),
    "no params": (VALUE, r"^params=None: pass the parameters"),
    "perturb=1": (TYPE, r"^perturb=1 is no Python bool"),
    "perturb an array": (TYPE, r"^perturb=.* is no Python bool"),
    "gradient of another tree": (VALUE, r"^grads has the tree structure"),
    "gradient of another shape": (VALUE, r"^grads.* has shape .*, but the parameter has"),
}
OF_ORACLE = {
    "no oracle": (TYPE, r"^oracle=.* is no Oracle"),
    "complex weights": (TYPE, r"^weights has dtype complex64: pass an array of numbers"),
    "weights too short": (VALUE, r"^weights has shape \(\d+,\), but the batch has \d+ examples"),
    "indices of floats": (TYPE, r"^indices has dtype float32: pass an array of integers"),
    "indices too short": (VALUE, r"^indices has shape \(\d+,\), but the batch has \d+ examples"),
    "rows differ": (VALUE, r"^batch\['t'\] has shape \(\d+,\), but the batch has \d+ examples"),
    "scalar in batch": (VALUE, r"^batch\['t'\] has dtype \w+ and no batch axis"),
    "empty batch": (VALUE, r"^batch has 0 examples"),
    "loss_scale of 0": (VALUE, r"^loss_scale=0.0 is not above 0"),
    "key of floats": (TYPE, r"^key=.* is no PRNG key"),
    "no losses": (VALUE, r"^losses returned a NoneType, no array"),
    "losses with aux": (VALUE, r"^losses returned a tuple, no array: pass has_aux=True"),
    "no pair": (VALUE, r"^has_aux=True, but losses returned"),
    "losses of integers": (VALUE, r"^losses returned dtype int32"),
    "complex losses": (VALUE, r"^losses returned dtype complex64"),
    "token losses": (VALUE, r"^losses returned shape \[(\d+, )?3\] for a batch of \d+ examples"),
}
OF_VALUE_AND_GRAD = {"state of another": (VALUE, r"^state, a \w+, holds no state of a sharpness-aware")}
OF_GRAD_FN = {
    "no grad_fn": (TYPE, r"^grad_fn=1.0 is no function"),
    "gradient with aux": (VALUE, r"^grad_fn\(params\) has the tree structure"),
}
MISTAKES = [*CONSTRUCTION, *UPDATE, *OF_ORACLE, *OF_VALUE_AND_GRAD, *OF_GRAD_FN]
"""What can be wrong with a call that is not wrong otherwise."""


def mistake_applies(case: Case) -> bool:
    """Whether what the case does wrong is read where the case puts it."""
    mistake = case.mistake
    if mistake in ("losses with aux", "no pair") and case.has_aux is not (mistake == "no pair"):
        return False
    if mistake and mistake.startswith("num_microbatches"):
        return bool(case.wrappers)
    if mistake == "token losses" and case.mean_loss:
        return False  # three of them may be a whole batch
    if mistake == "gradient of another shape":
        return bool(jax.tree.leaves(case.tree))
    if mistake in OF_VALUE_AND_GRAD:
        return case.door == "value_and_grad"
    if mistake in OF_GRAD_FN:
        return not case.has_oracle and (mistake == "no grad_fn" or case.surely_perturbed)
    return mistake in CONSTRUCTION or mistake in UPDATE or case.has_oracle


def expected_errors(case: Case) -> Expected:
    """What may be raised: one for each thing that is wrong; nothing for a correct call."""
    mistake = case.mistake
    if mistake in CONSTRUCTION:
        return {CONSTRUCTION[mistake]}
    every = UPDATE | OF_ORACLE | OF_VALUE_AND_GRAD | OF_GRAD_FN
    expected = {every[mistake]} if mistake else set()
    if jax.tree.structure(case.tree) == jax.tree.structure(None):
        expected.add(UPDATE["no params"])
    if case.method == "tsam" and case.perturb is False:
        expected.add((VALUE, r"^perturb=False, but this method's first gradient is already perturbed"))
    if not case.has_oracle:
        if case.wrappers or case.method in ("tsam", "ausam"):
            expected.add((VALUE, r"^grad_fn is given, but this method needs"))
        return expected
    return expected | _of_rows(case)


def _of_rows(case: Case) -> Expected:
    """Numbers that do not divide, and what the losses must be."""
    expected: Expected = set()
    size, accumulated = case.size, 1
    for kind, number, _ in case.wrappers:
        if kind == "accumulated":
            accumulated *= number
            continue
        if size % number:
            return {(VALUE, rf"^num_microbatches={number} does not divide the batch of {size} examples")}
        size //= number
    if case.is_ausam:
        own = case.arguments
        if case.indices is None:
            return {(VALUE, r"^indices=None, but the method keeps a score per example")}
        if not case.whole_batch:
            if size % own["strata"]:
                return {(VALUE, rf"^strata={own['strata']} does not divide the batch of {size} examples")}
            num_drawn = int(own["fraction"] * size / own["strata"])
            if not num_drawn:
                return {(VALUE, rf"^fraction={own['fraction']} of a batch of {size} .* leaves no example")}
            size = num_drawn * own["strata"]
    if size % accumulated:
        those = rf"(batch of {size} examples|{size} examples that the step draws of \d+)"
        return {(VALUE, rf"^num_microbatches={accumulated} does not divide the {those}")}
    if case.mean_loss and (case.is_ausam or case.weights is not None):
        expected.add((VALUE, r"^losses returned a scalar where one loss per example is needed"))
    return expected
