"""How a training run begins: a model with its optimizer, and the teacher it follows, if any."""

from __future__ import annotations

from collections.abc import Callable

import torch

from attnbench.attention import Attention
from attnbench.train.attentions import reference
from attnbench.train.data import make_task
from attnbench.train.learning import learn
from attnbench.train.models import build_model
from attnbench.train.models.presets import sized
from attnbench.train.step import Trainer
from attnbench.train.workload import Workload

_LEAST_TAUGHT = 8  # sequences a step of a teacher, where the workload leaves its batch open


def make_trainer(
    workload: Workload,
    attention: Attention,
    device: torch.device,
    seed: int,
    teacher: torch.nn.Module | None = None,
) -> Trainer:
    """A model as it begins, equal for all contenders with the same seed.

    Raises:
        Unsupported: the implementation cannot do what the model needs.
    """
    torch.manual_seed(seed)
    model = build_model(workload, make_task(workload, seed), attention, device, seed)
    return Trainer(workload, model.train(), device, teacher)


def make_teacher(
    workload: Workload, device: torch.device, seed: int, alive: Callable[[], None]
) -> torch.nn.Module | None:
    """The model that a distilled workload follows: twice as wide, with exact attention, trained.

    It learns the same batches for as many steps. None where nothing is distilled.
    """
    if not workload.distillation:
        return None
    wide = workload.replace(
        distillation=0.0,
        d_model=2 * sized(workload).d_model,
        d_ff=2 * workload.d_ff,  # 0 follows d_model
        batch=workload.batch or _LEAST_TAUGHT * workload.accumulation,
        compile=False,
        finetune="full",
    )
    trainer = make_trainer(wide, reference(), device, seed)
    learn(trainer, make_task(wide, seed), seed, alive, evaluate=False)
    return trainer.model.eval().requires_grad_(False)
