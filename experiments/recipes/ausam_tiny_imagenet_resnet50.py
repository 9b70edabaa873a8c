"""AUSAM on Tiny ImageNet with ResNet-50."""

import dataclasses

from experiments.recipes import AUSAM, Recipe
from experiments.recipes import ausam_tiny_imagenet_resnet18 as smaller

RECIPE = Recipe(
    paper=AUSAM,
    source=smaller.RECIPE.source,
    differs=smaller.RECIPE.differs,
    settings=dataclasses.replace(smaller.RECIPE.settings, model="resnet50"),
)
