"""What a compiled program needs of a device, and what it consists of, read without running it."""

import math
import re
from collections import Counter
from typing import Any, NamedTuple

COLLECTIVES = ("all-reduce", "all-gather", "reduce-scatter", "all-to-all", "collective-permute")

SMALL = 1024
"""Bytes of what is small whatever else is sent."""

_INSTRUCTION = re.compile(r"^ +(?:ROOT )?%?[\w.\-]+ = (.*?) ([a-z][\w\-]*)\(", flags=re.MULTILINE)
_ARRAY = re.compile(r"\b([a-z]+\d*)(?:e\d\w*)?\[([\d,]*)\]")


class Collective(NamedTuple):
    """All that is exchanged in one way: operations, and the bytes that they give to one device."""

    operations: int
    size: int


class Figures(NamedTuple):
    """One program; memory in bytes of one device. Bodies of loops and branches count once.

    Attributes:
      arguments: those that the program reads; donated ones among them.
      outputs: those that do not lie in donated memory.
      temporaries: all that lives between them.
      flops: as the compiler counts them; None, if it does not.
      collectives: by kind.
      small: exchanges of less than a tenth of the largest one's bytes, or of 1 kB.
      summed_in: the dtype of the largest sum over devices.
      operations: how many there are of each kind, by XLA's names; a `fusion` is a kernel.
    """

    arguments: int
    outputs: int
    temporaries: int
    flops: float | None
    collectives: dict[str, Collective]
    small: int
    summed_in: str | None
    operations: Counter[str]

    @property
    def loops(self) -> int:
        """`while` operations."""
        return self.operations["while"]

    @property
    def conditionals(self) -> int:
        """`conditional` operations."""
        return self.operations["conditional"]

    @property
    def memory(self) -> int:
        """Bytes on a device while the program runs."""
        return self.arguments + self.outputs + self.temporaries


def figures(compiled: Any) -> Figures:
    """Reads a `jax.stages.Compiled`."""
    memory, costs = compiled.memory_analysis(), compiled.cost_analysis() or {}
    found = _INSTRUCTION.findall(compiled.as_text())
    sent = _sent(found)
    largest = max((size for each in sent.values() for size in each), default=0)
    return Figures(
        arguments=memory.argument_size_in_bytes,
        outputs=memory.output_size_in_bytes - memory.alias_size_in_bytes,
        temporaries=memory.temp_size_in_bytes,
        flops=costs.get("flops"),
        collectives={kind: Collective(len(each), sum(each)) for kind, each in sent.items()},
        small=sum(size < max(SMALL, largest / 10) for each in sent.values() for size in each),
        summed_in=_largest_sum(found),
        operations=Counter(operation for _, operation in found),
    )


def _sent(found: list[tuple[str, str]]) -> dict[str, list[int]]:
    """The bytes of each exchange's results, by its kind."""
    # An asynchronous one is a pair, whose second half has the results alone.
    sizes = {
        kind: [_bytes(shape) for shape, operation in found if operation in (kind, f"{kind}-done")]
        for kind in COLLECTIVES
    }
    return {kind: each for kind, each in sizes.items() if each}


def _largest_sum(found: list[tuple[str, str]]) -> str | None:
    sums = ("all-reduce", "reduce-scatter", "all-reduce-done", "reduce-scatter-done")
    shapes = [shape for shape, operation in found if operation in sums]
    return _ARRAY.findall(max(shapes, key=_bytes))[0][0] if shapes else None


def _bytes(shape: str) -> int:
    """Of a shape as it is printed, which may be a tuple's and may name layouts."""
    return sum(
        _width(kind) * math.prod(int(size) for size in sizes.split(",") if size)
        for kind, sizes in _ARRAY.findall(shape)
    )


def _width(kind: str) -> int:
    bits = re.search(r"\d+", kind)
    return max(1, int(bits[0]) // 8) if bits else 1
