"""The plugin API: both forms work, and every lie about oneself is a fault, never an exception."""

from __future__ import annotations

import functools
import inspect
import re

import pytest
import torch

from attnbench import plugin
from attnbench.errors import UserError
from attnbench.inputs import make_inputs
from attnbench.plugin import FEATURES, USUAL_FEATURES, Attention, Unsupported, register
from attnbench.problem import Problem

CPU = torch.device("cpu")
SMALL = Problem.of(batch=2, heads=4, heads_kv=2, seqlen_q=5, seqlen_k=9, head_dim=16)


@pytest.fixture(autouse=True)
def _no_trace(monkeypatch):
    """Declarations of these tests are forgotten afterwards."""
    monkeypatch.setattr(plugin, "declared", [])


def only():
    """The one declaration of a test."""
    (declaration,) = plugin.declared
    return declaration


def textbook(q_BHMD, k_BGND, v_BGNE, problem):
    """softmax(q kᵀ · scale) v."""
    group = problem.heads_q // problem.heads_kv
    k_BHND, v_BHNE = (x.repeat_interleave(group, dim=1) for x in (k_BGND, v_BGNE))
    return (q_BHMD @ k_BHND.mT * problem.softmax_scale).softmax(-1) @ v_BHNE


# ---- the function form -----------------------------------------------------------------


def test_a_function_becomes_an_implementation():
    assert register("mine", masks=("full",), source="a paper")(textbook) is textbook
    declared = only()
    assert declared.fault is None
    assert (declared.name, declared.module) == ("mine", __name__)
    cls = declared.cls
    assert issubclass(cls, Attention)
    assert (cls.name, cls.kind, cls.layout) == ("mine", "exact", "BHSD")
    assert (cls.masks, cls.dtypes, cls.devices) == (("full",), None, None)
    assert (cls.features, cls.source, cls.version) == (USUAL_FEATURES, "a paper", None)
    assert cls.__doc__ == "softmax(q kᵀ · scale) v."
    assert cls.__module__ == __name__
    assert cls().flops(SMALL) == SMALL.flops()
    assert cls().exact_options(SMALL) is None

    call = cls().build(SMALL, CPU)
    qkv = make_inputs(SMALL, 0).qkv()
    assert torch.equal(call(*qkv), textbook(*qkv, SMALL))


def test_the_example_of_the_documentation_is_right():
    """For every mask, and for seqlen_q ≠ seqlen_k, where torch's own is_causal is not."""
    example = inspect.getdoc(plugin).split("::\n\n", 1)[1].split("The class form")[0]
    exec(compile(inspect.cleandoc(example), "example", "exec"), {"__name__": "example"})
    assert only().fault is None
    for mask in ("full", "causal", "window:window=3"):
        p = SMALL.replace(mask=mask)
        implementation = only().cls()
        implementation.supports(p, CPU)
        q, k, v = make_inputs(p, 0).qkv()
        hidden_MN = ~p.mask.dense(5, 9)
        k_BHND, v_BHNE = k.repeat_interleave(2, dim=1), v.repeat_interleave(2, dim=1)
        logits_BHMN = (q @ k_BHND.mT / 4).masked_fill(hidden_MN, float("-inf"))
        out = implementation.build(p, CPU)(q, k, v)
        torch.testing.assert_close(out, logits_BHMN.softmax(-1) @ v_BHNE)


