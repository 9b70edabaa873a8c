"""Series, forecasts and texts: what is read, and the networks for them against literal NumPy."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments import data
from experiments.data.ett import ENDS, LOOK_BACK
from experiments.models.decoder import Decoder
from experiments.models.samformer import SAMformer
from experiments.models.small import Perceptron, StridedConvNet
from experiments.settings import Settings
from experiments.settings.defaults import resolved
from experiments.tasks.forecast import Forecast
from experiments.tasks.next_character import NextCharacter
from tests.experiments.runs import message_of, metrics, run

KEY = jax.random.key(0)


def load(**settings):
    return data.load(resolved(Settings(method="sgd", **settings)))


@pytest.fixture
def hours():
    """Seven channels that a straight line and a wave make."""
    time = np.arange(ENDS[-1] + 30.0)[:, None]
    return np.arange(1.0, 8) * np.sin(time / (5 + np.arange(7))) + 0.001 * time


@pytest.fixture
def folder(hours, tmp_path):
    """A folder with such a file."""
    lines = ["date," + ",".join("ABCDEFG")]
    lines += [f"2016-07-01 00:00:00,{','.join(map(repr, map(float, row)))}" for row in hours]
    (tmp_path / "ETTh1.csv").write_text("\n".join(lines) + "\n")
    return tmp_path


def test_mnist1d_is_the_authors_file():
    """Numbers of the package `mnist1d` 0.0.2, made by its `make_dataset`."""
    found = load(data="mnist1d")
    assert found.train["series"].shape == (4000, 40) and found.test["series"].shape == (1000, 40)
    series = found.train["series"]
    np.testing.assert_allclose(series[0, :4], [-0.33200567, -0.47191037, -0.77869708, -1.00974083], atol=1e-6)
    np.testing.assert_allclose(series[17, 20:23], [-0.09123403, 0.07506523, 0.31030022], atol=1e-6)
    np.testing.assert_allclose(found.test["series"][-1, -3:], [0.65987565, 0.87773435, 1.19315184], atol=1e-6)
    assert found.train["label"][:12].tolist() == [2, 6, 4, 5, 6, 6, 6, 0, 3, 1, 6, 9]
    assert found.test["label"][-6:].tolist() == [1, 2, 5, 9, 6, 4]


def test_windows_of_a_series_are_those_of_the_usual_parts(hours, folder):
    found = load(data="etth1", horizon=24, data_dir=folder)
    train, validation, test = ENDS
    assert len(found.train["past"]) == train - LOOK_BACK - 24 + 1
    assert len(found.test["past"]) == test - validation - 24 + 1
    assert found.validation is not None and len(found.validation["past"]) == validation - train - 24 + 1
    values = (hours - hours[:train].mean(0)) / hours[:train].std(0)
    for part, first in (
        (found.train, 0),
        (found.validation, train - LOOK_BACK),
        (found.test, validation - LOOK_BACK),
    ):
        for row in (0, 5, len(part["past"]) - 1):
            start = first + row
            np.testing.assert_allclose(part["past"][row], values[start : start + LOOK_BACK], atol=1e-5)
            future = values[start + LOOK_BACK : start + LOOK_BACK + 24]
            np.testing.assert_allclose(part["future"][row], future, atol=1e-5)


def test_choices_are_made_on_the_validation_part(folder):
    found = load(data="etth1", horizon=24, data_dir=folder, evaluate_on="validation")
    assert len(found.test["past"]) == ENDS[1] - ENDS[0] - 24 + 1
    split, whole = load(data="mnist1d", evaluate_on="validation"), load(data="mnist1d")
    np.testing.assert_array_equal(split.test["series"], whole.train["series"][::5])
    assert len(split.train["series"]) == 3200


def test_samformer_is_its_equation():
    random = np.random.default_rng(0)
    past = random.normal(3.0, 2.0, (2, LOOK_BACK, 7))
    model = SAMformer(num_classes=5)
    params = model.init(KEY, jnp.asarray(past, jnp.float32), False)["params"]
    assert sum(leaf.size for leaf in jax.tree.leaves(params)) == (
        2 * (512 * 16 + 16) + 512 * 512 + 512 + 512 * 5 + 5 + 2 * 7
    )
    params = jax.tree.map(lambda leaf: random.normal(0.1, 0.05, leaf.shape).astype(np.float32), params)
    found = model.apply({"params": params}, jnp.asarray(past, jnp.float32), False)
    p = jax.tree.map(lambda leaf: leaf.astype(np.float64), params)
    for number, series in enumerate(past.transpose(0, 2, 1)):  # [channels, hours]
        mean, deviation = series.mean(1, keepdims=True), np.sqrt(series.var(1, keepdims=True) + 1e-5)
        x = (series - mean) / deviation * p["scale"][:, None] + p["shift"][:, None]
        q, k, v = (x @ p[name]["kernel"] + p[name]["bias"] for name in ("queries", "keys", "values"))
        scores = np.exp(q @ k.T / 4)
        x = x + scores / scores.sum(1, keepdims=True) @ v
        y = x @ p["forecast"]["kernel"] + p["forecast"]["bias"]
        y = (y - p["shift"][:, None]) / (p["scale"][:, None] + 1e-10) * deviation + mean
        np.testing.assert_allclose(found[number], y.T, rtol=1e-4, atol=1e-3)


def test_a_dense_network_is_its_equation():
    series = jax.random.normal(KEY, (3, 40))
    dense = Perceptron(num_classes=4, widths=(6, 5))
    params = dense.init(KEY, series, False)["params"]
    x = np.asarray(series, np.float64)
    for number in range(3):
        layer = params[f"Dense_{number}"]
        x = (np.maximum(x, 0) if number else x) @ np.asarray(layer["kernel"]) + np.asarray(layer["bias"])
    np.testing.assert_allclose(dense.apply({"params": params}, series, False), x, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("shape", "sizes"), [((40,), (5, 3)), ((8, 9, 3), (3, 3))])
def test_a_strided_network_is_its_equation(shape, sizes):
    inputs = jax.random.normal(KEY, (2, *shape))
    model = StridedConvNet(num_classes=4, widths=(6, 5), sizes=sizes)
    params = jax.tree.map(lambda x: x + 0.1, model.init(KEY, inputs, False)["params"])
    x = np.asarray(inputs, np.float64).reshape(2, *(shape if len(shape) > 1 else (*shape, 1)))
    for number, size in enumerate(sizes):
        layer = params[f"Conv_{number}"]
        x = strided(x, np.asarray(layer["kernel"], np.float64), np.asarray(layer["bias"], np.float64))
        assert layer["kernel"].shape[0] == size
        x = np.maximum(x, 0)
    last = params["Dense_0"]
    logits = x.reshape(2, -1) @ np.asarray(last["kernel"], np.float64) + np.asarray(last["bias"], np.float64)
    np.testing.assert_allclose(model.apply({"params": params}, inputs, False), logits, rtol=1e-4, atol=1e-5)


def strided(x, kernel, bias):
    """Every second place: the sum over a window; beyond the ends are zeros, the odd one behind."""
    window, sides = kernel.shape[:-2], x.shape[1:-1]
    outputs = [-(-side // 2) for side in sides]
    missing = [max(2 * (o - 1) + w - side, 0) for o, w, side in zip(outputs, window, sides, strict=True)]
    padded = np.pad(x, [(0, 0), *((m // 2, m - m // 2) for m in missing), (0, 0)])
    found = np.zeros((len(x), *outputs, kernel.shape[-1]))
    for place in np.ndindex(*outputs):
        part = (slice(None), *(slice(2 * at, 2 * at + w) for at, w in zip(place, window, strict=True)))
        axes = list(range(1, kernel.ndim))
        found[:, *place] = np.tensordot(padded[part], kernel, (axes, list(range(kernel.ndim - 1)))) + bias
    return found


def test_a_character_is_predicted_from_those_before_it():
    text = jax.random.randint(KEY, (2, 17), 0, 9).astype(jnp.uint8)
    batch = NextCharacter().prepare({"text": text}, {}, None)
    model = Decoder(num_classes=9, width=12, heads=2, layers=2)
    params = model.init(KEY, batch["given"], False)
    logits = model.apply(params, batch["given"], False)
    other = model.apply(params, batch["given"].at[:, 9:].set(0), False)
    np.testing.assert_array_equal(logits[:, :9], other[:, :9])
    assert not np.allclose(logits[:, 9:], other[:, 9:])
    exact = np.asarray(logits, np.float64)
    exact = exact - np.log(np.exp(exact).sum(-1, keepdims=True))
    follow = np.asarray(text)[:, 1:].astype(int)
    expected = -np.take_along_axis(exact, follow[..., None], -1)[..., 0].mean(1)
    np.testing.assert_allclose(NextCharacter().losses(logits, batch), expected, rtol=1e-5)


def test_a_text_is_cut_into_stretches_that_overlap_by_one(tmp_path):
    text = "".join(chr(97 + number * number % 23) for number in range(3000)) + "é\n"
    (tmp_path / "tinyshakespeare.txt").write_text(text)
    found = load(data="tinyshakespeare", data_dir=tmp_path, batch_size=20)
    everything = np.concatenate([found.train["text"], found.test["text"]])
    kinds = sorted(set(text))
    assert found.num_classes == len(kinds) and everything.shape == (23, 129) and len(found.test["text"]) == 2
    for number, stretch in enumerate(everything):
        assert "".join(kinds[each] for each in stretch) == text[128 * number : 128 * number + 129]


def test_forecasts_and_texts_are_judged_by_their_loss(folder, tmp_path, capsys):
    words = ["--data", "etth1", "--data-dir", str(folder), "--horizon", "8", "--optimizer", "adamw"]
    words += ["--train-examples", "40", "--batch-size", "20", "--epochs", "2", "--method", "momentum_sam"]
    result = run(tmp_path / "a", *words, "--schedule", "constant", "--rho", "1.0")
    assert "test_accuracy" not in result and result["test_loss"] == metrics(tmp_path / "a")[-1]["test_loss"]
    assert f"test loss {result['test_loss']:.4f}" in capsys.readouterr().out
    on_validation = run(tmp_path / "b", *words, "--evaluate-on", "validation")
    assert "test_loss" not in on_validation and on_validation["validation_loss"] > 0
    outputs, future = jnp.array([[[1.0, 2.0]], [[0.0, 0.0]]]), jnp.array([[[0.0, 4.0]], [[0.0, 1.0]]])
    np.testing.assert_allclose(Forecast().losses(outputs, {"future": future}), [2.5, 0.5])


@pytest.mark.parametrize(
    ("settings", "part"),
    [
        ({"data": "etth1"}, "--data etth1 is read from a file"),
        ({"data": "etth2", "data_dir": "."}, "holds no ETTh2.csv"),
        ({"data": "tinyshakespeare"}, "--data tinyshakespeare is read from a file"),
        ({"data": "tinyshakespeare", "data_dir": "."}, "no readable tinyshakespeare.txt"),
        ({"data": "mnist1d", "data_dir": "."}, "reads no files"),
        ({"data": "mnist1d", "horizon": 4}, "--horizon 4 is not for --data mnist1d"),
        ({"data": "etth1", "horizon": 0}, "--horizon 0 is out of range"),
        ({"data": "etth1", "label_noise": 0.2}, "--label-noise 0.2 is not for --data etth1"),
        ({"data": "etth1", "labels": "a.npz:b"}, "--labels a.npz:b is not for --data etth1"),
        ({"data": "mnist1d", "model": "conv"}, "give mlp, conv1d"),
        ({"data": "mnist1d", "labels": "a.npz"}, "--labels a.npz names no array"),
        ({"data": "mnist1d", "labels": "nowhere.npz:a"}, "nowhere.npz is no file"),
    ],
)
def test_what_does_not_fit_is_refused_by_its_name(settings, part, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    words = [word for name, value in settings.items() for word in ("--" + name.replace("_", "-"), str(value))]
    assert part in message_of(lambda: run(tmp_path / "run", "--method", "sgd", *words), capsys)
    assert not (tmp_path / "run/result.json").exists()


def test_labels_come_from_a_file(tmp_path, capsys):
    whole = load(data="mnist1d")
    label = (whole.train["label"].astype(np.uint8) + 1) % 10
    np.savez(tmp_path / "labels.npz", other=label, short=label[:9], high=label + 9, real=label / 2)
    found = load(data="mnist1d", labels=f"{tmp_path}/labels.npz:other", train_examples=50)
    np.testing.assert_array_equal(found.train["label"], label[:50])
    np.testing.assert_array_equal(found.test["label"], whole.test["label"])
    for name, part in (
        ("none", "give one of other, short"),
        ("short", "(9,)"),
        ("high", "from 0 to 9"),
        ("real", "float"),
    ):
        with pytest.raises(Exception, match="labels.npz") as error:
            load(data="mnist1d", labels=f"{tmp_path}/labels.npz:{name}")
        assert part in str(error.value)
    (tmp_path / "broken.npz").write_text("no archive")
    with pytest.raises(Exception, match="is no .npz file of labels"):
        load(data="mnist1d", labels=f"{tmp_path}/broken.npz:a")


def test_cifar10n_is_in_the_order_of_tfds(tfds_dir):
    labels = Path(tfds_dir).parent / "cifar10n/labels_tfds_order.npz"
    if not labels.is_file():
        pytest.skip("no file of CIFAR-10N's labels here; the test above reads labels that it wrote")
    args = {"data": "cifar10", "data_dir": Path(tfds_dir), "stream": False}
    clean = load(**args)
    found = {
        name: load(**args, labels=f"{labels}:{name}").train["label"]
        for name in ("clean_label", "worse_label")
    }
    np.testing.assert_array_equal(found["clean_label"], clean.train["label"])
    assert 0.40 < (found["worse_label"] != clean.train["label"]).mean() < 0.41


def test_a_forecast_that_diverged_is_said_to_be_not_finite(folder, tmp_path, capsys):
    words = ["--data", "etth1", "--data-dir", str(folder), "--horizon", "8", "--train-examples", "40"]
    words += ["--batch-size", "20", "--epochs", "2", "--method", "sgd", "--learning-rate", "1e20"]
    assert run(tmp_path, *words)["test_loss"] is None
    assert "test loss not finite after 4 steps" in capsys.readouterr().out
