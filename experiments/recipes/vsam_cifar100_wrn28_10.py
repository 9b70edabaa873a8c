"""vSAM on CIFAR-100 with WRN-28-10, by the defaults of the authors' script."""

import dataclasses

from experiments.recipes import VSAM, Recipe
from experiments.recipes import vsam_cifar10_resnet18 as cifar10

RECIPE = Recipe(
    paper=VSAM,
    source=cifar10.RECIPE.source,
    differs=cifar10.RECIPE.differs + " The script has one set of defaults; whether the paper's larger "
    "networks were trained with them is not known.",
    settings=dataclasses.replace(
        cifar10.RECIPE.settings,
        data="cifar100",
        model="wrn28_10",
        label_smoothing=0.1 * 100 / 99,  # the authors spread 0.1 over the other 99 classes
    ),
)
