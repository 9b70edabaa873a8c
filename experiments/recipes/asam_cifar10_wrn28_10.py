"""ASAM on CIFAR-10 with WRN-28-10: the authors' example."""

from experiments.recipes import ASAM, Recipe
from experiments.settings import Settings
from experiments.settings.of_method import MethodSettings

RECIPE = Recipe(
    paper=ASAM,
    source="github.com/SamsungLabs/ASAM, dc9b513: defaults of example_cifar.py",
    differs="The authors' cosine takes one step per epoch, and their batch statistics are taken from both "
    "passes.",
    settings=Settings(
        data="cifar10",
        model="wrn28_10",
        epochs=200,
        batch_size=128,
        learning_rate=0.1,
        weight_decay=5e-4,
        augment=("crop", "flip"),
        label_smoothing=0.1,
        method="asam",
        method_settings=MethodSettings(rho=0.5, eta=0.0),
    ),
)
