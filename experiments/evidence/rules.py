"""Rules in the place of SAM's radius: one constant each, chosen on the design tasks, then frozen."""

import dataclasses

from experiments.evidence.candidates import Candidate

DESIGN = ("mnist1d", "digits")
JUDGING = ("mnist1d_noise20", "mnist1d_noise40", "mnist1d_conv", "etth1_96")


@dataclasses.dataclass(frozen=True)
class Rule(Candidate):
    """A rule; `values` are those of its constant that were tried.

    Attributes:
      formula: of the radius.
      chosen: the constant, frozen before the judging tasks were run; None before it is chosen.
    """

    formula: str = ""
    chosen: float | None = None

    @property
    def constant(self) -> str:
        """The setting that holds the constant."""
        assert self.number is not None
        return self.number


def doubling(first: float, count: int = 5) -> tuple[float, ...]:
    """So many values, each twice the one before."""
    return tuple(float(f"{first * 2**number:.3g}") for number in range(count))


RULES = {
    "default": Rule("SAM, radius 0.05", "sam", "rho", (0.05,), formula="0.05", chosen=0.05),
    "one_radius": Rule("SAM, one radius for all tasks", "sam", "rho", doubling(0.1), formula="c", chosen=0.4),
    "absolute_budget": Rule(
        "loss budget",
        "absolute_budget",
        "constant",
        doubling(0.05),
        formula="c / norm(g)",
        chosen=0.2,
    ),
    "relative_budget": Rule(
        "loss budget, relative to the loss",
        "relative_budget",
        "constant",
        doubling(0.0375),
        formula="c L / norm(g)",
        chosen=0.15,
    ),
    "noise_of_losses": Rule(
        "noise of the losses",
        "noise_of_losses",
        "constant",
        doubling(0.15),
        formula="c std(l_i) / norm(g)",
        chosen=0.6,
    ),
    "curvature": Rule(
        "curvature from the last two losses",
        "curvature",
        "constant",
        doubling(0.0625),
        formula="c norm(g) / k",
        chosen=0.0625,
    ),
    "measured_rise": Rule(
        "measured rise of the loss",
        "measured_rise",
        "constant",
        doubling(0.25),
        formula="such that L(w + e) / L(w) - 1 = c",
        chosen=0.5,
    ),
    "held_rise": Rule(
        "measured rise, radius held from a tenth on",
        "held_rise",
        "constant",
        doubling(0.125, 6),
        formula="the same in the first tenth of the steps, then as it was",
        chosen=0.25,
    ),
    "part_of_weights": Rule(
        "part of the weights' norm",
        "part_of_weights",
        "constant",
        doubling(0.006),
        formula="c norm(w)",
        chosen=0.024,
    ),
    "edge_of_stability": Rule(
        "edge of stability",
        "edge_of_stability",
        "constant",
        doubling(2.0),
        formula="c eta norm(g)",
        chosen=4.0,
    ),
    "fan_scaled": Rule(
        "fan-scaled",
        "fan_scaled_sam",
        "rho",
        doubling(0.01, 6),
        formula="c sqrt(fan_out / fan_in) in each layer",
        chosen=0.08,
    ),
    "spectral": Rule(
        "spectral",
        "spectral_sam",
        "rho",
        doubling(0.004, 6),
        formula="the same in the spectral norm",
        chosen=0.032,
    ),
}
