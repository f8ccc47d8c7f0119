"""The options of selection and their checks."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from attent.pipeline.observed import NEEDS as OBSERVABLE
from attent.pipeline.observed import ObservedSignal
from attent.pipeline.signals import OBSERVED_ONLY
from attent.tasks.checks import ConfigError, need

Method = Literal[
    "attent_complex", "attent_simple", "attent_paced", "attent_adaptive", "infobatch", "full"
]
PACED = ("attent_paced", "attent_adaptive", "infobatch")
"""Those that select before every pass by what training has observed."""
OWN_RULE = ("attent_adaptive", "infobatch")
"""Those that have a rule of their own."""

SignalName = Literal[
    "loss",
    "relative_loss",
    "loss_drop",
    "grad_norm",
    "last_layer",
    "output_grad_norm",
    "vmap_grad_norm",
    "looped_grad_norm",
]


@dataclass(frozen=True, kw_only=True)
class SelectionConfig:
    """What is selected and when.

    Args:
        method: full (plain training, everything in every epoch), attent_complex (cycles of score,
            select, train), attent_simple (one full epoch whose losses are observed, then the
            highest of them), attent_paced (one full epoch, then selected anew before every pass by
            what training has observed, at a ratio that goes with the budget, and the end on
            everything), attent_adaptive (as attent_paced, of as many examples as have most of the
            loss, some of them drawn from the rest) or infobatch (as attent_paced, of all above the
            mean loss and half of those below, which weigh double). docs/proof.md says where it pays
            to select, and where it harms.
        selection_strategy: hard (highest scores), soft (random, likelier the higher) or random.
        initial_ratio: share of the examples selected first, in (0, 1].
        final_ratio: share selected last, in (0, 1].
        ratio_schedule: how the ratio goes from initial to final, over the cycles of attent_complex,
            over the budget of attent_paced.
        first_epochs: full epochs before the first selection, of attent_complex, attent_paced,
            attent_adaptive and infobatch.
        last_share: share of the budget at whose end attent_paced, attent_adaptive and infobatch
            train on everything, in [0, 1); null for the method's own: 0.125, of attent_adaptive
            0.05.
        patience: of attent_adaptive: an example whose loss stays above the running training loss
            for so many looks, at least 1, without falling is chosen at random if at all, for data
            with wrong labels (4 was measured: docs/proof.md); null for none.
        initial_interval: passes over the subset in the first cycle, at least 1.
        max_interval: passes over the subset in the last cycle (interval_schedule incremental).
        interval_schedule: fixed, or incremental up to max_interval.
        total_cycles: how often to score and select, at least 1.
        gumbel_temperature: of selection_strategy soft; low is like hard, high like random.
        soft_normalization: of selection_strategy soft; how scores become probabilities.
        signal: what is measured of each example: its loss; the exact norm of its gradient
            (grad_norm; for models that it refuses the same by vmap, vmap_grad_norm, or one example
            at a time, looped_grad_norm), of the gradient by the head (last_layer) or by the output
            (output_grad_norm); or, only observed, its loss as a multiple of the running training
            loss when it was seen (relative_loss), and how far it fell since (loss_drop).
        scores: fresh (a scoring pass before each selection) or observed (from the training steps:
            losses at no cost, grad_norm for a part of a step); null for the method's own: fresh
            with attent_complex, observed with the others.
        attent_ratio: share selected by attent_simple after its first epoch, in (0, 1].
        reselect: with attent_simple, select anew before every pass, by what training has observed
            of each example last.
        budget_share: train on no more than this share of the budget, in (0, 1]: what selection is
            to save; the schedules end with it.
        budget: what epochs counts. examples: epochs * N examples are trained on, a pass over a
            subset counts its own size. tokens: epochs times the tokens of all examples, where they
            have lengths. passes (as published): a pass over a subset counts as an epoch, so that
            fewer examples are trained on.
        score_batch_size: examples in one forward of scoring and of evaluation.
        score_chunk: examples that vmap maps at once (vmap_grad_norm); less needs less memory.
    """

    method: Method = "full"
    selection_strategy: Literal["hard", "soft", "random"] = "hard"
    initial_ratio: float = 0.2
    final_ratio: float = 0.8
    ratio_schedule: Literal["cosine", "incremental"] = "cosine"
    first_epochs: int = 1
    last_share: float | None = None
    patience: int | None = None
    initial_interval: int = 5
    max_interval: int = 10
    interval_schedule: Literal["fixed", "incremental"] = "fixed"
    total_cycles: int = 10
    gumbel_temperature: float = 1.0
    soft_normalization: Literal["softmax", "sigmoid"] = "softmax"
    signal: SignalName = "loss"
    scores: Literal["fresh", "observed"] | None = None
    attent_ratio: float = 0.7
    reselect: bool = False
    budget_share: float = 1.0
    budget: Literal["examples", "tokens", "passes"] = "examples"
    score_batch_size: int = 256
    score_chunk: int = 32

    @property
    def asks_scores(self) -> bool:
        """Whether examples are selected by scores."""
        if not self.has_strategy:
            return self.method != "full"
        return self.selection_strategy != "random"

    @property
    def has_strategy(self) -> bool:
        """Whether the method looks at selection_strategy."""
        return self.method not in ("full", *OWN_RULE)

    @property
    def scored_afresh(self) -> bool:
        """Whether scores are measured apart, not observed in training."""
        own = "fresh" if self.method == "attent_complex" else "observed"
        return self.asks_scores and (self.scores or own) == "fresh"

    @property
    def observed(self) -> ObservedSignal | None:
        """What the training steps are to record; None for nothing."""
        if not self.asks_scores or self.scored_afresh:
            return None
        signal = self.selected_by
        return signal if signal in OBSERVABLE else "loss"  # type: ignore[return-value]

    @property
    def selected_by(self) -> SignalName:
        """The signal that examples are selected by."""
        return "relative_loss" if self.method == "attent_adaptive" else self.signal

    @property
    def end_share(self) -> float:
        """Share of the budget at whose end everything is trained on."""
        if self.last_share is not None:
            return self.last_share
        return 0.05 if self.method == "attent_adaptive" else 0.125


def check_selection(config: Any) -> None:
    """Refuse values out of range, or that contradict each other.

    What only one part knows (a plan that does not fit) that part refuses.

    Raises:
        ConfigError: names the option and what is accepted.
    """
    at_least_one = (
        "initial_interval", "max_interval", "total_cycles", "score_chunk", "score_batch_size",
    )  # fmt: skip
    for name in ("initial_ratio", "final_ratio", "attent_ratio", "budget_share"):
        need(config, name, lambda v: 0 < v <= 1, "in (0, 1]")
    for name in at_least_one:
        need(config, name, lambda v: v >= 1, "at least 1")
    need(config, "first_epochs", lambda v: v >= 0, "at least 0")
    need(config, "last_share", lambda v: v is None or 0 <= v < 1, "in [0, 1)")
    need(config, "patience", lambda v: v is None or v >= 1, "at least 1")
    need(config, "gumbel_temperature", lambda v: 0 < v < float("inf"), "above 0")
    if config.interval_schedule == "incremental" and config.max_interval < config.initial_interval:
        raise ConfigError(
            f"max_interval ({config.max_interval}) is below initial_interval "
            f"({config.initial_interval})"
        )
    if config.asks_scores:
        _check_scores(config)
    if config.budget == "passes" and config.budget_share < 1:
        raise ConfigError("budget_share is of examples or tokens; budget is passes")


def _check_scores(config: Any) -> None:
    """Refuse signals that cannot be had in the way that is asked for."""
    if config.observed and config.selected_by not in OBSERVABLE:
        if config.method in PACED:
            raise ConfigError(
                f"{config.method} selects by what training observes: {', '.join(OBSERVABLE)}; "
                f"signal is {config.signal}, which attent_simple and attent_complex can measure"
            )
        raise ConfigError(
            f"scores: observed records {', '.join(OBSERVABLE)}; signal is {config.signal}; it can "
            "be measured with scores: fresh"
        )
    if config.scored_afresh and config.signal in OBSERVED_ONLY:
        raise ConfigError(
            f"signal {config.signal} is observed in training, but scores is fresh here: give "
            "scores: observed"
        )
    if config.method in PACED and config.scored_afresh:
        raise ConfigError(f"{config.method} selects by what training observes, but scores is fresh")
    if config.method in PACED and config.first_epochs < 1:
        raise ConfigError(f"{config.method} observes scores in its first_epochs: at least 1, got 0")
    if config.reselect and config.method == "attent_simple" and config.scored_afresh:
        raise ConfigError("reselect goes by what training observes, but scores is fresh")


_RATIOS = ("initial_ratio", "final_ratio", "ratio_schedule")
_CYCLES = ("initial_interval", "max_interval", "interval_schedule", "total_cycles")
_SCORES = ("selection_strategy", "signal", "scores")
_LOOKED_AT: dict[Method, tuple[str, ...]] = {
    "attent_complex": (*_CYCLES, *_RATIOS, "first_epochs", *_SCORES),
    "attent_simple": ("attent_ratio", "reselect", *_SCORES),
    "attent_paced": (*_RATIOS, "first_epochs", "last_share", *_SCORES),
    "attent_adaptive": ("first_epochs", "last_share", "patience", "scores"),
    "infobatch": ("first_epochs", "last_share", "signal", "scores"),
    "full": (),
}
"""Of the options that not every method looks at, those that one does."""


def idle_selection(config: Any) -> dict[str, str]:
    """The options of selection that do nothing, and why."""
    method = config.method
    users: dict[str, list[str]] = {}
    for user, names in _LOOKED_AT.items():
        for name in names:
            users.setdefault(name, []).append(user)
    idle = {
        name: f"method is {method}; {', '.join(found)} would use it"
        for name, found in users.items()
        if method not in found
    }
    if method != "attent_complex" and config.budget == "passes":
        idle["budget"] = f"method is {method}; attent_complex would use it"
    if config.interval_schedule == "fixed":
        idle.setdefault("max_interval", "interval_schedule is fixed")
    if config.selection_strategy != "soft" or not config.has_strategy:
        why = f"selection_strategy is {config.selection_strategy}"
        idle |= {"gumbel_temperature": why, "soft_normalization": why}
    if config.has_strategy and config.selection_strategy == "random":
        why = "selection_strategy random asks no scores"
        idle |= dict.fromkeys(("signal", "scores", "reselect"), why)
    if config.signal != "vmap_grad_norm" or not config.scored_afresh:
        idle["score_chunk"] = "only signal vmap_grad_norm maps by vmap"
    return idle
