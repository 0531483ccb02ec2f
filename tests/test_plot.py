"""abbe.plot: figures for notebooks, from files or from what is in memory."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

import abbe
from abbe.errors import InputError
from abbe.metrics.bootstrap import patient_bootstrap
from abbe.models.classifier import Classifier
from abbe.models.condense import condense_slide
from abbe.models.config import ClassifierConfig
from abbe.phantom.render.slide_file import write_phantom_slide
from abbe.phantom.render.tissue import site_stain
from abbe.phantom.tasks import needle_layout
from abbe.store.tokens import SlideTokens, write_tokens
from abbe.view.figure import png
from abbe.view.overlay import slot_figure
from builders import make_bag


def condensed() -> SlideTokens:
    torch.manual_seed(0)
    config = ClassifierConfig(16, ("a", "b"), "tcssa", {"tokens": 4, "hidden": 8}, "attention")
    return condense_slide(Classifier(config), make_bag(40, dim=16))


def thumbnail() -> abbe.plot.Thumbnail:
    return abbe.plot.Thumbnail(np.full((64, 160, 3), 255, np.uint8), 16.0, 0.5)


def test_the_module_is_loaded_when_it_is_first_used() -> None:
    script = "import sys, abbe; print(sorted({'matplotlib', 'torch', 'abbe.plot'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
    assert abbe.plot.__name__ == "abbe.plot"
    assert "plot" in dir(abbe)


def test_a_figure_shows_itself_without_pyplot() -> None:
    shown = abbe.plot.slots(thumbnail(), condensed())._repr_png_()
    assert shown.startswith(b"\x89PNG")
    assert shown == png(slot_figure(thumbnail(), condensed()))
    assert len(abbe.plot.overlay(thumbnail(), condensed()).axes) == 2
    assert len(abbe.plot.weight(thumbnail(), condensed()).axes) == 2  # the slide and its colour bar


def test_weights_that_the_pooling_does_not_report_are_refused() -> None:
    silent = replace(condensed(), attention=torch.zeros(4))
    assert len(abbe.plot.overlay(thumbnail(), silent).axes) == 1
    with pytest.raises(InputError, match="weight: the pooling of this model does not report"):
        abbe.plot.weight(thumbnail(), silent)


@pytest.mark.slow
def test_slides_and_tokens_may_be_files(tmp_path: Path) -> None:
    layout = needle_layout(np.random.default_rng(0), 10, tumour_class=6, fraction=0.2, shape=(4, 4))
    slide = write_phantom_slide(tmp_path, "s", layout, stain=site_stain(0, 0, 0), seed=0)
    made = condensed()
    grid = torch.tensor([[256.0 * x, 256.0 * y] for x in range(4) for y in range(4)])
    made = replace(made, index=made.index[:16], weight=made.weight[:16], coords=grid, patch_size_level0=256.0)
    tokens = tmp_path / "t.safetensors"
    write_tokens(tokens, made)
    assert png(abbe.plot.gallery(str(slide), str(tokens))) == png(abbe.plot.gallery(slide, made))
    assert png(abbe.plot.slots(slide, tokens, side=256)) == png(abbe.plot.slots(str(slide), made, side=256))


def test_curves_of_runs_files_and_tables(tmp_path: Path) -> None:
    history = pd.DataFrame({"epoch": [0, 1], "val_task": [0.7, 0.5]})
    (tmp_path / "run").mkdir()
    history.to_csv(tmp_path / "run" / "history.csv", index=False)
    several = {"a": tmp_path / "run", "b": str(tmp_path / "run" / "history.csv"), "c": history}
    lines = abbe.plot.curves(several).axes[0].lines
    assert [line.get_label() for line in lines] == ["a", "b", "c"]
    assert all(line.get_ydata().tolist() == [0.7, 0.5] for line in lines)
    assert len(abbe.plot.curves(history).axes[0].lines) == 1


def test_intervals_of_reports_and_of_metrics() -> None:
    measured = patient_bootstrap(list("abcd"), lambda rows: float(rows.mean()), draws=20)
    undefined = {"value": None, "low": None, "high": None}
    axes = abbe.plot.intervals({"x": measured, "y": measured.as_dict(), "z": undefined}, label="mean", chance=1.0).axes[
        0
    ]
    assert [label.get_text() for label in axes.get_yticklabels()] == ["x", "y", "z"]
    points = [container.lines[0].get_xdata()[0] for container in axes.containers]
    assert points == [measured.value, measured.value]
    assert axes.get_xlabel() == "mean"


def test_a_classifier_shows_itself_as_an_escaped_table() -> None:
    config = ClassifierConfig(16, ("<b>", "a"), "tcssa", {"tokens": 4, "hidden": 8}, encoder="uni")
    model = Classifier(config)
    parameters = sum(p.numel() for p in model.parameters())
    assert model._repr_html_() == (
        "<table><tr><th>classes</th><td>&lt;b&gt;, a</td></tr><tr><th>condenser</th><td>tcssa</td></tr>"
        "<tr><th>tokens</th><td>4</td></tr><tr><th>encoder</th><td>uni</td></tr><tr><th>width</th><td>16</td></tr>"
        f"<tr><th>parameters</th><td>{parameters:,}</td></tr></table>"
    )
