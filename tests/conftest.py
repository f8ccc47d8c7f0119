"""What tests share: a task small enough to reason about, and sources that misbehave."""

from __future__ import annotations

import pytest
import torch

from attent.pipeline import TensorSource, bare_state
from tests.tiny import TinyTask, tiny_source

# Models here are so small that a second thread only waits for the first.
torch.set_num_threads(1)


@pytest.fixture
def task() -> TinyTask:
    return TinyTask()


@pytest.fixture
def source() -> TensorSource:
    return tiny_source()


@pytest.fixture
def bare():
    """A state of ten examples without a model, whose losses are 0.0, 0.1, ... 0.9."""
    state = bare_state(10, seed=3)
    state["scores", "loss"] = torch.arange(10) / 10
    state["scores", "step"] = torch.zeros(10, dtype=torch.int32)
    return state


@pytest.fixture(scope="module")
def one_thread():
    """For thousands of draws from a few examples: threads would cost more than they give."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