def test_options_are_keyword_parameters_with_their_defaults_and_types():
    @register("mine")
    def mine(q, k, v, problem, *, block=64, share=0.5, fast=True, mode="auto"):
        return (block, share, fast, mode)

    cls = only().cls
    assert cls.options == {"block": 64, "share": 0.5, "fast": True, "mode": "auto"}
    assert cls().build(SMALL, CPU)(0, 0, 0) == (64, 0.5, True, "auto")
    told = cls(block=32, share=1, mode="max")
    assert told.options == {"block": 32, "share": 1.0, "fast": True, "mode": "max"}
    assert type(told.options["share"]) is float
    assert told.build(SMALL, CPU)(0, 0, 0) == (32, 1.0, True, "max")
    assert cls().options["block"] == 64  # another instance is not touched


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"blok": 3}, "mine: unknown option 'blok'; allowed: block, fast, mode; did you mean"),
        ({"block": 2.5}, "mine: option block must be of type int, got 2.5"),
        ({"block": True}, "mine: option block must be of type int, got True"),
        ({"block": "64"}, "mine: option block must be of type int, got '64'"),
        ({"fast": 1}, "mine: option fast must be of type bool, got 1"),
        ({"mode": 3}, "mine: option mode must be of type str, got 3"),
        ({"self": 3}, "mine: unknown option 'self'"),
    ],
)
def test_a_wrong_option_is_told(options, says):
    @register("mine")
    def mine(q, k, v, problem, *, block=64, fast=True, mode="auto"): ...

    with pytest.raises(UserError, match="^" + re.escape(says)):
        only().cls(**options)


@pytest.mark.parametrize("form", ["dense", "additive", "mask_mod"])
def test_the_mask_is_handed_over_in_the_form_asked_for_made_once(form):
    p = SMALL.replace(mask="causal", dtype="bf16")

    @register("mine", mask_as=form)
    def mine(q, k, v, problem, *, mask, block=64):
        return mask

    assert only().fault is None
    assert only().cls.options == {"block": 64}  # the mask is no option
    call = only().cls().build(p, CPU)
    mask = call(0, 0, 0)
    assert call(0, 0, 0) is mask
    if form == "mask_mod":
        assert bool(mask(0, 0, torch.tensor(0), torch.tensor(4)))  # bottom-right aligned
        assert not bool(mask(0, 0, torch.tensor(0), torch.tensor(5)))
    elif form == "dense":
        assert torch.equal(mask, p.mask.dense(5, 9))
    else:
        assert torch.equal(mask, p.mask.additive(5, 9, torch.bfloat16))


def test_a_full_mask_is_none_except_as_mask_mod():
    for form in ("dense", "additive", "mask_mod"):

        @register(f"mine-{form.replace('_', '-')}", mask_as=form)
        def mine(q, k, v, problem, *, mask):
            return mask

    dense, additive, mask_mod = (d.cls().build(SMALL, CPU)(0, 0, 0) for d in plugin.declared)
    assert dense is None
    assert additive is None
    assert bool(mask_mod(0, 0, torch.tensor(0), torch.tensor(8)))


def test_a_bias_that_the_dtype_cannot_hold_is_unsupported():
    @register("mine", mask_as="additive")
    def mine(q, k, v, problem, *, mask): ...

    with pytest.raises(Unsupported, match="float8_e4m3fn has no infinity"):
        only().cls().build(SMALL.replace(dtype="fp8", mask="causal"), CPU)


# ---- the class form --------------------------------------------------------------------


def test_a_class_becomes_an_implementation():
    @register("mine")
    class Mine(Attention):
        """Mine."""

        kind = "approximate"
        options = {"rank": 8}
        features = frozenset({"backward"})

        def build(self, problem, device):
            return lambda q, k, v: (self.options["rank"], problem, device)

        def exact_options(self, problem):
            return {"rank": problem.seqlen_k}

        def flops(self, problem):
            return 7

    declared = only()
    assert declared.fault is None
    assert declared.cls is Mine
    assert Mine.name == "mine"
    assert Mine(rank=3).build(SMALL, CPU)(0, 0, 0) == (3, SMALL, CPU)
    assert Mine().exact_options(SMALL) == {"rank": 9}
    assert Mine().flops(SMALL) == 7


def test_subclasses_are_implementations_of_their_own():
    @register("first")
    class First(Attention):
        def build(self, problem, device):
            return self.name

    @register("second")
    class Second(First):
        layout = "BSHD"

    assert [d.fault for d in plugin.declared] == [None, None]
    assert (First.name, Second.name) == ("first", "second")
    assert (First.layout, Second.layout) == ("BHSD", "BSHD")


