"""PUGD on CIFAR-10: the settings of the authors' example, on another network."""

from experiments.recipes import PUGD, Recipe
from experiments.settings import Settings
from experiments.settings.of_method import MethodSettings

RECIPE = Recipe(
    paper=PUGD,
    source="github.com/hanktseng131415go/PUGD, 597a601: defaults of main.py",
    differs="ResNet-18 stands in for UPANets. Ten epochs are those of the example; the paper's are not "
    "known. The authors' cosine takes one step per epoch, and their batch statistics are taken from both "
    "passes.",
    settings=Settings(
        data="cifar10",
        model="resnet18",
        epochs=10,
        batch_size=100,
        learning_rate=0.1,
        weight_decay=5e-4,
        augment=("crop", "flip"),
        method="pugd",
        method_settings=MethodSettings(radius=1.0),
    ),
)
