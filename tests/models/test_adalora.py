"""AdaLoRA's ranks: given up as peft does it, from what is kept with the moments alone."""

from __future__ import annotations

import copy
import warnings
from typing import Any

import pytest
import torch
from peft import AutoPeftModelForCausalLM

from attent.models.adalora import (
    KEPT,
    RankAllocatingAdamW,
    note_ranks,
    rank_options,
    singular_values,
)
from attent.models.adapters import with_adapters
from attent.models.language import LanguageModel, build_causal
from attent.pipeline.keyed import generator

STEPS = 40


def adapted(rank=2, initial=4, **options) -> Any:
    with torch.random.fork_rng(), warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        torch.manual_seed(0)
        causal = build_causal("llama:dim=16,depth=2,num_heads=2", vocab_size=50)
        return with_adapters(
            causal, "adalora", rank=rank, alpha=4, target_modules="q_proj,v_proj,up_proj",
            initial_rank=initial, **options,
        )  # fmt: skip


def trained(causal, steps=STEPS, every=4, again=None):
    """Some steps; ``again``: made anew from its state before so many of them. Ranks by step."""
    model = LanguageModel(causal).train()
    params = [p for p in model.parameters() if p.requires_grad]
    make = lambda: RankAllocatingAdamW(params, causal, every=every, lr=0.02, weight_decay=0.0)  # noqa: E731
    optimizer, ranks = make(), []
    for step in range(1, steps + 1):
        if step == again:
            kept = copy.deepcopy(optimizer.state_dict())
            optimizer = make()
            optimizer.load_state_dict(kept)
            causal.base_model.rankallocator.reset_ipt()
        ids = torch.randint(0, 50, (4, 12), generator=generator(step))
        model(ids, ids).sum().backward()
        optimizer.param_groups[0]["progress"] = step / steps
        optimizer.step()
        optimizer.zero_grad()
        ranks.append(sum(int((p != 0).sum()) for p in singular_values(causal).values()))
    return ranks, optimizer


def test_ranks_fall_to_the_budget_and_stay():
    causal = adapted(rank_warmup=0.2, rank_final=0.25)
    ranks, _ = trained(causal)
    assert ranks[7] == 6 * 4  # 6 matrices; up to a fifth of the steps
    assert ranks[-1] == 6 * 2
    # mask_to_budget leaves what is above the k-th smallest: exactly the budget without ties.
    assert set(ranks[30:]) == {12}
    kept = [tuple((p != 0).flatten().tolist()) for p in singular_values(causal).values()]
    assert len({sum(row) for row in kept}) > 1  # some matrices have more of them than others


def test_the_schedule_is_cubic_by_hand():
    """Budget 12 + 12 (1 - (t - .2) / .55)^3 after the t-th part, at every fourth step."""
    ranks, _ = trained(adapted(rank_warmup=0.2, rank_final=0.25))
    for step in (12, 16, 20, 24, 28):
        budget = int(12 + 12 * (1 - (step / STEPS - 0.2) / 0.55) ** 3)
        assert ranks[step - 1] == budget


def test_it_is_what_peft_does_by_itself():
    """The same steps with peft's own update_and_allocate after a plain AdamW."""
    ours, theirs = (
        adapted(rank_warmup=0.1, rank_final=0.5),
        adapted(rank_warmup=0.1, rank_final=0.5),
    )
    trained(ours, every=5)
    config = theirs.peft_config["default"]
    config.total_step, config.tinit, config.tfinal, config.deltaT = STEPS, 4, 20, 5
    model = LanguageModel(theirs).train()
    params = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(params, lr=0.02, weight_decay=0.0)
    for step in range(1, STEPS + 1):
        ids = torch.randint(0, 50, (4, 12), generator=generator(step))
        model(ids, ids).sum().backward()
        optimizer.step()
        if step <= 20:
            theirs.base_model.update_and_allocate(step)
        else:
            allocator = theirs.base_model.rankallocator
            allocator.mask_using_rank_pattern(theirs.base_model.model, config.rank_pattern)
        optimizer.zero_grad()
    for (name, a), (_, b) in zip(
        singular_values(ours).items(), singular_values(theirs).items(), strict=True
    ):
        assert torch.equal(a == 0, b == 0), name
        torch.testing.assert_close(a, b)


