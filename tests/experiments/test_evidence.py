"""The evidence: which points are tried, what is chosen, what the tables say of results."""

import dataclasses
import json
import math

import numpy as np
import pytest
from scipy import stats

from experiments import models
from experiments.evidence import __main__ as evidence
from experiments.evidence import plan, tables
from experiments.evidence.candidates import CANDIDATES, candidates_of
from experiments.evidence.summary import answering, read, time_of
from experiments.evidence.tasks import TASKS, EvidenceTask
from experiments.running.records import environment
from experiments.settings import Setup
from experiments.settings.defaults import resolved
from tests.experiments.runs import message_of

MNIST1D = TASKS["mnist1d"]


def test_every_candidate_has_nine_to_twelve_points_and_at_most_six_around_the_best():
    for task in TASKS.values():
        for name, candidate in CANDIDATES.items():
            points = plan.coarse(task, candidate)
            assert len(points) == len({str(point) for point in points})
            fewer = not task.refines and name != "base" and not candidate.values and candidate.passes == 1
            assert len(points) == (9 if fewer else 12)
            for best in points:
                around = plan.refined(task, candidate, best)
                assert 3 <= len(around) <= 6 and not any(point in points for point in around)


def test_points_around_the_best_are_halfway_or_beyond_the_edge():
    assert plan.around(0.2, (0.1, 0.2, 0.4)) == [0.141, 0.283]
    assert plan.around(0.1, (0.1, 0.2, 0.4)) == [0.05, 0.141]
    assert plan.around(0.4, (0.1, 0.2, 0.4)) == [0.283, 0.8]
    assert plan.around(0.0, (0.0, 0.01, 0.1)) == [0.005]
    assert plan.around(0.01, (0.0, 0.01, 0.1)) == [0.005, 0.0316]


def test_a_search_goes_on_while_its_best_point_lies_at_an_edge():
    sam = CANDIDATES["sam"]
    tried = plan.coarse(MNIST1D, sam)
    inside, edge = {"learning_rate": 0.2, "rho": 0.2}, {"learning_rate": 0.1, "rho": 0.8}
    assert [point["weight_decay"] for point in plan.beyond(MNIST1D, sam, tried, inside)] == [1.5e-3]
    tried += plan.refined(MNIST1D, sam, inside)
    assert plan.beyond(MNIST1D, sam, tried, inside) == []
    assert plan.beyond(MNIST1D, sam, tried, edge) == [edge | {"learning_rate": 0.05}, edge | {"rho": 1.6}]
    for number in (24, 25):  # no more than 24 points, nor where an older grid has left more
        assert plan.beyond(MNIST1D, sam, (tried * 2)[:number], edge) == []
    ett = TASKS["etth1_96"]
    zero = {"learning_rate": 0.001, "weight_decay": 0.0}
    assert plan.beyond(ett, CANDIDATES["base"], plan.coarse(ett, CANDIDATES["base"]), zero) == []


def test_a_method_tries_the_decay_of_the_base_at_its_best_point():
    def row(candidate, score, **point):
        return {"phase": "tune", "candidate": candidate, "seed": 0, "score": score, "point": point}

    base = [row("base", 0.5, learning_rate=0.1, weight_decay=decay) for decay in (1.5e-3, 5e-4)]
    base.append(row("base", 0.6, learning_rate=0.1, weight_decay=4.5e-3))
    rows = [*base, row("sam", 0.5, learning_rate=0.1, rho=0.1), row("sam", 0.7, learning_rate=0.1, rho=0.2)]
    wanted = {"learning_rate": 0.1, "rho": 0.2, "weight_decay": 4.5e-3}
    assert plan.with_decay_of_base(MNIST1D, rows, "sam") == [wanted]
    assert plan.with_decay_of_base(MNIST1D, [*rows, row("sam", 0.6, **wanted)], "sam") == []
    assert (
        plan.with_decay_of_base(MNIST1D, rows, "base")
        == plan.with_decay_of_base(MNIST1D, rows[3:], "sam")
        == []
    )


def test_finer_points_are_halfway_to_those_that_were_tried():
    tried = [{"learning_rate": r, "weight_decay": d} for r in (0.1, 0.2, 0.4) for d in (1e-4, 1e-3)]
    best = {"learning_rate": 0.2, "weight_decay": 1e-4}
    found = plan.finer(MNIST1D, CANDIDATES["base"], tried, best)
    rates = [best | {"learning_rate": rate} for rate in (0.141, 0.283)]
    assert found == [*rates, best | {"weight_decay": 3.16e-4}]


