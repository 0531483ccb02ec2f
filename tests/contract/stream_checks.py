"""The contract of a condenser that takes a slide in chunks."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch

from abbe.condensers.base import Condenser
from abbe.errors import BagError, InputError
from builders import make_batch
from contract.promise import DIM, assert_close, check, make, run


@check
def a_stream_gives_the_tokens_of_a_call(cls: type[Condenser], name: str) -> None:
    """A stream gives the tokens, losses and metrics of a call (1e-5); a method that does not stream refuses."""
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
        rows = chunks[-1].index.shape[0]
        assert rows == stop - start, f"a chunk of {stop - start} patches has an assignment of {rows} rows"
    streamed = stream.finish()
    assert_close(streamed.tokens.features, whole.tokens.features, "features", atol=1e-5, rtol=0)
    assert_close(streamed.tokens.mass, whole.tokens.mass, "mass", atol=1e-4, rtol=1e-5)
    for key in ("mask", "origin", "lengths0"):
        mine, theirs = (getattr(condensed.tokens, key).tolist() for condensed in (streamed, whole))
        assert mine == theirs, f"{key} of the stream and of the call"
    assert streamed.dropped.tolist() == whole.dropped.tolist()
    assert len(streamed.assignment.index) == 0, "the assignment of a finished stream has no rows"
    assert set(streamed.losses) == set(whole.losses)
    assert set(streamed.metrics) == set(whole.metrics)
    for key, value in streamed.metrics.items():
        assert_close(value.float(), whole.metrics[key].float(), f"metrics[{key!r}]", atol=1e-5, rtol=1e-4)
    for key, loss in streamed.losses.items():
        assert_close(loss, whole.losses[key], f"losses[{key!r}]")
    if cls.merges:
        index = torch.cat([chunk.index for chunk in chunks])
        moved = (index != whole.assignment.index).any(1).nonzero()[:, 0].tolist()
        assert not moved, f"patches {moved} went to other tokens than in a call"
    with pytest.raises(BagError, match="no patches"):
        condenser.stream("empty").finish()


@check
def a_stream_of_half_precision_keeps_what_a_call_keeps(cls: type[Condenser], name: str) -> None:
    """In half precision too, a stream gives the tokens of a call (2 %), with the same origin and dtype."""
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
        assert streamed.tokens.origin.tolist() == whole.tokens.origin.tolist(), f"origin in {dtype}"
        mine, theirs = streamed.tokens.features.float(), whole.tokens.features.float()
        assert_close(mine, theirs, f"features in {dtype}", atol=0.02, rtol=0.02)
