"""A slide of 100,000 patches fits in 4 GiB, and the memory of a stream does not grow with the slide."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
import torch

from abbe.condensers import condenser_class, list_condensers
from contract.promise import make

# A process of its own for each method: the peak of resident memory never falls.
SCRIPT = """
import json, resource, sys, time, torch
from abbe.condensers import create_condenser
from abbe.types import TokenBatch
name, n, d = sys.argv[1], 100_000, 768
generator = torch.Generator().manual_seed(0)
batch = TokenBatch(
    features=torch.randn(n, d, generator=generator),
    positions=torch.cartesian_prod(torch.arange(400.), torch.arange(250.)),
    mass=torch.ones(n), mask=torch.ones(n, dtype=torch.bool), weight=torch.ones(n), origin=torch.arange(n),
    offsets=torch.tensor([0, n]), lengths0=torch.tensor([n]), slide_ids=("slide",))
condenser = create_condenser(name, dim=d, tokens=32).eval()
start = time.perf_counter()
with torch.no_grad():
    condensed = condenser(batch)
print(json.dumps({
    "seconds": time.perf_counter() - start, "tokens": len(condensed.tokens.features),
    "gib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20,
    "finite": bool(torch.isfinite(condensed.tokens.features).all()),
    "counted": condenser.count(batch.lengths)[0]}))
"""


def measure(name: str) -> dict[str, float]:
    done = subprocess.run([sys.executable, "-c", SCRIPT, name], capture_output=True, text=True, timeout=1500)
    assert done.returncode == 0, done.stderr
    return dict(json.loads(done.stdout))


@pytest.mark.slow
@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.long if name == "slim" else ()) for name in list_condensers()]
)
def test_100_000_patches_fit_in_4_gib(name: str) -> None:
    found = measure(name)
    assert found["gib"] < 4, f"{name}: {found['gib']:.2f} GiB for 100,000 patches"
    assert found["finite"], f"{name}: a feature is not finite"
    assert found["tokens"] == found["counted"], f"{name}: {found['tokens']} tokens, count() says {found['counted']}"


@pytest.mark.parametrize("name", [name for name in list_condensers() if condenser_class(name).streams])
def test_what_a_stream_holds_does_not_grow(name: str) -> None:
    condenser = make(condenser_class(name), name)
    held = []
    stream = condenser.stream("slide")
    for _ in range(30):
        stream.update(torch.randn(200, condenser.dim), torch.rand(200, 2))
        values = [value for kept in vars(stream).values() for value in _tensors(kept)]
        held.append(sum(value.numel() for value in values))
    assert held[0] > 0, f"{name}: no tensor found in the stream"
    assert held[1] == held[-1], f"{name}: numbers held after each chunk of 200 patches: {held}"
    assert int(stream.finish().tokens.lengths0[0]) == 6000


def _tensors(value: object) -> list[torch.Tensor]:
    if isinstance(value, torch.Tensor):
        return [value]
    if isinstance(value, dict):
        return [item for part in value.values() for item in _tensors(part)]
    return [item for part in value for item in _tensors(part)] if isinstance(value, list) else []
