"""Runs that train adapters: what they train, what they are, what is refused."""

import dataclasses
import shutil

import jax
import numpy as np
import optax
import pytest

from experiments import data, models
from experiments.data import minilm as sentences
from experiments.methods.adapters import noise_at
from experiments.models import minilm
from experiments.models.adapted import completed
from experiments.models.network import Linen
from experiments.running.inputs import make_inputs
from experiments.running.programs import compile_programs, trainer_of
from experiments.running.run import run as train_alone
from experiments.running.sharpness import top_eigenvalues
from experiments.running.side_by_side import compile_side_by_side, run_side_by_side
from experiments.settings import Settings, flag
from experiments.settings.defaults import resolved
from experiments.settings.of_method import MethodSettings
from optax_sam import lora
from tests.experiments.runs import message_of, outcome, run
from tests.experiments.test_text import builder

METHODS = ("bi_lora", "flat_lora", "sam", "momentum_sam", "sgd")
NUMBERS = {"sam": {"rho": 0.1}, "momentum_sam": {"rho": 0.1}, "flat_lora": {"noise_scale": 0.5}}
NUMBERS |= {"bi_lora": {"rho": 0.1}}
SETUP = {
    "data": "glue/sst2",
    "model": "minilm",
    "adapter_rank": 3,
    "batch_size": 2,
    "optimizer": "adamw",
    "learning_rate": 0.01,
    "epochs": 2,
}
KEY = jax.random.key(0)


def words_as_numbers(texts):
    """A tokenizer that needs no files: the lengths of the words."""
    rows = [[1 + len(word) % 9 for word in text.split()][:6] for text in texts]
    return np.array([row + [0] * (6 - len(row)) for row in rows], np.int32)


@pytest.fixture(autouse=True)
def small(monkeypatch):
    """Four sentences, and an encoder of one layer with drawn weights: no package is needed."""
    for name, size in {"WIDTH": 12, "HEADS": 2, "LAYERS": 1, "VOCABULARY": 11, "PLACES": 8}.items():
        monkeypatch.setattr(minilm, name, size)
    drawn = minilm.MiniLM(2).init(KEY, np.ones((1, 6), np.int32), train=False)["params"]["encoder"]
    drawn = jax.tree.map(np.asarray, drawn)
    monkeypatch.setattr(minilm, "pretrained", lambda: {"encoder": drawn})
    monkeypatch.setattr(models, "check_installed", lambda: None)
    monkeypatch.setattr(sentences, "tokens", words_as_numbers)
    monkeypatch.setattr(data, "builder_of", lambda *_: builder())
    return drawn


def settings_of(method, **changes):
    own = MethodSettings(**NUMBERS.get(method, {}) | changes)
    return resolved(Settings(**SETUP, method=method, method_settings=own))


def trained(settings, steps=4):
    """Programs, inputs, and the states before and after some steps."""
    loaded = data.load(settings)
    programs = compile_programs(settings, loaded)
    inputs = programs.inputs(settings, loaded)
    first = jax.device_get(programs.init(inputs))
    return programs, inputs, first, programs.steps(programs.init(inputs), inputs, np.int32(steps))


def kernels_merged(encoder, adapters):
    """The encoder with each product added to its matrix, by NumPy."""

    def layer(path, array):
        name, last = "/".join(["encoder", *(entry.key for entry in path[:-1])]), path[-1].key
        if last != "kernel" or name not in adapters:
            return array
        a, b = map(np.asarray, adapters[name])
        return array + (a @ b).reshape(array.shape)

    return jax.tree.map_with_path(layer, encoder)


@pytest.mark.parametrize("method", METHODS)
def test_a_run_trains_its_adapters_and_the_head_alone(method, small):
    programs, inputs, first, state = trained(settings_of(method))
    assert set(state.params) == {"adapters", "head"}
    attention = {f"encoder/layer0/attention/{name}" for name in ("query", "key", "value", "out")}
    trees = tuple(state.params["adapters"]) if method == "bi_lora" else (state.params["adapters"],)
    assert all(set(tree) == attention for tree in trees)
    assert all(tree[name].lora_a.shape == (12, 3) for tree in trees for name in tree)
    pairs = zip(jax.tree.leaves(first.params), jax.tree.leaves(state.params), strict=True)
    assert all((old != new).any() and np.isfinite(new).all() for old, new in pairs)
    jax.tree.map(np.testing.assert_array_equal, inputs.examples.frozen["encoder"], small)
    size = sum(x.size for x in jax.tree.leaves(state.params))
    assert size == len(trees) * 4 * 2 * 12 * 3 + 12 * 2 + 2
    loss, accuracy = programs.evaluate(state.params, state.batch_stats, inputs.examples)
    assert 0 < float(loss) < 4 and 0 <= float(accuracy) <= 1
    (value,) = top_eigenvalues(programs.trainer, state.params, state.batch_stats, inputs.examples).values
    assert np.isfinite(value)


@pytest.mark.parametrize("method", ["sgd", "bi_lora"])
def test_the_network_with_adapters_is_the_merged_one(method, small):
    programs, inputs, _, state = trained(settings_of(method))
    adapters, head = state.params["adapters"], {"head": state.params["head"]}
    trees = tuple(adapters) if method == "bi_lora" else (adapters,)
    both = small
    for tree in trees:
        both = kernels_merged(both, tree)
    network = completed(programs.trainer.network, inputs.examples.frozen)
    whole, tokens = Linen(minilm.MiniLM(2)), inputs.examples.train["tokens"]
    for key, encoder in ((None, kernels_merged(small, trees[0])), (KEY, both)):
        found, _ = network.apply(state.params, {}, tokens, key)
        wanted, _ = whole.apply({"encoder": encoder} | head, {}, tokens, key)
        plain, _ = whole.apply({"encoder": small} | head, {}, tokens, key)
        np.testing.assert_allclose(found, wanted, atol=1e-5)
        assert np.abs(found - plain).max() > 1e-3


