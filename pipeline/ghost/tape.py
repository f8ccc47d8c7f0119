"""The tape: sees every function that a forward gives a parameter to, and listens for its gradient.

It is a `TorchFunctionMode`, so that it needs no list of module classes: a model is read by what it
does with its parameters, whoever wrote it. What a parameter becomes before it meets the examples (a
slice, a transpose, a quotient) is followed too.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode, _get_current_function_mode_stack, resolve_name

from attent.pipeline.ghost.pieces import (
    FUSE_ABOVE,
    Dense,
    GhostError,
    Outer,
    Piece,
    Rows,
    dense_sum,
    square_sum,
    squared_norms,
)
from attent.pipeline.ghost.rules import RULES, MakePiece
from attent.pipeline.ghost.uses import BATCHED, DERIVED, UNCOVERED, Node, Use, met_once

# They give something that carries no gradient to the parameter.
_WITHOUT_GRADIENT = {
    torch.Tensor.detach,
    torch.Tensor.data.__get__,  # pyright: ignore
    torch.Tensor.grad.__get__,  # pyright: ignore
}


class Tape(TorchFunctionMode):
    """Listens to a forward, and to the backward of the losses that come of it.

    Args:
        params: name -> the tensor that the model uses under that name.
        size: B, the number of examples.
        known: what the survey found of each use, in order; None to find out.
        overrides: in a survey, the kind of some uses, by position.
        only: positions of the uses to listen to; None for all.
        keep: keep the outputs, for those who look at the graph; they must let go of them, as the
            graph's hooks hold the tape.
        trained: parameters that autograd is to differentiate as well.
        summed: parameters whose per-example gradients are to be summed over the examples too.
        either: parameters of one matrix product that are to be summed where, by the shapes at hand,
            that costs less than differentiating them.
        mapped: parameters that mapped modules may account for, all or in part.
        where: path of the module that is running.
    """

    def __init__(
        self,
        params: Mapping[str, Tensor],
        size: int,
        *,
        known: Sequence[Use] | None = None,
        overrides: Mapping[int, str] | None = None,
        only: frozenset[int] | None = None,
        keep: bool = False,
        trained: frozenset[str] = frozenset(),
        summed: frozenset[str] = frozenset(),
        either: frozenset[str] = frozenset(),
        mapped: frozenset[str] = frozenset(),
        where: Callable[[], str] = str,
    ) -> None:
        super().__init__()
        self.size = size
        self.uses: list[Use] = []
        self.outputs: dict[int, Tensor] = {}
        self.outside: set[str] = set()
        self.squares: dict[str, Tensor] = {}
        self.sums: dict[str, Tensor] = {}
        self.kinds: dict[str, type[Piece]] = {}
        device = next(iter(params.values())).device
        self.anchor = torch.zeros((), device=device, requires_grad=True)
        self._known = known
        self._overrides = overrides or {}
        self._only = only
        self._keep = keep
        self._summed = set(summed)
        self._either = either
        self._where = where
        self.params = {
            name: Node(frozenset([name]), p if name in trained else p.detach())
            for name, p in params.items()
        }
        self._originals = dict(params)  # held, so that no other tensor takes an identity
        self._nodes = {id(p): self.params[name] for name, p in params.items()}
        self._derived: list[Node] = []
        self._input: tuple[Tensor, Rows] | None = None
        self._once = met_once(known or ()) - mapped

    # The forward

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: object,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        """Look at the arguments; a function that is given no parameter passes."""
        kwargs = kwargs or {}
        nodes = self._nodes
        given = [a for a in args if id(a) in nodes]
        for a in args:
            if type(a) is tuple or type(a) is list:
                given += [b for b in a if id(b) in nodes]
        if kwargs:
            given += [a for a in kwargs.values() if id(a) in nodes]
        if not given:
            return func(*args, **kwargs)
        return self._see(func, args, kwargs, given)

    def __exit__(self, *exception: Any) -> None:
        """The forward is over."""
        self._input = None
        super().__exit__(*exception)

    def _see(self, func: Any, args: tuple, kwargs: dict[str, Any], given: list[Any]) -> Any:
        found = [self._nodes[id(a)] for a in given]
        if self._either and func is F.linear:
            self._weigh(*args, **kwargs)
        values, options = self._replace(args, kwargs, lambda node: node.value)
        result = func(*values, **options)
        for node, tensor in zip(found, given, strict=True):
            if result is node.value:  # nothing had to be done, as in p.to(p.dtype)
                return tensor
        if not torch.is_grad_enabled() or func in _WITHOUT_GRADIENT:
            return result
        sources = frozenset().union(*(node.sources for node in found))
        if sources <= self.outside:
            return result
        if isinstance(result, tuple | list):
            return self._several(func, args, kwargs, sources, result)
        if not isinstance(result, Tensor):
            if func is torch.Tensor.__setitem__:
                self._note(func, sources, UNCOVERED, values[0], written=True)
            return result
        if not (result.is_floating_point() or result.is_complex()):
            return result
        kind = self._kind(func, sources, result)
        joined = bool(sources & self.outside)
        if joined:  # a mapped module works on what is made of other parameters
            kind = UNCOVERED
        self._note(func, sources, kind, result, written=joined)
        if kind == DERIVED:
            return self._derive(func, args, kwargs, sources, result)
        if self._keep and result.requires_grad:
            self.outputs[len(self.uses) - 1] = result
        if kind == UNCOVERED:
            return result
        return self._meet(func, args, kwargs, sources, result, in_place=result is values[0])

    def _weigh(self, input: Tensor, weight: Tensor, bias: Tensor | None = None) -> None:
        """Decide how the weight of a linear layer in training gets its gradient.

        By this batch alone, so that a resumed run decides as an uninterrupted one.
        """
        node = self._nodes.get(id(weight))
        names = set() if node is None else node.sources & self._either
        if node is None or not names:
            return
        m, n = weight.shape
        positions = input.numel() // (self.size * n)
        if positions > 1 and positions * (m + n) > FUSE_ABOVE * m * n:
            node.value = node.value.detach()
            self._summed |= names

    def _several(
        self, func: Any, args: tuple, kwargs: dict[str, Any], sources: frozenset[str], result: Any
    ) -> Any:
        """Several results: of ``split`` or ``unbind``, or of torch's own attention."""
        parts = [r for r in result if isinstance(r, Tensor)]
        if not parts:
            return result
        kind = self._kind(func, sources, parts[0])
        self._note(func, sources, kind, parts[0])
        if kind == DERIVED:
            return self._derive(func, args, kwargs, sources, result)
        self._uncovered(func, sources)
        return result

    def _meet(
        self,
        func: Any,
        args: tuple,
        kwargs: dict[str, Any],
        sources: frozenset[str],
        result: Tensor,
        *,
        in_place: bool,
    ) -> Tensor:
        """Parameters meet the examples: listen for the gradient of the output."""
        position = len(self.uses) - 1
        if self._only is not None and position not in self._only:
            return result
        lost = func is torch.Tensor.add_ and result._is_view()  # its base goes on, not the view
        rule = None if lost or result.is_complex() else RULES.get(func)
        pieces = None if rule is None else rule(self._rows, *args, **kwargs)
        wanted = [(self._nodes[id(p)], make) for p, make in pieces or () if id(p) in self._nodes]
        if not wanted:
            self._uncovered(func, sources)
            return result
        if not result.requires_grad:  # nothing before it is differentiated: the graph begins
            in_place = in_place and not result._is_view()
            result = result.add_(self.anchor) if in_place else result + self.anchor
        if self._keep:
            self.outputs[position] = result
        result.register_hook(lambda grad: self._arrived(wanted, grad))
        return result

    def _kind(self, func: Any, sources: frozenset[str], result: Tensor) -> str:
        position = len(self.uses)
        if self._known is None:
            batched = result.ndim > 0 and len(result) == self.size
            return self._overrides.get(position, BATCHED if batched else DERIVED)
        known = self._known[position] if position < len(self._known) else None
        if known is None or (known.names, known.function) != (tuple(sorted(sources)), _name(func)):
            raise self._astray(func, sources)
        return known.kind

    def _astray(self, func: Any, sources: frozenset[str]) -> GhostError:
        return GhostError(
            f"the model took another path than before: {_name(func)} of {_listed(sources)}; "
            "use looped_grad_norm for a model whose path depends on the data"
        )

    def _note(
        self,
        func: Any,
        sources: frozenset[str],
        kind: str,
        result: Tensor,
        *,
        written: bool = False,
    ) -> None:
        names = tuple(sorted(sources))
        half = result.dtype in (torch.float16, torch.bfloat16)
        shape = tuple(result.shape)
        self.uses.append(Use(_name(func), names, kind, shape, self._where(), written, half))

    def _uncovered(self, func: Any, sources: frozenset[str]) -> None:
        """No rule covers the last use: found in a survey; afterwards it is another path."""
        if self._known is not None and self.uses[-1].kind != UNCOVERED:
            raise self._astray(func, sources)
        self.uses[-1] = replace(self.uses[-1], kind=UNCOVERED)

    def _derive(
        self,
        func: Any,
        args: tuple,
        kwargs: dict[str, Any],
        sources: frozenset[str],
        result: Any,
    ) -> Any:
        """Compute what is made of parameters alone once more, with a graph to pull back along."""
        values, options = self._replace(args, kwargs, _graph)
        again = func(*values, **options)
        single = isinstance(result, Tensor)
        for value, graph in zip(*(([result], [again]) if single else (result, again)), strict=True):
            # new_zeros and the like: nothing of the parameter is in it
            if isinstance(graph, Tensor) and graph.requires_grad:
                node = Node(sources, value, graph)
                self._derived.append(node)
                self._nodes[id(value)] = node
        return result

    def _rows(self, values: Tensor) -> Rows:
        """The rows of a layer's input; layers of the same input get the same, one after another."""
        if self._input is not None and self._input[0] is values:
            rows = self._input[1]
            rows.share()
            return rows
        guard = values.detach()
        rows = Rows(guard.reshape(len(guard), -1, guard.shape[-1]), guard)
        self._input = (values, rows)
        return rows

    def _replace(
        self, args: tuple, kwargs: dict[str, Any], by: Callable[[Node], Tensor]
    ) -> tuple[list[Any], dict[str, Any]]:
        def one(a: Any) -> Any:
            if type(a) is tuple or type(a) is list:
                return type(a)(one(b) for b in a)
            node = self._nodes.get(id(a))
            return a if node is None else by(node)

        return [one(a) for a in args], {key: one(a) for key, a in kwargs.items()}

    # The backward

    def _arrived(self, wanted: list[tuple[Node, MakePiece]], grad: Tensor) -> None:
        """A gradient is here: make the pieces of it, and their norms where no other will come."""
        for node, make in wanted:
            piece = make(grad)
            (name,) = node.sources if len(node.sources) == 1 else ("",)
            if node.graph is None and name in self._once:
                self._account(name, [piece])
            else:
                node.pieces.append(piece)

    def name_of(self, param: Tensor) -> str:
        """The name of a parameter on this tape; empty for another tensor."""
        node = self._nodes.get(id(param))
        return "" if node is None else next(iter(node.sources))

    def add(self, name: str, grad: Tensor) -> None:
        """A per-example gradient that somebody else has computed, ``[B, *shape]``."""
        self.params[name].pieces.append(Dense(grad))

    def finish(self) -> None:
        """When the backward is done: account for what was waiting for other pieces."""
        for node in self._derived:
            if node.pieces and node.graph is not None:
                self._pull_back(node)
        self._derived.clear()
        for name, node in self.params.items():
            if node.pieces:
                self._account(name, node.pieces)
                node.pieces = []

    def _pull_back(self, node: Node) -> None:
        """From a tensor made of parameters to those parameters."""
        assert node.graph is not None
        grad = dense_sum(node.pieces)
        node.pieces = []
        leaves = [(name, self.params[name].graph) for name in sorted(node.sources)]
        found = torch.autograd.grad(
            node.graph,
            [leaf for _, leaf in leaves if leaf is not None],
            grad.to(node.graph.dtype),
            is_grads_batched=True,
            retain_graph=True,
            allow_unused=True,
        )
        names = [name for name, leaf in leaves if leaf is not None]
        for name, pulled in zip(names, found, strict=True):
            if pulled is not None:
                self.add(name, pulled)

    def _account(self, name: str, pieces: list[Piece]) -> None:
        """The squared norm of a parameter's gradient; its sum over examples, if that is asked."""
        if name not in self._summed:
            kinds = {type(piece) for piece in pieces}
            if len(pieces) == 1 or kinds == {Dense}:
                self.kinds[name] = kinds.pop()
            self.squares[name] = squared_norms(pieces)
            return
        if len(pieces) == 1 and isinstance(pieces[0], Outer):
            squares, total = pieces[0].formed(summed=True)
            assert total is not None
            self.squares[name], self.sums[name] = squares, total
            return
        grad = dense_sum(pieces)
        self.squares[name], self.sums[name] = square_sum(grad), grad.sum(0)

    def norms(self) -> Tensor:
        """The norm of each example's gradient over all parameters, ``[B]``."""
        if not self.squares:
            raise GhostError("no gradient reached any parameter: the losses do not depend on them")
        return torch.stack(list(self.squares.values())).sum(0).sqrt()


def _graph(node: Node) -> Tensor:
    if node.graph is None:
        node.graph = node.value.detach().clone().requires_grad_()
    return node.graph


def _name(func: Any) -> str:
    return resolve_name(func) or getattr(func, "__name__", str(func))


def _listed(names: frozenset[str]) -> str:
    listed = sorted(names)
    return ", ".join(listed[:4]) + (f" and {len(listed) - 4} more" if len(listed) > 4 else "")


def listening_for(tensor: Tensor) -> bool:
    """Whether a tape in force listens for the gradient of a tensor.

    For a model that has a faster way which a tape cannot see: it may take it where this is False.
    """
    modes = _get_current_function_mode_stack()
    return any(isinstance(mode, Tape) and mode.name_of(tensor) != "" for mode in modes)