def test_a_library_function_or_a_callable_object_can_be_registered():
    class Callable_:
        def __call__(self, q, k, v, problem):
            return "object"

    register("object")(Callable_())
    register("partial")(functools.partial(textbook))
    assert [d.fault for d in plugin.declared] == [None, None]
    assert plugin.declared[0].cls().build(SMALL, CPU)(0, 0, 0) == "object"
    assert {d.module for d in plugin.declared} == {__name__}  # where it was declared


def test_file_and_line_are_those_of_the_declaration():
    line = inspect.currentframe().f_lineno
    register("a")(textbook)

    @register("b")
    class B: ...

    assert [d.line - line for d in plugin.declared] == [1, 3]
    assert {d.file for d in plugin.declared} == {__file__}


# ---- supports --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("declares", "asks", "reason"),
    [
        ({"masks": ("full",)}, {"mask": "causal"}, "does not do mask causal (does: full)"),
        (
            {"dtypes": ("float16", "bfloat16")},
            {},
            "does not do dtype float32 (does: float16, bfloat16)",
        ),
        ({"devices": ("cuda",)}, {}, "does not do device cpu (does: cuda)"),
        ({"features": ()}, {"direction": "both"}, "does not do gradients"),
        ({"features": ()}, {"heads_kv": 2}, "does not do heads_kv < heads_q"),
        ({"features": ["gqa"]}, {"seqlen_k": 9}, "does not do seqlen_q ≠ seqlen_k"),
        ({}, {"dropout_p": 0.1}, "does not do dropout"),
        ({}, {"softcap": 30}, "does not do softcap"),
        ({}, {"alibi": True}, "does not do ALiBi"),
        ({}, {"bias": True}, "does not do a learned bias on the logits"),
    ],
)
def test_what_was_not_declared_is_unsupported_with_a_reason(declares, asks, reason):
    register("mine", **declares)(textbook)
    implementation = only().cls()
    assert isinstance(implementation.features, frozenset)
    plain = Problem.of(heads=4, seqlen=8, dtype="fp16" if "dtypes" in declares else "fp32")
    if "devices" not in declares:
        implementation.supports(plain, CPU)
    with pytest.raises(Unsupported) as refused:
        implementation.supports(plain.replace(**{"dtype": "fp32"} | asks), CPU)
    assert str(refused.value) == reason


def test_the_usual_features_need_no_word():
    register("mine")(textbook)
    asks = {
        "direction": "both", "heads_kv": 2, "seqlen_k": 9, "head_dim_v": 8, "scale": 2.0,
    }  # fmt: skip
    p = Problem.of(heads=4, seqlen_q=8, **asks)
    assert p.features | {"decode"} == USUAL_FEATURES
    only().cls().supports(p, CPU)
    assert set(FEATURES) >= USUAL_FEATURES


# ---- lies ------------------------------------------------------------------------------


def _function(**keywords):
    return register("mine", **keywords)(textbook)


def _class(**body):
    body = {"build": lambda self, problem, device: None} | body
    return register("mine")(type("Mine", (Attention,), body))


def _signature(text, **keywords):
    namespace = {}
    exec(f"def f({text}): ...", namespace)
    return register("mine", **keywords)(namespace["f"])


def _async():
    async def f(q, k, v, problem): ...

    return register("mine")(f)


def _generator():
    def f(q, k, v, problem):
        yield

    return register("mine")(f)


def _method(name, text):
    namespace = {}
    exec(f"def f({text}): ...", namespace)
    return _class(**{name: namespace["f"]})


def _no_build():
    return register("mine")(type("Mine", (Attention,), {}))


def _class_with_words(**keywords):
    cls = type("Mine", (Attention,), {"build": lambda self, problem, device: None})
    return register("mine", **keywords)(cls)


