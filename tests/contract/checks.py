"""The contract of a condenser, check by check. Each takes a class and its registered name; every method gets them all.

A check's docstring is the promise it tests, and a failure repeats it. Checks that do not apply to a method's traits
return at once. Checks of training are in `training_checks`, of streams in `stream_checks`.
"""

from __future__ import annotations

import copy
import inspect
import pickle
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from abbe.condensers import create_condenser
from abbe.condensers.base import Condenser
from abbe.errors import BagError, InputError
from abbe.types import TokenBatch
from builders import make_batch
from contract import stream_checks, training_checks
from contract.promise import CHECKS, DIM, LENGTHS, assert_close, assert_same_slide, check, make, run

__all__ = ["CHECKS", "stream_checks", "training_checks"]  # importing the modules adds their checks to CHECKS


@check
def options_are_keyword_only_and_typed(cls: type[Condenser], name: str) -> None:
    """The constructor's arguments are keyword-only and annotated; they are the schema of the method's options."""
    for parameter in list(inspect.signature(cls.__init__).parameters.values())[1:]:
        assert parameter.kind is parameter.KEYWORD_ONLY, f"`{parameter}` is {parameter.kind.description}"
        assert parameter.annotation is not parameter.empty, f"`{parameter}` has no type"


@check
def class_attributes_are_consistent(cls: type[Condenser], name: str) -> None:
    """There is a docstring; one of `merges` and `selects` is true; at most one expected failure, of a known check."""
    assert cls.__doc__, f"{cls.__name__} has no docstring"
    assert cls.merges != cls.selects, f"merges={cls.merges}, selects={cls.selects}"
    assert cls.selects or not cls.keeps_everything, "keeps_everything is for methods that select"
    assert len(cls.expected_failures) <= 1, f"expected_failures has {len(cls.expected_failures)} entries"
    assert set(cls.expected_failures) <= set(CHECKS), f"unknown check in {cls.expected_failures}"
    references = cls.references
    assert isinstance(references, tuple), f"references must be a tuple of texts, got {references!r}"
    assert all(isinstance(text, str) and text for text in references), f"references are {references!r}"


@check
def every_grid_value_is_valid(cls: type[Condenser], name: str) -> None:
    """Each value of each option in `grid` makes, together with `small`, a condenser that runs."""
    for option, values in cls.grid.items():
        assert values, f"grid has no values for {option}"
        for value in values:
            condenser = make(cls, name, **{option: value})
            assert condenser.config[option] == value, f"{option}={value!r} is stored as {condenser.config[option]!r}"
            assert run(condenser, make_batch([9], dim=DIM)).tokens.mask.any(), f"{option}={value!r} gives no token"


@check
def count_is_the_number_of_tokens_and_within_the_budget(cls: type[Condenser], name: str) -> None:
    """With soft=False, a call returns as many tokens as `count` says, and at most the budget."""
    condenser, batch = make(cls, name), make_batch(LENGTHS, dim=DIM)
    counted, budgets = condenser.count(batch.lengths, soft=False), condenser.budgets(batch.lengths, None)
    returned = run(condenser, batch, soft=False).tokens.lengths.tolist()
    assert returned == counted, f"slides of {LENGTHS} patches: {returned} tokens, but count() says {counted}"
    within = all(n <= budget for n, budget in zip(counted, budgets, strict=True))
    assert within, f"slides of {LENGTHS} patches: {counted} tokens for budgets of {budgets}"


@check
def a_slide_alone_is_the_slide_in_a_batch(cls: type[Condenser], name: str) -> None:
    """In eval mode, a slide's tokens and assignment do not depend on the other slides of the batch (1e-5)."""
    condenser, batch = make(cls, name), make_batch(LENGTHS * 2, dim=DIM)
    whole = run(condenser, batch)
    for b in range(len(batch)):
        assert_same_slide(run(condenser, batch[b]), whole, b, 1e-5)


@check
def one_patch_is_enough(cls: type[Condenser], name: str) -> None:
    """A slide of one patch gives at least one valid token, and the patch is not dropped."""
    condensed = run(make(cls, name), make_batch([1], dim=DIM))
    assert condensed.tokens.mask.any(), f"mask is {condensed.tokens.mask.tolist()}"
    assert condensed.dropped.tolist() == [0]


