"""The memory of a step of a decoder with 100 million parameters, beside AdamW's: compiled and read, not run.

`python -m benchmarks.memory` prints a table in units of the parameters (float32). `--check` exits with 1
where SAM takes more than one parameter tree above AdamW, or, without remat, more than SAM by hand.
"""

import sys
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from rich.console import Console
from rich.table import Table

import optax_sam
from benchmarks.decoder import Decoder

DECODER = Decoder(width=768, layers=12, vocabulary=16_384)
SEQUENCES, TOKENS = 4, 129
QUICK = {"xla_backend_optimization_level": 0, "xla_llvm_disable_expensive_passes": True}  # machine code alone


class Memory(NamedTuple):
    """What a compiled step needs, in bytes.

    Attributes:
      state: parameters and the optimizer's state: what is there between two steps.
      temporaries: what is there within a step alone.
      peak: both, and what of the results has no place in what was donated.
    """

    state: int
    temporaries: int
    peak: int


def read_mu(opt_state: Any) -> Any:
    """The momentum of AdamW."""
    return optax.tree.get(opt_state, "mu")


def read_nu(opt_state: Any) -> Any:
    """The second moment of AdamW."""
    return optax.tree.get(opt_state, "nu")


BY_HAND = "sam, by hand"
METHODS: dict[str, optax_sam.SharpnessAware | str | None] = {
    "AdamW": None,
    BY_HAND: BY_HAND,
    "sam": optax_sam.sam(),
    "momentum_sam": optax_sam.momentum_sam(),
    "momentum_sam(read_momentum=...)": optax_sam.momentum_sam(read_momentum=read_mu),
    "vsam": optax_sam.vsam(),
    "preconditioned_sam(read_second_moment=...)": optax_sam.preconditioned_sam(read_second_moment=read_nu),
    "accumulated(sam, 4)": optax_sam.accumulated(optax_sam.sam(), 4),
}


def memory_of(
    method: optax_sam.SharpnessAware | str | None, decoder: Decoder = DECODER, donated: bool = True
) -> Memory:
    """Of one step of AdamW, behind a method (or SAM by hand) or alone."""
    base = optax.adamw(1e-3)
    is_plain = method is None or isinstance(method, str)
    tx = base if is_plain else optax.chain(method, base)

    def plain(params, state, tokens):
        gradient = jax.value_and_grad(lambda p: decoder.losses(p, tokens).mean())
        loss, grads = gradient(params)
        if method == BY_HAND:
            norm = optax.tree.norm(grads)
            moved = jax.tree.map(lambda p, g: p + 0.05 * g / norm, params, grads)
            _, grads = gradient(moved)
        updates, state = base.update(grads, state, params)
        return optax.apply_updates(params, updates), state, loss

    step = plain if is_plain else optax_sam.step(tx, decoder.losses)
    params = jax.eval_shape(decoder.init, jax.random.key(0))
    state = jax.eval_shape(tx.init, params)
    tokens = jax.ShapeDtypeStruct((SEQUENCES, TOKENS), jnp.int32)
    jitted = jax.jit(step, donate_argnums=(0, 1) if donated else (), compiler_options=QUICK)
    found = jitted.lower(params, state, tokens).compile().memory_analysis()
    assert found, "this backend does not tell what programs need"
    fresh = found.output_size_in_bytes - found.alias_size_in_bytes
    arguments, temporaries = found.argument_size_in_bytes, found.temp_size_in_bytes
    return Memory(arguments, temporaries, arguments + fresh + temporaries)


def parameters(decoder: Decoder) -> int:
    """The number of parameters."""
    return sum(x.size for x in jax.tree.leaves(jax.eval_shape(decoder.init, jax.random.key(0))))


def main(check: bool) -> bool:
    """Prints the table; whether SAM keeps its promise."""
    one, kept = 4 * parameters(DECODER), DECODER.but(remat=False)
    table = Table("step", "state", "temporaries", "temporaries, no remat", "peak", "peak, not donated")
    above = {}
    for name, method in METHODS.items():
        remat, plain = memory_of(method), memory_of(method, kept)
        given = memory_of(method, donated=False)
        above[name] = (remat.peak, plain.peak, given.peak)
        figures = (remat.state, remat.temporaries, plain.temporaries, remat.peak, given.peak)
        table.add_row(name, *(f"{x / one:.2f}" for x in figures))
    table.caption = (
        f"{one // 4:,} parameters, {SEQUENCES} sequences of {TOKENS - 1} tokens; 1 is {one:,} bytes"
    )
    Console(width=120).print(table)
    sam, by_hand, adamw = ([x / one for x in above[name]] for name in ("sam", BY_HAND, "AdamW"))
    if check:
        above_adamw = (f"{s - a:.3f}" for s, a in zip(sam, adamw, strict=True))
        print("SAM above AdamW, in parameter trees:", ", ".join(above_adamw))
    return max(sam[0] - adamw[0], sam[2] - adamw[2]) < 1.05 and sam[1] - by_hand[1] < 0.05


if __name__ == "__main__":
    is_kept = main("--check" in sys.argv)
    sys.exit(0 if is_kept or "--check" not in sys.argv else 1)
