"""G-RST on CIFAR-100 with WRN-28-10."""

from experiments.method_settings import MethodSettings
from experiments.recipes import RST, Recipe
from experiments.settings import Settings

RECIPE = Recipe(
    paper=RST,
    source="github.com/JustNobody0204/Submission-AAAI2023, 30759dd: rst/config/base_config.py, "
    "training_core.py; github.com/zhaoyang-0204/gnp, 07895f1: recipes/wideresnet-cifar.sh",
    differs="Radius and alpha are those of the authors' gradient norm penalty, which mixes in every step; "
    "the paper's own for G-RST are not known, and --alpha 2 would make up for the steps without. The "
    "penalty's code mixes with the normalized gradient by default; here, as in its README, with the "
    "gradient.",
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
        method="grst",
        method_settings=MethodSettings(rho=0.1, probability=0.5, alpha=0.8),
    ),
)
