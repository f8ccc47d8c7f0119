"""MultiMAE: a multi-modal, multi-task masked autoencoder (Bachmann et al., ECCV 2022).

Written from its description. Module names and shapes are those of the released weights, so that
they load here and ours load there; see `attent.models.multimae.weights`.

Shapes: B examples, N visible tokens, G global ones, L tokens of all modalities, D channels.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence

import torch
from timm.models.vision_transformer import Block
from torch import Tensor, nn

from attent.models.multimae.inputs import InputAdapter
from attent.models.multimae.masking import (
    TokenOrder,
    all_visible,
    draw_order,
    given_order,
    num_draws,
    pick,
)
from attent.models.multimae.outputs import LayerNorm, Layout, SpatialOutput

Pictures = Mapping[str, Tensor]


class MultiViT(nn.Module):
    """The encoder: adapters, global tokens, blocks. It has no norm after the last block.

    The sequence is the modalities in the order of ``input_adapters``, then the global tokens. (The
    published code takes the order of the dictionary it is given, which its data loader leaves to
    Python's hash seed; here it is the model's.)

    Args:
        input_adapters: modality -> its adapter.
        output_adapters: output -> decoder or head; none gives tokens. A head whose
            ``encoder_layers`` names blocks, from 0, is given the tokens after each of those.
        dim: D.
        depth: blocks.
        num_heads: of each.
        mlp_ratio: hidden channels of a block, in D.
        num_global_tokens: G; 0 is allowed.
        drop_path_rate: stochastic depth of the last block, in [0, 1); a straight line from 0.
        drop_rate: dropout after attention and MLP.
        attn_drop_rate: dropout of attention weights.

    Raises:
        ValueError: an argument out of range; a head that asks for a block there is not.
    """

    def __init__(
        self,
        input_adapters: Mapping[str, InputAdapter],
        output_adapters: Mapping[str, nn.Module] | None = None,
        *,
        dim: int = 768,
        depth: int = 12,
        num_heads: int = 12,
        mlp_ratio: float = 4.0,
        num_global_tokens: int = 1,
        drop_path_rate: float = 0.0,
        drop_rate: float = 0.0,
        attn_drop_rate: float = 0.0,
    ) -> None:
        super().__init__()
        if not input_adapters:
            raise ValueError("at least one modality must be an input")
        if dim % num_heads:
            raise ValueError(f"dim {dim} is not a multiple of num_heads {num_heads}")
        if not 0 <= drop_path_rate < 1:
            raise ValueError(f"drop_path is in [0, 1), got {drop_path_rate}")
        for name, head in (output_adapters or {}).items():
            for layer in _layers_of(head) or ():
                if not 0 <= layer < depth:
                    raise ValueError(
                        f"output {name} asks for block {layer}; there are {depth}, from 0"
                    )
        self.dim, self.num_global_tokens = dim, num_global_tokens
        self.input_adapters = nn.ModuleDict(dict(input_adapters))
        self.output_adapters = nn.ModuleDict(dict(output_adapters or {}))
        self.global_tokens = nn.Parameter(torch.zeros(1, num_global_tokens, dim))
        nn.init.trunc_normal_(self.global_tokens, std=0.02)
        rates = torch.linspace(0, drop_path_rate, depth, device="cpu").tolist()
        self.encoder = nn.Sequential(
            *(
                Block(
                    dim,
                    num_heads,
                    mlp_ratio,
                    qkv_bias=True,
                    proj_drop=drop_rate,
                    attn_drop=attn_drop_rate,
                    drop_path=rate,
                    norm_layer=LayerNorm,
                )
                for rate in rates
            )
        )
        for block in self.encoder:  # dropout is after the second layer of an MLP only
            block.mlp.drop1 = nn.Identity()  # type: ignore[union-attr]
        initialize(self)

    def no_weight_decay(self) -> set[str]:
        """Tables that are looked up or added, not filters: weight decay spares them.

        The published recipe decays everything that is trained, biases and norms too, its own list
        of exceptions being ignored; its list names the class and modality embeddings, but not by
        the names they have. Here what it names is spared.
        """
        last = ("mask_token", "pos_emb", "global_tokens", "class_emb.weight", "class_emb")
        named = {name for name, _ in self.named_parameters()}
        return {name for name in named if name.endswith(last) or ".task_embeddings." in name}

    def layout(self, pictures: Pictures) -> Layout:
        """Where the tokens of these pictures stand.

        The picture's size is that of the first modality in the model's order, times its stride.

        Raises:
            ValueError: no picture of a modality that the model encodes, or sizes or numbers of
                examples that disagree.
        """
        grids: dict[str, tuple[int, int]] = {}
        sizes: dict[str, tuple[int, int]] = {}
        counts: dict[str, int] = {}
        for name, adapter in self._adapters(pictures):
            picture, stride = pictures[name], adapter.stride
            grids[name] = adapter.grid(picture)
            sizes[name] = picture.shape[-2] * stride, picture.shape[-1] * stride
            counts[name] = len(picture)
        if not grids:
            raise ValueError(
                f"the model encodes {', '.join(self.input_adapters)}; given {', '.join(pictures)}"
            )
        if len(set(sizes.values())) > 1:
            said = ", ".join(f"{name} {h} x {w}" for name, (h, w) in sizes.items())
            raise ValueError(f"the modalities show pictures of different sizes: {said}")
        if len(set(counts.values())) > 1:
            said = ", ".join(f"{name} {count}" for name, count in counts.items())
            raise ValueError(f"the modalities are of different numbers of examples: {said}")
        return Layout(next(iter(sizes.values())), grids, self.num_global_tokens)

    def embed(self, pictures: Pictures) -> Tensor:
        """Tokens of all modalities, ``[B, L, D]``; pictures without an adapter are passed over."""
        return torch.cat([adapter(pictures[name]) for name, adapter in self._adapters(pictures)], 1)

    def with_global(self, tokens: Tensor) -> Tensor:
        """Tokens with the global ones after them, ``[B, n + G, D]``."""
        return torch.cat([tokens, self.global_tokens.expand(len(tokens), -1, -1)], dim=1)

    def forward(
        self, pictures: Pictures | Tensor, *, return_all_layers: bool = False
    ) -> Tensor | list[Tensor] | dict[str, Tensor]:
        """Nothing masked.

        Args:
            pictures: modality -> ``[B, C, H, W]`` (classes: ``[B, H, W]`` integers); a bare tensor
                is rgb.
            return_all_layers: the tokens after every block, instead of the last's; heads that name
                their blocks are given those as ever.

        Returns:
            Tokens ``[B, L + G, D]``, a list of them, or output -> what its head makes of them.
        """
        if isinstance(pictures, Tensor):
            pictures = {"rgb": pictures}
        layout = self.layout(pictures)
        tokens = self.with_global(self.embed(pictures))
        layers = []
        for block in self.encoder:
            tokens = block(tokens)
            layers.append(tokens)
        chosen = layers if return_all_layers else layers[-1]
        if not self.output_adapters:
            return chosen
        predicted = {}
        for name, head in self.output_adapters.items():
            asked = _layers_of(head)
            own = chosen if asked is None else [layers[layer] for layer in asked]
            predicted[name] = head(own, layout)
        return predicted

    def _adapters(self, pictures: Pictures) -> list[tuple[str, InputAdapter]]:
        found = [(name, a) for name, a in self.input_adapters.items() if name in pictures]
        return found  # type: ignore[return-value]


class MultiMAE(MultiViT):
    """The same modules, with tokens masked and decoders that predict every picture whole.

    Args:
        fp32_outputs: outputs that are decoded in float32 outside autocast.
        **others: of `MultiViT`; ``output_adapters`` are `SpatialOutput`.
    """

    def __init__(self, *args: object, fp32_outputs: Collection[str] = (), **others: object) -> None:
        super().__init__(*args, **others)  # type: ignore[arg-type]
        unknown = sorted(set(fp32_outputs) - set(self.output_adapters))
        if unknown:
            raise ValueError(
                f"fp32_output_adapters: {', '.join(unknown)} is no output; there are "
                f"{', '.join(self.output_adapters)}"
            )
        self.fp32_outputs = frozenset(fp32_outputs)

    def forward(  # type: ignore[override]
        self,
        pictures: Pictures | Tensor,
        *,
        num_encoded_tokens: int | None = None,
        masks: Pictures | TokenOrder | None = None,
        generator: torch.Generator | None = None,
        alphas: float | Sequence[float] = 1.0,
        sample_tasks_uniformly: bool = False,
    ) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Predict every output from the visible tokens.

        Args:
            pictures: modality -> ``[B, C, H, W]`` (classes: ``[B, H, W]`` integers); a bare tensor
                is rgb.
            num_encoded_tokens: N, exactly so many are seen; None for all, or those of ``masks``.
            masks: modality -> ``[B, n]``, 0 for visible tokens, equally many in every example; or
                a `TokenOrder`, taken as it is; None draws them.
            generator: masks are drawn from it, never from the global one.
            alphas: see `draw_order`.
            sample_tasks_uniformly: see `draw_order`.

        Returns:
            Output -> ``[B, C, H / stride, W / stride]``, and modality -> ``[B, n]`` bool, True
            where it was masked.

        Raises:
            ValueError: masks to be drawn without a generator; masks that do not fit.
        """
        if isinstance(pictures, Tensor):
            pictures = {"rgb": pictures}
        layout = self.layout(pictures)
        tokens = self.embed(pictures)
        if masks is None and num_encoded_tokens is not None:
            order = draw_order(
                _uniform(len(tokens), layout, generator).to(tokens.device),
                list(layout.sizes.values()),
                num_encoded_tokens,
                alphas=alphas,
                sample_tasks_uniformly=sample_tasks_uniformly,
            )
        else:
            order = self._given(masks, tokens, layout, num_encoded_tokens)
        encoded = self.encoder(self.with_global(pick(tokens, order.keep)))
        masked = order.masked
        return (
            {name: self._decode(name, encoded, order, layout) for name in self.output_adapters},
            {name: masked[:, layout.span(name)] for name in layout.grids},
        )

    def _decode(self, name: str, encoded: Tensor, order: TokenOrder, layout: Layout) -> Tensor:
        decoder = self.output_adapters[name]
        if name not in self.fp32_outputs:
            return decoder(encoded, order, layout)
        with torch.autocast(encoded.device.type, enabled=False):
            return decoder(encoded.float(), order, layout)

    def _given(
        self,
        masks: Pictures | TokenOrder | None,
        tokens: Tensor,
        layout: Layout,
        num_encoded_tokens: int | None,
    ) -> TokenOrder:
        """The order that masks say, seen to fit the tokens; without masks all are visible."""
        if masks is None:
            return all_visible(len(tokens), layout.num_tokens, tokens.device)
        if isinstance(masks, TokenOrder):
            order = _checked(masks, num_encoded_tokens)
        else:
            order = self._order_of(masks, layout, num_encoded_tokens)
        if order.order.shape != (len(tokens), layout.num_tokens):
            raise ValueError(
                f"masks are of {' x '.join(map(str, order.order.shape))} tokens, the pictures of "
                f"{len(tokens)} x {layout.num_tokens}"
            )
        return order

    def _order_of(
        self, masks: Pictures, layout: Layout, num_encoded_tokens: int | None
    ) -> TokenOrder:
        if set(masks) != set(layout.grids):
            raise ValueError(
                f"masks are given for {', '.join(masks)}; pictures for {', '.join(layout.grids)}"
            )
        for name, size in layout.sizes.items():
            found = masks[name].flatten(1).shape[1]
            if found != size:
                raise ValueError(f"{name} has {size} tokens, its mask {found}")
        device = self.global_tokens.device
        ordered = {name: masks[name].to(device) for name in layout.grids}
        return given_order(ordered, num_encoded_tokens)

    def task_of(self, output: str) -> str:
        """The modality that an output predicts: ``norm_rgb`` predicts rgb."""
        return self._decoder(output).task

    def output_grid(self, output: str, layout: Layout) -> tuple[int, int]:
        """(rows, columns) of an output's patches."""
        return self._decoder(output).grid(layout)

    def _decoder(self, output: str) -> SpatialOutput:
        decoder = self.output_adapters[output]
        assert isinstance(decoder, SpatialOutput)
        return decoder


