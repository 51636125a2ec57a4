"""The page: whole in one file, the same bytes for the same records, safe with any record."""

import base64
import hashlib
import json
import re
from html.parser import HTMLParser

import pytest
import vl_convert
from synthetic_records import ENVIRONMENT, environment_address, record, sweep, write_run

from attnbench.problem import Problem
from attnbench.report.definition import load_definition
from attnbench.report.page import embed, page
from attnbench.report.points import current, load_points
from attnbench.report.style import looks
from attnbench.report.sweep import scopes

PROBLEM = Problem.of(heads=8, head_dim=64, seqlen=128)
HOSTILE = "</script><script>alert(1)</script><!--<img src=x onerror=alert(2)>\u2028'\"&{{7*7}}"


def render_page(folder, records, **changes):
    """The page of some records, without figures."""
    path = write_run(folder, records, **changes)
    return page_of([path])


def page_of(paths):
    loaded = load_points(paths)
    points, told = current(loaded.points)
    definition = load_definition("default")
    problems = (*loaded.problems, *told)
    return page(definition, scopes(points), looks(points), loaded.environments, problems)


@pytest.fixture(scope="module")
def quick(tmp_path_factory):
    return render_page(tmp_path_factory.mktemp("quick"), sweep())


class Elements(HTMLParser):
    """Every element with its attributes, and the text outside scripts and styles."""

    def __init__(self, text):
        super().__init__()
        self.found, self.words, self._skip = [], [], False
        self.feed(text)
        self.close()

    def handle_starttag(self, tag, attributes):
        self.found.append((tag, dict(attributes)))
        self._skip = tag in ("script", "style")

    def handle_endtag(self, tag):
        self._skip = False

    def handle_data(self, data):
        if not self._skip:
            self.words.append(data)

    def every(self, tag, name=None, value=None):
        return [a for t, a in self.found if t == tag and (name is None or a.get(name) == value)]


def data_of(html):
    (found,) = re.findall(r'<script type="application/json" id="data">(.*?)</script>', html, re.S)
    return json.loads(found)


def words_of(html):
    return " ".join(" ".join(Elements(html).words).split())


# ---- one file, no network ------------------------------------------------------------------


def test_the_page_loads_nothing(quick):
    elements = Elements(quick)
    for tag, attributes in elements.found:
        for name in ("src", "srcset", "data", "action", "poster", "background"):
            assert name not in attributes, (tag, attributes)
        if "href" in attributes:
            assert attributes["href"].startswith("#")
    assert not elements.every("link")
    assert "@import" not in quick
    assert not re.search(r"url\(\s*['\"]?(?!#)", quick.split("<script", 1)[0])
    assert len(quick.encode()) < 1_600_000


def test_the_policy_allows_the_pages_own_scripts_and_no_request(quick):
    (policy,) = [
        a["content"] for a in Elements(quick).every("meta", "http-equiv", "Content-Security-Policy")
    ]
    assert "default-src 'none'" in policy
    assert "unsafe-eval" not in policy
    scripts = re.findall(r"<script>(.*?)</script>", quick, re.S)
    assert len(scripts) == 2
    for script in scripts:
        digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
        assert f"'sha256-{digest}'" in policy
    assert "'unsafe-inline'" not in policy.split("script-src")[1].split(";")[0]


# ---- determinism ----------------------------------------------------------------------------


def test_the_same_records_give_the_same_bytes_in_any_order_of_lines_and_files(tmp_path, quick):
    records = sweep()
    assert render_page(tmp_path / "again", records) == quick
    assert render_page(tmp_path / "backwards", records[::-1]) == quick
    write_run(tmp_path / "split", records[::2], name="b.jsonl")
    write_run(tmp_path / "split", records[1::2], name="a.jsonl")
    assert page_of([tmp_path / "split"]) == quick


