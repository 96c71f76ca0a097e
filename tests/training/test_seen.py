"""What `images_seen` says that a network sees is what one that is trained sees."""

import dataclasses

import numpy as np
import pytest
import torch

from fastcifar.data.synthetic import make_synthetic
from fastcifar.errors import UserError
from fastcifar.recipes import Augment, change
from fastcifar.recipes.augmentation import MixConfig
from fastcifar.training import Listener, Trainer
from fastcifar.training.seen import images_seen
from tests.small import EVERYTHING, MLP

IMAGES, SEED = 72, 3
ALL = list(range(IMAGES))
CHANGED = dataclasses.replace(MLP, augment=Augment(crop=4, flip="random", cutout=8), drop_last=False)
RECIPES = {
    "cut, mixed and transformed": change(
        dataclasses.replace(CHANGED, mix=MixConfig(mixup=1, cutmix=1)), {"transforms.color_jitter.hue": 0.3}
    ),
    "mirrored by visit": dataclasses.replace(MLP, augment=Augment(flip="by-visit"), drop_last=True),
    "smaller at first": change(EVERYTHING, {"select.keep": 1, "epochs": 3, "average.epochs": 0}),
    "made on the host": change(CHANGED, {"loading.loader": "host", "loading.workers": 0}),
    "in two orders": change(CHANGED, {"ensemble.members": 2, "ensemble.order": "own"}),
}


def trained_on(trainer):
    """Return the input of the network in a training, `[epoch][place]`, normalized."""
    found: dict[int, dict[int, torch.Tensor]] = {}

    def begin(trainer):
        state, epochs = trainer.state, trainer.timeline.epochs

        def take(module, given):
            epoch = next(each for each in epochs if state.step < each.end)
            first = (state.step - epoch.first_step) * epoch.stage.batch
            order = state.tensors.plan.indices[first : first + epoch.stage_of(state.step).images].tolist()
            rows = given[0][: len(order)].clone()
            found.setdefault(epoch.number, {}).update(zip(order, rows, strict=True))

        trainer.network.register_forward_pre_hook(take)

    trainer.run(SEED, listeners=[Listener(on_start=begin)], eval_every=0)
    return found


def shown(image, dataset):
    """Return an image of a batch as a picture."""
    pixels = image.double().permute(1, 2, 0).numpy() * np.array(dataset.std) + np.array(dataset.mean)
    return pixels.clip(0, 255)


@pytest.mark.parametrize("recipe", RECIPES.values(), ids=RECIPES)
def test_it_is_what_a_training_feeds_to_the_network(recipe):
    trainer = Trainer(recipe, make_synthetic(IMAGES, 10), "cpu")
    seen = images_seen(trainer, SEED, ALL, [0, 2])
    taken = trained_on(trainer)  # in the same buffers, as if nothing had been asked
    assert sorted(seen) == [0, 2]
    for epoch, images in seen.items():
        assert {place for place in ALL if images[place] is not None} == set(taken[epoch])
        for place, image in taken[epoch].items():
            assert abs(images[place] - shown(image, trainer.dataset)).max() <= 0.51


def test_images_are_as_if_chosen_where_losses_choose():
    trainer = Trainer(EVERYTHING, make_synthetic(IMAGES, 10), "cpu")
    few, chosen = [5, 70], trainer.timeline.epochs[3]
    assert chosen.visits is not None
    for image in images_seen(trainer, SEED, few, [3])[3]:
        assert image is not None and image.shape == (chosen.stage.size,) * 2 + (3,)


def test_what_there_is_not_is_refused():
    dataset = make_synthetic(IMAGES, 10)
    with pytest.raises(UserError, match="the training has no epoch 4; allowed: 1 to 3"):
        images_seen(Trainer(MLP, dataset, "cpu"), SEED, ALL, [3])
    once = change(MLP, {"freeze": "backbone", "frozen_mode": "once", "augment.crop": 0, "augment.flip": "none"})
    with pytest.raises(UserError, match="frozen_mode is once, where no step sees an image"):
        images_seen(Trainer(once, dataset, "cpu"), SEED, ALL, [0])
