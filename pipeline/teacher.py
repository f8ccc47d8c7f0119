"""Selection for a training loop that is not ours: which examples come next, by losses it tells.

The stages are the pipeline's own, on a state without a model; the loop, its model and its optimiser
are somebody else's, and nothing of them is patched.

Shapes: N examples in the data set, b in a call of ``observe``.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import torch
from tensordict import TensorDict
from torch import Tensor

from attent.pipeline import rules
from attent.pipeline.keyed import fold
from attent.pipeline.keys import clone, ensure, key_name, leaves, number, tensor
from attent.pipeline.order import first as first_of
from attent.pipeline.order import order_of_pass
from attent.pipeline.plan import Plan
from attent.pipeline.plans import paced_plan
from attent.pipeline.processes import processes
from attent.pipeline.reschedule import reschedule
from attent.pipeline.rules import Rule
from attent.pipeline.schedules import Schedule
from attent.pipeline.select import select
from attent.pipeline.stage import Stage, initialize, run
from attent.pipeline.task import bare_state, ensure_scores
from attent.pipeline.teacher_defaults import plain_defaults
from attent.pipeline.teacher_input import check_range, losses_of, numbers_of
from attent.pipeline.teacher_loading import Batches, Loop, WithIndex
from attent.pipeline.teacher_pass import PresentPass
from attent.pipeline.teacher_plan import (
    batches_to_come,
    check_alike,
    check_plan,
    described,
    differing,
    observed_for,
    whole_budget,
)

COUNTED = (
    ("clock", "offset"), ("clock", "seen"), ("ledger", "forwarded"), ("ledger", "backwarded"),
)  # fmt: skip
"""Where examples are counted that were trained on."""


class Teacher:
    """Chooses the examples that somebody else's training loop trains on.

    ```python
    teacher = Teacher(len(dataset), ratio=cosine(0.2, 0.8), budget=epochs * len(dataset))
    loader = DataLoader(teacher.with_index(dataset), batch_sampler=teacher.batches(128))
    for index, (x, y) in teacher.loop(loader):
        loss = teacher.observe(index, criterion(model(x), y))  # criterion: reduction="none"
        loss.backward(); optimizer.step(); optimizer.zero_grad()
    ```

    What is selected, and in which order it comes, is what `attent_paced` would do with the same
    losses. Scores are the losses of training itself, so that selecting costs no forward. The clock
    moves with what is observed, not with what is read: batches that a loader had read ahead when
    training stopped are given again.

    In several processes (``torch.distributed`` is set up) each makes the same teacher and is given
    its part of every batch: let nothing else share the loader out. What they have observed they
    tell each other when a pass begins and in `state_dict`, which all of them then call.

    Args:
        num_examples: N.
        rule: `hard` by default.
        ratio: of the share of the budget that is spent; see `paced_plan`.
        budget: examples trained on in all; it ends exactly there.
        seed: of the order and of what rules draw.
        signal: by which is selected: ``loss``, ``relative_loss`` or ``loss_drop``, see
            `attent.pipeline.observed.Observed`; with ``rank``, the scores that it writes.
        first: full epochs before the first selection.
        last: share of the budget at whose end everything is trained on.
        rank: a stage that makes scores of those observed before each selection; see `rank`.
        plan: another plan, in place of ``budget``, ``ratio``, ``first`` and ``last``; of examples,
            without windows and scorings. `full_plan` is plain training.

    Attributes:
        plan: of the whole run.
        signal: by which is selected.
        batch_size: of the last `batches` that were made; None before.

    Raises:
        PlanError: nothing of the budget is left to select in.
        ValueError: options that do not go together; says which.
    """

    @plain_defaults()
    def __init__(
        self,
        num_examples: int,
        *,
        rule: Rule | None = None,
        ratio: Schedule | None = None,
        budget: float | None = None,
        seed: int = 0,
        signal: str = "loss",
        first: int = 1,
        last: float = 0.125,
        rank: Stage | None = None,
        plan: Plan | None = None,
    ) -> None:
        if num_examples < 1:
            raise ValueError(f"there must be examples to select from, got {num_examples}")
        self._rule = rule or rules.hard()
        self._signals = observed_for(signal, rank)
        if plan is None:
            whole = whole_budget(budget)
            if self._rule.uses_scores and first < 1:
                raise ValueError("scores are observed in the first epochs: at least 1, got 0")
            plan = paced_plan(
                num_examples, whole / num_examples, ratio=ratio, first=first, last=last
            )
        elif budget is not None or ratio is not None or (first, last) != (1, 0.125):
            raise ValueError("a plan has its own budget, ratio, first and last: give it alone")
        check_plan(plan, num_examples)
        self.plan, self.signal, self._rank = plan, signal, rank
        self.batch_size: int | None = None
        self._select = select(self._rule, signal=signal)
        self._reschedule = reschedule(plan, eval_every=None)
        state = bare_state(num_examples, seed=seed)
        for name in self._signals:
            ensure_scores(state, name, num_examples)
        ensure_scores(state, signal, num_examples)
        loss = torch.tensor(math.nan, dtype=torch.float64)
        ensure(state, ("metrics", "train_loss"), loss)
        for stage in (self._reschedule, self._select, *([] if rank is None else [rank])):
            state = initialize(stage, state)
        self._holder, self._seen = state, 0
        self._unwritten = 0, 0  # examples and steps of which the state does not say yet
        self._present: PresentPass | None = None
        self._weighs = False  # whether an example has another weight than 1
        self._alike = False  # whether processes are known to be

    def with_index(self, dataset: Any) -> WithIndex:
        """A map-style data set whose items come with their index, as ``(index, item)``.

        A loader's own ``collate_fn`` is then given such pairs.

        Raises:
            ValueError: an iterable data set, or one of another length than N.
        """
        return WithIndex(dataset, len(tensor(self._state, "mask")))

    def batches(self, batch_size: int) -> Batches:
        """What to give a loader as ``batch_sampler``; each iteration of it is one pass.

        An iteration does what is due (a selection, if the pass before is whole) and gives what is
        left of the pass. It goes on with a pass of which not all was observed. ``len()`` of it are
        the batches left, between passes as if the rule selected as many as the ratio says.

        Args:
            batch_size: of all processes together. A last batch of one example alone is not made:
                the one before it has one more.

        Raises:
            ValueError: a batch size below 1 or above N.
        """
        num_examples = self.plan.num_examples
        if not 1 <= batch_size <= num_examples or batch_size != int(batch_size):
            raise ValueError(f"batch_size is in 1 to {num_examples:,}, got {batch_size}")
        self.batch_size = batch_size = int(batch_size)
        return Batches(self, batch_size)

    def loop(self, loader: Iterable[Any]) -> Loop:
        """Pass after pass of a loader over `batches`, until the budget is spent.

        Raises:
            ValueError: here, a loader over other batches; as it is iterated, a pass that ends and
                was not observed.
        """
        return Loop(self, loader)

    def observe(self, index: Tensor | Sequence[int], losses: Tensor) -> Tensor:
        """Tell the losses of some examples of the present pass; their weighted mean to minimise.

        ``sum(weight * loss) / sum(weight)`` over the batch. It may be called for a batch in several
        parts: then the mean of their values, each counted by its examples, is that of the whole
        batch. In several processes it is such that their average is.

        Losses are looked at on the CPU: on another device they are waited for, once a call. In
        several processes the first call for a batch waits for the others' too, so that none is left
        in a backward that another does not come to.

        Args:
            index: ``[b]``, the examples, as the loader gave them.
            losses: ``[b]``, a loss each; on any device, of any float type.

        Returns:
            A scalar with the losses' gradient, of the losses' dtype but at least float32.

        Raises:
            ValueError: other shapes; an example that is not of this pass or was observed in it; a
                loss that is not finite. Nothing was taken in then. Where one of several processes
                finds that in its first call for a batch, all raise it (`AgreedError`).
        """
        present = self._present
        if present is None:
            raise ValueError(
                "nothing is given out: iterate a loader with "
                "batch_sampler=teacher.batches(batch_size), then observe what it gives"
            )
        parts = None
        try:
            index = numbers_of(index)
            parts = present.look(index)
            measured, summed = losses_of(index, losses)
        except (ValueError, TypeError) as error:
            present.agree(parts, error)
            raise
        present.agree(parts, None)
        for size in present.note(parts, measured, summed):
            self._seen += size
            self._unwritten = self._unwritten[0] + size, self._unwritten[1] + 1
        weight = tensor(self._state, "weight") if self._weighs else None
        return present.mean(parts, index, losses, weight)

    def weights(self, index: Tensor | Sequence[int]) -> Tensor:
        """The weights of examples, ``[b]`` float32, for those who reduce losses themselves.

        They still tell the losses by `observe`.

        Raises:
            ValueError: there is no such example.
        """
        numbers = numbers_of(index)
        check_range(numbers, self.plan.num_examples)
        weights = tensor(self._state, "weight")[numbers]
        return weights.to(index.device) if isinstance(index, Tensor) else weights

    @property
    def finished(self) -> bool:
        """Whether the budget is spent."""
        return self._seen >= self.plan.budget

    @property
    def progress(self) -> float:
        """The share of the budget that is spent, in [0, 1]."""
        return self._seen / self.plan.budget

    @property
    def ratio(self) -> float:
        """The share of the examples that the present pass asks for."""
        return float(tensor(self._state, "plan", "ratio"))

    @property
    def passes(self) -> int:
        """Passes that were made, by the last time something was due."""
        return number(self._state, "clock", "passes")

    @property
    def state(self) -> TensorDict:
        """A copy of the state; see ARCHITECTURE.md for its entries.

        In several processes, without the losses that were observed since they last told each other.
        """
        if processes().alone:
            self._tell()
        return clone(self._state)

    @property
    def scores(self) -> Tensor:
        """A copy of the scores that are selected by, ``[N]`` float32; see `state`."""
        if processes().alone:
            self._tell()
        return tensor(self._state, "scores", self.signal).clone()

    def state_dict(self) -> dict[str, Any]:
        """All that is known, to be saved: numbers, strings and tensors.

        To be called between steps, by all of several processes. A batch of which only a part was
        observed is given again, whole.
        """
        self._tell()
        state = {key_name(path): value.clone() for path, value in leaves(self._state)}
        return {"made_for": self._made_for(), "state": state}

    def load_state_dict(self, saved: Mapping[str, Any]) -> None:
        """Go on where a `state_dict` was made; iterate a loader anew after it.

        Raises:
            ValueError: it is of another teacher; says what differs.
        """
        if not {"made_for", "state"} <= saved.keys():
            raise ValueError(f"no state of a teacher: it holds {', '.join(map(repr, saved))}")
        if differ := differing(self._made_for(), dict(saved["made_for"])):
            names, (name, mine, other) = ", ".join(name for name, *_ in differ), differ[0]
            raise ValueError(
                f"the state is of a teacher that differs in {names}: {name} is {other} there and "
                f"{mine} here"
            )
        entries = {key_name(path): value for path, value in leaves(self._state)}
        if entries.keys() != saved["state"].keys():
            missing = sorted(entries.keys() ^ saved["state"].keys())
            raise ValueError(f"the state and this teacher differ in entry {missing[0]!r}")
        for name, value in entries.items():
            value.copy_(saved["state"][name])
        self._seen = number(self._state, "clock", "seen")
        self._present, self._alike = None, False

    @plain_defaults()
    def begin(self, batch_size: int) -> PresentPass | None:
        """Do what is due and begin what is left of a pass; None where the budget is spent.

        Called by `batches`, once or more often before each pass, in every process.
        """
        present = self._present
        if present is not None and present.fresh and present.batch_size == batch_size:
            return present  # a loader with workers asks twice
        self._tell()
        if not self._alike:
            moved = {name: number(self._state, "clock", name) for name in ("passes", "seen")}
            check_alike(self._made_for() | {"batch_size": batch_size} | moved)
            self._alike = True
        state = run(self._reschedule, self._state, donate=True)
        if self.finished:
            self._present = None
            return None
        if bool(tensor(state, "plan", "select_due")):
            if self._rank is not None:
                run(self._rank, state, donate=True)
            run(self._select, state, donate=True)
        clock = ("passes", "offset", "seen", "step")
        passes, offset, seen, step = (number(state, "clock", name) for name in clock)
        mask = tensor(state, "mask")
        order = order_of_pass(mask, fold(number(state, "seed"), "order", passes), batch_size)
        order = first_of(order, offset + self.plan.budget - seen)
        lightest, heaviest = tensor(state, "weight").aminmax()
        self._weighs = not lightest == heaviest == 1
        # Batches of which only parts were observed are given again, by this one.
        self._present = PresentPass(order, len(mask), batch_size, offset, step)
        return self._present

    def end_pass(self) -> None:
        """Check that a pass was observed; called by `loop` where its loader has ended.

        Raises:
            ValueError: it was not.
        """
        if self._present is None:
            raise ValueError("the loader of the loop does not read teacher.batches(batch_size)")
        self._present.check_whole()
        if self.finished:
            self.begin(self._present.batch_size)

    def coming(self, batch_size: int) -> Iterator[int]:
        """Batches left of the present pass, then those of each to come.

        As if every rule selected as many as its ratio says. Nothing is selected for it.
        """
        return batches_to_come(self._state, self.plan, self._reschedule, batch_size)

    @property
    def _state(self) -> TensorDict:
        """The state, with all that was counted."""
        examples, steps = self._unwritten
        if steps:
            for entry in COUNTED:
                tensor(self._holder, *entry).add_(examples)
            tensor(self._holder, "clock", "step").add_(steps)
            self._unwritten = 0, 0
        return self._holder

    @plain_defaults()
    def _tell(self) -> None:
        """Record what all processes have observed of whole batches since the last time."""
        if self._present is not None:
            self._present.tell(self._state, self._signals)

    def _made_for(self) -> dict[str, Any]:
        """What a saved state must agree in, readable by anybody."""
        return {
            "num_examples": self.plan.num_examples,
            "budget": self.plan.budget,
            "plan": described(self.plan),
            "rule": self._rule.name,
            "signal": self.signal,
            "rank": "" if self._rank is None else self._rank.name,
            "seed": number(self._state, "seed"),
        }