def test_another_record_gives_another_page(tmp_path, quick):
    changed = [*sweep()[:-1], record("flex", PROBLEM, suite="other")]
    assert render_page(tmp_path, changed) != quick


# ---- untrusted records ------------------------------------------------------------------------


def test_hostile_text_in_a_record_stays_text(tmp_path):
    bad = record(
        "naive", PROBLEM, status="crash", reason=HOSTILE, log_tail=HOSTILE, command=HOSTILE,
        title=HOSTILE, suite=HOSTILE, device=HOSTILE, baseline="naive",
    )  # fmt: skip
    named = bad.implementation.model_copy(update={"name": HOSTILE, "origin": HOSTILE})
    environment = {"identity": {"hardware": {"cpu": HOSTILE}}, "context": {HOSTILE: HOSTILE}}
    changes = {"implementation": named, "environment": environment_address(environment)}
    html = render_page(tmp_path, [bad.model_copy(update=changes)], environment=environment)
    elements = Elements(html)
    assert len(elements.every("script")) == 3
    assert not elements.every("img")
    assert not any(name.startswith("on") for _, a in elements.found for name in a)
    assert HOSTILE in "".join(elements.words)
    assert "7*7" in html
    assert data_of(html)["looks"][0]["name"] == HOSTILE


@pytest.mark.parametrize("text", ["</script>", "<!--", "]]>", "\u2028\u2029", "&amp;"])
def test_embedded_json_has_no_character_that_html_or_javascript_minds(text):
    embedded = str(embed({text: text}))
    assert not set(embedded) & set("<>&\u2028\u2029")
    assert json.loads(embedded) == {text: text}


def test_embedded_json_refuses_what_is_not_a_number():
    with pytest.raises(ValueError, match="not JSON compliant"):
        embed({"x": float("nan")})


# ---- what is on it ------------------------------------------------------------------------------


def test_every_view_every_status_and_every_reason_is_on_the_page(quick):
    elements = Elements(quick)
    definition = load_definition("default")
    sections = elements.every("section")
    others = sum("attention" not in view.kinds for view in definition.views)
    hidden = 2 + others  # nothing approximate: no pareto; nobody made attention pictures
    assert len(sections) == len(definition.views) - hidden
    words = words_of(quick)
    for one in sweep():
        if one.status in ("crash", "oom", "timeout", "unsupported"):
            assert one.reason in words
    assert "Fatal Python error" in words
    for text in ("Imaginary Processor 9000", "2.13.0+cpu", "git.dirty", "attnbench run quick"):
        assert text in words


def test_what_an_implementation_chose_is_told_of_its_point(tmp_path):
    plain, tuned = record("naive", PROBLEM), record("triton", PROBLEM)
    choices = {"forward": "128x64 w8 s3 tiles (tuned)", "split": 4}
    named = tuned.implementation.model_copy(update={"choices": choices})
    html = render_page(tmp_path, [plain, tuned.model_copy(update={"implementation": named})])
    (scope,) = data_of(html)["scopes"]
    assert set(scope["rows"]["choices"]) == {
        None, "forward: 128x64 w8 s3 tiles (tuned); split: 4",
    }  # fmt: skip


def test_a_verdict_names_the_fastest_and_a_tie_names_all(tmp_path):
    backward = PROBLEM.replace(direction="backward")
    records = [
        record("naive", PROBLEM, rate=10), record("sdpa", PROBLEM, rate=100),
        record("naive", backward, rate=50.0), record("sdpa", backward, rate=50.01),
        record("cheat", PROBLEM, status="incorrect"),
    ]  # fmt: skip
    html = render_page(tmp_path, records)
    cards = re.findall(r'<article class="card".*?</article>', html, re.S)
    first, second = (words_of(card) for card in cards)
    assert "forward" in first
    assert "sdpa 336 µs" in first
    assert "next: naive , 10.0× the time" in first
    assert "cheat" not in first
    assert 'class="tie" hidden' in cards[0]
    assert "naive" in second
    assert "sdpa" in second
    assert 'class="tie" hidden' not in cards[1]


