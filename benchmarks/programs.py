"""Compiled training steps, timed in turn: what every benchmark here is made of."""

import datetime
import gc
import json
import os
import resource
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from experiments.running import records

CLOCKS = ("wall", "cpu", "pages")


class Program:
    """One compiled program, and the arrays that it takes and gives back.

    Attributes:
      name: in the table.
      calls: how often a timed run calls the program; times are per call.
      seconds: to trace, to lower and to compile it.
      flops: of one call, as compiled; a loop's body counts once, a conditional's dearest branch.
      bytes: read and written by one call, as the compiler counts them.
      temp_bytes: temporary memory.
      result: what the last call gave beside the arrays.
    """

    def __init__(
        self, name: str, function: Callable[..., Any], arrays: Sequence[Any], *rest: Any, calls: int = 1
    ):
        """Compiles `function(*arrays, *rest) -> (*arrays, result)`; the arrays are donated."""
        self.name, self.calls = name, calls
        self.arrays, self.rest = jax.tree.map(lambda x: x.copy(), tuple(arrays)), rest
        begin = time.perf_counter()
        traced = jax.jit(function, donate_argnums=range(len(arrays))).trace(*self.arrays, *rest)
        middle = time.perf_counter()
        lowered = traced.lower()
        late = time.perf_counter()
        self.compiled = lowered.compile()
        self.seconds = {
            "trace": middle - begin,
            "lower": late - middle,
            "compile": time.perf_counter() - late,
        }
        costs, memory = self.compiled.cost_analysis(), self.compiled.memory_analysis()
        assert costs and memory, "this backend does not tell what programs cost"
        self.flops, self.bytes = costs["flops"], costs["bytes accessed"]
        self.result: Any = None
        self.temp_bytes = memory.temp_size_in_bytes

    def run(self) -> tuple[float, float, float]:
        """Seconds per call on the wall and on the CPU clock, and pages of fresh memory."""
        wall, cpu, pages = time.perf_counter(), time.process_time(), _fresh_pages()
        for _ in range(self.calls):
            *self.arrays, self.result = jax.block_until_ready(self.compiled(*self.arrays, *self.rest))
        spent = time.perf_counter() - wall, time.process_time() - cpu, _fresh_pages() - pages
        return spent[0] / self.calls, spent[1] / self.calls, spent[2] / self.calls


def _fresh_pages() -> int:
    """Memory that the system has handed to this process so far: buffers above 32 MB are new every step."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt


def measure(programs: Sequence[Program], rounds: int) -> dict[str, dict[str, np.ndarray]]:
    """What `run` returns, by clock and program, `[rounds]`; after one round that is not counted.

    In every round all programs run, in a new order: what disturbs the machine disturbs all alike, and
    a ratio within a round is that of neighbours.
    """
    times = np.zeros([rounds, len(programs), len(CLOCKS)])
    order = np.random.default_rng(0)
    gc.collect()
    for number in range(-1, rounds):
        for which in order.permutation(len(programs)):
            spent = programs[which].run()
            if number >= 0:
                times[number, which] = spent
    names = [program.name for program in programs]
    return {clock: dict(zip(names, times[:, :, i].T, strict=True)) for i, clock in enumerate(CLOCKS)}


def summary(values: np.ndarray) -> dict[str, float]:
    """Median, quartiles, and the 95 % interval of the median."""
    half = 0.98 / np.sqrt(len(values))
    points = {"median": 0.5, "q25": 0.25, "q75": 0.75, "low": max(0.5 - half, 0), "high": min(0.5 + half, 1)}
    return {name: float(np.quantile(values, q)) for name, q in points.items()}


def costs(program: Program, times: Mapping[str, Mapping[str, np.ndarray]], base: str) -> dict[str, Any]:
    """What one program took, and that relative to the program named `base`."""
    wall, cpu = (times[clock] for clock in ("wall", "cpu"))
    return {
        "flops": program.flops,
        "bytes": program.bytes,
        "temp_bytes": program.temp_bytes,
        "seconds": program.seconds,
        "rounds": len(wall[program.name]),
        "calls": program.calls,
        "pages": summary(times["pages"][program.name]),
        "milliseconds": summary(1e3 * wall[program.name]),
        "wall_ratio": summary(wall[program.name] / wall[base]),
        "cpu_ratio": summary(cpu[program.name] / cpu[base]),
    }


def spread(ratio: Mapping[str, float]) -> str:
    """A median with its quartiles, for tables of rich."""
    return rf"{ratio['median']:.2f} \[{ratio['q25']:.2f}, {ratio['q75']:.2f}]"


def verdict(ratio: Mapping[str, float], limit: float, rounds: int) -> str:
    """What the median says; undecided as long as its interval reaches below the limit."""
    if ratio["median"] <= limit:
        return "met"
    return "missed" if ratio["low"] > limit and rounds >= 6 else "undecided"


def environment() -> dict[str, Any]:
    """What else decides the numbers: machine and its load, versions, source, command."""
    found = records.environment()
    started = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    return found | {"started": started, "machine": found["machine"] | {"load": os.getloadavg()}}


def append_lines(file: Path, lines: Sequence[Mapping[str, Any]]) -> None:
    """Adds JSON lines to a file; its folder is made."""
    file.parent.mkdir(parents=True, exist_ok=True)
    with file.open("a") as opened:
        opened.writelines(json.dumps(line) + "\n" for line in lines)
