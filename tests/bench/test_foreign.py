"""Other people's tests, run on ours: what the runner counts, what the adapters put in place, what is refused."""

import json
import sys
import types

import pytest

from bench.foreign import __main__ as program
from bench.foreign.record import find_reason
from bench.foreign.suites import SUITES, Suite, choose
from fastcifar.errors import UserError

THEIRS = """
import unittest

import pytest

from theirs import optimizers


@pytest.mark.parametrize("optimizer", optimizers)
def test_is_theirs(optimizer):
    assert optimizer != "ours"


@pytest.mark.parametrize("optimizer", optimizers)
def test_is_ours(optimizer):
    assert optimizer == "ours"


@pytest.mark.parametrize("optimizer", optimizers)
def test_of_no_use(optimizer):
    pytest.skip("needs a GPU")


@pytest.mark.parametrize("optimizer", optimizers)
def test_breaks_after_a_pass(optimizer, request):
    request.addfinalizer(lambda: 1 / 0)


class TestTheirOwn(unittest.TestCase):
    def test_none_of_ours(self):
        raise AssertionError
"""
ADAPTER = """
import theirs

theirs.optimizers = ["ours"]
REASONS = {"*::test_is_theirs*: *assert*": "asks for another", "*::test_breaks*: KeyError*": "another error"}


def is_ours(item):
    return hasattr(item, "callspec")
"""


@pytest.fixture
def checkouts(tmp_path, monkeypatch):
    """A folder with a suite of its own, by the name of `fake`, and its adapter."""
    folder = tmp_path / "project"
    folder.mkdir()
    (folder / "test_theirs.py").write_text(THEIRS)
    (folder / "theirs.py").write_text('optimizers = ["theirs", "another"]\n')
    (folder / "fake_adapter.py").write_text(ADAPTER)
    monkeypatch.setitem(SUITES, "fake", Suite("project", ("test_theirs.py", "test_gone.py"), "fake_adapter"))
    return tmp_path


def test_a_suite_of_which_no_test_is_selected_any_more_fails(checkouts, capsys):
    adapter = checkouts / "project/fake_adapter.py"
    adapter.write_text(adapter.read_text().replace('return hasattr(item, "callspec")', "return False"))
    assert program.main(["--checkouts", str(checkouts)]) == 1
    assert "NO TEST: fake selects none of its tests any more" in capsys.readouterr().out


def test_a_suite_is_run_on_ours_counted_and_written(checkouts, capsys):
    path = checkouts / "results.json"
    assert program.main(["--checkouts", str(checkouts), "--save", str(path)]) == 1, "a failure without a reason"
    (result,) = json.loads(path.read_text())
    assert result["suite"] == "fake" and result["version"].startswith("sha256 ")
    counts = {name: result[name] for name in ("tests", "passed", "failed", "skipped", "left_out")}
    assert counts == {"tests": 4, "passed": 1, "failed": 2, "skipped": 1, "left_out": 1}
    assert result["skips"] == {"needs a GPU": 1}
    reasons = {test.split("::")[1]: failure["reason"] for test, failure in result["failures"].items()}
    assert reasons == {"test_is_theirs[ours]": "asks for another", "test_breaks_after_a_pass[ours]": None}
    printed = capsys.readouterr().out
    assert "| fake | sha256 " in printed and " | 4 | 1 | 2 | 1 |" in printed
    assert "1 x asks for another" in printed and "NO REASON: test_theirs.py::test_breaks_after_a_pass[ours]" in printed


def test_failures_that_all_have_reasons_are_no_failure_of_the_run(checkouts):
    tests = checkouts / "project" / "test_theirs.py"
    tests.write_text(THEIRS.replace("1 / 0", "None"))
    assert program.main(["--checkouts", str(checkouts)]) == 0


def test_a_suite_that_cannot_be_collected_has_failed(checkouts):
    (checkouts / "project" / "test_theirs.py").write_text("import a_module_that_is_nowhere\n")
    result = program.run("fake", SUITES["fake"], checkouts)
    (failure,) = result["failures"].values()
    assert result["failed"] == 1 and "a_module_that_is_nowhere" in failure["error"] and failure["reason"] is None


def test_an_adapter_that_does_not_fit_ends_in_one_line(checkouts):
    (checkouts / "project" / "theirs.py").unlink()
    with pytest.raises(UserError, match=r"pytest could not run the suite fake: .*No module named 'theirs'"):
        program.run("fake", SUITES["fake"], checkouts)


def test_suites_are_those_that_are_there_and_unknown_ones_are_refused(checkouts):
    assert choose(checkouts, None) == choose(checkouts, "fake") == ["fake"]
    with pytest.raises(UserError, match=r"suite is 'fack'; allowed: pytorch-optim, .*fake"):
        choose(checkouts, "fack")
    with pytest.raises(UserError, match=r"lacks the tests; allowed: a folder with pytorch/test/test_optim.py"):
        choose(checkouts, "pytorch-optim")


def test_the_first_pattern_that_matches_gives_the_reason():
    reasons = {"*::test_a[[]ours]: *": "exactly", "*::test_a*: KeyError*": "an error"}
    assert find_reason("f.py::test_a[ours]: KeyError: 1", reasons) == "exactly"
    assert find_reason("f.py::test_a[other]: KeyError: 1", reasons) == "an error"
    assert find_reason("f.py::test_a[other]: TypeError", reasons) is None


def test_muon_is_given_the_matrices_of_any_kind_of_list():
    import torch

    from bench.foreign.optimizers import Muon

    matrix, vector = torch.nn.Parameter(torch.ones(2, 3)), torch.nn.Parameter(torch.ones(3))
    for parameters in (
        [matrix, vector],
        iter([matrix, vector]),
        [("a", matrix), ("b", vector)],
        [{"params": matrix}, {"params": [vector]}],
        [{"params": iter([matrix, vector])}],
    ):
        assert [group["params"] for group in Muon(parameters).param_groups] == [[matrix]]
    with pytest.raises(UserError, match="2 or more dimensions"):
        Muon([vector])


def test_a_stand_in_is_made_only_where_there_is_no_module(monkeypatch):
    from bench.peers.adapt import stand_in

    known = dict(sys.modules)
    stand_in("json.no_such_part", answer=42)
    assert sys.modules["json"] is known["json"] and sys.modules["json.no_such_part"].answer == 42
    stand_in("a_package_that_is_nowhere.part", answer=42)
    assert isinstance(sys.modules["a_package_that_is_nowhere"], types.ModuleType)
    for name in sys.modules.keys() - known.keys():
        monkeypatch.delitem(sys.modules, name)
