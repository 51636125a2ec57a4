"""Report definitions: what a user may write, and what is refused with which words."""

import pytest
from synthetic_records import record, write_run

from attnbench.errors import UserError
from attnbench.problem import Problem
from attnbench.report import render
from attnbench.report.definition import _BY_NAME, load_definition, parse_definition

TWO_VIEWS = """
title = "Mine"
axis = "heads_q"
[[views]]
view = "latency"
scale = "linear"
title = "How long"
note = "Shorter is better."
figure = false
[[views]]
view = "support"
"""


def test_the_builtin_report_shows_every_view_once():
    names = [view.view for view in load_definition("default").views]
    assert names[:2] == ["search", "verdicts"], "what was found comes first, where it was searched"
    assert sorted(names) == sorted(_BY_NAME)


def test_a_projects_report_is_found_and_comes_before_the_builtin_one(tmp_path):
    (tmp_path / "reports").mkdir()
    (tmp_path / "reports" / "mine.toml").write_text(TWO_VIEWS, encoding="utf-8")
    (tmp_path / "reports" / "default.toml").write_text(TWO_VIEWS, encoding="utf-8")
    assert load_definition("mine", tmp_path).title == "Mine"
    assert load_definition("default", tmp_path).title == "Mine"
    assert load_definition("default").title != "Mine"


def test_a_definition_decides_title_views_and_their_texts(tmp_path):
    path = tmp_path / "mine.toml"
    path.write_text(TWO_VIEWS, encoding="utf-8")
    records = write_run(tmp_path / "run", [record("sdpa", Problem.of(seqlen=128))])
    rendered = render([records], tmp_path / "out", report=str(path))
    html = rendered.page.read_text(encoding="utf-8")
    assert "<h1>Mine</h1>" in html
    assert html.count("<section") == 2
    assert "How long" in html
    assert "Shorter is better." in html
    assert rendered.figures == ()
    other = render([records], tmp_path / "out", report=str(path), title="Théirs <b>")
    assert "<h1>Théirs &lt;b&gt;</h1>" in other.page.read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("titel = 'x'\nviews = []", ["key 'titel'", "did you mean 'title'"]),
        ("[[views]]\nview = 'latancy'", ["view 'latancy'", "did you mean 'latency'"]),
        ("[[views]]\nview = 'latency'\nscle = 'log'", ["'latency'", "did you mean 'scale'"]),
        ("[[views]]\nview = 'latency'\nscale = 'cubic'", ["views.0.scale", "'cubic'"]),
        ("[[views]]\nview = 'support'\nfigure = true", ["key 'figure'"]),
        ("axis = 'seqlen_p'\n[[views]]\nview = 'support'", ["axis", "did you mean 'seqlen_q'"]),
        ("views = 3", ["[[views]]"]),
        ("views = []", ["views"]),
        ("[[views]]\ntitle = 'x'", ["unknown view None"]),
        ("title = [1]\n[[views]]\nview = 'support'", ["title"]),
        ("title = ", ["cannot be read"]),
    ],
)
def test_a_wrong_definition_is_refused_in_one_line_that_names_the_file(tmp_path, text, words):
    path = tmp_path / "mine.toml"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(UserError) as caught:
        load_definition(str(path))
    told = str(caught.value)
    assert "\n" not in told
    assert str(path) in told
    for word in words:
        assert word in told


def test_an_unknown_report_is_refused_with_the_nearest_name(tmp_path):
    with pytest.raises(UserError, match="did you mean 'default'"):
        load_definition("defualt")
    with pytest.raises(UserError, match="no such report definition"):
        load_definition(str(tmp_path / "gone.toml"))


def test_settings_are_read():
    views = [{"view": "error", "measure": "max_abs", "relative_to": "nothing"}]
    (view,) = parse_definition({"views": views}, "x").views
    assert (view.measure, view.relative_to) == ("max_abs", "nothing")
