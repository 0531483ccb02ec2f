"""Read TITAN's TCGA-OT: one table per split, and a yaml file of class indices and prompts."""

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
    """A classification task.

    target: label column.  classes: class codes by index.  prompts: names per code.
    """

    target: str
    classes: tuple[str, ...]
    prompts: Prompts


def read_titan_config(path: str | Path) -> TitanTask:
    """Read a task yaml: target, label_dict {code: index}, prompts {code: [names]}; other keys are ignored.

    Raises TableError with file, key and value for a duplicate key, a code that yaml does not parse as a string (NO is
    false), indices other than 0, 1, 2, …, or codes that are not in both label_dict and prompts.
    """
    try:
        value = yaml.load(read_text(path), Loader=_Strict)
    except yaml.YAMLError as error:
        raise TableError(f"{path}: not a valid task yaml ({' '.join(str(error).split())})") from error
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
        raise TableError(f"{path}: {sorted(set(numbers) ^ set(prompts))} are in only one of label_dict and prompts")
    if sorted(numbers.values(), key=str) != sorted(range(len(numbers)), key=str):
        raise TableError(f"{path}, key 'label_dict': indices must be 0 to {len(numbers) - 1}, each used once")
    classes = tuple(sorted(numbers, key=lambda code: int(numbers[code])))
    return TitanTask(value["target"], classes, Prompts(prompts))


def read_titan(
    train: str | Path, val: str | Path, test: str | Path, config: str | Path
) -> tuple[pd.DataFrame, TitanTask]:
    """Read the task and its three tables, combined with a column `split`. Raises TableError for an unknown code."""
    task = read_titan_config(config)
    table = read_split_tables(train, val, test, label=task.target)
    unknown = sorted(set(table[task.target]) - set(task.classes))
    if unknown:
        raise TableError(f"{config}, key 'label_dict': the codes {unknown} of column {task.target!r} are missing")
    return table, task


class _Strict(yaml.SafeLoader):
    """Safe loader that refuses duplicate keys; yaml would silently keep the last."""

    def construct_mapping(self, node: Any, deep: bool = False) -> Any:  # noqa: FBT001, FBT002
        keys = [self.construct_object(key, deep=True) for key, _ in node.value]
        for key in keys:
            if keys.count(key) > 1:
                raise yaml.constructor.ConstructorError(None, None, f"key {key!r} is duplicated", node.start_mark)
        return super().construct_mapping(node, deep=deep)
