"""Floating-point operations of each method in closed form, from plain numbers and without torch.

Convention: a multiplication and an addition are two operations. Only products of matrices and vectors count, without
biases; normalisation, softmax, GELU, noise, sorting and rotations do not. Forward pass in eval, without padding.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any


def linear(rows: int, inside: int, outside: int) -> int:
    """A product [rows, inside] × [inside, outside]."""
    return 2 * rows * inside * outside


def dilated_pairs(length: int, heads: int, branches: Sequence[tuple[int, int]]) -> int:
    """Query–key pairs over all heads of dilated attention; (segment, dilation) for each branch.

    Head h reads rows h mod r, h mod r + r, … of each segment, r being the dilation; the last segment may be shorter.
    """
    pairs = 0
    for segment, dilation in branches:
        whole, rest = divmod(length, segment)
        for head in range(heads):
            offset = head % dilation
            for size, times in ((segment, whole), (rest, 1)):
                pairs += times * max(0, math.ceil((size - offset) / dilation)) ** 2
    return pairs


@dataclass(frozen=True)
class Cost:
    """total: all operations.   attention: the part that computes scores and mixes values."""

    total: int
    attention: int = 0

    def __add__(self, other: Cost) -> Cost:
        return Cost(self.total + other.total, self.attention + other.attention)


def longnet_block(length: int, width: int, heads: int, hidden: int, branches: Sequence[tuple[int, int]]) -> Cost:
    """Projections, dilated attention and MLP of one block on `length` tokens, including [CLS]."""
    attention = 4 * (width // heads) * dilated_pairs(length, heads, branches)
    return Cost(linear(length, width, 4 * width) + 2 * linear(length, width, hidden) + attention, attention)


def slim(
    dim: int,
    plan: Sequence[int],
    branches: Sequence[Sequence[tuple[int, int]]],
    *,
    width: int = 768,
    heads: int = 16,
    hidden: int = 3072,
) -> Cost:
    """SLIM. plan: patches in each block.   branches: (segment, dilation) pairs of each block's attention.

    A Cropr module between two blocks takes one matrix–vector product for the scores. What its queries read is for
    training only and not counted.
    """
    cost = Cost(linear(plan[0], dim, width))
    for m, pairs in zip(plan, branches, strict=True):
        cost += longnet_block(m + 1, width, heads, hidden, pairs)
    for m in plan[:-1]:
        cost += Cost(linear(m, width, 1))
    return cost


def tcssa(n: int, dim: int, slots: int, *, top_k: int = 2, hidden: int = 512) -> Cost:
    """TC-SSA: gate, each patch into its top_k slots, the experts of the slots, sums of probabilities."""
    gate, routes = linear(n, dim, slots), linear(n, dim, min(top_k, slots))
    experts, statistics = 2 * linear(slots, dim, hidden), linear(1, n, slots) + linear(1, n, 1)
    return Cost(gate + routes + experts + statistics)


def sparselearn(
    n: int, dim: int, *, width: int = 256, layers: int = 2, latents: int = 64, context: str = "latent"
) -> Cost:
    """SparseLearn at inference: the scorer only."""
    ends = linear(n, dim, width) + linear(n, width, 1)
    if context == "none":
        return Cost(ends)
    block = linear(n, width, 4 * width) + 2 * linear(n, width, 4 * width)
    attention = 4 * n * n * width
    if context == "latent":
        attention = 2 * 4 * n * latents * width
        block += linear(latents, width, 4 * width)
    return Cost(ends + layers * (block + attention), layers * attention)


@dataclass(frozen=True)
class Decoder:
    """Widths of a language model, from its public config.json."""

    name: str
    kind: str
    hidden: int
    layers: int
    heads: int
    kv_heads: int
    head_width: int
    inner: int
    vocabulary: int
    tied: bool

    def config(self) -> dict[str, Any]:
        """The same widths by their names in Transformers."""
        return {
            "model_type": self.kind,
            "hidden_size": self.hidden,
            "num_hidden_layers": self.layers,
            "num_attention_heads": self.heads,
            "num_key_value_heads": self.kv_heads,
            "head_dim": self.head_width,
            "intermediate_size": self.inner,
            "vocab_size": self.vocabulary,
            "tie_word_embeddings": self.tied,
        }

    def prefill(self, length: int) -> Cost:
        """`length` tokens at once, with grouped KV heads and a gated MLP: full attention, logits for every token."""
        q, kv = self.heads * self.head_width, self.kv_heads * self.head_width
        layer = linear(length, self.hidden, q + 2 * kv) + linear(length, q, self.hidden)
        layer += 3 * linear(length, self.hidden, self.inner)
        attention = 4 * length * length * q
        logits = linear(length, self.hidden, self.vocabulary)
        return Cost(self.layers * (layer + attention) + logits, self.layers * attention)

    def kv_bytes(self, length: int, bytes_each: int = 2) -> int:
        """Bytes of keys and values of `length` tokens; two bytes per number is bfloat16."""
        return 2 * self.layers * self.kv_heads * self.head_width * length * bytes_each


# From config.json of Qwen/Qwen2.5-7B-Instruct and Qwen/Qwen3-4B.
QWEN25_7B = Decoder("Qwen2.5-7B", "qwen2", 3584, 28, 28, 4, 128, 18944, 152064, tied=False)
QWEN3_4B = Decoder("Qwen3-4B", "qwen3", 2560, 36, 32, 8, 128, 9728, 151936, tied=True)
