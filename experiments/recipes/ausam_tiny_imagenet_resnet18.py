"""AUSAM on Tiny ImageNet with ResNet-18."""

from experiments.recipes import AUSAM, Recipe
from experiments.settings import Settings
from experiments.settings.of_method import MethodSettings

STEPS = 100_000 // 128  # of an epoch

RECIPE = Recipe(
    paper=AUSAM,
    source="network, epochs, batch, cutout and cosine: the paper, quoted on acmrep2026.k117.org; the rest: "
    "github.com/ajiaaa/AUSAM, 13ee7bf: defaults of AUSAM/train.py",
    differs="The weights of the draw grow with every step of the first 30 epochs, where the authors' grow "
    "once an epoch. Rate, decay, radius and share are the defaults for CIFAR; the paper's for this set are "
    "not known.",
    settings=Settings(
        data="tiny_imagenet",
        model="resnet18",
        epochs=200,
        batch_size=128,
        learning_rate=0.1,
        weight_decay=1e-3,
        augment=("crop", "flip", "cutout"),
        label_smoothing=0.1 * 200 / 199,  # the authors spread 0.1 over the other 199 classes
        method="ausam",
        method_settings=MethodSettings(
            rho=0.1, fraction=0.5, score_range=(0.1, 0.5), ramp_steps=30 * STEPS, score="loss_difference"
        ),
    ),
)