def test_cells_without_a_time_have_no_number_and_say_why(quick):
    cells = re.findall(r'<td data-x="[^"]*" class="is-([a-z-]+)[^>]*>([^<]*)</td>', quick)
    statuses = {status for status, _ in cells}
    assert statuses >= {"ok", "incorrect", "unsupported", "oom", "crash", "timeout", "no-baseline"}
    for status, text in cells:
        assert ("×" in text) == (status == "ok")
        assert text if status != "none" else not text


def test_rows_hold_what_the_records_say_and_null_where_they_say_nothing(quick):
    (scope,) = data_of(quick)["scopes"]
    rows = scope["rows"]
    assert {len(column) for column in rows.values()} == {len(sweep())}
    for status, latency, memory in zip(
        rows["status"], rows["latency"], rows["memory"], strict=True
    ):
        assert (latency is None) == (status != "ok")
        assert (memory is None) == (status != "ok")
    by_id = {one.id: one for one in sweep()}
    for id_, latency, command in zip(rows["id"], rows["latency"], rows["command"], strict=True):
        one = by_id[id_]
        assert scope["command"] + command == one.command
        if one.samples:
            assert latency[0] == pytest.approx(one.samples.median_s, rel=1e-5)


def test_an_interval_wider_than_asked_for_is_told(tmp_path):
    one = record("sdpa", PROBLEM)
    samples = one.samples.model_copy(update={"converged": False})
    settled = record("naive", PROBLEM)
    steady = settled.samples.model_copy(update={"converged": True})
    records = [
        one.model_copy(update={"samples": samples}),
        settled.model_copy(update={"samples": steady}),
    ]
    html = render_page(tmp_path, records)
    assert "1 interval wider than asked for" in words_of(html)
    rows = data_of(html)["scopes"][0]["rows"]
    assert sorted(zip(rows["impl"], rows["wide"], strict=True)) == [(0, None), (1, 1)]


def test_filters_offer_what_tells_points_apart(quick, tmp_path):
    offered = [a["data-filter"] for a in Elements(quick).every("fieldset")]
    assert offered == ["impl", "direction", "dtype", "mask"]
    alone = render_page(tmp_path, [record("sdpa", PROBLEM), record("naive", PROBLEM)])
    assert [a["data-filter"] for a in Elements(alone).every("fieldset")] == ["impl"]


def test_an_implementation_looks_the_same_everywhere_and_the_baseline_is_ink(quick):
    told = {look["name"]: look for look in data_of(quick)["looks"]}
    assert told["naive"]["color"] == "ink"
    others = [(k["color"], k["shape"]) for name, k in told.items() if name != "naive"]
    assert len({color for color, _ in others}) == len(others)
    assert len({shape for _, shape in others}) == len(others)


def test_looks_depend_on_names_alone(tmp_path):
    points = load_points([write_run(tmp_path, sweep())]).points
    assert looks(points) == looks(points[::-1]) == looks(points[7:] + points[:7])
    assert list(looks(points)) == list(looks(points[::-1]))


def test_many_implementations_never_look_alike(tmp_path):
    records = [record(f"impl-{i}", PROBLEM) for i in range(40)]
    told = data_of(render_page(tmp_path, records))["looks"]
    assert len({(k["color"], k["shape"], tuple(k["dash"])) for k in told}) == 40


# ---- charts, drawn without a browser -----------------------------------------------------


