"""RST on CIFAR-10 with ResNet-18: SAM in half of the steps."""

from experiments.recipes import RST, Recipe
from experiments.settings import Settings
from experiments.settings.of_method import MethodSettings

RECIPE = Recipe(
    paper=RST,
    source="github.com/JustNobody0204/Submission-AAAI2023, 30759dd: rst/config/base_config.py, "
    "training_core.py",
    differs="The radius of the paper is not known: 0.05 is SAM's own for CIFAR-10. The probability 0.5 is "
    "the paper's headline, half of SAM's extra cost. The code's optimizer class SGD clips once more, at 2.",
    settings=Settings(
        data="cifar10",
        model="resnet18",
        epochs=200,
        batch_size=256,
        learning_rate=0.1,
        weight_decay=1e-3,
        decay_in_loss=True,
        nesterov=True,
        clip_norm=5.0,
        augment=("crop", "flip"),
        method="rst",
        method_settings=MethodSettings(rho=0.05, probability=0.5),
    ),
)
