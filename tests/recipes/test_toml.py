import dataclasses

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fastcifar.errors import UserError
from fastcifar.recipes import (
    Augment,
    EMAConfig,
    EvaluateConfig,
    MLPConfig,
    ModelConfig,
    OptimConfig,
    Recipe,
    ResNetConfig,
    Schedule,
    SelectConfig,
    read_toml,
    recipe_from_dict,
    to_toml,
)
from fastcifar.recipes.fields import field_docs

positive = st.floats(min_value=1e-300, max_value=1e300)
names = st.from_regex(r"[\w.+-]+", fullmatch=True)


@st.composite
def schedules(draw):
    inner = draw(st.lists(st.floats(0.001, 0.999), max_size=4, unique=True))
    knots = (0.0, *sorted(inner), 1.0)
    return Schedule(knots, tuple(draw(st.floats(0, 1e6)) for _ in knots))


recipes = st.builds(
    Recipe,
    name=names,
    epochs=st.integers(1, 10**9) | st.floats(0.01, 1e9),
    batch_size=st.integers(1, 64).map(lambda groups: 32 * groups),
    label_smoothing=st.floats(0, 1),
    dtype=st.sampled_from(["auto", "float32", "bfloat16", "float16"]),
    model=st.builds(
        ModelConfig,
        widths=st.tuples(*[st.integers(1, 4096)] * 4),
        residual=st.lists(st.sampled_from([1, 2, 3]), unique=True).map(tuple),
        whitening=st.booleans(),
        ghost_batch=st.sampled_from([0, 16, 32]),
        activation=st.sampled_from(["celu", "relu", "none"]),
        logit_scale=positive,
    ),
    network=st.sampled_from(["davidnet", "resnet18", "speedrun"]),  # an mlp takes no early crops
    resnet=st.builds(ResNetConfig, width=st.integers(1, 4096), stem=st.sampled_from(["cifar", "imagenet"])),
    mlp=st.builds(MLPConfig, hidden=st.lists(st.integers(1, 4096), max_size=4).map(tuple)),
    augment=st.builds(
        Augment,
        crop=st.integers(0, 31),
        flip=st.sampled_from(["none", "random", "alternating"]),
        brightness=st.floats(0, 2),
        contrast=st.floats(0, 1),
        early_sizes=st.just((16, 24)),
        early_shares=st.sampled_from([(0.1, 0.5), (0.25, 1.0)]),
    ),
    optim=st.builds(OptimConfig, lr=positive, weight_decay=st.floats(0, 1)),
    schedule=schedules(),
    ema=st.builds(EMAConfig, decay=st.floats(0, 0.999), every=st.integers(1, 100)),
    select=st.builds(SelectConfig, keep=st.floats(0.01, 1), from_epoch=st.floats(1, 100), max_skips=st.integers(0, 9)),
    evaluate=st.builds(EvaluateConfig, tta=st.sampled_from(["none", "flip", "flip-crop"]), tta_share=st.floats(0, 1)),
)


@settings(deadline=None, max_examples=40)
@given(recipe=recipes)
def test_a_written_recipe_reads_back_equal(recipe, tmp_path_factory):
    path = tmp_path_factory.getbasetemp() / "recipe.toml"
    path.write_text(to_toml(recipe), encoding="utf-8")
    assert read_toml(path) == recipe


@settings(deadline=None, max_examples=20)
@given(recipe=recipes)
def test_a_recipe_reads_back_equal_from_dictionaries(recipe):
    assert recipe_from_dict(dataclasses.asdict(recipe)) == recipe


def test_the_docstring_of_every_field_stands_above_it():
    lines = to_toml(Recipe()).splitlines()
    assert lines[lines.index("epochs = 10") - 1] == f"# {field_docs(Recipe)['epochs']}"
    for section in (Recipe, *(type(value) for value in vars(Recipe()).values() if dataclasses.is_dataclass(value))):
        subsections = {name for name, value in vars(section()).items() if dataclasses.is_dataclass(value)}
        fields = {field.name for field in dataclasses.fields(section)}
        assert fields - subsections <= field_docs(section).keys()


def test_fields_left_out_keep_their_defaults_and_the_file_names_the_recipe(tmp_path):
    path = tmp_path / "mine.toml"
    path.write_text("epochs = 3\noptim.lr = 2\n")
    assert read_toml(path) == Recipe(name="mine", epochs=3, optim=OptimConfig(lr=2.0))
    assert isinstance(read_toml(path).optim.lr, float)


