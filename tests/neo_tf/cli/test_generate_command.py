"""`neo-tf generate`: the text as it is written, and one line where there is none."""

import io
import json

import pytest
from conftest import GOLDEN

from neo_tf.cli import main
from neo_tf.runtime.argument_table import ARGUMENTS
from neo_tf.runtime.engine.lookup import PromptLookup
from neo_tf.text_generation import pipeline

PROMPT = "def read_lines(path):"


@pytest.fixture
def generate(monkeypatch, capsys):
    """Runs the command; returns its exit status, standard output and standard error."""

    def run(*arguments, stdin=""):
        monkeypatch.setattr("sys.argv", ["neo-tf", "generate", *map(str, arguments)])
        monkeypatch.setattr("sys.stdin", io.StringIO(stdin))
        with pytest.raises(SystemExit) as end:
            main()
        captured = capsys.readouterr()
        return end.value.code, captured.out, captured.err

    return run


def test_the_text_is_the_pipelines(generate, demo_folder):
    generator = pipeline("text-generation", model=demo_folder, do_sample=False, temperature=1.0)
    (greedy,) = generator(PROMPT, max_new_tokens=30)
    assert generate(demo_folder, PROMPT, "--max-new-tokens", 30)[:2] == (0, greedy["generated_text"] + "\n")
    (drawn,) = generator(PROMPT, max_new_tokens=30, do_sample=True, temperature=1.3, top_k=7, top_p=0.9, seed=4)
    options = ("--do-sample", "--temperature", 1.3, "--top-k", 7, "--top-p", 0.9, "--seed", 4)
    assert generate(demo_folder, PROMPT, "--max-new-tokens", 30, *options)[1] == drawn["generated_text"] + "\n"
    assert drawn != greedy


def test_prompt_lookup_changes_nothing_but_the_steps(generate, demo_folder, monkeypatch):
    guessed, guess = [], PromptLookup.guess
    monkeypatch.setattr(PromptLookup, "guess", lambda *a: guessed.append(guess(*a)) or guessed[-1])
    text = generate(demo_folder, PROMPT, "--max-new-tokens", 120)[1]
    assert not guessed
    options = ("--max-new-tokens", 120, "--prompt-lookup-num-tokens", 8, "--max-matching-ngram-size", 4)
    assert generate(demo_folder, PROMPT, *options)[1] == text
    assert any(guessed)
    code, out, err = generate(demo_folder, PROMPT, "--max-matching-ngram-size", 4)
    assert (code, out) == (1, "") and "needs prompt_lookup_num_tokens" in err


def test_the_memory_of_caches_is_limited(generate, demo_folder):
    prompts = (PROMPT, "import os", "class A")
    expected = generate(demo_folder, *prompts, "--max-new-tokens", 20)
    assert generate(demo_folder, *prompts, "--max-new-tokens", 20, "--cache-memory", "1.5MB") == expected
    code, out, err = generate(demo_folder, *prompts, "--max-new-tokens", 400, "--cache-memory", "1 MB")
    assert (code, out) == (1, "") and "the limit is 1.0 MB" in err and err.count("\n") == 1
    assert generate(demo_folder, *prompts, "--max-new-tokens", 20, "--prefix-cache-memory", 0) == expected
    assert "--cache-memory must be at least 1, not 0" in generate(demo_folder, PROMPT, "--cache-memory", 0)[2]
    for wrong in ("much", "-1GB", "1QB"):
        code, out, err = generate(demo_folder, PROMPT, "--cache-memory", wrong)
        assert (code, out) == (1, "") and "--cache-memory must be a size such as 2GB" in err


def test_arguments_reach_the_pipeline(generate, demo_folder):
    generator = pipeline("text-generation", model=demo_folder, do_sample=False, temperature=1.0)
    options = ("--repetition-penalty", 1.3, "--suppress-tokens", "222,66", "--logit-bias", '{"5": -2.5}')
    options += ("--bad-words-ids", "[[7], [8, 9]]", "--max-length", 40, "--no-repeat-ngram-size", 3)
    expected = generator(
        PROMPT,
        repetition_penalty=1.3,
        suppress_tokens=[222, 66],
        logit_bias={5: -2.5},
        bad_words_ids=[[7], [8, 9]],
        max_length=40,
        no_repeat_ngram_size=3,
    )
    code, out, _ = generate(demo_folder, PROMPT, *options)
    assert (code, out) == (0, expected[0]["generated_text"] + "\n")
    drawn = generator(PROMPT, max_new_tokens=20, do_sample=True, min_p=0.01, typical_p=0.9, top_k=0, seed=3)
    options = ("--max-new-tokens", 20, "--do-sample", "--min-p", 0.01, "--typical-p", 0.9, "--top-k", 0, "--seed", 3)
    assert generate(demo_folder, PROMPT, *options)[1] == drawn[0]["generated_text"] + "\n"


