"""The command line. Parses words; each command lives in ``attnbench.commands``.

Nothing heavy is imported here, so that ``--help`` and every mistake answer at once.
Exit codes: 0 done, 1 done and something is wrong or failed, 2 the request cannot be
meant, 130 interrupted.
"""

from __future__ import annotations

import argparse
import importlib
import math
import os
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

from attnbench import __version__
from attnbench.errors import UserError, suggest
from attnbench.export import FORMATS
from attnbench.process import IMPORT_TIMEOUT_S, WorkerDied

_COMMANDS = {
    "run": "verify, measure, record and render a suite",
    "tune": "search a suite's space for the best setting, within limits of memory and quality",
    "verify": "run the conformance battery over implementations",
    "list": "show implementations, suites or reports, and what can run here",
    "report": "render records as an HTML page, a Markdown summary and figures",
    "profile": "show where time and memory of one implementation go",
    "picture": "draw the weights that methods really use, as heat maps",
    "doctor": "show the environment and what is missing",
    "compile-check": "compile Triton kernels for GPUs that are not here, and check what comes out",
    "compare": "what got faster, slower or worse from run to run; 0 no regression, 1 regression",
    "merge": "join record files, such as shards, into one",
    "export": "write records in the format of another tool",
}
_PROJECTLESS = ("compare", "merge", "export")  # they only see the files they are given