def _layers_of(head: nn.Module) -> tuple[int, ...] | None:
    """The blocks whose tokens a head is to be given; None for the last."""
    return getattr(head, "encoder_layers", None)


def _uniform(count: int, layout: Layout, generator: torch.Generator | None) -> Tensor:
    """The numbers that `draw_order` needs for ``count`` examples, on the generator's device."""
    if generator is None:
        raise ValueError("masks are drawn from a generator: give one, or the masks themselves")
    return torch.rand(
        (count, num_draws(list(layout.sizes.values()))),
        dtype=torch.float64,
        generator=generator,
        device=generator.device,
    )


def _checked(order: TokenOrder, num_encoded_tokens: int | None) -> TokenOrder:
    if not 1 <= order.num_visible <= order.order.shape[-1]:
        raise ValueError(
            f"masks leave {order.num_visible} of {order.order.shape[-1]} tokens visible"
        )
    if num_encoded_tokens not in (None, order.num_visible):
        raise ValueError(
            f"masks leave {order.num_visible} tokens visible, num_encoded_tokens is "
            f"{num_encoded_tokens}"
        )
    return order


def initialize(model: nn.Module) -> None:
    """The initialisation of the published model, in its order: what it overwrites is overwritten.

    Linear layers: Xavier uniform, biases zero; a projection that makes query, key and value (or key
    and value) at once as if it were three (two). Norms: one and zero. Patch projections: Xavier
    uniform over the flattened patch, their bias torch's own. Tables keep their truncated normal.
    """
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear):
            fan_out, fan_in = module.weight.shape
            parts = 3 if "qkv" in name else 2 if "kv" in name else 1
            bound = math.sqrt(6 / (fan_out / parts + fan_in))
            nn.init.uniform_(module.weight, -bound, bound)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
        elif isinstance(module, nn.LayerNorm):
            nn.init.ones_(module.weight)
            nn.init.zeros_(module.bias)
        elif isinstance(module, nn.Conv2d) and ".proj" in name:
            nn.init.xavier_uniform_(module.weight.view(module.weight.shape[0], -1))
