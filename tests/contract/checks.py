"""The contract of a condenser, check by check. Each takes a class and its small options; every method gets them all.

The list is read by test_contract.py. A check that does not apply to a method's traits says so by its first lines.
"""

from __future__ import annotations

import copy
import inspect
import pickle
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from abbe.condensers import create_condenser
from abbe.condensers.base import Condenser
from abbe.errors import BagError, InputError
from abbe.types import Condensed, TokenBatch
from builders import make_batch

DIM = 16
LENGTHS = [9, 1, 3, 40]
Check = Callable[[type[Condenser], str], None]
CHECKS: dict[str, Check] = {}


def check(function: Check) -> Check:
    CHECKS[function.__name__] = function
    return function


def make(cls: type[Condenser], name: str, **options: Any) -> Condenser:
    torch.manual_seed(0)
    return create_condenser(name, dim=DIM, **{**cls.small, **options}).eval()


def run(condenser: Condenser, batch: TokenBatch, **options: Any) -> Condensed:
    torch.manual_seed(1)
    return condenser(batch, **options)


def assert_same_slide(alone: Condensed, whole: Condensed, b: int, tolerance: float) -> None:
    one, other = alone.tokens, whole.tokens[b]
    torch.testing.assert_close(one.features, other.features, atol=tolerance, rtol=0)
    torch.testing.assert_close(one.mass, other.mass, atol=tolerance * 10, rtol=1e-5)
    assert torch.equal(one.mask, other.mask)
    assert torch.equal(one.origin, other.origin)
    mine, theirs = alone.assignment, whole.assignment[b]
    assert torch.equal(mine.index, theirs.index)
    torch.testing.assert_close(mine.weight, theirs.weight, atol=tolerance, rtol=0)


@check
def keyword_only_constructor_with_plain_types(cls: type[Condenser], name: str) -> None:
    for parameter in list(inspect.signature(cls.__init__).parameters.values())[1:]:
        assert parameter.kind is parameter.KEYWORD_ONLY, parameter
        assert parameter.annotation is not parameter.empty, parameter


@check
def has_exactly_one_way_of_keeping(cls: type[Condenser], name: str) -> None:
    assert cls.merges != cls.selects
    assert cls.__doc__ is not None
    assert len(cls.expected_failures) <= 1


@check
def count_is_what_comes_out_and_at_most_the_budget(cls: type[Condenser], name: str) -> None:
    condenser, batch = make(cls, name), make_batch(LENGTHS, dim=DIM)
    counted = condenser.count(batch.lengths, soft=False)
    assert run(condenser, batch, soft=False).tokens.lengths.tolist() == counted
    for n, budget in zip(counted, condenser.budgets(batch.lengths, None), strict=True):
        assert n <= budget


@check
def a_slide_alone_is_the_slide_in_a_batch(cls: type[Condenser], name: str) -> None:
    condenser, batch = make(cls, name), make_batch(LENGTHS * 2, dim=DIM)
    whole = run(condenser, batch)
    for b in range(len(batch)):
        assert_same_slide(run(condenser, batch[b]), whole, b, 1e-5)


@check
def one_patch_is_enough(cls: type[Condenser], name: str) -> None:
    condensed = run(make(cls, name), make_batch([1], dim=DIM))
    assert condensed.tokens.mask.any()
    assert int(condensed.dropped.sum()) == 0


@check
def same_seed_same_result(cls: type[Condenser], name: str) -> None:
    batch = make_batch(LENGTHS, dim=DIM)
    for training in (False, True):
        first, second = (run(make(cls, name).train(training), batch) for _ in range(2))
        assert torch.equal(first.tokens.features, second.tokens.features)
        assert torch.equal(first.assignment.index, second.assignment.index)


@check
def permuting_patches_permutes_who_went_where(cls: type[Condenser], name: str) -> None:
    """Slots do not depend on the order of patches; a selection keeps the same patches, in the new slide order.

    A method that declares itself `ordered` keeps by place in the list: other patches, which must then be true.
    """
    condenser, batch = make(cls, name), make_batch([40], dim=DIM)
    order = torch.randperm(40)
    moved = TokenBatch(
        **{
            **vars(batch),
            "features": batch.features[order],
            "positions": batch.positions[order],  # type: ignore[index]
            "origin": batch.origin[order],
        }
    )
    before, after = run(condenser, batch), run(condenser, moved)
    kept_before, kept_after = before.assignment.index >= 0, after.assignment.index >= 0
    assert torch.equal(kept_before[order], kept_after) != cls.order_dependent
    if cls.merges:
        assert torch.equal(before.assignment.index[order], after.assignment.index)
        torch.testing.assert_close(before.tokens.features, after.tokens.features, atol=1e-5, rtol=0)


