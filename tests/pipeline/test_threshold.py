"""Exact top-k as a mask: torch.topk is the definition, ties are nobody's favour."""

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given, settings

from attent.pipeline import count, generator, threshold, top_k_mask

INF = float("inf")
# Both zeros, denormals, the smallest normal, the largest finite, neighbours of 1 (1 + 2^-23).
SPECIAL = [INF, -INF, 0.0, -0.0, 1e-45, -1e-45, 1.1754944e-38, 3.4028235e38, -3.4028235e38, 1.0]
SPECIAL += [1.0 + 2**-23, -1.0, -1.0 - 2**-23]

numbers = st.sampled_from(SPECIAL) | st.floats(width=32, allow_nan=False)
vectors = st.lists(numbers, min_size=1, max_size=50) | st.lists(
    st.sampled_from(SPECIAL[:4]), min_size=1, max_size=50
)


@pytest.fixture(autouse=True, scope="module")
def one_thread():
    # Thousands of draws from a few examples: threads would cost more than they give.
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def selected(values: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    return values[mask].sort(descending=True).values


@settings(deadline=None)
@given(vectors, st.data(), st.integers(0, 2**63 - 1))
def test_selects_what_topk_selects(numbers, data, key):
    values = torch.tensor(numbers, dtype=torch.float32)
    k = data.draw(st.integers(1, len(values)))
    mask = top_k_mask(values, k, key)
    assert mask.dtype == torch.bool
    assert mask.shape == values.shape
    assert int(mask.sum()) == k
    # As multisets; -0.0 equals 0.0.
    assert torch.equal(selected(values, mask), values.topk(k).values)
    assert torch.equal(mask, top_k_mask(values, k, key))


@settings(deadline=None, max_examples=50)
@given(vectors, st.data(), st.sampled_from([1, 2, 3, 7]), st.sampled_from([0, 1 << 22]))
def test_chunks_change_nothing(numbers, data, chunk, listed):
    values = torch.tensor(numbers, dtype=torch.float32)
    k = data.draw(st.integers(1, len(values)))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(threshold, "_LISTED", listed)
        whole = top_k_mask(values, k, 5)
        assert torch.equal(selected(values, whole), values.topk(k).values)
        patch.setattr(threshold, "CHUNK", chunk)
        assert torch.equal(top_k_mask(values, k, 5), whole)


@pytest.mark.parametrize("k", [1, 1000, 99_999, 199_999, 200_000])
def test_many_values(k, monkeypatch):
    monkeypatch.setattr(threshold, "CHUNK", 30_000)
    smooth = torch.randn(200_000, generator=generator(1))
    for values in (smooth, (smooth * 50).round() / 50):  # all different; a few hundred levels
        mask = top_k_mask(values, k, 0)
        assert int(mask.sum()) == k
        assert torch.equal(selected(values, mask), values.topk(k).values)


def test_the_input_is_left_alone():
    values = torch.tensor([-0.0, 0.0, 2.0, -INF])
    top_k_mask(values, 2, 0)
    assert values.tolist() == [-0.0, 0.0, 2.0, -INF]
    assert torch.signbit(values).tolist() == [True, False, False, True]


def test_both_zeros_tie():
    values = torch.tensor([-0.0, 0.0])
    assert {top_k_mask(values, 1, key).tolist()[0] for key in range(20)} == {True, False}


@pytest.mark.usefixtures("ties")
def test_another_key_breaks_ties_otherwise():
    values = torch.ones(100)
    assert not torch.equal(top_k_mask(values, 50, 1), top_k_mask(values, 50, 2))


@pytest.fixture(params=["listed", "noise"])
def ties(request, monkeypatch):
    """Both ways of taking ties: from a list of a few, by noise where there are many."""
    if request.param == "noise":
        monkeypatch.setattr(threshold, "_LISTED", 0)


@pytest.mark.usefixtures("ties")
def test_ties_favour_no_position():
    # 4 is always taken; one of the three 3's too; the 1's never.
    values = torch.tensor([3.0, 1.0, 3.0, 4.0, 1.0, 3.0])
    taken = sum(top_k_mask(values, 2, key).long() for key in range(1500))
    assert taken[[1, 3, 4]].tolist() == [0, 1500, 0]
    # Each 3: 500 expected, standard deviation sqrt(1500 * 1/3 * 2/3) = 18.3; five of them are 91.
    assert (taken[[0, 2, 5]] - 500).abs().max() < 91


@pytest.mark.usefixtures("ties")
def test_equal_scores_favour_no_position():
    taken = sum(top_k_mask(torch.zeros(8), 2, key).long() for key in range(2000))
    # 2000 * 2/8 = 500 each, standard deviation sqrt(2000 * 1/4 * 3/4) = 19.4; five are 97.
    assert int(taken.sum()) == 4000
    assert (taken - 500).abs().max() < 97


@pytest.mark.parametrize("k", [0, -1, 4])
def test_k_out_of_range(k):
    with pytest.raises(ValueError, match=rf"k must be from 1 to 3, got {k}"):
        top_k_mask(torch.zeros(3), k, 0)


@pytest.mark.parametrize("values", [torch.zeros(3, dtype=torch.float64), torch.zeros(3, 1)])
def test_values_of_another_kind(values):
    with pytest.raises(ValueError, match="values are a float32 vector, not"):
        top_k_mask(values, 1, 0)


@pytest.mark.parametrize(
    ("ratio", "num_examples", "k"),
    [
        (0.29, 100, 29),  # 0.29 * 100 = 28.999999999999996
        (15 / 22, 22, 15),  # 15/22 * 22 = 14.999999999999998, published as 14
        (0.7, 10, 7),
        (0.25, 10, 2),  # floor(2.5)
        (0.999, 10, 9),  # floor, not round
        (0.001, 10, 1),  # never none
        (1.0, 7, 7),
        (1e-9, 1, 1),
    ],
)
def test_count_by_hand(ratio, num_examples, k):
    assert count(ratio, num_examples) == k


def test_count_gives_back_every_k():
    wrong = [(k, n) for n in range(1, 301) for k in range(1, n + 1) if count(k / n, n) != k]
    assert wrong == []


@given(st.floats(0, 1, exclude_min=True), st.integers(1, 10**8))
def test_count_is_in_range(ratio, num_examples):
    k = count(ratio, num_examples)
    assert 1 <= k <= num_examples
    assert k - 1e-6 <= max(1, ratio * num_examples) + 1e-7 < k + 1


@pytest.mark.parametrize("ratio", [0, -0.1, 1.0001, float("nan")])
def test_ratio_out_of_range(ratio):
    with pytest.raises(ValueError, match=r"ratio must be in \(0, 1\], got"):
        count(ratio, 10)
