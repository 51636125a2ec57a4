"""The page in a real browser, where there is one: scripts run, charts are drawn, filters act.

Headless Chromium loads the page with every host name blackholed and prints its document
after the scripts ran.
"""

import re
import shutil
import subprocess

import pytest
from made_records import record as single
from made_records import trained, write
from synthetic_records import sweep, write_run

from attnbench.report import render
from attnbench.train.workload import Workload

CHROMIUM = next(
    filter(None, map(shutil.which, ("google-chrome", "chromium", "chromium-browser"))), None
)
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine")
FLAGS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-sync",
    "--host-resolver-rules=MAP * ~NOTFOUND", "--window-size=1400,20000", "--enable-logging=stderr",
    "--virtual-time-budget=5000", "--dump-dom",
)  # fmt: skip
PLAIN = """
[[views]]
view = "verdicts"
[[views]]
view = "rate"
figure = false
[[views]]
view = "error"
figure = false
[[views]]
view = "support"
"""


@pytest.fixture(scope="module")
def show(tmp_path_factory):
    """A function from the filters in the address to (document, what the console said)."""
    folder = tmp_path_factory.mktemp("browser")
    (folder / "plain.toml").write_text(PLAIN, encoding="utf-8")
    records = write_run(folder, sweep())
    page = render([records], folder / "out", report=str(folder / "plain.toml")).page

    def browse(address):
        command = [CHROMIUM, *FLAGS, f"--user-data-dir={folder / 'profile'}", address]
        return subprocess.run(command, capture_output=True, text=True, timeout=60)

    if "<html>" not in browse("about:blank").stdout:
        pytest.skip(f"{CHROMIUM} does not start here")

    def show(filters="", shown=page):
        run = browse(f"{shown.as_uri()}{filters}")
        assert run.returncode == 0, run.stderr
        return run.stdout, [line for line in run.stderr.splitlines() if "CONSOLE" in line]

    return show


def visible(html, tag, name):
    """Opening tags of a class that are not hidden."""
    return [t for t in re.findall(rf'<{tag} class="{name}[^>]*>', html) if " hidden" not in t]


def test_all_charts_are_drawn_and_nothing_complains(show):
    html, console = show()
    assert console == []
    assert len(visible(html, "figure", "panel")) == 16
    assert len(re.findall(r'<svg[^>]*class="marks"', html)) == 16
    assert len(visible(html, "article", "card")) == 8


def test_filters_in_the_address_act_on_charts_and_cards(show):
    html, console = show("#impl=flex&dtype=bfloat16&direction=backward")
    assert console == []
    assert len(visible(html, "figure", "panel")) == 4
    assert len(re.findall(r'<svg[^>]*class="marks"', html)) == 4
    cards = re.findall(r'<article class="card[^>]*>.*?</article>', html, re.S)
    shown = [card for card in cards if " hidden" not in card.split(">", 1)[0]]
    assert len(shown) == 2
    for card in shown:
        winner = re.search(r'class="winner">(.*?)</p>', card, re.S)[1]
        assert "flex" in winner
        assert "sdpa" not in winner
    pressed = re.findall(r'aria-pressed="true" value="([^"]*)"', html)
    assert pressed == ["flex", "backward", "bfloat16"]


def test_views_of_training_are_drawn_for_training_alone(tmp_path, show):
    """A page of both kinds: the chosen suite decides which views there are."""
    runs = [trained(name, Workload(model=model)) for name in ("naive", "quick")
            for model in ("gpt2-tiny", "llama-tiny")]  # fmt: skip
    write(tmp_path, [single(implementation="naive"), *runs])
    views = ("rate", "throughput", "breakdown", "parity", "quality", "support")
    text = "".join(f'[[views]]\nview = "{view}"\n' for view in views)
    for view in ("rate", "throughput", "parity"):
        text = text.replace(f'"{view}"\n', f'"{view}"\nfigure = false\n')
    (tmp_path / "plain.toml").write_text(text, encoding="utf-8")
    page = render([tmp_path], tmp_path / "out", report=str(tmp_path / "plain.toml")).page
    for filters, shown, charts in (
        ("#suite=quick", {"rate", "support"}, 1),
        ("#suite=train-tiny&model=gpt2-tiny&impl=quick", set(views) - {"rate"}, 4),
    ):
        html, console = show(filters, page)
        assert console == []
        tags = re.findall(r'<section [^>]*class="view view-(\w+)"[^>]*>', html)
        hidden = re.findall(r'<section [^>]*class="view view-(\w+)"[^>]* hidden', html)
        assert set(tags) - set(hidden) == shown, filters
        assert len(re.findall(r'<svg[^>]*class="marks"', html)) == charts, filters


def test_a_filter_that_nothing_matches_is_ignored(show):
    html, console = show("#impl=nobody&dtype=float7")
    assert console == []
    assert len(visible(html, "figure", "panel")) == 16