@check
def same_seed_same_result(cls: type[Condenser], name: str) -> None:
    """With the same seed, two condensers give bitwise the same result, in eval and in training mode."""
    batch = make_batch(LENGTHS, dim=DIM)
    for training in (False, True):
        first, second = (run(make(cls, name).train(training), batch) for _ in range(2))
        assert torch.equal(first.tokens.features, second.tokens.features), f"features differ, training={training}"
        assert torch.equal(first.assignment.index, second.assignment.index), f"index differs, training={training}"


@check
def permuting_patches_permutes_the_assignment(cls: type[Condenser], name: str) -> None:
    """With its rows permuted, a slide keeps the same patches and merged tokens; with `order_dependent`, others."""
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
    kept_before, kept_after = (c.assignment.index.amax(1) >= 0 for c in (before, after))
    same = torch.equal(kept_before[order], kept_after)
    changed = order[kept_before[order] != kept_after].tolist()
    assert same != cls.order_dependent, f"order_dependent={cls.order_dependent}; kept in one order only: {changed}"
    if cls.merges:
        assert torch.equal(before.assignment.index[order], after.assignment.index), "patches go to other tokens"
        assert_close(before.tokens.features, after.tokens.features, "features of the permuted slide", atol=1e-5, rtol=0)


@check
def masses_add_up(cls: type[Condenser], name: str) -> None:
    """Σ mass + dropped = N for every slide (with `cuts_mass`, at most N), and no weight is negative."""
    batch = make_batch(LENGTHS, dim=DIM)
    condensed = run(make(cls, name), batch)
    for slide, dropped in zip(condensed.tokens, condensed.dropped.tolist(), strict=True):
        mass, n = float(slide.mass.detach().sum()), int(slide.lengths0[0])
        found = f"{slide.slide_ids[0]}: Σ mass {mass:g} + dropped {dropped}, N = {n}"
        assert mass + dropped <= n * (1 + 1e-5), found
        assert cls.cuts_mass or abs(mass + dropped - n) <= 1e-4 * n, found
    for what, weight in (("tokens.weight", condensed.tokens.weight), ("assignment", condensed.assignment.weight)):
        assert bool((weight >= 0).all()), f"least weight in {what}: {float(weight.min())}"


@check
def selected_tokens_are_in_slide_order(cls: type[Condenser], name: str) -> None:
    """A method that selects returns tokens in slide order, at the positions of their patches."""
    if not cls.selects:
        return
    batch = make_batch(LENGTHS, dim=DIM)
    for slide, kept in zip(batch, run(make(cls, name), batch).tokens, strict=True):
        origin = kept.origin.tolist()
        assert origin == sorted(origin), f"{slide.slide_ids[0]}: origin is {origin}"
        positions = slide.positions[kept.origin]  # type: ignore[index]
        assert torch.equal(kept.positions, positions), f"{slide.slide_ids[0]}: positions are not those of the patches"  # type: ignore[arg-type]


@check
def selected_tokens_are_the_patches_themselves(cls: type[Condenser], name: str) -> None:
    """A method that selects returns its patches' features unchanged, unless `changes_features` is true."""
    if not cls.selects or cls.changes_features:
        return
    batch = make_batch(LENGTHS, dim=DIM)
    for slide, kept in zip(batch, run(make(cls, name), batch).tokens, strict=True):
        other = kept.origin[(kept.features != slide.features[kept.origin]).any(1)].tolist()
        assert not other, f"{slide.slide_ids[0]}: the features of patches {other} were changed"


@check
def any_budget_at_call_time(cls: type[Condenser], name: str) -> None:
    """A call takes a count, a keep rate, or one per slide, and `count` agrees; `fixed_budget` methods refuse."""
    condenser, batch = make(cls, name), make_batch(LENGTHS, dim=DIM)
    for budget in (1, 7, 64, 0.3, 1.0, [2, 0.5, 9, 3]):
        if cls.fixed_budget:
            with pytest.raises(InputError, match="trained weights"):
                run(condenser, batch, tokens=budget, soft=False)
            continue
        returned = run(condenser, batch, tokens=budget, soft=False).tokens.lengths.tolist()
        counted = condenser.count(batch.lengths, tokens=budget, soft=False)
        case = f"tokens={budget}, slides of {LENGTHS} patches"
        assert returned == counted, f"{case}: {returned} tokens, but count() says {counted}"
        most = condenser.budgets(batch.lengths, budget)
        assert all(n <= k for n, k in zip(counted, most, strict=True)), f"{case}: {counted} tokens for budgets {most}"


