"""Time and memory of routing, compared with dense PyTorch.

Measured twice: with given logits (`routed_mean`), and with the product of the gate included (`gated_mean`, as in
TC-SSA).
"""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.profiler import ProfilerActivity, profile

from abbe.bench.record import about, circumstances, table
from abbe.bench.settings import OpsSettings
from abbe.console import progress
from abbe.errors import check_range
from abbe.ops.routing import gated_mean, routed_mean
from abbe.types import offsets_of


def bench_ops(run: OpsSettings) -> dict[str, Any]:
    """Times, memory and errors by the dtype of the features, as plain JSON values."""
    check_range("bench ops", 1, patches=run.patches, width=run.width, rounds=run.rounds)
    check_range("bench ops", 2, slots=run.slots)
    now = circumstances("bench ops", OpsSettings, run)
    found: dict[str, Any] = {"circumstances": now, "threads": torch.get_num_threads(), "types": {}}
    with progress("measuring", total=2) as bar:
        for dtype in (torch.float32, torch.bfloat16):
            found["types"][str(dtype).removeprefix("torch.")] = _measure(run, dtype)
            bar.advance(bar.task_ids[0])
    return found


def dense(x: Tensor, gate: Tensor) -> tuple[Tensor, Tensor]:
    """The same centres [K, D] and slots [N, 2] by dense operations in the dtype of x."""
    return _dense(x, (x @ gate.T.to(x.dtype)).softmax(1))


def _dense(x: Tensor, p: Tensor) -> tuple[Tensor, Tensor]:
    top, slots = p.topk(2, dim=1)
    routed = torch.zeros_like(p).scatter(1, slots, top)
    return torch.bmm(routed.T[None], x[None])[0] / (routed.sum(0)[:, None] + 1e-9), slots


def _measure(run: OpsSettings, dtype: torch.dtype) -> dict[str, Any]:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(run.patches, run.width, generator=generator).to(dtype)
    gate = torch.randn(run.slots, run.width, generator=generator) / run.width**0.5
    ones, offsets = torch.ones(run.patches), offsets_of([run.patches])

    def ours() -> Tensor:
        return gated_mean(x, gate, None, offsets, amount_T=ones).centres

    with torch.no_grad():
        times = _times(x, gate, ours, run.rounds)
        memory, _ = peak_bytes(ours)
        dense_memory, (dense_centres, dense_slots) = peak_bytes(lambda: dense(x, gate))
        routed = gated_mean(x, gate, None, offsets, amount_T=ones)
    returned = routed.index.nbytes + routed.weight.nbytes
    gate.requires_grad_()
    backward, dense_backward = (peak_bytes(f().square().sum().backward)[0] for f in (ours, lambda: dense(x, gate)[0]))
    return {
        "forward_ms": {name: round(1e3 * statistics.median(seconds), 1) for name, seconds in times.items()},
        "forward_ratio": _ratio(times["ours"], times["dense"]),
        "forward_ratio_given": _ratio(times["ours_given"], times["dense_given"]),
        "forward_mb_beyond_assignment": (memory - returned) / 1e6,
        "assignment_mb": returned / 1e6,
        "dense_forward_mb": dense_memory / 1e6,
        "backward_mb": backward / 1e6,
        "dense_backward_mb": dense_backward / 1e6,
        "relative_error": _error(x, gate.detach(), routed.index.long(), routed.centres[0]),
        "dense_relative_error": _error(x, gate.detach(), dense_slots, dense_centres),
    }


def _times(x: Tensor, gate: Tensor, ours: Callable[[], Tensor], rounds: int) -> dict[str, list[float]]:
    logits, ones, offsets = x.float() @ gate.T, torch.ones(len(x)), offsets_of([len(x)])
    rounded = logits.to(x.dtype)
    return interleaved(
        {
            "ours": ours,
            "dense": lambda: dense(x, gate),
            "ours_given": lambda: routed_mean(x, logits, offsets, amount_T=ones),
            "dense_given": lambda: _dense(x, rounded.softmax(1)),
        },
        rounds,
    )


def _ratio(ours: list[float], others: list[float]) -> dict[str, float]:
    ratios = [a / b for a, b in zip(ours, others, strict=True)]
    return {"median": round(statistics.median(ratios), 3), "min": round(min(ratios), 3)}


def interleaved(functions: dict[str, Callable[[], Any]], rounds: int) -> dict[str, list[float]]:
    """Seconds of each function. Each round runs all of them in turn, so that noise of the machine reaches all alike."""
    times: dict[str, list[float]] = {name: [] for name in functions}
    for number in range(rounds + 1):
        for name, function in functions.items():
            start = time.perf_counter()
            function()
            if number:
                times[name].append(time.perf_counter() - start)
    return times


def peak_bytes(function: Callable[[], Any]) -> tuple[int, Any]:
    """(peak bytes of tensors allocated by `function`, its result)."""
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # otherwise the profiler logs to stderr
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        given = function()
    held = peak = 0
    assert profiler.profiler is not None
    assert profiler.profiler.kineto_results is not None
    for event in profiler.profiler.kineto_results.events():
        if event.name() == "[memory]":
            held += event.nbytes()
            peak = max(peak, held)
    return peak, given


def _error(x: Tensor, gate: Tensor, index: Tensor, centres: Tensor) -> float:
    """Relative distance of centres to those in float64 with the same slots, computed in chunks to save memory."""
    total, mass = torch.zeros(centres.shape, dtype=torch.float64), torch.zeros(len(centres), dtype=torch.float64)
    for rows, slots in zip(x.split(8192), index.split(8192), strict=True):
        p = (rows.double() @ gate.double().T).softmax(1)
        routed = torch.zeros_like(p).scatter(1, slots, 1.0) * p
        total += routed.T @ rows.double()
        mass += routed.sum(0)
    exact = total / (mass[:, None] + 1e-9)
    return float((centres - exact).norm() / exact.norm())


def markdown(found: dict[str, Any]) -> str:
    """The result as a page."""
    rows = [
        [
            name,
            f"{values['forward_ms']['ours']:.0f}",
            f"{values['forward_ms']['dense']:.0f}",
            f"{values['forward_ratio']['median']:.2f} (min {values['forward_ratio']['min']:.2f})",
            f"{values['forward_ratio_given']['median']:.2f} (min {values['forward_ratio_given']['min']:.2f})",
            f"{values['forward_mb_beyond_assignment']:.1f}",
            f"{values['dense_forward_mb']:.1f}",
            f"{values['backward_mb']:.1f}",
            f"{values['dense_backward_mb']:.1f}",
            f"{values['relative_error']:.1e}",
            f"{values['dense_relative_error']:.1e}",
        ]
        for name, values in found["types"].items()
    ]
    times, memory = (
        ["forward, ms", "dense, ms", "ratio", "ratio, logits given"],
        ["forward, MB", "dense, MB", "backward, MB", "dense, MB"],
    )
    columns = ["features", *times, *memory, "error", "dense, error"]
    return f"""# Routing patches into slots

{about(found["circumstances"])}
{found["threads"]} threads. Times are medians over rounds that run all functions in turn; ratios are taken within a
round. "Logits given": without the product of the gate, so that dense is softmax, topk, scatter and bmm. Memory is the
peak: forward without the assignment that is returned, backward for the gradient of the gate alone. Error: relative to
float64 with the same slots for each patch. In bfloat16 the dense operations are fast because they round the logits,
which their error shows.

{table(columns, rows)}"""
