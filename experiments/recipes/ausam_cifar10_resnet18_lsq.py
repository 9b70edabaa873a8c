"""AUSAM while weights and activations are quantized to four bits (LSQ)."""

import dataclasses

from experiments.recipes import AUSAM, Recipe
from experiments.recipes import ausam_cifar10_resnet18 as not_quantized

RECIPE = Recipe(
    paper=AUSAM,
    source="that the paper quantizes while it trains: its abstract; the rest as ausam-cifar10-resnet18",
    differs="Bits, network and schedule of the paper's quantized training are not known: four bits, and the "
    "numbers of the training that is not quantized.",
    settings=dataclasses.replace(not_quantized.RECIPE.settings, quantize_bits=4),
)