@check
def fewer_patches_than_tokens(cls: type[Condenser], name: str) -> None:
    """A slide with fewer patches than the budget drops none; its tokens are finite, and zero where they are masked."""
    condensed = run(make(cls, name), make_batch([3, 2], dim=DIM))
    assert condensed.dropped.tolist() == [0, 0]
    assert bool(torch.isfinite(condensed.tokens.features).all()), f"features are {condensed.tokens.features}"
    for slide in condensed.tokens:
        assert slide.mask.any(), f"{slide.slide_ids[0]}: all tokens are masked"
        assert not slide.features[~slide.mask].any(), f"{slide.slide_ids[0]}: a masked token is not zero"


@check
def the_assignment_covers_every_patch_that_is_not_dropped(cls: type[Condenser], name: str) -> None:
    """`dropped` is the number of patches without any route in the assignment."""
    batch = make_batch(LENGTHS, dim=DIM)
    condensed = run(make(cls, name), batch)
    lost = [int((condensed.assignment[b].index < 0).all(1).sum()) for b in range(len(batch))]
    assert lost == condensed.dropped.tolist(), f"slides of {LENGTHS} patches"


@check
def masked_tokens_are_not_merged(cls: type[Condenser], name: str) -> None:
    """What is in a masked token changes no bit of a merged token, and the masked token has no route."""
    if not cls.merges:
        return
    batch = make_batch([6], dim=DIM)
    mask = torch.tensor([True, True, False, True, True, True])
    condenser, results = make(cls, name), []
    for garbage in (0.0, 1e4):
        features = torch.where(mask[:, None], batch.features, garbage)
        results.append(run(condenser, TokenBatch(**{**vars(batch), "features": features, "mask": mask})))
    assert torch.equal(results[0].tokens.features, results[1].tokens.features), "features depend on a masked token"
    routes = results[0].assignment.index[2].tolist()
    assert routes == [-1] * len(routes), f"the masked token went to tokens {routes}"


@check
def masked_tokens_are_not_selected(cls: type[Condenser], name: str) -> None:
    """A method that selects neither reads nor keeps masked tokens; with `keeps_everything` they stay, masked."""
    if not cls.selects:
        return
    batch, budget = make_batch([12, 5], dim=DIM), 4
    mask = torch.tensor([True, False] * 6 + [True] * 5)
    condenser, results = make(cls, name, tokens=budget), []
    for garbage in (0.0, 1e3):
        features = torch.where(mask[:, None], batch.features, garbage)
        results.append(run(condenser, TokenBatch(**{**vars(batch), "features": features, "mask": mask})))
    first, second = results
    valid = first.tokens.mask
    assert torch.equal(first.tokens.features[valid], second.tokens.features[valid]), "features depend on masked tokens"
    kept = [int(slide.mask.sum()) for slide in first.tokens]
    assert kept == ([6, 5] if cls.keeps_everything else [budget, budget]), "6 and 5 valid tokens"
    if cls.keeps_everything:
        return
    assert bool(valid.all()), f"a masked token was kept: mask is {valid.tolist()}"
    routed = ((first.assignment.index[:, 0] >= 0) & ~mask).nonzero()[:, 0].tolist()
    assert not routed, f"the masked tokens {routed} are in the assignment"
    assert torch.equal(first.assignment.weight > 0, first.assignment.index >= 0), "weight > 0 exactly where kept"
    assert first.dropped.tolist() == [6 - budget, 5 - budget], "masked tokens do not count as dropped"
    with pytest.raises(BagError, match="all tokens of slide 'slide0' are masked"):
        run(condenser, TokenBatch(**{**vars(batch), "mask": torch.arange(17) >= 12}))


@check
def a_merged_token_is_the_mean_of_its_patches_by_mass(cls: type[Condenser], name: str) -> None:
    """Without training, a merged token is the mean of its patches weighted by mass · weight, which is its mass."""
    if not cls.merges or cls.trainable:
        return
    batch = make_batch([60, 9], dim=DIM)
    mass, weight = 1 + 9 * torch.rand(69), torch.rand(69)
    condensed = run(make(cls, name), TokenBatch(**{**vars(batch), "mass": mass, "weight": weight}))
    for b, (slide, tokens) in enumerate(zip(batch, condensed.tokens, strict=True)):
        rows = slice(*batch.offsets[b : b + 2].tolist())
        amount, index = (mass * weight)[rows], condensed.assignment[b].index[:, 0]
        for token in index.unique().tolist():
            here, what = index == token, f"{slide.slide_ids[0]}, token {token}"
            expected = (amount[here, None] * slide.features[here]).sum(0) / amount[here].sum()
            assert_close(tokens.features[token], expected, f"{what}: features", atol=1e-5, rtol=1e-5)
            assert_close(tokens.mass[token], amount[here].sum(), f"{what}: mass")


