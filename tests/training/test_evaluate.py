"""Evaluation, its views, and which images get them."""

import copy
import dataclasses

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from fastcifar.data import Split
from fastcifar.data.synthetic import make_synthetic
from fastcifar.errors import UserError
from fastcifar.models import PatchWhitening, build_model, memory_format, remember_normalization
from fastcifar.optim import FlatModel
from fastcifar.recipes import RECIPES, EvaluateConfig
from fastcifar.training.evaluate import evaluate
from tests.small import TYPICAL

NONE = EvaluateConfig(tta="none")
DATA = make_synthetic(10, 60)
TEST = DATA.test
LABELS = torch.arange(60) % 3


class Probe(torch.nn.Module):
    """A network that sees every pixel: one linear layer, in float64 so that only the views make a difference."""

    def __init__(self, seed: int = 0) -> None:
        super().__init__()
        remember_normalization(self, DATA.mean, DATA.std)
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
    normalized = (images.double() - torch.tensor(DATA.mean, dtype=torch.float64)) / torch.tensor(DATA.std).double()
    return normalized.permute(0, 3, 1, 2)


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
    result = evaluate(model, SPLIT, EvaluateConfig(tta="none", batch_size=7))
    logits = model.on(PIXELS)
    close(result.logits, logits)
    assert result.loss == pytest.approx(F.cross_entropy(logits, LABELS).item(), rel=1e-4)
    assert result.accuracy == result.plain_accuracy == (logits.argmax(1) == LABELS).double().mean().item()
    assert model.training


def test_flip_is_the_mean_of_the_image_and_its_mirror_image():
    model = Probe()
    result = evaluate(model, SPLIT, EvaluateConfig(tta="flip", batch_size=50))
    close(result.logits, mean_of_mirrored(model, PIXELS))
    assert result.plain_accuracy == evaluate(model, SPLIT, NONE).accuracy


@settings(max_examples=10)
@given(shifted=st.floats(0, 1), batch_size=st.integers(9, 100))
def test_flip_crop_weighs_the_shifted_views_of_the_reflected_border(shifted, batch_size):
    model = Probe()
    result = evaluate(model, SPLIT, EvaluateConfig(tta="flip-crop", batch_size=batch_size, tta_shifted=shifted))
    close(result.logits, expected_flip_crop(model, shifted))


def test_two_thirds_for_the_shifted_views_are_equal_weights():
    model = Probe()
    padded = F.pad(PIXELS, (1, 1, 1, 1), "reflect")
    views = [padded[:, :, i : i + 32, i : i + 32] for i in (0, 1, 2)]
    logits = torch.stack([model.on(view) for x in views for view in (x, mirrored(x))]).mean(0)
    close(evaluate(model, SPLIT, EvaluateConfig(tta="flip-crop", tta_shifted=2 / 3)).logits, logits)


@pytest.mark.parametrize("tta", ["none", "flip", "flip-crop"])
def test_views_of_images_of_one_color_change_nothing(tta):
    colors = SPLIT.images[:, :1, :1].expand_as(SPLIT.images).contiguous()
    split = dataclasses.replace(SPLIT, images=colors)
    model = Probe()
    close(evaluate(model, split, EvaluateConfig(tta=tta)).logits, evaluate(model, split, NONE).logits)


@settings(max_examples=20)
@given(
    share=st.floats(0, 1),
    tta=st.sampled_from(["flip", "flip-crop"]),
    batch_size=st.integers(9, 100),
    seed=st.integers(0, 5),
)
def test_a_share_of_the_images_the_least_confident_get_further_views(share, tta, batch_size, seed):
    model = Probe(seed)
    how = EvaluateConfig(tta=tta, batch_size=batch_size)
    plain = evaluate(model, SPLIT, dataclasses.replace(how, tta="none")).logits
    every = evaluate(model, SPLIT, how).logits
    model.images_seen = 0
    gated = evaluate(model, SPLIT, dataclasses.replace(how, tta_share=share)).logits
    count = round(share * 60)
    assert model.images_seen == 60 + count * {"flip": 1, "flip-crop": 5}[tta]
    order = plain.softmax(1).amax(1).argsort()
    close(gated[order[:count]], every[order[:count]])
    close(gated[order[count:]], plain[order[count:]])


def test_an_unknown_augmentation_is_refused():
    with pytest.raises(ValueError, match="tta is 'mirror'; allowed: one of none, flip, flip-crop"):
        evaluate(Probe(), SPLIT, EvaluateConfig(tta="mirror"))


def test_a_label_that_the_network_does_not_know_is_refused():
    model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(TEST.images[0].numel(), 10))
    with pytest.raises(UserError, match=r"^labels are 0 to 14; allowed: up to 9, as the model knows 10$"):
        evaluate(model, Split(TEST.images, torch.arange(60) % 15), mean=DATA.mean, std=DATA.std)