def test_an_interval_over_powers_of_ten_does_not_flatten_the_others(tmp_path):
    plain = record("sdpa", Problem.of(seqlen=128))
    wide = plain.samples.model_copy(
        update={"median_s": 3e-3, "low_s": 6.5e-13, "high_s": 1.3e7, "converged": False}
    )
    records = [plain.model_copy(update={"samples": wide}), record("naive", Problem.of(seqlen=128))]
    html = page_of([write_run(tmp_path, records)])
    rows = data_of(html)["scopes"][0]["rows"]
    at = next(i for i, text in enumerate(rows["time_text"]) if text.startswith("3.00 ms"))
    assert "1.3" in rows["time_text"][at], "the text has it whole"
    assert rows["latency"][at] == [3e-3, 3.75e-4, 2.4e-2]
    median, low, high = rows["rate"][at]
    assert low == pytest.approx(median / 8, rel=1e-4)
    assert high == pytest.approx(8 * median, rel=1e-4)


def draw(html, view):
    """One chart of the first panel, as SVG, from the specification and rows of the page."""
    data = data_of(html)
    scope = data["scopes"][0]
    chart = next(c for c in scope["charts"].values() if c["measure"] == view)
    columns = scope["rows"]
    marks = []
    for i, panel in enumerate(columns["panel"]):
        value = columns[view][i]
        if panel == 0 and value:
            y, low, high = (v / chart["size"] for v in value)
            look = data["looks"][columns["impl"][i]]
            mark = {"impl": look["name"], "color": "#123456", "shape": look["shape"]}
            marks.append(
                mark | {"dash": look["dash"], "x": columns["x"][i], "failed": False,
                        "y": y, "lo": low, "hi": high}
            )  # fmt: skip
    spec = {**chart["spec"], "width": 300, "datasets": {"rows": marks}}
    spec.setdefault("height", 200)
    return vl_convert.vegalite_to_svg(spec)


@pytest.mark.parametrize(
    ("view", "label"), [("rate", "GFLOPS"), ("latency", "ms"), ("memory", "MiB")]
)
def test_lines_have_seqlens_at_powers_of_two_and_readable_units(quick, view, label):
    svg = draw(quick, view)
    texts = re.findall(r">([^<>]+)</text>", svg)
    assert [t for t in texts if t in ("128", "256", "512", "1k")] == ["128", "256", "512", "1k"]
    assert "seqlen" in texts
    assert any(label in text for text in texts)
    assert "NaN" not in svg


def test_the_error_chart_always_shows_the_tolerance(quick):
    (chart,) = [c for c in data_of(quick)["scopes"][0]["charts"].values() if c["kind"] == "error"]
    marks = [
        {"impl": "naive", "color": "#123", "shape": "circle", "tensor": tensor, "y": 0.03,
         "allowed": 1e-3, "wrong": False}
        for tensor in ("out", "dq")
    ]  # fmt: skip
    spec = {**chart["spec"], "width": 300, "height": 80, "datasets": {"rows": marks}}
    svg = vl_convert.vegalite_to_svg(spec)
    texts = re.findall(r">([^<>]+)</text>", svg)
    assert "1" in texts  # far from the marks, and yet on the axis
    assert "relative L2 error ÷ tolerance" in texts
    assert {"out", "dq"} <= set(texts)


def test_a_list_of_dtypes_is_drawn_in_bands(tmp_path):
    records = [
        record(name, PROBLEM.replace(dtype=dtype))
        for name in ("naive", "sdpa")
        for dtype in ("float32", "float16")
    ]
    svg = draw(render_page(tmp_path, records), "latency")
    texts = re.findall(r">([^<>]+)</text>", svg)
    assert texts.count("float32") == 1
    assert texts.count("float16") == 1


# ---- edge cases ----------------------------------------------------------------------------


def test_no_records_make_a_page_that_says_so(tmp_path):
    html = render_page(tmp_path, [])
    assert "There are no records" in words_of(html)
    assert data_of(html)["scopes"] == []


def test_one_record_makes_a_page(tmp_path):
    html = render_page(tmp_path, [record("sdpa", PROBLEM, baseline="")])
    assert "sdpa" in words_of(html)
    assert "1 ok" in words_of(html)


