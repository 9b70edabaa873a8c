"""RST on CIFAR-100 with WRN-28-10: SAM in half of the steps."""

import dataclasses

from experiments.recipes import RST, Recipe
from experiments.recipes import rst_cifar10_resnet18 as cifar10
from experiments.settings.of_method import MethodSettings

RECIPE = Recipe(
    paper=RST,
    source=cifar10.RECIPE.source,
    differs="The radius of the paper is not known: 0.1 is SAM's own for CIFAR-100. The probability 0.5 is "
    "the paper's headline, half of SAM's extra cost. The code's optimizer class SGD clips once more, at 2.",
    settings=dataclasses.replace(
        cifar10.RECIPE.settings,
        data="cifar100",
        model="wrn28_10",
        method_settings=MethodSettings(rho=0.1, probability=0.5),
    ),
)
