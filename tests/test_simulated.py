"""What runs in a simulator is verified like all others, labelled, and never among timings."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from helpers import HEALTHY, attnbench, write_suite
from made_records import MACHINE, record, run, write

from attnbench.compare import compare
from attnbench.errors import UserError
from attnbench.export import bencher, csv_table, github_action, junit, pytest_benchmark_json
from attnbench.limits import place_record
from attnbench.plan import Contender, choose, make_plan
from attnbench.record import Implementation, Record
from attnbench.registry import Entry, Source
from attnbench.report import load_frame, render
from attnbench.runs import load_run
from attnbench.suite import load_suite

WORDS = "in a made-up simulator"
SIMULATED = '''
from attnbench import Attention, register

@register("{name}")
class Mine(Attention):
    """Right, and very slow where it is simulated."""
    features = frozenset()
    options = {{"pretend": False, "block": 16}}
    simulators = {{"pretend": "in a made-up simulator"}}

    def build(self, problem, device):
        from torch.nn.functional import scaled_dot_product_attention
        return scaled_dot_product_attention
'''


def entry(name: str, **changes: object) -> Entry:
    told = {"options": {"pretend": False, "block": 16}, "simulators": {"pretend": WORDS}}
    return Entry(name, Source("project", name), "mine.py", 1, **(told | changes))  # type: ignore[arg-type]


def simulated(**changes: object) -> Record:
    """A record whose simulator was, to tempt whoever compares, the fastest of all."""
    told = record([1e-9] * 5, implementation="mine", **changes)  # type: ignore[arg-type]
    who = {"name": "mine", "given": {"pretend": True}, "simulated": WORDS}
    return told.model_copy(update={"implementation": Implementation.model_validate(who)})


@pytest.fixture
def mixed(tmp_path: Path) -> Path:
    return write(tmp_path / "results", [simulated(), record()])


# ---- asking for it -----------------------------------------------------------------------


def test_an_option_given_by_set_is_everyones_who_has_it_and_none_of_its_own() -> None:
    plain = entry("plain", options={}, simulators={})
    chosen = choose(["*", "mine:pretend=false"], [entry("mine"), plain], "", {"pretend": True})
    assert {c.spec: c.simulated for c in chosen} == {
        "mine:pretend=true": WORDS, "plain": None, "mine:pretend=false": None,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"pretned": True}, "--set: unknown key 'pretned'"),
        ({"pretend": 3}, "option pretend must be of type bool, got 3"),
    ],
)
def test_an_option_that_nobody_has_or_of_another_type_is_refused(
    options: dict[str, bool], message: str
) -> None:
    with pytest.raises(UserError, match=re.escape(message)):
        choose(["*"], [entry("mine")], "", options)


def test_rounds_of_a_simulator_are_not_taken_among_others(tmp_path: Path) -> None:
    suite = load_suite(write_suite(tmp_path))
    contenders = [
        Contender(entry("mine"), (("pretend", True),)), Contender(entry("mine")),
        Contender(entry("other")),
    ]  # fmt: skip
    groups = make_plan(suite, contenders, "cpu", "machine").groups
    assert [[p.contender.spec for p in g] for g in groups] == [
        ["mine", "other"], ["mine:pretend=true"],
    ]  # fmt: skip


# ---- a real run --------------------------------------------------------------------------


@pytest.fixture(scope="module")
def ran(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, list[Record], Path]:
    project = tmp_path_factory.mktemp("project")
    (project / "impls").mkdir()
    (project / "impls" / "mine.py").write_text(SIMULATED.format(name="mine"))
    (project / "impls" / "healthy.py").write_text(HEALTHY.format(name="healthy"))
    suite = write_suite(project, ["mine", "healthy"])
    ended = attnbench("run", suite, "--set", "pretend=true", cwd=project)
    assert ended.code == 0, ended.text
    (file,) = (project / "results").rglob("*.jsonl")
    (page,) = (project / "reports").rglob("index.html")
    return ended.out, list(load_run([file]).records), page


def test_a_run_verifies_labels_and_says_so(ran: tuple[str, list[Record], Path]) -> None:
    out, records, _ = ran
    seen = {r.implementation.spec: r for r in records}
    assert seen["healthy"].implementation.simulated is None
    mine = seen["mine:pretend=true"]
    assert (mine.status, mine.implementation.simulated) == ("ok", WORDS)
    assert mine.accuracy["out"].ok
    assert "--set pretend=true" in mine.command
    assert f"1 points ran {WORDS}: verified; their times are no timings" in out


def test_the_page_of_a_run_has_it_in_a_table_of_its_own(
    ran: tuple[str, list[Record], Path],
) -> None:
    text = ran[2].read_text()
    assert f"1 point ran {WORDS}, to be verified and not to be timed: 1 right" in text
    data = text.split('<script type="application/json" id="data">')[1].split("</script>")[0]
    assert "healthy" in data
    assert "mine:pretend" not in data  # no chart, filter or ranking knows of it


# ---- what is made of records -------------------------------------------------------------


def test_a_report_ranks_and_draws_timings_alone(mixed: Path, tmp_path: Path) -> None:
    text = render([mixed], tmp_path / "out").markdown.read_text()
    verdict, _, rest = text.partition("## Not timings")
    assert "**triton**" in verdict
    assert "mine" not in verdict
    assert "| mine:pretend=true |" in rest
    assert f"1 point ran {WORDS}, to be verified and not to be timed: 1 right" in rest


def test_a_wrong_result_in_a_simulator_is_shown_as_wrong(tmp_path: Path) -> None:
    wrong = simulated(status="incorrect", reason="off by 3")
    text = render([write(tmp_path, [wrong])], tmp_path / "out").markdown.read_text()
    assert "There are no timings in these results." in text
    assert "incorrect: off by 3" in text
    assert "0 right" in text


def test_the_frame_has_no_timing_of_it(mixed: Path) -> None:
    frame = load_frame([mixed]).set_index("name")
    assert frame.loc["mine", "simulated"] == WORDS
    assert frame.loc["mine", ["median_s", "tflops", "speedup"]].isna().all()
    assert frame.loc["triton", "median_s"] > 0


def test_it_has_no_place_under_the_roofline() -> None:
    ceilings = {"bandwidth": {}, "matmul": {}}
    assert place_record(simulated(), {"ceilings": ceilings}) is None


def test_comparing_leaves_it_out_and_says_so() -> None:
    base, new = run(simulated(), record()), run(simulated(), record([2.0] * 5))
    found = compare(base, new)
    assert [p.new.implementation.name for p in found.points if p.new] == ["triton"]
    assert "1 records of a simulator, whose times are no timings: left out" in found.notes


@pytest.mark.parametrize("write_it", [bencher.write, github_action.write])
def test_histories_of_times_are_not_fed_with_it(mixed: Path, write_it) -> None:  # type: ignore[no-untyped-def]
    exported = write_it([mixed])
    assert b"triton" in exported.data
    assert b"mine" not in exported.data
    assert any(WORDS in line for line in exported.problems)


def test_other_exports_label_it_or_leave_it_out(mixed: Path) -> None:
    document = json.loads(pytest_benchmark_json.write([mixed]).data)
    assert len(document["benchmarks"]) == 1
    assert f"ran {WORDS}: no timing" in junit.write([mixed]).data.decode()
    assert WORDS in csv_table.write([mixed]).data.decode()


def test_pytest_has_it_in_a_table_of_its_own() -> None:
    from attnbench.pytest_suite import _group_of

    assert _group_of(simulated()) == f"{_group_of(record())}, {WORDS}: no timings"


def test_a_change_is_not_judged_in_a_simulator(tmp_path: Path) -> None:
    (tmp_path / "impls").mkdir()
    (tmp_path / "impls" / "mine.py").write_text(SIMULATED.format(name="mine"))
    suite = write_suite(tmp_path, ["mine"])
    base = write(tmp_path / "before", [record()], "run.jsonl", MACHINE)
    ended = attnbench("run", suite, "--set", "pretend=true", "--against", base, cwd=tmp_path)
    assert ended.code == 2
    assert f"mine:pretend=true runs {WORDS}, whose times are no timings" in ended.err
