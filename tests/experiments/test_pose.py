"""Human poses: drawn figures, MPII's files, SimCC's losses and scores."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import PIL.Image
import pytest
import scipy.io

import optax_sam
from experiments.data.arrays import fold, rows
from experiments.data.mpii import ANNOTATIONS, Person, cut_out, mpii
from experiments.data.stick_figures import HEAD, LEFT, NECK, RIGHT, figures
from experiments.models.simcc import SimCC
from experiments.settings import SettingsError
from experiments.tasks.pose import Pose


@pytest.fixture(scope="module")
def drawn():
    return figures(np.random.default_rng(0), 300)


# Drawn figures


def test_figures_have_joints_where_limbs_are_drawn(drawn):
    assert drawn["image"].shape == (300, 48, 48, 1) and drawn["image"].dtype == np.uint8
    shapes = {name: array.shape for name, array in drawn.items() if name != "image"}
    assert shapes == {"keypoints": (300, 16, 2), "visible": (300, 16), "head_size": (300,)}
    figure, joint = np.nonzero(drawn["visible"])
    x, y = np.floor(drawn["keypoints"][figure, joint]).astype(int).T
    brightness = drawn["image"][figure, y, x, 0] - np.median(drawn["image"], (1, 2, 3))[figure]
    left, right = (np.isin(joint, part) for part in (LEFT, RIGHT))
    assert (brightness[left] > 20).mean() > 0.8 and (brightness[right] < -20).mean() > 0.8
    skulls = drawn["keypoints"][:, [HEAD, NECK]].mean(1)
    inside = (skulls >= 0).all(-1)
    x, y = np.floor(skulls[inside]).astype(int).T
    assert (drawn["image"][inside, y, x, 0] > np.median(drawn["image"][inside], (1, 2, 3))).mean() > 0.8
    head = np.linalg.norm(drawn["keypoints"][:, HEAD] - drawn["keypoints"][:, NECK], axis=-1)
    np.testing.assert_allclose(drawn["head_size"], head)


def test_figures_are_the_same_every_time_and_partly_outside(drawn):
    again = figures(np.random.default_rng(0), 300)
    for name in drawn:
        np.testing.assert_array_equal(drawn[name], again[name])
    outside = ((drawn["keypoints"] < 0) | (drawn["keypoints"] >= 48)).any(-1)
    np.testing.assert_array_equal(drawn["visible"] == 0, outside)
    assert 0.005 < outside.mean() < 0.1


# MPII


def structs(*items):
    """A Matlab array of structs with the fields of the first."""
    kind = [(name, object) for name in items[0]]
    return np.array([tuple(item[name] for name, _ in kind) for item in items], kind)


def annotation(point=None, is_visible=1.0):
    """One person: 200 pixels high, so that 250 pixels are cut out, from (25, 25) on."""
    points = [{"x": 50.5, "y": 75.5, "id": 9, "is_visible": is_visible}, *([point] if point else [])]
    return {
        "x1": 40.0, "y1": 60.0, "x2": 70.0, "y2": 100.0,
        "annopoints": structs({"point": structs(*points)}),
        "scale": 1.0,
        "objpos": structs({"x": 150.5, "y": 135.5}),
    }  # fmt: skip


@pytest.fixture
def mpii_dir(tmp_path):
    """Images to test on, with the irregularities, without people, and of MPII's own test part."""
    (tmp_path / "images").mkdir()
    pixels = np.zeros((300, 400, 3), np.uint8)
    pixels[60:90, 35:65] = 255, 128, 0  # around the head top
    for name in "abcd":
        PIL.Image.fromarray(pixels).save(tmp_path / "images" / f"{name}.png")
    outside = {"x": 20.5, "y": 75.5, "id": 0, "is_visible": np.zeros((0, 0))}
    nothing = np.zeros((0, 0))
    people = {
        "a.png": structs(annotation()),
        "b.png": structs(
            annotation(outside, is_visible="1"),
            annotation() | {"annopoints": nothing},
            annotation() | {"scale": nothing},
            annotation() | {"objpos": nothing},
            annotation(),
        ),
        "c.png": nothing,
        "d.png": structs(annotation()),
    }
    annolist = [{"image": structs({"name": name}), "annorect": found} for name, found in people.items()]
    release = structs({"annolist": structs(*annolist), "img_train": [1, 1, 1, 0]})
    scipy.io.savemat(tmp_path / ANNOTATIONS, {"RELEASE": release})
    return tmp_path


def test_mpii_is_read_with_its_irregularities(mpii_dir):
    data = mpii(mpii_dir, side=50)
    assert data.num_classes == 16 and len(data.test["image"]) == 1 and len(data.train["image"]) == 2
    for part in data.train, data.test:
        assert {array.dtype for name, array in part.items()} == {np.dtype(np.uint8), np.dtype(np.float32)}
        np.testing.assert_array_equal(part["keypoints"][:, HEAD], [[5, 10]] * len(part["image"]))
        np.testing.assert_array_equal(part["visible"].nonzero()[1], HEAD)
        np.testing.assert_allclose(part["head_size"], 0.6 * 50 / 5)
        assert (part["image"][:, 9:11, 4:6] == [255, 128, 0]).all()  # row 10, column 5
        assert part["image"][:, 15:].max() == part["image"][:, :, 10:].max() == 0


def test_people_of_one_image_are_held_out_together(mpii_dir):
    data = mpii(mpii_dir, side=50)
    assert data.groups.tolist() == [1, 1]  # both of the second image
    part = fold(data, 0, 2)
    assert len(part.test["image"]) == 2 and len(part.train["image"]) == 0


