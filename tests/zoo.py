"""A zoo of small models as tasks: every way of using a parameter that scoring has to get right.

Shapes: B examples, T positions, D features, K classes. Sizes are chosen so that B is a length or a
width in some of them: what has the examples first must not be guessed from its length.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from peft import LoraConfig, get_peft_model
from tensordict import TensorDict
from timm.layers import RmsNorm
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils._pytree import tree_map
from torchmetrics import MeanMetric
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

from attent.models.heads import build_head
from attent.models.multimae import Decoders, build_multimae, build_multivit
from attent.pipeline.keyed import generator, uniform
from attent.tasks.pretraining import MaskedPretraining

VOCAB = 40
IGNORED = -100


class ZooTask:
    """A model, how it is called, and the loss of each example."""

    name = "zoo"

    def __init__(self, model: nn.Module, forward: Callable, losses: Callable) -> None:
        self.model = model
        self.call = forward
        self.measure = losses

    def view(self, batch: TensorDict, keys: Tensor, *, training: bool) -> TensorDict:
        return batch

    def forward(self, model, batch: TensorDict):
        return self.call(model, batch)

    def losses(self, output, batch: TensorDict) -> Tensor:
        return self.measure(output, batch)

    def metrics(self) -> dict:
        return {"loss": MeanMetric()}

    def update(self, metrics, output, batch: TensorDict) -> None:
        metrics["loss"].update(self.losses(output, batch))

    def targets(self, batch: TensorDict) -> Tensor:
        return (batch["label"][:, 1:] != IGNORED).sum(1)


class Autocast(ZooTask):
    """Another task, its forward in bfloat16 where autocast has it so."""

    def __init__(self, task: ZooTask) -> None:
        super().__init__(task.model, task.forward, task.losses)

    def forward(self, model, batch):
        with torch.autocast("cpu", torch.bfloat16):
            output = super().forward(model, batch)
        return tree_map(lambda leaf: leaf.float() if isinstance(leaf, Tensor) else leaf, output)


@dataclass(frozen=True)
class Case:
    """One model of the zoo.

    Attributes:
        make: a fresh task and a batch for it.
        by_vmap: paths of the modules that no rule covers; None where it does not matter.
        mappable: whether vmap can map the whole model.
    """

    make: Callable[[], tuple[ZooTask, TensorDict]]
    by_vmap: frozenset[str] | None = frozenset()
    mappable: bool = True


def scrambled(model: nn.Module, scale: float = 0.2, seed: int = 1) -> nn.Module:
    """The model with all its parameters drawn anew: none is zero, and no norm's scale is one."""
    draw = generator(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(scale * torch.randn(parameter.shape, generator=draw))
        for name, buffer in model.named_buffers():
            if name.endswith("running_mean"):
                buffer.copy_(torch.randn(buffer.shape, generator=draw))
            if name.endswith("running_var"):
                buffer.copy_(0.5 + torch.rand(buffer.shape, generator=draw))
    return model.eval()


def normal(*shape: int, seed: int = 2) -> Tensor:
    return torch.randn(shape, generator=generator(seed))


def integers(high: int, *shape: int, seed: int = 3, low: int = 0) -> Tensor:
    return torch.randint(low, high, shape, generator=generator(seed))


def batched(**entries: Tensor) -> TensorDict:
    size = len(next(iter(entries.values())))
    return TensorDict(entries | {"index": torch.arange(size)}, batch_size=[size])


def on_x(model, batch: TensorDict):
    return model(batch["x"])


def squared_error(output: Tensor, batch: TensorDict) -> Tensor:
    """The mean square of what is left of a target, ``[B]``."""
    return (output.flatten(1) - batch["y"][:, None]).square().mean(1)


def regression(model: nn.Module, *shape: int, forward: Callable = on_x):
    """A model of ``x`` of this shape (B first) with squared error."""
    batch = batched(x=normal(*shape), y=normal(shape[0], seed=4))
    return ZooTask(scrambled(model, 0.4), forward, squared_error), batch


def lookup(model: nn.Module, size: int, length: int, *, high: int = 6):
    """A model of indices, some of them repeated, with squared error."""
    batch = batched(x=integers(high, size, length), y=normal(size, seed=4))
    return ZooTask(scrambled(model, 0.4), on_x, squared_error), batch


# Images


def vit_task(*, size: int = 5, scale: float = 0.2, **options):
    model = VisionTransformer(
        img_size=16, patch_size=8, in_chans=1, num_classes=5, embed_dim=16, depth=2, num_heads=2,
        **options,
    )  # fmt: skip
    batch = batched(x=normal(size, 1, 16, 16), label=integers(5, size))
    return ZooTask(scrambled(model, scale), on_x, class_losses), batch


def class_losses(logits: Tensor, batch: TensorDict) -> Tensor:
    return F.cross_entropy(logits, batch["label"], reduction="none")


def vit_checkpointed():
    task, batch = vit_task()
    task.model.set_grad_checkpointing()
    return task, batch


class ConvNet(nn.Module):
    """Convolutions with groups, strides and padding by name; batch and group statistics."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(2, 4, 3, padding=1, stride=2)
        self.batch_norm = nn.BatchNorm2d(4)
        self.grouped = nn.Conv2d(4, 8, 3, padding=1, groups=2)
        self.group_norm = nn.GroupNorm(4, 8)
        self.same = nn.Conv2d(8, 4, 3, padding="same", bias=False)
        self.dilated = nn.Conv2d(4, 4, 2, dilation=2)
        self.head = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = F.gelu(self.batch_norm(self.stem(x)))
        x = F.gelu(self.group_norm(self.grouped(x)))
        return self.head(self.dilated(self.same(x)).mean((2, 3)))


class MaskedAutoencoder(nn.Module):
    """A masked autoencoder of two modalities: some patches of both are seen, the rest predicted.

    ``order`` ``[B, 2 N]`` has the patches of an example in the order drawn for it: the first
    ``visible`` are given to the encoder.
    """

    def __init__(self, dim: int = 12, visible: int = 3, side: int = 8, patch: int = 4) -> None:
        super().__init__()
        self.visible, self.patch = visible, patch
        self.num_patches = (side // patch) ** 2
        self.embed = nn.ModuleDict(
            {name: nn.Conv2d(c, dim, patch, patch) for name, c in (("rgb", 3), ("depth", 1))}
        )
        self.modality = nn.Parameter(torch.zeros(2, 1, dim))
        self.position = nn.Parameter(torch.zeros(1, self.num_patches, dim))
        self.mask_token = nn.Parameter(torch.zeros(1, 1, dim))
        self.encoder = Block(dim)
        self.to_decoder = nn.Linear(dim, dim)
        self.decoder_position = nn.Parameter(torch.zeros(1, 2 * self.num_patches, dim))
        self.decoder = Block(dim)
        self.heads = nn.ModuleDict(
            {name: nn.Linear(dim, c * patch**2) for name, c in (("rgb", 3), ("depth", 1))}
        )

    def forward(self, images: dict[str, Tensor], order: Tensor) -> dict[str, Tensor]:
        tokens = torch.cat(
            [
                self.embed[name](images[name]).flatten(2).transpose(1, 2)
                + self.position
                + self.modality[i]
                for i, name in enumerate(("rgb", "depth"))
            ],
            dim=1,
        )
        dim = tokens.shape[-1]
        seen = order[:, : self.visible, None].expand(-1, -1, dim)
        latent = self.to_decoder(self.encoder(tokens.gather(1, seen)))
        hidden = self.mask_token.expand(len(order), order.shape[1] - self.visible, -1)
        back = order.argsort(1)[:, :, None].expand(-1, -1, dim)
        full = torch.cat([latent, hidden], dim=1).gather(1, back) + self.decoder_position
        rgb, depth = self.decoder(full).chunk(2, dim=1)
        return {"rgb": self.heads["rgb"](rgb), "depth": self.heads["depth"](depth)}


class Block(nn.Module):
    """A transformer block."""

    def __init__(self, dim: int, heads: int = 2) -> None:
        super().__init__()
        self.heads = heads
        self.norm, self.norm_mlp = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.qkv, self.out = nn.Linear(dim, 3 * dim), nn.Linear(dim, dim)
        self.up, self.down = nn.Linear(dim, 2 * dim), nn.Linear(2 * dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        size, length, dim = x.shape
        qkv = self.qkv(self.norm(x)).reshape(size, length, 3, self.heads, dim // self.heads)
        q, k, v = qkv.permute(2, 0, 3, 1, 4).unbind(0)
        mixed = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(x.shape)
        x = x + self.out(mixed)
        return x + self.down(F.gelu(self.up(self.norm_mlp(x))))


class MaeTask(ZooTask):
    """Squared error over the masked patches; the mask is the view's, drawn from the keys."""

    def __init__(self) -> None:
        super().__init__(scrambled(MaskedAutoencoder()), self._call, self._errors)

    def view(self, batch: TensorDict, keys: Tensor, *, training: bool) -> TensorDict:
        batch = batch.copy()
        noise = [uniform(keys, draw) for draw in range(2 * self.model.num_patches)]
        batch["order"] = torch.stack(noise, dim=1).argsort(1)
        return batch

    def _call(self, model, batch):
        return model({"rgb": batch["rgb"], "depth": batch["depth"]}, batch["order"])

    def _errors(self, output, batch):
        errors = [
            (output[name] - patches(batch[name], self.model.patch)).square().mean(2)
            for name in ("rgb", "depth")
        ]
        masked = (batch["order"].argsort(1) >= self.model.visible).float()
        return (torch.cat(errors, dim=1) * masked).sum(1) / masked.sum(1)


def patches(images: Tensor, patch: int) -> Tensor:
    return F.unfold(images, patch, stride=patch).transpose(1, 2)


def mae_task(size: int = 8):
    """B is the number of tokens of both modalities."""
    task = MaeTask()
    batch = batched(rgb=normal(size, 3, 8, 8), depth=normal(size, 1, 8, 8, seed=5))
    return task, task.view(batch, 1000 + batch["index"], training=False)


def multimae_task(
    size: int = 5,
    *,
    balancer: Literal["none", "uncertainty", "softmax"] = "none",
    score_masks: int = 1,
    **others,
):
    """The library's own: three modalities of pictures of 16 pixels, four decoders."""
    model = build_multimae(
        "pretrain_multimae_micro",
        image_size=16,
        patch_size=8,
        num_semseg_classes=4,
        decoders=Decoders(dim=8, num_heads=2, depth=1),
        model_args={"dim": 8, "depth": 2, "num_heads": 2},
    )
    task = MaskedPretraining(
        model, num_encoded_tokens=5, balancer=balancer, score_masks=score_masks, **others
    )
    scrambled(task.model)
    classes = torch.randint(4, (size, 4, 4), generator=generator(6))
    depth = normal(size, 1, 16, 16, seed=5)
    batch = batched(rgb=normal(size, 3, 16, 16), depth=depth, semseg=classes)
    return task, task.view(batch, 1000 + batch["index"], training=False)


def head_task(name: str, kind: str, *, size: int = 5, **head_args):
    """A head of the library on its encoder, of rgb and depth; a loss of each pixel, or of all."""
    num_channels, dim, depth = (1, 8, 2) if kind == "regression" else (3, 8, 2)
    head = build_head(
        name,
        kind=kind,
        num_channels=num_channels,
        dim=dim,
        depth=depth,
        main_tasks=["rgb"] if kind == "regression" else ["rgb", "depth"],
        **head_args,
    )
    model = build_multivit(
        "multivit_micro",
        in_domains=["rgb", "depth"],
        output_adapters={"out": head},
        image_size=16,
        patch_size=8,
        model_args={"dim": dim, "depth": depth, "num_heads": 2},
    )

    def forward(model, batch: TensorDict) -> Tensor:
        return model({"rgb": batch["rgb"], "depth": batch["depth"]})["out"]

    def losses(output: Tensor, batch: TensorDict) -> Tensor:
        if kind == "regression":
            return (output - batch["label"][:, None]).abs().mean((1, 2, 3))
        each = F.cross_entropy(output, batch["label"], reduction="none")
        return each.reshape(len(each), -1).mean(1)

    label = integers(3, size) if kind == "classification" else integers(3, size, 16, 16)
    depth_map = normal(size, 1, 16, 16, seed=5)
    batch = batched(rgb=normal(size, 3, 16, 16), depth=depth_map, label=label)
    return ZooTask(scrambled(model), forward, losses), batch


# Text


def token_losses(logits: Tensor, batch: TensorDict) -> Tensor:
    """The mean of each example over its own next tokens, ``[B]``."""
    labels = batch["label"][:, 1:]
    losses = F.cross_entropy(
        logits[:, :-1].transpose(1, 2), labels, ignore_index=IGNORED, reduction="none"
    )
    return losses.sum(1) / (labels != IGNORED).sum(1)


def text_forward(model, batch: TensorDict) -> Tensor:
    given = {
        name: batch[name] for name in ("attention_mask", "position_ids") if name in batch.keys()
    }
    return model(input_ids=batch["x"], use_cache=False, **given).logits


def llama(*, attention: str = "sdpa", tied: bool = False, scale: float = 0.2) -> LlamaForCausalLM:
    config = LlamaConfig(
        vocab_size=VOCAB, hidden_size=16, intermediate_size=24, num_hidden_layers=2,
        num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=64,
        tie_word_embeddings=tied, attn_implementation=attention, pad_token_id=0,
    )  # fmt: skip
    return scrambled(LlamaForCausalLM(config), scale)


def text(size: int = 6, length: int = 6) -> TensorDict:
    """Whole texts; few enough words that some repeat."""
    tokens = integers(12, size, length, low=1)
    return batched(x=tokens, label=tokens)


def padded(lengths: list[int], width: int, *, side: str = "right") -> TensorDict:
    """Texts of different lengths; what the first real token would be told by padding is ignored."""
    tokens = integers(12, len(lengths), 64, low=1)
    x = torch.zeros(len(lengths), width, dtype=torch.int64)
    label, mask = torch.full_like(x, IGNORED), torch.zeros_like(x)
    for row, length in enumerate(lengths):
        start = 0 if side == "right" else width - length
        span = slice(start, start + length)
        x[row, span], label[row, span], mask[row, span] = (
            tokens[row, :length],
            tokens[row, :length],
            1,
        )
        if side == "left":
            label[row, start] = IGNORED
    return batched(x=x, label=label, attention_mask=mask)


def llama_task(batch: TensorDict | None = None, **options):
    task = ZooTask(llama(**options), text_forward, token_losses)
    return task, text() if batch is None else batch


def with_positions(batch: TensorDict, positions: Tensor) -> TensorDict:
    batch["position_ids"] = positions
    return batch


def llama_checkpointed():
    """HF checkpoints in training mode alone; the model has no dropout, so it is the same."""
    task, batch = llama_task()
    task.model.activation_checkpointing_enable()
    task.model.train()
    return task, batch


def lora(*, dora: bool = False, perturbed: bool = True, **options) -> nn.Module:
    """Adapters of rank 4 in a Llama; B is zero when they are made."""
    config = LoraConfig(r=4, lora_alpha=8, use_dora=dora, **options)
    with torch.random.fork_rng(), warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # peft asks transformers by an old name
        torch.manual_seed(0)
        model = get_peft_model(llama(), config)
    draw = generator(6)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if perturbed and "lora_B" in name:
                parameter.copy_(0.3 * torch.randn(parameter.shape, generator=draw))
    return model.eval()


def lora_task(batch: TensorDict | None = None, **options):
    task = ZooTask(lora(**options), text_forward, token_losses)
    return task, text(4) if batch is None else batch


def lora_checkpointed():
    """As peft has it: the embedding's output requires a gradient of its own."""
    task, batch = lora_task()
    task.model.enable_input_require_grads()
    task.model.activation_checkpointing_enable()
    task.model.train()
    return task, batch


def lora_with_inputs_that_require_grad():
    task, batch = lora_task()
    task.model.enable_input_require_grads()
    return task, batch


def gpt2_task(size: int = 5, scale: float = 0.2):
    config = GPT2Config(
        vocab_size=VOCAB, n_embd=16, n_layer=2, n_head=2, n_positions=16, bos_token_id=0,
        eos_token_id=0,
    )  # fmt: skip
    return ZooTask(scrambled(GPT2LMHeadModel(config), scale), text_forward, token_losses), text(
        size
    )


# Transformers of torch


def encoder_task(*, batch_first: bool, size: int = 5):
    """T is B; where the sequence is first, so are positions, not examples."""
    layer = nn.TransformerEncoderLayer(8, 2, 12, dropout=0.0, batch_first=batch_first)
    encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
    return regression(Encoded(encoder, batch_first), size, size, 8)


class Encoded(nn.Module):
    """An encoder between layers that have the examples first."""

    def __init__(self, encoder: nn.Module, batch_first: bool) -> None:
        super().__init__()
        self.first, self.encoder, self.head = nn.Linear(8, 8), encoder, nn.Linear(8, 3)
        self.batch_first = batch_first

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        if self.batch_first:
            return self.head(self.encoder(x))
        return self.head(self.encoder(x.transpose(0, 1)).transpose(0, 1))


class SelfAttention(nn.Module):
    """torch's own attention, with a layer before and after."""

    def __init__(self, **options) -> None:
        super().__init__()
        self.first, self.head = nn.Linear(8, 8), nn.Linear(8, 3)
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True, **options)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        mixed, _ = self.attention(x, x, x, need_weights=False)
        return self.head(x + mixed)


