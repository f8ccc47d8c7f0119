"""Exact per-example gradient norms from one batched forward and backward.

One forward over the batch, one backward with frozen parameters: from the inputs of each layer and
the gradients of its outputs follow the norms of every example's gradient, without forming most of
them.
"""

from attent.pipeline.ghost.norms import coverage_of, grad_norms, head_of, last_layer_norms
from attent.pipeline.ghost.tape import GhostError

__all__ = ["GhostError", "coverage_of", "grad_norms", "head_of", "last_layer_norms"]