@check
def masses_add_up(cls: type[Condenser], name: str) -> None:
    batch = make_batch(LENGTHS, dim=DIM)
    condensed = run(make(cls, name), batch)
    for slide, dropped in zip(condensed.tokens, condensed.dropped.tolist(), strict=True):
        total, n = float(slide.mass.detach().sum()) + dropped, int(slide.lengths0[0])
        assert total <= n * (1 + 1e-5)
        if not cls.cuts_mass:
            assert abs(total - n) <= 1e-4 * n
    assert bool((condensed.tokens.weight >= 0).all())
    assert bool((condensed.assignment.weight >= 0).all())


@check
def selected_tokens_stand_in_slide_order(cls: type[Condenser], name: str) -> None:
    if not cls.selects:
        return
    batch = make_batch(LENGTHS, dim=DIM)
    condensed = run(make(cls, name), batch)
    for slide, kept in zip(batch, condensed.tokens, strict=True):
        assert torch.equal(kept.origin, kept.origin.sort().values)
        assert torch.equal(kept.positions, slide.positions[kept.origin])  # type: ignore[index,arg-type]


@check
def selected_tokens_are_the_patches_themselves(cls: type[Condenser], name: str) -> None:
    if not cls.selects or cls.changes_features:
        return
    batch = make_batch(LENGTHS, dim=DIM)
    for slide, kept in zip(batch, run(make(cls, name), batch).tokens, strict=True):
        assert torch.equal(kept.features, slide.features[kept.origin])


@check
def any_budget_at_call_time(cls: type[Condenser], name: str) -> None:
    """A count, a keep rate, or one of either a slide; `count` says the numbers. Slots are weights and say so."""
    condenser, batch = make(cls, name), make_batch(LENGTHS, dim=DIM)
    for budget in (1, 7, 64, 0.3, 1.0, [2, 0.5, 9, 3]):
        if cls.fixed_budget:
            with pytest.raises(InputError, match="trained weights"):
                run(condenser, batch, tokens=budget, soft=False)
            continue
        condensed = run(condenser, batch, tokens=budget, soft=False)
        counted = condenser.count(batch.lengths, tokens=budget, soft=False)
        assert condensed.tokens.lengths.tolist() == counted
        assert all(n <= k for n, k in zip(counted, condenser.budgets(batch.lengths, budget), strict=True))


@check
def fewer_patches_than_tokens(cls: type[Condenser], name: str) -> None:
    condensed = run(make(cls, name), make_batch([3, 2], dim=DIM))
    assert int(condensed.dropped.sum()) == 0
    assert bool(torch.isfinite(condensed.tokens.features).all())
    for slide in condensed.tokens:
        assert int(slide.mask.sum()) >= 1
        assert not slide.features[~slide.mask].any()


@check
def a_stream_gives_the_tokens_of_a_call(cls: type[Condenser], name: str) -> None:
    batch = make_batch([130], dim=DIM)
    if not cls.streams:
        with pytest.raises(InputError, match=f"{name} does not stream"):
            make(cls, name).stream("slide0")
        return
    condenser, cuts = make(cls, name), [0, 1, 50, 53, 130]
    whole, stream = run(condenser, batch), condenser.stream("slide0")
    chunks = []
    for start, stop in pairwise(cuts):
        chunks.append(stream.update(batch.features[start:stop], batch.positions[start:stop]))  # type: ignore[index]
        assert chunks[-1].index.shape[0] == stop - start
    streamed = stream.finish()
    torch.testing.assert_close(streamed.tokens.features, whole.tokens.features, atol=1e-5, rtol=0)
    torch.testing.assert_close(streamed.tokens.mass, whole.tokens.mass, atol=1e-4, rtol=1e-5)
    for key in ("mask", "origin", "lengths0"):
        assert torch.equal(getattr(streamed.tokens, key), getattr(whole.tokens, key)), key
    assert torch.equal(streamed.dropped, whole.dropped)
    assert len(streamed.assignment.index) == 0
    assert set(streamed.losses) == set(whole.losses)
    assert set(streamed.metrics) == set(whole.metrics)
    for key, value in streamed.metrics.items():
        torch.testing.assert_close(value.float(), whole.metrics[key].float(), atol=1e-5, rtol=1e-4)
    for key, loss in streamed.losses.items():
        torch.testing.assert_close(loss, whole.losses[key])
    if cls.merges:
        assert torch.equal(torch.cat([chunk.index for chunk in chunks]), whole.assignment.index)
    with pytest.raises(BagError, match="no patches"):
        condenser.stream("empty").finish()


