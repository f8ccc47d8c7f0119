"""Masked pre-training of a MultiMAE: predict what is not seen (Bachmann et al., ECCV 2022).

Shapes: B examples, T outputs, m masks averaged over, L tokens of all modalities, N visible ones, n
of one modality, S pixels a side.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from tensordict import TensorDict
from torch import Tensor, nn
from torch.utils._pytree import register_dataclass
from torchmetrics import MeanMetric

from attent.models.multimae import MultiMAE, TokenOrder, draw_order, num_draws
from attent.models.multimae.masking import concentrations
from attent.models.multimae.outputs import Layout
from attent.pipeline.keyed import uniforms
from attent.pipeline.task import bind
from attent.tasks.pretraining.balancing import Balancer, Balancing, balanced
from attent.tasks.pretraining.losses import (
    PIXEL_LOSSES,
    masked_loss,
    normalized_by_patch,
    standardized_depth,
)


@dataclass(frozen=True)
class Output:
    """What the model makes of a batch.

    Attributes:
        predictions: for each mask, output -> picture ``[B, C, H, W]``.
        balance: ``[B, T]``, what was learned of the balance; held where no one looks for outputs,
            as `output_grad_norm` does: it says nothing of an example.
    """

    predictions: list[dict[str, Tensor]]
    balance: Hidden


@dataclass(frozen=True)
class Hidden:
    """A tensor that is not part of a pytree."""

    tensor: Tensor | None


register_dataclass(Output)


class PretrainingModel(nn.Module):
    """A masked autoencoder and what is learned of the balance of its losses, trained together."""

    def __init__(self, multimae: MultiMAE, balancer: Balancer) -> None:
        super().__init__()
        self.multimae = multimae
        self.balancer = balancer

    def no_weight_decay(self) -> set[str]:
        """Those of the autoencoder, and the balance; the published recipe decays everything."""
        names = {f"multimae.{name}" for name in self.multimae.no_weight_decay()}
        return names | {f"balancer.{name}" for name, _ in self.balancer.named_parameters()}

    def forward(self, pictures: Mapping[str, Tensor], orders: Sequence[TokenOrder]) -> Output:
        """Predictions under each of some masks."""
        learned = self.balancer(len(next(iter(pictures.values()))))
        return Output(
            [self.multimae(pictures, masks=order)[0] for order in orders], Hidden(learned)
        )


class MaskedPretraining:
    """The task of predicting the masked patches of every modality.

    A batch holds ``rgb`` ``[B, 3, S, S]`` float32, ``depth`` ``[B, 1, S, S]`` float32 and
    ``semseg`` ``[B, S / 4, S / 4]`` int64, as far as the model encodes or predicts them.

    In training one mask is drawn for each example and pass; in scoring and evaluation it is a
    function of the example's index, so that a score is a property of weights and example: the
    published code draws anew at each scoring, and with the same weights two scorings agree no
    better than chance.

    Args:
        model: predicts the outputs.
        num_encoded_tokens: N, of all modalities together.
        balancer: ``none``, ``uncertainty`` or ``softmax``.
        alphas: concentration of the modalities' shares; see `attent.models.multimae.draw_order`.
        sample_tasks_uniformly: see there.
        standardize_depth: depth maps by their own truncated mean and deviation, input and target.
        loss_on_unmasked: losses of all patches, not only of the masked.
        score_masks: m, masks that scoring and evaluation average over, at m times the cost.

    Metrics: ``loss``, the sum of the outputs' losses, unbalanced so that runs can be compared; and
    the loss of each output: squared error of standardised pixels (rgb, norm_rgb), absolute error
    (depth), nats (semseg).

    Raises:
        ValueError: nothing would be masked, or an argument is out of range.
    """

    name = "masked pre-training"

    def __init__(
        self,
        model: MultiMAE,
        *,
        num_encoded_tokens: int,
        balancer: Balancing = "none",
        alphas: float | Sequence[float] = 1.0,
        sample_tasks_uniformly: bool = False,
        standardize_depth: bool = True,
        loss_on_unmasked: bool = False,
        score_masks: int = 1,
    ) -> None:
        if score_masks < 1:
            raise ValueError(f"score_masks is at least 1, got {score_masks}")
        self.outputs = tuple(model.output_adapters)
        self.multimae = model
        self.model: nn.Module = PretrainingModel(model, Balancer(balancer, len(self.outputs)))
        self.balancing: Balancing = balancer
        concentrations(alphas, len(model.input_adapters))
        self.alphas, self.sample_tasks_uniformly = alphas, sample_tasks_uniformly
        self.num_encoded_tokens = num_encoded_tokens
        self.standardize_depth = standardize_depth
        self.loss_on_unmasked = loss_on_unmasked
        self.score_masks = score_masks

    def view(self, batch: TensorDict, keys: Tensor, *, training: bool) -> TensorDict:
        """Depth standardised; which tokens are seen, ``token_order`` ``[B, m, L]``.

        Crops and flips are the source's, made where the whole picture is.
        """
        batch = batch.copy()
        if self.standardize_depth and "depth" in batch:
            batch["depth"] = standardized_depth(batch["depth"])
        sizes = list(self.layout(batch).sizes.values())
        self._check_budget(sum(sizes))
        masks, draws = 1 if training else self.score_masks, num_draws(sizes)
        orders = [
            draw_order(
                uniforms(keys, draws, start=i * draws),
                sizes,
                self.num_encoded_tokens,
                alphas=self.alphas,
                sample_tasks_uniformly=self.sample_tasks_uniformly,
            ).order
            for i in range(masks)
        ]
        batch["token_order"] = torch.stack(orders, dim=1)
        return batch

    def forward(self, model: Any, batch: TensorDict) -> Output:
        """The predictions under the masks of the batch's view."""
        return model(self.pictures(batch), self.orders(batch))

    def losses(self, output: Output, batch: TensorDict) -> Tensor:
        """The balanced loss of each example, ``[B]``, averaged over the masks."""
        losses, valid = self.output_losses(output, batch)
        return balanced(losses, valid, self.balancing, output.balance.tensor)

    def output_losses(self, output: Output, batch: TensorDict) -> tuple[Tensor, Tensor]:
        """The loss of each output, ``[B, T]``, and whether there is one (something was masked)."""
        layout = self.layout(batch)
        found = [
            [self._one(name, predictions[name], batch, order, layout) for name in self.outputs]
            for predictions, order in zip(output.predictions, self.orders(batch), strict=True)
        ]
        losses = torch.stack([torch.stack([loss for loss, _ in mask], dim=1) for mask in found])
        valid = torch.stack([torch.stack([there for _, there in mask], dim=1) for mask in found])
        count = valid.sum(dim=0)
        return (losses * valid).sum(dim=0) / count.clamp(min=1), count > 0

    def _one(
        self,
        output: str,
        prediction: Tensor,
        batch: TensorDict,
        order: TokenOrder,
        layout: Layout,
    ) -> tuple[Tensor, Tensor]:
        """The loss of one output under one mask, ``[B]``, and whether there is one."""
        domain = self.multimae.task_of(output)
        grid = self.multimae.output_grid(output, layout)
        target = batch[domain]
        if output == "norm_rgb":
            target = normalized_by_patch(target, grid)
        pixels = PIXEL_LOSSES[output](prediction.float(), target)
        if self.loss_on_unmasked or domain not in layout.grids:
            # What is no input is not seen anywhere.
            masked = torch.ones_like(pixels[:, 0, 0], dtype=torch.bool)
            return pixels.flatten(1).mean(dim=1), masked
        return masked_loss(pixels, order.masked[:, layout.span(domain)], grid)

    def metrics(self) -> dict[str, Any]:
        """A fresh mean for the sum and for each output."""
        return {name: MeanMetric() for name in ("loss", *self.outputs)}

    def update(
        self,
        metrics: Mapping[str, Any],
        output: Output,
        batch: TensorDict,
    ) -> None:
        """Take a batch into the metrics."""
        losses, valid = (part.cpu() for part in self.output_losses(output, batch))
        metrics["loss"].update(balanced(losses, valid, "none"))
        for name, values, there in zip(self.outputs, losses.T, valid.T, strict=True):
            if bool(there.any()):
                metrics[name].update(values[there])

    def weights(self, state: TensorDict) -> dict[str, Tensor]:
        """The autoencoder's weights in a state, all of them, under the released ones' names."""
        bind(self.model, state)
        return {
            name: value.detach().cpu().clone() for name, value in self.multimae.state_dict().items()
        }

    def pictures(self, batch: TensorDict) -> dict[str, Tensor]:
        """What is encoded: modality -> picture."""
        return {name: batch[name] for name in self.multimae.input_adapters}

    def orders(self, batch: TensorDict) -> list[TokenOrder]:
        """The masks of a batch's view."""
        found = batch["token_order"].unbind(1)
        return [TokenOrder(order, self.num_encoded_tokens) for order in found]

    def layout(self, batch: TensorDict) -> Layout:
        """Where the tokens of a batch stand."""
        return self.multimae.layout(self.pictures(batch))

    def check_budget(self, image: tuple[int, int]) -> None:
        """Whether pictures of this height and width leave something to predict.

        Raises:
            ValueError: nothing would be masked.
        """
        adapters: Any = self.multimae.input_adapters.values()
        sides = [adapter.patch_size * adapter.stride for adapter in adapters]
        self._check_budget(sum((image[0] // side) * (image[1] // side) for side in sides))

    def _check_budget(self, num_tokens: int) -> None:
        if not self.loss_on_unmasked and self.num_encoded_tokens >= num_tokens:
            raise ValueError(
                f"num_encoded_tokens {self.num_encoded_tokens} of {num_tokens} tokens leaves "
                "nothing masked to learn from; lower it, or set loss_on_unmasked"
            )
