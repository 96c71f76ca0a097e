"""Every error class of the project goes to another process and back whole, as a process pool sends it."""

import copy
import importlib
import pickle
import pkgutil

import pytest

import fastcifar
from fastcifar.data import DownloadError

ARGUMENTS = {DownloadError: ("https://a.place", "no network")}
"""What classes are made of that take more than a message."""


def of_the_project(base):
    for module in pkgutil.walk_packages(fastcifar.__path__, "fastcifar."):
        if not module.name.endswith("__main__"):
            importlib.import_module(module.name)
    found, waiting = [], [base]
    while waiting:
        waiting += (subclasses := type.__subclasses__(waiting.pop()))
        found += [each for each in subclasses if each.__module__.startswith("fastcifar")]
    return sorted(set(found), key=lambda each: each.__name__)


@pytest.mark.parametrize("make", [copy.copy, copy.deepcopy, lambda value: pickle.loads(pickle.dumps(value))])
def test_every_error_is_copied_and_pickled_whole(make):
    classes = of_the_project(BaseException)
    expected = {"UserError", "DownloadError", "NonFiniteLoss", "OutOfMemory", "RenamedWarning"}
    assert expected <= {each.__name__ for each in classes}
    for each in classes:
        error = each(*ARGUMENTS.get(each, ("a message",)))
        error.place = ["epoch", 3]
        made = make(error)
        assert type(made) is each and str(made) == str(error) and made.args == error.args
        assert vars(made) == vars(error)


def test_a_failed_download_says_from_where_and_why():
    error = DownloadError("https://a.place", "no network")
    assert str(error).startswith("cannot download https://a.place: no network; allowed: --data-dir with a folder")