REFUSALS = {
    "epoch = 3": "unknown field epoch; did you mean 'epochs'?",
    "model.wdiths = [1, 2, 3, 4]": "unknown field model.wdiths; did you mean 'widths'?",
    "ema.zzz = 1": "unknown field ema.zzz; allowed: decay, every",
    "epochs = true": "epochs is True; allowed: a number",
    "epochs = '3'": "epochs is '3'; allowed: a number",
    "batch_size = 2.5": "batch_size is 2.5; allowed: a whole number",
    "batch_size = true": "batch_size is True; allowed: a whole number",
    "label_smoothing = true": "label_smoothing is True; allowed: a number",
    "optim.lr = 'high'": "optim.lr is 'high'; allowed: a number",
    "model.norm = 1": "model.norm is 1; allowed: true or false",
    "name = 3": "name is 3; allowed: a word",
    "model.widths = [1, 2]": "model.widths is [1, 2]; allowed: 4 whole numbers",
    "model.widths = 64": "model.widths is 64; allowed: 4 whole numbers",
    "model.residual = ['a']": "model.residual is 'a'; allowed: a whole number",
    "schedule.knots = 1.0": "schedule.knots is 1.0; allowed: numbers",
    "model = 3": "model is 3; allowed: a section of fields",
    "model.pool = 'min'": "model.pool is 'min'; allowed: one of max, avg",
    "model.pool = 3": "model.pool is 3; allowed: one of max, avg",
    "epochs = 0": "epochs is 0.0; allowed: above 0",
    "optim.lr = -1": "optim.lr is -1.0; allowed: above 0",
    "optim.lr = nan": "optim.lr is nan; allowed: a finite number",
    "schedule.values = [0.0, inf, 1.0, 1.0]": "schedule.values is (0.0, inf, 1.0, 1.0); allowed: a finite number",
    "batch_size = 100": "batch_size is 100; allowed: a multiple of model.ghost_batch, 32",
    "augment.brightness = -0.1": "augment.brightness is -0.1; allowed: 0 or more",
    "augment.contrast = 2": "augment.contrast is 2.0; allowed: 0 to 1",
    "augment.early_sizes = [15]": "augment.early_sizes is (15,); allowed: 16 to 32 pixels each",
    "augment.early_shares = [0.5]": "augment.early_shares is (0.5,); allowed: as many as "
    "augment.early_sizes has (0), rising, above 0, up to 1",
    "augment = {early_sizes = [24, 28], early_shares = [0.5, 0.4]}": "augment.early_shares is (0.5, 0.4); allowed: "
    "as many as augment.early_sizes has (2), rising, above 0, up to 1",
    "augment = {cutout = 17, early_sizes = [16], early_shares = [0.5]}": "augment.cutout is 17; allowed: up to the "
    "smallest of augment.early_sizes, 16",
    "network = 'mlp'\naugment = {early_sizes = [24], early_shares = [0.5]}": "augment.early_sizes is (24,); allowed: "
    "none, an mlp takes whole images",
    "select.keep = 0": "select.keep is 0.0; allowed: above 0, up to 1",
    "select.from_epoch = 0.5": "select.from_epoch is 0.5; allowed: 1 or more epochs",
    "select.max_skips = -1": "select.max_skips is -1; allowed: 0 (no limit) or a number of epochs",
    "average.epochs = -1": "average.epochs is -1.0; allowed: 0 (no average) or more",
    "average.every = 0": "average.every is 0; allowed: 1 or more steps",
    "average.images = 0": "average.images is 0; allowed: 1 or more images",
    "average.epochs = 2": "ema.decay is 0.99 and average.epochs is 2.0; allowed: one average of the two, the other 0",
}


@pytest.mark.parametrize(("text", "message"), REFUSALS.items())
def test_a_bad_field_is_refused_with_its_file_name_value_and_what_is_allowed(tmp_path, text, message):
    path = tmp_path / "bad.toml"
    path.write_text(text)
    with pytest.raises(UserError) as refusal:
        read_toml(path)
    assert str(refusal.value) == f"{path}: {message}"


def test_an_integer_beyond_all_floats_is_refused():
    with pytest.raises(UserError, match=r"^recipe: optim\.lr is 10+; allowed: a number$"):
        recipe_from_dict({"optim": {"lr": 10**400}})


@pytest.mark.parametrize("content", [b"epochs = ", b"\xff\xfe", b"a = 1\na = 2"])
def test_a_file_that_is_not_toml_is_refused_in_one_line(tmp_path, content):
    path = tmp_path / "bad.toml"
    path.write_bytes(content)
    with pytest.raises(UserError) as refusal:
        read_toml(path)
    assert str(refusal.value).startswith(f"{path} is not a TOML file: ")
    assert "\n" not in str(refusal.value)


def test_a_file_that_cannot_be_read_is_refused(tmp_path):
    with pytest.raises(UserError, match=r"cannot read the recipe .*none\.toml: No such file"):
        read_toml(tmp_path / "none.toml")
    with pytest.raises(UserError, match=r"cannot read the recipe .*: Is a directory"):
        read_toml(tmp_path)
