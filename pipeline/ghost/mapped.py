"""Modules whose parameters no rule covers: each is mapped alone, by vmap over the examples.

While such a module runs, its inputs are kept; when the gradient of its output is there, the
per-example gradient of its own parameters is a vector-Jacobian product of that one module.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call, vjp, vmap
from torch.utils._pytree import TreeSpec, tree_flatten, tree_unflatten

from attent.pipeline.ghost.tape import GhostError, Tape
from attent.pipeline.vmapping import ready_for_vmap


@dataclass
class Call:
    """One forward of a mapped module.

    Attributes:
        path: of the module.
        own: name in the module -> name on the tape, of the parameters that are accounted for.
        tensors: everything it holds, by name in the module.
        inputs: its arguments, flattened.
        outputs: shapes of its floating outputs.
        grads: of those outputs, as they come.
        ends: their nodes in the graph.
        autocast: what it ran in, if it did in autocast.
    """

    path: str
    module: nn.Module
    own: dict[str, str]
    tensors: dict[str, Tensor]
    inputs: list[Any]
    spec: TreeSpec
    outputs: list[tuple[int, ...]] = field(default_factory=list)
    grads: dict[int, Tensor] = field(default_factory=dict)
    ends: list[Any] = field(default_factory=list)
    autocast: torch.dtype | None = None

    def shapes(self) -> list[tuple[int, ...] | None]:
        """Of the inputs; None for what is not a tensor."""
        return [tuple(i.shape) if isinstance(i, Tensor) else None for i in self.inputs]


@contextmanager
def mapping(
    model: nn.Module,
    tape: Tape,
    mapped: Mapping[str, frozenset[str]],
    *,
    listen: bool = True,
) -> Iterator[list[Call]]:
    """Keep what the mapped modules are given in a forward, and listen to their outputs.

    Args:
        model: the whole model.
        tape: is told to let these parameters be while their module runs.
        mapped: path of a module -> parameters, by their names on the tape.
        listen: False to let the parameters be and no more.
    """
    calls: list[Call] = []
    handles = []
    for path, names in mapped.items():
        module = model.get_submodule(path)
        before, after = _hooks(path, names, tape, calls, listen)
        handles.append(module.register_forward_pre_hook(before, prepend=True, with_kwargs=True))
        handles.append(module.register_forward_hook(after, with_kwargs=True, always_call=True))
    try:
        yield calls
    finally:
        for handle in handles:
            handle.remove()


def _hooks(
    path: str, names: frozenset[str], tape: Tape, calls: list[Call], listen: bool
) -> tuple[Any, Any]:
    open_calls: list[Call] = []

    def before(module: nn.Module, args: tuple, kwargs: dict) -> None:
        inputs, spec = tree_flatten((args, kwargs))
        held = dict(module.named_parameters(remove_duplicate=False))
        own = {name: tape.name_of(p) for name, p in held.items()}
        own = {name: full for name, full in own.items() if full in names}
        tensors = held | dict(module.named_buffers())
        kept = [i.detach() if isinstance(i, Tensor) else i for i in inputs]
        device = tape.anchor.device.type
        autocast = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else None
        open_calls.append(Call(path, module, own, tensors, kept, spec, autocast=autocast))
        tape.outside.update(names)

    def after(module: nn.Module, args: tuple, kwargs: dict, output: Any) -> Any:
        tape.outside.difference_update(names)
        call = open_calls.pop()
        if output is None or not listen:  # None: it failed
            return None
        calls.append(call)
        leaves, spec = tree_flatten(output)
        found = [i for i, o in enumerate(leaves) if isinstance(o, Tensor) and o.is_floating_point()]
        if torch.is_grad_enabled() and not any(leaves[i].requires_grad for i in found):
            for i in found:
                leaves[i] = leaves[i] + tape.anchor
        for place, i in enumerate(found):
            call.outputs.append(tuple(leaves[i].shape))
            call.ends.append(leaves[i].grad_fn)
            if leaves[i].requires_grad:
                leaves[i].register_hook(_keep(call, place))
        return tree_unflatten(leaves, spec)

    return before, after


def _keep(call: Call, place: int) -> Any:
    def keep(grad: Tensor) -> None:
        call.grads[place] = grad

    return keep


def account(calls: list[Call], tape: Tape, batched: Mapping[tuple[str, int], bool]) -> None:
    """Give the tape the per-example gradients of mapped modules, after the backward.

    Args:
        calls: from `mapping`.
        tape: is given them.
        batched: (path, place of an input) -> whether the input has the examples first.

    Raises:
        GhostError: vmap cannot map the module.
    """
    for call in calls:
        if not call.grads:
            continue
        try:
            grads = _gradients(call, batched)
        except Exception as error:
            raise GhostError(
                f"module {call.path or '(the whole model)'} ({type(call.module).__name__}) uses "
                f"{', '.join(call.own.values())} in a way that is not covered, and vmap cannot map "
                f"it: {error}"
            ) from error
        for name, grad in grads.items():
            tape.add(call.own[name], grad.detach())


def _gradients(call: Call, batched: Mapping[tuple[str, int], bool]) -> dict[str, Tensor]:
    """Per-example gradients of a module's own parameters, name -> ``[B, *shape]``."""
    own = {name: call.tensors[name].detach() for name in call.own}
    rest = {name: t.detach() for name, t in call.tensors.items() if name not in own}
    mapped = [i for i in range(len(call.inputs)) if batched.get((call.path, i), False)]
    present = sorted(call.grads)

    def gradient(examples: list[Tensor], grads: list[Tensor]) -> dict[str, Tensor]:
        inputs = list(call.inputs)
        for i, example in zip(mapped, examples, strict=True):
            inputs[i] = example.unsqueeze(0)
        args, kwargs = tree_unflatten(inputs, call.spec)

        def outputs(own: dict[str, Tensor]) -> list[Tensor]:
            output = functional_call(call.module, own | rest, args, kwargs)
            leaves, _ = tree_flatten(output)
            floats = [o for o in leaves if isinstance(o, Tensor) and o.is_floating_point()]
            return [floats[place].squeeze(0) for place in present]

        pull = vjp(outputs, own)[1]
        return pull(grads)[0]

    device = next(iter(call.tensors.values())).device.type
    cast = torch.autocast(device, call.autocast, enabled=call.autocast is not None)
    with torch.no_grad(), ready_for_vmap(call.module), cast:
        return vmap(gradient)([call.inputs[i] for i in mapped], [call.grads[i] for i in present])
