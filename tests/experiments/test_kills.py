"""A run that is killed again and again ends with the numbers of an uninterrupted one."""

import itertools
import os
import random
import signal
import time
from collections import Counter

import pytest

from experiments.running.checkpoints import KEPT
from tests.experiments.runs import TINY, metrics, num_lines, outcome, run, start, wait_until

KILLS = 20
EPOCHS = 120

# The moments that are aimed at in turn; what was really hit is read off the folder afterwards.
MOMENTS = ("starting", "training", "writing a checkpoint", "after a checkpoint")


def newest(out):
    """The epoch of the newest whole checkpoint, 0 without one."""
    return max((int(path.name) for path in out.glob("checkpoints/*") if path.name.isdigit()), default=0)


def being_written(out):
    """Whether there is an unfinished checkpoint."""
    return any(out.glob("checkpoints/*tmp*"))


def wait_for(moment, dice, out, process, startup):
    """Waits until a process is at some random point of a moment; False if it ends before."""
    new_epochs, delay = dice.randint(0, 3), dice.random()
    lines, checkpoint = num_lines(out) + new_epochs, newest(out) + new_epochs
    conditions = {
        "opening the folder": (lambda: (out / "config.json").exists(), 0.02),
        "starting": (lambda: True, startup),
        "training": (lambda: num_lines(out) > lines, 0.02),
        "writing a checkpoint": (lambda: num_lines(out) > lines and being_written(out), 0.05),
        "after a checkpoint": (lambda: newest(out) > checkpoint and not being_written(out), 0.01),
    }
    condition, longest = conditions[moment]
    reached = wait_until(condition, process)
    time.sleep(longest * delay)
    return reached and process.poll() is None


def changed(out):
    """When a run last wrote a line, or wrote them all anew; 0 before it ever did."""
    file = out / "metrics.jsonl"
    return file.stat().st_mtime_ns if file.exists() else 0


def place_of(out, changed_before, newest_before):
    """What a killed process was doing, by what it left behind."""
    checkpoints = [path for path in out.glob("checkpoints/*") if path.name.isdigit()]
    if changed(out) == changed_before:
        return "in import, compilation or reading"
    if not checkpoints and not being_written(out):
        return "before the first checkpoint"
    if being_written(out):
        return "in writing a checkpoint"
    if len(checkpoints) > KEPT and newest(out) > newest_before:
        return "in deleting an old checkpoint"
    return "in training, measuring or writing a line"


@pytest.mark.slow
@pytest.mark.parametrize("method", ["vsam", "ausam"])
def test_run_killed_twenty_times_ends_with_the_numbers_of_an_uninterrupted_one(method, tmp_path):
    seed = int(os.environ.get("KILL_SEED", random.randrange(10**6)))
    print(f"KILL_SEED={seed} draws these kills once more")
    dice = random.Random(seed)
    args = [*TINY, "--method", method, "--epochs", str(EPOCHS)]
    run(tmp_path / "whole", *args)
    killed, begin = tmp_path / "killed", time.perf_counter()
    startup, hits = 0.0, []
    for moment in ["opening the folder", *itertools.islice(itertools.cycle(MOMENTS), KILLS - 1)]:
        # Without checkpoints in between, more of the time is spent in the steps.
        every = ["--checkpoint-every", "5" if moment == "training" else "1"]
        before = changed(killed), newest(killed)
        process = start(killed, *args, *every, "--resume")
        assert wait_for(moment, dice, killed, process, startup), process.communicate()
        process.send_signal(signal.SIGKILL)
        _, error = process.communicate()
        assert process.returncode == -signal.SIGKILL and "damaged" not in error, error
        startup = startup or time.perf_counter() - begin
        hits.append(place_of(killed, *before))
        print(f"{moment:20} line {num_lines(killed):2}, checkpoint {newest(killed):2}: {hits[-1]}")
    assert not (killed / "result.json").exists()
    process = start(killed, *args, "--resume")
    _, error = process.communicate(timeout=300)
    assert process.returncode == 0 and "damaged" not in error, error
    print(f"{KILLS} kills in {time.perf_counter() - begin:.0f} s: {dict(Counter(hits))}")
    assert outcome(killed) == outcome(tmp_path / "whole")
    assert [line["epoch"] for line in metrics(killed)] == list(range(1, EPOCHS + 1))
    assert sum("ing a checkpoint" in hit or "ing an old" in hit for hit in hits) >= KILLS // 4