class _Parser(argparse.ArgumentParser):
    """Errors are one line, with the nearest valid name."""

    def error(self, message: str) -> NoReturn:
        if found := re.search(r"invalid choice: '(.*)' \(choose from (.*)\)", message):
            message += suggest(found[1], re.findall(r"[\w-]+", found[2]))
        elif found := re.search(r"unrecognized arguments: (--[\w-]+)", message):
            message += suggest(found[1], self._options())
        raise UserError(f"{message} (see {self.prog} --help)")

    def _options(self) -> list[str]:
        """Every option of every command: argparse does not say whose it could not place."""
        parsers: list[argparse.ArgumentParser] = [self]
        for action in self._actions:
            if isinstance(action.choices, dict):
                parsers += action.choices.values()
        return [o for parser in parsers for a in parser._actions for o in a.option_strings]


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command; return its exit code."""
    words = list(sys.argv[1:] if argv is None else argv)
    try:
        arguments = _parser().parse_args(words)
        name = arguments.command.replace("-", "_")
        command = importlib.import_module(f"attnbench.commands.{name}_")
        return int(command.main(arguments))
    except UserError as error:
        if "--debug" in words:
            raise
        print(f"attnbench: error: {error}", file=sys.stderr)
        return 2
    except WorkerDied as death:
        print(f"attnbench: error: {death.reason}\n{death.log}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("attnbench: interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:  # attnbench list | head: whoever reads has read enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except OSError as error:
        if "--debug" in words:
            raise
        print(f"attnbench: error: {error.strerror or error}: {error.filename}", file=sys.stderr)
        return 1
    except Exception as error:
        if "--debug" in words:
            raise
        kind = type(error).__name__
        print(f"attnbench: internal error: {kind}: {error} (--debug shows where)", file=sys.stderr)
        return 1


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="attnbench",
        description="Attention: verified against float64, measured with intervals.",
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=f"attnbench {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    made = {}
    for name, text in _COMMANDS.items():
        made[name] = commands.add_parser(name, help=text, description=text, allow_abbrev=False)
        made[name].add_argument("--debug", action="store_true", help="show tracebacks")
        if name in _PROJECTLESS:
            continue
        made[name].add_argument(
            "--project",
            type=Path,
            metavar="DIR",
            help="folder with impls/, suites/, reports/, results/ (default: current)",
        )
    _run_arguments(made["run"])
    _tune_arguments(made["tune"])
    _verify_arguments(made["verify"])
    made["list"].add_argument(
        "what", nargs="?", default="impls", choices=["impls", "suites", "reports"]
    )
    _where(made["list"])
    _report_arguments(made["report"])
    _profile_arguments(made["profile"])
    _picture_arguments(made["picture"])
    _doctor_arguments(made["doctor"])
    _compile_check_arguments(made["compile-check"])
    _compare_arguments(made["compare"])
    _merge_arguments(made["merge"])
    _export_arguments(made["export"])
    return parser


def _where(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:N")
    _plugins(parser)


def _plugins(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--impls-dir",
        type=Path,
        action="append",
        default=[],
        metavar="DIR",
        help="a further folder of implementations; may be repeated",
    )
    parser.add_argument("--import-timeout", type=_seconds, default=IMPORT_TIMEOUT_S, metavar="S",
                        help="longest time one implementation may take to be imported")  # fmt: skip


def _seconds(text: str) -> float:
    """A length of time: positive and finite."""
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not (0 < value < math.inf):
        raise argparse.ArgumentTypeError(f"must be a positive number of seconds, got {text!r}")
    return value


def _run_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("suite", help="a name from `attnbench list suites`, or a TOML file")
    _where(parser)
    parser.add_argument(
        "--impls",
        action="append",
        default=[],
        metavar="GLOB",
        help="implementations instead of the suite's, once for each; NAME:key=value sets options",
    )
    _how(parser)
    parser.add_argument("--problem", action="append", default=[], metavar="ID",
                        help="only problems whose id begins so")  # fmt: skip
    parser.add_argument("--shard", default="1/1", metavar="I/N", help="every N-th problem")
    parser.add_argument("--results", type=Path, metavar="DIR", help="default: PROJECT/results")
    parser.add_argument("--fresh", action="store_true", help="start again in a new file")
    parser.add_argument("--dry-run", action="store_true", help="print the points and the time")
    parser.add_argument("--no-report", action="store_true", help="do not render the page")
    parser.add_argument(
        "--against",
        metavar="BASE",
        help="compare with a git revision, whose versions are measured in the same rounds, or "
        "with a record file or folder; exit code as `attnbench compare`",
    )
    parser.add_argument(
        "--confirm",
        action="store_true",
        help="with --against: measure regressions once more before they count",
    )


def _tune_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("suite", help="a suite with a [tune] table: its name, or a TOML file")
    _where(parser)
    parser.add_argument("--sampler", metavar="NAME",
                        help="grid, random, tpe or gp, instead of the suite's")  # fmt: skip
    parser.add_argument("--trials", type=_count, metavar="N",
                        help="settings to try; refused and repeated ones do not count")  # fmt: skip
    parser.add_argument("--seed", type=_number, metavar="N", help="of the draws")
    _how(parser)
    parser.add_argument("--results", type=Path, metavar="DIR", help="default: PROJECT/results")
    parser.add_argument("--fresh", action="store_true", help="start again in new files")
    parser.add_argument("--dry-run", action="store_true", help="print what would be searched")
    parser.add_argument("--no-report", action="store_true", help="do not render the page")


def _how(parser: argparse.ArgumentParser) -> None:
    """How well to measure, and what a suite says otherwise."""
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE",
                        help="override a key of the grid, or measure.KEY, verify.KEY")  # fmt: skip
    preset = parser.add_mutually_exclusive_group()
    for name, text in (
        ("quick", "a look: 5 %% precision, 0.3 s a point; --set measure.KEY still wins"),
        ("precise", "to publish: 1 %% precision, up to 30 s a point in each of 3 processes"),
    ):
        preset.add_argument(f"--{name}", action="store_const", const=name, dest="preset", help=text)


def _verify_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("impls", nargs="*", metavar="IMPL", help="names or globs (default: all)")
    _where(parser)
    parser.add_argument("--case", action="append", default=[], metavar="GLOB",
                        help="only cases whose name matches")  # fmt: skip
    parser.add_argument("--timeout", type=_seconds, default=120.0, metavar="S",
                        help="longest single case, in seconds")  # fmt: skip
    parser.add_argument("-v", "--verbose", action="store_true", help="every case with its errors")


def _profile_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("impl", metavar="IMPL", help="a name; NAME:key=value sets options")
    _where(parser)
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE",
                        help="a key of the problem, as in a suite's grid: seqlen=1024, "
                             "preset=llama-3-8b, direction=both")  # fmt: skip
    parser.add_argument("--out", type=Path, metavar="DIR",
                        help="default: PROJECT/results/MACHINE/profiles/IMPL-PROBLEM")  # fmt: skip
    parser.add_argument("--ncu", action="store_true", help="also run Nsight Compute (CUDA)")
    parser.add_argument("--timeout", type=_seconds, default=300.0, metavar="S",
                        help="longest single step, in seconds")  # fmt: skip


def _picture_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("impls", nargs="+", metavar="IMPL",
                        help="names or globs; NAME:key=value sets options")  # fmt: skip
    _where(parser)
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE",
                        help="a key of the problem, as in a suite's grid: seqlen=64, "
                             "mask=causal, inputs=needle")  # fmt: skip
    parser.add_argument("--tensors", type=Path, metavar="FILE",
                        help="q, k (and v) of a model's layer, (batch, heads, seqlen, head_dim): "
                             ".npz, .pt or .safetensors")  # fmt: skip
    heads = parser.add_mutually_exclusive_group()
    heads.add_argument("--heads", type=_count, metavar="N",
                       help="the first N heads (default: 1)")  # fmt: skip
    heads.add_argument("--head", type=_number, action="append", default=[], metavar="I",
                       help="the head with this number, from 0; may be repeated")  # fmt: skip
    parser.add_argument("--scale", choices=["log", "linear"], default="log",
                        help="of the colours (default: log)")  # fmt: skip
    parser.add_argument("--out", type=Path, metavar="DIR",
                        help="default: PROJECT/results/MACHINE/pictures/NAME")  # fmt: skip
    parser.add_argument("--timeout", type=_seconds, default=300.0, metavar="S",
                        help="longest single method, in seconds")  # fmt: skip


def _number(text: str) -> int:
    """A whole number from 0."""
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"must be a whole number from 0, got {text!r}")
    return int(text)


def _count(text: str) -> int:
    """A whole number from 1."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"must be a whole number from 1, got {text!r}")
    return int(text)


