"""Settings of published experiments, one file for each: `python -m experiments.recipes` lists them.

A recipe holds what its paper or the authors' code says, and says where it differs. The name of the
file is the name of the recipe, with hyphens.
"""

import dataclasses
import importlib
from pathlib import Path
from typing import NamedTuple

from experiments.settings import Settings, SettingsError

RECIPES = tuple(sorted(file.stem.replace("_", "-") for file in Path(__file__).parent.glob("[!_]*.py")))


class Paper(NamedTuple):
    """A paper, by its title and its number at arXiv."""

    title: str
    arxiv: str


@dataclasses.dataclass(frozen=True)
class Recipe:
    """One experiment of a paper.

    Attributes:
      settings: of the run.
      paper: where the method is from.
      source: where the settings were read.
      differs: what is not as the authors had it, or not known.
      published: the authors' result.
      ours: our result with command, device, number of runs and spread.
      cost: minutes of one run, and on what.
    """

    settings: Settings
    paper: Paper
    source: str
    differs: str
    published: str = "not known"
    ours: str = "not run"
    cost: str = "not measured"


def recipe(name: str) -> Recipe:
    """The recipe of this name; its runs go to a folder of this name.

    Raises:
      SettingsError: there is none.
    """
    if name not in RECIPES:
        raise SettingsError(f"recipe:{name} is not known: give {', '.join(RECIPES)}")
    found: Recipe = importlib.import_module(f"experiments.recipes.{name.replace('-', '_')}").RECIPE
    return dataclasses.replace(found, settings=dataclasses.replace(found.settings, out=Path("runs") / name))


ASAM = Paper(
    "ASAM: Adaptive Sharpness-Aware Minimization for Scale-Invariant Learning of Deep Neural Networks",
    "2102.11600",
)
AUSAM = Paper("Asymptotic Unbiased Sample Sampling to Speed Up Sharpness-Aware Minimization", "2406.08001")
FUNCTIONAL_SAM = Paper("Avoiding Spurious Sharpness Minimization Broadens Applicability of SAM", "2502.02407")
LOOKSAM = Paper("Towards Efficient and Scalable Sharpness-Aware Minimization", "2203.02714")
PUGD = Paper("Perturbated Gradients Updating within Unit Space for Deep Learning", "2110.00199")
RST = Paper(
    "Randomized Sharpness-Aware Training for Boosting Computational Efficiency in Deep Learning", "2203.09962"
)
SAM = Paper("Sharpness-Aware Minimization for Efficiently Improving Generalization", "2010.01412")
SAM_OF_LANGUAGE_MODELS = Paper(
    "Sharpness-Aware Minimization Improves Language Model Generalization", "2110.08529"
)
TSAM = Paper("Tilted Sharpness-Aware Minimization", "2410.22656")
VSAM = Paper(
    "Effective Gradient Sample Size via Variation Estimation for Accelerating Sharpness aware Minimization",
    "2403.08821",
)
