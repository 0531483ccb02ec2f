"""Operations of every method, counted while the module runs, compared with published figures.

The modules run on the meta device: every product is dispatched with its shape and counted, but not computed. Each count
must equal the closed form in `abbe.bench.closed_forms`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from abbe.bench import closed_forms as flops
from abbe.bench.record import about, circumstances, table
from abbe.condensers import create_condenser, list_condensers
from abbe.condensers.slim import keep_schedule
from abbe.console import progress
from abbe.encoders.longnet import Block
from abbe.errors import AbbeError
from abbe.ops.dilated_attention import branches_of
from abbe.ops.rope2d import rotations
from abbe.types import Bag, Px0, TokenBatch

UNPADDED = "1 MAC = 2 FLOP; products of matrices and vectors only; forward; unpadded"
PADDED = "as unpadded, but head width 48 padded to 64 in attention; ragged last segment; segments=paper"
WHOLE = (
    "the language model alone; prefill; attention not halved for causality; logits for every token; bfloat16 KV cache"
)

SLIDE, GIGAPATH_SLIDE = 17_182, 54_023  # patches of the slide of SLIM's table 5, for it and for Prov-GigaPath
SLIM_PUBLISHED = {0.0: 2.32e12, 0.5: 1.68e12, 0.6: 1.54e12, 0.7: 1.38e12, 0.8: 1.20e12, 0.9: 0.98e12}
GIGAPATH_SEGMENTS = ((1024, 1), (5792, 2), (32768, 4), (185363, 8), (1048576, 16))
TEXT = 90
VISUAL = (32, 1024, 4096)


@dataclass(frozen=True)
class Row:
    """One line. flops: unpadded.   as_published: by the convention of the published figure, for the comparison."""

    row: str
    flops: int
    convention: str
    published: float | None = None
    as_published: float | None = None
    kv_bytes: int | None = None
    remark: str = ""

    @property
    def difference_percent(self) -> float | None:
        """By how much the count exceeds the published figure, by the convention of that figure."""
        if self.published is None:
            return None
        return 100 * ((self.as_published or self.flops) / self.published - 1)

    def to_dict(self) -> dict[str, Any]:
        return {**dataclasses.asdict(self), "difference_percent": self.difference_percent}


def bench_flops() -> dict[str, Any]:
    """Every row, counted and compared with its closed form, as plain JSON values."""
    rows: list[Row] = []
    with progress("counting", total=len(ROWS)) as bar:
        for make in ROWS:
            rows += make()
            bar.advance(bar.task_ids[0])
    return {"circumstances": circumstances("bench flops"), "rows": [row.to_dict() for row in rows]}


def counted(run: Callable[[], Any]) -> int:
    """Operations of `run()`: what torch counts, plus products with vectors and embedding bags, which it leaves out."""
    aten = torch.ops.aten
    more = {aten.mv: _mv, aten.dot: _dot, aten._embedding_bag: _bag, aten._embedding_bag_forward_only: _bag}
    with torch.no_grad(), FlopCounterMode(display=False, custom_mapping=more) as counter:
        run()
    return int(counter.get_total_flops())


def meta_batch(n: int, dim: int) -> TokenBatch:
    """One slide of n patches on the meta device."""
    return TokenBatch(
        features=torch.empty(n, dim, device="meta"),
        positions=torch.empty(n, 2, device="meta"),
        mass=torch.empty(n, device="meta"),
        mask=torch.empty(n, dtype=torch.bool, device="meta"),
        weight=torch.empty(n, device="meta"),
        origin=torch.empty(n, dtype=torch.int64, device="meta"),
        offsets=torch.tensor([0, n]),
        lengths0=torch.tensor([n]),
        slide_ids=("slide",),
    )


def count_condenser(name: str, n: int, *, dim: int = 768, **options: Any) -> int:
    """Operations of a condenser in eval mode on one slide of n patches."""
    with torch.device("meta"):
        condenser = create_condenser(name, dim=dim, **options).eval().requires_grad_(requires_grad=False)
    return counted(lambda: condenser(meta_batch(n, dim)))


def slim_cost(n: int, keep: float | int, *, dim: int = 768, segments: str = "paper", **widths: int) -> flops.Cost:
    """Closed form of `slim`. keep: keep rate or budget.   widths: its options `embed`, `layers`, `heads`, …"""
    layers, piece, levels = widths.pop("layers", 6), widths.pop("piece", 1024), widths.pop("levels", 5)
    plan = [n, *keep_schedule(n, keep, layers - 1)]
    branches = [branches_of(m + 1, segments=segments, piece=piece, levels=levels) for m in plan]
    return flops.slim(dim, plan, branches, width=widths.pop("embed", 768), **widths)


def slim_rows() -> Iterator[Row]:
    """SLIM at the pruning rates of its table 5."""
    for pruned, published in SLIM_PUBLISHED.items():
        keep = 1.0 - pruned
        cost = slim_cost(SLIDE, keep)
        count = count_condenser("slim", SLIDE, tokens=keep, segments="paper")
        row = f"SLIM, {pruned:.0%} pruned, {SLIDE:,} patches"
        yield _checked(row, count, cost, convention=PADDED, published=published, as_published=padded(cost))


def gigapath_rows() -> Iterator[Row]:
    """Prov-GigaPath's slide encoder: twelve blocks as in SLIM, with other segments and features of width 1,536."""
    n, width = GIGAPATH_SLIDE, 768
    branches = [(min(segment, n + 1), dilation) for segment, dilation in GIGAPATH_SEGMENTS]
    cost = flops.Cost(flops.linear(n, 1536, width))
    for _ in range(12):
        cost += flops.longnet_block(n + 1, width, 16, 3072, branches)
    with torch.device("meta"):
        project, block = nn.Linear(1536, width), Block(width, 16, 3072)
        patches, tokens = torch.empty(n, 1536), torch.empty(n + 1, width)
    cos, sin = rotations(torch.empty(n + 1, 2, device="meta"), width // 16, theta=100.0)
    one = counted(lambda: block(tokens, cos, sin, torch.tensor([0, n + 1]), [branches]))
    count = counted(lambda: project(patches)) + 12 * one
    row = f"Prov-GigaPath's slide encoder, {n:,} patches"
    yield _checked(row, count, cost, convention=PADDED, published=23.1e12, as_published=padded(cost))


def condenser_rows() -> Iterator[Row]:
    """TC-SSA and SparseLearn, K = 32, features of width 768."""
    for n in (1842, 3840, 10_240):
        yield _checked(f"TC-SSA, 32 slots, {n:,} patches", count_condenser("tcssa", n), flops.tcssa(n, 768, 32))
        yield _checked(
            f"SparseLearn, 32 tokens, {n:,} patches", count_condenser("sparselearn", n), flops.sparselearn(n, 768)
        )


def other_rows() -> Iterator[Row]:
    """Every other condenser with its default options, on random features: its steps depend on their values."""
    n, dim = 1842, 768
    for name in list_condensers():
        if name in ("slim", "sparselearn", "tcssa"):
            continue
        condenser = create_condenser(name, dim=dim).eval().requires_grad_(requires_grad=False)
        yield Row(f"{name}, {n:,} patches", counted(partial(condenser, _random_batch(n, dim))), UNPADDED)


def model_rows() -> Iterator[Row]:
    """Language models on 32, 1,024 and 4,096 visual tokens and the text."""
    published = {32: 1.73e12, 4096: 133.3e12}
    for decoder in (flops.QWEN25_7B, flops.QWEN3_4B):
        for visual in VISUAL:
            length = visual + TEXT
            count, kv_bytes = count_decoder(decoder, length)
            figure = published.get(visual) if decoder is flops.QWEN25_7B else None
            row = f"{decoder.name}, {visual:,} + {TEXT} tokens"
            if kv_bytes != decoder.kv_bytes(length):
                raise AbbeError(f"{row}: the KV cache has {kv_bytes} bytes, the closed form {decoder.kv_bytes(length)}")
            one = _checked(row, count, decoder.prefill(length), convention=WHOLE, published=figure)
            yield dataclasses.replace(one, kv_bytes=kv_bytes, remark=_remark(visual) if figure else "")


def count_decoder(decoder: flops.Decoder, length: int) -> tuple[int, int]:
    """(operations of the prefill of `length` tokens, bytes of the KV cache) of a language model on the meta device."""
    from transformers import AutoConfig, AutoModelForCausalLM

    # Eager attention: choosing a fused kernel reads the values of the mask, which do not exist on the meta device.
    config = AutoConfig.for_model(**decoder.config(), dtype="bfloat16", attn_implementation="eager")
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config).eval().requires_grad_(requires_grad=False)
        tokens = torch.empty(1, length, decoder.hidden, dtype=torch.bfloat16)
        given = {"inputs_embeds": tokens, "attention_mask": torch.ones(1, length, dtype=torch.int64)}
    kept: list[Any] = []
    count = counted(lambda: kept.append(model(**given, use_cache=True).past_key_values))
    return count, sum(layer.keys.nbytes + layer.values.nbytes for layer in kept[0].layers)