def _report_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("results", nargs="+", type=Path, metavar="RESULT",
                        help="record files or folders")  # fmt: skip
    parser.add_argument("--out", type=Path, metavar="DIR", help="default: PROJECT/reports/out/NAME")
    parser.add_argument("--report", default="default", metavar="NAME",
                        help="a definition from `attnbench list reports`")  # fmt: skip
    parser.add_argument("--title", help="of the page")


def _doctor_arguments(parser: argparse.ArgumentParser) -> None:
    _where(parser)
    parser.add_argument("--selftest", action="store_true",
                        help="prove the instrument; takes about a minute")  # fmt: skip
    parser.add_argument("--results", type=Path, metavar="DIR",
                        help="where self-tests are kept; default: PROJECT/results")  # fmt: skip


def _compile_check_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("impls", nargs="*", metavar="IMPL",
                        help="names or globs (default: all that offer kernels)")  # fmt: skip
    _plugins(parser)
    parser.add_argument("--target", action="append", default=[], metavar="NAME",
                        help="sm_80, sm_89, sm_90, sm_100 or gfx942; may be repeated "
                        "(default: all)")  # fmt: skip
    parser.add_argument("--all", action="store_true",
                        help="every case, not only the first of each kind")  # fmt: skip
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the result here")
    parser.add_argument("--results", type=Path, metavar="DIR",
                        help="where the result is kept; default: PROJECT/results")  # fmt: skip
    parser.add_argument("--timeout", type=_seconds, default=300.0, metavar="S",
                        help="longest single compilation, in seconds")  # fmt: skip


def _compare_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("results", nargs="*", type=Path, metavar="BASE NEW",
                        help="record files or folders, before and after")  # fmt: skip
    parser.add_argument("--history", action="append", type=Path, default=[], metavar="FOLDER",
                        help="earlier runs: show steps, learn how equal runs differ; "
                        "may be repeated")  # fmt: skip
    parser.add_argument("--threshold", type=_share, metavar="SHARE",
                        help="relative difference that matters (default: 3%%)")  # fmt: skip
    parser.add_argument("--across", action="append", default=[], metavar="FIELD",
                        help="an identity field of the environment that may differ, such as "
                        "software.torch; a glob; may be repeated")  # fmt: skip
    parser.add_argument("--markdown", type=Path, metavar="FILE", help="summary of the worst points")
    parser.add_argument("--json", type=Path, metavar="FILE", help="every point")
    parser.add_argument("--confirm", action="store_true",
                        help="measure regressions once more before they count")  # fmt: skip
    parser.add_argument("--project", type=Path, metavar="DIR",
                        help="with --confirm: where impls/ and suites/ are")  # fmt: skip
    parser.add_argument("--impls-dir", type=Path, action="append", default=[], metavar="DIR",
                        help="with --confirm: more implementations")  # fmt: skip
    parser.add_argument("-v", "--verbose", action="store_true", help="every point in the table")


def _share(text: str) -> float:
    """A share between 0 and 1: 0.03, or 3%."""
    number, percent, rest = text.partition("%")
    try:
        value = float(number) / (100 if percent else 1)
    except ValueError:
        value = math.nan
    if rest or not (0 < value < 1):
        raise argparse.ArgumentTypeError(f"must be a share such as 0.03 or 3%, got {text!r}")
    return value


def _merge_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("out", type=Path, metavar="OUT", help="the new file, NAME.jsonl")
    parser.add_argument("results", nargs="+", type=Path, metavar="IN",
                        help="record files or folders; of equal ones the last counts")  # fmt: skip


def _export_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("format", choices=list(FORMATS), metavar="FORMAT",
                        help=", ".join(FORMATS))  # fmt: skip
    parser.add_argument("results", nargs="+", type=Path, metavar="RESULT",
                        help="record files or folders")  # fmt: skip
    parser.add_argument("--out", type=Path, metavar="FILE", help="default: standard output")


if __name__ == "__main__":
    sys.exit(main())
