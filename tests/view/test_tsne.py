from __future__ import annotations

import io

import numpy as np
import pytest
import torch
from PIL import Image

from abbe.errors import ConfigError, InputError
from abbe.models.classifier import Classifier, ClassifierConfig
from abbe.models.hub import save_pretrained
from abbe.store.bags import write_bag
from abbe.view.tsne import ExportTsne, sample, tsne_picture
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
    first = tsne_picture(samples, merges=True, seed=0)
    assert first == tsne_picture(samples, merges=True, seed=0)
    pixels = np.asarray(Image.open(io.BytesIO(first)).convert("RGB")).astype(int)
    assert ((pixels.max(2) - pixels.min(2)) > 100).sum() > 500


def test_the_verb_writes_it_and_refuses_a_folder_without_features(cohorts, tmp_path):
    save_pretrained(model("tcssa", tokens=4, hidden=8), tmp_path / "model", card="x")
    out = tmp_path / "tsne.png"
    both = (cohorts / "one", cohorts / "two")
    assert ExportTsne(both, str(tmp_path / "model"), out, patches=60).run() == 0
    with Image.open(out) as picture:
        assert picture.size[0] > 800
    with pytest.raises(InputError, match="no feature files"):
        ExportTsne((tmp_path / "model",), str(tmp_path / "model"), out).run()
    with pytest.raises(ConfigError, match="fewer than 50 patches"):
        ExportTsne(both, str(tmp_path / "model"), out, patches=10).run()
