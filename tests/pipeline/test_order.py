"""Orders: each selected example once, whether held or made piece by piece, whole or by blocks."""

from __future__ import annotations

import itertools
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from unittest import mock

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given, settings
from tensordict import TensorDict
from torch import Tensor

from attent.pipeline import (
    Loading,
    Permutation,
    Step,
    TensorSource,
    adamw,
    assert_stage_laws,
    attent_simple,
    fit,
    fold,
    initial_state,
    initialize,
    order,
    passes,
    run,
    score,
    train,
)
from attent.pipeline.keyed import generator
from attent.pipeline.keys import differences
from attent.pipeline.order import (
    HELD,
    LazyOrder,
    blockwise_order,
    bucketed_order,
    first,
    keyed_order,
    longest_first,
)
from attent.pipeline.passes import Room
from attent.pipeline.stream import IndexBatches
from tests.tiny import TinyTask, tiny_source


@contextmanager
def lazily(held: int = 0, piece: int = 5, chunk: int = 7):
    """Orders of more than so few are made piece by piece, in pieces of a few."""
    with mock.patch.multiple(order, HELD=held, PIECE=piece, CHUNK=chunk):
        yield


def numbers(some: Tensor) -> list[int]:
    return some.tolist()


def selected(mask: Tensor) -> list[int]:
    return [i for i, flag in enumerate(mask.tolist()) if flag]


patiently = settings(deadline=None)
masks = st.lists(st.booleans(), min_size=1, max_size=60).map(torch.tensor)
keys = st.integers(0, 2**62)


@st.composite
def blocked(draw):
    """A mask, blocks of it, and a window."""
    sizes = draw(st.lists(st.integers(1, 9), min_size=1, max_size=12))
    count = sum(sizes)
    mask = torch.tensor(draw(st.lists(st.booleans(), min_size=count, max_size=count)))
    blocks = torch.tensor([0, *sizes]).cumsum(0)
    return mask, blocks, draw(st.integers(1, 14))


# --- orders of few are what they were


def as_it_was(mask: Tensor, key: int) -> Tensor:
    """The formula that recorded runs were made with."""
    index = mask.nonzero().squeeze(1)
    return index[torch.randperm(len(index), generator=generator(key))]


def by_length_as_it_was(mask: Tensor, key: int, lengths: Tensor, batch_size: int) -> Tensor:
    drawn = as_it_was(mask, key)
    draw = generator(fold(key, "batches"))
    whole, rest = divmod(len(drawn), batch_size)
    if whole == 0:
        return drawn
    at = int(torch.randint(len(drawn) - rest + 1, (), generator=draw))
    places = torch.arange(len(drawn))
    batch = (places - (places >= at + rest) * rest).clamp(max=whole * batch_size - 1) // batch_size
    pools = batch * max(1, round(whole / 64)) // whole
    places = lengths[drawn].argsort(stable=True)
    places = places[pools[places].argsort(stable=True)]
    small, full = places[at : at + rest], torch.cat([places[:at], places[at + rest :]])
    batches = full.reshape(whole, batch_size).sort(dim=1).values
    batches = batches[torch.randperm(whole, generator=draw)]
    return drawn[torch.cat([batches.flatten(), small.sort().values])]


@patiently
@given(masks, keys)
def test_the_bits_of_an_order_of_few_are_what_they_were(mask, key):
    found = keyed_order(mask, key)
    assert isinstance(found, Tensor)
    assert torch.equal(found, as_it_was(mask, key))


@patiently
@given(masks, keys, st.integers(1, 9))
def test_and_so_are_those_of_an_order_by_length(mask, key, batch_size):
    lengths = torch.arange(len(mask)) * 7 % 11
    found = bucketed_order(mask, key, lengths, batch_size)
    assert torch.equal(found, by_length_as_it_was(mask, key, lengths, batch_size))


def test_two_to_the_twenty_second_are_few():
    mask = torch.ones(HELD + 1, dtype=torch.bool)
    mask[17] = False
    assert torch.equal(keyed_order(mask, 3), as_it_was(mask, 3))
    mask[17] = True
    assert isinstance(keyed_order(mask, 3), LazyOrder)


# --- orders of many


@pytest.mark.parametrize("one_in", [1, 2], ids=["all", "half"])
def test_an_order_of_many_holds_each_once(one_in):
    count = HELD + 1000
    mask = torch.arange(one_in * count) % one_in == 0
    found = keyed_order(mask, 5)
    whole = found[:]
    assert isinstance(found, LazyOrder)
    assert (len(found), whole.dtype) == (count, torch.int64)
    assert torch.equal(whole.sort().values, one_in * torch.arange(count))
    assert torch.equal(found[3_000_000:3_000_100], whole[3_000_000:3_000_100])
    # Of a random order the ranks of neighbours do not go together: 4 standard errors.
    pair = torch.stack([whole[:-1], whole[1:]]).double()
    assert abs(float(torch.corrcoef(pair)[0, 1])) < 4 / count**0.5


