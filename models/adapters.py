"""Adapters by peft on models of transformers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

from torch import nn

from attent.models.adalora import rank_options
from attent.models.language import quietly

Adapter = Literal["lora", "dora", "adalora", "full"]


def with_adapters(
    model: nn.Module,
    adapter: Adapter,
    *,
    rank: int = 128,
    alpha: float = 128,
    dropout: float = 0.0,
    target_modules: str | Sequence[str] = "all-linear",
    head: Sequence[str] | None = None,
    initial_rank: int | None = None,
    rank_warmup: float = 0.1,
    rank_final: float = 0.3,
) -> nn.Module:
    """The model with adapters by peft, alone trainable; ``full`` leaves it as it is.

    Args:
        model: of transformers.
        adapter: ``lora`` (Hu et al., ICLR 2022), ``dora`` (Liu et al., ICML 2024) or ``adalora``
            (Zhang et al., ICLR 2023: singular values and orthogonal factors; ranks are given up
            by `attent.models.adalora.RankAllocatingAdamW`).
        rank: of each adapter; of AdaLoRA, the mean in the end.
        alpha: what it adds is multiplied by ``alpha / rank``.
        dropout: of its input, in [0, 1).
        target_modules: names of the layers, ``q_proj,v_proj`` or a list; ``all-linear`` for all but
            the head.
        head: of a classifier, the modules that are trained beside the adapters, all of them.
        initial_rank: of each adapter of AdaLoRA at first; None for one and a half times the rank.
        rank_warmup: share of the budget in which all of AdaLoRA's ranks stay.
        rank_final: share of the budget, at its end, in which those that are left stay.

    Raises:
        ValueError: no layer of those names, or a schedule of ranks that cannot be.
    """
    if adapter == "full":
        return model
    from peft import AdaLoraConfig, LoraConfig, get_peft_model

    names = target_modules.split(",") if isinstance(target_modules, str) else list(target_modules)
    names = [name.strip() for name in names]
    targets: Any = names[0] if names == ["all-linear"] else _there(model, names)
    options: dict[str, Any] = {
        "lora_alpha": alpha,
        "lora_dropout": dropout,
        "target_modules": targets,
        "task_type": "CAUSAL_LM" if head is None else "SEQ_CLS",
        "modules_to_save": None if head is None else list(head),
    }
    if adapter == "adalora":
        initial = initial_rank or round(1.5 * rank)
        config: Any = AdaLoraConfig(
            **rank_options(rank, initial, rank_warmup, rank_final), **options
        )
    else:
        config = LoraConfig(r=rank, use_dora=adapter == "dora", **options)
    with quietly():
        return get_peft_model(model, config)  # type: ignore[arg-type]


def _there(model: nn.Module, names: Sequence[str]) -> list[str]:
    """The names, each of which some layer must have: peft passes over those that none has."""
    paths = [path for path, _ in model.named_modules()]
    linear = [path for path, layer in model.named_modules() if isinstance(layer, nn.Linear)]
    for name in names:
        if not any(path == name or path.endswith(f".{name}") for path in paths):
            known = sorted({path.rsplit(".", 1)[-1] for path in linear})
            raise ValueError(
                f"target_modules: {type(model).__name__} has no layer {name!r}; its linear layers "
                f"are {', '.join(known)}"
            )
    return list(names)
