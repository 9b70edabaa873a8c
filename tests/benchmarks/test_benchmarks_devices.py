"""The benchmarks of split batches: what programs send, promises, and the arithmetic of many chips."""

import json
import os
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest
from jax import lax

from benchmarks import collectives, scaling, split_steps

ROOT = Path(__file__).parents[2]
PROMISED = ["sam", "momentum_sam", "per_device(sam)", "ausam(strata=8)"]
PROGRAM = """HloModule step

%body.1 (p: (s32[], f32[4,3])) -> (s32[], f32[4,3]) {
  %p = (s32[], f32[4,3]{1,0}) parameter(0)
  %x = f32[4,3]{1,0} get-tuple-element(%p), index=1
  %y = f32[3,5]{1,0} constant({...})
  %product = f32[4,5]{1,0} dot(%x, %y), lhs_contracting_dims={1}, rhs_contracting_dims={0}
  ROOT %sum = (f32[4,3]{1,0}, s32[]) all-reduce(%x, %p), channel_id=1, to_apply=%add
}

%add (a: f32[], b: f32[]) -> f32[] {
  ROOT %c = f32[] add(%a, %b)
}

%branch.0 (p: f32[2,8,8,3]) -> f32[2,8,8,6] {
  %images = f32[2,8,8,3]{3,2,1,0} parameter(0)
  %kernel = f32[3,3,3,6]{3,2,1,0} constant({...})
  ROOT %conv = f32[2,8,8,6]{3,2,1,0} convolution(%images, %kernel), dim_labels=b01f_01io->b01f
}

%branch.1 (p: f32[2,8,8,3]) -> f32[2,8,8,6] {
  ROOT %zero = f32[2,8,8,6]{3,2,1,0} constant({...})
}

ENTRY %main (p: f32[2]) -> f32[16] {
  %p = f32[2]{0} parameter(0)
  %loop = (s32[], f32[4,3]{1,0}) while(%p), body=%body.1, backend_config={"known_trip_count":{"n":"7"}}
  %either = f32[2,8,8,6] conditional(%p, %p, %p), branch_computations={%branch.0, %branch.1}
  ROOT %all = bf16[16]{0} all-gather(%p), dimensions={0}
}
"""


def test_loops_count_as_often_as_they_run_and_conditionals_by_their_dearest_branch():
    got = collectives.traffic(PROGRAM)
    convolution, product = 2 * (2 * 8 * 8 * 6) * (3 * 3 * 3), 2 * (4 * 5) * 3
    assert got == (7 * (4 * 3 + 1), 16 * 2, 2 * 7 * 4 * (4 * 3 + 1) + 16 * 2, convolution + 7 * product, True)


def test_counted_products_are_those_of_the_compiled_program():
    def straight(x):
        kernel = x.reshape(-1)[:18].reshape(1, 2, 3, 3)
        return x @ x.T, lax.conv(x.reshape(1, 2, 4, 8), kernel, (1, 1), "VALID")

    def repeated(x):
        return lax.fori_loop(0, 5, lambda _, y: jnp.tanh(y @ y), x @ x.T)

    text = jax.jit(straight).lower(jnp.ones([4, 16])).compile().as_text()
    assert collectives.traffic(text) == (0, 0, 0, 2 * 16 * 16 + 2 * (2 * 6) * 18, False)
    text = jax.jit(repeated).lower(jnp.ones([4, 3])).compile().as_text()
    assert collectives.traffic(text) == (0, 0, 0, 2 * 16 * 3 + 5 * 2 * 16 * 4, True)


def test_every_promise_has_a_step():
    assert split_steps.steps_on(8).keys() >= {"sgd", *split_steps.PROMISES}


def run(out, *arguments):
    command = [sys.executable, "-m", "benchmarks.devices", "--check", "--models", "mlp", "--width", "96"]
    command += ["--out", str(out), *arguments]
    done = subprocess.run(command, cwd=ROOT, env=os.environ, capture_output=True, text=True)
    return done, [json.loads(line) for line in out.read_text().splitlines()] if out.exists() else []


@pytest.mark.slow
def test_promises_are_kept_on_automatic_and_explicit_axes(tmp_path):
    done, lines = run(tmp_path / "new" / "devices.jsonl", "--only", *PROMISED)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "kept" in done.stdout
    found = {(line["axes"], line["step"]): line for line in lines}
    assert found.keys() == {(axes, name) for axes in ("automatic", "explicit") for name in ("sgd", *PROMISED)}
    for (_, name), line in found.items():
        assert line["missed"] == [] and not line["repeated_work"]
        promised = split_steps.PROMISES[name].all_reduced
        assert promised <= line["all_reduced_ratio"] <= promised + 0.06
    sgd, sam = (found["explicit", name]["product_flops"] for name in ("sgd", "sam"))
    assert sam == 2 * sgd


@pytest.mark.slow
def test_a_missed_promise_is_told_and_ends_with_one(tmp_path):
    """A batch so small that AUSAM's norms weigh more than promised."""
    out = tmp_path / "devices.jsonl"
    done, lines = run(out, "--only", "ausam(strata=8)", "--axes", "automatic", "--batch-size", "64")
    assert done.returncode == 1, done.stdout + done.stderr
    assert "MISSED" in done.stdout and "automatic axes: FLOPs" in done.stdout
    assert lines[0]["missed"] == [] and any("FLOPs" in reason for reason in lines[1]["missed"])


