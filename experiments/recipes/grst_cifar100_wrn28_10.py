"""G-RST on CIFAR-100 with WRN-28-10."""

import dataclasses

from experiments.recipes import RST, Recipe
from experiments.recipes import rst_cifar100_wrn28_10 as rst
from experiments.settings.of_method import MethodSettings

RECIPE = Recipe(
    paper=RST,
    source=rst.RECIPE.source + "; github.com/zhaoyang-0204/gnp, 07895f1: recipes/wideresnet-cifar.sh",
    differs="Radius and alpha are those of the authors' gradient norm penalty, which mixes in every step; "
    "the paper's own for G-RST are not known, and --alpha 2 would make up for the steps without. The "
    "penalty's code mixes with the normalized gradient by default; here, as in its README, with the "
    "gradient.",
    settings=dataclasses.replace(
        rst.RECIPE.settings,
        method="grst",
        method_settings=MethodSettings(rho=0.1, probability=0.5, alpha=0.8),
    ),
)
