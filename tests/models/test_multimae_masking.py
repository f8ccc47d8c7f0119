from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from torch import Tensor

from attent.models.multimae import TokenOrder, draw_order, num_draws
from attent.models.multimae.masking import all_visible, dirichlet, given_order, pick

SIZES = (5, 7, 3)


def draws(batch: int, sizes: tuple[int, ...], seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(batch, num_draws(sizes), dtype=torch.float64, generator=generator)


def by_hand(*, shuffle: list[float], repair: list[float], boost: list[float]) -> Tensor:
    """Noise of one example: equal gammas, so that shares follow the boosts alone."""
    gamma = [0.5] * len(boost)
    return torch.tensor([[0.0, *gamma, *boost, *shuffle, *repair]], dtype=torch.float64)


def counts(order: TokenOrder, sizes: tuple[int, ...]) -> Tensor:
    """How many tokens of each modality are visible, ``[B, T]``."""
    parts = (~order.masked).split(sizes, dim=1)
    return torch.stack([part.sum(dim=1) for part in parts], dim=1)


def within_five_sigma(hits: Tensor, trials: int, probability: float) -> bool:
    """Whether counts of a binomial variable are no further from its mean than that."""
    sigma = math.sqrt(trials * probability * (1 - probability))
    return bool(((hits - trials * probability).abs() < 5 * sigma).all())


# --- the budget


@settings(max_examples=60, deadline=None)
@given(
    sizes=st.lists(st.integers(1, 9), min_size=1, max_size=4).map(tuple),
    fraction=st.floats(0, 1),
    alpha=st.sampled_from([0.01, 0.1, 1, 1.0, 10.0, 1e4]),
    uniformly=st.booleans(),
    seed=st.integers(0, 2**31),
)
def test_exactly_so_many_tokens_are_visible(sizes, fraction, alpha, uniformly, seed):
    total = sum(sizes)
    number = max(1, round(fraction * total))
    order = draw_order(
        draws(4, sizes, seed), sizes, number, alphas=alpha, sample_tasks_uniformly=uniformly
    )
    assert torch.equal(order.order.sort(dim=1).values, torch.arange(total).expand(4, -1))
    assert order.keep.shape == (4, number)
    assert ((~order.masked).sum(dim=1) == number).all()


def test_numbers_at_the_ends_of_their_range():
    """Zero, and as near one as a double comes: no share is undefined."""
    ends = torch.tensor([0.0, 1 - 2.0**-53], dtype=torch.float64)
    gamma, boost = torch.cartesian_prod(ends, ends, ends, ends).split(2, dim=1)
    for alpha in (1e-5, 1.0, 1e4):
        shares = dirichlet(gamma, boost, torch.full_like(gamma, alpha))
        torch.testing.assert_close(shares.sum(dim=1), torch.ones_like(shares[:, 0]))
    # Of equal numbers, equal shares: 6 of 12 tokens each.
    for value in ends:
        noise = torch.full((1, num_draws((12, 12))), float(value), dtype=torch.float64)
        assert counts(draw_order(noise, (12, 12), 12), (12, 12)).tolist() == [[6, 6]]


# --- the rule on hand-made noise


def test_shares_are_rounded_half_to_even_and_a_deficit_is_made_up_by_the_least_noise():
    # Equal shares of 5 are 2.5 and 2.5, each rounded to 2; one token is still wanted. The shuffle
    # shows tokens 2 and 0 of the first modality, 0 and 3 of the second (4 and 7 of the sequence).
    # Of the masked 1, 3, 5, 6 it is 6 whose noise is least. Visible ones come in order of theirs:
    # 7 (.1), 2 (.2), 4 (.3), 0 (.9), then the one that was added.
    noise = by_hand(
        boost=[0.5, 0.5],
        shuffle=[0.2, 0.6, 0.1, 0.9, 0.3, 0.8, 0.7, 0.4],
        repair=[0.9, 0.5, 0.2, 0.6, 0.3, 0.7, 0.4, 0.1],
    )
    order = draw_order(noise, (4, 4), 5)
    assert order.keep.tolist() == [[7, 2, 4, 0, 6]]
    # The rest in order of their noise: 1 (.5), 3 (.6), 5 (.7).
    assert order.order.tolist() == [[7, 2, 4, 0, 6, 1, 3, 5]]


def test_an_excess_loses_the_tokens_of_most_noise():
    # Equal shares of 7 are 3.5 and 3.5, each rounded to 4: all eight tokens of this sequence. The
    # one of most noise, token 5, is masked again.
    noise = by_hand(
        boost=[0.5, 0.5],
        shuffle=[0.5] * 8,
        repair=[0.4, 0.5, 0.2, 0.6, 0.3, 0.9, 0.1, 0.7],
    )
    assert draw_order(noise, (4, 4), 7).order.tolist() == [[6, 2, 4, 0, 1, 3, 7, 5]]


def test_four_equal_shares_of_six_round_to_two_each():
    # 1.5 is rounded to 2 (even) four times: 0, 1, 3, 4, 6, 7, 9, 10, as their shuffle is least. The
    # two of most noise are lost, 1 and 10.
    shuffle = [0.1, 0.2, 0.9] * 4
    repair = [0.5] * 12
    for rank, token in enumerate([7, 0, 9, 3, 6, 4, 10, 1]):
        repair[token] = rank / 10
    order = draw_order(by_hand(boost=[0.5] * 4, shuffle=shuffle, repair=repair), (3,) * 4, 6)
    assert order.keep.tolist() == [[7, 0, 9, 3, 6, 4]]


def test_a_modality_cannot_show_more_than_it_has():
    # Equal shares of 6 are 3 and 3; the first modality has one token. Two more are shown, of the
    # second's masked 4, 5, 6 (it shows 1, 2, 3) those of least noise: 5 and 4.
    noise = by_hand(
        boost=[0.5, 0.5],
        shuffle=[0.9, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6],
        repair=[0.1, 0.2, 0.3, 0.4, 0.6, 0.5, 0.7],
    )
    assert draw_order(noise, (1, 6), 6).keep.tolist() == [[0, 1, 2, 3, 5, 4]]


def test_shares_follow_the_boosts_where_the_gammas_agree():
    # One concentration of 1: shares are in the ratio of U ** (1 / 1), here 6 : 2; of 2, in that of
    # U ** (1 / 2): sqrt(0.81) : sqrt(0.01) = 9 : 1. Of eight tokens 6 and 2, of ten 9 and 1.
    rest = {"shuffle": [0.5] * 20, "repair": [0.5] * 20}
    order = draw_order(by_hand(boost=[0.6, 0.2], **rest), (10, 10), 8)
    assert counts(order, (10, 10)).tolist() == [[6, 2]]
    order = draw_order(by_hand(boost=[0.81, 0.01], **rest), (10, 10), 10, alphas=2.0)
    assert counts(order, (10, 10)).tolist() == [[9, 1]]


# --- distributions


@pytest.mark.parametrize("alpha", [0.1, 1.0, 10.0])
@pytest.mark.parametrize("number", [1, 4, 11])
def test_every_token_is_visible_equally_often(alpha, number):
    """Repair without a random choice showed token 0 in 27 % of all masks where 17 % was right."""
    trials, sizes = 20_000, (4, 4, 4)
    order = draw_order(draws(trials, sizes, number), sizes, number, alphas=alpha)
    visible = (~order.masked).sum(dim=0)
    assert within_five_sigma(visible, trials, number / 12)


def test_what_is_repaired_is_spread_over_all_tokens():
    """Equal shares of 5 in every example: 4 tokens by the shares, the fifth by repair alone."""
    trials, sizes = 20_000, (4, 4)
    noise = draws(trials, sizes)
    noise[:, :5] = 0.5
    order = draw_order(noise, sizes, 5)
    repaired = order.keep[:, 4]  # masked by the shares, so last of those that are kept
    assert within_five_sigma(torch.bincount(repaired, minlength=8), trials, 1 / 8)


def test_the_order_of_the_encoded_tokens_is_random():
    trials = 10_000
    order = draw_order(draws(trials, (3, 3)), (3, 3), 6)
    assert within_five_sigma(torch.bincount(order.keep[:, 0], minlength=6), trials, 1 / 6)


@pytest.mark.parametrize("alpha", [1e-5, 0.1, 1.0, 10.0])
def test_shares_are_of_a_dirichlet_distribution(alpha):
    batch = 20_000
    generator = torch.Generator().manual_seed(1)
    uniform = torch.rand(2, batch, 3, dtype=torch.float64, generator=generator)
    shares = dirichlet(uniform[0], uniform[1], torch.full((batch, 3), alpha, dtype=torch.float64))
    torch.testing.assert_close(shares.sum(dim=1), torch.ones(batch, dtype=torch.float64))
    # The mean is 1/3, the variance a (A - a) / (A^2 (A + 1)) with A = 3 a: 2 / (9 (3 a + 1)).
    variance = 2 / (9 * (3 * alpha + 1))
    assert shares.mean(dim=0).tolist() == pytest.approx([1 / 3] * 3, abs=5 * 0.47 / batch**0.5)
    assert shares.var(dim=0).tolist() == pytest.approx([variance] * 3, rel=0.05)
    if alpha >= 0.1:  # below, a share is 0 or 1 as far as a double can tell
        for share in shares.T:
            beta = stats.beta(alpha, 2 * alpha)
            assert stats.kstest(share.numpy(), beta.cdf).pvalue > 1e-4


@pytest.mark.parametrize("alphas", [[1.0, 2.0, 5.0], [0.2, 0.2, 8.0]])
def test_each_modality_has_its_own_concentration(alphas):
    sizes, number, batch = (80, 80, 80), 80, 4000
    order = draw_order(draws(batch, sizes), sizes, number, alphas=alphas)
    shares = counts(order, sizes).double() / number
    total = sum(alphas)
    for share, alpha in zip(shares.T, alphas, strict=True):
        mean = alpha / total
        variance = mean * (1 - mean) / (total + 1)
        # Rounding and repair move a count by less than 1.5 tokens, evenly up and down.
        assert float(share.mean()) == pytest.approx(mean, abs=5 * (variance / batch) ** 0.5 + 2e-3)
        assert float(share.var()) == pytest.approx(variance, rel=0.12, abs=1 / number**2)


def test_each_subset_of_modalities_is_as_likely():
    """At a concentration of 100, all that are in the subset get tokens."""
    trials, sizes = 14_000, (30, 30, 30)
    order = draw_order(draws(trials, sizes), sizes, 12, alphas=100.0, sample_tasks_uniformly=True)
    shown = (counts(order, sizes) > 0).long() @ torch.tensor([1, 2, 4])
    found = torch.bincount(shown, minlength=8)
    assert found[0] == 0
    assert within_five_sigma(found[1:], trials, 1 / 7)


@pytest.mark.parametrize("alpha", [0.5, 1.0, 10.0])
def test_modalities_left_out_get_almost_no_tokens(alpha):
    """Subset number k, of 1 to 7, holds the modalities of its binary digits."""
    trials, sizes = 7_000, (30, 30, 30)
    noise = draws(trials, sizes)
    subset = torch.arange(trials) % 7 + 1
    noise[:, 0] = (subset - 0.5) / 7
    shown = counts(draw_order(noise, sizes, 12, alphas=alpha, sample_tasks_uniformly=True), sizes)
    left_out = ((subset[:, None] >> torch.arange(3)) & 1) == 0
    # The rounded shares of one modality or two sum to 12, so that nothing is repaired.
    assert (shown[left_out] > 0).double().mean() < 1e-3
    alone = shown[(subset == 1) | (subset == 2) | (subset == 4)]
    assert (alone.amax(dim=1) == 12).double().mean() > 0.999


# --- concentrations


def test_a_whole_number_is_a_concentration():
    """The published code fails on an int."""
    noise = draws(50, SIZES)
    whole, real, listed = (
        draw_order(noise, SIZES, 6, alphas=alphas) for alphas in (2, 2.0, [2, 2.0, 2])
    )
    assert torch.equal(whole.order, real.order)
    assert torch.equal(whole.order, listed.order)


@pytest.mark.parametrize("alphas", [0, -1.0, [1.0, 0.0, 1.0], float("nan"), float("inf")])
def test_concentrations_are_above_zero(alphas):
    with pytest.raises(ValueError, match="alphas must be above 0"):
        draw_order(draws(1, SIZES), SIZES, 6, alphas=alphas)


def test_concentrations_are_one_for_each_modality():
    with pytest.raises(ValueError, match=r"one number or 3, one a modality; got \[1.0, 2.0\]"):
        draw_order(draws(1, SIZES), SIZES, 6, alphas=[1.0, 2.0])


@pytest.mark.parametrize("number", [0, -3, 16])
def test_the_budget_is_within_the_sequence(number):
    with pytest.raises(ValueError, match=f"num_encoded_tokens is from 1 to 15, got {number}"):
        draw_order(draws(1, SIZES), SIZES, number)


# --- where randomness comes from


def test_an_order_is_a_function_of_its_own_noise():
    noise = draws(6, SIZES)
    before = torch.get_rng_state()
    together = draw_order(noise.clone(), SIZES, 6, sample_tasks_uniformly=True)
    again = draw_order(noise, SIZES, 6, sample_tasks_uniformly=True)
    assert torch.equal(together.order, again.order)
    assert torch.equal(torch.get_rng_state(), before)
    for row in range(6):
        alone = draw_order(noise[row : row + 1], SIZES, 6, sample_tasks_uniformly=True)
        assert torch.equal(alone.order[0], together.order[row])


def test_other_noise_gives_another_order():
    orders = {tuple(row) for row in draw_order(draws(100, SIZES), SIZES, 6).keep.tolist()}
    assert len(orders) == 100


# --- orders


@given(
    seed=st.integers(0, 2**31), total=st.integers(1, 30), batch=st.integers(1, 4), data=st.data()
)
@settings(max_examples=40, deadline=None)
def test_restoring_undoes_ordering(seed, total, batch, data):
    number = data.draw(st.integers(1, total))
    noise = torch.rand(batch, total, generator=torch.Generator().manual_seed(seed))
    order = TokenOrder(noise.argsort(dim=1), number)
    tokens = torch.arange(batch * total * 2).view(batch, total, 2)
    torch.testing.assert_close(pick(pick(tokens, order.order), order.restore), tokens)
    assert torch.equal(pick(tokens, order.keep), pick(tokens, order.order)[:, :number])
    seen = [[i in row for i in range(total)] for row in order.keep.tolist()]
    assert (~order.masked).tolist() == seen


def test_an_order_by_hand():
    order = TokenOrder(torch.tensor([[2, 0, 3, 1]]), 2)
    assert order.keep.tolist() == [[2, 0]]
    assert order.restore.tolist() == [[1, 3, 0, 2]]  # token 0 stands at place 1, token 1 at 3, ...
    assert order.masked.tolist() == [[False, True, False, True]]


def test_nothing_masked_leaves_the_tokens_in_place():
    order = all_visible(3, 5)
    assert order.keep.tolist() == [[0, 1, 2, 3, 4]] * 3
    assert torch.equal(order.restore, order.keep)
    assert not order.masked.any()


# --- masks that somebody gives


@pytest.mark.parametrize("dtype", [torch.bool, torch.int64, torch.float32])
def test_given_masks_are_kept(dtype):
    masks = {
        "rgb": torch.tensor([[0, 1, 1], [1, 1, 0], [1, 1, 1]]).to(dtype),
        "depth": torch.tensor([[[1, 0], [1, 1]], [[0, 1], [1, 1]], [[1, 0], [0, 1]]]).to(dtype),
    }
    order = given_order(masks)
    # Tokens 3 to 6 are those of depth. The published code would have kept six here.
    assert order.keep.tolist() == [[0, 4], [2, 3], [4, 5]]
    expected = [[0, 1, 1, 1, 0, 1, 1], [1, 1, 0, 0, 1, 1, 1], [1, 1, 1, 1, 0, 0, 1]]
    assert order.masked.int().tolist() == expected
    assert given_order(masks, 2).num_visible == 2


@pytest.mark.parametrize(
    ("rows", "number", "said"),
    [
        ([[0, 1, 1], [0, 0, 1], [0, 0, 0]], None, "equally many .* they leave 1 to 3"),
        ([[0, 1, 1], [1, 0, 1]], 2, "masks leave 1 tokens visible, num_encoded_tokens is 2"),
        ([[1, 1, 1], [1, 1, 1]], None, "masks leave no token visible"),
    ],
)
def test_given_masks_that_cannot_be_used(rows, number, said):
    with pytest.raises(ValueError, match=said):
        given_order({"rgb": torch.tensor(rows)}, number)