TAKES = "the function must take (q, k, v, problem), takes"
LIES = {
    "too few parameters": (lambda: _signature("q, k, v"), f"{TAKES} (q, k, v)"),
    "too many parameters": (
        lambda: _signature("q, k, v, problem, block"),
        f"{TAKES} (q, k, v, problem, block)",
    ),
    "an option that is not keyword-only": (
        lambda: _signature("q, k, v, problem, block=64"),
        f"{TAKES} (q, k, v, problem, block)",
    ),
    "*args": (lambda: _signature("*args"), "*args and **kwargs are not allowed"),
    "**kwargs": (lambda: _signature("q, k, v, problem, **kw"), "**kwargs are not allowed"),
    "no default": (
        lambda: _signature("q, k, v, problem, *, block"),
        "option 'block' needs a default that is a number, a text or a bool",
    ),
    "default None": (lambda: _signature("q, k, v, problem, *, b=None"), "option 'b' needs"),
    "default a list": (lambda: _signature("q, k, v, problem, *, b=[1]"), "option 'b' needs"),
    "default NaN": (
        lambda: _signature("q, k, v, problem, *, b=float('nan')"),
        "option 'b' needs a finite default, got nan",
    ),
    "async": (_async, "async and yield are not allowed"),
    "yield": (_generator, "async and yield are not allowed"),
    "mask without mask_as": (
        lambda: _signature("q, k, v, problem, *, mask"),
        "mask_as= and a keyword-only parameter 'mask' belong together",
    ),
    "mask_as without mask": (lambda: _function(mask_as="dense"), "belong together"),
    "mask_as unknown": (
        lambda: _signature("q, k, v, problem, *, mask", mask_as="dens"),
        "unknown mask_as 'dens'; allowed: dense, additive, mask_mod; did you mean 'dense'?",
    ),
    "not a function": (lambda: register("mine")("text"), "decorates a function or a class, got"),
    "no signature": (lambda: register("mine")(max), "the function's parameters cannot be read"),
    "kind": (lambda: _function(kind="exakt"), "unknown kind 'exakt'; allowed: exact, approx"),
    "kind of a class": (lambda: _class(kind=3), "unknown kind 3"),
    "layout": (lambda: _function(layout="BSDH"), "unknown layout 'BSDH'; allowed: BHSD, BSHD"),
    "layout of a class": (lambda: _class(layout=["BHSD"]), "unknown layout ['BHSD']"),
    "feature": (
        lambda: _function(features=("dropuot",)),
        "unknown feature 'dropuot'; allowed: backward",
    ),
    "feature of a class": (lambda: _class(features={"x"}), "unknown feature 'x'"),
    "features as text": (
        lambda: _function(features="backward"),
        "features must be a tuple of names, got 'backward'",
    ),
    "features as a number": (lambda: _function(features=3), "features must be a tuple of names"),
    "features None in a class": (lambda: _class(features=None), "features must be a tuple"),
    "mask": (
        lambda: _function(masks=("casual",)),
        "unknown mask 'casual'; allowed: full, causal",
    ),
    "masks as text": (lambda: _function(masks="causal"), "masks must be a tuple of names"),
    "masks of a class": (lambda: _class(masks=("casual",)), "unknown mask 'casual'"),
    "unhashable masks": (lambda: _class(masks=(["causal"],)), "masks must be a tuple of names"),
    "dtype": (
        lambda: _function(dtypes=("float31",)),
        "unknown dtype 'float31'; allowed: float64, float32",
    ),
    "dtypes of a class": (lambda: _class(dtypes=(torch.float16,)), "dtypes must be a tuple of"),
    "devices as text": (lambda: _function(devices="cuda"), "devices must be a tuple of names"),
    "devices of a class": (lambda: _class(devices=(3,)), "devices must be a tuple of names"),
    "version": (lambda: _function(version=2.9), "version must be a text, got 2.9"),
    "source of a class": (lambda: _class(source=3), "source must be a text, got 3"),
    "a class that is no Attention": (
        lambda: register("mine")(type("Mine", (), {})),
        "class Mine must subclass attnbench.Attention",
    ),
    "Attention itself": (lambda: register("mine")(Attention), "the class has no build()"),
    "no build": (_no_build, "the class has no build()"),
    "build is no function": (lambda: _class(build=3), "build() has the wrong signature"),
    "build takes too little": (
        lambda: _method("build", "self, problem"),
        "build() has the wrong signature: too many positional arguments",
    ),
    "build takes too much": (
        lambda: _method("build", "self, problem, device, more"),
        "build() has the wrong signature: missing a required argument: 'more'",
    ),
    "build forgot self": (lambda: _method("build", "problem, device"), "build() has the wrong"),
    "a static build": (
        lambda: _class(build=staticmethod(lambda problem, device: None)),
        "build() has the wrong signature",
    ),
    "a build of the class": (
        lambda: _class(build=classmethod(lambda cls, problem, device: None)),
        "build() has the wrong signature",
    ),
    "supports": (lambda: _method("supports", "self"), "supports() has the wrong signature"),
    "flops": (lambda: _method("flops", "self"), "flops() has the wrong signature"),
    "exact_options": (
        lambda: _method("exact_options", "self"),
        "exact_options() has the wrong signature",
    ),
    "__init__ without options": (
        lambda: _class(options={"block": 3}, __init__=lambda self: None),
        "__init__() must take the options as keywords: got an unexpected keyword argument 'block'",
    ),
    "options as a list": (lambda: _class(options=["block"]), "options must be a table"),
    "an option without a type": (lambda: _class(options={"b": None}), "option 'b' needs a"),
    "an option that is no word": (lambda: _class(options={"a=b": 1}), "must be a plain word"),
    "an option whose name is no text": (lambda: _class(options={3: 1}), "must be a plain word"),
    "kind told of a class": (
        lambda: _class_with_words(kind="approximate"),
        "a class declares kind as attributes, not in register()",
    ),
    "layout told of a class": (lambda: _class_with_words(layout="BSHD"), "declares layout as"),
    "features told of a class": (lambda: _class_with_words(features=()), "declares features as"),
    "masks told of a class": (lambda: _class_with_words(masks=("full",)), "declares masks as"),
    "mask_as told of a class": (lambda: _class_with_words(mask_as="dense"), "declares mask_as as"),
}


