"""AUSAM on CIFAR-10 with ResNet-18, by the defaults of the authors' script."""

from experiments.recipes import AUSAM, Recipe
from experiments.settings import Settings
from experiments.settings.of_method import MethodSettings

STEPS = 50_000 // 256  # of an epoch

RECIPE = Recipe(
    paper=AUSAM,
    source="github.com/ajiaaa/AUSAM, 13ee7bf: defaults of AUSAM/train.py",
    differs="The weights of the draw grow with every step of the first 30 epochs, where the authors' grow "
    "once an epoch. The paper may have another radius and share for this network: they are not known.",
    settings=Settings(
        data="cifar10",
        model="resnet18",
        epochs=200,
        batch_size=256,
        learning_rate=0.1,
        weight_decay=1e-3,
        augment=("crop", "flip", "cutout"),
        label_smoothing=0.1 * 10 / 9,  # the authors spread 0.1 over the other 9 classes
        method="ausam",
        method_settings=MethodSettings(
            rho=0.1, fraction=0.5, score_range=(0.1, 0.5), ramp_steps=30 * STEPS, score="loss_difference"
        ),
    ),
)
