"""The rendered bank: its content, that it is reproducible, and that a folder never mixes two plans."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from abbe.phantom import bank as module
from abbe.phantom.bank import PatchBank, build_bank, cell_patches, per_cell
from abbe.phantom.classes import PHANTOM
from abbe.phantom.layout import Layout
from abbe.phantom.render.tissue import GLASS, TISSUE_CLASSES
from abbe.phantom.settings import BankPlan
from abbe.phantom.surroundings import PURITY
from abbe.slides.patch_encoders.texture import TextureEncoder
from abbe.store import commit

PLAN = BankPlan(sites=1, normal=(1, 1, 1), tumour=(2, 1, 1))
LYMPHOCYTES, A2 = TISSUE_CLASSES.index("lymphocytes"), TISSUE_CLASSES.index("tumour_a2")
COLUMNS = ("features", "cls", "site", "setting", "split", "purity")


def assert_same(a: PatchBank, b: PatchBank) -> None:
    for name in COLUMNS:
        x, y = getattr(a, name), getattr(b, name)
        assert x.dtype == y.dtype
        np.testing.assert_array_equal(x, y, err_msg=name)


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("bank")


@pytest.fixture(scope="module")
def made(folder) -> PatchBank:
    """Rendered and encoded for real, 126 patches."""
    return build_bank(PLAN, folder, workers=1)


@pytest.fixture
def quick(monkeypatch) -> list[tuple[int, int, int]]:
    """Cells cost nothing: random rows that depend on plan and cell. Returns the cells made so far."""
    cells: list[tuple[int, int, int]] = []

    def encode_cell(plan, encoder, cls, site, setting):
        cells.append((cls, site, setting))
        rng = np.random.default_rng([plan.seed, cls, site, setting])
        count = sum(per_cell(plan, cls))
        return rng.standard_normal((count, 5)).astype(np.float32), rng.uniform(0.9, 1, count).astype(np.float32)

    monkeypatch.setattr(module, "encode_cell", encode_cell)
    return cells


@pytest.mark.slow
def test_every_cell_has_its_patches_in_every_split(made):
    assert made.features.shape == (126, TextureEncoder.width)
    assert made.features.dtype == np.float32
    for cls, name in enumerate(TISSUE_CLASSES):
        wanted = PLAN.tumour if name.startswith("tumour") else PLAN.normal
        for setting in range(3):
            found = [len(made.rows(cls=cls, site=0, setting=setting, split=split)) for split in range(3)]
            assert found == list(wanted)


@pytest.mark.slow
@pytest.mark.parametrize(("cls", "setting"), [(3, 2), (7, 1)])
def test_rows_are_the_encoded_patches_of_their_cell(made, cls, setting):
    patches, purity = cell_patches(PLAN, cls, 0, setting)
    assert patches.shape == (sum(per_cell(PLAN, cls)), 256, 256, 3)
    rows = np.concatenate([made.rows(cls=cls, site=0, setting=setting, split=split) for split in range(3)])
    np.testing.assert_array_equal(made.features[rows], TextureEncoder()(patches))
    np.testing.assert_array_equal(made.purity[rows], purity)


@pytest.mark.slow
def test_patches_are_of_their_class_at_the_share_of_pixels_that_is_stated(made):
    assert made.purity.min() >= PURITY
    assert 0.3 < (made.purity < 1).mean() < 0.6


def test_the_map_that_is_painted_has_the_stated_purity(monkeypatch):
    maps = []

    def captured(x0, y0, side, classes, *, phase, stain, seed):
        maps.append(None if isinstance(classes, int) else classes(-3, -7, side + 16, side + 16)[7:263, 3:259])
        return np.zeros((side, side, 3), np.uint8)

    monkeypatch.setattr(module, "captured", captured)
    for cls in (LYMPHOCYTES, A2):
        maps.clear()
        _, purity = cell_patches(BankPlan(sites=1), cls, 0, 0)
        assert sum(map(bool, purity < 1)) > 3
        found = [1.0 if painted is None else (painted == cls).mean() for painted in maps]
        np.testing.assert_allclose(found, purity, atol=1e-6)
        shown = set().union(*(np.unique(painted).tolist() for painted in maps if painted is not None))
        assert len(shown) > 2
        assert shown <= {*PHANTOM.rest, GLASS, cls}, "no other tumour in a patch"


@pytest.mark.slow
def test_no_patch_is_in_the_bank_twice(made):
    """Not even at the precision of feature files: a patch of one split cannot be met again in another."""
    assert len(np.unique(made.features.astype(np.float16), axis=0)) == len(made.cls)


def test_every_patch_is_cut_from_a_world_of_its_own(monkeypatch):
    """No two share a seed and a place, so no two can show the same tissue, in another stain either."""
    worlds, phases = [], []

    def captured(x0, y0, side, classes, *, phase, stain, seed):
        worlds.append((x0, y0, seed))
        phases.append(phase)
        return np.zeros((side, side, 3), np.uint8)

    monkeypatch.setattr(module, "captured", captured)
    monkeypatch.setattr(module, "surroundings", lambda _, cls, *__: (Layout(np.full((3, 3), cls, np.uint8)), 1.0))
    monkeypatch.setattr(module, "PATCH_SIZE", 1)
    plan = BankPlan()
    for cls in range(len(TISSUE_CLASSES)):
        for site in range(plan.sites):
            for setting in range(3):
                cell_patches(plan, cls, site, setting)
    assert len(worlds) == 3456
    assert len({seed for _, _, seed in worlds}) == len({place[:2] for place in worlds}) == 3456
    # The JPEG grid lies everywhere: each of its 16 x 16 phases occurs, about 13 times.
    assert set(phases) == {(x, y) for x in range(16) for y in range(16)}


@pytest.mark.slow
def test_a_bank_is_read_back_array_by_array(made, folder, monkeypatch):
    monkeypatch.setattr(module, "_render_and_encode", None)
    assert_same(build_bank(PLAN, folder), made)
    stored = load_file(folder / "bank.safetensors")
    assert set(stored) == set(COLUMNS)
    # A strided view was once written as the memory it views: classes came back as site and setting numbers.
    assert np.unique(stored["cls"]).tolist() == list(range(len(TISSUE_CLASSES)))


@pytest.mark.slow
def test_two_workers_write_the_bytes_of_one(made, folder, tmp_path):
    assert_same(build_bank(PLAN, tmp_path, workers=2), made)
    for name in ("bank.safetensors", "bank.json"):
        assert (tmp_path / name).read_bytes() == (folder / name).read_bytes()


@pytest.mark.parametrize("other", [{"seed": 1}, {"split": 1}])
def test_another_seed_or_split_renders_other_patches(other):
    first, second = cell_patches(PLAN, 0, 0, 0)[0], cell_patches(replace(PLAN, **other), 0, 0, 0)[0]
    assert (first != second).mean() > 0.5


OTHER = {
    "sites": 2,
    "normal": (1, 1, 2),
    "tumour": (1, 1, 1),
    "seed": 1,
}


@pytest.mark.parametrize("name", OTHER)
def test_a_folder_with_another_plan_is_refused_and_left_alone(name, quick, tmp_path):
    build_bank(PLAN, tmp_path, workers=1)
    before = {path: path.read_bytes() for path in tmp_path.iterdir()}
    other = replace(PLAN, **{name: OTHER[name]})
    with pytest.raises(ValueError, match=rf"bank\.json: .*{name}.* is .* there and .* here"):
        build_bank(other, tmp_path, workers=1)
    assert {path: path.read_bytes() for path in tmp_path.iterdir()} == before
    # A bank with damaged rows still belongs to its plan: no other plan replaces it.
    (tmp_path / "bank.safetensors").write_bytes(b"torn")
    with pytest.raises(ValueError, match=name):
        build_bank(other, tmp_path, workers=1)


def test_a_bank_of_another_version_of_its_encoder_is_refused(quick, tmp_path, monkeypatch):
    build_bank(PLAN, tmp_path, workers=1)
    monkeypatch.setattr(TextureEncoder, "version", "another")
    with pytest.raises(ValueError, match=r"encoder_version is .* there and 'another' here"):
        build_bank(PLAN, tmp_path, workers=1)


class Weights:
    """An encoder of one column. `version` stands for the weights in its folder; builds are counted."""

    name, width, patch_size, version, builds = "timm-em", 1, None, "old", 0

    def __init__(self) -> None:
        type(self).builds += 1
        self.version = type(self).version

    def __call__(self, patches):
        return patches.mean(axis=(1, 2, 3), dtype=np.float64)[:, None]


@pytest.fixture
def weights(monkeypatch) -> type[Weights]:
    monkeypatch.setattr(Weights, "builds", 0)
    monkeypatch.setattr(Weights, "version", "old")
    monkeypatch.setattr(module, "create_patch_encoder", lambda _: Weights())
    monkeypatch.setattr(module, "_loaded", {})
    return Weights


def test_a_bank_of_other_weights_is_refused(weights, monkeypatch, tmp_path):
    def flat(plan, cls, *_):
        count = sum(per_cell(plan, cls))
        return np.full((count, 2, 2, 3), cls, np.uint8), np.ones(count, np.float32)

    monkeypatch.setattr(module, "cell_patches", flat)
    plan = replace(PLAN, encoder="timm:local-dir:../em")
    made = build_bank(plan, tmp_path, workers=1)
    assert weights.builds == 1, "built once, not for every cell"
    np.testing.assert_array_equal(made.features[:, 0], made.cls)
    assert made.encoder == ("timm-em", "old")
    assert made.record().items() >= {"encoder_version": "old", "encoder_name": "timm-em"}.items()
    assert_same(build_bank(plan, tmp_path, workers=1), made)
    weights.version = "new"
    with pytest.raises(ValueError, match="encoder_version is 'old' there and 'new' here"):
        build_bank(plan, tmp_path, workers=1)


def test_weights_replaced_while_patches_are_encoded_are_noticed(weights):
    version = module.encoder_version("timm:em")
    module._loaded.clear()  # as in another process
    weights.version = "new"
    with pytest.raises(ValueError, match="timm:em: the encoder's version changed from old to new; run it again"):
        module.encode("timm:em", version, np.zeros((1, 2, 2, 3), np.uint8))


def test_a_bank_of_another_version_is_refused(quick, tmp_path):
    build_bank(PLAN, tmp_path, workers=1)
    commit.write_json(tmp_path / "bank.json", {"plan": asdict(PLAN)}, format=module.FORMAT, version=99)
    with pytest.raises(ValueError, match=r"bank\.json: format 'abbe-bank' version 99, expected 'abbe-bank' version 1"):
        build_bank(PLAN, tmp_path, workers=1)


def test_a_bank_that_saw_no_jpeg_is_refused_as_version_1(quick, tmp_path):
    build_bank(PLAN, tmp_path, workers=1)
    record = json.loads((tmp_path / "bank.json").read_text())
    assert record["plan"].pop("phantom_version") == 2
    commit.write_json(tmp_path / "bank.json", record, format=module.FORMAT, version=module.VERSION)
    with pytest.raises(ValueError, match=r"bank\.json: .*phantom_version is 1 there and 2 here"):
        build_bank(PLAN, tmp_path, workers=1)


@pytest.mark.parametrize("name", ["bank.safetensors", "bank.json"])
@pytest.mark.parametrize("harm", ["torn", "altered", "unsigned", "gone"])
def test_a_damaged_file_is_made_again(name, harm, quick, tmp_path):
    first = build_bank(PLAN, tmp_path, workers=1)
    path = tmp_path / name
    whole = path.read_bytes()
    if harm == "torn":
        path.write_bytes(whole[:-7])
    elif harm == "altered":
        path.write_bytes(whole[:-7] + bytes([whole[-7] ^ 1]) + whole[-6:])
    elif harm == "unsigned":
        commit.sidecar_path(path).unlink()
    else:
        path.unlink()
    cells = len(quick)
    assert_same(build_bank(PLAN, tmp_path, workers=1), first)
    assert len(quick) == 2 * cells
    assert path.read_bytes() == whole
    assert commit.is_done(path)


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"normal": (1, 0, 1)}, r"normal needs at least one .* got \(1, 0, 1\)"),
        ({"tumour": (3, 3)}, r"tumour needs at least one .* got \(3, 3\)"),
        ({"tumour": ()}, "tumour needs"),
        ({"sites": 0}, r"^--bank\.sites must be at least 1, got 0"),
        ({"seed": -1}, "seed must be at least 0, got -1"),
    ],
)
def test_invalid_plans_are_refused(values, words):
    with pytest.raises(ValueError, match=words):
        BankPlan(**values)


def test_an_unknown_encoder_is_refused_by_name(tmp_path):
    with pytest.raises(ValueError, match="unknown patch encoder 'textur'"):
        build_bank(replace(PLAN, encoder="textur"), tmp_path, workers=1)
    assert not list(tmp_path.iterdir())
