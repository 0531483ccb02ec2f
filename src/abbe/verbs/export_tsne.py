"""`abbe export tsne`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import tyro

from abbe.console import result
from abbe.errors import ConfigError


@dataclass(frozen=True)
class ExportTsne:
    """Draw the patches of one or several cohorts by t-SNE, each in the colour of its main slot.

    For a method that selects, kept patches are coloured and dropped patches are grey.

    Example:
      abbe export tsne cohort_a/features_texture cohort_b/features_texture --model run/model --out tsne.png

    All cohorts share one embedding and one set of colours, so that slots can be compared between them.
    """

    features: tyro.conf.Positional[tuple[Path, ...]]
    """folders of feature files, or single feature files; one panel each"""
    model: str
    """model folder or hub id"""
    out: Path
    """the picture, a .png file"""
    patches: int = 2000
    """patches per cohort, the same number from every slide as far as it has them"""
    seed: int = 0
    """random seed of the sample and the embedding"""
    json: bool = False
    """print the result as JSON"""

    def run(self) -> int:
        from abbe.models.hub import load
        from abbe.store.commit import write_bytes
        from abbe.view.figure import png
        from abbe.view.tsne import sample, tsne_figure

        if not self.features:
            raise ConfigError("give at least one folder of feature files")
        if self.patches < 50:
            raise ConfigError(f"--patches must be at least 50, got {self.patches}")
        if self.out.suffix.lower() != ".png":
            raise ConfigError(f"--out must end in .png, got {self.out}")
        model = load(self.model)
        short = [place.name if place.is_dir() else place.stem for place in self.features]
        names = short if len(set(short)) == len(short) else [str(place) for place in self.features]
        samples = [
            sample(model, place, self.patches, name=name, seed=self.seed)
            for name, place in zip(names, self.features, strict=True)
        ]
        figure = tsne_figure(samples, merges=model.condenser.merges, seed=self.seed)
        write_bytes(self.out, png(figure), format="picture")
        drawn = {
            one.name: {"slides": one.slides, "patches": len(one.slot), "tokens": len(set(one.slot.tolist()) - {-1})}
            for one in samples
        }
        text = "\n".join(
            f"{name}: {n['patches']} patches of {n['slides']} slides, in {n['tokens']} tokens"
            for name, n in drawn.items()
        )
        result(f"{text}\n{self.out}", {"out": str(self.out), "cohorts": drawn}, json_output=self.json)
        return 0
