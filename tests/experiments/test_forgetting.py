"""Forgetting: what is measured, that it goes on, what the table says."""

import dataclasses
import json
from functools import partial

import jax
import numpy as np
import pytest
from scipy import stats

from experiments import models
from experiments.data import characters
from experiments.evidence import forgetting, forgetting_tables
from experiments.evidence.tasks import TASKS
from experiments.models.decoder import Decoder
from experiments.running.records import read_metrics
from experiments.settings import Setup
from tests.experiments.runs import message_of

ALPHABET = "\n abcdefgh"
LOSSES = {"first", "second", "first_rounded", "first_tuned", "second_tuned"}


@pytest.fixture
def small(monkeypatch, tmp_path):
    """A text of ten characters, sentences of the same and one more, a tiny decoder, a step or two of each."""
    random = np.random.default_rng(0)
    (tmp_path / "text").mkdir()
    (tmp_path / "text/tinyshakespeare.txt").write_text("".join(random.choice([*ALPHABET], 40 * 128 + 1)))
    lines = ["".join(random.choice([*"abxcd "], 50)) for _ in range(30)]
    monkeypatch.setattr(forgetting, "builder_of", lambda *_: None)
    monkeypatch.setattr(forgetting, "sentences", lambda *_: (lines, lines[:8]))
    monkeypatch.setitem(models.MODELS, "decoder", partial(Decoder, width=8, heads=2, layers=1))
    setup = Setup(data="tinyshakespeare", model="decoder", optimizer="adamw", batch_size=4, epochs=1)
    task = dataclasses.replace(TASKS["characters"], setup=setup)
    monkeypatch.setitem(TASKS, "characters", task)
    monkeypatch.setattr(forgetting, "METHODS", ("base", "sam"))
    monkeypatch.setattr(forgetting, "RATES", (1e-3, 1e-2))
    monkeypatch.setattr(forgetting, "TUNING_STEPS", 2)
    return tmp_path


def test_finished_runs_are_lines_and_are_not_trained_again(small, monkeypatch, capsys):
    trained = []

    def counted(settings, *others):
        trained.append((settings.method, settings.seed))
        return train(settings, *others)

    train = forgetting.run
    monkeypatch.setattr(forgetting, "run", counted)
    words = ["--data", str(small), "--results", str(small), "--out", str(small / "runs"), "--seeds", "2"]
    forgetting.main(words)
    file = small / forgetting.FILE
    rows = read_metrics(file)
    tried = [row for row in rows if row["phase"] == "tune"]
    assert [row["candidate"] for row in tried] == ["base"] * 2 + ["sam"] * 4
    best = min(tried[:2], key=lambda row: row["score"])["point"]
    assert all(row["point"] == best | {"rho": row["point"]["rho"]} for row in tried[2:])
    kept = [row for row in rows if row["phase"] == "forget"]
    assert [(row["candidate"], row["seed"]) for row in kept] == [
        ("base", 100),
        ("sam", 100),
        ("base", 101),
        ("sam", 101),
    ]
    assert all(LOSSES <= set(row) and all(0 < row[each] < 5 for each in LOSSES) for row in kept)
    assert all(row["second_tuned"] < row["second"] and row["first_rounded"] != row["first"] for row in kept)
    assert [row["gradients_per_step"] for row in kept] == [1, 2, 1, 2]
    lines = file.read_text().splitlines(keepends=True)
    file.write_text("".join(lines[:-1]) + lines[-1][:20])  # torn
    trained.clear()
    forgetting.main(words)
    assert trained == [("sam", 101)]
    again = [row for row in read_metrics(file) if row["phase"] == "forget"]
    without_times = [{name: row[name] for name in row if name != "seconds"} for row in kept]
    assert [{name: row[name] for name in row if name != "seconds"} for row in again] == without_times


def test_numbers_of_seeds_are_checked(small, capsys):
    words = ["--data", str(small), "--seeds", "1"]
    assert "--seeds 1 is out of range: give 2" in message_of(lambda: forgetting.main(words), capsys)


def test_other_text_is_in_the_characters_of_the_first(small):
    """`x` is left out, lines are joined, stretches overlap by one."""
    lines = ["abx" * 60, "", "hg"]
    found = characters.as_numbered(lines, small / "text")
    wanted = [ALPHABET.index(each) for each in "ab" * 60 + "\n\nhg"]
    assert found.shape == (0, 129)
    found = characters.as_numbered(lines * 3, small / "text")
    wanted = (wanted + [0]) * 2 + wanted
    assert found.dtype == np.uint8 and found.tolist() == [wanted[:129], wanted[128:257]]


