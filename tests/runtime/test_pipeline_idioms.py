"""What scripts write around transformers' pipeline: the same calls give the same results."""

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
from conftest import TINY_PYTHON
from pipeline_helpers import both_pipelines

import neo_tf
from neo_tf.errors import RequestError
from neo_tf.text_generation import pipeline

transformers = pytest.importorskip("transformers")

PROMPT = "def read_lines(path):"
TEMPLATE = (
    "{% for message in messages %}# {{ message.role }}: {{ message.content }}\n{% endfor %}"
    "{% if add_generation_prompt %}# assistant: {% endif %}"
)
CHAT = [{"role": "user", "content": "read a file"}]


@pytest.fixture(scope="module")
def converted(tmp_path_factory):
    """The demo model as a Hugging Face folder with a chat template."""
    folder = tmp_path_factory.mktemp("huggingface") / "demo"
    neo_tf.convert(TINY_PYTHON, folder, to="huggingface")
    (folder / "chat_template.jinja").write_text(TEMPLATE)
    return folder


@pytest.fixture(scope="module")
def pair(converted, tmp_path_factory):
    """neo-tf's pipeline and transformers'."""
    return both_pipelines(converted, tmp_path_factory.mktemp("cache"))


CALLS = {
    "the tokenizer's ids": lambda x: x(PROMPT, max_new_tokens=3, pad_token_id=x.tokenizer.eos_token_id),
    "the model's ids": lambda x: x(PROMPT, max_new_tokens=3, pad_token_id=x.model.config.eos_token_id),
    "truncation": lambda x: x("x = 1\n" * 30, max_length=20, max_new_tokens=4, truncation=True),
    "max_length cuts too": lambda x: x("x = 1\n" * 30, max_length=20, max_new_tokens=4),
    "no truncation": lambda x: x("x = 1\n" * 30, max_length=20, max_new_tokens=4, truncation=False),
    "use_cache": lambda x: x(PROMPT, max_new_tokens=3, use_cache=False),
    "clean_up": lambda x: x(PROMPT, max_new_tokens=8, clean_up_tokenization_spaces=True),
    "batch_size": lambda x: x([PROMPT, "class A:"], max_new_tokens=3, batch_size=1),
    "stop_sequence": lambda x: x(PROMPT, max_new_tokens=20, stop_sequence="\n"),
    "special tokens": lambda x: x(PROMPT, max_new_tokens=20, eos_token_id=199, skip_special_tokens=False),
    "generation_config": lambda x: x(
        PROMPT,
        generation_config=transformers.GenerationConfig(max_new_tokens=9, repetition_penalty=1.9, do_sample=False),
    ),
    "no effect": lambda x: x(PROMPT, max_new_tokens=5, temperature=0.0, early_stopping=True, length_penalty=2.0),
    "an empty text": lambda x: x("", max_new_tokens=5),
    "empty texts among others": lambda x: x(["", PROMPT], max_new_tokens=5),
    "the whole context": lambda x: x(x.tokenizer.decode([5] * 512), max_new_tokens=1, return_full_text=False),
    "a chat": lambda x: x(CHAT, max_new_tokens=6),
    "a chat's answer": lambda x: x(CHAT, max_new_tokens=6, return_full_text=False),
    "an answer that was begun": lambda x: x([*CHAT, {"role": "assistant", "content": "import"}], max_new_tokens=6),
    "chats": lambda x: x([CHAT, CHAT[:1]], max_new_tokens=3),
    "a length of tokens": lambda x: len(x.tokenizer(PROMPT)["input_ids"]),
}


@pytest.mark.filterwarnings("ignore:.*has no effect", "ignore:.*are both set")
@pytest.mark.parametrize("name", CALLS)
def test_a_call_is_as_in_transformers(pair, name):
    ours, theirs = pair
    call = CALLS[name]

    def greedily(generator):
        def run(prompt, **arguments):
            return generator(prompt, **({"do_sample": False} | arguments))

        run.tokenizer, run.model = generator.tokenizer, generator.model
        return run

    assert call(greedily(ours)) == call(greedily(theirs))


def test_what_has_no_effect_is_said(pair):
    with pytest.warns(UserWarning, match="temperature has no effect"):
        pair[0](PROMPT, do_sample=False, temperature=0.5, max_new_tokens=1)
    with pytest.warns(UserWarning, match="max_new_tokens decides"):
        pair[0](PROMPT, do_sample=False, max_length=50, max_new_tokens=1)


@pytest.mark.parametrize("set_seed", [neo_tf.set_seed, transformers.set_seed])
def test_set_seed_draws_the_same_texts_again(pair, set_seed):
    ours, _ = pair

    def drawn():
        set_seed(42)
        return [ours("import", max_new_tokens=8, num_return_sequences=3), ours(PROMPT, max_new_tokens=8)]

    first = drawn()
    assert drawn() == first and len({found["generated_text"] for found in first[0]}) > 1
    assert [ours(PROMPT, max_new_tokens=8) for _ in range(3)] != [first[1]] * 3


def test_arguments_of_the_pipeline_and_objects(pair, converted, monkeypatch, tmp_path):
    monkeypatch.setenv("NEO_TF_CACHE", str(tmp_path))
    tokenizer = transformers.AutoTokenizer.from_pretrained(converted)
    options = {"device_map": "auto", "torch_dtype": "float32", "do_sample": False, "max_new_tokens": 4}
    ours = pipeline("text-generation", model=str(converted), tokenizer=tokenizer, **options)
    expected = pair[1](PROMPT, do_sample=False, max_new_tokens=4)
    assert ours(PROMPT) == expected
    assert list(ours(text for text in [PROMPT])) == [expected]
    for more, message in (
        ({"device_map": "balanced"}, "device_map"),
        ({"device_map": {"a": 0, "b": 1}}, "device_map"),
        ({"torch_dtype": "float8"}, "torch_dtype"),
        ({"dtype": "bfloat16", "precision": "int8"}, "bf16"),
        ({"device": "cpu", "device_map": "cpu"}, "device"),
        ({"model_kwargs": {"a": 1}}, "model_kwargs"),
        ({"tokenizer": 5}, "tokenizer"),
        ({"stopping_criteria": [1]}, "stopping_criteria"),
    ):
        with pytest.raises(RequestError, match=message):
            pipeline("text-generation", model=str(converted), **more)(PROMPT)


def test_threads_get_their_own_texts_and_streams(pair):
    ours, _ = pair
    prompts = [f"def read_{number}(path):" for number in range(6)]
    alone = [ours(prompt, do_sample=False, max_new_tokens=12) for prompt in prompts]

    def call(prompt):
        pieces, here = [], threading.get_ident()
        (found,) = ours(
            prompt,
            do_sample=False,
            max_new_tokens=12,
            streamer=lambda text: pieces.append((text, threading.get_ident())),
        )
        assert {thread for _, thread in pieces} == {here}
        assert prompt + "".join(text for text, _ in pieces) == found["generated_text"]
        return [found]

    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(call, prompts * 3)) == alone * 3
