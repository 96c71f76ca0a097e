"""The table of published accuracies, made from a checkout that this test writes."""

import json

import numpy as np
import pytest

from bench.published_accuracies import HEAD, table
from fastcifar.errors import UserError

LABELS = {"original": [0, 1, 2, 3], "v4": [9, 9, 0], "v6": [5, 5]}


@pytest.fixture
def checkout(tmp_path):
    (tmp_path / "datasets").mkdir()
    for name in ("v4", "v6"):
        np.save(tmp_path / f"datasets/cifar10.1_{name}_labels.npy", np.array(LABELS[name], dtype=np.int32))
    right = {"b_net": {"original": 3, "v4": 2, "v6": 0}, "a_net": {"original": 4, "v4": 0, "v6": 2}}
    for model, counts in right.items():
        for name, labels in LABELS.items():
            predictions = [label if place < counts[name] else (label + 1) % 10 for place, label in enumerate(labels)]
            path = tmp_path / f"model_predictions/{name}_predictions/{model}_predictions.json"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(json.dumps(predictions))
    return tmp_path


def test_right_answers_are_counted(checkout):
    lines = ["model,cifar10,cifar10.1,cifar10.1:v4", "images,4,2,3", "a_net,4,2,0", "b_net,3,0,2"]
    assert table(checkout, np.array(LABELS["original"])) == HEAD + "\n".join(lines) + "\n"


@pytest.mark.parametrize("wrong", [[5], [5, 10], [5, 5.5], [[5, 5]]])
def test_what_is_no_label_for_each_image_is_refused(checkout, wrong):
    (checkout / "model_predictions/v6_predictions/b_net_predictions.json").write_text(json.dumps(wrong))
    with pytest.raises(UserError, match=r"b_net_predictions\.json is .*; allowed: 2 labels"):
        table(checkout, np.array(LABELS["original"]))
