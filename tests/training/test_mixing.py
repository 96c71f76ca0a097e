"""Mixup and CutMix in a training: which images and labels, what the loss of them is, and with what else they go."""

import pytest
import torch
from torch.nn import functional as F

from fastcifar.data import EpochPlan
from fastcifar.data.plan import Mixed
from fastcifar.data.synthetic import make_synthetic
from fastcifar.errors import UserError
from fastcifar.recipes import MixConfig, Recipe, change
from fastcifar.training import Listener, Trainer
from fastcifar.training.loss import loss_step
from tests.small import BARE, DAVIDNET, EVERYTHING, MLP

MIXED = {"mix.mixup": 0.4, "mix.cutmix": 1.0}


@pytest.fixture(scope="module")
def data():
    return make_synthetic(100, 20)


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
@pytest.mark.parametrize("reduction", ["none", "mean"])
def test_the_loss_is_that_of_soft_labels_and_answers_count_for_the_greater_share(smoothing, reduction):
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(8, 5, dtype=torch.float64, generator=generator)
    labels, share = torch.randint(5, (8,), generator=generator), torch.tensor(0.3, dtype=torch.float64)
    mixed = Mixed(labels.roll(1), share)
    metrics = torch.zeros(1, dtype=torch.int64), torch.zeros(2), torch.zeros(1, dtype=torch.int64)
    position, losses, correct = metrics
    of_images = torch.full((20,), torch.inf) if reduction == "none" else None

    def loss(logits, labels):
        return F.cross_entropy(logits, labels, reduction=reduction, label_smoothing=smoothing)

    places = torch.arange(3, 11)
    gradient = loss_step(loss, logits, labels, places, *metrics, of_images, scale=0.5, gradient_scale=3.0, mixed=mixed)
    leaf = logits.clone().requires_grad_()
    soft = 0.7 * F.one_hot(labels, 5) + 0.3 * F.one_hot(labels.roll(1), 5)
    each = F.cross_entropy(leaf * 0.5, soft.double(), reduction="none", label_smoothing=smoothing)
    torch.testing.assert_close(gradient, torch.autograd.grad(3 * each.sum(), leaf)[0])
    assert losses[0].item() == pytest.approx(each.sum().item()) and position.item() == 1
    assert correct.item() == (logits.argmax(1) == labels).sum()
    if of_images is not None:
        torch.testing.assert_close(of_images[3:11], each.detach().float())


