"""What a training run would meet, found out without training: sizes, and who would refuse.

The model is built with the reference, whose builds cost nothing, and run forward once, so that
every attention problem it asks for is known; an implementation is asked by ``supports()``
alone. What only building or running can tell is left to the run.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from attnbench import registry
from attnbench.attention import Unsupported
from attnbench.errors import UserError, message
from attnbench.failure import classify
from attnbench.train.attentions import noted, reference
from attnbench.train.data import make_task
from attnbench.train.flops import parameters_of
from attnbench.train.models import build_model
from attnbench.train.step import check_precision
from attnbench.train.workload import Workload

Send = Callable[..., None]


def count(task: dict[str, Any], send: Send) -> None:
    """Count the parameters of each workload's model, without those of its attention method.

    Sends ``counted`` with ``place``, and ``total`` or the ``reason`` why there is no such model.
    """
    device = torch.device(task["device"])
    for place, told in enumerate(task["problems"]):
        send("step", who=None, phase="sizes")
        workload = Workload.from_json(told)
        total, reason = None, None
        try:
            # Sizes do not depend on the batch; two a part, because a caption needs another one.
            small = workload.replace(batch=2 * workload.accumulation)
            model = build_model(small, make_task(small, 0), reference(), device, 0)
            total = parameters_of(model).total
        except (Unsupported, UserError) as error:
            reason = message(error)
        except Exception as error:  # of one setting: the search goes on with others
            reason = classify(error).reason
        send("counted", place=place, total=total, reason=reason)


def foresee(task: dict[str, Any], send: Send) -> None:
    """Ask each contender whether it can do every attention problem of a workload.

    Sends ``foreseen`` for each, with the ``reason`` why it cannot, or None; where nobody can,
    with the reason of that.
    """
    device = torch.device(task["device"])
    workload = Workload.from_json(task["problem"])
    send("step", who=None, phase="foresee")
    asked, problems = reference(), []
    reason = None
    try:
        check_precision(workload, device)
        # Of the largest batch that fits, only a run can tell.
        known = workload.replace(batch=workload.batch or workload.accumulation)
        problems = noted(asked)
        build_model(known, make_task(known, 0), asked, device, 0)
    except (Unsupported, UserError) as error:
        reason = message(error)
    except Exception as error:
        if classify(error).status != "oom":  # the reference's: others may need less
            raise
    for told in task["contenders"]:
        send("step", who=told["key"], phase="foresee")
        own = reason or _refusal(told, problems, device)
        send("foreseen", who=told["key"], reason=own)


def _refusal(told: dict[str, Any], problems: list[Any], device: torch.device) -> str | None:
    try:
        attention = registry.make(told)
        for problem in problems:
            attention.supports(problem, device)
    except Unsupported as refusal:
        return message(refusal)
    except Exception:
        return None  # a fault of the implementation: the run gives it its status
    return None