@check
def a_stream_of_half_precision_keeps_what_a_call_keeps(cls: type[Condenser], name: str) -> None:
    if not cls.streams:
        return
    for dtype in (torch.bfloat16, torch.float16):
        batch = make_batch([300], dim=DIM).to(dtype=dtype)
        condenser = make(cls, name)
        whole, stream = run(condenser, batch), condenser.stream("slide0")
        for rows in torch.arange(300).split(77):
            stream.update(batch.features[rows], batch.positions[rows])  # type: ignore[index]
        streamed = stream.finish()
        assert streamed.tokens.features.dtype == dtype
        assert torch.equal(streamed.tokens.origin, whole.tokens.origin)
        torch.testing.assert_close(
            streamed.tokens.features.float(), whole.tokens.features.float(), atol=0.02, rtol=0.02
        )


@check
def assignment_covers_every_patch_it_does_not_drop(cls: type[Condenser], name: str) -> None:
    batch = make_batch(LENGTHS, dim=DIM)
    condensed = run(make(cls, name), batch)
    for b in range(len(batch)):
        lost = (condensed.assignment[b].index < 0).all(1).sum()
        assert int(lost) == int(condensed.dropped[b])


@check
def masked_tokens_are_not_routed(cls: type[Condenser], name: str) -> None:
    """A masked token must leave no trace in a merged token, whatever stands in it; nor is it selected."""
    if cls.selects:
        masked_tokens_are_not_selected(cls, name)
        return
    batch = make_batch([6], dim=DIM)
    mask = torch.tensor([True, True, False, True, True, True])
    condenser, results = make(cls, name), []
    for garbage in (0.0, 1e4):
        features = torch.where(mask[:, None], batch.features, garbage)
        results.append(run(condenser, TokenBatch(**{**vars(batch), "features": features, "mask": mask})))
    assert torch.equal(results[0].tokens.features, results[1].tokens.features)
    assert results[0].assignment.index[2].tolist() == [-1] * results[0].assignment.index.shape[1]


def masked_tokens_are_not_selected(cls: type[Condenser], name: str) -> None:
    batch = make_batch([12, 5], dim=DIM)
    mask = torch.tensor([True, False] * 6 + [True] * 5)
    condenser, results = make(cls, name, **({} if name == "none" else {"tokens": 4})), []
    for garbage in (0.0, 1e3):
        features = torch.where(mask[:, None], batch.features, garbage)
        results.append(run(condenser, TokenBatch(**{**vars(batch), "features": features, "mask": mask})))
    first, second = results
    valid = first.tokens.mask
    assert torch.equal(first.tokens.features[valid], second.tokens.features[valid])
    for slide, many in zip(first.tokens, (6, 5), strict=True):
        assert int(slide.mask.sum()) == (many if name == "none" else 4)
    if name != "none":  # which chooses nothing, and hands an empty slot on as one
        assert bool(valid.all())
        assert not bool((first.assignment.index[:, 0] >= 0)[~mask].any())
        assert torch.equal(first.assignment.weight > 0, first.assignment.index >= 0)
        assert first.dropped.tolist() == [2, 1]
        with pytest.raises(BagError, match="all tokens of slide 'slide0' are masked"):
            run(condenser, TokenBatch(**{**vars(batch), "mask": torch.arange(17) >= 12}))


@check
def a_merged_token_is_the_mean_of_its_patches_by_mass(cls: type[Condenser], name: str) -> None:
    """Where each patch goes to one token whole. (Slots with experts and cut weights have tests of their own.)"""
    if not cls.merges or cls.trainable:
        return
    batch = make_batch([60, 9], dim=DIM)
    mass, weight = 1 + 9 * torch.rand(69), torch.rand(69)
    condensed = run(make(cls, name), TokenBatch(**{**vars(batch), "mass": mass, "weight": weight}))
    for b, (slide, tokens) in enumerate(zip(batch, condensed.tokens, strict=True)):
        rows = slice(*batch.offsets[b : b + 2].tolist())
        amount, index = (mass * weight)[rows], condensed.assignment[b].index[:, 0]
        for token in index.unique().tolist():
            here = index == token
            expected = (amount[here, None] * slide.features[here]).sum(0) / amount[here].sum()
            torch.testing.assert_close(tokens.features[token], expected, atol=1e-5, rtol=1e-5)
            torch.testing.assert_close(tokens.mass[token], amount[here].sum())


@check
def it_can_be_copied_and_pickled(cls: type[Condenser], name: str) -> None:
    condenser, batch = make(cls, name), make_batch([9, 4], dim=DIM)
    for again in (copy.deepcopy(condenser), pickle.loads(pickle.dumps(condenser))):
        assert again.config == condenser.config
        assert torch.equal(run(again, batch).tokens.features, run(condenser, batch).tokens.features)


