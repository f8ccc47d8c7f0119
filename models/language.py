"""Causal language models: from a path or made small, with adapters, and the loss of each token.

Shapes: B texts, T tokens, D features, V words.
"""

from __future__ import annotations

import difflib
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from attent.models.packing import pack
from attent.models.token_losses import (
    is_plain,
    plain_token_losses,
    token_errors,
    token_losses,
    token_losses_of,
    tokens_of_chunk,
)

IGNORED = -100
"""The label of tokens that nothing is learned from."""

_LLAMA = {
    "dim": "hidden_size",
    "depth": "num_hidden_layers",
    "num_heads": "num_attention_heads",
    "num_kv_heads": "num_key_value_heads",
    "mlp_dim": "intermediate_size",
    "max_length": "max_position_embeddings",
}


class LanguageModel(nn.Module):
    """A causal language model as it is trained: the loss of each supervised token.

    Rows are padded on the right: with a causal mask no token sees padding, so that no other mask is
    needed and positions count from 0; or they are packed into fewer rows (``lengths``). The head is
    applied to supervised tokens alone, a chunk at a time (`token_losses`), but to all at once where
    it is being differentiated by example: under vmap, or where ``watched`` says that its own
    gradient is listened for.

    Args:
        causal: a causal model of transformers, or such a one with adapters of peft.
        chunk: tokens whose logits are held at once; None for 16 MiB of them.
    """

    def __init__(self, causal: nn.Module, *, chunk: int | None = None) -> None:
        super().__init__()
        self.causal = causal
        self.chunk = chunk or tokens_of_chunk(int(self.inner.config.vocab_size))

    @property
    def inner(self) -> Any:
        """The model of transformers, adapters in its layers."""
        base = getattr(self.causal, "get_base_model", None)
        return self.causal if base is None else base()

    @property
    def has_adapters(self) -> bool:
        """Whether it has adapters of peft."""
        return hasattr(self.causal, "get_base_model")

    def forward(
        self,
        input_ids: Tensor,
        labels: Tensor,
        measure: Literal["loss", "error"] = "loss",
        watched: Callable[[Tensor], bool] | None = None,
        lengths: Tensor | None = None,
    ) -> Tensor:
        """What is measured of each token that a token before it predicts.

        Args:
            input_ids: ``[B, T]`` int64, padded on the right.
            labels: ``[B, T]`` int64, the same ids, or -100 for what is not learned from.
            measure: ``loss``: cross-entropy in nats; ``error``: the square of its gradient by the
                logits, without a graph.
            watched: whether somebody listens for the gradient of a tensor.
            lengths: ``[B]``, tokens of each row: pack them into fewer rows. Gradients by example
                are then not to be had of the rows.

        Returns:
            ``[B, T - 1]`` float32, 0 where there is no label.
        """
        hidden, at = self._hidden(input_ids, lengths)
        target, head = labels[:, 1:], self.inner.get_output_embeddings()
        if (
            at is None
            and measure == "loss"
            and (_transformed() or (watched and watched(head.weight)))
        ):
            measured = plain_token_losses(self._logits(hidden[:, :-1]), target, IGNORED)
        else:
            learned = target != IGNORED
            before = learned.new_zeros(labels.shape)
            before[:, :-1] = learned
            places = before.flatten().nonzero().squeeze(1)
            rows = hidden.flatten(0, 1).index_select(0, places if at is None else at[places])
            values = self._measured(rows, target[learned], head, measure)
            empty = values.new_zeros(target.shape)
            measured = empty.index_put((learned.nonzero(as_tuple=True)), values)
        return measured

    def _hidden(self, input_ids: Tensor, lengths: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """The last hidden states, and where each token's is among all if they are packed."""
        model = self.inner.base_model
        if lengths is None:
            return model(input_ids=input_ids, use_cache=False).last_hidden_state, None
        packed = pack(lengths, input_ids.shape[1])
        there = torch.arange(input_ids.shape[1], device=lengths.device) < lengths[:, None]
        states = model(
            input_ids=packed.put(input_ids, there), position_ids=packed.positions, use_cache=False
        )
        return states.last_hidden_state, packed.at.flatten()

    def _measured(self, rows: Tensor, words: Tensor, head: Any, measure: str) -> Tensor:
        if not len(rows):
            return rows.sum(dim=1).float()
        if measure == "error":
            return token_errors(self._logits, rows, words, chunk=self.chunk)
        if is_plain(head) and not self._reshaped:
            return token_losses(rows, head.weight, words, chunk=self.chunk)
        return token_losses_of(self._logits, rows, words, chunk=self.chunk)

    @property
    def _reshaped(self) -> bool:
        """Whether logits are more than the head's output."""
        config = self.inner.config
        names = ("final_logit_softcapping", "logit_scale", "logits_scaling")
        return any(getattr(config, name, None) not in (None, 1, 1.0) for name in names)

    def _logits(self, hidden: Tensor) -> Tensor:
        """As the families of transformers make them of the last hidden states."""
        config = self.inner.config
        logits = self.inner.get_output_embeddings()(hidden)
        if getattr(config, "logit_scale", None) is not None:  # Cohere
            logits = logits * config.logit_scale
        if getattr(config, "logits_scaling", None) is not None:  # Granite
            logits = logits / config.logits_scaling
        cap = getattr(config, "final_logit_softcapping", None)  # Gemma
        return logits if cap is None else cap * torch.tanh(logits / cap)

    @torch.no_grad()
    def check(self, *, packing: bool = False) -> None:
        """Hold the losses against those of the model's own logits.

        Args:
            packing: hold those of packed rows against them too.

        Raises:
            ValueError: this family makes its logits in a way that is not known here, or its tokens
                see other texts of their row.
        """
        device = next(self.causal.parameters()).device
        size = min(int(self.inner.config.vocab_size), 8)
        ids = torch.arange(size, device=device)[None]
        mode = self.training
        self.eval()
        logits = self.inner(input_ids=ids, use_cache=False).logits[:, :-1]
        expected = plain_token_losses(logits, ids[:, 1:], IGNORED)
        name = type(self.inner).__name__
        # Of few bits, products of other shapes are rounded otherwise: logits by tenths.
        near = 1e-2 if logits.dtype == torch.float32 else 1e-1
        if not torch.allclose(self(ids, ids), expected, rtol=near, atol=near):
            raise ValueError(
                f"{name} makes its logits in a way that is not known here: the losses of its "
                "tokens are not those of its own forward"
            )
        if packing and not self._packs(ids):
            raise ValueError(
                f"packing: {name} lets the texts of a row see each other, whatever their positions "
                "say; leave packing false"
            )
        self.train(mode)

    def _packs(self, ids: Tensor) -> bool:
        """Whether texts of one row have the hidden states that they have alone."""
        width = ids.shape[1]
        three = torch.cat([ids, ids.flip(1), ids.roll(1, 1)])
        lengths = torch.tensor([width, width // 2, width - width // 2], device=ids.device)
        try:
            hidden, at = self._hidden(three, lengths)
        except TypeError:  # that knows no position_ids
            return False
        assert at is not None
        there = (torch.arange(width, device=ids.device) < lengths[:, None]).flatten()
        packed = hidden.flatten(0, 1)[at][there].float()
        alone = self._hidden(three, None)[0].flatten(0, 1)[there].float()
        near = 1e-4 if hidden.dtype == torch.float32 else 3e-2
        return bool((packed - alone).norm() <= near * alone.norm())


def _transformed() -> bool:
    """Whether this runs under a transform of torch.func, which no custom function is made for."""
    return torch._C._functorch.peek_interpreter_stack() is not None  # type: ignore[attr-defined]


def build_causal(
    spec: str, *, vocab_size: int | None = None, bits: int = 32, device: torch.device | None = None
) -> Any:
    """A causal model of transformers.

    Args:
        spec: a folder or hub id for the Auto classes, or ``llama:dim=256,depth=6,num_heads=8``, a
            small one with fresh weights; its further keys are num_kv_heads, mlp_dim, max_length.
        vocab_size: V of a fresh one.
        bits: 32; on a GPU 16 (bfloat16), or 8 and 4 by bitsandbytes (NF4, double quantisation).
        device: where quantised weights are put.

    Raises:
        ValueError: no such model, key or number of bits, or no GPU where one is needed.
    """
    _check_bits(bits, device)
    if spec.startswith("llama:"):
        if bits != 32:
            raise ValueError(f"bits: {bits} is for models from a path; {spec} is made anew")
        return _llama(spec, vocab_size)
    from transformers import AutoModelForCausalLM

    options: dict[str, Any] = {"dtype": torch.bfloat16 if bits < 32 else torch.float32}
    if bits < 16:
        from transformers import BitsAndBytesConfig

        options["device_map"] = {"": device}
        options["quantization_config"] = BitsAndBytesConfig(
            load_in_4bit=bits == 4,
            load_in_8bit=bits == 8,
            bnb_4bit_compute_dtype=torch.bfloat16,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_use_double_quant=True,
        )
    with told(spec):
        return AutoModelForCausalLM.from_pretrained(spec, **options)


def _check_bits(bits: int, device: torch.device | None) -> None:
    if bits not in (4, 8, 16, 32):
        raise ValueError(f"bits are 4, 8, 16 or 32, got {bits}")
    if bits == 32:
        return
    if device is None or device.type != "cuda":
        raise ValueError(f"bits: {bits} needs a GPU, which there is not here; use bits 32")
    if bits < 16:
        try:
            import bitsandbytes  # type: ignore[import-not-found]  # noqa: F401
        except ImportError:
            raise ValueError(
                f"bits: {bits} is done by bitsandbytes, which is not installed: "
                "pip install bitsandbytes"
            ) from None


def _llama(spec: str, vocab_size: int | None) -> nn.Module:
    from transformers import LlamaConfig, LlamaForCausalLM

    given = _numbers(spec)
    dim, heads = given.get("dim", 256), given.get("num_heads", 8)
    if dim % heads or (dim // heads) % 2:
        raise ValueError(f"{spec}: dim {dim} must be an even multiple of num_heads {heads}")
    options: dict[str, Any] = {
        "hidden_size": dim,
        "num_hidden_layers": 6,
        "num_attention_heads": heads,
        "intermediate_size": -(-8 * dim // 3 // 32) * 32,
        "max_position_embeddings": 2048,
    }
    options |= {_LLAMA[name]: value for name, value in given.items()}
    if vocab_size is not None:
        options["vocab_size"] = vocab_size
    return LlamaForCausalLM(LlamaConfig(tie_word_embeddings=True, **options))


def _numbers(spec: str) -> dict[str, int]:
    found: dict[str, int] = {}
    for part in filter(None, spec.partition(":")[2].split(",")):
        name, _, value = (word.strip() for word in part.partition("="))
        if name not in _LLAMA:
            near = difflib.get_close_matches(name, _LLAMA, n=1)
            hint = f"; did you mean {near[0]!r}?" if near else f" ({', '.join(_LLAMA)})"
            raise ValueError(f"{spec}: there is no {name!r}{hint}")
        if not value.isdigit() or int(value) < 1:
            raise ValueError(f"{spec}: {name} is a whole number, at least 1, not {value!r}")
        found[name] = int(value)
    return found


def train_tokenizer(texts: Iterable[str], vocab_size: int = 4096) -> Any:
    """A byte-level BPE tokenizer (Sennrich et al., ACL 2016) of some texts; nothing is unknown.

    Args:
        texts: what its merges are learned from, in this order.
        vocab_size: V, the end of a text and padding among them; at least 258.
    """
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    if vocab_size < 258:
        raise ValueError(f"vocab_size is at least 258 (256 bytes, end, padding), got {vocab_size}")
    end, padding = "<|end|>", "<|padding|>"
    tokenizer: Any = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[end, padding],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token=end, pad_token=padding)


def load_tokenizer(path: str) -> Any:
    """The tokenizer of a model.

    Raises:
        ValueError: there is none, or it knows no end of a text.
    """
    from transformers import AutoTokenizer

    with told(path):
        tokenizer = AutoTokenizer.from_pretrained(path)
    if tokenizer.eos_token_id is None:
        raise ValueError(f"the tokenizer of {path} has no token for the end of a text")
    return tokenizer


@contextmanager
def told(path: str) -> Iterator[None]:
    """What transformers says of a model that cannot be had, in a line."""
    try:
        with quietly():
            yield
    except (OSError, ValueError, KeyError) as error:
        there = sorted(p.name for p in Path(path).iterdir()) if Path(path).is_dir() else []
        holds = f" (the folder holds {', '.join(there[:8]) or 'nothing'})" if there else ""
        line = " ".join(str(error).split())
        raise ValueError(f"{path} cannot be loaded{holds}: {line[:400]}") from error


@contextmanager
def quietly() -> Iterator[None]:
    """Without bars, and warnings of transformers and peft of each other's old names."""
    from transformers.utils import logging

    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)
            warnings.simplefilter("ignore", UserWarning)
            yield
    finally:
        if shown:
            logging.enable_progress_bar()
