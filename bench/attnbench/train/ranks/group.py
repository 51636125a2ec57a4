"""What a worker does with a workload of several processes: each contender in ranks of its own.

The reference learns here, in a single process, from the same sequences; that is what the
curve of all ranks is held against. Then one contender after the other gets its ranks, which
build, verify, learn and are timed. Rounds of several contenders are not interleaved: two models
would have to share each GPU, and a rank that dies would take both along. What the machine does
meanwhile can thus favour one of them; several ``[measure] processes`` tell how much.
"""

from __future__ import annotations

import os
from typing import Any

import torch

from attnbench import registry
from attnbench.attention import Unsupported
from attnbench.train import flops
from attnbench.train.data import make_task
from attnbench.train.figures import ModelFlops, Ranks
from attnbench.train.ranks.launch import run_ranks
from attnbench.train.ranks.trainer import whole_of
from attnbench.train.setup import make_trainer
from attnbench.train.step import check_precision
from attnbench.train.truth import Truth
from attnbench.train.workload import Workload
from attnbench.turns import Send, Turns

_NO_ENERGY = "several processes: the counter is one device's, the joules would be all ranks'"


class RanksGroup(Turns[Workload]):
    """All contenders of one workload that several processes share."""

    def __init__(self, task: dict[str, Any], send: Send) -> None:
        super().__init__(task, send)
        self.workload = Workload.from_json(task["problem"])
        self.seed: int = task["seed"]
        self._truth: Truth | None = None
        self._devices: list[str] = []

    def run(self) -> None:
        """Train and measure every contender; send a ``result`` for each."""
        self._reference_step()
        try:
            check_precision(self.workload, self.device)
            check_parallel(self.workload)
            self._devices = devices_of(self.device, self.workload.processes)
            if self._task["process"] == 0:
                whole = whole_of(self.workload)
                self._truth = Truth(whole, self.device, self.seed, self._reference_step)
                self._truth.find()
        except Exception as error:
            return self._all_fail(error, "the reference's training")
        self._release()  # the first rank shares the device with this process
        for told in self._task["contenders"]:
            self._try(told["key"], self._run_ranks, told)

    def _run_ranks(self, told: dict[str, Any]) -> None:
        key, world, truth = told["key"], self.workload.processes, self._truth
        self._step(key, "start ranks")
        threads = max(1, len(os.sched_getaffinity(0)) // world)
        job = {
            "contender": told,
            "problem": self.workload.to_json(),
            "devices": self._devices,
            "threads": threads,
            "seed": self.seed,
            "budget": self._task["budget"],
            "process": self._task["process"],
            "learn_batch": truth.workload.batch // world if truth else self.workload.batch,
        }
        found = run_ranks(job, world, self._task["timeout_s"], lambda phase: self._step(key, phase))
        result: dict[str, Any] = {"samples": found["samples"], "accuracy": {}}
        if truth is not None:
            parity = truth.judged(found["losses"], registry.make(told).kind)
            result |= {
                "accuracy": found["accuracy"],
                "memory": found["memory"],
                "kernels": found["kernels"],
                "training": self._training(told, found, threads) | {"parity": parity.model_dump()},
            }
            if self._task["energy_s"]:
                result["energy_absent"] = _NO_ENERGY
        self._send(
            "result",
            who=key,
            status="ok",
            choices={},
            host_samples=None,
            wall_s=self._phase_s(key),
            **result,
        )

    def _training(
        self, told: dict[str, Any], found: dict[str, Any], threads: int
    ) -> dict[str, Any]:
        whole = whole_of(self.workload)
        is_cuda = self.device.type == "cuda"
        cores = "" if is_cuda else f", {threads} threads each"
        ranks = Ranks(
            processes=self.workload.processes,
            backend="nccl" if is_cuda else "gloo",
            devices=self._devices,
            peak_bytes=found["peak_bytes"],
            method=f"torchrun on this machine, ranks of its own for each implementation{cores}; "
            "a step ends with its slowest rank; not interleaved with other implementations",
        )
        return {
            "batch": whole.batch,
            "tokens": make_task(whole, self.seed).batch(0).tokens,
            "learned_steps": len(found["losses"]),
            "stopped": found["stopped"],
            "losses": found["losses"],
            "evaluations": found["evaluations"],
            "flops": self._flops(told).model_dump(),
            "parameters": found["parameters"],
            "breakdown": found["breakdown"],
            "memory": found["parts"],
            "ranks": ranks.model_dump(),
        }

    def _flops(self, told: dict[str, Any]) -> ModelFlops:
        """Of all ranks: those of one process that does the same in as many parts."""
        plain = whole_of(self.workload).replace(compile=False, checkpointing=False)
        return flops.count_step(
            registry.make(told),
            lambda attention: make_trainer(plain, attention, self.device, self.seed),
            make_task(plain, self.seed).batch(0),
        )


def check_parallel(workload: Workload) -> None:
    """Refuse what several processes cannot do, or what nobody has verified that they do.

    Raises:
        Unsupported: with the reason.
    """
    if workload.parallel == "context":
        raise Unsupported(
            "parallel 'context': attention across ranks is an implementation by itself, 'ring'; "
            "no model is cut along its sequences yet"
        )
    if workload.batch == 0:
        raise Unsupported("batch 0: the largest that fits is looked for in one process; say it")
    if workload.distillation:
        raise Unsupported("distillation: a teacher learns in one process; parallel must be none")
    if workload.loss == "contrastive":
        raise Unsupported("a contrastive loss over ranks is not that of the whole batch")


def devices_of(device: torch.device, world: int) -> list[str]:
    """Each rank's device: the same CPU, or GPUs from the given one on.

    Raises:
        Unsupported: there are fewer GPUs than ranks.
    """
    if device.type != "cuda":
        return [device.type] * world
    first, have = device.index or 0, torch.cuda.device_count()
    if first + world > have:
        raise Unsupported(f"{world} ranks need a GPU each from {device} on; torch sees {have}")
    return [f"cuda:{first + rank}" for rank in range(world)]