def test_forward_alone_makes_a_page_without_direction_in_titles(tmp_path):
    html = render_page(tmp_path, sweep(directions=["forward"]))
    assert [p["title"] for p in data_of(html)["scopes"][0]["panels"]] == [
        "float32 · full", "float32 · causal", "bfloat16 · full", "bfloat16 · causal",
    ]  # fmt: skip


def test_when_all_is_unsupported_nobody_wins(tmp_path):
    problems = [PROBLEM.replace(seqlen_q=n, seqlen_k=n) for n in (128, 256)]
    records = [record(n, p, status="unsupported") for n in ("naive", "flex") for p in problems]
    words = words_of(render_page(tmp_path, records))
    assert "nobody" in words
    assert "does not do the backward pass" in words


def test_a_newer_minor_schema_makes_a_page(tmp_path):
    path = write_run(tmp_path, [record("sdpa", PROBLEM), record("naive", PROBLEM)])
    text = path.read_text(encoding="utf-8").replace('"1.0.0"', '"1.7.0","mood":"good"')
    path.write_text(text, encoding="utf-8")
    assert "2 ok" in words_of(page_of([path]))


def test_huge_and_tiny_values_make_a_page_without_nan(tmp_path):
    records = [
        record("naive", PROBLEM, rate=1e12), record("sdpa", PROBLEM, rate=1e-9),
        record("flex", PROBLEM, rate=1e-30), record("fast", PROBLEM, rate=1e40),
    ]  # fmt: skip
    html = render_page(tmp_path, records)
    shown = json.dumps(data_of(html)) + words_of(html)
    for word in ("NaN", "Infinity", " inf", "nan "):
        assert word not in shown


def test_names_in_any_script_survive(tmp_path):
    one = record("sdpa", PROBLEM)
    named = one.implementation.model_copy(update={"name": "注意力-внимание-🙂"})
    html = render_page(tmp_path, [one.model_copy(update={"implementation": named})])
    assert "注意力-внимание-🙂" in words_of(html)


def test_suites_machines_and_devices_are_chosen_and_never_shown_together(tmp_path):
    gpu = {**ENVIRONMENT, "identity": {"hardware": {"gpu": "Imaginary GPU 1"}}}
    address = environment_address(gpu)
    write_run(tmp_path, [record("sdpa", PROBLEM), record("sdpa", PROBLEM, suite="two")])
    records = [record("sdpa", PROBLEM, environment=address, device=f"cuda:{i}") for i in (0, 1)]
    write_run(tmp_path, records, name="gpu.jsonl", environment=gpu)
    html = page_of([tmp_path])
    labels = re.findall(r"<option[^>]*>([^<]*)</option>", html)
    assert len(labels) == len(set(labels)) == 4
    assert sum("Imaginary GPU 1" in label for label in labels) == 2
    assert len(data_of(html)["scopes"]) == 4
    hidden = re.findall(r'<div data-scope="(\d)"( hidden)?>', html)
    assert all((number != "0") == bool(is_hidden) for number, is_hidden in hidden)


def test_environments_of_one_machine_show_where_they_differ(tmp_path):
    later = {**ENVIRONMENT, "context": {"git": {"commit": "ffff", "dirty": False}}}
    write_run(tmp_path, [record("sdpa", PROBLEM)])
    one = record("naive", PROBLEM, environment=environment_address(later))
    write_run(tmp_path, [one], name="later.jsonl", environment=later)
    html = page_of([tmp_path])
    assert len(data_of(html)["scopes"]) == 1
    differing = re.findall(r'<tr class="differs"><th scope="row">([^<]*)</th>', html)
    assert differing == ["git.commit", "git.dirty", "os"]


def test_what_was_left_out_is_told_on_the_page(tmp_path):
    path = write_run(tmp_path, [record("sdpa", PROBLEM)], environment=None)
    with path.open("a", encoding="utf-8") as file:
        file.write("rubbish <b>\n")
    words = words_of(page_of([path]))
    assert "2 things to know" in words
    assert "rubbish" in words or "not JSON" in words
