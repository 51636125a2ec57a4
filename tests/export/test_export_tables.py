"""CSV and Parquet, read back by pandas."""

from __future__ import annotations

import io
import sys

import pandas as pd
import pytest
from export_records import NOT_OK, results
from made_records import machine, record, write

from attnbench.errors import UserError
from attnbench.export import export

pytest.importorskip("pyarrow")
READERS = {"csv": pd.read_csv, "parquet": pd.read_parquet}


def read(name, path) -> pd.DataFrame:
    return READERS[name](io.BytesIO(export(name, [path]).data))


@pytest.mark.parametrize("name", READERS)
def test_every_point_is_a_row_and_only_what_was_measured_has_a_figure(name, tmp_path) -> None:
    frame = read(name, results(tmp_path)).set_index("implementation")
    assert set(frame["status"]) == {"ok", *NOT_OK}
    assert frame.loc["triton", "median_s"] == 1.0e-3
    assert frame.loc["sdpa:backend=math", "median_s"] == 2.0e-3
    assert frame.loc["triton", "peak_bytes"] == 2**24
    assert pd.isna(frame.loc["sdpa:backend=math", "peak_bytes"])
    failed = frame[frame["status"] != "ok"]
    figures = ["median_s", "low_s", "high_s", "tflops", "speedup", "peak_bytes", "error_ratio"]
    assert failed[figures].isna().all(axis=None)
    assert failed.loc["bad-oom", "reason"] == "because of oom"


def test_csv_has_an_empty_cell_and_no_nan(tmp_path) -> None:
    text = export("csv", [results(tmp_path)]).data.decode()
    assert "nan" not in text.lower().replace("n_and", "")
    assert "16777216," in text  # bytes are whole, not 16777216.0
    assert ",,," in text


def test_parquet_keeps_types_that_do_not_depend_on_the_data(tmp_path) -> None:
    some, none = (
        read("parquet", write(tmp_path / name, [record(status=status)])).dtypes
        for name, status in (("a", "ok"), ("b", "oom"))
    )
    columns = ["peak_bytes", "saved_bytes", "flops", "seqlen_q", "dropout_p"]
    assert list(some[columns]) == list(none[columns])
    assert some["dropout_p"] == "float64"
    assert read("parquet", tmp_path / "a").attrs == {}


@pytest.mark.parametrize("name", READERS)
def test_versions_that_disagree_on_a_fields_type_share_a_column(name, tmp_path) -> None:
    """Parquet's writer refuses a column of numbers and words."""
    strange = {**record().problem, "batch": "many"}
    path = write(tmp_path, [record(), record(problem=strange, implementation="new")])
    frame = read(name, path).set_index("implementation")
    assert frame["batch"].astype(str).to_dict() == {"triton": "1", "new": "many"}


@pytest.mark.parametrize("name", READERS)
def test_machines_stay_apart(name, tmp_path) -> None:
    other = machine(torch="2.14.0")
    told = [record(), record(environment=other)]
    path = write(tmp_path, told, "run.jsonl", machine(), other)
    assert read(name, path)["machine"].nunique() == 2


@pytest.mark.parametrize("name", READERS)
def test_no_record_is_a_mistake(name, tmp_path) -> None:
    with pytest.raises(UserError, match=r"no record in .*run\.jsonl"):
        export(name, [write(tmp_path, [])])


def test_without_the_libraries_the_extra_is_named(tmp_path, monkeypatch) -> None:
    path = results(tmp_path)
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(UserError, match=r"parquet needs pyarrow: pip install 'attnbench\[export"):
        export("parquet", [path])
    monkeypatch.setitem(sys.modules, "pandas", None)
    monkeypatch.delitem(sys.modules, "attnbench.report.frame", raising=False)
    with pytest.raises(UserError, match=r"csv needs pandas: pip install 'attnbench\[export\]'"):
        export("csv", [path])
