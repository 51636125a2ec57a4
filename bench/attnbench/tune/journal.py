"""The journal: every trial of a search, in Optuna's file, on disk as soon as it is told.

Next to the records. A killed search leaves a trial that runs for ever, perhaps a torn last
line and Optuna's lock; all three are put right when the file is opened again, which only one
search can do at a time.
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

from attnbench.errors import UserError
from attnbench.spec import Value
from attnbench.tune.outcome import Outcome
from attnbench.tune.table import Tune

if TYPE_CHECKING:
    import optuna

_TOLD = "attnbench"  # key of what we say about a trial
_STUDY = "search"


@dataclass(frozen=True)
class Trial:
    """One finished trial.

    Attributes:
        number: Optuna's.
        params: as drawn.
        refused: why it cannot be; nothing was measured.
        outcome: what it came to.
        spec: the implementation with its options.
        workload: fields of the workload that differ from their default.
        origin: ``measured``, ``records`` (it had a record already) or ``journal`` (an earlier
            trial of this search is the same setting, and answered).
    """

    number: int
    params: Mapping[str, Value]
    refused: str | None = None
    outcome: Outcome | None = None
    spec: str = ""
    workload: Mapping[str, Value] | None = None
    origin: str = "measured"

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        outcome = self.outcome and self.outcome.to_json()
        return {**vars(self), "params": dict(self.params), "outcome": outcome}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Trial:
        """The inverse of :meth:`to_json`."""
        outcome = data["outcome"]
        return cls(**{**data, "outcome": outcome and Outcome.from_json(outcome)})


class Journal:
    """The study of one search. Use as a context manager.

    Args:
        path: of the file; made if it is not there.
        tune: the search.

    Raises:
        UserError: another search holds the file, or it cannot be written.
    """

    def __init__(self, path: Path, tune: Tune) -> None:
        import optuna
        from optuna.storages import JournalStorage
        from optuna.storages.journal import JournalFileBackend

        self.path, self._neat = path, tune.space.neat
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._held = open(path, "ab+")  # noqa: SIM115 - lives as long as the journal
        except OSError as error:
            raise UserError(f"{path}: cannot be written: {error.strerror}") from error
        try:
            fcntl.flock(self._held, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            self._held.close()
            raise UserError(f"{path}: another attnbench tune is at work on this search") from error
        _mend(self._held.fileno())
        path.with_name(f"{path.name}.lock").unlink(missing_ok=True)  # of one that was killed
        optuna.logging.set_verbosity(optuna.logging.ERROR)  # it tells every trial otherwise
        self.study: optuna.Study = optuna.create_study(
            storage=JournalStorage(JournalFileBackend(str(path))),
            study_name=_STUDY,
            direction="maximize" if tune.is_maximized else "minimize",
            load_if_exists=True,
        )
        self.taken_up = self._take_up(set(tune.space.dimensions))

    def trials(self) -> list[Trial]:
        """Every finished one that was told."""
        kept = self.study.get_trials(deepcopy=False)
        return [
            Trial.from_json(
                {**t.user_attrs[_TOLD], "number": t.number, "params": self._neat(t.params)}
            )
            for t in kept
            if t.state.is_finished() and _TOLD in t.user_attrs
        ]

    @property
    def length(self) -> int:
        """How many trials there are, whatever became of them."""
        return len(self.study.get_trials(deepcopy=False))

    def has_waiting(self) -> bool:
        """Whether a setting was put in line and is not drawn yet."""
        from optuna.trial import TrialState

        return bool(self.study.get_trials(deepcopy=False, states=(TrialState.WAITING,)))

    def tell(self, drawn: optuna.Trial, trial: Trial) -> None:
        """Write down what a trial came to; when this returns it is on disk.

        What has no value is *pruned* to Optuna, not failed: samplers forget what failed, and
        would draw it again and again.
        """
        from optuna.trial import TrialState

        told = {k: v for k, v in trial.to_json().items() if k not in ("number", "params")}
        drawn.set_user_attr(_TOLD, told)
        outcome = trial.outcome
        for figure, gap in (outcome.gaps if outcome else {}).items():
            drawn.set_constraint(figure, gap)
        if outcome is None or outcome.value is None:
            self.study.tell(drawn, state=TrialState.PRUNED)
        else:
            self.study.tell(drawn, outcome.value.median)

    def close(self) -> None:
        """Let others have it."""
        self._held.close()

    def __enter__(self) -> Journal:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def _take_up(self, keys: set[str]) -> int:
        """Mark trials that were interrupted as failed, and put their settings in line again."""
        from optuna.trial import TrialState

        left = self.study.get_trials(deepcopy=False, states=(TrialState.RUNNING,))
        for trial in left:
            self.study.tell(trial.number, state=TrialState.FAIL)
            if set(trial.params) == keys:
                self.study.enqueue_trial(trial.params)
        return len(left)


def _mend(file: int) -> None:
    """Cut off a torn last line, after which nothing could be appended."""
    size = os.fstat(file).st_size
    data = os.pread(file, size, 0)
    keep = data.rfind(b"\n") + 1
    if keep < size:
        os.ftruncate(file, keep)