@check
def every_trainable_parameter_gets_a_gradient_on_every_step(cls: type[Condenser], name: str) -> None:
    condenser = make(cls, name).train()
    parameters = dict(condenser.named_parameters())
    assert bool(parameters) == cls.trainable
    for lengths in ([1], LENGTHS):
        condenser.zero_grad()
        condensed = run(condenser, make_batch(lengths, dim=DIM))
        outputs = [condensed.tokens.features, *condensed.predictions.values()]  # a model's heads supervise both
        loss = torch.stack([(value * torch.randn_like(value)).sum() for value in outputs]).sum()
        if cls.trainable:
            (loss + sum(condensed.losses.values())).backward()
        for key, parameter in parameters.items():
            assert parameter.grad is not None, key
            if lengths == LENGTHS:
                assert bool(parameter.grad.any()), key


@check
def gradient_reaches_the_features(cls: type[Condenser], name: str) -> None:
    batch = make_batch(LENGTHS, dim=DIM)
    features = batch.features.clone().requires_grad_()
    condensed = run(make(cls, name), TokenBatch(**{**vars(batch), "features": features}))
    condensed.tokens.features.square().sum().backward()
    assert features.grad is not None
    kept = (condensed.assignment.index >= 0).any(1)
    assert bool(features.grad[kept].any(1).all())
    if not cls.changes_features:
        assert not features.grad[~kept].any()


@check
def bf16_is_near_float32(cls: type[Condenser], name: str) -> None:
    condenser, batch = make(cls, name), make_batch([200], dim=DIM)
    exact = run(condenser, batch).tokens.features
    rounded = run(condenser, batch.to(dtype=torch.bfloat16)).tokens
    assert rounded.features.dtype == torch.bfloat16
    error = (rounded.features.float() - exact).norm() / exact.norm()
    assert float(error.detach()) < 0.02


@check
def save_and_load_give_the_same_condenser(cls: type[Condenser], name: str) -> None:
    import tempfile

    condenser, batch = make(cls, name), make_batch(LENGTHS, dim=DIM)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "condenser.safetensors"
        save_file(condenser.state_dict(), path)
        again = create_condenser(name, **condenser.config).eval()
        again.load_state_dict(load_file(path))
    assert torch.equal(run(again, batch).tokens.features, run(condenser, batch).tokens.features)
    assert again.config == condenser.config


@check
def what_is_returned_does_not_depend_on_the_mode(cls: type[Condenser], name: str) -> None:
    batch = make_batch(LENGTHS, dim=DIM)
    first, second = (run(make(cls, name).train(training), batch) for training in (False, True))
    for kind in ("losses", "metrics", "predictions"):
        assert set(getattr(first, kind)) == set(getattr(second, kind))
    assert (first.summary is None) == (second.summary is None)


@check
def what_it_offers_besides_tokens_is_what_it_says(cls: type[Condenser], name: str) -> None:
    condenser = make(cls, name)
    condensed = run(condenser, make_batch([9, 5]))
    assert set(condensed.predictions) == set(condenser.prediction_names)
    assert (condensed.summary is not None) == condenser.summarises
    for offered in (*condensed.predictions.values(), *([] if condensed.summary is None else [condensed.summary])):
        assert offered.shape == (2, condenser.width)


@check
def every_floating_type_keeps_its_type(cls: type[Condenser], name: str) -> None:
    condenser, batch = make(cls, name), make_batch(LENGTHS, dim=DIM)
    for dtype in (torch.float16, torch.bfloat16, torch.float32, torch.float64):
        tokens = run(condenser, batch.to(dtype=dtype)).tokens
        assert tokens.features.dtype == dtype
        assert bool(torch.isfinite(tokens.features).all())


@check
def a_batch_on_another_device_is_refused(cls: type[Condenser], name: str) -> None:
    if cls.trainable:
        with pytest.raises(InputError, match=f"{name} is on cpu, the batch on meta; move one of them"):
            run(make(cls, name), make_batch([3], dim=DIM).to("meta"))


@check
def it_trains_in_bf16(cls: type[Condenser], name: str) -> None:
    if cls.trainable:
        trains_in_bf16(lambda: make(cls, name))


def trains_in_bf16(build: Callable[[], Condenser]) -> None:
    """Under autocast with float32 weights, and with weights and features in bf16."""
    batch = make_batch([40, 9, 1], dim=DIM)
    for dtype in (torch.float32, torch.bfloat16):
        condenser = build().to(dtype).train()
        with torch.autocast("cpu", torch.bfloat16, enabled=dtype == torch.float32):
            condensed = condenser(batch.to(dtype=dtype))
        assert condensed.tokens.features.dtype == dtype
        outputs = [condensed.tokens.features, *condensed.predictions.values()]
        torch.stack([value.float().square().sum() for value in outputs]).sum().backward()
        assert all(p.grad is not None and bool(torch.isfinite(p.grad).all()) for p in condenser.parameters())
        with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, enabled=dtype == torch.float32):
            assert condenser.eval()(batch.to(dtype=dtype)).tokens.features.dtype == dtype
