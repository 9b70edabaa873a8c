"""Methods as their papers write them."""

import optax_sam

NAMES = {
    "grst": "G-RST",
    "vsam": "vSAM",
    "looksam": "LookSAM",
    "look_layersam": "Look-LayerSAM",
    "aesam": "AE-SAM",
    "aelooksam": "AE-LookSAM",
    "ksam": "K-SAM",
    "vasso": "VaSSO",
    "sam_on": "SAM-ON",
    "usam": "USAM",
    "adasam": "AdaSAM",
    "bsam": "bSAM",
    "graphsam": "GraphSAM",
    "fgsam": "FGSAM",
    "fgsam_plus": "FGSAM+",
    "reweighted_sam": "RW-SAM",
    "random_sam": "R-SAM",
    "single_step_sam": "S2-SAM",
    "random_perturbation": "RWP",
    "adaptive_random_perturbation": "ARWP",
    "gradient_norm_penalty": "GNP",
    "extrapolation": "EXTRAP",
    "late_sam": "late SAM",
    "friendly_sam": "Friendly SAM",
    "fisher_sam": "Fisher SAM",
    "sparse_sam": "Sparse SAM",
    "sparse_sam_dynamic": "Sparse SAM, dynamic",
    "fisher_mask_sam": "Fisher-mask SAM",
    "multistep_sam": "multi-step SAM",
    "decoupled_wsam": "WSAM, decoupled",
    "bilateral_sam": "Bilateral SAM",
    "momentum_sam": "Momentum SAM",
    "persistent_sam": "Persistent SAM",
    "drawn_vsam": "AUSAM + vSAM",
    "friendly_looksam": "Friendly + LookSAM",
    "adaptive_rst": "ASAM + RST",
    "sharded_gsam": "GSAM in slices",
    "averaged": "average of weights",
    "last_layer_l2": "L2 of the last layer",
    "flat_lora": "Flat-LoRA",
    "bi_lora": "Bi-LoRA",
}

# What a method is given here that the papers leave open.
NOTES = {
    "fgsam": "the surrogate is the network on images of half the side",
    "fgsam_plus": "the same surrogate, alone in every second step",
    "late_sam": "in the last fifth of the steps",
    "lesam": "the budget falls to 0 in the last fifth of the steps",
    "sam_on": "perturbs the scales and biases of batch norm",
    "extrapolation": "along the previous gradient",
    "sharded_gsam": "slices of 10 examples at batch size 50",
    "averaged": "the test accuracy is that of the averaged weights",
    "bsam": "the weight decay is its prior; test accuracy of the mean weights",
}


# The base optimizers, where they train alone.
BASE_TITLES = {"sgd": "SGD", "adamw": "AdamW", "lamb": "LAMB"}


def title(name: str) -> str:
    """A method's name as its paper writes it: for a newer method what its docstring begins with."""
    docstring = getattr(getattr(optax_sam, name, None), "__doc__", None) or ""
    return NAMES.get(name) or (docstring.split(":")[0] if ":" in docstring else name.upper())
