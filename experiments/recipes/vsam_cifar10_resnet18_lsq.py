"""vSAM while weights and activations are quantized to four bits (LSQ)."""

import dataclasses

from experiments.recipes import VSAM, Recipe
from experiments.recipes import vsam_cifar10_resnet18 as not_quantized

RECIPE = Recipe(
    paper=VSAM,
    source="that the paper trains with LSQ: a review; the rest as vsam-cifar10-resnet18",
    differs="Bits, network and schedule of the paper's quantized training are not known: four bits, and the "
    "numbers of the training that is not quantized.",
    settings=dataclasses.replace(not_quantized.RECIPE.settings, quantize_bits=4),
)
