"""RandAugment: each operation against pixels by hand or another library, and what a key decides."""

from __future__ import annotations

import random
from collections import Counter

import numpy as np
import pytest
import torch
from PIL import Image, ImageEnhance, ImageOps

from attent.pipeline import example_keys, fold
from attent.tasks.data import randaugment
from attent.tasks.data.randaugment import OPERATIONS, rand_augment

SIGNED = {
    "rotate", "saturation", "contrast", "brightness", "sharpness", "shear_x", "shear_y",
    "translate_x", "translate_y",
}  # fmt: skip


def picture(seed: int = 0, side: int = 20) -> torch.Tensor:
    """Noise in [30, 200], whose contrast can be stretched."""
    draw = torch.Generator().manual_seed(seed)
    return torch.randint(30, 200, (3, side, side), generator=draw, dtype=torch.uint8)


def keys(count: int, seed: int = 0) -> list[int]:
    return example_keys(fold(seed, "test"), torch.arange(count)).tolist()


def pillow(image: torch.Tensor) -> Image.Image:
    return Image.fromarray(image.permute(1, 2, 0).numpy())


def tensor(image: Image.Image) -> torch.Tensor:
    return torch.from_numpy(np.array(image)).permute(2, 0, 1)


def near(found: torch.Tensor, expected: torch.Tensor, levels: int = 1) -> bool:
    return bool((found.int() - expected.int()).abs().max() <= levels)


def moved(image: torch.Tensor, right: int = 0, down: int = 0) -> torch.Tensor:
    """By whole pixels, grey where there was nothing."""
    side = image.shape[-1]
    found = torch.full_like(image, 128)
    for y in range(max(0, down), min(side, side + down)):
        for x in range(max(0, right), min(side, side + right)):
            found[:, y, x] = image[:, y - down, x - right]
    return found


# --- each operation

# Operation -> strength -> what Pillow, of which timm's are made, or a loop makes of the picture.
REFERENCES = {
    "autocontrast": (0.3, lambda p: tensor(ImageOps.autocontrast(pillow(p)))),
    "equalize": (0.3, lambda p: tensor(ImageOps.equalize(pillow(p)))),
    "invert": (0.3, lambda p: 255 - p),
    # 8 - round(4 * 1) = 4 bits: the lowest four are cut off.
    "posterize": (1.0, lambda p: p & 0b11110000),
    # 256 * (1 - 0.5) = 128: pixels from there on are inverted.
    "solarize": (0.5, lambda p: torch.where(p >= 128, 255 - p, p)),
    "saturation": (-0.5, lambda p: tensor(ImageEnhance.Color(pillow(p)).enhance(0.55))),
    "contrast": (0.5, lambda p: tensor(ImageEnhance.Contrast(pillow(p)).enhance(1.45))),
    "brightness": (-0.5, lambda p: (p.float() * 0.55).to(torch.uint8)),
    "sharpness": (0.5, lambda p: tensor(ImageEnhance.Sharpness(pillow(p)).enhance(1.45))),
    # 0.45 * 1/3 * 20 = 3 pixels; 0.45 * -2/3 * 20 = -6.
    "translate_x": (1 / 3, lambda p: moved(p, right=3)),
    "translate_y": (-2 / 3, lambda p: moved(p, down=-6)),
}


@pytest.mark.parametrize("name", REFERENCES)
def test_operations_that_are_exact(name):
    strength, reference = REFERENCES[name]
    found, expected = OPERATIONS[name](picture(), strength), reference(picture())
    assert (found.shape, found.dtype) == ((3, 20, 20), torch.uint8)
    assert near(found, expected, levels=2 if name == "contrast" else 1)
    assert not near(found, picture(), levels=10)


def test_rotation_is_by_thirty_degrees_at_most():
    """A dot at radius 8, right of the middle, goes up: y = 8 sin 30 = 4, x = 8 cos 30 = 6.9."""
    dot = torch.zeros(3, 21, 21, dtype=torch.uint8)
    dot[:, 9:12, 17:20] = 255
    for strength, rows in ((1.0, -4.0), (-1.0, 4.0), (0.5, -2.07)):
        found = OPERATIONS["rotate"](dot, strength)[0].double()
        found[found <= 128] = 0  # grey corners
        place, weight = torch.arange(21).double() - 10, found.sum()
        row, column = (found.sum(1) * place).sum() / weight, (found.sum(0) * place).sum() / weight
        assert float(row) == pytest.approx(rows, abs=0.4)
        assert float((row.square() + column.square()).sqrt()) == pytest.approx(8, abs=0.4)


@pytest.mark.parametrize(("name", "axis"), [("shear_x", 1), ("shear_y", 0)])
def test_shears_slant_by_their_angle(name, axis):
    """A bar across the middle becomes one at tan 17 degrees = 0.306."""
    bar = torch.zeros(3, 41, 41, dtype=torch.uint8)
    if axis == 1:
        bar[:, :, 20] = 255
    else:
        bar[:, 20, :] = 255
    slopes = []
    for strength in (1.0, -1.0, 0.5):
        found = OPERATIONS[name](bar, strength)[0].double()
        lines = (found if axis == 1 else found.T)[:, 10:31]
        place = torch.arange(21).double()
        centres = (lines[10:31] * place).sum(1) / lines[10:31].sum(1)
        slopes.append(float((centres[-1] - centres[0]) / 20))
    assert abs(slopes[0]) == pytest.approx(0.306, abs=0.03)
    assert slopes[1] == pytest.approx(-slopes[0], abs=0.02)
    assert slopes[2] == pytest.approx(slopes[0] / 2, abs=0.03)


