"""`Rank`: the place of a process among torchrun's, by its variables."""

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from fastcifar import launch
from fastcifar.errors import UserError
from fastcifar.launch import Rank

NAMES = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE")
NUMBERS = st.integers(0, 20).map(str)
WORDS = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=12)


def here(*values, **others):
    with pytest.MonkeyPatch.context() as patch:
        for name in (*NAMES, "OMP_NUM_THREADS"):
            patch.delenv(name, raising=False)
        for name, value in {**dict(zip(NAMES, values, strict=False)), **others}.items():
            patch.setenv(name, value)
        rank = Rank.here()
        return rank, rank.threads


@given(st.tuples(*[NUMBERS | WORDS] * 4))
@example(("3", "4", "1", "2"))
@example(("3", "4", "1", "5"))
@example(("٣", "4", "1", "2"))
@example(("-1", "4", "1", "2"))
def test_it_is_read_whole_or_refused_in_a_line(values):
    try:
        rank, _ = here(*values)
    except UserError as error:
        assert "\n" not in str(error) and "allowed: " in str(error)
        return
    assert (rank.number, rank.count, rank.local, rank.local_count) == tuple(map(int, values))
    assert 0 <= rank.number < rank.count and 0 <= rank.local < rank.local_count <= rank.count
    assert rank.is_first == (rank.number == 0)


@pytest.mark.parametrize("count", range(4))
def test_without_all_of_the_variables_a_process_is_alone(count):
    assert here(*["1", "2", "1", "2"][:count]) == (Rank(0, 1, 0, 1), None)


@pytest.mark.parametrize(
    ("local_count", "omp", "threads"),
    [
        ("1", {}, None),
        ("2", {}, 4),
        ("3", {}, 2),
        ("20", {}, 1),
        ("2", {"OMP_NUM_THREADS": "1"}, 4),
        ("2", {"OMP_NUM_THREADS": "3"}, None),
    ],
)
def test_the_cores_of_a_machine_are_split_unless_somebody_said_how_many(monkeypatch, local_count, omp, threads):
    monkeypatch.setattr(launch, "cores", lambda: 8.5)
    assert here("0", "40", "0", local_count, **omp)[1] == threads
