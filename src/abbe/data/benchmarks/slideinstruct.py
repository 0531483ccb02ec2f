"""SlideInstruct: captions and question–answer dialogues about slides, as one json list."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from abbe.data.textfiles import fields, read_list
from abbe.errors import TableError

IMAGE = "<image>"


@dataclass(frozen=True)
class Dialogue:
    """What was asked and said about a slide, turn by turn. `id` need not be unique in a file.

    images: as in the file; slide: the stem of the first.  turns: (asked, said), the mark `<image>` taken out.
    """

    id: str
    images: tuple[str, ...]
    turns: tuple[tuple[str, str], ...]

    @property
    def slide(self) -> str:
        """The slide's id: the image's name without folder and .csv."""
        return PurePosixPath(self.images[0].replace("\\", "/")).name.removesuffix(".csv")


@dataclass(frozen=True)
class DialogueFile:
    """Dialogues of one file."""

    path: Path
    sha256: str
    dialogues: tuple[Dialogue, ...]

    def line(self) -> str:
        """What is to be printed beside every figure: N, slides, hash."""
        slides = len({dialogue.slide for dialogue in self.dialogues})
        return f"SlideInstruct: N = {len(self.dialogues)} about {slides} slides, sha256 {self.sha256}"

    def describe(self) -> dict[str, Any]:
        """Counts as plain JSON."""
        return {
            "kind": "SlideInstruct",
            "path": str(self.path),
            "sha256": self.sha256,
            "n": len(self.dialogues),
            "slides": len({dialogue.slide for dialogue in self.dialogues}),
            "turns": sum(len(dialogue.turns) for dialogue in self.dialogues),
        }


def read_slideinstruct(path: str | Path) -> DialogueFile:
    """SlideInstruct: objects of id, image (a list of file names) and conversations, human and gpt in turns.

    Further keys are free. `<image>` must stand exactly once, in what the human says first.
    Raises TableError naming file, place (from 0), key and value of what is not so.
    """
    records, digest = read_list(path)
    dialogues = []
    for place, record in enumerate(records):
        (name,) = fields(path, place, record, ("id",), optional=None)
        where = f"{path}, record {place} ({name!r})"
        images = record.get("image")
        if not isinstance(images, list) or not images or not all(isinstance(image, str) and image for image in images):
            raise TableError(f"{where}: image is {images!r}; expected a list of file names")
        dialogues.append(Dialogue(name, tuple(images), _turns(where, record.get("conversations"))))
    return DialogueFile(Path(path), digest, tuple(dialogues))


def _turns(where: str, talk: Any) -> tuple[tuple[str, str], ...]:
    if not isinstance(talk, list) or not talk or len(talk) % 2:
        raise TableError(f"{where}: conversations must be a list of pairs, human then gpt; found {str(talk)[:80]}")
    said = []
    for number, part in enumerate(talk):
        speaker = ("human", "gpt")[number % 2]
        value = part.get("value") if isinstance(part, dict) else None
        if not isinstance(value, str) or not value.strip() or part.get("from") != speaker:
            raise TableError(
                f"{where}: conversations[{number}] is {str(part)[:80]}; expected from {speaker!r} with a value"
            )
        if value.count(IMAGE) != (number == 0):
            raise TableError(
                f"{where}: conversations[{number}] has {value.count(IMAGE)} times {IMAGE}; "
                "it stands once, in what the human says first"
            )
        said.append(value.replace(IMAGE, "").strip())
    return tuple(zip(said[::2], said[1::2], strict=True))