@pytest.mark.parametrize(("one_in", "kind"), [(3, "most"), (2, "half")])
def test_an_order_of_many_is_the_same_however_it_is_held(one_in, kind):
    """All but every third, and every second: the walk over the mask, and the list."""
    mask = torch.arange(900) % one_in != 0
    with lazily(piece=64):
        found = keyed_order(mask, 5)[:].tolist()
    assert sorted(found) == selected(mask)
    permutation = Permutation(600 if kind == "most" else 450, 5)
    if kind == "half":
        listed = mask.nonzero().squeeze(1)
        assert found == listed[permutation(slice(None))].tolist()
        return
    # One after the other, each sent on until it comes to one that is selected.
    permutation = Permutation(900, 5)
    for start, end in zip(selected(mask), found, strict=True):
        at = int(permutation(torch.tensor(start)))
        while not mask[at]:
            at = int(permutation(torch.tensor(at)))
        assert at == end


@patiently
@given(masks, keys, st.integers(0, 70), st.integers(0, 70))
def test_any_part_of_a_lazy_order_is_that_of_the_whole(mask, key, a, b):
    with lazily():
        found = keyed_order(mask, key)
        if not mask.any():
            assert numbers(found[a:b]) == []
            return
        whole = numbers(found[:])
        assert sorted(whole) == selected(mask)
        assert numbers(found[a:b]) == whole[a:b]
        assert numbers(keyed_order(mask, key)[a:b]) == whole[a:b]
        assert numbers(found[-b - 1 :]) == whole[-b - 1 :]
        shorter = first(found, a)
        assert (len(shorter), numbers(shorter[:])) == (len(whole[:a]), whole[:a])
        assert numbers(shorter[b:]) == whole[:a][b:]


def test_keys_give_other_orders():
    for mask in (
        torch.ones(300, dtype=torch.bool),
        torch.arange(300) % 4 > 0,
        torch.arange(900) % 3 == 0,
    ):
        with lazily(piece=32):
            seen = {tuple(keyed_order(mask, fold(0, "order", p))[:8].tolist()) for p in range(50)}
        assert len(seen) == 50


@pytest.mark.parametrize("share", [0.4, 0.9, 1.0])
def test_in_a_lazy_order_each_is_anywhere(share):
    """Mean place over many keys: the middle, with a standard error of k / sqrt(12 keys)."""
    mask = torch.rand(200, generator=generator(1)) < share
    count, trials = int(mask.sum()), 1500
    total = torch.zeros(200)
    with lazily(piece=32):
        for p in range(trials):
            total[keyed_order(mask, fold(1, "order", p))[:]] += torch.arange(float(count))
    z = (total[mask] / trials - (count - 1) / 2) / (count / (12 * trials) ** 0.5)
    assert float(z.abs().max()) < 4.5
    assert float(z.square().mean()) < 1.5


def test_threads_may_read_one_order_at_once():
    mask = torch.arange(5000) % 7 > 1
    with lazily(piece=64):
        shared, alone = keyed_order(mask, 3), keyed_order(mask, 3)[:]
        with ThreadPoolExecutor(4) as threads:
            starts = [i * 37 % 3500 for i in range(400)]
            found = list(threads.map(lambda a: shared[a : a + 50], starts))
    assert all(torch.equal(part, alone[a : a + 50]) for a, part in zip(starts, found, strict=True))


def test_what_is_read_may_be_written_to():
    """A batch's indices are its own: no piece that is kept changes under it."""
    with lazily(piece=16):
        found = keyed_order(torch.ones(40, dtype=torch.bool), 3)
        before = found[:10].clone()
        found[:10].zero_()
        assert torch.equal(found[:10], before)


def test_a_lazy_order_is_read_side_by_side():
    with lazily(), pytest.raises(ValueError, match=r"order\[a:b\], not in steps of 2"):
        keyed_order(torch.ones(40, dtype=torch.bool), 3)[::2]


def test_batches_of_a_lazy_order():
    with lazily():
        found = keyed_order(torch.ones(25, dtype=torch.bool), 3)
        batches = list(IndexBatches(found, 6, offset=6))
        assert [len(batch) for batch in batches] == [6, 6, 7]
        assert torch.equal(torch.cat(batches), found[6:])


