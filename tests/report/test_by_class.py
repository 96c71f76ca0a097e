"""Scores by class, against loops over the images, and in the record of a run."""

import dataclasses
import json

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import fastcifar
from fastcifar.by_class import ClassScores
from fastcifar.data.synthetic import make_synthetic
from fastcifar.errors import UserError
from fastcifar.record import RunRecord, json_text
from fastcifar.report.by_class import by_class_table, confusion_matrix, precision_recall
from fastcifar.training import load_run, train
from tests.small import MLP

CASES = st.integers(1, 5).flatmap(
    lambda classes: st.tuples(
        st.just(classes), st.lists(st.tuples(st.integers(-1, classes - 1), st.integers(0, classes - 1)), max_size=30)
    )
)


def share(flags):
    return sum(flags) / len(flags) if flags else 0.0


@given(CASES)
def test_scores_are_those_of_loops_over_the_images(case):
    classes, pairs = case
    labels, predicted = (np.array([pair[place] for pair in pairs], np.int64) for place in (0, 1))
    matrix = confusion_matrix(labels, predicted, classes)
    known = [pair for pair in pairs if pair[0] >= 0]
    assert matrix.tolist() == [[known.count((label, taken)) for taken in range(classes)] for label in range(classes)]
    precision, recall = precision_recall(matrix)
    assert precision.tolist() == [share([label == each for label, taken in known if taken == each])
                                  for each in range(classes)]  # fmt: skip
    assert recall.tolist() == [share([taken == each for label, taken in known if label == each])
                               for each in range(classes)]  # fmt: skip
    scores = ClassScores.of(matrix.tolist())
    seen = sorted({each for pair in known for each in pair})  # scikit-learn's, of which the macro mean is
    assert scores.mean_precision == pytest.approx(share([precision[each] for each in seen]))
    assert scores.mean_recall == pytest.approx(share([recall[each] for each in seen]))


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (lambda: confusion_matrix([0, 3], [0, 0], 3), "labels is 0 to 3; allowed: -1 to 2"),
        (lambda: confusion_matrix([0, 1], [0, -1], 3), "predicted is -1 to 0; allowed: 0 to 2"),
        (lambda: confusion_matrix([0, 1], [0], 3), r"labels is \[2\] and predicted \[1\]; allowed: the same images"),
        (lambda: confusion_matrix([0.5], [0], 3), "labels is float64"),
        (lambda: precision_recall([[1, 2]]), r"matrix is int64 \[1, 2\]"),
        (lambda: precision_recall([[-1]]), "matrix is int64"),
    ],
)
def test_others_are_refused(call, said):
    with pytest.raises(UserError, match=said):
        call()


def test_the_record_has_those_of_the_plain_logits(tmp_path):
    data = make_synthetic(64, 40)
    labels = data.test.labels.clone()
    labels[::4] = -1
    data = dataclasses.replace(data, test=dataclasses.replace(data.test, labels=labels))
    run = train(MLP, data, device="cpu")
    predicted = run.plain_logits.argmax(1).numpy()
    matrix = confusion_matrix(run.labels, predicted, 10)
    record = load_run(run.save(tmp_path / "run"))[2]
    assert record.by_class == run.record.by_class == ClassScores.of(matrix.tolist())
    assert matrix.sum() == 30 and np.trace(matrix) / 30 == pytest.approx(record.accuracy)
    assert record.precision == record.by_class.mean_precision and record.recall == record.by_class.mean_recall
    lines = (tmp_path / "run/run.json").read_text().splitlines()
    first = next(number for number, line in enumerate(lines) if '"confusion": [' in line)
    assert [json.loads(line.rstrip(",")) for line in lines[first + 1 : first + 11]] == matrix.tolist()
    old = {name: value for name, value in record.to_json().items() if name != "by_class"}
    assert RunRecord.from_json(old).precision is None
    damaged = {**record.to_json(), "by_class": {"precision": [0.5], "recall": ["x"], "confusion": [[1]]}}
    with pytest.raises(UserError, match=r"by_class\.recall\[0\] is 'x'"):
        RunRecord.from_json(damaged)
    damaged["by_class"] = {"precision": [0.5, 0.5], "recall": [], "confusion": [[1, 2], [3]]}
    assert RunRecord.from_json(damaged).precision == 0.5 and RunRecord.from_json(damaged).recall == 0
    unlabeled = dataclasses.replace(data, test=dataclasses.replace(data.test, labels=torch.full_like(labels, -1)))
    assert train(MLP, unlabeled, device="cpu").record.by_class is None


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(st.sampled_from('[]1,\n "\\-')),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(max_size=3), inner),
    max_leaves=12,
)


@given(JSON)
def test_json_for_readers_is_the_same_json(values):
    assert json.loads(json_text(values)) == values


def test_the_table_shows_all_of_few_classes_and_the_lowest_of_many():
    scores = ClassScores.of([[3, 1, 0], [0, 2, 0], [0, 0, 0]])
    rows = by_class_table(scores, ("cat", "dog", "eel")).rows
    assert rows[0] == ("cat", "4", "100.00%", "75.00%", "dog (1)")
    assert rows[1] == ("dog", "2", "66.67%", "100.00%", "-")
    assert rows[2] == ("eel", "0", "0.00%", "0.00%", "-")
    assert rows[3] == ("mean", "6", "83.33%", "87.50%", "")
    eye = np.eye(30, dtype=int)
    eye[7] = eye[8]
    table = by_class_table(ClassScores.of(eye.tolist()), [f"c{label}" for label in range(30)])
    assert len(table.rows) == 21 and table.rows[0][0] == "c7" and "20 of 30" in table.title
    with pytest.raises(UserError, match="names is"):
        by_class_table(scores, ("cat",))


def test_public_names():
    assert fastcifar.confusion_matrix is confusion_matrix and fastcifar.precision_recall is precision_recall