def test_its_penalty_is_that_of_peft():
    """The gradient of peft's own loss, which has the penalty in it (orth_reg_weight 0.5)."""
    ours, theirs = adapted(), adapted()
    ids = torch.randint(0, 50, (4, 12), generator=generator(1))
    theirs(input_ids=ids, labels=ids).loss.backward()
    model = LanguageModel(ours).train()
    params = [p for p in model.parameters() if p.requires_grad]
    optimizer = RankAllocatingAdamW(params, ours, orthogonality=0.5, lr=0.0, weight_decay=0.0)
    model(ids, ids).mean().backward()
    without = [p.grad.clone() for p in params if p.grad is not None]
    optimizer.step()
    expected = [p.grad for p in theirs.parameters() if p.grad is not None]
    found = [p.grad for p in params if p.grad is not None]
    assert len(found) == len(expected) == 18
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6)
    assert sum(float((a - b).norm()) for a, b in zip(found, without, strict=True)) > 0.01


@pytest.mark.parametrize("again", [3, 17, 38])
def test_made_anew_it_goes_on_the_same(again):
    whole, resumed = adapted(), adapted()
    ranks, _ = trained(whole)
    assert trained(resumed, again=again)[0] == ranks
    for a, b in zip(whole.parameters(), resumed.parameters(), strict=True):
        assert torch.equal(a, b)


def test_all_that_is_kept_is_of_the_shape_of_its_parameter():
    _, optimizer = trained(adapted(), steps=2)
    for p, kept in optimizer.state.items():
        assert {kept[name].shape for name in (*KEPT, "exp_avg")} == {p.shape}


def test_without_ranks_to_give_up_it_is_adamw():
    ours, plain = adapted(2, 2), adapted(2, 2)
    ranks, _ = trained(ours, steps=8)
    assert set(ranks[1:]) == {12}
    model = LanguageModel(plain).train()
    optimizer = torch.optim.AdamW(
        [p for p in model.parameters() if p.requires_grad], lr=0.02, weight_decay=0.0
    )
    for step in range(1, 9):
        ids = torch.randint(0, 50, (4, 12), generator=generator(step))
        model(ids, ids).sum().backward()
        optimizer.step()
        optimizer.zero_grad()
    for a, b in zip(ours.parameters(), plain.parameters(), strict=True):
        assert torch.equal(a, b)


def test_the_ranks_that_are_left_are_saved_and_loaded(tmp_path):
    causal = adapted()
    base = tmp_path / "base"
    causal.get_base_model()  # adapters are in its layers: the model below them is saved apart
    plain = build_causal("llama:dim=16,depth=2,num_heads=2", vocab_size=50)
    own = {n.replace(".base_layer", ""): v for n, v in causal.base_model.model.state_dict().items()
           if "lora_" not in n and "ranknum" not in n}  # fmt: skip
    plain.load_state_dict(own)
    plain.save_pretrained(base)
    causal.peft_config["default"].base_model_name_or_path = str(base)
    trained(causal)
    ids = torch.arange(20)[None]
    expected = causal.eval()(ids).logits.detach()
    note_ranks(causal)
    causal.save_pretrained(tmp_path / "adapter")
    with warnings.catch_warnings():  # of peft, which looks for LoRA's patterns in AdaLoRA's
        warnings.filterwarnings("ignore", "The following rank_pattern keys", RuntimeWarning)
        warnings.simplefilter("ignore", FutureWarning)
        loaded = AutoPeftModelForCausalLM.from_pretrained(tmp_path / "adapter")
    torch.testing.assert_close(loaded.eval()(ids).logits, expected)
    sizes = {name: int((p != 0).sum()) for name, p in singular_values(causal).items()}
    assert sum(sizes.values()) == 12
    assert 0 in sizes.values()  # of which one, that is 0, is kept
    assert [len(p) for p in singular_values(loaded).values()] == [
        max(1, size) for size in sizes.values()
    ]


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ((4, 3, 0.1, 0.3), "an initial rank of 3 is below the rank of 4"),
        ((4, 6, 0.6, 0.4), "together they must be below 1"),
        ((4, 6, -0.1, 0.4), "a warm-up of -0.1"),
    ],
)
def test_schedules_that_cannot_be(given, said):
    with pytest.raises(ValueError, match=said):
        rank_options(*given)
    with pytest.raises(ValueError, match="every 1 step or more"):
        RankAllocatingAdamW([torch.zeros(1, requires_grad=True)], torch.nn.Identity(), every=0)
