"""Instructions and responses as token ids, of which only the responses are learned from.

Shapes: N rows, B of them in a batch, T tokens of the longest in it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from tensordict import TensorDict
from torch import Tensor

from attent.models.language import IGNORED
from attent.tasks.data.dropped import Dropped
from attent.tasks.data.rows import Row

PROMPT = (
    "Below is an instruction that describes a task. "
    "Write a response that appropriately completes the request.\n\n"
    "### Instruction:\n{instruction}\n\n### Response:"
)
"""The default prompt; ``{instruction}`` is replaced."""

ALPACA = (("instruction", "output"), ("instruction", "response"), ("prompt", "completion"))
"""Names of query and response that are looked for where none are given."""


@dataclass(frozen=True)
class _Tokens:
    """Ids of a row, and which of them are learned from."""

    ids: list[int]
    learned: list[bool]


class Instructions:
    """A source of instructions with their responses.

    Args:
        rows: from `read_rows`: Alpaca's fields (``instruction``, ``input`` which may be empty or
            missing, ``output``), others as ``fields`` names them, or ``messages``: a list of
            ``{"role", "content"}`` for the tokenizer's own chat template.
        tokenizer: of transformers.
        fields: names of the query and of the response.
        prompt: with ``{instruction}``.
        max_length: tokens of a row; what is beyond is cut off.
        learned: ``response``, of a chat what the assistant says; or ``all`` of the text.

    A batch has ``input_ids`` ``[B, T]`` int64, padded on the right, ``labels`` ``[B, T]`` int64,
    the ids where they are learned from and -100 elsewhere, ``attention_mask`` ``[B, T]`` bool and
    ``length`` ``[B]`` int64.

    Attributes:
        lengths: ``[N]`` int64, tokens of each row.
        targets: ``[N]`` int64, how many of them are predicted and learned from.
        dropped: the rows that leave nothing to learn.

    Raises:
        ValueError: a row that is not of that form, or no row left; names its file and number.
    """

    def __init__(
        self,
        rows: Sequence[Row],
        tokenizer: Any,
        *,
        fields: Sequence[str] | None = None,
        prompt: str = PROMPT,
        max_length: int = 512,
        learned: Literal["response", "all"] = "response",
        bucketed: bool = True,
    ) -> None:
        if fields is not None and len(fields) != 2:
            raise ValueError(f"dataset_field names a query and a response, not {list(fields)}")
        if "{instruction}" not in prompt:
            raise ValueError(f"prompt must hold {{instruction}}, got {prompt!r}")
        if max_length < 2:
            raise ValueError(f"model_max_length is at least 2, got {max_length}")
        self.tokenizer, self.bucketed = tokenizer, bucketed
        self.dropped: list[Dropped] = []
        self.rows: list[Row] = []
        self._prompts: list[int] = []
        ids: list[Tensor] = []
        marks: list[Tensor] = []
        for row, tokens in zip(rows, _tokenised(rows, tokenizer, fields, prompt), strict=True):
            prompt_size = tokens.learned.index(True) if any(tokens.learned) else len(tokens.ids)
            if learned == "all":
                tokens = _Tokens(tokens.ids, [True] * len(tokens.ids))
            why = _nothing_left(tokens, max_length)
            if why:
                self.dropped.append(Dropped(row, why))
                continue
            self.rows.append(row)
            ids.append(torch.tensor(tokens.ids[:max_length]))
            marks.append(torch.tensor(tokens.learned[:max_length]))
            self._prompts.append(min(prompt_size, len(ids[-1])))
        if not ids:
            raise ValueError(
                f"all of {len(rows)} rows leave nothing to learn: {self.dropped[0].row.place}: "
                f"{self.dropped[0].why}"
            )
        self.lengths = torch.tensor([len(one) for one in ids])
        self.targets = torch.tensor([int(one[1:].sum()) for one in marks])
        self._starts = self.lengths.cumsum(0) - self.lengths
        self._ids, self._learned = torch.cat(ids), torch.cat(marks)

    def __len__(self) -> int:
        return len(self.rows)

    def locate(self, index: int) -> str:
        """The row's file and number."""
        return self.rows[index].place

    def fetch(self, index: Tensor) -> TensorDict:
        """The rows at ``index``, as long as the longest of them."""
        length = self.lengths[index]
        place = torch.arange(int(length.max()))
        there = place < length[:, None]
        at = (self._starts[index][:, None] + place).where(there, 0)
        ids = self._ids[at]
        padding = self.tokenizer.pad_token_id or 0
        fields = {
            "input_ids": ids.where(there, padding),
            "labels": ids.where(there & self._learned[at], IGNORED),
            "attention_mask": there,
            "length": length,
        }
        return TensorDict(fields, batch_size=[len(index)])

    def texts(self, index: int) -> tuple[Tensor, str]:
        """The prompt's ids, and as a text what is learned of what follows it."""
        span = slice(int(self._starts[index]), int(self._starts[index] + self.lengths[index]))
        ids, learned, first = self._ids[span], self._learned[span], self._prompts[index]
        said = ids[first:][learned[first:]]
        return ids[:first], self.tokenizer.decode(said.tolist(), skip_special_tokens=True)


