"""The models that scores are timed on, as tasks, with a batch of random inputs each."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from tensordict import TensorDict
from torch import Tensor, nn
from torch.nn import functional as F

from attent.models import build_vit
from attent.pipeline.keyed import all_global_generators
from attent.tasks.classification import Classification


class Language:
    """Next-token prediction: the mean over an example's own targets."""

    name = "language"

    def __init__(self, model: nn.Module) -> None:
        self.model = model

    def view(self, batch: TensorDict, keys: Tensor, *, training: bool) -> TensorDict:
        """As it is."""
        return batch

    def forward(self, model: Any, batch: TensorDict) -> Tensor:
        """Logits, ``[B, T, V]``."""
        return model(input_ids=batch["tokens"], use_cache=False).logits

    def losses(self, output: Tensor, batch: TensorDict) -> Tensor:
        """Cross-entropy, nats a token, ``[B]``."""
        logits, targets = output[:, :-1].float(), batch["labels"][:, 1:]
        losses = F.cross_entropy(logits.transpose(1, 2), targets, reduction="none")
        return losses.sum(1) / (targets >= 0).sum(1).clamp_min(1)

    def metrics(self) -> dict[str, Any]:
        """None."""
        return {}

    def update(self, metrics: Mapping[str, Any], output: Tensor, batch: TensorDict) -> None:
        """Nothing to take in."""