def _remark(visual: int) -> str:
    small, large = (flops.QWEN25_7B.prefill(length + TEXT).total for length in (VISUAL[0], VISUAL[-1]))
    if visual == VISUAL[0]:
        return "SparseLearn's published total; TC-SSA's is 1.72 T."
    return (
        f"No consistent convention gives 133.3 T: {VISUAL[-1]:,} visual and {TEXT} text tokens on Qwen2.5-7B are "
        f"{large / 1e12:.1f} T. The published ratio of 78 to the condensed model mixes conventions; with one for both "
        f"it is {large / small:.0f}."
    )


ROWS: tuple[Callable[[], Iterator[Row]], ...] = (slim_rows, gigapath_rows, condenser_rows, other_rows, model_rows)


def padded(cost: flops.Cost, head: int = 48, to: int = 64) -> float:
    """A cost with heads of width 48 padded to 64 in attention, as in kernels that need a power of two."""
    return cost.total + cost.attention * (to / head - 1)


def markdown(found: dict[str, Any]) -> str:
    """The result as a page: a table of the rows, then conventions and remarks."""
    rows = found["rows"]
    lines = [
        [
            row["row"],
            f"{row['flops'] / 1e12:.4g}",
            "" if row["as_published"] is None else f"{row['as_published'] / 1e12:.4g}",
            "" if row["published"] is None else f"{row['published'] / 1e12:.4g}",
            "" if row["difference_percent"] is None else f"{row['difference_percent']:+.1f} %",
            "" if row["kv_bytes"] is None else f"{row['kv_bytes'] / 1e6:.1f}",
        ]
        for row in rows
    ]
    columns = ["", "TFLOP", "by the published convention", "published", "difference", "KV cache, MB"]
    notes = [f"- {text}" for text in dict.fromkeys([UNPADDED, *(row["convention"] for row in rows)])]
    remarks = [f"- {row['row']}: {row['remark']}" for row in rows if row["remark"]]
    page = "\n".join([table(columns, lines), "Conventions:", *notes, "", "Remarks:", *remarks])
    return f"# Operations of every method\n\n{about(found['circumstances'])}\n{page}\n"


def _random_batch(n: int, dim: int) -> TokenBatch:
    generator = torch.Generator().manual_seed(0)
    places = torch.stack([torch.arange(n) % 40, torch.arange(n) // 40], 1) * 256.0
    return TokenBatch.pack([Bag(torch.randn(n, dim, generator=generator), places, Px0(256.0), "slide")])


def _checked(
    row: str,
    count: int,
    cost: flops.Cost,
    *,
    convention: str = UNPADDED,
    published: float | None = None,
    as_published: float | None = None,
) -> Row:
    if count != cost.total:
        raise AbbeError(f"{row}: {count} operations counted, {cost.total} by the closed form; they must be equal")
    return Row(row, count, convention, published=published, as_published=as_published)


def _mv(*shapes: Any, **_: Any) -> int:
    (rows, columns), *_rest = shapes
    return int(2 * rows * columns)


def _dot(*shapes: Any, **_: Any) -> int:
    return int(2 * shapes[0][0])


def _bag(*shapes: Any, **_: Any) -> int:
    (_rows, width), (routes,), *_rest = shapes
    return int(2 * routes * width)
