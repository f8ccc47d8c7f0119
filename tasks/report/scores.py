"""A page of scored examples: the hardest, the easiest, and labels that are likely wrong.

Shapes: N examples, n of them shown.
"""

from __future__ import annotations

import base64
import html
import io
import textwrap
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import torch
from matplotlib.figure import Figure
from PIL import Image
from tensordict import TensorDict
from torch import Tensor

from attent.pipeline import Source
from attent.tasks.report import figures
from attent.tasks.report.page import embedded, write_page
from attent.tasks.scored import Scored, share

Thumbnails = Callable[[TensorDict], Sequence[tuple[Tensor, str]]]
Text = Callable[[Any, int], str]

SHOWN = 48
"""Examples in each part."""

SIDE = 160
"""Longer side of a picture in pixels, at most."""

CHARACTERS = 600
"""Of a text, at most."""

_CARDS = """
.cards { display: grid; grid-template-columns: repeat(auto-fill, minmax(8.5rem, 1fr)); gap: .8rem; }
.cards.texts { grid-template-columns: repeat(auto-fill, minmax(19rem, 1fr)); }
figure { margin: 0; padding: .5rem; border: 1px solid #ddd; border-radius: 4px; min-width: 0; }
figure img { width: 100%; aspect-ratio: 1; object-fit: contain; margin: 0 0 .4rem;
             background: #f5f5f5; image-rendering: auto; }
figure img.small { image-rendering: pixelated; }
figure pre { white-space: pre-wrap; overflow-wrap: anywhere; margin: 0 0 .4rem; font-size: .8rem; }
figcaption { font-size: .78rem; line-height: 1.35; overflow-wrap: anywhere;
             font-variant-numeric: tabular-nums; }
figcaption .name { color: #777; display: block; }
figcaption b.wrong { color: #b8324e; }
"""


