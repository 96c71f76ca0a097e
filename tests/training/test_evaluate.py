"""Evaluation, its views, and which images get them."""

import dataclasses

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from fastcifar.data.synthetic import make_synthetic
from fastcifar.training.evaluate import evaluate

DATA = make_synthetic(10, 60)
TEST = DATA.test
LABELS = torch.arange(60) % 3


class Probe(torch.nn.Module):
    """A network that sees every pixel: one linear layer, in float64 so that only the views make a difference."""

    def __init__(self, seed: int = 0) -> None:
        super().__init__()
        self.mean, self.std = DATA.mean, DATA.std
        self.linear = torch.nn.Linear(3 * 32 * 32, 3).double()
        generator = torch.Generator().manual_seed(seed)
        self.linear.weight.data.normal_(0, 0.02, generator=generator)
        self.images_seen = 0

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        assert not self.training
        self.images_seen += len(x)
        return self.linear(x.flatten(1))

    def on(self, pixels: torch.Tensor) -> torch.Tensor:
        return self.linear(pixels.flatten(1)).detach().float()


def pixels_of(images: torch.Tensor) -> torch.Tensor:
    normalised = (images.double() - torch.tensor(DATA.mean, dtype=torch.float64)) / torch.tensor(DATA.std).double()
    return normalised.permute(0, 3, 1, 2)


def mirrored(x: torch.Tensor) -> torch.Tensor:
    return x.flip(3)


def mean_of_mirrored(model: Probe, x: torch.Tensor) -> torch.Tensor:
    return (model.on(x) + model.on(mirrored(x))) / 2


SPLIT = dataclasses.replace(TEST, labels=LABELS)
PIXELS = pixels_of(SPLIT.images)


def expected_flip_crop(model: Probe, shifted: float) -> torch.Tensor:
    padded = F.pad(PIXELS, (1, 1, 1, 1), "reflect")
    crops = [mean_of_mirrored(model, padded[:, :, i : i + 32, i : i + 32]) for i in (0, 2)]
    return (1 - shifted) * mean_of_mirrored(model, PIXELS) + shifted * torch.stack(crops).mean(0)


def close(a: torch.Tensor, b: torch.Tensor) -> None:
    torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


def test_plain_evaluation_is_the_networks_logits_loss_and_accuracy():
    model = Probe()
    result = evaluate(model, SPLIT, "none", batch_size=7)
    logits = model.on(PIXELS)
    close(result.logits, logits)
    assert result.loss == pytest.approx(F.cross_entropy(logits, LABELS).item(), rel=1e-4)
    assert result.accuracy == result.plain_accuracy == (logits.argmax(1) == LABELS).double().mean().item()
    assert model.training


def test_flip_is_the_mean_of_the_image_and_its_mirror_image():
    model = Probe()
    result = evaluate(model, SPLIT, "flip", batch_size=50)
    close(result.logits, mean_of_mirrored(model, PIXELS))
    assert result.plain_accuracy == evaluate(model, SPLIT, "none").accuracy


@settings(deadline=None, max_examples=10)
@given(shifted=st.floats(0, 1), batch_size=st.integers(9, 100))
def test_flip_crop_weighs_the_shifted_views_of_the_reflected_border(shifted, batch_size):
    model = Probe()
    result = evaluate(model, SPLIT, "flip-crop", batch_size, shifted=shifted)
    close(result.logits, expected_flip_crop(model, shifted))


def test_two_thirds_for_the_shifted_views_are_equal_weights():
    model = Probe()
    padded = F.pad(PIXELS, (1, 1, 1, 1), "reflect")
    views = [padded[:, :, i : i + 32, i : i + 32] for i in (0, 1, 2)]
    logits = torch.stack([model.on(view) for x in views for view in (x, mirrored(x))]).mean(0)
    close(evaluate(model, SPLIT, "flip-crop", shifted=2 / 3).logits, logits)


@pytest.mark.parametrize("tta", ["none", "flip", "flip-crop"])
def test_views_of_images_of_one_colour_change_nothing(tta):
    colours = SPLIT.images[:, :1, :1].expand_as(SPLIT.images).contiguous()
    split = dataclasses.replace(SPLIT, images=colours)
    model = Probe()
    close(evaluate(model, split, tta).logits, evaluate(model, split, "none").logits)


@settings(deadline=None, max_examples=20)
@given(
    share=st.floats(0, 1),
    tta=st.sampled_from(["flip", "flip-crop"]),
    batch_size=st.integers(9, 100),
    seed=st.integers(0, 5),
)
def test_a_share_of_the_images_the_least_confident_get_further_views(share, tta, batch_size, seed):
    model = Probe(seed)
    plain = evaluate(model, SPLIT, "none", batch_size).logits
    every = evaluate(model, SPLIT, tta, batch_size).logits
    model.images_seen = 0
    gated = evaluate(model, SPLIT, tta, batch_size, share=share).logits
    count = round(share * 60)
    assert model.images_seen == 60 + count * {"flip": 1, "flip-crop": 5}[tta]
    order = plain.softmax(1).amax(1).argsort()
    close(gated[order[:count]], every[order[:count]])
    close(gated[order[count:]], plain[order[count:]])


def test_an_unknown_augmentation_is_refused():
    with pytest.raises(ValueError, match="tta is 'mirror'; allowed: none, flip, flip-crop"):
        evaluate(Probe(), SPLIT, "mirror")