def test_people_without_a_joint_in_their_square_are_left_out(mpii_dir):
    """A network that finds everything would not get everything right."""
    person = Person(np.zeros(2), 50.0, np.full((16, 2), 10.0), np.ones(16), 5.0)
    away = person._replace(keypoints=np.full((16, 2), -10.0))
    file = next((mpii_dir / "images").iterdir())
    found = cut_out(file, [person, away, person], 50)
    assert len(found["image"]) == 2 and found["visible"].all()


def test_what_is_missing_of_mpii_is_said(mpii_dir, tmp_path):
    (mpii_dir / "images" / "b.png").unlink()
    for folder in (None, tmp_path / "images", mpii_dir):
        with pytest.raises(SettingsError, match="^--data-dir.*: g"):
            mpii(folder)


# The task


def examples(keypoints, visible, side=4):
    keypoints, visible = np.float32(keypoints), np.float32(visible)
    image = np.zeros((len(keypoints), side, side, 1), np.float32)
    return {"image": image, "keypoints": keypoints, "visible": visible, "head_size": np.float32([2, 1, 1])}


def test_losses_are_cross_entropies_with_smooth_targets():
    random = np.random.default_rng(0)
    visible = [[1, 1], [0, 1], [0, 0]]
    batch = examples(random.uniform(0, 4, (3, 2, 2)), visible)
    outputs = random.normal(size=(3, 2, 2, 8)).astype(np.float32)
    wanted = np.zeros(3)
    for n in range(3):
        for joint in range(2):
            for axis in range(2):
                middles = 0.25 + 0.5 * np.arange(8)
                target = np.exp(-((middles - float(batch["keypoints"][n, joint, axis])) ** 2) / (2 * 0.7**2))
                logits = outputs[n, joint, axis].astype(np.float64)
                entropy = np.log(np.exp(logits).sum()) - target @ logits / target.sum()
                wanted[n] += visible[n][joint] * entropy / 2 / max(1, sum(visible[n]))
    np.testing.assert_allclose(Pose(sigma=0.7).losses(jnp.asarray(outputs), batch), wanted, rtol=1e-5)
    assert wanted[2] == 0


def test_scores_are_shares_within_half_a_head():
    # The outputs say (0.25, 1.75) for both joints of all three.
    outputs = np.zeros((3, 2, 2, 8), np.float32)
    outputs[..., 0, 0] = outputs[..., 1, 3] = 1
    keypoints = [[[0.25, 2.74], [0.25, 2.76]], [[0.25, 2.24], [3, 3]], [[0.25, 1.75], [0.25, 1.75]]]
    batch = examples(keypoints, [[1, 1], [1, 0], [0, 0]])
    np.testing.assert_array_equal(Pose().scores(jnp.asarray(outputs), batch), [0.5, 1, 0])


def test_image_and_keypoints_move_together(drawn):
    """A bright dot at every joint is found there again, unless both have left the image."""
    task, batch = Pose(), rows(drawn, slice(100))
    corner = np.random.default_rng(0).integers(0, 48, (100, 16, 2))
    image = np.zeros((100, 48, 48, 1), np.uint8)
    image[np.arange(100)[:, None], corner[..., 1], corner[..., 0]] = 255
    batch = batch | {
        "image": image,
        "keypoints": corner.astype(np.float32) + 0.5,
        "visible": np.ones((100, 16), "f"),
    }
    constants = task.constants(batch)
    still, moved = (task.prepare(batch, constants, key) for key in (None, jax.random.key(0)))
    assert abs(still["image"].mean()) < 1e-4 and abs(still["image"].std() - 1) < 1e-4
    steps = np.asarray(moved["keypoints"] - still["keypoints"])
    assert (steps == steps[:, :1]).all() and set(np.unique(steps)) == set(range(-4, 5))
    inside = ((moved["keypoints"] > 0) & (moved["keypoints"] < 48)).all(-1)
    np.testing.assert_array_equal(moved["visible"], inside)
    x, y = np.clip(np.floor(moved["keypoints"]), 0, 47).astype(int).transpose(2, 0, 1)
    values = np.asarray(moved["image"])[np.arange(100)[:, None], y, x, 0]
    assert (values[inside] == still["image"].max()).all()


@pytest.mark.slow
def test_sam_learns_poses(drawn, as_optax_promotes):
    task, model = Pose(sigma=2.0), SimCC(num_classes=16, bins_per_pixel=1, width=4)
    batch = rows(drawn, slice(32))
    batch = task.prepare(batch, task.constants(batch), None)
    variables = jax.jit(model.init, static_argnames="train")(jax.random.key(0), batch["image"], train=False)
    method = optax_sam.sam(0.05)
    optimizer = optax.chain(method, optax.sgd(0.2, momentum=0.9))

    def forward(params, batch):
        changing = {"params": params, "batch_stats": variables["batch_stats"]}
        return model.apply(changing, batch["image"], train=True, mutable=["batch_stats"])[0]

    @jax.jit
    def step(params, state):
        losses = lambda params, batch: task.losses(forward(params, batch), batch)
        _, grads, oracle = method.value_and_grad(losses)(params, batch, state=state)
        updates, state = optimizer.update(grads, state, params, oracle=oracle)
        return optax.apply_updates(params, updates), state

    score = jax.jit(lambda params: task.scores(forward(params, batch), batch).mean())
    params, state = variables["params"], optimizer.init(variables["params"])
    before = score(params)
    for _ in range(40):
        params, state = step(params, state)
    assert before < 0.1 and score(params) > 0.3
