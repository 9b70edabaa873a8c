"""Rules without a radius: their radii against the formulas, how they are tried, what the tables say."""

import json

import jax.numpy as jnp
import numpy as np
import optax
import pytest

import optax_sam
from experiments import methods
from experiments.evidence import judge_finder, judge_rules, plan, radius_tables
from experiments.evidence.rules import DESIGN, JUDGING, RULES
from experiments.evidence.tasks import TASKS
from experiments.methods.rules import RULES as FACTORIES
from tests.experiments.runs import message_of

STEPS = 4


def losses(w, batch):
    return 0.5 * jnp.square(batch @ w - 1.0)


def radii_of(rule):
    """The radius of each step on a linear regression, and what each step has seen."""
    x = np.random.default_rng(0).normal(size=(8, 3))
    tx = optax.chain(rule, optax.sgd(0.1))
    step = optax_sam.step(tx, losses)
    w = jnp.full(3, 2.0)
    state = tx.init(w)
    radii, seen = [], []
    for _ in range(STEPS):
        here = np.asarray(w, float)
        each = 0.5 * (x @ here - 1) ** 2
        gradient = x.T @ (x @ here - 1) / 8
        w, state, _ = step(w, state, jnp.asarray(x, jnp.float32))
        radii.append(float(optax_sam.info(state)["perturbation_norm"]))
        there = here + radii[-1] * gradient / np.linalg.norm(gradient)
        raised = (0.5 * (x @ there - 1) ** 2).mean()
        seen.append((each, np.linalg.norm(gradient), np.linalg.norm(here), raised))
    return radii, seen


def rate(count):
    return 0.1 / (1 + count)


FORMULAS = {
    "absolute_budget": lambda n, each, norm, weights: 0.3 / norm,
    "relative_budget": lambda n, each, norm, weights: 0.3 * each.mean() / norm,
    "noise_of_losses": lambda n, each, norm, weights: 0.3 * each.std() / norm,
    "part_of_weights": lambda n, each, norm, weights: 0.3 * weights,
    "edge_of_stability": lambda n, each, norm, weights: 0.3 * rate(n) * norm,
}


@pytest.mark.parametrize("name", FORMULAS)
def test_a_radius_is_its_formula(name):
    given = {"learning_rate": rate} if name == "edge_of_stability" else {}
    radii, seen = radii_of(FACTORIES[name](constant=0.3, **given))
    wanted = [min(FORMULAS[name](n, *each[:3]), 1.0) for n, each in enumerate(seen)]
    assert min(wanted) < 1
    np.testing.assert_allclose(radii, wanted, rtol=1e-4)


def test_the_curvature_is_a_running_mean_of_what_two_losses_show():
    radii, seen = radii_of(FACTORIES["curvature"](constant=0.3))
    k, wanted = 1.0, []
    for each, norm, _, raised in seen:
        wanted.append(min(0.3 * norm / k, 1.0))
        bent = raised - each.mean() - wanted[-1] * norm
        k = 0.9 * k + 0.1 * 2 * abs(bent) / wanted[-1] ** 2
    np.testing.assert_allclose(radii, wanted, rtol=1e-3)


@pytest.mark.parametrize("name", ["measured_rise", "held_rise"])
def test_a_radius_follows_the_measured_rise(name):
    held = {"total_steps": 20} if name == "held_rise" else {}  # from the third step on
    radii, seen = radii_of(FACTORIES[name](constant=0.5, **held))
    log, wanted = np.log(0.01), []
    for number, (each, _, _, raised) in enumerate(seen):
        wanted.append(np.exp(log))
        if name == "measured_rise" or number < 2:
            log += 0.1 * np.clip(np.log(0.5 / (raised / each.mean() - 1)), -1, 1)
    np.testing.assert_allclose(radii, wanted, rtol=1e-3)


def test_every_rule_is_a_method_of_the_experiments_and_design_and_judging_tasks_are_apart():
    assert {rule.method for rule in RULES.values()} <= set(methods.NAMES)
    assert set(FACTORIES) == {rule.method for rule in RULES.values()} - {
        "sam",
        "fan_scaled_sam",
        "spectral_sam",
    }
    assert not set(DESIGN) & set(JUDGING) and {*DESIGN, *JUDGING} <= set(TASKS)


def write(file, rows):
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))


def rows_of(name, point, scores, phase="test", first=100):
    common = {"phase": phase, "candidate": name, "point": point}
    return [common | {"seed": first + n, "score": score} for n, score in enumerate(scores)]