class SelfAttentionWithWeights(SelfAttention):
    """The attention's weights are in the output too."""

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        mixed, weights = self.attention(x, x, x)
        return self.head(x + mixed) + weights.square().sum(-1, keepdim=True)


# Parts


class Looked(nn.Module):
    """A table with a row for padding, and a layer."""

    def __init__(self) -> None:
        super().__init__()
        self.table, self.head = nn.Embedding(6, 4, padding_idx=2), nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.table(x).tanh())


class Twice(nn.Module):
    """One layer, used twice."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(5, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(self.layer(x).tanh())


class TiedTwice(nn.Module):
    """One table, looked up twice and used as the head twice."""

    def __init__(self) -> None:
        super().__init__()
        self.table, self.head = nn.Embedding(6, 4), nn.Linear(4, 6, bias=False)
        self.head.weight = self.table.weight

    def forward(self, x: Tensor) -> Tensor:
        hidden = (self.table(x) + self.table(x.flip(1))).tanh()
        return self.head(hidden) + self.head(hidden.cos())


class Uses(nn.Module):
    """Parameters that are something else before they meet the examples."""

    def __init__(self) -> None:
        super().__init__()
        self.gate = nn.Parameter(torch.zeros(4))
        self.long = nn.Parameter(torch.zeros(1, 9, 4))
        self.turned = nn.Parameter(torch.zeros(4, 3))
        self.plain = nn.Parameter(torch.zeros(4, 4))
        self.scale = nn.Parameter(torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        x = x * self.gate.sigmoid() + self.long[:, : x.shape[1]]
        x = (x @ self.plain).tanh() - self.gate
        return F.linear(x, self.turned.T) / (2 + self.scale.exp())


class Split(nn.Module):
    """One parameter, cut into the weights of two layers."""

    def __init__(self) -> None:
        super().__init__()
        self.both = nn.Parameter(torch.zeros(10, 5))

    def forward(self, x: Tensor) -> Tensor:
        first, second = self.both.chunk(2)
        return F.linear(F.linear(x, first).tanh(), second)


def weight_normed() -> nn.Module:
    return nn.Sequential(
        nn.utils.parametrizations.weight_norm(nn.Linear(5, 5)), nn.Tanh(), nn.Linear(5, 2)
    )


class Mixer(nn.Module):
    """An einsum, for which there is no rule, of the examples and a parameter."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(5, 5))

    def forward(self, x: Tensor) -> Tensor:
        return torch.einsum("btd,ts->bsd", x, self.weight)


