"""SAM on CIFAR-10 with WRN-28-10, basic augmentation, 200 epochs."""

from experiments.recipes import SAM, Recipe
from experiments.settings import Settings
from experiments.settings.of_method import MethodSettings

RECIPE = Recipe(
    paper=SAM,
    source="the paper's table 6; github.com/google-research/sam, 1c8af51: "
    "sam_jax/training_utils/flax_training.py",
    differs="One perturbation for the whole batch; the authors take one on each of their accelerators.",
    published="97.3 ± 0.1 % (mean of 5 runs, 95 % interval; the paper's table 1)",
    settings=Settings(
        data="cifar10",
        model="wrn28_10",
        epochs=200,
        batch_size=256,
        learning_rate=0.1,
        weight_decay=5e-4,
        decay_in_loss=True,
        nesterov=True,
        clip_norm=5.0,
        augment=("crop", "flip"),
        method="sam",
        method_settings=MethodSettings(rho=0.05),
    ),
)