def test_stop_strings_and_the_new_text_alone(generate, demo_folder):
    generator = pipeline("text-generation", model=demo_folder, do_sample=False, temperature=1.0)
    free = generator(PROMPT, max_new_tokens=40, return_full_text=False)[0]["generated_text"]
    stop = free[15:18]
    options = (demo_folder, PROMPT, "--stop-strings", "never", "--stop-strings", stop, "--no-return-full-text")
    assert generate(*options, "--no-include-stop-str-in-output")[1] == free[: free.index(stop)] + "\n"
    assert generate(*options)[1].removesuffix("\n").rstrip() in free


def test_standard_input_is_a_prompt(generate, demo_folder):
    expected = generate(demo_folder, PROMPT, "--max-new-tokens", 5)
    assert generate(demo_folder, "--max-new-tokens", 5, stdin=PROMPT + "\n") == expected


FLAG = {name: f"--{name.replace('_', '-')}" for name in ARGUMENTS}
NOT_ON_A_COMMAND_LINE = {
    "documents",
    "tokenizer_encode_kwargs",
    "tools",
    *("streamer", "logits_processor", "output_scores", "output_logits", "pad_token_id"),
    *("truncation", "add_special_tokens", "skip_special_tokens", "clean_up_tokenization_spaces"),
    "continue_final_message",
}


