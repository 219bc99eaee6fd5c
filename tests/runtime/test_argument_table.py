"""The table of arguments: each row is used once, checked, and told in help and docs."""

import dataclasses
import math
import re
from pathlib import Path
from types import SimpleNamespace

import pytest

from neo_tf.errors import RequestError
from neo_tf.runtime.argument_kinds import Number, Whole
from neo_tf.runtime.argument_table import ARGUMENTS, LEFT_OUT, OLD_NAMES, markdown
from neo_tf.runtime.arguments import GenerateArguments
from neo_tf.runtime.engine.request import Request
from neo_tf.runtime.sampling.options import BeamOptions, SamplingOptions

DOCS = Path(__file__).parents[2] / "docs" / "generation.md"
HOLDERS = (SamplingOptions, BeamOptions, GenerateArguments)
# What an argument needs, so that its own value is what is refused.
WITH = {"do_sample": {"do_sample": True}, "num_beams": {"num_beams": 2}, "prompt_lookup_num_tokens": {}}
RANGED = [name for name, row in ARGUMENTS.items() if isinstance(row.kind, Whole | Number)]


def names_of(options):
    return {one.name for one in dataclasses.fields(options)}


def needed(name):
    needs = ARGUMENTS[name].needs
    return WITH[needs.any_of[0]] if needs else {}


@pytest.mark.parametrize("name", ARGUMENTS)
def test_each_argument_is_a_field_of_one_dataclass(name):
    holders = [one for one in HOLDERS if name in names_of(one)]
    # A call has num_return_sequences without beams too.
    assert holders == ([BeamOptions, GenerateArguments] if name == "num_return_sequences" else holders[:1])


def test_dataclasses_have_no_arguments_of_their_own():
    fields = set().union(*map(names_of, HOLDERS))
    assert fields == {*ARGUMENTS, "sampling", "beams", "origin"}


@pytest.mark.parametrize("options", [*HOLDERS, Request])
def test_defaults_are_the_tables(options):
    for one in dataclasses.fields(options):
        if one.name in ARGUMENTS and (options, one.name) != (SamplingOptions, "top_k"):
            default = one.default if one.default_factory is dataclasses.MISSING else one.default_factory()
            assert default == ARGUMENTS[one.name].default, one.name
    # A call draws from 50 tokens, as in transformers. The engine's own options leave all in.
    assert SamplingOptions().top_k == 0 and GenerateArguments.parse({"do_sample": True}).sampling.top_k == 50


@pytest.mark.parametrize("name", ARGUMENTS)
def test_its_default_is_allowed(name):
    ARGUMENTS[name].check(ARGUMENTS[name].default)
    GenerateArguments.parse({name: ARGUMENTS[name].default})
    assert not ARGUMENTS[name].is_given(ARGUMENTS[name].default)


@pytest.mark.parametrize("name", ARGUMENTS)
def test_a_value_of_another_kind_is_refused_by_name(name):
    for make in (GenerateArguments.parse, *(one for one in HOLDERS if name in names_of(one))):
        arguments = {name: object()} | (needed(name) if make == GenerateArguments.parse else {})
        with pytest.raises(RequestError, match=rf"^{name} must be ") as error:
            make(arguments) if make == GenerateArguments.parse else make(**arguments)
        assert "\n" not in str(error.value)


@pytest.mark.parametrize("name", RANGED)
def test_limits_hold_and_what_is_outside_is_refused(name):
    row = ARGUMENTS[name]
    outside, inside = limits(row.kind)
    assert outside
    for value in outside:
        with pytest.raises(RequestError, match=f"^{name} must be "):
            row.check(value)
        with pytest.raises(RequestError, match=f"^{name} must be "):
            GenerateArguments.parse(needed(name) | {name: value})
    for value in inside:
        row.check(value)


def limits(kind):
    """Values just outside of a kind's limits, and the outermost inside."""
    if isinstance(kind, Whole):
        outside = [kind.least - 1] + ([] if kind.most is None else [kind.most + 1])
        return [*outside, 1.5, True], [kind.least] + ([] if kind.most is None else [kind.most])
    outside, inside = [math.nan, "1", 10**400], []  # the last one is no float
    for bound, out, allowed in ((kind.least, -math.inf, True), (kind.most, math.inf, True)):
        if bound is not None:
            outside.append(math.nextafter(bound, out))
            inside += [bound] if allowed else []
    outside += [bound for bound in (kind.above, kind.below) if bound is not None]
    return outside, inside


@pytest.mark.parametrize("name", ARGUMENTS)
def test_meanings_are_whole_sentences(name):
    row = ARGUMENTS[name]
    for words in filter(None, (row.meaning, row.meaning_of_false)):
        assert re.fullmatch(r"[A-Z][^\n]* [^\n]*\.", words)
    if row.default is None and row.kind.option_type and row.on_command_line and row.replaces is None:
        assert "Without it" in row.meaning  # a default of None says nothing by itself
    assert bool(row.meaning_of_false) == (row.default is True)
    mentioned = [word for word in re.findall(r"\b[a-z]+(?:_[a-z]+)+\b", row.meaning) if word != "n_vocab"]
    assert set(mentioned) <= ARGUMENTS.keys()


@pytest.mark.parametrize("name", ARGUMENTS)
def test_rows_name_each_other(name):
    row = ARGUMENTS[name]
    assert row.name == name
    if row.needs:
        assert set(row.needs.any_of) <= ARGUMENTS.keys() and row.needs.any_of[0] in row.needs.words
    if row.replaces:
        assert ARGUMENTS[row.replaces].replaces == name
    assert not (row.on_command_line and row.kind.option_type is None)


def test_other_names_are_no_arguments():
    assert not {*OLD_NAMES, *LEFT_OUT} & ARGUMENTS.keys()
    assert {name for name, _ in OLD_NAMES.values()} <= ARGUMENTS.keys()


@pytest.mark.parametrize("options", HOLDERS)
def test_docstrings_explain_each_field(options):
    for name in names_of(options) & ARGUMENTS.keys():
        assert f"{name}: {ARGUMENTS[name].meaning}" in options.__doc__


def test_the_docs_have_the_table():
    text = DOCS.read_text(encoding="utf-8")
    between = re.search(r"<!-- arguments -->\n(.*)<!-- end of arguments -->", text, re.DOTALL)
    told = "docs/generation.md differs from the table: paste what python -m neo_tf.runtime.argument_table prints"
    assert between and between[1].strip() == markdown().strip(), told
    assert all(f"| `{name}` |" in markdown() for name in ARGUMENTS)


def test_an_argument_that_a_request_has_reaches_it():
    """A field of both classes needs a value here, and is passed on by GenerateArguments.request."""
    values = {
        "min_new_tokens": 2,
        "stop_token_ids": [5],
        "max_time": 7.5,
        "stop_strings": ["a"],
        "include_stop_str_in_output": False,
        "logprobs": 3,
        "prompt_logprobs": 2,
        "output_logits": True,
        "output_scores": True,
        "prompt_lookup_num_tokens": 4,
        "max_matching_ngram_size": 2,
    }
    shared = names_of(GenerateArguments) & names_of(Request)
    assert shared - {"sampling", "beams", "max_new_tokens"} == set(values)
    config = SimpleNamespace(n_ctx=64, eos_token_id=None, n_vocab=64)
    request = GenerateArguments.parse(values).request([1, 2], 0, config)
    for name, value in values.items():
        found = getattr(request, name)
        assert (list(found) if isinstance(found, tuple) else found) == value, name
