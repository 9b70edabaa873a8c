"""vSAM on CIFAR-100 with PyramidNet-110 (widened by 270), by the defaults of the authors' script."""

import dataclasses

from experiments.recipes import VSAM, Recipe
from experiments.recipes import vsam_cifar100_wrn28_10 as smaller

RECIPE = Recipe(
    paper=VSAM,
    source=smaller.RECIPE.source,
    differs=smaller.RECIPE.differs,
    settings=dataclasses.replace(smaller.RECIPE.settings, model="pyramidnet110"),
)
