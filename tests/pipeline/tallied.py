"""Tasks whose metrics show where an example is counted more than once."""

from __future__ import annotations

from torchmetrics import SumMetric

from tests.tiny import TinyTask


class Tally:
    """A metric that is none of torchmetrics: the number of examples."""

    def __init__(self) -> None:
        self.count = 0

    def update(self, count: int) -> None:
        self.count += count

    def compute(self) -> int:
        return self.count


class Summed(TinyTask):
    """A sum, which is too large where an example is counted in more than one process."""

    def metrics(self) -> dict:
        return {**super().metrics(), "sum": SumMetric()}

    def update(self, metrics, output, batch) -> None:
        super().update(metrics, output, batch)
        metrics["sum"].update(len(output))


class Tallied(Summed):
    def metrics(self) -> dict:
        return {**super().metrics(), "count": Tally()}

    def update(self, metrics, output, batch) -> None:
        super().update(metrics, output, batch)
        metrics["count"].update(len(output))
