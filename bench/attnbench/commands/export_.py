"""``attnbench export``: records in the format of another tool, to a file or standard output."""

from __future__ import annotations

import argparse
import sys

from attnbench.errors import UserError
from attnbench.export import export

_BINARY = ("parquet",)


def main(arguments: argparse.Namespace) -> int:
    """Write the document; what is not in it is told on standard error. 0 when done."""
    if arguments.format in _BINARY and arguments.out is None:
        raise UserError(f"export {arguments.format} is binary: give it --out FILE")
    exported = export(arguments.format, arguments.results)
    for problem in exported.problems:
        print(f"attnbench: {problem}", file=sys.stderr)
    if arguments.out is None:
        sys.stdout.buffer.write(exported.data)
        sys.stdout.flush()
        return 0
    try:
        arguments.out.parent.mkdir(parents=True, exist_ok=True)
        arguments.out.write_bytes(exported.data)
    except OSError as error:
        raise UserError(f"{arguments.out}: cannot be written: {error.strerror}") from error
    return 0
