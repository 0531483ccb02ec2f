"""Operations counted on the running modules equal the closed forms, and the closed forms what was published."""

from __future__ import annotations

import json
import random

import pytest
import torch

from abbe.bench import closed_forms as flops
from abbe.bench.flops import (
    SLIDE,
    SLIM_PUBLISHED,
    count_condenser,
    count_decoder,
    counted,
    gigapath_rows,
    model_rows,
    padded,
    slim_cost,
)
from abbe.condensers import list_condensers
from abbe.verbs.bench_flops import BenchFlops


@pytest.mark.slow
@pytest.mark.parametrize("case", range(6))
def test_slim_counts_what_the_formula_says(case: int) -> None:
    """Lengths, keep rates, budgets, widths and segments drawn at random."""
    draw = random.Random(case)
    n = draw.randint(1, 3000)
    keep: float | int = draw.uniform(0.02, 1.0) if case % 2 else draw.randint(1, 2 * n)
    segments = draw.choice(["paper", "cover"])
    widths = {
        "heads": (heads := draw.choice([1, 4, 6])),
        "embed": 4 * heads * draw.randint(1, 8),
        "hidden": draw.randint(8, 200),
        "layers": draw.randint(2, 5),
        "piece": draw.choice([64, 1000]),
        "levels": draw.randint(1, 5),
    }
    dim = draw.randint(8, 100)
    count = count_condenser("slim", n, dim=dim, tokens=keep, segments=segments, **widths)
    assert count == slim_cost(n, keep, dim=dim, segments=segments, **widths).total


@pytest.mark.parametrize("case", range(4))
def test_tcssa_and_sparselearn_count_what_the_formula_says(case: int) -> None:
    draw = random.Random(100 + case)
    n, dim, slots, top_k = draw.randint(1, 200_000), 4 * draw.randint(2, 40), draw.randint(1, 40), draw.randint(1, 4)
    count = count_condenser("tcssa", n, dim=dim, tokens=slots, top_k=top_k, hidden=24)
    assert count == flops.tcssa(n, dim, slots, top_k=top_k, hidden=24).total
    context = draw.choice(["latent", "none", "full"])
    layers, latents, n = draw.randint(1, 3), draw.randint(1, 70), n % 5000 + 1
    count = count_condenser("sparselearn", n, dim=dim, context=context, layers=layers, latents=latents)
    assert count == flops.sparselearn(n, dim, layers=layers, latents=latents, context=context).total


def test_slim_s_table_is_met_under_the_named_convention() -> None:
    for pruned, published in SLIM_PUBLISHED.items():
        assert padded(slim_cost(SLIDE, 1.0 - pruned)) == pytest.approx(published, rel=0.015)
    (row,) = gigapath_rows()
    assert row.published == 23.1e12
    assert abs(row.difference_percent or 100) < 1.5


def test_dilated_pairs_one_by_one() -> None:
    pairs = 0
    for segment, dilation in ((8, 1), (16, 3)):
        for start in range(0, 37, segment):
            for head in range(5):
                rows = range(start + head % dilation, min(start + segment, 37), dilation)
                pairs += len(rows) ** 2
    assert flops.dilated_pairs(37, 5, [(8, 1), (16, 3)]) == pairs


@pytest.mark.slow
@pytest.mark.parametrize("case", range(4))
def test_language_models_count_what_the_formula_says(case: int) -> None:
    """Qwen 2 and 3 of widths drawn at random, run by Transformers on the meta device."""
    draw = random.Random(200 + case)
    kv_heads = draw.randint(1, 4)
    decoder = flops.Decoder(
        "small",
        draw.choice(["qwen2", "qwen3"]),
        hidden=8 * draw.randint(2, 20),
        layers=draw.randint(1, 4),
        heads=kv_heads * draw.randint(1, 3),
        kv_heads=kv_heads,
        head_width=2 * draw.randint(4, 20),
        inner=draw.randint(8, 200),
        vocabulary=draw.randint(10, 500),
        tied=draw.random() < 0.5,
    )
    length = draw.randint(1, 3000)
    assert count_decoder(decoder, length) == (decoder.prefill(length).total, decoder.kv_bytes(length))


@pytest.mark.slow
def test_language_models_in_known_figures() -> None:
    """7.6 and 4.0 billion parameters, of which the embedding multiplies nothing; 28 or 36 layers of KV heads."""
    parameters = flops.QWEN25_7B.prefill(1).total / 2
    assert parameters == pytest.approx(7.616e9 - 152064 * 3584, rel=2e-3)
    assert flops.QWEN3_4B.prefill(1).total / 2 == pytest.approx(4.02e9, rel=2e-3)
    assert flops.QWEN25_7B.prefill(122).total == pytest.approx(1.73e12, rel=2e-3)
    assert flops.QWEN25_7B.prefill(4186).total == pytest.approx(66.2e12, rel=2e-3)
    ratio = flops.QWEN25_7B.kv_bytes(4186) / flops.QWEN25_7B.kv_bytes(122)
    assert ratio == pytest.approx(34.3, abs=0.02)
    slidechat = next(row for row in model_rows() if row.published == 133.3e12)
    assert slidechat.difference_percent == pytest.approx(-50.3, abs=0.1)
    assert "No consistent convention" in slidechat.remark
    assert "66.2 T" in slidechat.remark
    assert "it is 38" in slidechat.remark


def test_vectors_and_routes_are_counted() -> None:
    matrix, vector = torch.empty(7, 5, device="meta"), torch.empty(5, device="meta")
    assert counted(lambda: matrix @ vector) == 70
    assert counted(lambda: vector @ vector) == 10


@pytest.mark.slow
def test_the_verb_prints_rows(capsys: pytest.CaptureFixture[str]) -> None:
    assert BenchFlops(json=True).run() == 0
    rows = json.loads(capsys.readouterr().out)
    assert len(rows) == 6 + 1 + 6 + len(list_condensers()) - 3 + 6
    for row in rows:
        assert {"row", "flops", "published", "difference_percent", "convention"} <= set(row)
        assert row["flops"] >= 0
        assert row["convention"]
    compared = [row["difference_percent"] for row in rows if row["published"] and "SLIM" in row["row"]]
    assert max(map(abs, compared)) < 1.5
