"""What a compiled program sends between devices and how much it multiplies, read from its text.

XLA joins several reductions into one operation, so that elements are counted, not operations. The body
of a loop counts as often as it runs, where the compiler knows how often, else once; of a conditional,
the most expensive branch counts.
"""

import math
import re
from collections import Counter
from typing import NamedTuple

MOVING = ("all-gather", "all-to-all", "collective-permute", "reduce-scatter")

_COMPUTATION = re.compile(r"^(ENTRY )?%?([\w.\-]+) \(.*\{$")
_INSTRUCTION = re.compile(r"^\s+(?:ROOT )?%?([\w.\-]+) = (.*?) ([a-z][\w\-]*)\((.*)$")
_ARRAY = re.compile(r"\b([a-z]+\d*)\[([\d,]*)\]")
_BODY = re.compile(r"\bbody=%?([\w.\-]+)")
_BRANCHES = re.compile(r"(?:branch_computations=\{([^}]*)\}|(?:true|false)_computation=(%?[\w.\-]+))")
_CALLED = re.compile(r"\b(?:calls|to_apply)=%?([\w.\-]+)")
_TRIPS = re.compile(r'"known_trip_count":\{"n":"(\d+)"\}')


class Instruction(NamedTuple):
    """One line of a program: the shape of its result, what it does, and the rest of the line."""

    shape: str
    operation: str
    rest: str


class Traffic(NamedTuple):
    """What one device does in one run of a program.

    Attributes:
      all_reduced: elements that are summed over devices.
      moved: bytes of the results of gathers, exchanges and permutations.
      sent: bytes that a ring sends for both: twice those of what is summed.
      product_flops: FLOPs of matrix products and convolutions, padding included.
      repeated_work: whether some of those stand in a loop or a conditional, so that the compiler's
        own count of FLOPs, which takes every body once, is not that of a run.
    """

    all_reduced: int
    moved: int
    sent: int
    product_flops: int
    repeated_work: bool


def traffic(text: str) -> Traffic:
    """Reads the text of a compiled program, `compiled.as_text()`."""
    computations, entry = _parse(text)
    counts = _count(computations, entry)
    moved = sum(counts[operation] for operation in MOVING)
    sent = 2 * counts["bytes summed"] + moved
    return Traffic(counts["all-reduce"], moved, sent, counts["flops"], counts["repeated flops"] > 0)


def _parse(text: str) -> tuple[dict[str, dict[str, Instruction]], str]:
    """All computations, each by the names of its instructions, and the name of the first to run."""
    computations: dict[str, dict[str, Instruction]] = {}
    current, entry = "", ""
    for line in text.splitlines():
        if found := _COMPUTATION.match(line):
            current = found[2]
            computations[current] = {}
            entry = current if found[1] else entry
        elif current and (found := _INSTRUCTION.match(line)):
            name, *instruction = found.groups()
            computations[current][name] = Instruction(*instruction)
    return computations, entry


def _count(computations: dict[str, dict[str, Instruction]], name: str) -> Counter[str]:
    """Elements of all-reduces, bytes of what moves, and FLOPs of products, of one computation."""
    total: Counter[str] = Counter()
    for shape, operation, rest in computations[name].values():
        operation = operation.removesuffix("-done")  # the second half of an asynchronous one has the results
        if operation == "all-reduce":
            total[operation] += sum(size for _, size in _arrays(shape))
            total["bytes summed"] += sum(width * size for width, size in _arrays(shape))
        elif operation in MOVING:
            total[operation] += sum(width * size for width, size in _arrays(shape))
        elif operation in ("dot", "convolution"):
            total["flops"] += _flops(operation, shape, rest, computations[name])
        elif operation == "while":
            trips = _TRIPS.search(rest)
            (body,) = _BODY.findall(rest)
            _add(total, _count(computations, body), int(trips[1]) if trips else 1, repeated=True)
        elif operation == "conditional":
            branches = re.findall(r"[\w.\-]+", " ".join(a or b for a, b in _BRANCHES.findall(rest)))
            counts = [_count(computations, branch) for branch in branches]
            highest = {key: max(c[key] for c in counts) for key in set().union(*counts)}
            _add(total, Counter(highest), 1, repeated=True)
        elif operation in ("all-reduce-start", *(f"{moving}-start" for moving in MOVING)):
            continue
        else:
            for called in _CALLED.findall(rest):
                _add(total, _count(computations, called), 1, repeated=False)
    return total


def _add(total: Counter[str], counts: Counter[str], times: int, repeated: bool) -> None:
    for key, number in counts.items():
        total[key] += times * number
    if repeated:
        total["repeated flops"] += counts["flops"]


def _flops(operation: str, shape: str, rest: str, known: dict[str, Instruction]) -> int:
    """Two for each multiplication and addition."""
    ((_, results),) = _arrays(shape)
    left, right = (_sizes(known[operand].shape) for operand in re.findall(r"%([\w.\-]+)", rest)[:2])
    if operation == "dot":
        axes = re.search(r"lhs_contracting_dims=\{([\d,]*)\}", rest)
        terms = math.prod(left[int(axis)] for axis in axes[1].split(",") if axis) if axes else 1
    else:
        kernel = re.search(r"dim_labels=\w+_(\w+)->", rest)
        assert kernel, rest
        terms = math.prod(right) // right[kernel[1].index("o")]
    return 2 * results * terms


def _sizes(shape: str) -> list[int]:
    return [int(n) for n in _ARRAY.findall(shape)[0][1].split(",") if n]


def _arrays(shape: str) -> list[tuple[int, int]]:
    """Bytes of an element and number of elements, of each array of a shape that may be a tuple."""
    found = _ARRAY.findall(shape)
    return [(_width(kind), math.prod(int(n) for n in size.split(",") if n)) for kind, size in found]


def _width(kind: str) -> int:
    bits = re.search(r"\d+", kind)
    return max(1, int(bits[0]) // 8) if bits else 1