@settings(max_examples=10)
@given(
    labeled=st.lists(st.booleans(), min_size=60, max_size=60).map(torch.tensor), tta=st.sampled_from(["none", "flip"])
)
def test_images_without_labels_count_in_no_accuracy_and_no_loss(labeled, tta):
    model, how = Probe(), EvaluateConfig(tta=tta)
    every = evaluate(model, SPLIT, how)
    found = evaluate(model, dataclasses.replace(SPLIT, labels=torch.where(labeled, LABELS, -1)), how)
    assert torch.equal(found.logits, every.logits) and torch.equal(found.plain_logits, every.plain_logits)
    scores = (found.accuracy, found.loss), (found.plain_accuracy, found.plain_loss)
    for (accuracy, loss), logits in zip(scores, (every.logits, every.plain_logits), strict=True):
        if labeled.any():
            logits, labels = logits[labeled], LABELS[labeled]
            assert accuracy == (logits.argmax(1) == labels).sum().item() / len(labels)
            assert loss == pytest.approx(F.cross_entropy(logits, labels).item(), rel=1e-5)
        else:
            assert accuracy is loss is None


def test_without_any_label_there_is_no_accuracy():
    found = evaluate(Probe(), dataclasses.replace(SPLIT, labels=torch.full_like(LABELS, -1)))
    assert found.accuracy is found.loss is found.plain_accuracy is found.plain_loss is None
    assert found.logits.shape == (60, 3)


def test_plain_scores_are_those_of_the_images_as_they_are():
    model = Probe()
    plain, found = evaluate(model, SPLIT, NONE), evaluate(model, SPLIT)
    assert torch.equal(found.plain_logits, plain.logits)
    assert (found.plain_accuracy, found.plain_loss) == (plain.accuracy, plain.loss)
    assert not torch.equal(found.logits, found.plain_logits)


def test_logits_are_tensors_that_gradients_may_flow_from():
    for logits in (evaluate(Probe(), SPLIT).logits, evaluate(Probe(), SPLIT, NONE).plain_logits):
        assert not logits.is_inference() and not logits.requires_grad
        (logits.requires_grad_() * logits).sum().backward()


def test_images_are_normalized_with_what_is_given_or_what_the_model_says():
    model = Probe()
    other = copy.deepcopy(model)
    mean, std = (1.0, 2.0, 3.0), (4.0, 5.0, 6.0)
    remember_normalization(other, mean, std)
    other.mean = other.std = "of its own"
    expected = evaluate(other, SPLIT).logits
    assert torch.equal(evaluate(model, SPLIT, mean=mean, std=std).logits, expected)
    unknown = torch.nn.Sequential(model)
    assert torch.equal(evaluate(unknown, SPLIT, mean=mean, std=std).logits, expected)
    with pytest.raises(UserError, match=r"^what images Sequential was trained on is not known; allowed: mean= .*$"):
        evaluate(unknown, SPLIT, mean=mean)


class Plain(torch.nn.Sequential):
    """A network of torch's layers, which notes how its images lie in memory."""

    def __init__(self) -> None:
        super().__init__(torch.nn.Conv2d(3, 8, 3), torch.nn.Flatten(), torch.nn.LazyLinear(3))
        self(torch.zeros(1, 3, 32, 32))
        self.seen: set[bool] = set()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if hasattr(self, "seen"):
            self.seen.add(x.is_contiguous(memory_format=torch.channels_last))
        return super().forward(x)


def test_images_lie_as_the_networks_filters_do():
    plain = Plain()
    wide = evaluate(plain, SPLIT, mean=DATA.mean, std=DATA.std)
    assert plain.seen == {False}
    plain.seen.clear()
    narrow = evaluate(plain.to(memory_format=torch.channels_last), SPLIT, mean=DATA.mean, std=DATA.std)
    assert plain.seen == {True}
    close(wide.logits, narrow.logits)


@pytest.mark.parametrize("name", TYPICAL)
def test_our_networks_take_channels_last_images(name):
    model = build_model(RECIPES[name], 10, DATA.mean, DATA.std)
    assert memory_format(model) == torch.channels_last
    assert memory_format(FlatModel(model, torch.bfloat16).model) == torch.channels_last


@pytest.mark.parametrize(("height", "width"), [(32, 20), (20, 32)])
@pytest.mark.parametrize("tta", ["none", "flip", "flip-crop"])
def test_images_that_are_not_square_are_seen_whole(height, width, tta):
    images = torch.randint(256, (9, height, width, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    split, pixels = Split(images, LABELS[:9]), pixels_of(images)
    model = remember_normalization(
        torch.nn.Sequential(torch.nn.Flatten(), torch.nn.LazyLinear(3).double()), DATA.mean, DATA.std
    )
    model(pixels)
    padded = F.pad(pixels, (1, 1, 1, 1), "reflect")
    shifted = [padded[:, :, i : i + height, i : i + width] for i in (0, 2)]
    both = [torch.stack([model(x), model(mirrored(x))]).mean(0) for x in (pixels, *shifted)]
    share = EvaluateConfig().tta_shifted
    expected = {
        "none": model(pixels),
        "flip": both[0],
        "flip-crop": (1 - share) * both[0] + share * (both[1] + both[2]) / 2,
    }
    close(evaluate(model, split, EvaluateConfig(tta=tta, batch_size=4)).logits, expected[tta].detach().float())


@pytest.mark.parametrize(("height", "width"), [(12, 20), (20, 12)])
def test_whitening_is_fitted_to_whole_images(height, width):
    images = torch.randint(256, (9, height, width, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    whitening = PatchWhitening(eps=1e-4, padding=0)
    whitening.fit(images, DATA.mean, DATA.std)
    outputs = whitening(pixels_of(images).float()).double().transpose(0, 1).flatten(1)
    torch.testing.assert_close(outputs @ outputs.T / outputs.shape[1], torch.eye(27).double(), rtol=0.02, atol=0.02)
