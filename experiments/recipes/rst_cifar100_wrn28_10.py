"""RST on CIFAR-100 with WRN-28-10: SAM in half of the steps."""

from experiments.method_settings import MethodSettings
from experiments.recipes import RST, Recipe
from experiments.settings import Settings

RECIPE = Recipe(
    paper=RST,
    source="github.com/JustNobody0204/Submission-AAAI2023, 30759dd: rst/config/base_config.py, "
    "training_core.py",
    differs="The radius of the paper is not known: 0.1 is SAM's own for CIFAR-100. The probability 0.5 is "
    "the paper's headline, half of SAM's extra cost. The code's optimizer class SGD clips once more, at 2.",
    settings=Settings(
        data="cifar100",
        model="wrn28_10",
        epochs=200,
        batch_size=256,
        learning_rate=0.1,
        weight_decay=1e-3,
        decay_in_loss=True,
        nesterov=True,
        clip_norm=5.0,
        augment=("crop", "flip"),
        method="rst",
        method_settings=MethodSettings(rho=0.1, probability=0.5),
    ),
)
