"""TSAM on CIFAR-100 with wrong labels."""

import dataclasses

from experiments.recipes import TSAM, Recipe
from experiments.recipes import tsam_cifar100_resnet18 as clean

RECIPE = Recipe(
    paper=TSAM,
    source="github.com/litian96/TSAM, b318956: image/data/cifar100.py; the rest as tsam-cifar100-resnet18",
    differs="The share of random labels is not known (a reviewer asks for it): 0.2. Nor are the rate, the "
    "radius and the tilt: they are those for clean labels.",
    published="69.98 % (paper's table, read in notes)",
    settings=dataclasses.replace(clean.RECIPE.settings, label_noise=0.2),
)