@pytest.mark.slow
def test_times_are_ratios_within_a_round_on_each_number_of_devices(tmp_path):
    out = tmp_path / "times.jsonl"
    command = [sys.executable, "-m", "benchmarks.device_times", "--rounds", "1", "--models", "mlp"]
    subprocess.run([*command, "--devices", "1", "2", "--out", str(out)], cwd=ROOT, check=True)
    lines = [json.loads(line) for line in out.read_text().splitlines()]
    assert [line["devices"] for line in lines] == [1] * 5 + [2] * 5
    for line in lines:
        assert line["wall_ratio"]["median"] > 0 and line["rounds"] == 1
        assert line["step"] != "sgd" or line["wall_ratio"]["median"] == 1


def test_all_reduces_on_many_chips_are_those_computed_by_hand():
    tpu, dgx = scaling.MACHINES
    size = 4 * 25_557_032  # bytes: 102,228,128
    # 2 x 2 x 2: three links of 100 GB/s, 2 * 7/8 of the bytes; 6 hops of 1 us.
    assert tpu.all_reduce(size, 8) == pytest.approx(596.33e-6 + 6e-6, rel=1e-4)
    # 4 x 8 x 8: six links, 2 * 255/256; 2 * (2 + 4 + 4) hops.
    assert tpu.all_reduce(size, 256) == pytest.approx(339.43e-6 + 20e-6, rel=1e-4)
    # 16 x 16 x 16: 2 * 4095/4096; 2 * (8 + 8 + 8) hops.
    assert tpu.all_reduce(size, 4096) == pytest.approx(340.68e-6 + 48e-6, rel=1e-4)
    # Inside a node at 450 GB/s; 32 nodes at 50 GB/s, an eighth of the bytes, and a tree of 5 levels.
    assert dgx.all_reduce(size, 8) == pytest.approx(397.55e-6 + 4e-6, rel=1e-4)
    assert dgx.all_reduce(size, 256) == pytest.approx(397.55e-6 + 495.17e-6 + 54e-6, rel=1e-4)
    assert tpu.all_reduce(size, 1) == dgx.all_reduce(size, 1) == 0


def test_steps_on_many_chips_are_those_computed_by_hand():
    resnet, tpu, chips = scaling.NETWORKS[0], scaling.MACHINES[0], 4096
    # 8 images of 6 * 4.089e9 FLOPs at 0.4 * 459e12: 1069.0 us; one all-reduce: 388.7 us.
    wanted = {
        "SGD": (1069.0 + 388.7, 1069.0),
        "SAM": (2 * (1069.0 + 388.7), 2 * 1069.0),
        "per_device(SAM)": (2 * 1069.0 + 388.7, 2 * 1069.0),
        "AUSAM(0.5), strata": (1069.0 + 2 * 388.7, 1069.0 / 3 + 2 * 388.7),  # half a backward: 356.3 us
    }
    for step in scaling.STEPS:
        got = [scaling.step_time(step, resnet, tpu, chips, 4, overlap) for overlap in (False, True)]
        assert got == pytest.approx([1e-6 * time for time in wanted[step.name]], rel=1e-4)
    # 53 layers, two reductions each, 48 us.
    assert scaling.statistics_time(resnet, tpu, chips) == pytest.approx(5088e-6)


def test_many_chips_are_predicted_from_what_is_promised():
    names = {"SGD": "sgd", "SAM": "sam", "per_device(SAM)": "per_device(sam)"}
    for step in scaling.STEPS:
        promise = split_steps.PROMISES[names.get(step.name, "ausam(strata=8)")]
        assert sum(step.reduced) == promise.all_reduced
        assert sum(step.shares) <= promise.flops


def test_what_is_compiled_takes_its_products_and_a_latency_for_each_sum():
    line = {"product_flops": 0.4 * 989e12 * 1e-3, "collectives": {"all-reduce": [3, 4 * 25_557_032]}}
    # Four nodes of eight: 2 * 7/8 of the bytes at 450 GB/s, 2 * 3/4 of an eighth at 50 GB/s.
    wanted = 1e-3 + 397.55e-6 + 383.36e-6 + 3 * (4e-6 + 2 * 2 * 5e-6)
    assert scaling.compiled_time(line, scaling.MACHINES[1], 32) == pytest.approx(wanted, rel=1e-4)


def test_steps_on_paper_stand_beside_their_programs():
    place = {"machine": "h100:4x1x8", "model": "mlp", "parameters": "copied", "axes": "auto"}
    sgd = place | {"product_flops": 2e9, "collectives": {"all-reduce": [2, 5_826_584]}, "step": "base alone"}
    sam = sgd | {"product_flops": 4e9, "collectives": {"all-reduce": [3, 11_653_168]}, "step": "sam"}
    others = [sam | {"machine": "v5e:2x2"}, sam | {"axes": "explicit"}, place | {"step": "sam", "error": ""}]
    table = scaling.held_against_compiled([sam, *others, sgd])
    rows = list(zip(*(column.cells for column in table.columns), strict=True))
    assert [row[1] for row in rows] == ["sam", "base alone"]
    assert rows[0][2:5] == ("2 / 3", "23.3 / 11.7", "2.000 / 2.000")
    assert (rows[0][5], rows[1][5]) == ("2.00 / 1.75", "1.00 / 1.00")