def _nothing_left(tokens: _Tokens, max_length: int) -> str:
    """Why nothing is left to learn; empty if something is."""
    if any(tokens.learned[1:max_length]):
        return ""
    if any(tokens.learned[1:]):
        return f"the prompt fills model_max_length {max_length}"
    return "the row is of one token" if any(tokens.learned) else "the response is empty"


def _tokenised(
    rows: Sequence[Row], tokenizer: Any, fields: Sequence[str] | None, prompt: str
) -> list[_Tokens]:
    """Each row's tokens; prompts and responses are tokenised apart, so that none spans both."""
    found: dict[int, _Tokens] = {}
    places, prompts, responses = [], [], []
    for i, row in enumerate(rows):
        if fields is None and "messages" in row.values:
            found[i] = _chat(row, tokenizer)
        else:
            query, response = _pair(row, fields)
            places.append(i)
            prompts.append(prompt.replace("{instruction}", query))
            responses.append(response)
    if places:
        before = tokenizer(prompts, verbose=False)["input_ids"]
        after = tokenizer(responses, add_special_tokens=False, verbose=False)["input_ids"]
        end = tokenizer.eos_token_id
        for i, asked, answer in zip(places, before, after, strict=True):
            asked = asked[:-1] if asked and asked[-1] == end else asked
            answer = [*answer, end] if answer else []
            found[i] = _Tokens([*asked, *answer], [False] * len(asked) + [True] * len(answer))
    return [found[i] for i in range(len(rows))]


def _pair(row: Row, fields: Sequence[str] | None) -> tuple[str, str]:
    """Query and response of a row."""
    if fields is None:
        fields = next((pair for pair in ALPACA if all(name in row.values for name in pair)), None)
        if fields is None:
            raise ValueError(
                f"data: {row.place} has the fields {', '.join(row.values) or 'none'}; expected "
                "instruction and output, or messages; dataset_field names others"
            )
        extra = row.values.get("input")
        query, response = _text(row, fields[0]), _response(row, fields[1])
        if extra is None or extra == "":
            return query, response
        return f"{query}\n\n### Input:\n{_text(row, 'input')}", response
    missing = [name for name in fields if name not in row.values]
    if missing:
        raise ValueError(
            f"dataset_field: {row.place} has no {missing[0]!r}, but "
            f"{', '.join(row.values) or 'nothing'}"
        )
    return _text(row, fields[0]), _response(row, fields[1])


def _response(row: Row, name: str) -> str:
    """The response of a row; none where it is null, as tables have it."""
    return "" if row.values[name] is None else _text(row, name)


def _text(row: Row, name: str) -> str:
    value = row.values[name]
    if not isinstance(value, str):
        raise ValueError(f"data: {row.place}: {name} must be a text, not {value!r:.80}")
    return value


def _chat(row: Row, tokenizer: Any) -> _Tokens:
    """A conversation by the tokenizer's template: what the assistant says is learned from."""
    messages = row.values["messages"]
    if not isinstance(messages, list) or not all(map(_is_message, messages)):
        raise ValueError(
            f"data: {row.place}: messages must be a list of objects with role and content, both "
            f"texts, not {messages!r:.120}"
        )
    if tokenizer.chat_template is None:
        raise ValueError(
            f"data: {row.place} has messages, but the tokenizer has no chat template: give data "
            "with instruction and output"
        )
    said = [i for i, message in enumerate(messages) if message["role"] == "assistant"]
    if not said:
        raise ValueError(f"data: {row.place}: no message is of the role assistant")
    turns = _templated(row, tokenizer)
    ids = turns(messages, False)
    learned = [False] * len(ids)
    for i in said:
        before, after = turns(messages[:i], True), turns(messages[: i + 1], False)
        if ids[: len(before)] != before or ids[: len(after)] != after or len(after) <= len(before):
            raise ValueError(
                f"data: {row.place}: by this chat template message {i + 1} does not continue those "
                "before it, so that what is to be learned cannot be told; give single turns"
            )
        learned[len(before) : len(after)] = [bool(messages[i]["content"])] * (
            len(after) - len(before)
        )
    return _Tokens(ids, learned)


def _templated(row: Row, tokenizer: Any) -> Callable[[list[Any], bool], list[int]]:
    """(messages, whether the assistant is to speak next) -> token ids."""

    def turns(messages: list[Any], prompting: bool) -> list[int]:
        if not messages:
            return []
        try:
            text = tokenizer.apply_chat_template(
                messages, tokenize=False, add_generation_prompt=prompting
            )
        except Exception as error:  # whatever the template raises
            raise ValueError(f"data: {row.place}: the chat template refuses it: {error}") from error
        return tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]

    return turns


def _is_message(value: Any) -> bool:
    return isinstance(value, dict) and all(
        isinstance(value.get(name), str) for name in ("role", "content")
    )