def write_scores_page(
    path: Path, scored: Scored, *, thumbnails: Thumbnails | None = None, text: Text | None = None
) -> None:
    """Write a self-contained page of what was scored.

    Args:
        path: of the file.
        scored: what is shown; the first signal says what is hard.
        thumbnails: a batch of the source -> a small picture ``[C, H, W]`` and a few words for each
            example; None where examples are no pictures.
        text: the source and an index -> the example as a text; None where it is none.
    """
    first = scored.signals[0]
    values, readable = scored.columns[first], scored.readable.nonzero()[0]
    order = readable[values[readable].argsort(kind="stable")]
    shown = min(SHOWN, -(-len(order) // 2))  # of few, none is both hard and easy
    parts = [
        (f"Hardest: the highest {first}", order[::-1][:shown], ""),
        (f"Easiest: the lowest {first}", order[:shown], ""),
    ]
    if "label_error" in scored.columns:
        found = scored.likely_errors()
        heading = f"Likely label errors: {len(found):,}"
        heading += f", the surest {SHOWN}" * (len(found) > SHOWN)
        parts.insert(0, (heading, found[:SHOWN], _of_label_errors(scored)))
    title = f"attent: scores of {scored.about.get('data', scored.about['task'])}"
    sections = [_about(scored), embedded(histograms(scored), "Distribution of each signal")]
    for heading, index, note in parts:
        sections.append(f"<h2>{html.escape(heading)}</h2>")
        sections.append(note)
        sections.append(_cards(scored, index.tolist(), thumbnails, text))
    write_page(path, title, sections, _CARDS)


_HOW = (
    "Labels that the model's probabilities contradict, the surest first (confident learning, "
    "Northcutt et al., JAIR 2021). Each shows the label → what the model predicts and its "
    "probability, and the margin, the probability of the label less the largest other. It counts "
    "as the likeliest of the classes whose probability is no less than the mean of their own "
    "examples; where that is another than the one predicted, it is named."
)
_TRAINED = (
    "<b>The model was trained on these examples.</b> Wrong labels that it has learned by heart are "
    "not here, and that it agrees with a label says little. Of examples held out (--split val), or "
    "by a model trained without these, more are found."
)
_UNKNOWN = (
    "If the model was trained on some of these examples, their wrong labels may be missing here: "
    "it has learned some by heart."
)


def _of_label_errors(scored: Scored) -> str:
    """What the candidates are, and how far the model is to be trusted with them."""
    alike, of = scored.agreement() or (0, 0)
    others = of - alike
    if scored.is_weak:
        trust = (
            f"<b>The model predicts the given label of only {share(alike, of)}: it is weak on "
            f"these data.</b> It contradicts {others:,} labels. Few data sets have a tenth of "
            "their labels wrong, so many of those are its own mistakes, and many of the labels "
            "below are right. Go by such a list when a better model has made it; this one shows "
            "rather what this model gets wrong."
        )
    else:
        trust = (
            f"The model predicts the given label of {share(alike, of)}. Of the other {others:,} "
            "some labels are wrong, and some are its own mistakes: look at an example before you "
            "change its label."
        )
    known = {True: [_TRAINED], False: [], None: [_UNKNOWN]}[scored.trained_on]
    return "".join(f'<p class="note">{told}</p>' for told in (trust, *known, _HOW))


def histograms(scored: Scored) -> Figure:
    """How many examples have which score, of each signal."""
    readable, count = scored.readable, len(scored.signals)
    with matplotlib.rc_context(figures.STYLE):
        columns = min(3, count)
        rows = -(-count // columns)
        figure = Figure(figsize=(9, 2.6 * rows), layout="constrained")
        axes = figure.subplots(rows, columns, squeeze=False)
        for ax in axes.flat[count:]:
            ax.set_axis_off()
        for ax, name in zip(axes.flat, scored.signals, strict=False):
            values = scored.columns[name][readable].astype(np.float64)
            bins: Any = min(60, max(10, round(len(values) ** 0.5)))
            # Many times as large as others: by the logarithm, as the report shows scores.
            low, high = np.quantile(values, [0.01, 1.0]) if len(values) else (0.0, 0.0)
            if len(values) and values.min() >= 0 and high > 100 * max(low, figures.FLOOR):
                values = np.maximum(values, figures.FLOOR)
                bins = np.geomspace(values.min(), values.max(), bins + 1)
                ax.set_xscale("log")
            ax.hist(values, bins=bins, color=figures.COLORS[0], alpha=0.8)
            ax.set(title=name, ylabel="examples" if ax is axes[0, 0] else "")
            ax.yaxis.get_major_locator().set_params(integer=True)
        return figure


def _about(scored: Scored) -> str:
    told = dict(scored.about)
    told |= told.pop("versions", {})
    words = " · ".join(f"{name}: {_plain(value)}" for name, value in told.items())
    return "".join(f'<p class="note">{html.escape(line)}</p>' for line in (words, *scored.notes))


def _plain(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    return ", ".join(map(str, value)) if isinstance(value, list) else str(value)


def _cards(
    scored: Scored, index: Sequence[int], thumbnails: Thumbnails | None, text: Text | None
) -> str:
    """What the examples are, each with what was found of it."""
    if not index:
        return '<p class="note">None.</p>'
    shown = [""] * len(index)
    words = [""] * len(index)
    if thumbnails is not None:
        batch = scored.source.fetch(torch.tensor(index))
        pairs = thumbnails(batch)
        shown = [_image(picture, scored.source) for picture, _ in pairs]
        words = [said for _, said in pairs]
    elif text is not None:
        texts = [textwrap.dedent(text(scored.source, i)).strip() for i in index]
        shown = [f"<pre>{html.escape(_cut(each))}</pre>" for each in texts]
    cards = [
        f"<figure>{picture}<figcaption>{_caption(scored, i, said)}</figcaption></figure>"
        for i, picture, said in zip(index, shown, words, strict=True)
    ]
    kind = "cards" if thumbnails is not None else "cards texts"
    return f'<div class="{kind}">{"".join(cards)}</div>'


def _caption(scored: Scored, i: int, words: str) -> str:
    columns, lines = scored.columns, []
    if "label" in columns:
        label = html.escape(scored.class_name(int(columns["label"][i])))
        if "predicted" in columns:
            wrong = columns["predicted"][i] != columns["label"][i]
            told = html.escape(scored.class_name(int(columns["predicted"][i])))
            told = f"<b{' class=wrong' * bool(wrong)}>{told}</b>"
            lines.append(f"{label} → {told} {columns['probability'][i]:.1%}")
            lines.append(f"margin {columns['margin'][i]:.2f}")
            suggested = columns["suggested"][i]
            if suggested not in (-1, columns["predicted"][i]):  # the likeliest is not confident
                lines.append(f"counts as {html.escape(scored.class_name(int(suggested)))}")
        else:
            lines.append(label)
    elif words:
        lines.append(html.escape(words))
    lines += [f"{html.escape(name)} {columns[name][i]:.4g}" for name in scored.signals]
    locate = getattr(scored.source, "locate", None)
    name = f"example {i}" if locate is None else _short(locate(i))
    return "<br>".join(lines) + f'<span class="name">{html.escape(name)}</span>'


def _short(name: str, most: int = 60) -> str:
    """The end of a long path."""
    return name if len(name) <= most else "…" + name[-most:]


def _cut(text: str) -> str:
    """Its beginning and its end, where what is learned stands."""
    half = CHARACTERS // 2
    return text if len(text) <= CHARACTERS else f"{text[:half]} … {text[-half:]}"


def _image(picture: Tensor, source: Source) -> str:
    """A picture ``[C, H, W]``, small enough for a page of many."""
    values = (_pixels(picture.detach().cpu().float(), source) * 255).round().byte()
    made = Image.fromarray((values[0] if len(values) == 1 else values.permute(1, 2, 0)).numpy())
    small = max(made.size) <= SIDE // 2
    made.thumbnail((SIDE, SIDE))
    buffer = io.BytesIO()
    made.save(buffer, **({"format": "PNG"} if small else {"format": "JPEG", "quality": 88}))
    kind = "png" if small else "jpeg"
    data = base64.b64encode(buffer.getvalue()).decode()
    return f'<img alt=""{" class=small" * small} src="data:image/{kind};base64,{data}">'


def _pixels(picture: Tensor, source: Source) -> Tensor:
    """A picture in [0, 1] of one channel or three: as the file has it, else by its own range.

    Of one channel it is dark on white, as the report shows such; of other numbers the first.
    """
    standardized = getattr(source, "standardized", None)
    if len(picture) == 3 and standardized is not None:
        black, white = (
            standardized(torch.full((3, 1, 1), value, dtype=torch.uint8)) for value in (0, 255)
        )
        return ((picture - black) / (white - black)).clamp(0, 1)
    low, high = picture.amin(), picture.amax()
    scaled = (picture - low) / (high - low).clamp_min(1e-6)
    return scaled if len(picture) == 3 else 1 - scaled[:1]
