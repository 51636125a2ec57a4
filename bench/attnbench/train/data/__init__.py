"""What models learn from: tasks by name, all generated or read from a package, no download.

A task is written ``name`` or ``name:option=value,…``, as implementations and masks are:
``mqar:pairs=4,vocab=64``. Reading this module costs no torch; making a task does.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, cast

from attnbench.errors import UserError, unknown
from attnbench.spec import parse_spec
from attnbench.train.models.presets import sized
from attnbench.train.workload import Objective, Workload

if TYPE_CHECKING:
    from attnbench.train.data.base import SeededTask
    from attnbench.train.roles import Task

__all__ = ["TASKS", "Entry", "check_fits", "make_task", "objectives_of", "reported"]


@dataclass(frozen=True)
class Entry:
    """Where a task is defined, and what can be learned from it; its usual objective is first.

    Attributes:
        has_pictures: whether there is something to be seen.
        has_tokens: whether there is something to be read.
        has_any_batch: whether a batch may have any size, so that the largest can be looked for.
        has_characters: whether its tokens are characters, whose bits are told.
        has_sentences: whether a masked model also tells if the second sentence follows.
    """

    module: str
    type: str
    objectives: tuple[Objective, ...]
    has_pictures: bool = False
    has_tokens: bool = True
    has_any_batch: bool = True
    has_characters: bool = False
    has_sentences: bool = False


TASKS: Mapping[str, Entry] = {
    "text": Entry(
        "text", "Text", ("causal-lm", "masked-lm", "classification"), has_characters=True,
        has_sentences=True,
    ),
    "copy": Entry("copying", "Copying", ("causal-lm", "masked-lm", "seq2seq")),
    "mqar": Entry("recall", "Recall", ("causal-lm", "masked-lm")),
    "listops": Entry("listops", "ListOps", ("classification",)),
    "translation": Entry("translation", "Translation", ("seq2seq",), has_characters=True),
    "images": Entry("images", "Images", ("classification",), has_pictures=True, has_tokens=False),
    "pairs": Entry("pairs", "Pairs", ("matching",), has_pictures=True, has_any_batch=False),
}  # fmt: skip


def objectives_of(task: str) -> tuple[Objective, ...]:
    """The objectives that a task allows, its usual one first.

    Raises:
        UserError: unknown task.
    """
    name, _ = parse_spec(task)
    if name not in TASKS:
        raise unknown("task", name, TASKS)
    return TASKS[name].objectives


def reported(workload: Workload) -> tuple[str, ...]:
    """The metrics that a run will tell of its validation batches, without what texts are told by.

    Raises:
        UserError: unknown task.
    """
    objective = workload.objective or objectives_of(workload.task)[0]
    entry = TASKS[parse_spec(workload.task)[0]]
    if objective == "matching" and workload.loss == "contrastive":
        return ("accuracy",)
    if objective in ("classification", "matching"):
        return ("accuracy", "f1_macro")
    names = ["cross_entropy", "perplexity", "token_accuracy"]
    names += ["bits_per_character"] * entry.has_characters
    if objective == "masked-lm" and entry.has_sentences:
        names += ["accuracy", "f1_macro"]
    return tuple(names)


def check_fits(workload: Workload) -> None:
    """Refuse a task that the model cannot take in, or whose largest batch nobody can look for.

    Raises:
        UserError: unknown model or task, or one that does not fit the other or the batch.
    """
    objectives_of(workload.task)
    entry, family = TASKS[parse_spec(workload.task)[0]], sized(workload).family
    needs = {"vit": entry.has_pictures, "pair": entry.has_pictures, "own": True}
    if not needs.get(family, entry.has_tokens):
        what = "pictures" if family in needs else "tokens"
        raise UserError(f"model {workload.model} needs {what}, and task {workload.task!r} has none")
    if not workload.batch and not entry.has_any_batch:
        raise UserError(
            f"task {workload.task!r} has batches of some sizes only: the largest that fits cannot "
            "be looked for; give a batch"
        )


def make_task(workload: Workload, seed: int) -> Task:
    """The task of a workload; an empty objective is the task's usual one.

    Raises:
        UserError: unknown task or option, an objective that the task does not allow, a
            sequence length that it has no sequences of, or a missing package.
    """
    allowed = objectives_of(workload.task)
    if workload.objective and workload.objective not in allowed:
        raise UserError(
            f"task {workload.task!r} is for objective {' or '.join(allowed)}, "
            f"got {workload.objective!r}"
        )
    name, options = parse_spec(workload.task)
    entry = TASKS[name]
    module = importlib.import_module(f"{__name__}.{entry.module}")
    cls = cast("type[SeededTask]", getattr(module, entry.type))
    for option, value in options.items():
        if option not in cls.OPTIONS:
            raise unknown(f"option of task {name}", option, cls.OPTIONS)
        if type(value) is not int or value < 1:
            raise UserError(f"{option} of task {name} must be a positive integer, got {value!r}")
    numbers = {**cls.OPTIONS, **{key: int(value) for key, value in options.items()}}
    return cls(workload, seed, workload.objective or allowed[0], numbers)