def test_help_has_each_argument_whole_in_80_columns(monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setattr("sys.argv", ["neo-tf", "generate", "--help"])
    with pytest.raises(SystemExit):
        main()
    told = capsys.readouterr().out
    assert max(map(len, told.splitlines())) <= 80 and "…" not in told
    begun = {line.split()[1] for line in told.splitlines() if line.startswith("│ --")}
    shown = {name for name in FLAG if FLAG[name] in begun or FLAG[name].replace("--", "--no-", 1) in begun}
    assert shown == ARGUMENTS.keys() - NOT_ON_A_COMMAND_LINE
    words = " ".join("".join(line[42:].strip(" │") + " " for line in told.splitlines()).split())
    assert "Stop after this number of new tokens. Without this and --max-length the limit is 256" in words


def test_a_flag_is_taken_in_both_forms(generate, demo_folder):
    for name, new in (("return-full-text", False), ("no-return-full-text", True)):
        code, out, _ = generate(demo_folder, PROMPT, "--max-new-tokens", 3, f"--{name}")
        assert code == 0 and out.startswith(PROMPT) is not new


@pytest.mark.parametrize("options", [["--eos-token-id", "0,12"], ["--eos-token-id", 0, "--eos-token-id", "12"]])
def test_token_ids_are_given_with_commas_or_one_by_one(generate, demo_folder, options):
    generator = pipeline("text-generation", model=demo_folder, do_sample=False, temperature=1.0)
    (expected,) = generator(PROMPT, max_new_tokens=20, eos_token_id=[0, 12])
    assert generate(demo_folder, PROMPT, "--max-new-tokens", 20, *options)[1] == expected["generated_text"] + "\n"


def test_the_rarer_arguments_reach_the_pipeline(generate, demo_folder):
    arguments = {
        "sequence_bias": [[[7, 8], -2.5]],
        "begin_suppress_tokens": [222, 66],
        "forced_eos_token_id": [5, 7],
        "exponential_decay_length_penalty": [2, 1.2],
        "stop_token_ids": [300, 301],
        "eos_token_id": [0, 12],
        "prefix": "import os\n",
        "handle_long_generation": "hole",
        "presence_penalty": 0.5,
        "max_new_tokens": 9,
    }
    options = [
        "--sequence-bias",
        "[[[7, 8], -2.5]]",
        "--begin-suppress-tokens",
        "222,66",
        "--stop-token-ids",
        "300,301",
    ]
    options += ["--forced-eos-token-id", "5,7", "--exponential-decay-length-penalty", "[2, 1.2]"]
    options += [
        "--eos-token-id",
        0,
        "--eos-token-id",
        12,
        "--prefix",
        "import os\n",
        "--handle-long-generation",
        "hole",
    ]
    options += ["--presence-penalty", 0.5, "--max-new-tokens", 9]
    long = "x = 1\n" * 200
    generator = pipeline("text-generation", model=demo_folder, do_sample=False, temperature=1.0)
    for prompt in (PROMPT, long):
        (expected,) = generator(prompt, **arguments)
        assert generate(demo_folder, prompt, *options)[:2] == (0, expected["generated_text"] + "\n")


def test_beams_are_lines_of_json(generate, demo_folder):
    generator = pipeline("text-generation", model=demo_folder, do_sample=False, temperature=1.0)
    expected = generator(PROMPT, max_new_tokens=7, num_beams=3, num_return_sequences=2, early_stopping="never")
    options = ("--max-new-tokens", 7, "--num-beams", 3, "--num-return-sequences", 2, "--early-stopping", "never")
    code, out, err = generate(demo_folder, PROMPT, *options)
    assert (code, err) == (0, "")
    sequences = json.loads(out)["sequences"]
    assert [one["generated_text"] for one in sequences] == [one["generated_text"] for one in expected]
    assert [(one["new_tokens"], one["finish_reason"]) for one in sequences] == [(7, "length")] * 2
    code, _, err = generate(demo_folder, PROMPT, "--early-stopping", "soon", "--num-beams", 3)
    assert code == 1 and err == "error: early_stopping must be true, false or never, not 'soon'\n"


def test_several_prompts_are_lines_of_json_in_their_order(generate, demo_folder):
    code, out, err = generate(demo_folder, "--max-new-tokens", 5, "--", PROMPT, "import", "-x")
    assert (code, err) == (0, "")
    lines = [json.loads(line) for line in out.splitlines()]
    assert [line["index"] for line in lines] == [0, 1, 2]
    for prompt, line in zip((PROMPT, "import", "-x"), lines, strict=True):
        assert line["generated_text"] + "\n" == generate(demo_folder, "--max-new-tokens", 5, "--", prompt)[1]
    code, out, err = generate(demo_folder, "--max-new-tokens", 5, PROMPT, "word " * 2000)
    assert code == 1 and out.count("\n") == 1 and err.startswith("error: prompt 2: the prompt has")


@pytest.mark.parametrize(
    "options, key",
    [
        (["--json"], "generated_text"),
        (["--output", "-"], "generated_text"),
        (["--logprobs", 0], "token_logprobs"),
        (["--prompt-logprobs", 1], "prompt_top_logprobs"),
        (["--return-tensors"], "generated_token_ids"),
        (["--do-sample", "--num-return-sequences", 2], "sequences"),
    ],
)
def test_more_than_a_text_is_a_line_of_json(generate, demo_folder, options, key):
    code, out, _ = generate(demo_folder, PROMPT, "--max-new-tokens", 2, *options)
    assert code == 0 and key in json.loads(out)
    assert generate(demo_folder, "--max-new-tokens", 2, *options, stdin=PROMPT)[1].count("\n") == 1


def test_a_prompt_of_standard_input_goes_into_a_file(generate, demo_folder, tmp_path):
    code, out, _ = generate(demo_folder, "--max-new-tokens", 3, "--output", tmp_path / "o", stdin="def\nclass\n")
    assert (code, out) == (0, "")
    assert json.loads((tmp_path / "o").read_text())["generated_text"].startswith("def\nclass")


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["word " * 2000], "n_ctx"),
        ([PROMPT, "--max-new-tokens", "600"], "512"),
        ([PROMPT, "--do-sample", "--temperature", "0"], "temperature"),
        ([PROMPT, "--temperature", "0.5"], "do_sample"),
        ([PROMPT, "--suppress-tokens", "a,b"], "suppress_tokens"),
        ([PROMPT, "--suppress-tokens", "5,4000"], "4000"),
        ([PROMPT, "--logit-bias", "{5: 1}"], "logit_bias"),
        ([PROMPT, "--sequence-bias", "[" * 100000], "sequence_bias"),
        ([PROMPT, "--num-return-sequences", "2"], "num_return_sequences"),
        ([PROMPT, "--logit-bias", "[5]"], "logit_bias"),
        ([PROMPT, "--max-new-tokens", "5", "--max-length", "50"], "max_length"),
        ([PROMPT, "--stop-strings", ""], "stop_strings"),
        ([PROMPT, "--device", "cuda"], "CUDA"),
        ([PROMPT, "--device", "abacus"], "abacus"),
    ],
)
def test_what_cannot_be_done_is_one_line(generate, demo_folder, arguments, message):
    code, out, err = generate(demo_folder, *arguments)
    assert (code, out) == (1, "")
    assert err.startswith("error: ") and err.count("\n") == 1 and message in err


def test_a_model_without_tokenizer_takes_no_text(generate, exported):
    code, out, err = generate(exported(GOLDEN / "tiny-global"), "text")
    assert (code, out) == (1, "") and "tokenizer" in err