@pytest.mark.parametrize("lie", LIES)
def test_a_lie_is_a_fault_and_nothing_raises(lie):
    declare, fault = LIES[lie]
    declare()
    declared = only()
    assert declared.fault is not None
    assert fault in declared.fault
    assert declared.name == "mine"
    assert declared.file == __file__
    assert declared.line > 0
    assert "\n" not in declared.fault


@pytest.mark.parametrize("name", ["", "Mine", "my impl", "a:b", "a,b", "a/b", "ünï", 3, None])
def test_a_name_that_cannot_be_typed_is_a_fault(name):
    register(name)(textbook)
    register(name)(type("Mine", (Attention,), {"build": lambda self, problem, device: None}))
    for declared in plugin.declared:
        assert declared.fault.startswith(f"name {name!r} must be made of a–z")


def test_register_without_a_name_is_a_fault_and_keeps_the_function():
    @register
    def mine(q, k, v, problem):
        return "kept"

    assert mine(0, 0, 0, 0) == "kept"
    assert only().name == "mine"
    assert only().fault == 'register needs a name: @register("my-name")'


def test_one_class_under_two_names_is_a_fault():
    """The second name would rename the first."""

    @register("b")
    @register("a")
    class Mine(Attention):
        def build(self, problem, device): ...

    first, second = plugin.declared
    assert first.fault is None
    assert Mine.name == "a"
    assert second.fault.startswith("class Mine is registered as 'a' already (line ")


def test_a_faulty_class_is_left_as_it_was():
    cls = type("Mine", (Attention,), {"layout": "BSDH", "build": lambda self, problem, device: 0})
    register("mine")(cls)
    assert only().fault
    assert cls.name == ""
