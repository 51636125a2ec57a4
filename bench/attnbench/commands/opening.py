"""From a command's arguments to its session, and to the command that measures a point again."""

from __future__ import annotations

import argparse
from contextlib import AbstractContextManager

from attnbench.session import Session, open_session, reproduce


def open_for(
    arguments: argparse.Namespace, *, lock: bool = True
) -> AbstractContextManager[Session]:
    """The session that a command asks for; see :func:`attnbench.session.open_session`."""
    return open_session(
        arguments.project,
        arguments.device,
        arguments.impls_dir,
        lock=lock,
        import_timeout_s=arguments.import_timeout,
    )


def command_of(arguments: argparse.Namespace, against: str | None = None) -> str:
    """The beginning of the command by which ``attnbench run`` measures a point again."""
    return reproduce(
        arguments.suite,
        device=arguments.device,
        project=arguments.project,
        impls_dirs=arguments.impls_dir,
        overrides=arguments.set,
        preset=arguments.preset,
        against=against,
    )
