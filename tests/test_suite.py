"""What cannot be meant is refused in one line; what can is read to the last key."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from attnbench import shelves
from attnbench.errors import UserError
from attnbench.presets import PRESETS
from attnbench.suite import Suite, find_suite, list_suites, load_suite

SHIPPED = {
    "approximation": 6, "d_model": 16, "decode": 32, "full": 592, "generate-gpu": 4,
    "generate-tiny": 9, "gpu": 104,
    "gqa": 40, "heads": 16, "layer": 50, "lowrank": 8, "models": 22, "precision": 48,
    "quality": 4, "quick": 24, "seqlen": 40, "sparse": 6, "train-gpu": 3, "train-parallel": 3,
    "train-tiny": 4,
    "triton": 32, "tune-tiny": 1, "window": 36,
}  # fmt: skip


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path


def load(folder: Path, text: str, *overrides: str, head: str = 'title = "T"\n') -> Suite:
    path = folder / "s.toml"
    path.write_text(head + text)
    return load_suite(path, overrides)


def refusal(folder: Path, text: str, *overrides: str, head: str = 'title = "T"\n') -> str:
    """The one line that tells why."""
    with pytest.raises(UserError) as caught:
        load(folder, text, *overrides, head=head)
    told = str(caught.value)
    assert "\n" not in told
    return told


# ---- keys --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "where", "key", "nearest"),
    [
        ("[gird]\nseqlen = 8", "s.toml: ", "gird", "grid"),
        ('tilte = "x"\n[grid]\nseqlen = 8', "s.toml: ", "tilte", "title"),
        ("[grid]\nseqlne = 8", "s.toml: [grid]: ", "seqlne", "seqlen"),
        ("[[points]]\nhaed_dim = 8", "s.toml: [[points]]: ", "haed_dim", "head_dim"),
        ("[grid]\nseqlen = 8\n[measure]\nmax_seconds = 1", "s.toml: [measure]: ", "max_seconds",
         "max_s"),
        ("[grid]\nseqlen = 8\n[verify]\nsede = 1", "s.toml: [verify]: ", "sede", "seed"),
    ],
)  # fmt: skip
def test_an_unknown_key_is_refused_with_file_table_and_nearest_name(
    folder: Path, text: str, where: str, key: str, nearest: str
) -> None:
    told = refusal(folder, text)
    assert told.startswith(f"{folder}/{where}unknown key {key!r}; allowed: ")
    assert told.endswith(f"did you mean {nearest!r}?")


def test_a_key_far_from_every_name_gets_no_wild_suggestion(folder: Path) -> None:
    assert "did you mean" not in refusal(folder, "[grid]\nzzz = 8")


def test_a_missing_title_is_told(folder: Path) -> None:
    assert refusal(folder, "[grid]\nseqlen = 8", head="").endswith("s.toml: title is missing")


# ---- empty -------------------------------------------------------------------------------


@pytest.mark.parametrize("text", ["", "[grid]", "points = []"])
def test_a_suite_with_nothing_to_measure_is_refused(folder: Path, text: str) -> None:
    assert "nothing to measure; it needs a [grid] or [[points]]" in refusal(folder, text)


@pytest.mark.parametrize("text", ["[[points]]", "[[points]]\n[grid]\nseqlen = 8"])
def test_a_point_without_a_key_is_refused(folder: Path, text: str) -> None:
    assert "[[points]]: is empty" in refusal(folder, text)


def test_an_empty_list_is_refused_with_its_key(folder: Path) -> None:
    told = refusal(folder, "[grid]\nseqlen = []\nheads = 4")
    assert "s.toml: [grid]: seqlen is an empty list" in told


def test_no_implementation_is_refused(folder: Path) -> None:
    assert "s.toml: impls is empty" in refusal(folder, "impls = []\n[grid]\nseqlen = 8")


# ---- values ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("grid", "reason", "seen"),
    [
        ("d_model = 100\nheads = [4, 3]", "d_model 100 is not divisible by heads 3", "heads = 3"),
        ("heads_q = 8\nheads_kv = [4, 3]", "heads_q 8 is not a multiple of heads_kv 3",
         "heads_kv = 3"),
        ('mask = {kind = "window", window = 0}', "window must be positive, got 0", '"window": 0'),
        ('mask = "window:window=-1"', "window must be positive, got -1", "window=-1"),
        ('dtype = "float31"', "unknown dtype 'float31'; allowed: float64, ", "float31"),
        ('dtype = "float31"', "did you mean 'float32'?", "float31"),
        ('mask = "casual"', "did you mean 'causal'?", "casual"),
        ('mask = {kind = "window", windwo = 3}', "did you mean 'window'?", "windwo"),
        ('direction = "foward"', "did you mean 'forward'?", "foward"),
        ("seqlen = 8\nseqlen_q = 9", "give either seqlen or seqlen_q", "seqlen_q = 9"),
        ("heads = 8\nheads_q = 4", "give either heads or heads_q", "heads_q = 4"),
        ("d_model = 64\nhead_dim = 8", "give either d_model or head_dim", "head_dim = 8"),
        ("seqlen = -8", "must be a positive integer, got -8", "seqlen = -8"),
        ('seqlen = "8"', "must be a positive integer, got '8'", 'seqlen = "8"'),
        ("seqlen = 8.0", "must be a positive integer, got 8.0", "seqlen = 8.0"),
        ("seqlen = [[8]]", "must be a positive integer, got [8]", "seqlen = [8]"),
        ("batch = true", "must be a positive integer, got True", "batch = true"),
        ("dropout_p = 1.0", "dropout_p must be a finite number ≥ 0 and < 1", "dropout_p = 1.0"),
        ('decode = true\ndirection = "both"', "decode has no backward", "decode = true"),
    ],
)  # fmt: skip
def test_an_impossible_combination_is_refused_with_reason_and_values(
    folder: Path, grid: str, reason: str, seen: str
) -> None:
    told = refusal(folder, f"[grid]\n{grid}")
    assert told.startswith(f"{folder}/s.toml: [grid]: ")
    assert reason in told
    assert seen in told.split(" (in ", 1)[1]


@pytest.mark.parametrize("value", ["3", "{a = 1}", "true"])
def test_a_preset_that_is_no_name_is_refused(folder: Path, value: str) -> None:
    assert "[[points]]: unknown preset " in refusal(folder, f"[[points]]\npreset = {value}")


def test_a_misspelt_preset_is_refused_with_the_nearest(folder: Path) -> None:
    told = refusal(folder, '[[points]]\npreset = "llama-3-8c"')
    assert "[[points]]: unknown preset 'llama-3-8c'; allowed: gpt2, " in told
    assert told.endswith("did you mean 'llama-3-8b'?")


@pytest.mark.parametrize(
    ("measure", "told"),
    [
        ('min_rounds = "5"', 'min_rounds = "5": should be a valid integer'),
        ("samples = 2.5", "samples = 2.5: should be a valid integer"),
        ("samples = true", "samples = true: should be a valid integer"),
        ("precision = 2.0", "precision = 2.0: should be less than 1"),
        ("max_s = 0", "max_s = 0: should be greater than 0"),
        ("max_s = inf", "max_s = Infinity: should be a finite number"),
        ("timeout_s = nan", "timeout_s = NaN: should be a finite number"),
    ],
)
def test_a_wrong_setting_is_refused_with_table_key_and_value(
    folder: Path, measure: str, told: str
) -> None:
    text = f"[grid]\nseqlen = 8\n[measure]\n{measure}"
    assert refusal(folder, text) == f"{folder}/s.toml: [measure]: {told}"


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ('impls = "*"\n[grid]\nseqlen = 8', 'impls = "*": should be a valid list'),
        ('impls = ["a", 3]\n[grid]\nseqlen = 8', "impls.1 = 3: should be a valid string"),
        ("grid = 3", "grid = 3: should be a valid dictionary"),
        ("[points]\nseqlen = 8", 'points = {"seqlen": 8}: should be a valid list'),
    ],
)
def test_a_wrong_type_at_the_top_is_refused(folder: Path, text: str, told: str) -> None:
    assert refusal(folder, text) == f"{folder}/s.toml: {told}"


def test_a_syntax_error_is_told_with_its_line(folder: Path) -> None:
    told = refusal(folder, "[grid\nseqlen = 8")
    assert told.startswith(f"{folder}/s.toml: not valid TOML: ")
    assert "line 2" in told


def test_a_file_that_is_not_utf8_is_refused(folder: Path) -> None:
    path = folder / "s.toml"
    path.write_bytes('title = "é"'.encode("latin-1"))
    with pytest.raises(UserError, match="not valid TOML"):
        load_suite(path)


# ---- expansion ---------------------------------------------------------------------------


def test_a_grid_is_every_combination_once_in_order(folder: Path) -> None:
    suite = load(folder, "[grid]\nseqlen = [8, 16, 8]\nheads = [2, 4]\nhead_dim = 8")
    assert [(p.seqlen_q, p.heads_q) for p in suite.problems] == [(8, 2), (8, 4), (16, 2), (16, 4)]


def test_points_take_lists_and_join_the_grid_without_repeating_it(folder: Path) -> None:
    suite = load(
        folder,
        "[grid]\nseqlen = 8\nheads = 2\n"
        "[[points]]\nseqlen = [8, 16]\nheads = 2\n"
        '[[points]]\nseqlen = 32\ndtype = ["bf16", "float16"]',
    )
    shapes = [(p.seqlen_q, p.heads_q, p.dtype) for p in suite.problems]
    assert shapes == [
        (8, 2, "float32"), (16, 2, "float32"), (32, 8, "bfloat16"), (32, 8, "float16"),
    ]  # fmt: skip


def test_d_model_and_heads_give_head_dim(folder: Path) -> None:
    suite = load(folder, "[grid]\nd_model = 256\nheads = [2, 8]\nseqlen = 8")
    assert [(p.heads_q, p.head_dim, p.d_model) for p in suite.problems] == [
        (2, 128, 256), (8, 32, 256),
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("preset", "published"),
    [  # heads, key heads, width of the model, and what its attention is besides
        ("gpt2", (12, 12, 768, "causal", None)),
        ("bert-base", (12, 12, 768, "full", None)),
        ("llama-3-8b", (32, 8, 4096, "causal", None)),
        ("llama-3-70b", (64, 8, 8192, "causal", None)),
        ("mistral-7b", (32, 8, 4096, "window:window=4096", None)),
        ("vit-l", (16, 16, 1024, "full", None)),
        ("t5", (12, 12, 768, "full", 1.0)),
    ],
)
def test_presets_are_the_published_shapes(
    folder: Path, preset: str, published: tuple[Any, ...]
) -> None:
    (problem,) = load(folder, f'[[points]]\npreset = "{preset}"').problems
    mask, scale = str(problem.mask), problem.scale
    assert (problem.heads_q, problem.heads_kv, problem.d_model, mask, scale) == published


def test_every_preset_is_checked_above_and_vit_has_its_197_tokens(folder: Path) -> None:
    assert set(PRESETS) == {
        "gpt2", "bert-base", "llama-3-8b", "llama-3-70b", "mistral-7b", "vit-l", "t5",
    }  # fmt: skip
    (problem,) = load(folder, '[[points]]\npreset = "vit-l"').problems
    assert (problem.seqlen_q, problem.seqlen_k) == (197, 197)


@pytest.mark.parametrize(
    ("keys", "shape"),
    [  # heads_q, heads_kv, head_dim, seqlen_q, seqlen_k
        ("seqlen = 64", (16, 16, 64, 64, 64)),
        ("seqlen_q = 1\nseqlen_k = 50", (16, 16, 64, 1, 50)),
        ("heads = 4", (4, 4, 64, 197, 197)),
        ("heads_kv = 2", (16, 2, 64, 197, 197)),
        ("d_model = 512", (16, 16, 32, 197, 197)),
        ("head_dim = 32", (16, 16, 32, 197, 197)),
    ],
)
def test_a_key_beside_a_preset_wins(folder: Path, keys: str, shape: tuple[int, ...]) -> None:
    (p,) = load(folder, f'[[points]]\npreset = "vit-l"\n{keys}').problems
    assert (p.heads_q, p.heads_kv, p.head_dim, p.seqlen_q, p.seqlen_k) == shape


# ---- --set -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("override", "field", "values"),
    [
        ("seqlen=16", "seqlen_k", [16]),
        ("seqlen=[16, 32]", "seqlen_q", [16, 32]),
        ("dtype=bf16", "dtype", ["bfloat16"]),
        ('dtype=["bf16", "fp16"]', "dtype", ["bfloat16", "float16"]),
        ("heads=4", "heads_kv", [4]),
        ("d_model=256", "head_dim", [32]),
        (" batch = 3", "batch", [3]),
    ],
)
@pytest.mark.parametrize("table", ["[grid]", "[[points]]"])
def test_set_replaces_a_key_and_its_rivals_in_grid_and_points(
    folder: Path, table: str, override: str, field: str, values: list[Any]
) -> None:
    text = f"{table}\nheads_q = 8\nheads_kv = 2\nhead_dim = 64\nseqlen = [8, 9]"
    seen = [getattr(p, field) for p in load(folder, text, override).problems]
    assert list(dict.fromkeys(seen)) == values


def test_set_reaches_measure_and_verify_and_the_last_wins(folder: Path) -> None:
    overrides = ("measure.max_s=2", "verify.seed=3", "measure.max_s=4")
    suite = load(folder, "[grid]\nseqlen = 8\n[measure]\nsamples = 7", *overrides)
    assert (suite.measure.max_s, suite.measure.samples, suite.verify.seed) == (4.0, 7, 3)


@pytest.mark.parametrize(
    ("override", "told"),
    [
        ("impls=[1]", "--set: unknown key 'impls'"),
        ("mesure.max_s=2", "unknown table 'mesure'; allowed: measure, verify; did you mean"),
        ("measure.maxs=2", "[measure]: unknown key 'maxs'"),
        ("measure.max_s=long", '[measure]: max_s = "long": should be a valid number'),
        ("seqlen", "--set 'seqlen': must look like key=value"),
        ("=3", "--set '=3': must look like key=value"),
        ("seqlen=", "must be a positive integer, got ''"),
    ],
)
def test_a_wrong_override_is_refused(folder: Path, override: str, told: str) -> None:
    assert told in refusal(folder, "[grid]\nseqlen = 8", override)


def test_a_key_of_no_problem_is_an_option_of_implementations(folder: Path) -> None:
    suite = load(folder, "[grid]\nseqlen = 8", "block=16", "interpret=true", "block=32")
    assert suite.options == {"block": 32, "interpret": True}
    assert suite.digest == load(folder, "[grid]\nseqlen = 8").digest  # ids of points have it


# ---- digest ------------------------------------------------------------------------------

BASE = "[grid]\nheads = 4\nseqlen = [8, 16]"


@pytest.mark.parametrize(
    "text",
    [
        f'baseline = "naive"\nimpls = ["naive"]\n{BASE}',
        f"# only a remark\n{BASE}",
        "[grid]\nheads_q = 4\nheads_kv = 4\nseqlen_q = 8\n[[points]]\nheads = 4\nseqlen = 16",
        f"{BASE}\n[measure]\nmax_s = 2.0\n[verify]\nseed = 0",
    ],
    ids=["who takes part", "remark", "spelling", "defaults told"],
)
def test_the_digest_stays_where_the_same_is_measured_the_same_way(folder: Path, text: str) -> None:
    same = load(folder, text, head='title = "Other"\n')
    assert same.digest == load(folder, BASE).digest


@pytest.mark.parametrize(
    "override",
    ["heads=2", "seqlen=8", "dtype=bf16", "mask=causal", "direction=both", "measure.max_s=3",
     "measure.samples=2", "verify.seed=1"],
)  # fmt: skip
def test_the_digest_changes_with_what_is_measured_and_how(folder: Path, override: str) -> None:
    assert load(folder, BASE, override).digest != load(folder, BASE).digest


# ---- shelves -----------------------------------------------------------------------------


def test_every_shipped_suite_loads_and_has_its_problems(folder: Path) -> None:
    loaded = {name: load_suite(path) for name, path in list_suites(folder).items()}
    assert {name: len(suite.problems) for name, suite in loaded.items()} == SHIPPED


def test_a_suite_is_found_by_name_or_by_file(folder: Path) -> None:
    own = folder / "own.toml"
    own.write_text("")
    assert find_suite("quick", folder) == shelves.builtin("suites") / "quick.toml"
    assert find_suite(str(own)) == own


def test_a_projects_suite_wins_over_a_built_in_one_of_its_name(folder: Path) -> None:
    (folder / "suites").mkdir()
    own = folder / "suites" / "quick.toml"
    own.write_text('title = "Mine"\n[grid]\nseqlen = 8\n')
    assert find_suite("quick", folder) == own
    assert set(list_suites(folder)) == set(SHIPPED)


def test_an_unknown_suite_is_refused_with_the_nearest(folder: Path) -> None:
    with pytest.raises(UserError, match=r"unknown suite 'quik'; .*did you mean 'quick'\?"):
        find_suite("quik", folder)


def test_a_missing_suite_file_is_refused(folder: Path) -> None:
    with pytest.raises(UserError, match=r"none\.toml: no such suite file"):
        find_suite(str(folder / "none.toml"))
