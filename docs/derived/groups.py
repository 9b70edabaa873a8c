"""The order of the methods on the pages; one that is named nowhere stands in the last group."""

GROUPS = {
    "SAM, and the methods of the demo": "sam asam rst grst vsam pugd tsam ausam",
    "Fewer gradients": (
        "looksam look_layersam aesam aelooksam late_sam momentum_sam single_step_sam persistent_sam "
        "adaptive_random_perturbation random_perturbation extrapolation graphsam ksam esam fgsam fgsam_plus"
    ),
    "Another direction": (
        "friendly_sam vasso reweighted_sam random_sam multistep_sam eigen_sam preconditioned_sam"
    ),
    "Another ball, or a part of it": (
        "fisher_sam usam sam_on sparse_sam fisher_mask_sam zsharp lesam fan_scaled_sam spectral_sam"
    ),
    "Another sum of the gradients": (
        "gsam gradient_norm_penalty wsam sagm bilateral_sam focal_sam sam_sps functional_sam"
    ),
    "Whole optimizers": "adasam bsam",
}
OTHERS = "Newer methods"


def grouped(names: list[str]) -> dict[str, list[str]]:
    """The names by the headings of their groups."""
    found = {heading: [n for n in order.split() if n in names] for heading, order in GROUPS.items()}
    placed = {name for group in found.values() for name in group}
    return found | ({OTHERS: rest} if (rest := [n for n in names if n not in placed]) else {})