def test_all_operations_are_tested_here():
    assert set(REFERENCES) | {"rotate", "shear_x", "shear_y"} == set(OPERATIONS)


@pytest.mark.parametrize("name", OPERATIONS)
def test_strength_zero_leaves_as_it_is_and_sign_matters_where_there_is_one(name):
    operation = OPERATIONS[name]
    if name not in ("autocontrast", "equalize", "invert"):  # which have no strength
        assert near(operation(picture(), 0.0), picture(), levels=0)
    same = torch.equal(operation(picture(), 0.6), operation(picture(), -0.6))
    assert same == (name not in SIGNED)


@pytest.mark.parametrize("name", OPERATIONS)
def test_operations_take_pictures_that_are_not_square_and_leave_theirs_alone(name):
    given = picture()[:, :12]
    before = given.clone()
    for strength in (1.0, -1.0):
        assert OPERATIONS[name](given, strength).shape == (3, 12, 20)
    assert torch.equal(given, before)


# --- what a key decides


@pytest.fixture
def recorded(monkeypatch) -> list[tuple[str, float]]:
    """What is done to a picture, in place of doing it."""
    done: list[tuple[str, float]] = []

    def record(name):
        def operation(image, strength):
            done.append((name, strength))
            return image

        return operation

    monkeypatch.setattr(randaugment, "OPERATIONS", {name: record(name) for name in OPERATIONS})
    return done


def test_half_of_the_operations_are_left_out_and_all_are_as_likely(recorded):
    counts = []
    for key in keys(4000):
        before = len(recorded)
        rand_augment(picture(), key, 9)
        counts.append(len(recorded) - before)
    # None, one and two of two with chances of a half: 1/4, 1/2, 1/4; deviations are below 0.008.
    shares = [counts.count(n) / 4000 for n in range(3)]
    assert shares == pytest.approx([0.25, 0.5, 0.25], abs=0.04)
    names = Counter(name for name, _ in recorded)
    # 4,000 of 14 kinds: 286 each, with a deviation of 16.3.
    assert set(names) == set(OPERATIONS)
    assert all(abs(count - 4000 / 14) < 5 * 16.3 for count in names.values())


@pytest.mark.parametrize("magnitude", [0.5, 5, 9])
def test_strengths_are_normal_about_the_magnitude_with_either_sign(recorded, magnitude):
    for key in keys(3000):
        rand_augment(picture(), key, magnitude)
    strengths = np.array([strength for _, strength in recorded])
    assert np.mean(np.copysign(1, strengths) > 0) == pytest.approx(0.5, abs=0.05)
    sizes = 10 * np.abs(strengths)
    assert sizes.min() >= 0
    assert sizes.max() <= 10
    if magnitude == 5:  # ten deviations from either end
        assert sizes.mean() == pytest.approx(5, abs=0.05)
        assert sizes.std() == pytest.approx(0.5, abs=0.05)
    elif magnitude == 0.5:  # 16% are below 0, which they are kept from
        assert np.mean(sizes == 0) == pytest.approx(0.159, abs=0.04)
    else:  # 2.3% are above 10
        assert np.mean(sizes == 10) == pytest.approx(0.023, abs=0.015)


def test_no_magnitude_is_too_small():
    """About 0.1 a draw in two is kept from below 0: nothing is solarised, nor refused."""
    for key in keys(300):
        assert rand_augment(picture(side=4), key, 0.1).shape == (3, 4, 4)


def test_no_deviation_is_exactly_the_magnitude(recorded):
    for key in keys(50):
        rand_augment(picture(), key, 7, number=3, deviation=0.0)
    assert {round(abs(strength), 9) for _, strength in recorded} == {0.7}


def test_the_picture_is_a_function_of_its_key():
    found = [rand_augment(picture(), key, 9) for key in keys(40)]
    again = [rand_augment(picture(), key, 9) for key in reversed(keys(40))]
    assert all(torch.equal(a, b) for a, b in zip(found, reversed(again), strict=True))
    others = [rand_augment(picture(), key, 9) for key in keys(40, seed=1)]
    assert sum(torch.equal(a, b) for a, b in zip(found, others, strict=True)) < 12
    assert len({image.numpy().tobytes() for image in found}) > 20


def test_no_global_generator_is_drawn_from_or_set():
    torch_state, numpy_state, state = (
        torch.default_generator.get_state(), np.random.get_state(), random.getstate(),  # noqa: NPY002
    )  # fmt: skip
    for key in keys(30):
        rand_augment(picture(), key, 9)
    assert torch.equal(torch.default_generator.get_state(), torch_state)
    assert np.array_equal(np.random.get_state()[1], numpy_state[1])  # noqa: NPY002
    assert random.getstate() == state