@pytest.fixture
def results(tmp_path):
    """A searched task by hand: SAM gains 4 points, and a fixed radius half of them."""
    base, sam = {"learning_rate": 0.3, "weight_decay": 5e-4}, {"learning_rate": 0.2, "rho": 0.4}
    random = np.random.default_rng(0)
    low = 0.7 + 0.01 * random.normal(size=12)
    high, middle = low + 0.04, low + 0.02 + 0.001 * random.normal(size=12)
    own = {"learning_rate": 0.2, "weight_decay": 5e-4, "rho": 0.05}
    rows = rows_of("base", base, [0.7, 0.7], "tune", 0) + rows_of("sam", sam, [0.7, 0.8], "tune", 0)
    rows += rows_of("base", base, low) + rows_of("sam", sam, high)
    write(tmp_path / "mnist1d_noise20.jsonl", rows)
    write(tmp_path / "rules_mnist1d_noise20.jsonl", rows_of("default", own, middle[:10]))
    return tmp_path, low, high, middle


def test_regret_is_the_part_of_the_gain_that_is_lost(results):
    folder, low, high, middle = results
    found = radius_tables.judged("mnist1d_noise20", "default", folder)
    lost = (high - middle)[:10].mean() / (high - low)[:10].mean()
    assert found.regret[0] == pytest.approx(lost) and found.regret[1] < lost < found.regret[2]
    assert found.gain.mean == pytest.approx((middle - low)[:10].mean())
    head, only = radius_tables.regrets(folder)
    assert head == ("rule", "MNIST-1D, 20 % random labels", "median, worst")
    assert only[0] == "SAM, radius 0.05, c = 0.05" and only[1].startswith(f"{lost:.2f} (")
    assert only[2] == f"{lost:.2f}, {lost:.2f}"
    assert radius_tables.judged("mnist1d_noise20", "one_radius", folder) is None
    write(
        folder / "rules_mnist1d_noise20.jsonl",
        rows_of("default", {"learning_rate": 0.2, "weight_decay": 5e-4, "rho": 0.05}, middle[:1]),
    )
    assert radius_tables.judged("mnist1d_noise20", "default", folder) is None


def test_the_factor_of_the_finder_is_the_recommended_radius_over_the_tuned_one(results):
    folder, *_ = results
    curve = {"radii": [0.1, 0.4, 1.6], "relative_rises": [0.2, 0.9, None]}
    write(
        folder / "finder_mnist1d_noise20.jsonl",
        [{"phase": "find", "seed": seed, "recommended": rho} | curve for seed, rho in enumerate((0.1, 0.4))],
    )
    table, said = radius_tables.finder(folder)
    assert "| 0.4 | 0.2 (0.1 to 0.4) | 0.5 | 0.9 |" in table
    assert said.startswith("Median factor 2, worst 2")


def test_a_task_that_shares_a_search_has_its_numbers():
    numbers = {task: judge_rules.reference(task, judge_rules.RESULTS) for task in ("etth1_96", "etth1_720")}
    assert numbers["etth1_720"] == numbers["etth1_96"] and numbers["etth1_96"]["sam"]["rho"] == 1


def test_what_is_not_known_is_named(tmp_path, capsys):
    line = message_of(lambda: judge_rules.main(["trec"]), capsys)
    assert "trec is not known: give mnist1d, digits" in line
    line = message_of(lambda: judge_rules.main(["etth1_96", "--phases", "choose"]), capsys)
    assert "etth1_96 is a judging task" in line
    line = message_of(lambda: judge_finder.main(["mnist1d", "--results", str(tmp_path)]), capsys)
    assert "no search of base" in line


def test_the_page_holds_what_the_results_say():
    """Nobody edits the tables by hand."""
    text = (radius_tables.ROOT / "docs/radius.md").read_text()
    made = text.partition(radius_tables.BEGIN)[2].partition(radius_tables.END)[0]
    assert made.strip() == radius_tables.page(judge_rules.RESULTS).strip()


def test_the_finder_begins_with_a_tenth_of_the_bases_training():
    settings = judge_finder.FinderSettings("mnist1d")
    found = judge_finder.run_of(settings, 1)
    base = plan.best_point(
        TASKS["mnist1d"], judge_finder.Book(judge_finder.RESULTS / "mnist1d.jsonl").rows, "base"
    )
    assert (found.epochs, found.schedule, found.method, found.seed) == (6, "constant", "sgd", 1)
    assert found.learning_rate == base["learning_rate"] and found.evaluate_on == "test"