@patiently
@given(masks, keys, st.integers(1, 9))
def test_a_lazy_order_by_length_holds_each_once(mask, key, batch_size):
    with lazily():
        found = bucketed_order(mask, key, torch.arange(len(mask)), batch_size)[:]
    assert sorted(numbers(found)) == selected(mask)


def test_a_lazy_order_by_length_has_batches_of_similar_length():
    lengths = torch.arange(4001) * 1777 % 4001
    with lazily(piece=64), mock.patch.object(order, "POOL", 16):
        found = bucketed_order(torch.ones(4001, dtype=torch.bool), 3, lengths, 8)
        batches = [lengths[batch] for batch in IndexBatches(found, 8)]
    assert isinstance(found, LazyOrder)
    # Pools of 16 batches of 8: of 4001 lengths a batch spans about a sixteenth; drawn, most.
    spans = torch.tensor([float(batch.max() - batch.min()) for batch in batches])
    assert float(spans.median()) < 4001 / 10


# --- by blocks


def slowly(mask: Tensor, key: int, blocks: Tensor, window: int) -> list[int]:
    """`blockwise_order`, in lists."""
    bounds = blocks.tolist()
    members = [
        [i for i in range(start, end) if mask[i]] for start, end in itertools.pairwise(bounds)
    ]
    members = [some for some in members if some]
    draw = torch.randperm(len(members), generator=generator(fold(key, "blocks"))).tolist()
    found = []
    for number, at in enumerate(range(0, len(draw), window)):
        together = [i for block in draw[at : at + window] for i in members[block]]
        own = generator(fold(key, "window", number))
        found += [together[i] for i in torch.randperm(len(together), generator=own).tolist()]
    return found


@patiently
@given(blocked(), keys, st.integers(0, 110), st.integers(0, 110), st.integers(1, 20))
def test_by_blocks_it_is_what_lists_give_wherever_it_is_read(case, key, a, b, chunk):
    mask, blocks, window = case
    expected = slowly(mask, key, blocks, window)
    assert sorted(expected) == selected(mask)
    with mock.patch.object(order, "CHUNK", chunk):
        found = blockwise_order(mask, key, blocks, window)
    assert len(found) == len(expected)
    assert numbers(found[a:b]) == expected[a:b]
    assert numbers(found[:]) == expected
    assert numbers(first(found, a)[b:]) == expected[:a][b:]


@patiently
@given(blocked(), keys)
def test_windows_too_long_to_be_held_are_lazy_too(case, key):
    mask, blocks, window = case
    with lazily(held=4, piece=3):
        found = blockwise_order(mask, key, blocks, window)[:]
    assert sorted(numbers(found)) == selected(mask)
    assert visits(found, blocks, window)