def test_settings_of_a_run(tmp_path):
    point = {"learning_rate": 0.2, "rho": 1.6}
    found = plan.settings_of(MNIST1D, "momentum_sam", point, 3, "validation", None, tmp_path)
    assert (found.method, found.seed, found.learning_rate, found.method_settings.rho) == (
        "momentum_sam",
        3,
        0.2,
        1.6,
    )
    assert (found.weight_decay, found.evaluate_on, found.epochs) == (5e-4, "validation", 60)
    twice = plan.settings_of(
        MNIST1D, "twice", {"learning_rate": 0.1, "weight_decay": 0.001}, 0, "test", None, tmp_path
    )
    assert (twice.method, twice.epochs, twice.evaluate_every, twice.weight_decay) == ("sgd", 120, 120, 0.001)
    ett = plan.settings_of(TASKS["etth2_192"], "sam", point, 0, "test", tmp_path, tmp_path)
    assert (ett.horizon, ett.data_dir, ett.optimizer) == (192, tmp_path / "ett", "adamw")


def test_the_best_point_has_the_best_mean_on_the_validation_part():
    def rows(scores, phase="tune"):
        return [
            {
                "phase": phase,
                "candidate": "sam",
                "point": {"learning_rate": rate, "rho": 0.1},
                "seed": seed,
                "score": s,
            }
            for rate, values in scores.items()
            for seed, s in enumerate(values)
        ]

    tried = rows({0.1: [0.7, 0.9], 0.2: [0.81, 0.81], 0.3: [0.95, 0.1]}) + rows({0.3: [1.0]}, "test")
    assert plan.best_point(MNIST1D, tried, "sam")["learning_rate"] == 0.2
    losses = rows({0.1: [0.4, 0.4], 0.2: [0.3, None], 0.3: [0.39, 0.39]})
    assert plan.best_point(TASKS["etth1_96"], losses, "sam")["learning_rate"] == 0.3


@pytest.fixture
def tiny(monkeypatch):
    """A task of seconds."""
    setup = Setup(data="mnist1d", model="mlp", batch_size=40, train_examples=100, epochs=1)
    radii = (0.1, 0.2, 0.4, 0.8)
    numbers = {"seeds": 3, "trials": 1, "side_by_side": 5}
    task = EvidenceTask("tiny", setup, (0.1, 0.2, 0.3), (0.0, 1e-3, 1e-2), radii, **numbers)
    monkeypatch.setitem(TASKS, "tiny", task)
    monkeypatch.setattr(evidence, "TIMED_ROUNDS", 3)
    return task


def test_a_task_is_searched_tested_timed_and_goes_on_where_it_was(tiny, tmp_path, monkeypatch, capsys):
    words = [
        "tiny",
        "--candidates",
        "base",
        "sam",
        "--results",
        str(tmp_path),
        "--out",
        str(tmp_path / "runs"),
    ]
    trained, file = [], tmp_path / "tiny.jsonl"

    def counted(runs, *others):
        trained.extend(runs)
        return side_by_side(runs, *others)

    side_by_side = evidence.side_by_side
    monkeypatch.setattr(evidence, "side_by_side", counted)
    evidence.main([*words, "--phases", "tune", "test"])
    rows = [json.loads(line) for line in file.read_text().splitlines()]
    tuned = [row for row in rows if row["phase"] == "tune"]
    counts = [len(plan.tried(tiny, tuned, name)) for name in ("base", "sam")]
    assert 15 <= counts[1] <= 24 and counts[0] >= counts[1] and sum(counts) == len(tuned)
    assert {row["seed"] for row in tuned} == {0}
    assert [row["seed"] for row in rows if row["phase"] == "test"] == [100, 101, 102] * 2
    assert len(trained) == len(tuned) + 6
    chosen = {row["candidate"]: row["point"] for row in rows if row["phase"] == "test"}
    assert chosen == {name: plan.best_point(tiny, tuned, name) for name in ("base", "sam")}
    torn = file.read_text()[:-150]  # in the middle of the last line
    file.write_text(torn)
    trained.clear()
    evidence.main([*words, "--phases", "tune", "test", "time"])
    assert [run.seed for run in trained] == [102]
    again = [json.loads(line) for line in file.read_text().splitlines()]
    assert [row["phase"] for row in again].count("environment") == 2
    assert numbers(again) == numbers(rows)
    (summary,) = read(tmp_path)
    assert summary.kept["sam"].time[0] > 1 and summary.kept["sam"].gradients == 2


