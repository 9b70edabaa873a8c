"""A run's programs compiled for a described machine: what is printed, and what is not touched."""

import re
from collections import Counter
from types import SimpleNamespace

import jax
import numpy as np
import pytest
from jax.sharding import AxisType, Mesh

from experiments import data, train
from experiments.running import compile_only, devices, programs, topologies
from experiments.running.compile_only import Machine, Need
from experiments.running.figures import Collective, Figures, figures
from experiments.settings import Settings
from experiments.settings.defaults import resolved
from tests import machines
from tests.experiments.runs import TINY, message_of


def machine_of(count, memory=10**9):
    """The first devices of this machine as a described one; the run itself would see but one."""
    mesh = Mesh(np.array(jax.devices()[:count]), ("data",), axis_types=(AxisType.Auto,))
    return Machine("abacus:1", mesh, memory)


@pytest.fixture
def described(monkeypatch):
    """Lets `--compile-only` mean the first two devices of this machine."""
    monkeypatch.setattr(compile_only, "described", lambda name: machine_of(2))


@pytest.fixture
def seen(monkeypatch):
    """The compiled programs whose figures are read."""
    found = []
    monkeypatch.setattr(compile_only, "figures", lambda each: found.append(each) or figures(each))
    return found


def printed(out, capsys, *args):
    """The rows of the table, by their first cells."""
    train.main(["--out", str(out), "--compile-only", "abacus:1", *TINY, "--epochs", "1", *args])
    text = capsys.readouterr().out
    rows = [[cell.strip() for cell in line.split("│")[1:-1]] for line in text.splitlines() if "│" in line]
    return text, {name: cells for name, *cells in rows}


def instructions(compiled):
    """Those of a compiled program, without the lines of source that they are from."""
    return re.findall(r"^ +\S.* = .*?(?=, metadata=|$)", compiled.as_text(), flags=re.MULTILINE)


# What is compiled


def test_needs_are_printed_and_nothing_is_trained_or_written(described, tmp_path, capsys):
    text, rows = printed(tmp_path / "x", capsys, "--method", "sam")
    assert "--method sam on abacus:1, 2 devices" in text and "of one step or batch" in text
    assert len(rows["seconds to compile"]) == 2 and float(rows["FLOPs"][0]) > 1e6
    assert int(rows["all-reduce"][0].split(",")[0]) >= 2 and rows["fits into 1,000.0 MB"][0].startswith(
        "yes, 0."
    )
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("fsdp", [False, True])
def test_the_program_is_the_one_that_the_run_executes(fsdp, seen, monkeypatch):
    settings = resolved(Settings(method="vsam", train_examples=60, batch_size=20, fsdp=fsdp))
    loaded = data.load(settings)
    needs = compile_only.needs(settings, loaded, machine_of(4))
    monkeypatch.setattr(devices, "available", lambda: jax.devices()[:4])
    run = programs.compile_programs(settings, loaded)
    assert list(map(instructions, seen)) == [instructions(run.steps), instructions(run.evaluate)]
    assert needs["step"].figures.outputs < 0.01 * needs["step"].figures.arguments  # the state is donated
    assert ("all-gather" in needs["step"].figures.collectives) == fsdp


def test_methods_with_another_first_epoch_have_two_programs_of_steps(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(compile_only, "described", lambda name: machine_of(1))
    _, rows = printed(tmp_path / "x", capsys, "--method", "ausam")
    whole, half = float(rows["FLOPs"][1]), float(rows["FLOPs"][0])
    assert len(rows["FLOPs"]) == 3 and whole > 1.5 * half


def test_a_stream_has_a_program_of_one_step(described, seen, tmp_path, capsys, tfds_dir):
    args = ["--data", "fashion_mnist", "--data-dir", tfds_dir, "--method", "sgd", "--stream", "True"]
    _, rows = printed(tmp_path / "x", capsys, *args)
    names = [re.findall(r"HloModule jit_(\w+)", compiled.as_text())[0] for compiled in seen]
    assert names == ["streamed_step", "sums"] and int(rows["all-reduce"][0].split(",")[0]) >= 1


def test_data_that_a_program_does_not_read_lie_beside_it():
    settings = resolved(Settings(method="sgd", train_examples=60, batch_size=20))
    loaded = data.load(settings)
    needs = compile_only.needs(settings, loaded, machine_of(1))
    tests, trained = (sum(array.nbytes for array in part.values()) for part in (loaded.test, loaded.train))
    assert needs["step"].beside > 0.5 * tests and needs["evaluation"].beside > trained
    assert needs["step"].memory == needs["step"].figures.memory + needs["step"].beside


def test_programs_that_ask_where_they_run_hear_of_the_described_machine():
    before = jax.default_backend()
    there: Mesh = SimpleNamespace(devices=np.array([SimpleNamespace(platform="tpu")]))
    with pytest.raises(InterruptedError), topologies.asked_about(there):
        assert jax.default_backend() == "tpu"
        raise InterruptedError
    assert jax.default_backend() == before


@pytest.mark.parametrize(("machine", "count"), [("h100:1x1x2", 2), ("v5e:2x2", 4)])
def test_a_run_compiles_for_a_machine_that_is_not_there(machine, count, tmp_path, capsys):
    """Where this environment has its compiler; no continuous integration has."""
    machines.mesh_of(machine)
    train.main(["--out", str(tmp_path / "x"), "--compile-only", machine, *TINY, "--method", "sam"])
    text = capsys.readouterr().out
    assert f"on {machine}, {count} devices" in text and "all-reduce" in text
    assert ("not known" in text) == (machine[0] == "h")


# What is refused


def test_a_machine_that_nobody_knows_is_one_line(tmp_path, capsys):
    line = message_of(lambda: train.main(["--compile-only", "abacus:1"]), capsys)
    assert "--compile-only abacus:1 is not known" in line and "v5e:16x16" in line


@pytest.mark.parametrize(
    ("machine", "package", "words"),
    [
        (
            "h100:1x1x8",
            None,
            "compiler for GPUs, which is not installed here: start with .venv-gpu/bin/python",
        ),
        ("v5e:2x2", None, "pip install '.[experiments,tpu-compiler]'"),
        (
            "v5e:3x7",
            "there",
            "--compile-only v5e:3x7 cannot be described (no such shape): give a shape as in",
        ),
    ],
)
def test_a_machine_that_cannot_be_described_is_one_line(machine, package, words, monkeypatch, capsys):
    def fail(name):
        raise ValueError("cannot be described") from RuntimeError("no such shape\nat all")

    monkeypatch.setattr(topologies, "mesh", fail)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: package)
    assert words in message_of(lambda: train.main(["--compile-only", machine]), capsys)


