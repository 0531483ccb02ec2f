"""LongNet: what reaches [CLS], the effect of shifts and of other slides, and methods between its blocks."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from abbe.condensers import create_condenser
from abbe.encoders import create_encoder, list_encoders
from abbe.encoders.longnet import LongNet
from abbe.errors import BagError, ConfigError, InputError, MissingCoordinates
from abbe.layers.norm import Norm
from abbe.ops import naive
from abbe.ops.dilated_attention import branches_of
from abbe.types import Condensed, TokenBatch
from builders import make_batch

SMALL = {"width": 16, "layers": 3, "heads": 2, "hidden": 32, "piece": 8, "levels": 2}


def make(**options: object) -> LongNet:
    encoder = create_encoder("longnet", dim=16, **{**SMALL, **options})
    assert isinstance(encoder, LongNet)
    return encoder.eval()


def moved(encoder: LongNet, batch: TokenBatch, rows: slice) -> float:
    """The largest change of [CLS] of the first slide when these patches change."""
    features = batch.features.clone()
    features[rows] += torch.randn_like(features[rows])
    with torch.no_grad():
        before, after = encoder(batch).summary, encoder(replace(batch, features=features)).summary
    assert before is not None
    assert after is not None
    return float((after - before).abs().max())


def test_one_token_out_for_each_token_in() -> None:
    batch = make_batch([9, 1, 40])
    encoded = make()(batch)
    assert encoded.tokens.features.shape == (50, 16)
    assert encoded.summary is not None
    assert encoded.summary.shape == (3, 16)
    assert torch.equal(encoded.tokens.positions, batch.positions)  # type: ignore[arg-type]
    assert int(encoded.dropped.sum()) == 0


@pytest.mark.slow
@pytest.mark.parametrize("segments", ["cover", "paper"])
def test_what_reaches_cls_in_small(segments: str) -> None:
    """Segments of 8 and 16: without the covering branch, nothing after row 15, that is patch 14, reaches [CLS]."""
    torch.manual_seed(0)
    encoder, batch = make(segments=segments), make_batch([60])
    for patch in range(60):
        assert (moved(encoder, batch, slice(patch, patch + 1)) > 0) == (segments == "cover" or patch < 15), patch


@pytest.mark.slow
def test_published_segments_end_at_row_16383() -> None:
    """N = 20,000: with "paper" the last 3,000 patches change no bit of [CLS]; with "cover" a single one does."""
    batch = make_batch([20_000], dim=16)
    narrow = {"width": 8, "layers": 3, "heads": 2, "hidden": 8, "piece": 1024, "levels": 5}
    paper, cover = make(**narrow, segments="paper"), make(**narrow)
    assert moved(paper, batch, slice(17_000, 20_000)) == 0
    assert moved(paper, batch, slice(16_382, 16_383)) > 0
    assert moved(paper, batch, slice(16_383, 16_384)) == 0
    for patch in (0, 5_000, 16_383, 17_000, 19_999):
        assert moved(cover, batch, slice(patch, patch + 1)) > 0, patch


def test_shifting_a_slide_changes_nothing_and_stretching_it_does() -> None:
    encoder, batch = make(), make_batch([30, 12])
    assert batch.positions is not None
    shift = torch.where(batch.slide_index[:, None] == 0, 731.0, 12.0)
    here, there = (encoder(replace(batch, positions=p)) for p in (batch.positions, batch.positions + shift))
    torch.testing.assert_close(here.tokens.features, there.tokens.features, atol=1e-5, rtol=0)
    stretched = encoder(replace(batch, positions=batch.positions * 1.5))
    assert not torch.allclose(here.tokens.features, stretched.tokens.features, atol=1e-4)


def test_a_slide_alone_is_the_slide_in_a_batch_and_checkpointing_changes_no_gradient() -> None:
    batch = make_batch([20, 3])
    grads = []
    for stored in (True, False):
        torch.manual_seed(0)
        encoder = make(gradient_checkpointing=not stored).train()
        encoded = encoder(batch)
        torch.testing.assert_close(encoder(batch[1]).summary[0], encoded.summary[1], atol=1e-6, rtol=0)  # type: ignore[index]
        encoded.tokens.features.square().sum().backward()
        grads.append([p.grad for p in encoder.parameters() if p.grad is not None])
    for a, b in zip(*grads, strict=True):
        torch.testing.assert_close(a, b)


def test_steps_without_gradient_give_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("abbe.layers.by_rows._ROWS", 7)
    encoder, batch = make(), make_batch([30, 12])
    whole = encoder(batch).tokens.features
    with torch.no_grad():
        torch.testing.assert_close(encoder(batch).tokens.features, whole.detach(), atol=1e-6, rtol=0)


def test_any_selecting_condenser_fits_between_blocks() -> None:
    """Assignments are composed: tokens kept in the end are patches of the bag, and all dropped ones are counted."""
    batch, seen = make_batch([40, 9]), []
    half = create_condenser("random", dim=16, tokens=0.5)

    def between(number: int, tokens: TokenBatch) -> Condensed:
        seen.append((number, tokens.lengths.tolist()))
        return half(tokens)

    encoded = make()(batch, between=between)
    assert seen == [(1, [40, 9]), (2, [20, 4])]
    assert encoded.tokens.lengths.tolist() == [10, 2]
    assert encoded.dropped.tolist() == [30, 7]
    for slide, assignment in zip(encoded.tokens, [encoded.assignment[0], encoded.assignment[1]], strict=True):
        assert (assignment.index[:, 0] >= 0).nonzero()[:, 0].tolist() == slide.origin.tolist()


def test_a_name_used_by_two_blocks_gets_a_suffix() -> None:
    def between(number: int, tokens: TokenBatch) -> Condensed:
        step = create_condenser("none", dim=16)(tokens)
        return replace(step, losses={"aux": torch.tensor(float(number))})

    assert make()(make_batch([5]), between=between).losses == {"aux": 1.0, "aux/2": 2.0}


def test_a_small_longnet_by_its_equations() -> None:
    """Dense, head by head: [CLS] at the origin, continuous positions relative to the slide's corner, θ = 100."""
    torch.manual_seed(3)
    encoder, batch = make(segments="cover", piece=64).double(), make_batch([30]).to(dtype=torch.float64)
    positions = torch.rand(30, 2) * 9 + 5
    got = encoder(replace(batch, positions=positions))
    at = torch.cat([torch.zeros(1, 2), positions - positions.min(0).values]).double()
    x = torch.cat([encoder.cls[None], encoder.project(batch.features)])
    for block in encoder.blocks:
        y = torch.nn.functional.layer_norm(x, (16,), block.norm1.weight, block.norm1.bias)
        q, k, v = block.qkv(y).view(31, 3, 2, 8).unbind(1)
        q, k = naive.rope2d(q.detach(), at), naive.rope2d(k.detach(), at)
        seen, _ = naive.dilated_attention(q, k, v.detach(), branches_of(31, piece=64, levels=2))
        x = x + block.out(seen.flatten(1))
        y = torch.nn.functional.layer_norm(x, (16,), block.norm2.weight, block.norm2.bias)
        x = x + block.mlp[2](torch.nn.functional.gelu(block.mlp[0](y)))
    x = torch.nn.functional.layer_norm(x, (16,), encoder.norm.weight, encoder.norm.bias)
    torch.testing.assert_close(got.summary[0], x[0], atol=1e-5, rtol=0)  # type: ignore[index]
    torch.testing.assert_close(got.tokens.features, x[1:], atol=1e-5, rtol=0)