class MaskedAutoencoder(nn.Module):
    """Two modalities in patches, a quarter of them seen, all of them to be told (He et al., 2022).

    Args:
        size: of the images, in pixels.
        patch: side of a patch.
        dim: width of the encoder; the decoder's is half.
        depth: blocks of the encoder.
        seen: share of the patches that the encoder is given.
    """

    def __init__(
        self, size: int = 64, patch: int = 8, dim: int = 192, depth: int = 12, seen: float = 0.25
    ) -> None:
        super().__init__()
        from timm.models.vision_transformer import Block

        self.patches = (size // patch) ** 2
        self.channels = {"rgb": 3, "depth": 1}
        self.count = round(seen * self.patches * len(self.channels))
        half = dim // 2
        self.embed = nn.ModuleDict(
            {name: nn.Conv2d(c, dim, patch, patch) for name, c in self.channels.items()}
        )
        self.place = nn.Parameter(0.02 * torch.randn(1, 2 * self.patches, dim))
        self.blocks = nn.Sequential(*[Block(dim, dim // 64) for _ in range(depth)])
        self.norm = nn.LayerNorm(dim)
        self.shrink = nn.Linear(dim, half)
        self.mask = nn.Parameter(0.02 * torch.randn(1, 1, half))
        self.decoder_place = nn.Parameter(0.02 * torch.randn(1, 2 * self.patches, half))
        self.decoder = nn.Sequential(*[Block(half, half // 32) for _ in range(2)])
        self.heads = nn.ModuleDict(
            {name: nn.Linear(half, c * patch * patch) for name, c in self.channels.items()}
        )

    def forward(self, images: dict[str, Tensor], order: Tensor) -> dict[str, Tensor]:
        """Patches of each modality, ``[B, P, C * patch * patch]``, from those first in an order."""
        tokens = [self.embed[name](image).flatten(2).mT for name, image in images.items()]
        x = torch.cat(tokens, 1) + self.place
        rank, kept = order.argsort(1), order[:, : self.count]
        x = x.gather(1, kept[:, :, None].expand(-1, -1, x.shape[2]))
        x = self.shrink(self.norm(self.blocks(x)))
        hidden = self.mask.expand(len(x), order.shape[1] - self.count, -1)
        x = torch.cat([x, hidden], 1)
        x = x.gather(1, rank[:, :, None].expand(-1, -1, x.shape[2])) + self.decoder_place
        parts = self.decoder(x).split(self.patches, 1)
        return {name: self.heads[name](p) for name, p in zip(images, parts, strict=True)}


class Reconstruction:
    """Squared error of the patches that were hidden."""

    name = "reconstruction"

    def __init__(self, model: nn.Module, patch: int = 8) -> None:
        self.model = model
        self.patch = patch

    def view(self, batch: TensorDict, keys: Tensor, *, training: bool) -> TensorDict:
        """As it is: the order of the patches is in the batch."""
        return batch

    def forward(self, model: Any, batch: TensorDict) -> Any:
        """Patches of each modality."""
        return model({name: batch[name] for name in ("rgb", "depth")}, batch["order"])

    def losses(self, output: Any, batch: TensorDict) -> Tensor:
        """Mean squared error over hidden patches, ``[B]``."""
        errors = []
        for name in ("rgb", "depth"):
            target = F.unfold(batch[name], self.patch, stride=self.patch).mT
            errors.append((output[name] - target).square().mean(2))
        error, hidden = torch.cat(errors, 1), batch["hidden"]
        return (error * hidden).sum(1) / hidden.sum(1)

    def metrics(self) -> dict[str, Any]:
        """None."""
        return {}

    def update(self, metrics: Mapping[str, Any], output: Any, batch: TensorDict) -> None:
        """Nothing to take in."""


def vit(size: int, patch: int, batch_size: int) -> tuple[Any, TensorDict]:
    """ViT-Ti on images of a size."""
    model = build_vit(
        "vit_tiny_patch16_224", num_classes=10, img_size=size, model_args={"patch_size": patch}
    )
    fields = {
        "image": torch.randn(batch_size, 3, size, size),
        "label": torch.randint(10, (batch_size,)),
    }
    return Classification(model, 10), _batch(fields, batch_size)


def llama(batch_size: int = 16, length: int = 128, *, lora: bool = False) -> tuple[Any, TensorDict]:
    """A Llama of 384 x 6, in full or with LoRA of rank 8 on every linear layer."""
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=4096, hidden_size=384, intermediate_size=1024, num_hidden_layers=6,
        num_attention_heads=6, num_key_value_heads=6, max_position_embeddings=length,
    )  # fmt: skip
    model: nn.Module = LlamaForCausalLM(config)
    if lora:
        from peft import LoraConfig, get_peft_model

        wrapped = get_peft_model(
            model,  # pyright: ignore[reportArgumentType]
            LoraConfig(r=8, target_modules="all-linear", task_type="CAUSAL_LM"),
        )
        for name, p in wrapped.named_parameters():
            if "lora_B" in name:  # as after some training: at the start they are zero
                nn.init.normal_(p, std=0.02)
        model = wrapped
    tokens = torch.randint(4096, (batch_size, length))
    return Language(model), _batch({"tokens": tokens, "labels": tokens}, batch_size)


def masked_autoencoder(batch_size: int = 32) -> tuple[Any, TensorDict]:
    """A masked autoencoder of two modalities, ViT-Ti's encoder."""
    model = MaskedAutoencoder()
    order = torch.rand(batch_size, 2 * model.patches).argsort(1)
    hidden = (order.argsort(1) >= model.count).float()
    fields = {
        "rgb": torch.randn(batch_size, 3, 64, 64),
        "depth": torch.randn(batch_size, 1, 64, 64),
        "order": order,
        "hidden": hidden,
    }
    return Reconstruction(model), _batch(fields, batch_size)


def _batch(fields: dict[str, Tensor], size: int) -> TensorDict:
    return TensorDict({**fields, "index": torch.arange(size)}, batch_size=[size])


CASES: dict[str, Callable[[], tuple[Any, TensorDict]]] = {
    "vit64": lambda: vit(64, 8, 32),
    "vit224": lambda: vit(224, 16, 16),
    "llama": llama,
    "lora": lambda: llama(lora=True),
    "mae": masked_autoencoder,
}


def make(case: str) -> tuple[Any, TensorDict]:
    """The same weights and inputs each time; the model in eval mode."""
    with all_global_generators(0):
        task, batch = CASES[case]()
    task.model.eval()
    return task, batch