def test_a_batch_that_the_devices_do_not_divide_is_one_line(described, capsys):
    args = ["--compile-only", "abacus:1", "--batch-size", "25"]
    line = message_of(lambda: train.main(args), capsys)
    words = (
        "--batch-size 25 cannot be split over the 2 devices of --compile-only abacus:1: give a multiple of 2"
    )
    assert words in line


def test_a_program_that_the_compiler_refuses_for_its_size_is_one_line(described, capsys, monkeypatch):
    def compile(message):
        raise jax.errors.JaxRuntimeError(message)

    refused = SimpleNamespace(compile=lambda: compile("RESOURCE_EXHAUSTED: 286G of 15.75G\nmore"))
    monkeypatch.setattr(compile_only, "lowered_steps", lambda *_, **__: refused)
    line = message_of(lambda: train.main(["--compile-only", "abacus:1", *TINY]), capsys)
    assert "--compile-only abacus:1 has too little memory" in line and "--fsdp" in line
    refused.compile = lambda: compile("INTERNAL: a bug")
    with pytest.raises(jax.errors.JaxRuntimeError, match="a bug"):
        train.main(["--compile-only", "abacus:1", *TINY])


# What is read and shown

TEXT = """
HloModule jit_step

%body (p: f32[8]) -> f32[8] {
  %all-reduce.1 = (f32[64,10]{1,0:T(8,128)}, bf16[16]{0:T(256)(128)(2,1)}) all-reduce(%a, %b), to_apply=%add
  ROOT %c = f32[8]{0:T(256)} conditional(%p, %q), branch_computations={%x, %y}
}

ENTRY %main (p: f32[8]) -> f32[8] {
  %all-gather-start.2 = (f32[8]{0}, f32[16]{0}) all-gather-start(%p), dimensions={0}
  %all-gather-done.2 = f32[16]{0} all-gather-done(%all-gather-start.2)
  %collective-permute.1 = pred[5]{0} collective-permute(%p), source_target_pairs={{0,1}}
  ROOT %while = f32[8]{0} while(%p), condition=%condition, body=%body
}
"""


def compiled(costs=None):
    """As XLA gives it for a machine that is not there."""
    memory = SimpleNamespace(
        argument_size_in_bytes=70,
        output_size_in_bytes=50,
        alias_size_in_bytes=40,
        temp_size_in_bytes=20,
    )
    return SimpleNamespace(as_text=lambda: TEXT, memory_analysis=lambda: memory, cost_analysis=lambda: costs)


def test_figures_are_read_from_a_compiled_program():
    read = figures(compiled({"flops": 7.0}))
    assert (read.arguments, read.outputs, read.temporaries, read.memory) == (70, 10, 20, 100)
    assert (read.loops, read.conditionals, read.flops) == (1, 1, 7.0)
    assert read.collectives == {
        "all-reduce": Collective(1, 640 * 4 + 16 * 2),
        "all-gather": Collective(1, 16 * 4),
        "collective-permute": Collective(1, 5),
    }
    assert figures(compiled()).flops is None


def test_what_does_not_fit_or_is_not_known_is_said(monkeypatch):
    monkeypatch.setenv("COLUMNS", "100")
    read = Figures(
        900_000_000,
        1_000_000,
        400_000_000,
        None,
        {"all-reduce": Collective(2, 5_000_000)},
        0,
        "f32",
        Counter(),
    )
    needs = {"step": Need(1.5, read, 199_000_000), "evaluation": Need(0.5, read._replace(collectives={}), 0)}
    table = compile_only.table(Settings(), machine_of(1), needs)
    names, *columns = ([*column.cells] for column in table.columns)
    step, evaluation = (dict(zip(names, cells, strict=True)) for cells in columns)
    assert step["sum, MB"] == "1,500.0" and step["fits into 1,000.0 MB"] == "no, 150.0%"
    assert step["FLOPs"] == "not known" and step["all-reduce"] == "2, 5.0 MB"
    assert evaluation["all-reduce"] == "0" and evaluation["fits into 1,000.0 MB"] == "no, 130.1%"
