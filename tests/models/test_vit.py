from __future__ import annotations

import pytest
import torch

from attent.models.vit import build_vit, input_size, model_names, normalization


@pytest.mark.parametrize("name", model_names())
def test_every_model_of_ours_maps_images_of_its_size_to_logits(name):
    channels, side = input_size(name)
    logits_BK = build_vit(name, num_classes=7)(torch.zeros(2, channels, side, side))
    assert logits_BK.shape == (2, 7)


def test_names_are_sorted_and_hold_the_digits_model():
    assert "vit_digits" in model_names()
    assert model_names() == sorted(model_names())


def test_a_model_of_timm_can_be_named():
    model = build_vit(
        "vit_tiny_patch16_224", num_classes=5, in_chans=1, img_size=32, model_args={"depth": 1}
    )
    assert model(torch.zeros(2, 1, 32, 32)).shape == (2, 5)


@pytest.mark.parametrize(
    ("name", "size"),
    [("vit_digits", (1, 8)), ("vit_tiny_patch16_224", (3, 224)), ("no_such_model", None)],
)
def test_input_sizes(name, size):
    assert input_size(name) == size


def test_images_of_another_size_and_number_of_channels():
    model = build_vit("vit_digits", num_classes=10, in_chans=3, img_size=16)
    assert model(torch.zeros(1, 3, 16, 16)).shape == (1, 10)


def test_model_args_win_over_the_models_own():
    model = build_vit(
        "vit_digits", num_classes=10, model_args={"depth": 2, "embed_dim": 16, "num_heads": 2}
    )
    assert len(model.blocks) == 2
    assert model.num_features == 16


def test_drop_path_rises_to_its_rate_in_the_last_block():
    model = build_vit("vit_digits", num_classes=10, drop_path_rate=0.3)
    rates = [getattr(block.drop_path1, "drop_prob", 0.0) for block in model.blocks]
    # Four blocks, a straight line from 0 to 0.3.
    assert rates == pytest.approx([0.0, 0.1, 0.2, 0.3])


def test_an_examples_logits_do_not_depend_on_the_batch():
    model = build_vit("vit_digits", num_classes=10).eval()
    images = torch.rand(5, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        alone = torch.cat([model(image[None]) for image in images])
        torch.testing.assert_close(model(images), alone)


def test_an_unknown_name_is_answered_with_the_nearest():
    with pytest.raises(ValueError, match=r"no model 'vit_digit' here or in timm; did you mean vit"):
        build_vit("vit_digit", num_classes=10)


def test_an_unknown_name_like_no_other_is_answered_without_a_guess():
    with pytest.raises(ValueError, match=r"no model '%%%%' here or in timm$"):
        build_vit("%%%%", num_classes=10)


def test_there_are_no_pretrained_weights_of_our_own_models():
    with pytest.raises(ValueError, match="no pretrained weights of 'vit_digits'"):
        build_vit("vit_digits", num_classes=10, pretrained=True)


@pytest.mark.parametrize(
    ("model_args", "named"),
    [({"dept": 3}, "dept"), ({"embed_dim": 15, "num_heads": 2}, "num_heads")],
)
def test_arguments_the_model_does_not_take_are_the_users_mistake(model_args, named):
    with pytest.raises(ValueError, match=rf"model_args.*{named}"):
        build_vit("vit_digits", num_classes=10, model_args=model_args)


def test_the_number_of_classes_is_the_datas_not_an_argument_of_the_model():
    with pytest.raises(ValueError, match=r"model_args.*num_classes"):
        build_vit("vit_digits", num_classes=10, model_args={"num_classes": 2})


@pytest.mark.parametrize("name", ["resnet10t", "vgg11"])
def test_convolutional_networks_take_any_size(name):
    """They have no img_size to be told, and not all of them a drop_path_rate."""
    model = build_vit(name, num_classes=4, in_chans=1, img_size=32).eval()
    assert model(torch.zeros(2, 1, 32, 32)).shape == (2, 4)


def test_images_are_normalised_as_the_model_was_trained():
    assert normalization("vit_small_patch16_224") == ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
    assert normalization("resnet18")[0] == pytest.approx((0.485, 0.456, 0.406))
    assert normalization("vit_digits") == normalization("resnet18")
