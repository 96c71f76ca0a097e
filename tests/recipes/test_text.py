import dataclasses

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fastcifar.errors import UserError
from fastcifar.recipes import (
    NETWORKS,
    RECIPES,
    Augment,
    EMAConfig,
    EvaluateConfig,
    Recipe,
    Schedule,
    SelectConfig,
    change,
    read_toml,
    recipe_from_dict,
    to_toml,
)
from fastcifar.recipes.declare import field_docs
from fastcifar.recipes.networks.davidnet import DavidNetConfig
from fastcifar.recipes.networks.mlp import MLPConfig
from fastcifar.recipes.networks.resnet18 import ResNet18Config
from fastcifar.recipes.networks.speedrun import SpeedrunConfig
from fastcifar.recipes.optimizers.muon import MuonConfig
from fastcifar.recipes.optimizers.sgd import SGDConfig
from fastcifar.recipes.optimizers.torch import AdamWConfig
from fastcifar.recipes.text import Written, field_hints, leaves, read_changes, read_value, to_text, with_all_transforms

positive = st.floats(min_value=1e-300, max_value=1e30)
names = st.from_regex(r"[\w.+-]{1,20}", fullmatch=True)


@st.composite
def schedules(draw):
    inner = draw(st.lists(st.floats(0.001, 0.999), max_size=4, unique=True))
    knots = (0.0, *sorted(inner), 1.0)
    return Schedule(knots, tuple(draw(st.floats(0, 1e4)) for _ in knots))


def with_early_batches(batches, **fields):
    recipe = Recipe(**fields)
    early = [min(images, recipe.batch_size) for images in batches][: len(recipe.augment.early_crops)]
    return dataclasses.replace(recipe, early_batches=tuple(early))


recipes = st.builds(
    with_early_batches,
    name=names,
    epochs=st.integers(1, 10**5) | st.floats(0.01, 1e5),
    batch_size=st.integers(1, 64).map(lambda groups: 32 * groups),
    batches=st.lists(st.integers(1, 9).map(lambda groups: 32 * groups), max_size=3),
    label_smoothing=st.floats(0, 1),
    dtype=st.sampled_from(["auto", "float32", "bfloat16", "float16"]),
    network=st.builds(
        DavidNetConfig,
        widths=st.tuples(*[st.integers(1, 4096)] * 4),
        residual=st.lists(st.sampled_from([1, 2, 3]), unique=True).map(tuple),
        whitening=st.booleans(),
        ghost_batch=st.sampled_from([0, 16, 32]),
        activation=st.sampled_from(["celu", "relu", "none"]),
        logit_scale=positive,
    )
    | st.builds(ResNet18Config, width=st.integers(1, 4096), stem=st.sampled_from(["cifar", "imagenet"]))
    | st.builds(SpeedrunConfig, widths=st.tuples(*[st.integers(1, 4096)] * 3), dirac=st.booleans()),
    augment=st.builds(
        Augment,
        crop=st.integers(0, 31),
        flip=st.sampled_from(["none", "random", "alternating", "by-visit"]),
        brightness=st.floats(0, 2),
        contrast=st.floats(0, 1),
        early_crops=st.sampled_from([(), ((24, 0.5),), ((16, 0.1), (24, 0.5)), ((16, 0.25), (24, 1.0))]),
        early=st.sampled_from(["crop", "resize"]),
    ),
    optimizer=st.builds(SGDConfig, lr=positive, weight_decay=st.floats(0, 1))
    | st.builds(MuonConfig, lr=positive, ns_coefficients=st.tuples(*[st.floats(-9, 9)] * 3), overlap=st.booleans())
    | st.builds(AdamWConfig, lr=positive, betas=st.tuples(*[st.floats(0, 0.999)] * 2)),
    schedule=schedules(),
    ema=st.builds(EMAConfig, decay=st.floats(0, 0.999), every=st.integers(1, 100)),
    select=st.builds(SelectConfig, keep=st.floats(0.01, 1), from_epoch=st.floats(1, 100)),
    evaluate=st.builds(EvaluateConfig, tta=st.sampled_from(["none", "flip", "flip-crop"]), tta_share=st.floats(0, 1)),
)