def visits(found: Tensor, blocks: Tensor, window: int) -> bool:
    """Whether blocks come ``window`` at a time: one that is left is never come back to."""
    of = (torch.searchsorted(blocks, found, right=True) - 1).tolist()
    opened: list[int] = list(dict.fromkeys(of))
    groups = {block: number // window for number, block in enumerate(opened)}
    at = [groups[block] for block in of]
    return at == sorted(at)


@patiently
@given(blocked(), keys)
def test_each_block_is_read_in_one_stretch(case, key):
    mask, blocks, window = case
    assert visits(blockwise_order(mask, key, blocks, window)[:], blocks, window)


def test_a_batch_touches_few_blocks():
    """100 blocks of 50: a drawn batch of 32 touches 28 or so, one by blocks 8, 16 at a seam."""
    mask, blocks = torch.ones(5000, dtype=torch.bool), torch.arange(0, 5001, 50)
    found = blockwise_order(mask, 3, blocks)
    touched = [len((batch // 50).unique()) for batch in IndexBatches(found, 32)]
    assert max(touched) <= 16
    assert sorted(touched)[len(touched) // 2] <= 8
    assert len((keyed_order(mask, 3)[:32] // 50).unique()) > 20


def test_the_mask_may_change_afterwards():
    """A stream reads ahead; the next selection writes to the same tensor."""
    blocks = torch.arange(0, 501, 20)
    with lazily(piece=16):
        for mask in (torch.arange(500) % 3 > 0, torch.arange(500) % 3 == 0):
            orders = [blockwise_order(mask, 3, blocks), keyed_order(mask, 3)]
            before = [blockwise_order(mask, 3, blocks)[:], keyed_order(mask, 3)[:]]
            mask.logical_not_()
            assert all(torch.equal(o[:], b) for o, b in zip(orders, before, strict=True))


def test_only_windows_that_are_read_are_made():
    """A thousand million examples in 10^5 blocks, of which two windows are ever looked at."""
    mask = torch.ones(1, dtype=torch.bool).expand(10**9)  # takes no memory
    blocks = torch.arange(0, 10**9 + 1, 10**4)
    with mock.patch.object(order, "_counts", lambda mask, blocks: blocks.diff()):
        found = blockwise_order(mask, 3, blocks)
    part = found[555_555_000:555_565_000]
    assert len(found) == 10**9
    assert len(part.unique()) == 10**4
    assert len((part // 10**4).unique()) <= 16


BLOCKS = torch.tensor([0, 1, 5, 6, 13, 20, 22, 30])
"""Of quite different sizes; at a window of 3 the last one has only one of them."""


def test_by_blocks_each_is_as_early_as_late():
    """Mean place of each, over 4000 keys, is the middle; which of two blocks is first, a coin's."""
    mask, trials = torch.ones(30, dtype=torch.bool), 4000
    mask[[3, 14, 15]] = False
    count = int(mask.sum())
    places = torch.full((trials, 30), torch.nan)
    for p in range(trials):
        found = blockwise_order(mask, fold(2, "order", p), BLOCKS, 3)[:]
        places[p, found] = torch.arange(float(count))
    kept = places[:, mask]
    # No place is further from the middle than k / 2: so neither is the spread of one draw.
    assert float((kept.mean(0) - (count - 1) / 2).abs().max()) < 4.5 * count / 2 / trials**0.5
    for a, b in [(0, 1), (1, 6), (7, 29), (13, 20), (5, 21)]:  # of two blocks each
        assert float((places[:, a] < places[:, b]).float().mean()) == pytest.approx(0.5, abs=0.035)


def test_no_key_gives_the_order_of_storage_and_all_give_others():
    mask = torch.ones(30, dtype=torch.bool)
    seen = {tuple(blockwise_order(mask, key, BLOCKS, 2)[:].tolist()) for key in range(500)}
    assert len(seen) == 500
    assert tuple(range(30)) not in seen


def test_one_window_of_all_blocks_mixes_everything():
    """Ranks of neighbours in storage do not go together, as they do with windows of one block."""
    mask, blocks = torch.ones(4000, dtype=torch.bool), torch.arange(0, 4001, 40)
    together = []
    for window in (1, 100):
        place = blockwise_order(mask, 3, blocks, window)[:].argsort().double()
        together.append(float(torch.corrcoef(torch.stack([place[:-1], place[1:]]))[0, 1]))
    assert together[0] > 0.9
    assert abs(together[1]) < 4 / 4000**0.5


def test_by_blocks_and_by_length():
    """40 blocks of 100, batches of 16: those of a window of 8 blocks are of similar length."""
    mask, blocks = torch.arange(4000) % 9 > 0, torch.arange(0, 4001, 100)
    lengths = torch.arange(4000) * 1777 % 4001
    found = blockwise_order(mask, 3, blocks, 8, lengths=lengths, batch_size=16)
    whole = found[:]
    assert sorted(numbers(whole)) == selected(mask)
    assert visits(whole, blocks, 8)
    spans = torch.tensor(
        [float(lengths[b].max() - lengths[b].min()) for b in IndexBatches(found, 16)]
    )
    # 5 windows of about 711: 44 batches each, of a fortieth of all lengths; one mixed at a seam.
    assert float(spans.median()) < 4000 / 30
    assert int((spans > 4000 / 10).sum()) <= 5


@patiently
@given(blocked(), keys, st.integers(1, 9), st.integers(0, 30))
def test_by_blocks_and_by_length_each_is_there_once(case, key, batch_size, held):
    mask, blocks, window = case
    lengths = torch.arange(len(mask)) * 7 % 11
    with lazily(held=held):
        found = blockwise_order(mask, key, blocks, window, lengths=lengths, batch_size=batch_size)
        assert sorted(numbers(found[:])) == selected(mask)
        assert visits(found[:], blocks, window)


@pytest.mark.parametrize(
    ("window", "end", "message"),
    [(0, 10, "window is at least 1 block, got 0"), (2, 9, "blocks end at 9, the mask at 10")],
)
def test_windows_and_blocks_that_are_none_are_refused(window, end, message):
    with pytest.raises(ValueError, match=message):
        blockwise_order(torch.ones(10, dtype=torch.bool), 0, torch.tensor([0, 4, end]), window)


# --- the stages


class Shards(TensorSource):
    """The tiny examples in shards of 4, and a note of what was asked for."""

    def __init__(self, count: int = 61, window: int = 2) -> None:
        super().__init__(tiny_source(count).fields)
        self.blocks = torch.arange(0, count + 4, 4).clamp(max=count)
        self.window = window
        self.asked: list[list[int]] = []

    def fetch(self, index: Tensor) -> TensorDict:
        self.asked.append(index.tolist())
        return super().fetch(index)


class Texts(Shards):
    """With lengths, too."""

    def __init__(self, count: int = 61) -> None:
        super().__init__(count)
        self.lengths = 1 + torch.arange(count) * 17 % 23


def simple(task, source, **options):
    step = Step(batch_size=6)
    trainer = train(task, source, optimizer=adamw(0.05), step=step, observe=True, **options)
    return attent_simple(source, train=trainer, epochs=3, ratio=0.7)


def final(make, steps: int, workers: int = 0) -> TensorDict:
    task, source = TinyTask(dropout=0.2, noise=0.1), make()
    tick = simple(task, source, steps=steps, loading=Loading(workers=workers))
    return fit(tick, initial_state(task, source, seed=2))


@pytest.mark.parametrize("make", [Shards, Texts])
def test_training_reads_a_window_of_shards_at_a_time(make):
    task, source = TinyTask(), make()
    fit(simple(task, source, steps=3), initial_state(task, source, seed=2))
    first_pass = torch.tensor([i for batch in source.asked[:10] for i in batch])
    assert sorted(numbers(first_pass)) == list(range(61))
    assert visits(first_pass, source.blocks, 2)
    second = source.asked[10:20]  # a batch of the selected ones after another
    assert all(len({i // 4 for i in batch}) <= 4 * 2 for batch in second)


@pytest.mark.parametrize("make", [Shards, Texts, lambda: tiny_source(61)])
def test_where_ticks_begin_and_end_changes_no_bit(make):
    with lazily(piece=16):
        reference = final(make, 1)
        assert int(reference["clock", "seen"]) == 183
        for steps, workers in ((7, 0), (50, 2)):
            assert differences(reference, final(make, steps, workers)) == []


def test_a_resumed_run_goes_on_with_the_same_batches():
    task, source = TinyTask(dropout=0.2, noise=0.1), Shards()
    tick = simple(task, source, steps=4)
    state = initialize(tick, initial_state(task, source, seed=2))
    for _ in range(4):
        state = run(tick, state)
    assert 0 < int(state["clock", "offset"]) < 61
    fresh = TinyTask(dropout=0.2, noise=0.1)
    resumed = fit(simple(fresh, Shards(), steps=4), state)
    assert differences(final(Shards, 1), resumed) == []


def test_a_train_stage_on_shards_keeps_the_laws():
    task, source = TinyTask(dropout=0.3, noise=0.3), Shards(20)
    stage = train(task, source, optimizer=adamw(0.05), step=Step(batch_size=4), steps=3)
    state = initialize(stage, initial_state(task, source, seed=5))
    state["plan", "budget"] = torch.tensor(60)
    assert_stage_laws(stage, state)


def test_scoring_reads_shard_by_shard():
    task, source = TinyTask(), Texts()
    assert longest_first(source) == range(61)
    stage = score(task, source, batch_size=6)
    state = initialize(stage, initial_state(task, source, seed=5))
    state["plan", "score_due"] = torch.tensor(True)
    state = run(stage, state)
    assert [i for batch in source.asked for i in batch] == list(range(61))
    assert int(state["ledger", "forwarded_tokens"]) == int(source.lengths.sum())


@patiently
@given(
    st.lists(st.integers(1, 9), min_size=1, max_size=40),
    st.integers(0, 39),
    st.integers(1, 400),
    st.integers(0, 100),
    st.booleans(),
)
def test_a_budget_in_tokens_cuts_a_pass_where_the_sum_of_its_lengths_says(
    some, offset, left, spent_before, lazy
):
    lengths, offset = torch.tensor(some), min(offset, len(some) - 1)
    mask = torch.ones(len(some), dtype=torch.bool)
    with lazily(held=0 if lazy else HELD), mock.patch.object(passes, "CHUNK", 3):
        drawn = keyed_order(mask, 3)
        ends = lengths[drawn[:]].cumsum(0)
        before = int(ends[offset - 1]) if offset else 0
        spent = spent_before + before
        room = Room(offset, len(some), spent, spent + left, 0, lengths)
        cut = room.cut(drawn)
    reached = [i for i in range(len(some)) if int(ends[i]) - before >= left and i >= offset]
    assert cut == replace(room, end=reached[0] + 1 if reached else len(some))
