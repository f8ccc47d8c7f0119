"""Handwritten digits: scikit-learn's ``load_digits``, real scans of 8 x 8 pixels.

1,797 examples of 43 writers (E. Alpaydin and C. Kaynak, UCI, 1998), carried by the package.
"""

from __future__ import annotations

from typing import Any

import torch
from sklearn.datasets import load_digits

from attent.tasks.data.split import Rows, stratified


def digits(held_out: float = 0.2, *, seed: int = 0) -> tuple[Rows, Rows]:
    """Training and held-out digits, split by class in equal shares.

    Args:
        held_out: share held out, in (0, 1).
        seed: of the split.

    Returns:
        Two sources of ``image`` ``[1, 8, 8]`` float32, standardised by the training images' mean
        and deviation, and ``label`` int64 in 0..9.
    """
    data: Any = load_digits()
    images = torch.tensor(data.images, dtype=torch.float32).unsqueeze(1)
    labels = torch.tensor(data.target, dtype=torch.int64)
    train, test = stratified(data.target, held_out, seed=seed)
    mean, deviation = images[train].mean(), images[train].std()
    fields = {"image": (images - mean) / deviation, "label": labels}
    return Rows(fields, train, "digits"), Rows(fields, test, "digits")