@pytest.mark.parametrize("fields", [{"mix.mixup": 0.4}, {"mix.cutmix": 1.0, "mix.cutmix_share": 1.0}])
def test_a_step_trains_on_each_image_mixed_with_the_one_before_it(data, fields):
    recipe = change(BARE, {**fields, "batch_size": 50, "epochs": 1, "label_smoothing": 0.1})
    trainer = Trainer(recipe, data, "cpu")
    run = trainer.run(3, eval_every=0)
    plan = EpochPlan.draw(100, recipe.augment, 0, 3, mixing=recipe.mix)
    how = {"mean": data.mean, "std": data.std, "dtype": torch.float32}
    batch = plan.batch(0, 50)
    images, labels = batch.augment(data.train.images, **how), batch.labels(data.train.labels)
    share, side, *center = plan.mixing[0].tolist()
    weights = torch.full((32, 32), share)
    if side:
        (top, bottom), (left, right) = (
            (max(0, int(at * 32) - int(side * 32) // 2), int(at * 32) + int(side * 32) // 2) for at in center
        )
        weights[top:bottom, left:right] = 1
    weights = weights if weights.mean() <= 0.5 else 1 - weights
    other = torch.tensor([(place - 1) % 50 for place in range(50)])
    mixed, soft = images * (1 - weights) + images[other] * weights, F.one_hot(labels, 10).double()
    soft = soft * (1 - weights.mean()) + soft[other] * weights.mean()
    logits = trainer.new_network(3)(mixed)
    first = F.cross_entropy(logits.double(), soft, label_smoothing=0.1)
    assert 0 < weights.mean() <= 0.5 and not torch.equal(mixed, images)
    assert trainer.state.tensors.losses[0].item() / 50 == pytest.approx(first.item(), rel=1e-5)
    assert run.record.history[-1].train_loss == pytest.approx(trainer.state.tensors.losses[:2].sum().item() / 100)


def test_a_plan_mixes_a_share_of_the_batches_by_cutmix_and_each_kind_has_a_stream_of_its_own():
    def draw(**fields):
        return EpochPlan.draw(4000, Recipe().augment, 1, 5, mixing=MixConfig(**fields))

    assert draw().mixing is None
    both, up, cut = draw(mixup=0.3, cutmix=1.0, cutmix_share=0.25), draw(mixup=0.3), draw(cutmix=1.0, cutmix_share=1)
    by_cutmix = both.mixing[:, 1] > 0
    assert abs(by_cutmix.double().mean() - 0.25) < 0.03
    assert torch.equal(both.mixing, torch.where(by_cutmix[:, None], cut.mixing, up.mixing))
    assert torch.equal(both.indices, draw().indices) and torch.equal(both.flips, draw().flips)
    alone = draw(cutmix=1.0, cutmix_share=0.25).mixing
    assert torch.equal(alone, cut.mixing * by_cutmix[:, None])


def test_a_batch_by_a_tensor_is_mixed_as_the_one_by_its_number_and_a_single_image_stays(data):
    plan = EpochPlan.draw(100, Recipe().augment, 1, 5, mixing=MixConfig(mixup=0.3, cutmix=1.0))
    images, labels = torch.randn(16, 3, 8, 8), data.train.labels
    for number in range(4):
        (one, of_one), (two, of_two) = (
            plan.batch(at, 16).mix(images, labels) for at in (number, torch.tensor([number]))
        )
        assert torch.equal(one, two) and all(map(torch.equal, of_one, of_two))
        assert torch.equal(of_one.labels, plan.batch(number, 16).labels(labels).roll(1))
    alone, of_alone = plan.batch(99, 1).mix(images[:1], labels)
    torch.testing.assert_close(alone, images[:1])
    assert of_alone.labels == plan.batch(99, 1).labels(labels)


ALL_TRANSFORMS = {
    "transforms.color_jitter": {"brightness": 0.4, "contrast": 0.4, "saturation": 0.4, "hue": 0.1},
    "transforms.gaussian_blur.share": 0.5,
    "transforms.grayscale.share": 0.2,
    "transforms.rand_augment.operations": 2,
    "transforms.random_erasing": {"share": 0.5, "fill": "random"},
}


@pytest.mark.parametrize(
    ("recipe", "options"),
    [
        (change(EVERYTHING, {"epochs": 2.5}), {}),  # early sizes by rescaling, select, averages
        (change(DAVIDNET, {"drop_last": False, "network.ghost_batch": 4, "epochs": 1}), {}),
        (change(MLP, {"select.keep": 0.6, "select.from_epoch": 1}), {"loss": "own"}),
        (change(MLP, {"dtype": "float16", "loss_scaling.dynamic": True, "epochs": 1}), {}),
    ],
    ids=["everything", "partial batches", "own loss", "loss scaling"],
)
def test_mixing_and_all_transforms_go_with_everything_else_and_a_training_goes_on_from_any_step(data, recipe, options):
    options = {"loss": lambda logits, labels: F.cross_entropy(logits, labels, reduction="none")} if options else {}
    trainer, states = Trainer(change(recipe, {**MIXED, **ALL_TRANSFORMS}), data, "cpu", **options), []
    whole = trainer.run(3, listeners=[Listener(on_step=lambda *_: states.append(trainer.state.state_dict()))])
    resumed = trainer.run(resume=states[-2])
    assert all(torch.equal(whole.state[name], tensor) for name, tensor in resumed.state.items())
    assert all(torch.isfinite(tensor).all() for tensor in whole.state.values())
    bare = Trainer(recipe, data, "cpu", **options).run(3)
    assert not torch.equal(bare.tta_logits, whole.tta_logits)


@pytest.mark.gpu
def test_a_captured_training_of_changed_and_mixed_images_is_the_hosts(data):
    recipe = change(EVERYTHING, {**MIXED, **ALL_TRANSFORMS, "dtype": "float32"})
    trainer = Trainer(recipe, data.to("cuda"), "cuda")
    run = trainer.run(3)
    assert trainer.not_captured is None
    assert run.rows[-1].train_loss == pytest.approx(Trainer(recipe, data, "cpu").run(3).rows[-1].train_loss, rel=0.05)


def test_a_loss_of_the_wrong_form_is_refused_for_mixed_images_too(data):
    for loss, said in ((lambda logits, labels: None, "gives a NoneType"), (lambda logits, _: logits, "has shape")):
        with pytest.raises(UserError, match=f"the loss {said}"):
            Trainer(change(BARE, MIXED), data, "cpu", loss=loss).run()


def test_mixup_without_a_batch_is_refused():
    with pytest.raises(UserError, match=r"mix.cutmix_share is 1; allowed: below 1, which leaves batches to mix.mixup"):
        MixConfig(mixup=0.2, cutmix=1.0, cutmix_share=1)
