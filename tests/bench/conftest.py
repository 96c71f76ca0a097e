"""What the tests of several programs in bench/ share."""

import pytest
import torch


@pytest.fixture
def one_thread():
    """Steps so small are slow where threads wait for one another."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