@check
def it_can_be_copied_and_pickled(cls: type[Condenser], name: str) -> None:
    """A deep copy and a pickled copy have the same configuration and give bitwise the same tokens."""
    condenser, batch = make(cls, name), make_batch([9, 4], dim=DIM)
    for way, again in (("copy", copy.deepcopy(condenser)), ("pickle", pickle.loads(pickle.dumps(condenser)))):
        assert again.config == condenser.config, way
        assert torch.equal(run(again, batch).tokens.features, run(condenser, batch).tokens.features), way


@check
def save_and_load_give_the_same_condenser(cls: type[Condenser], name: str) -> None:
    """`config` and the state dict, saved and loaded, make a condenser that gives bitwise the same tokens."""
    import tempfile

    condenser, batch = make(cls, name), make_batch(LENGTHS, dim=DIM)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "condenser.safetensors"
        save_file(condenser.state_dict(), path)
        again = create_condenser(name, **condenser.config).eval()
        again.load_state_dict(load_file(path))
    assert torch.equal(run(again, batch).tokens.features, run(condenser, batch).tokens.features), "features differ"
    assert again.config == condenser.config


@check
def bf16_is_near_float32(cls: type[Condenser], name: str) -> None:
    """Tokens of bfloat16 features are bfloat16, and within 2 % of those of float32 features."""
    condenser, batch = make(cls, name), make_batch([200], dim=DIM)
    exact = run(condenser, batch).tokens.features
    rounded = run(condenser, batch.to(dtype=torch.bfloat16)).tokens.features
    assert rounded.dtype == torch.bfloat16
    assert rounded.shape == exact.shape
    error = float(((rounded.float() - exact).norm() / exact.norm()).detach())
    assert error < 0.02, f"relative error {error:.4f}"


@check
def every_floating_type_keeps_its_type(cls: type[Condenser], name: str) -> None:
    """Tokens have the dtype of the features, and are finite."""
    condenser, batch = make(cls, name), make_batch(LENGTHS, dim=DIM)
    for dtype in (torch.float16, torch.bfloat16, torch.float32, torch.float64):
        features = run(condenser, batch.to(dtype=dtype)).tokens.features
        assert features.dtype == dtype
        assert bool(torch.isfinite(features).all()), f"{dtype}: features are {features}"


@check
def what_is_returned_does_not_depend_on_the_mode(cls: type[Condenser], name: str) -> None:
    """Losses, metrics, predictions and summary are the same in number and name in eval and in training mode."""
    batch = make_batch(LENGTHS, dim=DIM)
    first, second = (run(make(cls, name).train(training), batch, predictions=True) for training in (False, True))
    for kind in ("losses", "metrics", "predictions"):
        assert set(getattr(first, kind)) == set(getattr(second, kind)), f"{kind} in eval and in training"
    assert (first.summary is None) == (second.summary is None), "summary in eval and in training"


@check
def predictions_and_summary_are_declared(cls: type[Condenser], name: str) -> None:
    """Predictions are those of `prediction_names`, when asked for; a summary is given if `summarises`: [B, width]."""
    condenser, batch = make(cls, name), make_batch([9, 5], dim=DIM)
    assert not run(condenser, batch).predictions, "predictions that nobody asked for"
    condensed = run(condenser, batch, predictions=True)
    assert set(condensed.predictions) == set(condenser.prediction_names)
    assert (condensed.summary is not None) == condenser.summarises, f"summary: {condensed.summary}"
    for key, value in {**condensed.predictions, "summary": condensed.summary}.items():
        assert value is None or value.shape == (2, condenser.width), f"{key} has shape {tuple(value.shape)}"


@check
def a_batch_on_another_device_is_refused(cls: type[Condenser], name: str) -> None:
    """A condenser with weights raises InputError for a batch on another device."""
    if cls.trainable:
        with pytest.raises(InputError, match=f"{name} is on cpu, but the batch is on meta; move one of them"):
            run(make(cls, name), make_batch([3], dim=DIM).to("meta"))
