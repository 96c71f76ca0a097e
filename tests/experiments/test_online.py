"""`warm-start online`, trained for real with a tiny perceptron on a few synthetic images."""

import dataclasses
import json

import pytest

from fastcifar.errors import UserError
from fastcifar.experiments.named.online import Online
from tests.small import PERCEPTRON


def online(recipe, data, runs=1, folder=None, on_progress=None, **options):
    return Online(recipe=recipe, runs=runs, **options).run(data, folder, device="cpu", on_progress=on_progress)


@pytest.fixture(scope="module")
def rounds(data, tmp_path_factory):
    recipe = dataclasses.replace(PERCEPTRON, epochs=12, optimizer=dataclasses.replace(PERCEPTRON.optimizer, lr=0.3))
    folder = tmp_path_factory.mktemp("online") / "new"
    settings = {"round_size": 64, "until_train_accuracy": 0.6}
    return online(recipe, data, 2, folder, **settings), folder, recipe, settings


def test_every_round_has_more_images_and_starts_from_the_round_before(rounds):
    result, folder, *_ = rounds
    assert list(result.sizes) == [64, 128, 192]
    for arm, found in result.rounds.items():
        sizes = [[record.dataset.train_size for record in records] for records in found]
        assert sizes == [[64, 64], [128, 128], [192, 192]]
        modes = [records[0].init["mode"] for records in found]
        assert modes == ["cold", *[arm] * 2]
        assert len({record.seed for records in found for record in records}) == 6
    assert result.rounds["warm"][0] == result.rounds["cold"][0]
    assert result.rounds["warm"][1][1].init["source"] == str(folder / "64/cold/seed-1.safetensors")
    assert result.rounds["warm"][2][1].init["source"] == str(folder / "128/warm/seed-1.safetensors")


def test_a_round_ends_with_the_first_epoch_that_reaches_the_goal(rounds):
    result, *_ = rounds
    reached = 0
    for found in result.rounds.values():
        for record in (record for records in found for record in records):
            *before, last = [row.train_accuracy for row in record.history]
            assert all(accuracy < 0.6 for accuracy in before)
            assert last >= 0.6 or record.epochs == 12
            assert record.epochs == len(record.history)
            reached += last >= 0.6
    assert reached
    assert sum(result.unfinished(arm) for arm in result.rounds) == 18 - reached


def test_only_the_last_rounds_weights_stay_and_kept_rounds_are_not_trained_again(rounds, data):
    result, folder, recipe, settings = rounds
    weights = sorted(path.relative_to(folder).parts[0] for path in folder.rglob("*.safetensors"))
    assert weights == ["192"] * 6
    said = []
    again = online(recipe, data, 2, folder, **settings, on_progress=said.append)
    assert all(progress.kept for progress in said)
    assert len(said) == 2 + 2 * 6
    assert again.to_dict() == result.to_dict()


def test_the_rounds_are_written_and_drawn(rounds, tmp_path):
    pytest.importorskip("matplotlib")
    result, *_ = rounds
    result.write(tmp_path)
    names = {path.name for path in result.draw(tmp_path)}
    assert names == {f"{name}.{form}" for name in ("accuracy", "time") for form in ("png", "svg", "pdf")}
    assert all(f">{result.title}, n=2<" in (tmp_path / f"{name}.svg").read_text() for name in ("accuracy", "time"))
    runs = json.loads((tmp_path / "runs.json").read_text())
    assert runs["warm"]["n_samples_online"] == [0, 64, 128, 192]
    assert runs["warm"]["test_accuracies_online"][1:] == [100 * found[0].accuracy for found in result.rounds["warm"]]
    assert "after 12 epochs" in (tmp_path / "table.md").read_text()
    seconds = result.train_seconds("cold")
    assert seconds[1] == pytest.approx(sum(found[1].train_seconds for found in result.rounds["cold"]))


@pytest.mark.parametrize(("size", "allowed"), [(31, "or more images"), (193, "to the 192 training images")])
def test_a_round_of_less_than_a_batch_or_of_more_than_there_is_is_refused(data, size, allowed):
    with pytest.raises(UserError, match=rf"round_size is {size}; allowed: batch_size, 32, {allowed}"):
        online(PERCEPTRON, data, round_size=size)
