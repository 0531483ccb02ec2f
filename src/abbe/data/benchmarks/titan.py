"""TITAN's TCGA-OT: one table a split, and a yaml of class numbers and names in words."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import yaml  # type: ignore[import-untyped]

from abbe.data.benchmarks.prompts import Prompts, class_names
from abbe.data.labels import read_split_tables
from abbe.data.textfiles import read_text
from abbe.errors import TableError


@dataclass(frozen=True)
class TitanTask:
    """target: the label's column.  classes: codes in the order of their numbers.  prompts: names of each code."""

    target: str
    classes: tuple[str, ...]
    prompts: Prompts


def read_titan_config(path: str | Path) -> TitanTask:
    """The yaml of a task: target, label_dict {code: number}, prompts {code: [names]}; other keys are not read.

    Raises TableError naming file, key and value: a key given twice, a code that yaml takes for something other than a
    text (NO is false), numbers that are not 0, 1, 2, …, codes without prompts or prompts without a code.
    """
    try:
        value = yaml.load(read_text(path), Loader=_Strict)
    except yaml.YAMLError as error:
        raise TableError(f"{path}: not the yaml of a task ({' '.join(str(error).split())})") from error
    if not isinstance(value, dict):
        raise TableError(f"{path}: expected target, label_dict and prompts, found {str(value)[:80]}")
    for key, kind in (("target", str), ("label_dict", dict), ("prompts", dict)):
        if not isinstance(value.get(key), kind):
            raise TableError(f"{path}: key {key!r} is {str(value.get(key))[:80]}; expected a {kind.__name__}")
    prompts = class_names(f"{path}, key 'prompts'", value["prompts"])
    numbers = value["label_dict"]
    for code in numbers:
        if not isinstance(code, str):
            raise TableError(f"{path}, key 'label_dict': code {code!r} is a {type(code).__name__}; put it in quotes")
    if set(numbers) != set(prompts):
        raise TableError(f"{path}: {sorted(set(numbers) ^ set(prompts))} are in one of label_dict and prompts only")
    if sorted(numbers.values(), key=str) != sorted(range(len(numbers)), key=str):
        raise TableError(f"{path}, key 'label_dict': numbers must be 0 to {len(numbers) - 1}, each once")
    classes = tuple(sorted(numbers, key=lambda code: int(numbers[code])))
    return TitanTask(value["target"], classes, Prompts(prompts))


def read_titan(
    train: str | Path, val: str | Path, test: str | Path, config: str | Path
) -> tuple[pd.DataFrame, TitanTask]:
    """(the three tables as one with a column `split`, the task). Raises TableError for a code the task lacks."""
    task = read_titan_config(config)
    table = read_split_tables(train, val, test, label=task.target)
    unknown = sorted(set(table[task.target]) - set(task.classes))
    if unknown:
        raise TableError(f"{config}, key 'label_dict': lacks the codes {unknown} of column {task.target!r}")
    return table, task


class _Strict(yaml.SafeLoader):
    """Plain values only, and no key twice: yaml itself would silently keep the last."""

    def construct_mapping(self, node: Any, deep: bool = False) -> Any:  # noqa: FBT001, FBT002
        keys = [self.construct_object(key, deep=True) for key, _ in node.value]
        for key in keys:
            if keys.count(key) > 1:
                raise yaml.constructor.ConstructorError(None, None, f"key {key!r} is given twice", node.start_mark)
        return super().construct_mapping(node, deep=deep)