def test_rounding_is_to_fifteen_levels_of_each_output():
    """Against NumPy, one weight after the other."""
    module = Decoder(num_classes=7, width=8, heads=2, layers=1)
    params = module.init(jax.random.key(0), np.zeros((1, 5), np.int32), train=False)["params"]
    found = forgetting.rounded(params, 4)

    def literal(column):
        scale = np.max(np.abs(column)) / 7
        return np.array([scale * np.clip(np.round(weight / scale), -7, 7) for weight in column])

    def columns(path, array):
        name = path[-1].key
        if name == "kernel":
            inputs = 8 if array.size == 64 or array.shape[0] == 8 else array.shape[0]
            return array.reshape(inputs, -1).T
        return array.reshape(-1, array.shape[-1]) if name in ("embedding", "places") else None

    seen = []
    for (path, before), after in zip(jax.tree.leaves_with_path(params), jax.tree.leaves(found), strict=True):
        before, after = np.asarray(before), np.asarray(after)
        if (rows := columns(path, before)) is None:
            np.testing.assert_array_equal(after, before)
            continue
        seen.append(before.shape)
        wanted = np.stack([literal(row) for row in rows])
        np.testing.assert_allclose(columns(path, after), wanted, atol=1e-6)
        assert max(len(np.unique(np.round(row, 6))) for row in columns(path, after)) <= 15
    assert sorted(seen) == [(1, 5, 8), (2, 4, 8), *[(7, 8)], *[(8, 2, 4)] * 3, (8, 7), (8, 32), (32, 8)]


def test_of_zeros_rounding_makes_zeros():
    np.testing.assert_array_equal(forgetting.to_levels(np.zeros((3, 2)), (0,), 4), np.zeros((3, 2)))


# The table


def lines_of(losses):
    rows = []
    for name, values in losses.items():
        point = {"learning_rate": 0.001} | ({} if name == "base" else {"rho": 0.1})
        rows.append({"phase": "tune", "candidate": name, "point": point, "seed": 0, "score": 1.5})
        for seed, (first, by_rounding, by_tuning) in enumerate(values):
            row = {"phase": "forget", "candidate": name, "point": point, "seed": 100 + seed, "first": first}
            row |= {"first_rounded": first + by_rounding, "first_tuned": first + by_tuning}
            rows.append(row | {"second": 2.5, "second_tuned": 1.25})
    return rows


def test_the_table_is_made_from_the_lines(tmp_path):
    random = np.random.default_rng(0)
    base, sam = (np.array([1.5, 0.2, level]) + 0.01 * random.normal(size=(5, 3)) for level in (0.6, 0.4))
    rows = lines_of({"base": base.tolist(), "sam": sam.tolist(), "late_sam": [[1.0, 1.0, 1.0]]})
    page = tmp_path / "page.md"
    page.write_text(f"before\n{forgetting_tables.BEGIN}\nold\n{forgetting_tables.END}\nafter\n")
    (tmp_path / forgetting.FILE).write_text("".join(json.dumps(row) + "\n" for row in rows))
    forgetting_tables.main(["--results", str(tmp_path), "--page", str(page)])
    text = page.read_text()

    def cell(values, form):
        margin = stats.t.ppf(0.975, len(values) - 1) * stats.sem(values)
        return f"{values.mean():{form}} ± {margin:.4f}"

    own = [cell(values, ".4f") for values in (sam[:, 0], sam[:, 0] + sam[:, 1], sam[:, 0] + sam[:, 2])]
    assert f"| SAM, learning rate 0.001, rho 0.1 | 5 | {' | '.join(own)} | 1.2500 ± 0.0000 |" in text
    rises = [
        cell(values, form)
        for number in (1, 2)
        for values, form in ((sam[:, number], ".4f"), (sam[:, number] - base[:, number], "+.4f"))
    ]
    assert f"| SAM | {' | '.join(rises)} |" in text
    assert "old" not in text and "late" not in text and text.endswith("\nafter\n")


def test_without_runs_the_page_says_so():
    assert forgetting_tables.page(lines_of({"base": [[1.0, 1.0, 1.0]]})) == "Not run yet.\n"


def test_the_page_holds_what_the_results_say():
    """Nobody edits the tables by hand."""
    tables, folder = forgetting_tables, forgetting.RESULTS
    text = (tables.ROOT / "docs/language_models.md").read_text()
    made = text.partition(tables.BEGIN)[2].partition(tables.END)[0]
    assert made.strip() == tables.page(read_metrics(folder / forgetting.FILE)).strip()
