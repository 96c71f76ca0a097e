import dataclasses

import pytest

from fastcifar.errors import UserError
from fastcifar.recipes import Augment, OptimConfig, Recipe, get_recipe
from fastcifar.recipes.change import change, read_changes


def test_fields_are_changed_and_the_others_are_kept():
    before = Recipe(epochs=7, augment=Augment(cutout=8))
    after = change(before, {"optim.lr": 0.2, "batch_size": 256, "augment.flip": "none"})
    assert after == dataclasses.replace(
        before, batch_size=256, optim=OptimConfig(lr=0.2), augment=Augment(cutout=8, flip="none")
    )
    assert change(before, {}) == before


def test_words_are_read_with_their_types():
    words = ["optim.lr=1e-1", "epochs=3", "model.whitening=false", "augment.flip=none", "optim.bias-lr-factor=2"]
    words += ["model.widths=[8, 16, 32, 64]", 'name="a-name"']
    assert read_changes(words) == {
        "optim.lr": 0.1,
        "epochs": 3,
        "model.whitening": False,
        "augment.flip": "none",
        "optim.bias_lr_factor": 2,
        "model.widths": [8, 16, 32, 64],
        "name": "a-name",
    }
    assert change(Recipe(), read_changes(words)).model.widths == (8, 16, 32, 64)


@pytest.mark.parametrize("word", ["optim.lr", "=3", "optim.lr=", ""])
def test_a_word_that_sets_nothing_is_refused(word):
    with pytest.raises(UserError, match="allowed: FIELD=VALUE"):
        read_changes([word])


@pytest.mark.parametrize(
    ("word", "said"),
    [
        ("optim.lrr=1", r"--a-set: unknown field optim\.lrr; did you mean 'lr'"),
        ("optim.lr=fast", r"--a-set: optim\.lr is 'fast'; allowed: a number"),
        ("optim.lr=-1", r"--a-set: optim\.lr is -1\.0; allowed: above 0"),
        ("optim=3", "--a-set: optim is 3; allowed: a section"),
        ("epochs.x=3", "--a-set: epochs in epochs.x is no section"),
        ("nothing.lr=3", "--a-set: unknown field nothing"),
        ("a = 1\nb=2", "--a-set: unknown field a "),
    ],
)
def test_what_is_no_recipe_is_refused_in_one_line(word, said):
    with pytest.raises(UserError, match=said) as refusal:
        change(Recipe(), read_changes([word]), "--a-set")
    assert "\n" not in str(refusal.value)


def test_a_section_may_be_changed_whole_or_in_part_and_optimizer_is_another_word_for_optim():
    recipe = get_recipe("speedrun94")
    whole = change(recipe, {"optim": OptimConfig(lr=0.2)})
    assert whole.optim == OptimConfig(lr=0.2)
    part = change(recipe, {"optim": {"lr": 0.2}})
    assert part == change(recipe, {"optimizer.lr": 0.2}) == change(recipe, {"optimizer": {"lr": 0.2}})
    assert part.optim == dataclasses.replace(recipe.optim, lr=0.2)