def test_every_layer_of_the_real_attention_has_the_size_of_its_matrix(monkeypatch):
    for name, size in {"WIDTH": 384, "HEADS": 12, "LAYERS": 6}.items():
        monkeypatch.setattr(minilm, name, size)
    network = models.Adapted(minilm.MiniLM(6), 8, ("encoder",))
    params, _ = jax.eval_shape(lambda: network.init(KEY, np.ones((2, 6), np.int32)))
    assert len(params["adapters"]) == 24
    shapes = {(each.lora_a.shape, each.lora_b.shape) for each in params["adapters"].values()}
    assert shapes == {((384, 8), (8, 384))}


# Flat-LoRA and Bi-LoRA


def test_without_noise_or_radius_they_are_the_base():
    _, _, first, base = trained(settings_of("sgd"))
    _, _, _, flat = trained(settings_of("flat_lora", noise_scale=0.0))
    _, _, _, noisy = trained(settings_of("flat_lora"))
    _, _, paired, both = trained(settings_of("bi_lora", rho=0.0))
    close = lambda one, other: jax.tree.map(
        lambda x, y: np.testing.assert_allclose(x, y, atol=1e-5), one, other
    )
    close(flat.params, base.params)
    assert optax.tree.norm(optax.tree.sub(noisy.params, base.params)) > 1e-3
    zero = [
        np.abs(x).max() for tree in paired.params["adapters"] for x in (tree[name].lora_b for name in tree)
    ]
    assert not any(zero) and float(lora.joint_norm(both.params["adapters"].climbing)) == 0
    assert set(first.params) == set(both.params)


def test_the_noise_rises_along_a_cosine():
    found = [noise_at("flat_lora", 0.4, np.int32(step), 8) for step in (0, 4, 8)]
    np.testing.assert_allclose(found, [0, 0.2, 0.4], atol=1e-7)
    assert noise_at("sgd", 0.4, np.int32(3), 8) is None


@pytest.mark.parametrize("rho", [0.1, 1e-3])
def test_the_climbing_adapters_stay_within_the_radius(rho):
    _, _, _, state = trained(settings_of("bi_lora", rho=rho))
    norm = float(lora.joint_norm(state.params["adapters"].climbing))
    assert 0 < norm <= rho * 1.0001


# Runs


@pytest.mark.parametrize("method", ["bi_lora", "flat_lora", "sam"])
def test_an_interrupted_run_ends_with_the_numbers_of_a_whole_one(method, tmp_path, compiled_once, capsys):
    words = {**SETUP, "method": method, **NUMBERS[method]}
    flags = [word for name, value in words.items() for word in (flag(name), str(value))]
    run(tmp_path / "x", *flags)
    whole = outcome(tmp_path / "x")
    shutil.rmtree(tmp_path / "x/checkpoints/2")
    (tmp_path / "x/result.json").unlink()
    run(tmp_path / "x", *flags, "--resume")
    assert outcome(tmp_path / "x") == whole
    other = message_of(lambda: run(tmp_path / "x", *flags, "--adapter-rank", "2", "--resume"), capsys)
    assert "--adapter-rank 2 differs from 3" in other


@pytest.mark.parametrize("method", ["flat_lora", "bi_lora"])
def test_runs_side_by_side_have_the_numbers_of_runs_alone(method, tmp_path):
    (name,) = NUMBERS[method]
    first, second = settings_of(method), settings_of(method, **{name: 0.01})
    second = dataclasses.replace(second, seed=7)
    runs = [dataclasses.replace(each, out=tmp_path / str(each.seed)) for each in (first, second)]
    loaded = data.load(first)
    together = run_side_by_side(runs, loaded, compile_side_by_side(first, loaded, 2), lambda **_: None)
    programs = compile_programs(first, loaded)
    for settings, (result, _, _) in zip(runs, together, strict=True):
        alone, _ = train_alone(settings, loaded, programs, lambda **_: None)
        for each in ("train_loss", "test_loss", "gradients_per_step"):
            assert result[each] == pytest.approx(alone[each], rel=1e-3, abs=1e-3), each
        assert alone["gradients_per_step"] == 1


def test_the_frozen_weights_are_no_constants():
    settings = settings_of("sam")
    loaded = data.load(settings)
    trainer = trainer_of(settings, loaded)
    inputs = make_inputs(settings, loaded, trainer.task)
    assert not inputs.pretrained
    sizes = {x.shape for x in jax.tree.leaves(inputs.examples.frozen)}
    state = jax.eval_shape(trainer.init, inputs)
    steps = lambda state, inputs: trainer.steps(state, inputs, np.int32(1), whole_batch=False)
    assert not sizes & {np.shape(each) for each in jax.make_jaxpr(steps)(state, inputs).consts}


OF_MINILM = "--data glue/sst2 --model minilm --adapter-rank 2 --method"


@pytest.mark.parametrize(
    ("words", "wanted"),
    [
        ("bi_lora --clip-norm 1", "--clip-norm 1.0 is not used by --method bi_lora"),
        ("bi_lora --rho -1", "rho=-1"),
        ("bi_lora --ascent-rate -1", "ascent_rate=-1"),
        ("flat_lora --noise-scale -1", "noise_scale=-1"),
    ],
)
def test_what_does_not_fit_is_one_line(words, wanted, tmp_path, capsys):
    line = message_of(lambda: run(tmp_path / "x", *f"{OF_MINILM} {words}".split()), capsys)
    assert wanted in line and not (tmp_path / "x").exists()
