"""A result's record makes the same result again: its command and its settings give the settings it was made with."""

from __future__ import annotations

import shlex
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from abbe import cli
from abbe.bench.needle import bench_needle
from abbe.bench.record import circumstances, settings_of
from abbe.bench.settings import NeedleSettings, OpsSettings, SlotsSettings, TextureSettings
from abbe.config import to_dict
from abbe.phantom.settings import BankPlan, MosaicBankPlan
from abbe.verbs.bench_needle import BenchNeedle
from abbe.verbs.bench_ops import BenchOps
from abbe.verbs.bench_slots import BenchSlots
from abbe.verbs.bench_texture import BenchTexture

COUNT = st.integers(1, 10**6)
SHARE = st.floats(1e-6, 1, exclude_max=True)
THREE = st.tuples(COUNT, COUNT, COUNT)
SEEDS = st.lists(st.integers(0, 9), min_size=1, max_size=3).map(tuple)
SHARES = st.lists(SHARE, min_size=1, max_size=3).map(tuple)
NAME = st.text("ab .'\"$Ü-_", min_size=1).map(lambda text: f"x{text}x")
FOLDER = NAME.map(lambda name: Path("/some/where") / name)
WORKERS = st.none() | COUNT
SPLIT = {"seed": st.integers(0, 9), "split": st.integers(0, 4)}
ENCODER = st.sampled_from(["texture", "timm:hf-hub:some/model"])

BANK = st.builds(BankPlan, sites=COUNT, normal=THREE, tumour=THREE, encoder=ENCODER, **SPLIT)
MOSAIC_BANK = st.builds(
    MosaicBankPlan,
    a=st.just("a"), b=st.just("b b"), rest=st.sampled_from([("c",), ("c", "it's")]), index=st.none() | NAME,
    patch_size=st.integers(16, 512), resize=st.booleans(), mpp=st.none() | SHARE, encoder=ENCODER, **SPLIT,
)  # fmt: skip
NEEDLE = st.builds(
    BenchNeedle,
    out=FOLDER, condensers=st.sampled_from([("tcssa",), ("none", "slim")]), tokens=COUNT, sweep=st.booleans(),
    fractions=SHARES, seeds=SEEDS, rates=SHARES, tune_at=SHARE, slides=THREE, patches=COUNT, epochs=COUNT, bank=BANK,
    workers=WORKERS, draws=COUNT,
)  # fmt: skip
SLOTS = st.builds(
    BenchSlots,
    out=FOLDER, weights=SHARES, seeds=SEEDS, fraction=SHARE, artefacts=SHARE, slides=THREE, rate=SHARE,
    standardize=st.booleans(), bank=BANK, mosaic=st.lists(FOLDER, max_size=3).map(tuple), mosaic_bank=MOSAIC_BANK,
    workers=WORKERS,
)  # fmt: skip
TEXTURE = st.builds(BenchTexture, patches=st.none() | FOLDER, repeats=COUNT, side=COUNT)
OPS = st.builds(BenchOps, patches=COUNT, width=COUNT)


def nameless(run: Any) -> Any:
    """The settings as they are published: folders cut to their names."""
    if isinstance(run, BenchSlots):
        return replace(run, out=Path(run.out.name), mosaic=tuple(Path(path.name) for path in run.mosaic))
    if isinstance(run, BenchTexture):
        return replace(run, patches=run.patches and Path(run.patches.name))
    return replace(run, out=Path(run.out.name)) if isinstance(run, BenchNeedle) else run


@pytest.mark.parametrize(
    ("verb", "kind", "runs"),
    [
        ("bench needle", NeedleSettings, NEEDLE),
        ("bench slots", SlotsSettings, SLOTS),
        ("bench texture", TextureSettings, TEXTURE),
        ("bench ops", OpsSettings, OPS),
    ],
)
def test_the_printed_command_and_the_record_give_the_settings(verb: str, kind: type, runs: st.SearchStrategy) -> None:
    @settings(deadline=None, max_examples=30)  # each runs git and builds a parser
    @given(runs)
    def check(run: Any) -> None:
        found = circumstances(verb, kind, run)
        words = shlex.split(found["command"])
        assert words[:3] == ["abbe", *verb.split()]
        assert "/some" not in found["command"]
        expected = nameless(run)
        assert cli._parse(type(run), verb, words[3:]) == expected
        assert to_dict(settings_of(kind, found)) == found["settings"]
        assert {**to_dict(expected), **found["settings"]} == to_dict(expected)

    check()


def test_the_command_has_what_differs_from_the_defaults_and_nothing_else() -> None:
    run = BenchSlots(
        out=Path("/home/me/out"),
        standardize=False,
        rate=0.0003,
        mosaic=(Path("/data/a b"), Path("c.zip")),
        bank=replace(SlotsSettings(out=Path()).bank, sites=1),
        mosaic_bank=MosaicBankPlan(resize=True, index="/data/index.csv"),
        results=Path("results"),
        json=True,
    )
    found = circumstances("bench slots", SlotsSettings, run)
    assert found["command"] == (
        "abbe bench slots --out out --rate 0.0003 --no-standardize --bank.sites 1 --mosaic 'a b' c.zip "
        "--mosaic-bank.index index.csv --mosaic-bank.resize"
    )
    assert found["settings"]["mosaic"] == ["a b", "c.zip"]
    assert found["settings"]["epochs"] == 20
    assert "json" not in found["settings"]


@pytest.mark.long
def test_a_benchmark_reproduces_itself_from_its_own_record(tmp_path: Path) -> None:
    run = BenchNeedle(
        out=tmp_path / "first", condensers=("tcssa", "none"), tokens=8, fractions=(0.1, 0.05), seeds=(1,), tune_at=0.05,
        rates=(1e-3,), slides=(12, 6, 8), patches=40, epochs=1, draws=50,
        bank=BankPlan(sites=1, normal=(2, 1, 1), tumour=(3, 1, 1), seed=2),
    )  # fmt: skip
    first = bench_needle(run)
    again = settings_of(NeedleSettings, first["circumstances"], out=tmp_path / "again")
    second = bench_needle(again)
    assert (tmp_path / "again" / "bank").is_dir()
    assert second["curves"] == first["curves"]
    assert second["minus_none"] == first["minus_none"]
    assert second["circumstances"]["settings"]["bank"] == first["circumstances"]["settings"]["bank"]
