import dataclasses

import pytest

from fastcifar.errors import UserError
from fastcifar.recipes import Augment, Recipe, change, get_recipe
from fastcifar.recipes.networks.davidnet import DavidNetConfig
from fastcifar.recipes.optimizers.sgd import SGDConfig
from fastcifar.recipes.text import read_changes


def test_fields_are_changed_and_the_others_are_kept():
    before = Recipe(epochs=7, augment=Augment(cutout=8))
    after = change(before, {"optimizer.lr": 0.2, "batch_size": 256, "augment.flip": "none"})
    assert after == dataclasses.replace(
        before, batch_size=256, optimizer=SGDConfig(lr=0.2), augment=Augment(cutout=8, flip="none")
    )
    assert change(before, {}) == before


def test_words_are_read_with_the_types_of_their_fields():
    words = ["optimizer.lr=1e-1", "epochs=3", "network.whitening=false", "augment.flip=none", "name=3"]
    words += ["optimizer.bias-lr-factor=2", "network.widths=[8, 16, 32, 64]", "network.residual=[]"]
    recipe = change(Recipe(), read_changes(words))
    assert recipe == Recipe(
        name="3",
        epochs=3,
        network=DavidNetConfig(whitening=False, widths=(8, 16, 32, 64), residual=()),
        augment=Augment(flip="none"),
        optimizer=SGDConfig(lr=0.1, bias_lr_factor=2.0),
    )


@pytest.mark.parametrize("word", ["optimizer.lr", "=3", "optimizer.lr=", ""])
def test_a_word_that_sets_nothing_is_refused(word):
    with pytest.raises(UserError, match="allowed: FIELD=VALUE"):
        read_changes([word])


@pytest.mark.parametrize(
    ("word", "said"),
    [
        ("optimizer.lrr=1", r"--a-set: unknown field optimizer\.lrr; did you mean 'lr'"),
        ("optimizer.lr=fast", r"--a-set: optimizer\.lr is 'fast'; allowed: a number"),
        ("optimizer.lr=-1", r"--a-set: optimizer\.lr is -1\.0; allowed: above 0"),
        ("network=3", "--a-set: network.kind is '3'; allowed: davidnet"),
        ("epochs.x=3", "--a-set: epochs in epochs.x is no section"),
        ("nothing.lr=3", "--a-set: unknown field nothing"),
        ("a = 1\nb=2", "--a-set: unknown field a "),
    ],
)
def test_a_bad_change_is_refused_in_one_line(word, said):
    with pytest.raises(UserError, match=said) as refusal:
        change(Recipe(), read_changes([word]), "--a-set")
    assert "\n" not in str(refusal.value)


def test_a_section_may_be_changed_whole_or_in_part():
    recipe = get_recipe("speedrun94")
    whole = change(recipe, {"optimizer": SGDConfig(lr=0.2)})
    assert whole.optimizer == SGDConfig(lr=0.2)
    part = change(recipe, {"optimizer": {"lr": 0.2}})
    assert part == change(recipe, {"optimizer.lr": 0.2})
    assert part.optimizer == dataclasses.replace(recipe.optimizer, lr=0.2)
