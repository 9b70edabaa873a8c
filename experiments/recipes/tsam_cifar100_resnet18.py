"""TSAM on CIFAR-100 with ResNet-18, with the numbers of the authors' checkpoint."""

from experiments.recipes import TSAM, Recipe
from experiments.settings import Settings
from experiments.settings.of_method import MethodSettings

RECIPE = Recipe(
    paper=TSAM,
    source="github.com/litian96/TSAM, b318956: image/eval.py (name of the checkpoint), defaults of "
    "image/train_tsam.py",
    differs="The released code does not run as it is, and never calls its learning rate schedule: here the "
    "rate is constant too. Their label smoothing function is not in the repository.",
    published="77.78 % (paper's table, read in notes)",
    settings=Settings(
        data="cifar100",
        model="resnet18",
        epochs=200,
        batch_size=64,
        learning_rate=0.003,
        schedule="constant",
        weight_decay=5e-4,
        augment=("crop", "flip", "cutout"),
        label_smoothing=0.1 * 100 / 99,  # 0.1 over the other classes, as in the code that theirs is from
        method="tsam",
        method_settings=MethodSettings(
            rho=0.1, tilt=20.0, num_samples=3, radius=1.0, noise_scale=1.0, noise="gaussian"
        ),
    ),
)