def test_norms_are_taken_in_float32(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []
    plain = torch.nn.functional.layer_norm

    def watched(x: torch.Tensor, *arguments: object) -> torch.Tensor:
        seen.append((x.dtype, torch.is_autocast_enabled("cpu")))
        return plain(x, *arguments)  # type: ignore[arg-type]

    monkeypatch.setattr("abbe.layers.norm.F.layer_norm", watched)
    for enabled in (False, True):
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            assert Norm(16).bfloat16()(torch.randn(3, 16).bfloat16()).dtype == torch.bfloat16
    assert seen == [(torch.float32, False)] * 2


@pytest.mark.parametrize("name", ["random", "attention", "fps", "uniform"])
def test_masked_tokens_are_neither_read_nor_returned(name: str) -> None:
    """For example empty cells of a thumbnail, with any content, also with pruning between the blocks."""
    batch, keep = make_batch([12, 9]), create_condenser(name, dim=16, tokens=4).eval()
    encoder, mask = make(), torch.arange(21) % 5 != 1
    results = []
    for garbage in (0.0, 50.0):
        features = torch.where(mask[:, None], batch.features, garbage)
        masked = replace(batch, features=features, mask=mask)
        results.append(encoder(masked, between=lambda _, tokens: keep(tokens)))
    first, second = results
    assert torch.equal(first.tokens.features, second.tokens.features)
    assert first.tokens.lengths.tolist() == [4, 4]
    assert first.dropped.tolist() == [int(mask[:12].sum()) - 4, int(mask[12:].sum()) - 4]
    assert bool((first.assignment.index[~mask] == -1).all())
    assert encoder(replace(batch, mask=mask)).tokens.lengths.tolist() == [int(mask[:12].sum()), int(mask[12:].sum())]


@pytest.mark.parametrize("name", ["merge", "thumbnail"])
def test_a_method_that_merges_is_refused_between_blocks(name: str) -> None:
    """Both keep positions, but merged tokens are not patches, and an empty cell would be attended to."""
    merging = create_condenser(name, dim=16, tokens=4)
    with pytest.raises(
        InputError, match=r"must select patches, but of \[40, 9\] tokens it dropped \[0, 0\] and returned \[4, 4\]"
    ):
        make()(make_batch([40, 9]), between=lambda _, tokens: merging(tokens))


def test_refusals() -> None:
    encoder, batch = make(), make_batch([5])
    with pytest.raises(MissingCoordinates, match="longnet needs positions"):
        encoder(replace(batch, positions=None))
    with pytest.raises(MissingCoordinates, match="between blocks must keep positions"):
        encoder(batch, between=lambda _, tokens: create_condenser("tcssa", dim=16, tokens=2, hidden=4)(tokens))
    with pytest.raises(BagError, match="longnet: features are 8 wide, but the encoder has dim=16"):
        encoder(make_batch([5], dim=8))
    with pytest.raises(BagError, match="longnet: slide 'slide1' has no patches"):
        encoder(make_batch([5, 0]))
    narrow = create_condenser("none", dim=8)(make_batch([5], dim=8))
    with pytest.raises(InputError, match="tokens between blocks are 16 wide, got 8"):
        encoder(batch, between=lambda *_: narrow)
    with pytest.raises(ConfigError, match=r"width must be a multiple of 4 · heads.*got width=10, heads=2"):
        make(width=10)
    with pytest.raises(ConfigError, match=r"got 'papers'\. Did you mean 'paper'"):
        make(segments="papers")
    with pytest.raises(ConfigError, match=r"encoder 'longnet' has no option 'layer'\. Did you mean 'layers'"):
        create_encoder("longnet", dim=4, layer=2)
    with pytest.raises(ConfigError, match=r"unknown name 'longnets' in encoders\. Did you mean 'longnet'"):
        create_encoder("longnets", dim=4)
    for options, message in (
        ({"theta": 0.0}, "theta must be above 0, got 0"),
        ({"piece": 0}, "piece must be at least 1, got 0"),
        ({"levels": 0}, "levels must be at least 1 and below 60, got 0"),
        ({"levels": 60}, "levels must be at least 1 and below 60, got 60"),
        ({"layers": 2.5}, r"encoder 'longnet': layers must be int, got 2\.5 \(float\)"),
    ):
        with pytest.raises(ConfigError, match=message):
            make(**options)
    with pytest.raises(ConfigError, match="identity: dim must be at least 1, got 0"):
        create_encoder("identity", dim=0)


def test_identity_returns_its_input() -> None:
    assert list_encoders() == ["identity", "longnet"]
    batch = make_batch([4, 2])
    encoded = create_encoder("identity", dim=16)(batch)
    assert encoded.tokens is batch
    assert encoded.assignment.index[:, 0].tolist() == [0, 1, 2, 3, 0, 1]