def numbers(rows):
    """What was trained, aside from its time and from how many ran beside it."""
    trained = [row for row in rows if row["phase"] in ("tune", "test")]
    left_out = ("seconds", "side_by_side")
    return [{name: value for name, value in row.items() if name not in left_out} for row in trained]


def test_the_eigenvalue_is_left_out_where_a_task_says_so(tiny, tmp_path, monkeypatch):
    asked = []

    def counted(runs, *others):
        asked.append(others[-1])
        return [{"score": 0.5}] * len(runs)

    monkeypatch.setattr(evidence, "side_by_side", counted)
    point = plan.coarse(tiny, CANDIDATES["base"])[0]
    for wanted in (True, False):
        monkeypatch.setitem(TASKS, "tiny", dataclasses.replace(tiny, eigenvalue=wanted))
        settings, book = evidence.EvidenceSettings("tiny"), evidence.Book(tmp_path / f"{wanted}.jsonl")
        evidence.train(settings, "test", "base", [(point, 100)], book, None)
    assert asked == [True, False]


def test_what_is_not_known_is_named(tmp_path, capsys):
    assert "mnist is not known: give mnist1d" in message_of(lambda: evidence.main(["mnist"]), capsys)
    words = ["mnist1d", "--candidates", "adam"]
    assert "adam is not known: give base, sam" in message_of(lambda: evidence.main(words), capsys)
    words = ["mnist1d", "--candidates", "base", "bi_lora"]
    line = message_of(lambda: evidence.main(words), capsys)
    assert "bi_lora is for tasks with adapters, which mnist1d has not: leave it out" in line
    words = ["mnist1d", "--candidates", "sam", "--phases", "test", "--results", str(tmp_path / "none")]
    assert "no search of sam: give --phases tune first" in message_of(lambda: evidence.main(words), capsys)
    with evidence.alone_with(tmp_path / "mnist1d.jsonl"):
        words = ["mnist1d", "--results", str(tmp_path)]
        assert "another process adds to" in message_of(lambda: evidence.main(words), capsys)
    message = message_of(lambda: tables.main(["--results", str(tmp_path)]), capsys)
    assert "holds no tested task" in message