class Mixed(nn.Module):
    """A module that is mapped, between layers; it gets keyword arguments beside the examples."""

    def __init__(self, mixer: nn.Module, **given) -> None:
        super().__init__()
        self.first, self.mixer, self.head = nn.Linear(5, 5), mixer, nn.Linear(5, 2)
        self.given = given

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        return self.head(self.mixer(x=x, **self.given).tanh())


class KeywordMixer(nn.Module):
    """Arguments by name: the examples, a table that they share, a number."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(5, 5))

    def forward(self, *, shift: Tensor, times: float, x: Tensor) -> Tensor:
        return times * torch.einsum("btd,de->bte", x + shift, self.weight)


class MaskToken(nn.Module):
    """Positions below zero are overwritten by a token, in place."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.token = nn.Linear(5, 5), nn.Parameter(torch.zeros(5))

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.first(x)
        hidden = hidden.clone()
        hidden[x[:, :, 0] < 0] = self.token
        return hidden.tanh()


class BiasInPlace(nn.Module):
    """A bias is added in place, and what the operation returns is not looked at."""

    def __init__(self) -> None:
        super().__init__()
        self.bias, self.head = nn.Parameter(torch.zeros(5)), nn.Linear(5, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = x.clone()
        x.add_(self.bias)
        return self.head(x.tanh())


class PositionInPlace(nn.Module):
    """A table is added in place, to a part, and what the operation returns is not looked at."""

    def __init__(self) -> None:
        super().__init__()
        self.position, self.head = nn.Parameter(torch.zeros(4, 5)), nn.Linear(5, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = x.clone()
        x[:, 1:].add_(self.position)
        return self.head(x.tanh())


class Inner(nn.Module):
    """The input is a parameter of its own, as where a gradient by the input is wanted too."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.head = nn.Linear(5, 4), nn.Linear(4, 1)

    def forward(self, x: Tensor) -> Tensor:
        if torch.is_grad_enabled() and not x.requires_grad:
            x = x.detach().requires_grad_()
        return self.head(self.first(x).tanh())


class Recurrent(nn.Module):
    """A recurrent layer, which no rule covers."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.GRUCell(5, 5)

    def forward(self, x: Tensor) -> Tensor:
        state = torch.zeros_like(x[:, 0])
        for t in range(x.shape[1]):
            state = self.layer(x[:, t], state)
        return state


class Sequence(nn.Module):
    """Convolution over time, and a scale applied in place."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv1d(5, 4, 3, padding=1)
        self.scale = nn.Parameter(torch.zeros(4))

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.conv(x.transpose(1, 2)).sin().transpose(1, 2)
        hidden *= self.scale
        return hidden


def packed_positions() -> Tensor:
    """Two texts in a row of six, cut at another place in every row."""
    cuts = [3, 2, 4, 1, 5, 3]
    return torch.stack([torch.cat([torch.arange(c), torch.arange(6 - c)]) for c in cuts])


CONV1D = frozenset(
    f"transformer.h.{i}.{part}"
    for i in range(2)
    for part in ("attn.c_attn", "attn.c_proj", "mlp.c_fc", "mlp.c_proj")
)

TRANSPOSED = frozenset(f"output_adapters.out.levels.{i}.1" for i in range(2))

ZOO: dict[str, Case] = {
    "vit": Case(vit_task),
    "vit, one image": Case(lambda: vit_task(size=1)),
    # 4 patches, a class token and 2 registers: 7 tokens, as many as images.
    "vit, registers, layer scale, average": Case(
        lambda: vit_task(
            size=7, init_values=0.1, reg_tokens=2, global_pool="avg", fc_norm=True, qk_norm=True
        )
    ),
    "vit, RMS norms": Case(lambda: vit_task(size=16, norm_layer=RmsNorm, no_embed_class=True)),
    "masked autoencoder": Case(mae_task),
    "masked autoencoder, one image": Case(lambda: mae_task(1)),
    "multimae": Case(multimae_task),
    "multimae, one scene": Case(lambda: multimae_task(1)),
    "multimae, two masks, learned balance": Case(
        lambda: multimae_task(balancer="uncertainty", score_masks=2)
    ),
    "multimae, softmax balance": Case(
        lambda: multimae_task(balancer="softmax", sample_tasks_uniformly=True)
    ),
    "linear head": Case(lambda: head_task("linear", "classification")),
    "linear map": Case(lambda: head_task("linear", "segmentation")),
    "linear map of values, one scene": Case(lambda: head_task("linear", "regression", size=1)),
    "convnext head": Case(
        lambda: head_task("convnext", "segmentation", num_blocks=2),
        by_vmap=frozenset(f"output_adapters.out.blocks.{i}.conv_dw" for i in range(2)),
    ),
    "segmenter head": Case(lambda: head_task("segmenter", "segmentation")),
    "dpt head, classes": Case(
        lambda: head_task("dpt", "segmentation", features=4), by_vmap=TRANSPOSED
    ),
    "dpt head, values": Case(
        lambda: head_task("dpt", "regression", features=4), by_vmap=TRANSPOSED
    ),
    "convolutions": Case(
        lambda: regression(ConvNet(), 4, 2, 8, 8), by_vmap=frozenset({"grouped", "same"})
    ),
    "llama, sdpa": Case(llama_task),
    "llama, eager": Case(lambda: llama_task(attention="eager")),
    "llama, one text": Case(lambda: llama_task(text(1))),
    "llama, as many texts as features": Case(lambda: llama_task(text(16))),
    "llama, tied": Case(lambda: llama_task(tied=True)),
    "llama, right padding": Case(lambda: llama_task(padded([7, 3, 5, 2], 7))),
    "llama, left padding": Case(lambda: llama_task(padded([7, 3, 5, 3], 7, side="left"))),
    "llama, left padding, eager, tied": Case(
        lambda: llama_task(padded([4, 6, 3], 6, side="left"), attention="eager", tied=True)
    ),
    "llama, positions": Case(
        lambda: llama_task(with_positions(text(), (torch.arange(6) + 2).expand(6, 6)))
    ),
    "llama, packed": Case(lambda: llama_task(with_positions(text(), packed_positions()))),
    "lora": Case(lambda: lora_task(perturbed=False)),
    "lora, trained": Case(lora_task),
    "lora in every layer, padded": Case(
        lambda: lora_task(padded([7, 3, 5, 2], 7), target_modules="all-linear")
    ),
    "lora, inputs that require a gradient": Case(
        lora_with_inputs_that_require_grad, mappable=False
    ),
    "dora": Case(lambda: lora_task(dora=True)),
    "gpt2": Case(gpt2_task, by_vmap=CONV1D),
    "encoder": Case(
        lambda: encoder_task(batch_first=True),
        by_vmap=frozenset(f"encoder.layers.{i}.self_attn" for i in range(2)),
    ),
    "encoder, sequence first": Case(
        lambda: encoder_task(batch_first=False), by_vmap=frozenset({""})
    ),
    "attention": Case(
        lambda: regression(SelfAttention(), 4, 4, 8), by_vmap=frozenset({"attention"})
    ),
    "attention with a bias": Case(
        lambda: regression(SelfAttention(add_bias_kv=True), 4, 4, 8),
        by_vmap=frozenset({"attention"}),
    ),
    "attention with weights": Case(
        lambda: regression(SelfAttentionWithWeights(), 4, 3, 8), by_vmap=frozenset({"attention"})
    ),
    "embedding": Case(lambda: lookup(Looked(), 6, 8)),
    "linear of several dimensions": Case(lambda: regression(nn.Linear(5, 3), 4, 3, 4, 5)),
    "linear of vectors": Case(lambda: regression(nn.Linear(5, 5), 5, 5)),
    "linear, twice": Case(lambda: regression(Twice(), 5, 5, 5)),
    "tied, twice": Case(lambda: lookup(TiedTwice(), 6, 4)),
    "parameters made into others": Case(lambda: regression(Uses(), 4, 4, 4)),
    "a parameter cut in two": Case(lambda: regression(Split(), 10, 5)),
    "weight norm": Case(lambda: regression(weight_normed(), 5, 5)),
    "einsum": Case(lambda: regression(Mixed(Mixer()), 5, 5, 5), by_vmap=frozenset({"mixer"})),
    "einsum, keywords": Case(
        lambda: regression(Mixed(KeywordMixer(), shift=normal(5, 5, seed=8), times=0.5), 5, 5, 5),
        by_vmap=frozenset({"mixer"}),
    ),
    "recurrent": Case(lambda: regression(Recurrent(), 3, 4, 5), by_vmap=frozenset({"layer"})),
    "convolution over time": Case(
        lambda: regression(Sequence(), 3, 4, 5), by_vmap=frozenset({"", "conv"})
    ),
    "a bias added in place": Case(lambda: regression(BiasInPlace(), 6, 5), by_vmap=None),
    "a table added in place": Case(lambda: regression(PositionInPlace(), 6, 5, 5), by_vmap=None),
    "inputs that require a gradient": Case(lambda: regression(Inner(), 5, 5), mappable=False),
    "vit, checkpointed": Case(vit_checkpointed),
    "llama, checkpointed": Case(llama_checkpointed, mappable=False),
    "lora, checkpointed": Case(lora_checkpointed, mappable=False),
}
"""Name -> model."""
