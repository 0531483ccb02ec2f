"""Read SlideInstruct: captions and question–answer dialogues about slides, as a json list."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from abbe.data.textfiles import fields, read_list
from abbe.errors import TableError

IMAGE = "<image>"


@dataclass(frozen=True)
class Dialogue:
    """A dialogue about a slide. `id` may be duplicated within a file.

    images: image names as in the file.  turns: (question, answer) without the placeholder `<image>`.
    """

    id: str
    images: tuple[str, ...]
    turns: tuple[tuple[str, str], ...]

    @property
    def slide(self) -> str:
        """Slide id: name of the first image without folder and .csv."""
        return PurePosixPath(self.images[0].replace("\\", "/")).name.removesuffix(".csv")


@dataclass(frozen=True)
class DialogueFile:
    """All dialogues of one file."""

    path: Path
    sha256: str
    dialogues: tuple[Dialogue, ...]

    def line(self) -> str:
        """One line to report with every result: N, slides, SHA-256."""
        slides = len({dialogue.slide for dialogue in self.dialogues})
        return f"SlideInstruct: N = {len(self.dialogues)} about {slides} slides, sha256 {self.sha256}"

    def describe(self) -> dict[str, Any]:
        """Counts as JSON values."""
        return {
            "kind": "SlideInstruct",
            "path": str(self.path),
            "sha256": self.sha256,
            "n": len(self.dialogues),
            "slides": len({dialogue.slide for dialogue in self.dialogues}),
            "turns": sum(len(dialogue.turns) for dialogue in self.dialogues),
        }


def read_slideinstruct(path: str | Path) -> DialogueFile:
    """Read a list of objects with id, image (list of file names) and conversations (alternately human and gpt).

    Other keys are ignored. `<image>` must occur once, in the first human message.
    Raises TableError with file, record (from 0), key and value.
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


def _turns(where: str, conversations: Any) -> tuple[tuple[str, str], ...]:
    if not isinstance(conversations, list) or not conversations or len(conversations) % 2:
        found = str(conversations)[:80]
        raise TableError(f"{where}: conversations must alternate between human and gpt, in pairs; found {found}")
    messages = []
    for number, part in enumerate(conversations):
        speaker = ("human", "gpt")[number % 2]
        value = part.get("value") if isinstance(part, dict) else None
        if not isinstance(value, str) or not value.strip() or part.get("from") != speaker:
            raise TableError(
                f"{where}: conversations[{number}] is {str(part)[:80]}; "
                f"expected a message from {speaker!r} with a value"
            )
        if value.count(IMAGE) != (number == 0):
            raise TableError(
                f"{where}: conversations[{number}] contains {IMAGE} {value.count(IMAGE)} times; "
                "it must occur once, in the first human message"
            )
        messages.append(value.replace(IMAGE, "").strip())
    return tuple(zip(messages[::2], messages[1::2], strict=True))
