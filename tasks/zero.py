"""DeepSpeed's ZeRO, where a launcher asks for it: `accelerate launch --use_deepspeed`.

Of what training holds of the trained weights, each process then keeps a part: the optimiser's
moments, and the copy of the weights that they update. DeepSpeed averages gradients, clips and
updates; the state has its moments in the host's memory, and they are brought home at the end of
every tick. So checkpoints are as without, and a run goes on under any other engine.
"""

from __future__ import annotations

import importlib
import importlib.util
import logging
import os
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from tensordict import TensorDict
from torch import Tensor, nn

from attent.pipeline.keys import find, leaves
from attent.pipeline.optimizer import Bound, BoundOptimizer, Optimizer, Updates
from attent.pipeline.processes import AgreedError, processes
from attent.tasks.config import ConfigError

TAKEN = ("zero_optimization", "gradient_clipping", "gradient_accumulation_steps", "bf16", "fp16")
"""DeepSpeed's own settings that are taken; of precisions, fp16 to be refused as elsewhere."""

NEEDLESS = ("steps_per_print", "wall_clock_breakdown", "zero_allow_untested_optimizer")
"""Those that change nothing here."""


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What the launcher asks of DeepSpeed.

    Attributes:
        zero: DeepSpeed's ``zero_optimization``.
        clip: largest norm of the gradient; None where it is left open.
        accumulate: parts of a batch; 1 where it is left open.
        precision: no, bf16 or fp16.
    """

    zero: dict[str, Any]
    clip: float | None
    accumulate: int
    precision: str


def settings() -> Settings | None:
    """What the launcher asks of DeepSpeed; None where it does not ask for it.

    Raises:
        ConfigError: what cannot be taken; says what can.
    """
    if "ACCELERATE_USE_DEEPSPEED" not in os.environ:
        return None
    from accelerate.utils import DeepSpeedPlugin, parse_flag_from_env

    if not parse_flag_from_env("ACCELERATE_USE_DEEPSPEED"):
        return None
    if importlib.util.find_spec("deepspeed") is None:
        raise ConfigError("the launcher asks for DeepSpeed: pip install 'attent[deepspeed]'")
    try:
        given = DeepSpeedPlugin().deepspeed_config
    except ValueError as error:
        raise ConfigError(f"the launcher's settings of DeepSpeed: {error}") from error
    for name, value in given.items():
        if name not in (*TAKEN, *NEEDLESS) and value != "auto":
            raise ConfigError(
                f"DeepSpeed's settings say {name}, which cannot be taken: {', '.join(TAKEN[:-1])} "
                "can; leave the rest to the command's options"
            )
    zero = {name: value for name, value in given["zero_optimization"].items() if value != "auto"}
    if zero.get("stage") not in (1, 2):
        raise ConfigError(
            f"ZeRO stage {zero.get('stage')} cannot be taken, 1 and 2 can; FSDP (accelerate launch "
            "--use_fsdp) shares out the frozen weights of a language model"
        )
    for name in ("offload_optimizer", "offload_param"):
        if (zero.pop(name, None) or {}).get("device", "none") != "none":
            raise ConfigError(f"DeepSpeed's {name} cannot be taken: device none")
    clip = given.get("gradient_clipping", "auto")
    accumulate = given.get("gradient_accumulation_steps", "auto")
    return Settings(
        zero=zero,
        clip=None if clip == "auto" or not clip else float(clip),
        accumulate=1 if accumulate == "auto" else int(accumulate),
        precision=next((p for p in ("fp16", "bf16") if _enabled(given.get(p))), "no"),
    )


def _enabled(section: Any) -> bool:
    return isinstance(section, dict) and section.get("enabled") is True


def updates_of(optimizer: Optimizer, asked: Settings) -> Callable[[Bound], Updates]:
    """Who makes the updates of a train stage under DeepSpeed.

    Args:
        optimizer: what the stage is given.
        asked: by the launcher.

    Raises:
        ConfigError: an optimiser that looks at parameters one by one.
    """
    if optimizer.name not in ("adamw", "sgd"):
        raise ConfigError(
            f"ZeRO lays parameters end to end, which optimizer {optimizer.name} cannot update: "
            "take adamw or sgd (an adapter other than adalora), or start without DeepSpeed"
        )
    engines: list[_Engine] = []

    def updates(bound: Bound) -> Updates:
        if processes().alone:
            return BoundOptimizer(bound)
        if not engines:
            engines.append(_Engine(bound, asked.zero))
        return _ZeroUpdates(engines[0], bound)

    return updates


class _Engine:
    """DeepSpeed's engine around copies of the trained parameters.

    Copies, since DeepSpeed lays its parameters end to end in memory of its own and listens to
    their gradients, whereas a module's parameters are the state's storage; and ``[numel]`` each,
    since it takes none of no dimension.

    Args:
        bound: what is to be updated.
        zero: DeepSpeed's settings of ZeRO.

    Raises:
        ConfigError: trained weights that are not float32.
    """

    def __init__(self, bound: Bound, zero: dict[str, Any]) -> None:
        for name, parameter in bound.params.items():
            if parameter.dtype != torch.float32:
                raise ConfigError(
                    f"ZeRO updates float32 weights here, {name} is {parameter.dtype}: take bits 32"
                )
        self.params = {
            name: nn.Parameter(p.detach().reshape(-1).clone()) for name, p in bound.params.items()
        }
        whole = list(self.params.values())
        self.device = whole[0].device
        deepspeed = _package()
        if not hasattr(deepspeed.DeepSpeedEngine, "coalesce_grad_reduction"):
            raise ConfigError(
                f"deepspeed {deepspeed.__version__} is too old: pip install 'attent[deepspeed]'"
            )
        logging.getLogger("DeepSpeed").setLevel(logging.ERROR)
        # Its reduction in shared memory is for inference, and would be compiled here and now.
        deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
        self.torch = bound.make(self.params)
        # A buffer of this size is made in every step, and as a rule is far too large.
        bucket = min(int(zero.get("reduce_bucket_size", 5e8)), sum(p.numel() for p in whole))
        config = {
            "train_micro_batch_size_per_gpu": 1,  # batches are not its business
            "gradient_accumulation_steps": 1,
            "gradient_clipping": bound.clip or 0.0,
            "zero_optimization": zero | {"reduce_bucket_size": bucket},
            "zero_allow_untested_optimizer": True,
            "steps_per_print": None,
        }
        self.engine = deepspeed.initialize(
            model=nn.ParameterList(whole), optimizer=self.torch, config=config
        )[0]
        self.flat = [group["params"][0] for group in self.torch.param_groups]
        self.largest = max(bound.params, key=lambda name: bound.params[name].ndim)
        self.counts = {m for m, value in _moments(bound.held, self.largest) if not value.ndim}
        self._allocate(bound.held)

    def _allocate(self, held: TensorDict) -> None:
        """Let the moments be there before the first step, by one that changes nothing."""
        for flat in self.flat:
            for moment, value in _moments(held, self.largest):
                made = torch.zeros_like(value if moment in self.counts else flat)
                self.torch.state[flat][moment] = made
        for group in self.torch.param_groups:
            group["lr"] = group["weight_decay"] = 0.0
        self.step([torch.zeros_like(p) for p in self.params.values()])

    def step(self, gradients: Iterable[Tensor]) -> None:
        """Update by the mean of all processes' gradients, one of each parameter.

        Raises:
            AgreedError: it is not finite, and nothing was updated.
        """
        with self.engine.coalesce_grad_reduction():  # they are averaged where the block ends
            for parameter, gradient in zip(self.params.values(), gradients, strict=True):
                parameter.grad = gradient.reshape(-1)
        self.engine.step()
        if not self.engine.was_step_applied():
            raise AgreedError("the gradient of a batch is not finite, though its losses are")


class _ZeroUpdates:
    """A tick's updates by DeepSpeed: the state's weights and moments go in, and come back."""

    def __init__(self, engine: _Engine, bound: Bound) -> None:
        self.engine, self.bound = engine, bound
        self._own = [p.detach() for p in bound.params.values()]
        copies = [p.detach() for p in engine.params.values()]
        self._copies = [q.view_as(p) for p, q in zip(self._own, copies, strict=True)]

    def __enter__(self) -> _ZeroUpdates:
        utils = _package().utils
        _copy(self._own, self._copies)
        taken: dict[str, Tensor] = {}
        for name, copy in self.engine.params.items():
            utils.safe_set_full_fp32_param(copy, copy.detach())
            for moment, value in _moments(self.bound.held, name):
                if moment not in self.engine.counts:
                    flat = value.reshape(-1).to(copy.device)
                    utils.safe_set_full_optimizer_state(copy, flat, moment)
                elif taken.setdefault(moment, value) != value:
                    raise ValueError(
                        f"{moment} of {name} is {float(value):g}, of other parameters "
                        f"{float(taken[moment]):g}: ZeRO keeps one of all; start without DeepSpeed"
                    )
        for flat in self.engine.flat:
            for moment, value in taken.items():
                self.engine.torch.state[flat][moment].copy_(value)
        return self

    def step(self, progress: float) -> float:
        rate = self.bound.set_rates(self.engine.torch.param_groups, progress)
        params = list(self.bound.params.values())
        gradients = [torch.zeros_like(p) if p.grad is None else p.grad for p in params]
        for parameter in params:
            parameter.grad = None
        self.engine.step(gradients)
        _copy(self._copies, self._own)
        return rate

    def __exit__(self, kind: type[BaseException] | None, *rest: object) -> None:
        # Where one process has failed alone, the others will not answer.
        if kind is None or issubclass(kind, AgreedError):
            self._bring_home()

    def _bring_home(self) -> None:
        utils = _package().utils
        for name, copy in self.engine.params.items():
            for moment, value in _moments(self.bound.held, name):
                if moment in self.engine.counts:
                    value.copy_(self.engine.torch.state[self.engine.flat[0]][moment])
                else:
                    flat = utils.safe_get_full_optimizer_state(copy, moment)
                    value.copy_(flat.view_as(value))


def _package() -> Any:
    """DeepSpeed, which takes seconds to import and need not be installed."""
    return importlib.import_module("deepspeed")


def _copy(values: list[Tensor], into: list[Tensor]) -> None:
    for value, place in zip(values, into, strict=True):
        place.copy_(value)


def _moments(held: TensorDict, name: str) -> list[tuple[str, Tensor]]:
    """What a state holds of a parameter: name of the moment, value."""
    entry = find(held, name)
    if not isinstance(entry, TensorDict):
        return []
    return [(moment, value) for (moment,), value in leaves(entry)]