def write(folder, name, scores, times):
    """Results by hand."""
    rows = [{"phase": "environment"} | environment()]
    for candidate, values in scores.items():
        point = plan.coarse(TASKS[name], CANDIDATES[candidate])[2]
        common = {"candidate": candidate, "point": point, "gradients_per_step": 1.0 + (candidate == "sam")}
        rows.append({"phase": "tune", "seed": 0, "score": 0.5} | common)
        rows += [{"phase": "test", "seed": 100 + n, "score": s} | common for n, s in enumerate(values)]
        rows.append({"phase": "time", "candidate": candidate, "rounds": [times[candidate]] * 4})
    (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def test_tables_are_means_paired_differences_and_shares(tmp_path):
    random = np.random.default_rng(0)
    base = 0.7 + 0.01 * random.normal(size=20)
    sam, cheap = base + 0.03 + 0.002 * random.normal(size=20), base + 0.028 + 0.002 * random.normal(size=20)
    times = {"base": 1.0, "sam": 2.0, "momentum_sam": 1.05, "rst": 1.5}
    write(tmp_path, "mnist1d", {"base": base, "sam": sam, "momentum_sam": cheap, "rst": cheap}, times)
    losses = 0.4 + 0.01 * random.normal(size=10)
    better = losses - 0.02
    write(tmp_path, "etth1_96", {"base": losses, "sam": better, "momentum_sam": better - 0.001}, times)
    noise = 0.5 + 0.05 * random.normal(size=(3, 20))
    write(tmp_path, "mnist1d_conv", dict(zip(("base", "sam", "momentum_sam"), noise, strict=True)), times)
    summaries = read(tmp_path)
    found = {each.name: each for each in summaries}
    assert [each.gains for each in found.values()] == [True, False, True]
    kept = found["mnist1d"].kept["momentum_sam"]
    assert kept.score.mean == pytest.approx(cheap.mean())
    low, high = stats.t.interval(0.95, 19, (cheap - base).mean(), stats.sem(cheap - base))
    assert kept.gain == pytest.approx(((low + high) / 2, (high - low) / 2))
    assert kept.over_sam.mean == pytest.approx((cheap - sam).mean())
    assert kept.share[0] == pytest.approx((cheap - base).mean() / (sam - base).mean())
    assert found["etth1_96"].kept["momentum_sam"].score.mean == pytest.approx((better - 0.001).mean())
    assert found["etth1_96"].kept["momentum_sam"].share[0] == pytest.approx(1.05)
    assert found["mnist1d_conv"].kept["momentum_sam"].share is None
    answers = answering(summaries)
    assert answers["momentum_sam"] == ["mnist1d", "etth1_96"] and answers["rst"] == []
    page = tmp_path / "page.md"
    page.write_text(f"before\n{tables.BEGIN}\nold\n{tables.END}\nafter\n")
    tables.main(["--results", str(tmp_path), "--page", str(page), "--picture", str(tmp_path / "p.png")])
    text = page.read_text()
    assert text.startswith("before\n") and text.endswith("\nafter\n") and "old" not in text
    shares = sorted((100 * kept.share[0], 105.0))
    middle = f"{sum(shares) / 2:.0f} ({shares[0]:.0f} to {shares[1]:.0f})"
    assert f"| Momentum SAM | 2 | {middle} | 1.05 (1.05 to 1.05) | 2 |" in text
    assert f"| RST | 1 | {100 * kept.share[0]:.0f} | 1.50 | 0 |" in text
    assert "no gain of SAM's" in text and (tmp_path / "p.png").stat().st_size > 10_000
    assert max(line.count("|") for line in text.splitlines()) == 7  # six columns


def test_times_are_compared_with_the_base_beside_which_they_were_measured():
    def measured(candidate, seconds):
        return {"phase": "time", "candidate": candidate, "rounds": [seconds] * 3}

    rows = [measured("base", 1.0), measured("sam", 2.0), measured("base", 3.0), measured("rst", 4.5)]
    assert time_of(rows, "sam") == (2, 2, 2) and time_of(rows, "rst") == (1.5, 1.5, 1.5)
    assert time_of(rows, "base") == (1, 1, 1) and time_of(rows, "ham") is None


def test_methods_of_adapters_are_for_tasks_with_adapters():
    alone = {"flat_lora", "bi_lora"}
    for name, task in TASKS.items():
        assert name.endswith("_adapter") == bool(task.setup.adapter_rank)
        assert alone & set(candidates_of(task)) == (alone if task.setup.adapter_rank else set())
    assert sum(name.endswith("_adapter") for name in TASKS) == 4


def test_the_penalty_against_wrong_labels_is_for_tasks_that_have_some():
    wrong = {name for name, task in TASKS.items() if "last_layer_l2" in candidates_of(task)}
    assert wrong == {
        name for name, task in TASKS.items() if "random labels" in task.title or "wrong" in task.title
    }
    assert {"digits", "cifar10n_worse", "trec"} <= wrong


def test_horizons_share_the_search_of_the_first(tmp_path):
    write(tmp_path, "etth1_96", {"base": [0.4] * 9, "sam": [0.38] * 9}, {"base": 1.0, "sam": 2.0})
    rows = [json.loads(line) for line in (tmp_path / "etth1_96.jsonl").read_text().splitlines()]
    kept = [row for row in rows if row["phase"] != "tune"] + [
        row | {"seed": 109} for row in rows if row["phase"] == "test" and row["seed"] == 100
    ]
    (tmp_path / "etth1_720.jsonl").write_text("".join(json.dumps(row) + "\n" for row in kept))
    (found,) = read(tmp_path)  # one seed of the first horizon is missing
    assert found.name == "etth1_720" and found.kept["sam"].cost == 2
    assert found.kept["sam"].point == plan.best_point(TASKS["etth1_96"], rows, "sam")


def test_the_page_holds_what_the_results_say():
    """Nobody edits the tables by hand."""
    summaries = read(evidence.RESULTS)
    text = (tables.ROOT / "docs/results.md").read_text()
    made = text.partition(tables.BEGIN)[2].partition(tables.END)[0]
    assert made.strip() == tables.page(summaries).strip()


@pytest.mark.parametrize("name", TASKS)
def test_every_setup_is_accepted(name, tmp_path, monkeypatch):
    monkeypatch.setattr(models, "check_installed", lambda: None)  # MiniLM's packages are an extra
    task = TASKS[name]
    for candidate in candidates_of(task):
        for point in plan.coarse(task, CANDIDATES[candidate])[::11]:
            settings = plan.settings_of(task, candidate, point, 0, "test", tmp_path, tmp_path)
            assert settings == resolved(settings) and all(map(math.isfinite, (settings.learning_rate,)))
