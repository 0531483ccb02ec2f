from __future__ import annotations

import io
import json

import numpy as np
import pytest
import torch
from PIL import Image

from abbe.errors import BagError, ConfigError, InputError
from abbe.models.classifier import Classifier
from abbe.models.config import ClassifierConfig
from abbe.models.hub import save_pretrained
from abbe.store.bags import write_bag
from abbe.verbs.export_tsne import ExportTsne
from abbe.view.figure import png
from abbe.view.tsne import sample, tsne_figure
from builders import make_bag


def model(condenser: str, **options) -> Classifier:
    torch.manual_seed(0)
    return Classifier(ClassifierConfig(8, ("a", "b"), condenser, options)).eval()


@pytest.fixture
def cohorts(tmp_path):
    for name, sizes in (("one", [50, 30]), ("two", [60])):
        for number, n in enumerate(sizes):
            write_bag(tmp_path / name / f"s{number}.h5", make_bag(n, dim=8, slide_id=f"s{number}", seed=number))
    return tmp_path


def test_a_sample_takes_the_same_number_of_every_slide_and_its_slot(cohorts):
    classifier = model("tcssa", tokens=4, hidden=8)
    drawn = sample(classifier, cohorts / "one", 40, name="one", seed=0)
    assert (drawn.slides, drawn.features.shape, drawn.slot.shape) == (2, (40, 8), (40,))
    assert set(drawn.slot) <= set(range(4))
    # The slot of a patch is the one its logits prefer: worked out here from the gate itself.
    rows = torch.from_numpy(drawn.features) @ classifier.condenser.gate.weight.T.detach()
    assert (rows.argmax(1).numpy() == drawn.slot).all()


def test_dropped_patches_are_told_from_kept_ones(cohorts):
    drawn = sample(model("random", tokens=10), cohorts / "two", 60, name="two", seed=0)
    assert (drawn.slot >= 0).sum() == 10
    assert (drawn.slot == -1).sum() == 50


def test_the_picture_is_the_same_every_time_and_coloured(cohorts, tmp_path):
    classifier = model("tcssa", tokens=4, hidden=8)
    samples = [sample(classifier, cohorts / name, 60, name=name, seed=0) for name in ("one", "two")]
    first = png(tsne_figure(samples, merges=True, seed=0))
    assert first == png(tsne_figure(samples, merges=True, seed=0))
    pixels = np.asarray(Image.open(io.BytesIO(first)).convert("RGB")).astype(int)
    assert ((pixels.max(2) - pixels.min(2)) > 100).sum() > 500


def test_the_verb_writes_it_and_refuses_a_folder_without_features(cohorts, tmp_path):
    save_pretrained(model("tcssa", tokens=4, hidden=8), tmp_path / "model", card="x")
    out = tmp_path / "tsne.png"
    both = (cohorts / "one", cohorts / "two")
    assert ExportTsne(both, str(tmp_path / "model"), out, patches=60).run() == 0
    with Image.open(out) as picture:
        assert picture.size[0] > 800
    (tmp_path / "nothing").mkdir()
    with pytest.raises(InputError, match="no feature files"):
        ExportTsne((tmp_path / "nothing",), str(tmp_path / "model"), out).run()
    with pytest.raises(ConfigError, match=r"--out must end in \.png, got .*tsne\.jpg"):
        ExportTsne(both, str(tmp_path / "model"), tmp_path / "tsne.jpg").run()
    with pytest.raises(ConfigError, match="--patches must be at least 50, got 10"):
        ExportTsne(both, str(tmp_path / "model"), out, patches=10).run()


def test_every_slide_is_drawn_from_and_empty_ones_are_left_out(tmp_path):
    for number in range(8):
        write_bag(tmp_path / f"s{number}.h5", make_bag(20, dim=8, slide_id=f"s{number}", seed=number))
    write_bag(tmp_path / "s9.h5", make_bag(0, dim=8, slide_id="s9"))
    drawn = sample(model("tcssa", tokens=4, hidden=8), tmp_path, 12, name="x", seed=0)
    assert (drawn.slides, len(drawn.slot)) == (8, 12)


def test_features_of_another_encoder_or_width_are_refused(cohorts):
    classifier = Classifier(ClassifierConfig(8, ("a", "b"), "tcssa", {"tokens": 4}, encoder="uni")).eval()
    with pytest.raises(BagError, match="features of 'test', expected 'uni'"):
        sample(classifier, cohorts / "one", 60, name="x", seed=0)
    wide = Classifier(ClassifierConfig(9, ("a", "b"), "tcssa", {"tokens": 4})).eval()
    with pytest.raises(BagError, match="width 8, expected 9"):
        sample(wide, cohorts / "one", 60, name="x", seed=0)


def test_folders_of_one_name_keep_theirs_apart(cohorts, tmp_path, capsys):
    save_pretrained(model("tcssa", tokens=4, hidden=8), tmp_path / "model", card="x")
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    places = tuple(tmp_path / parent / "features" for parent in "ab")
    for place, name in zip(places, ("one", "two"), strict=True):
        place.symlink_to(cohorts / name)
    assert ExportTsne(places, str(tmp_path / "model"), tmp_path / "t.png", patches=60, json=True).run() == 0
    assert set(json.loads(capsys.readouterr().out)["cohorts"]) == {str(place) for place in places}
