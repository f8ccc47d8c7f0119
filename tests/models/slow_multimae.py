"""MultiMAE as it is described, one example, token and head at a time, to hold the model against;
and models and pictures small enough for it.

Weights are taken by the names of a checkpoint. Tokens are lists of vectors; nothing is batched.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from attent.models.multimae import (
    Decoders,
    MultiMAE,
    TokenOrder,
    build_multimae,
    draw_order,
    num_draws,
)

TINY = {"dim": 24, "depth": 2, "num_heads": 3}
DOMAINS = ("rgb", "depth", "semseg")
CLASSES = 5
STRIDE = {"rgb": 1, "depth": 1, "semseg": 4}
Tokens = list[Tensor]


@dataclass
class Slow:
    """What a state dict does not tell."""

    weights: dict[str, Tensor]
    patch: int
    heads: int
    decoder_heads: int = 0
    use_task_queries: bool = True
    use_xattn: bool = True

    def count(self, prefix: str) -> int:
        """How many blocks there are below a name."""
        numbers = [
            int(key[len(prefix) :].split(".")[0]) for key in self.weights if key.startswith(prefix)
        ]
        return max(numbers, default=-1) + 1

    def linear(self, name: str, x: Tensor) -> Tensor:
        return self.weights[f"{name}.weight"] @ x + self.weights[f"{name}.bias"]

    def norm(self, name: str, x: Tensor) -> Tensor:
        centred = x - x.sum() / len(x)
        spread = torch.sqrt((centred * centred).sum() / len(x) + 1e-6)
        return centred / spread * self.weights[f"{name}.weight"] + self.weights[f"{name}.bias"]

    def mlp(self, name: str, x: Tensor) -> Tensor:
        hidden = self.linear(f"{name}.fc1", x)
        assert len(hidden) == 4 * len(x)
        hidden = hidden * 0.5 * (1 + torch.erf(hidden / math.sqrt(2)))
        return self.linear(f"{name}.fc2", hidden)

    def attend(self, queries: Tokens, keys: Tokens, values: Tokens, heads: int) -> Tokens:
        size = len(queries[0]) // heads
        out = []
        for query in queries:
            parts = []
            for head in range(heads):
                own = slice(head * size, (head + 1) * size)
                scores = [math.exp(float(query[own] @ key[own]) / math.sqrt(size)) for key in keys]
                mixed = torch.zeros(size, dtype=query.dtype)
                for score, value in zip(scores, values, strict=True):
                    mixed = mixed + score / sum(scores) * value[own]
                parts.append(mixed)
            out.append(torch.cat(parts))
        return out

    def block(self, name: str, tokens: Tokens, heads: int) -> Tokens:
        dim = len(tokens[0])
        made = [self.linear(f"{name}.attn.qkv", self.norm(f"{name}.norm1", x)) for x in tokens]
        queries, keys, values = (
            [x[:dim] for x in made],
            [x[dim : 2 * dim] for x in made],
            [x[2 * dim :] for x in made],
        )
        mixed = self.attend(queries, keys, values, heads)
        tokens = [
            x + self.linear(f"{name}.attn.proj", m) for x, m in zip(tokens, mixed, strict=True)
        ]
        return [x + self.mlp(f"{name}.mlp", self.norm(f"{name}.norm2", x)) for x in tokens]

    def positions(self, name: str, grid: tuple[int, int], mode: str) -> Tokens:
        table = F.interpolate(self.weights[f"{name}.pos_emb"], grid, mode=mode, align_corners=False)
        return [table[0, :, row, column] for row in range(grid[0]) for column in range(grid[1])]

    def embed(self, domain: str, picture: Tensor) -> Tokens:
        """``[C, H, W]``, or ``[H, W]`` classes, -> tokens, row by row."""
        name = f"input_adapters.{domain}"
        if domain == "semseg":
            table = self.weights[f"{name}.class_emb.weight"]
            rows = [torch.stack([table[k] for k in row], dim=1) for row in picture.tolist()]
            picture = torch.stack(rows, dim=1)
        side = max(1, self.patch // STRIDE[domain])
        grid = picture.shape[1] // side, picture.shape[2] // side
        places = self.positions(name, grid, "bilinear" if domain == "semseg" else "bicubic")
        kernel = self.weights[f"{name}.proj.weight"].flatten(1)
        tokens = []
        for row in range(grid[0]):
            for column in range(grid[1]):
                up, left = row * side, column * side
                piece = picture[:, up : up + side, left : left + side].reshape(-1)
                tokens.append(kernel @ piece + self.weights[f"{name}.proj.bias"])
        return [token + place for token, place in zip(tokens, places, strict=True)]

    def encode(self, tokens: Tokens, keep: list[int]) -> list[Tokens]:
        """The tokens after each block: those of ``keep``, then the global ones."""
        seen = [tokens[i] for i in keep] + list(self.weights["global_tokens"][0])
        layers = []
        for number in range(self.count("encoder.")):
            seen = self.block(f"encoder.{number}", seen, self.heads)
            layers.append(seen)
        return layers

    def decode(
        self,
        output: str,
        encoded: Tokens,
        keep: list[int],
        grids: dict[str, tuple[int, int]],
        image: tuple[int, int],
    ) -> Tensor:
        """``[C, H / stride, W / stride]``."""
        task = "rgb" if output == "norm_rgb" else output
        name = f"output_adapters.{output}"
        projected = [self.linear(f"{name}.proj_context", token) for token in encoded]
        visible, others = projected[: len(keep)], projected[len(keep) :]
        mask_token = self.weights[f"{name}.mask_token"][0, 0]

        def embeddings(domain: str, grid: tuple[int, int]) -> Tokens:
            nothing = torch.zeros_like(mask_token)[None, None]
            learned = self.weights.get(f"{name}.task_embeddings.{domain}", nothing)[0, 0]
            return [place + learned for place in self.positions(name, grid, "bilinear")]

        added = [e for domain, grid in grids.items() for e in embeddings(domain, grid)]
        full = [mask_token + e for e in added]
        for token, place in zip(visible, keep, strict=True):
            full[place] = token + added[place]

        side = max(1, self.patch // STRIDE[task])
        rows, columns = (length // STRIDE[task] // side for length in image)
        if self.use_task_queries and task in grids:
            before = list(grids)[: list(grids).index(task)]
            start = sum(grids[domain][0] * grids[domain][1] for domain in before)
            queries = full[start : start + rows * columns]
        else:
            queries = [mask_token + e for e in embeddings(task, (rows, columns))]
        if self.use_xattn:
            context = [full[place] for place in keep] + others
            q = [
                self.linear(f"{name}.decoder.q", self.norm(f"{name}.query_norm", x))
                for x in queries
            ]
            kv = [
                self.linear(f"{name}.decoder.kv", self.norm(f"{name}.context_norm", x))
                for x in context
            ]
            dim = len(mask_token)
            mixed = self.attend(q, [x[:dim] for x in kv], [x[dim:] for x in kv], self.decoder_heads)
            queries = [self.linear(f"{name}.decoder.proj", x) for x in mixed]
            queries = [
                x + self.mlp(f"{name}.mlp", self.norm(f"{name}.out_norm", x)) for x in queries
            ]
        for number in range(self.count(f"{name}.decoder_transformer.")):
            queries = self.block(
                f"{name}.decoder_transformer.{number}", queries, self.decoder_heads
            )
        patches = [self.linear(f"{name}.out_proj", x) for x in queries]
        channels = len(patches[0]) // side**2
        picture = torch.zeros(channels, rows * side, columns * side, dtype=mask_token.dtype)
        for number, patch in enumerate(patches):
            up, left = number // columns * side, number % columns * side
            for c in range(channels):
                for i in range(side):
                    for j in range(side):
                        picture[c, up + i, left + j] = patch[c * side**2 + i * side + j]
        return picture

    def run(
        self, pictures: dict[str, Tensor], keeps: list[list[int]], outputs: list[str]
    ) -> dict[str, Tensor]:
        """Predictions of a batch; ``keeps`` are the tokens each example shows."""
        if "rgb" in pictures:
            image = tuple(pictures["rgb"].shape[-2:])
        elif "semseg" in pictures:
            image = tuple(4 * length for length in pictures["semseg"].shape[-2:])
        else:
            image = tuple(next(iter(pictures.values())).shape[-2:])
        predicted: dict[str, list[Tensor]] = {output: [] for output in outputs}
        for example, keep in enumerate(keeps):
            tokens, grids = [], {}
            for domain, batch in pictures.items():
                tokens += self.embed(domain, batch[example])
                side = max(1, self.patch // STRIDE[domain])
                grids[domain] = batch.shape[-2] // side, batch.shape[-1] // side
            encoded = self.encode(tokens, keep)[-1]
            for output in outputs:
                predicted[output].append(self.decode(output, encoded, keep, grids, image))
        return {output: torch.stack(batch) for output, batch in predicted.items()}


def tiny(seed: int = 0, *, random: bool = True, decoders: dict | None = None, **others) -> MultiMAE:
    """Patches of 8 pixels, 32 pixels a side, in float64; no weight is left at zero or one."""
    options = {"image_size": 32, "patch_size": 8, "num_semseg_classes": CLASSES, "model_args": TINY}
    model = build_multimae(
        "pretrain_multimae_micro",
        decoders=Decoders(**({"dim": 16, "depth": 1, "num_heads": 2} | (decoders or {}))),
        **options | others,
    ).double()
    return randomize(model, seed) if random else model


def randomize(model: nn.Module, seed: int = 0) -> nn.Module:
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(0.3 * torch.randn(parameter.shape, generator=generator))
    return model


def pictures(
    *domains: str, batch: int = 2, height: int = 32, width: int = 32, seed: int = 1
) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    made = {
        "rgb": torch.rand(batch, 3, height, width, dtype=torch.float64, generator=generator),
        "depth": torch.rand(batch, 1, height, width, dtype=torch.float64, generator=generator),
        "semseg": torch.randint(CLASSES, (batch, height // 4, width // 4), generator=generator),
    }
    return {domain: made[domain] for domain in domains or DOMAINS}


def drawn(sizes: list[int], number: int, batch: int = 2) -> TokenOrder:
    generator = torch.Generator().manual_seed(2)
    noise = torch.rand(batch, num_draws(sizes), dtype=torch.float64, generator=generator)
    return draw_order(noise, sizes, number)