@settings(max_examples=40)
@given(recipe=recipes)
def test_a_written_recipe_reads_back_equal(recipe, tmp_path_factory):
    path = tmp_path_factory.getbasetemp() / "recipe.toml"
    path.write_text(to_toml(recipe), encoding="utf-8")
    assert read_toml(path) == recipe


@settings(max_examples=20)
@given(recipe=recipes)
def test_a_recipe_reads_back_equal_from_dictionaries(recipe):
    assert recipe_from_dict(dataclasses.asdict(recipe)) == recipe


def test_the_docstring_of_every_field_stands_above_it():
    lines = to_toml(Recipe()).splitlines()
    assert lines[lines.index("epochs = 10") - 1] == f"# {field_docs(Recipe)['epochs']}"


def test_fields_left_out_keep_their_defaults_and_the_file_names_the_recipe(tmp_path):
    path = tmp_path / "mine.toml"
    path.write_text("epochs = 3\noptimizer.lr = 2\n")
    assert read_toml(path) == Recipe(name="mine", epochs=3, optimizer=SGDConfig(lr=2.0))
    assert isinstance(read_toml(path).optimizer.lr, float)


KNOWN_NETWORKS = f"{', '.join(NETWORKS)}, or what a plug-in adds (--plugin)"
MLP_FIELDS = ", ".join(field.name for field in dataclasses.fields(MLPConfig) if field.init)
CROPS = "sizes of 1 to 4096 pixels, each with a share, rising, above 0, up to 1"
REFUSALS = {
    "epoch = 3": "unknown field epoch; did you mean 'epochs'?",
    "network.wdiths = [1, 2, 3, 4]": "unknown field network.wdiths; did you mean 'widths'?",
    "ema.zzz = 1": "unknown field ema.zzz; allowed: decay, every, return_every",
    "epochs = true": "epochs is True; allowed: a number",
    "epochs = '3'": "epochs is '3'; allowed: a number",
    "batch_size = 2.5": "batch_size is 2.5; allowed: a whole number",
    "batch_size = true": "batch_size is True; allowed: a whole number",
    "label_smoothing = true": "label_smoothing is True; allowed: a number",
    "optimizer.lr = 'high'": "optimizer.lr is 'high'; allowed: a number",
    "network.norm = 1": "network.norm is 1; allowed: true or false",
    "name = 3": "name is 3; allowed: a word",
    "network.widths = [1, 2]": "network.widths is [1, 2]; allowed: 4 whole numbers",
    "network.widths = 64": "network.widths is 64; allowed: 4 whole numbers",
    "network.residual = ['a']": "network.residual is 'a'; allowed: a whole number",
    "network.residual = 1": "network.residual is 1; allowed: whole numbers",
    "schedule.knots = 1.0": "schedule.knots is 1.0; allowed: numbers",
    "network = 3": "network is 3; allowed: a section of fields",
    "network = 'davidnte'": f"network.kind is 'davidnte'; did you mean 'davidnet'?; allowed: {KNOWN_NETWORKS}",
    "network.kind = ['mlp']": f"network.kind is ['mlp']; did you mean 'mlp'?; allowed: {KNOWN_NETWORKS}",
    "network = {kind = 'mlp', widths = [1]}": f"unknown field network.widths; allowed: {MLP_FIELDS}",
    "network.pool = 'min'": "network.pool is 'min'; allowed: one of max, avg",
    "network.pool = 3": "network.pool is 3; allowed: one of max, avg",
    "network.residual = [0]": "network.residual is (0,); allowed: 1 to 3 each",
    "network.widths = [8, 8, 0, 8]": "network.widths is (8, 8, 0, 8); allowed: 1 to 65,536 channels each",
    "epochs = 0": "epochs is 0.0; allowed: above 0, up to 100000",
    "optimizer.lr = -1": "optimizer.lr is -1.0; allowed: above 0",
    "optimizer.lr = nan": "optimizer.lr is nan; allowed: a finite number",
    "optimizer.momentum = 1": "optimizer.momentum is 1.0; allowed: 0 up to, not including, 1",
    "optimizer.ns_steps = 3": "unknown field optimizer.ns_steps; allowed: lr, momentum, weight_decay, bias_lr_factor, "
    "layers",
    "schedule.values = [0.0, inf, 1.0, 1.0]": "schedule.values is (0.0, inf, 1.0, 1.0); allowed: a finite number",
    "batch_size = 100": "batch_size is 100; allowed: a multiple of network.ghost_batch, 32",
    "augment.crop = 4096": "augment.crop is 4096; allowed: 0 to 4,095 pixels",
    "augment.brightness = -0.1": "augment.brightness is -0.1; allowed: 0 or more",
    "augment.contrast = 2": "augment.contrast is 2.0; allowed: 0 to 1",
    "augment.early_crops = [24, 0.5]": "augment.early_crops is 24; allowed: a whole number and a number",
    "augment.early_crops = 24": "augment.early_crops is 24; allowed: lists, each of a whole number and a number",
    "augment.early_crops = [[0, 0.5]]": f"augment.early_crops is ((0, 0.5),); allowed: {CROPS}",
    "augment.early_crops = [[24, 0.5], [28, 0.4]]": "augment.early_crops is ((24, 0.5), (28, 0.4)); allowed: " + CROPS,
    "augment = {cutout = 17, early_crops = [[16, 0.5]]}": "augment.cutout is 17; allowed: up to the smallest of "
    "augment.early_crops, 16",
    "network = 'mlp'\naugment = {early_crops = [[24, 0.5]]}": "augment.early_crops is ((24, 0.5),); allowed: none, the "
    "network mlp takes whole images",
    "network = 'mlp'\noptimizer = 'muon'": "network.kind is mlp; allowed: with the optimizer muon one with "
    "convolutions",
    "transforms.solar.share = 0.5": "unknown field transforms.solar; allowed: color_jitter, grayscale, rand_augment, "
    "gaussian_blur, random_erasing, what a plug-in adds (--plugin)",
    "select.keep = 0": "select.keep is 0.0; allowed: above 0, up to 1",
    "select.from_epoch = 0.5": "select.from_epoch is 0.5; allowed: 1 or more epochs",
    "average.epochs = -1": "average.epochs is -1.0; allowed: 0 or more epochs",
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
    with pytest.raises(UserError, match=r"^recipe: optimizer\.lr is 10+\.\.\.; allowed: a number$"):
        recipe_from_dict({"optimizer": {"lr": 10**400}})


@pytest.mark.parametrize("content", [b"epochs = ", b"\xff\xfe", b"a = 1\na = 2"])
def test_a_file_that_is_not_toml_is_refused_in_one_line(tmp_path, content):
    path = tmp_path / "bad.toml"
    path.write_bytes(content)
    with pytest.raises(UserError) as refusal:
        read_toml(path)
    assert str(refusal.value).startswith(f"{path} is not a TOML file: ")
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize("ends", ["\n", "\r\n"])
@pytest.mark.parametrize("mark", ["", "\ufeff"])
def test_a_file_of_any_editor_is_read(tmp_path, mark, ends):
    path = tmp_path / "mine.toml"
    path.write_bytes((mark + to_toml(Recipe(epochs=3)).replace("\n", ends)).encode())
    assert read_toml(path) == Recipe(epochs=3)


@pytest.mark.parametrize("encoding", ["utf-16", "latin-1"])
def test_a_file_in_another_encoding_is_refused_by_that(tmp_path, encoding):
    (tmp_path / "bad.toml").write_bytes("# größer\nepochs = 3\n".encode(encoding))
    with pytest.raises(
        UserError, match=r"bad.toml is not a TOML file: it is not written in UTF-8; allowed: text in UT"
    ):
        read_toml(tmp_path / "bad.toml")


@pytest.mark.parametrize(
    ("file", "name"),
    {
        "my recipe.toml": "my-recipe",
        "recipe (2).toml": "recipe-2",
        "größer & schneller.toml": "größer-schneller",
        "v1.2+fast.toml": "v1.2+fast",
        "100%.toml": "100",
        ".toml": "toml",
        "-.hidden.toml": "hidden",
        "???.toml": "davidnet",
        "a'b;$(c).toml": "a-b-c",
    }.items(),
)
def test_a_recipe_is_named_after_its_file_whatever_that_is_called(tmp_path, file, name):
    (tmp_path / file).write_text("epochs = 3")
    assert read_toml(tmp_path / file) == Recipe(name=name, epochs=3)


def test_a_file_that_cannot_be_read_is_refused(tmp_path):
    with pytest.raises(UserError, match=r"cannot read the recipe .*none\.toml: No such file"):
        read_toml(tmp_path / "none.toml")
    with pytest.raises(UserError, match=r"cannot read the recipe .*: Is a directory"):
        read_toml(tmp_path)


def test_a_kind_begins_with_its_own_defaults_and_the_same_kind_keeps_its_fields():
    narrow = Recipe(network=DavidNetConfig(widths=(8, 8, 8, 8)))
    assert change(narrow, {"network": "davidnet"}) == narrow
    assert change(narrow, {"network.kind": "davidnet", "network.norm": False}).network.widths == (8, 8, 8, 8)
    for words in ({"network": "resnet18"}, {"network.kind": "resnet18"}, {"network": {"kind": "resnet18"}}):
        assert change(narrow, words).network == ResNet18Config()
    for word in ("network=resnet18", 'network="resnet18"', "network.kind=resnet18", 'network.kind="resnet18"'):
        assert change(narrow, read_changes([word])).network == ResNet18Config()
    both = change(Recipe(), {"optimizer.ns_steps": 5, "optimizer": "muon"})  # whatever comes first
    assert both.optimizer == MuonConfig(ns_steps=5)
    assert change(Recipe(), {"network": ResNet18Config(width=8)}).network == ResNet18Config(width=8)


def test_the_callers_sections_are_not_written_to():
    given = {"kind": "mlp"}
    assert change(Recipe(), {"network": given, "network.hidden": (8,)}).network == MLPConfig(hidden=(8,))
    assert change(Recipe(), {"network": given}).network == MLPConfig() and given == {"kind": "mlp"}


@pytest.mark.parametrize("name", RECIPES)
def test_a_field_means_the_same_in_a_file_in_a_word_and_as_a_keyword(name):
    recipe = RECIPES[name]
    hints = field_hints(recipe)
    whole = dataclasses.asdict(with_all_transforms(recipe))
    fields = {path: value for path, value in leaves(whole) if path in hints}
    assert hints.keys() == fields.keys()
    base = change(Recipe(), {"network": recipe.network.kind, "optimizer": recipe.optimizer.kind})
    assert change(base, fields) == recipe
    words = {path: Written(to_text(value)) for path, value in fields.items()}
    assert change(base, words) == recipe


@pytest.mark.parametrize(
    ("words", "hint", "value"),
    [
        ("true", bool, True),
        ("True", bool, "True"),
        ("true", str, "true"),
        ("3", int, 3),
        ("3", str, "3"),
        ("'3'", str, "3"),
        ("1e-3", float, 0.001),
        (".5", float, 0.5),
        ("fast", float, "fast"),
        ("[8, 16]", tuple[int, ...], [8, 16]),
        ("8", tuple[int, ...], [8]),
        ("[]", tuple[int, ...], []),
        (["8", "16"], tuple[int, ...], [8, 16]),
        (["[8, 16]"], tuple[int, ...], [8, 16]),
        ([], tuple[int, ...], []),
        (["24", "0.2", "28", "0.6"], tuple[tuple[int, float], ...], [[24, 0.2], [28, 0.6]]),
        (["[[24, 0.2]]"], tuple[tuple[int, float], ...], [[24, 0.2]]),
        ("8 16", tuple[int, ...], [8, 16]),
        (["24 0.2 28 0.6"], tuple[tuple[int, float], ...], [[24, 0.2], [28, 0.6]]),
        ("a b", tuple[str, ...], ["a b"]),
        ("[8, 16", tuple[int, ...], ["[8, 16"]),
        (["a=1", "b=30%"], tuple[str, ...], ["a=1", "b=30%"]),
    ],
)
def test_words_are_read_by_the_type_of_their_field(words, hint, value):
    assert read_value(words, hint) == value
