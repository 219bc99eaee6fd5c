"""Many prompts: each as alone, in a file that a kill at any moment leaves whole or resumable."""

import io
import json
import os
import random
import signal
import subprocess
import sys
import time

import pytest
from conftest import FIXTURES, GOLDEN, run_cli

from neo_tf.errors import EngineError, OutputError, RequestError
from neo_tf.runtime.jobs import job as jobs
from neo_tf.runtime.jobs import results as job_output
from neo_tf.runtime.jobs.engine_runner import EngineRunner
from neo_tf.runtime.jobs.job import Job
from neo_tf.runtime.jobs.prompts import Given, Lines, count_lines
from neo_tf.runtime.jobs.results import JobFile, JobStream
from neo_tf.text_generation import pipeline

TEXTS = ("def read_lines(path):", "import", "class A", "for", "    return", "try:\n", "x = [", '"""', "é", "if")
SAMPLED = ("--do-sample", "--temperature", 1.2, "--max-new-tokens", 12)
JOB = {"model": "m", "device": "cpu", "precision": "fp32", "format": "jsonl", "seed": 3, "arguments": {}}


@pytest.fixture(scope="module")
def generator(demo_folder):
    return pipeline("text-generation", model=demo_folder, batch_size=3, do_sample=False, temperature=1.0)


@pytest.fixture
def generate(monkeypatch, capsys, demo_folder):
    return lambda *arguments: run_cli(monkeypatch, capsys, "generate", demo_folder, *arguments)


def write_prompts(path, count=24, **arguments):
    """A file of prompts of all kinds: texts and ids, with arguments of their own, lengths from 1 to 40."""
    draw, lines = random.Random(4), []
    for number in range(count):
        line = {"prompt": TEXTS[number % len(TEXTS)], "max_new_tokens": draw.choice([1, 2, 5, 40])} | arguments
        if number % 7 == 3:
            line |= {"prompt": [5, number, 7], "id": f"é{number}"}
        if number % 7 == 5:
            line |= {"do_sample": True, "top_k": 7, "num_return_sequences": 2}
        lines.append(json.dumps(line))
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def read_results(path):
    text = path.read_text("utf-8") if hasattr(path, "read_text") else path
    assert text.endswith("\n") or not text
    return [json.loads(line) for line in text.split("\n")[:-1]]


def start(folder, *arguments, **options):
    command = [sys.executable, "-m", "neo_tf.cli", "generate", folder, *arguments]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "cwd": FIXTURES.parents[1]}
    return subprocess.Popen([str(part) for part in command], **pipes, **options)


def wait_for_results(child, partial, count):
    """Whether a running job has written so many lines, its first one included."""
    while child.poll() is None:
        if partial.exists() and partial.read_bytes().count(b"\n") > count:
            return True
        time.sleep(0.002)
    return False


# ---- results


def test_a_result_is_what_the_prompt_gives_alone(generate, generator, tmp_path):
    prompts = write_prompts(tmp_path / "p.jsonl")
    code, out, err = generate("--input", prompts, "--batch-size", 4, "--seed", 30)
    assert (code, err) == (0, "")
    lines, results = [json.loads(line) for line in prompts.open()], read_results(out)
    assert [result["index"] for result in results] == list(range(len(lines)))
    for index, (line, result) in enumerate(zip(lines, results, strict=True)):
        prompt, given = line.pop("prompt"), line.pop("id", None)
        assert result.get("id") == given
        count = line.get("num_return_sequences", 1)
        alone = generator(prompt, seed=30 + index * count, **line)
        found = result.get("sequences", [result])
        assert len(found) == count
        assert [one["generated_text"] for one in found] == [one["generated_text"] for one in alone]
        for one in found:
            assert one["finish_reason"] in ("length", "stop") and 0 < one["new_tokens"] <= line["max_new_tokens"]
            assert (one["new_tokens"] == line["max_new_tokens"]) or one["finish_reason"] == "stop"
    drawn = next(result for result in results if "sequences" in result)
    assert [one["seed"] for one in drawn["sequences"]] == [30 + 2 * drawn["index"], 31 + 2 * drawn["index"]]
    assert all("seed" not in result for result in results if "sequences" not in result)


def test_ids_and_log_probabilities(generate, generator, tmp_path):
    prompts = tmp_path / "p.jsonl"
    prompts.write_text('{"prompt": [5, 6, 7]}\n{"prompt": "def", "return_tensors": false, "logprobs": null}\n')
    options = ("--return-tensors", "--logprobs", 2, "--prompt-logprobs", 1, "--max-new-tokens", 4)
    code, out, _ = generate("--input", prompts, *options)
    ids, text = read_results(out)
    (alone,) = generator([5, 6, 7], return_tensors=True, logprobs=2, prompt_logprobs=1, max_new_tokens=4)
    assert code == 0 and ids["generated_token_ids"] == alone["generated_token_ids"]
    assert ids["prompt_tokens"] == 3 and len(ids["token_logprobs"]) == ids["new_tokens"] == 4
    assert ids["token_logprobs"] == pytest.approx(alone["token_logprobs"], abs=1e-4)
    assert [list(map(int, top)) for top in ids["top_logprobs"]] == [list(top) for top in alone["top_logprobs"]]
    assert len(ids["prompt_token_logprobs"]) == 2 and "generated_text" not in ids
    assert text["generated_text"].startswith("def") and "token_logprobs" not in text


def test_a_model_without_tokenizer_takes_and_gives_ids(monkeypatch, capsys, exported, tmp_path):
    (tmp_path / "p.jsonl").write_text('{"prompt": [4, 8]}\n{"prompt": "text"}\n')
    model = exported(GOLDEN / "tiny-global")
    options = ("--return-tensors", "--max-new-tokens", 3, "--skip-errors")
    code, out, _ = run_cli(monkeypatch, capsys, "generate", model, "--input", tmp_path / "p.jsonl", *options)
    ids, refused = read_results(out)
    assert code == 1 and ids["generated_token_ids"][:2] == [4, 8] and len(ids["generated_token_ids"]) == 5
    assert "p.jsonl:2: the model has no tokenizer" in refused["error"]


def test_a_text_file_has_a_prompt_a_line(generate, tmp_path):
    prompts = tmp_path / "p.txt"
    prompts.write_bytes('\ufeffdef a\r\n\r\n  {"x\nclass É'.encode())
    code, out, _ = generate("--input", prompts, "--max-new-tokens", 2)
    texts = [result["generated_text"] for result in read_results(out)]
    assert code == 0 and len(texts) == 3
    assert all(text.startswith(prompt) for text, prompt in zip(texts, ("def a", '  {"x', "class É"), strict=True))
    assert count_lines(prompts) == 3
    (tmp_path / "p.list").write_bytes(prompts.read_bytes())
    again = generate("--input", tmp_path / "p.list", "--input-format", "txt", "--max-new-tokens", 2)
    assert again[:2] == (0, out)


def test_an_empty_file_gives_an_empty_one(generate, tmp_path):
    (tmp_path / "p.jsonl").write_text("\n")
    code, *_ = generate("--input", tmp_path / "p.jsonl", "--output", tmp_path / "o.jsonl")
    assert code == 0 and (tmp_path / "o.jsonl").read_bytes() == b""
    assert sorted(path.name for path in tmp_path.iterdir()) == ["o.jsonl", "p.jsonl"]


def test_a_line_overrides_the_command_line(generate, tmp_path):
    lines = [{}, {"max_length": 9}, {"max_new_tokens": None, "max_length": 8}, {"do_sample": True, "seed": 5}]
    prompts = tmp_path / "p.jsonl"
    prompts.write_text("".join(json.dumps({"prompt": [5, 6, 7], **line}) + "\n" for line in lines))
    code, out, _ = generate("--input", prompts, "--max-new-tokens", 3, "--seed", 1)
    results = read_results(out)
    assert code == 0 and [result["new_tokens"] for result in results] == [3, 6, 5, 3]
    assert results[3]["seed"] == 5


def test_texts_that_utf_8_cannot_say_are_escaped():
    line = job_output.to_json({"id": "\ud800", "generated_text": "é\n"})
    assert line == b'{"id": "\\ud800", "generated_text": "\xc3\xa9\\n"}\n'
    assert json.loads(line)["id"] == "\ud800"


def test_a_line_is_answered_before_the_next_one_comes(demo_folder):
    """A program at the other end of two pipes, which asks only when it has been answered."""
    child = start(demo_folder, "--input", "-", "--max-new-tokens", 3, stdin=subprocess.PIPE)
    try:
        for number in range(3):
            child.stdin.write(b'{"prompt": "def", "id": %d}\n{"prompt"' % number)
            child.stdin.flush()
            assert json.loads(child.stdout.readline())["id"] == number
            child.stdin.write(b': "class"}\n')
            child.stdin.flush()
            assert json.loads(child.stdout.readline())["index"] == 2 * number + 1
        out, err = child.communicate(timeout=60)
        assert (child.returncode, out, err) == (0, b"", b"")
    finally:
        child.kill()


# ---- what is held in memory


class Counted:
    """Lines that count how many were read."""

    def __init__(self, texts):
        self.lines, self.read, self.waits = iter(Given(texts)), 0, False

    def __next__(self):
        line = next(self.lines)
        self.read += 1
        return line


class Seen:
    """Results that note how far the reader was ahead of them."""

    ordered, done, errors, partial = False, 0, 0, None

    def __init__(self, lines):
        self.lines, self.ahead, self.indices = lines, 0, []

    def holds(self, line):
        return False

    def add(self, line, result):
        self.ahead = max(self.ahead, self.lines.read - len(self.indices))
        self.indices.append(line.index)

    def finish(self, count):
        assert sorted(self.indices) == list(range(count))


def test_few_lines_are_read_ahead(generator):
    lines = Counted(["def"] * 100)
    seen = Seen(lines)
    Job(EngineRunner(generator, {"max_new_tokens": 2}, 0), seen).run(lines)
    assert seen.ahead <= 6 and len(seen.indices) == 100


def test_results_that_wait_for_their_turn_are_few(generator, monkeypatch):
    monkeypatch.setattr(jobs, "_WINDOWS_AHEAD", 2)
    monkeypatch.setattr("sys.stdout", io.TextIOWrapper(io.BytesIO()))
    lines = Lines(
        _pipe([{"prompt": "def", "max_new_tokens": 99}, *[{"prompt": "x", "max_new_tokens": 1}] * 60]), "p", True
    )
    stream, most = JobStream(), 0

    def watch(amount, what):
        nonlocal most
        most = max(most, len(stream._waiting))

    Job(EngineRunner(generator, {"eos_token_id": []}, 0), stream, progress=watch).run(lines)
    assert 6 < most <= 12
    sys.stdout.flush()
    shown = read_results(sys.stdout.buffer.getvalue().decode())
    assert [result["index"] for result in shown] == list(range(61))


def _pipe(values):
    read, write = os.pipe()
    with open(write, "w") as file:
        file.writelines(json.dumps(value) + "\n" for value in values)
    return open(read, "rb")


def test_progress_counts_prompts_and_tokens(generator):
    lines, told = Counted(["def"] * 7), []

    def tell(amount, what):
        told.append((amount, int(what.split(" tokens,")[0])))

    Job(EngineRunner(generator, {"max_new_tokens": 5, "eos_token_id": []}, 0), Seen(lines), progress=tell).run(lines)
    amounts, tokens = zip(*told, strict=True)
    assert min(amounts) >= 0 and sum(amounts) == 7
    assert list(tokens) == sorted(tokens) and tokens[-1] == 35 and 0 < tokens[0] < 4


# ---- kills


@pytest.fixture(scope="module")
def whole(demo_folder, tmp_path_factory):
    """A file of prompts, and what a job that nobody disturbed makes of it."""
    folder = tmp_path_factory.mktemp("whole")
    prompts, output = write_prompts(folder / "p.jsonl", 40), folder / "o.jsonl"
    options = ("--input", prompts, *SAMPLED, "--seed", 7)
    child = start(demo_folder, *options, "--output", output)
    assert child.communicate(timeout=60) == (b"", b"") and child.returncode == 0
    assert [result["index"] for result in read_results(output)] == list(range(40))
    return options, output.read_bytes()


def test_kill_9_again_and_again_changes_no_byte(demo_folder, whole, tmp_path):
    options, expected = whole
    output, partial, draw = tmp_path / "o.jsonl", tmp_path / "o.jsonl.partial", random.Random(1)
    written, kills = 0, 0
    for _ in range(3):
        child = start(demo_folder, *options, "--output", output, "--resume")
        if wait_for_results(child, partial, written + draw.randrange(10)):
            time.sleep(draw.random() / 100)
            child.kill()
        child.communicate()
        assert child.returncode in (0, -signal.SIGKILL)
        kills += child.returncode != 0
        assert output.exists() != partial.exists()  # whole under its name, or not at all
        if output.exists():
            break
        now = partial.read_bytes().count(b"\n")
        assert now >= written
        written = now
    assert kills > 1
    child = start(demo_folder, *options, "--output", output, "--resume")
    _, err = child.communicate(timeout=60)
    assert child.returncode == 0, err
    assert output.read_bytes() == expected and list(tmp_path.iterdir()) == [output]


def test_any_torn_end_is_cut_off(generate, whole, tmp_path, monkeypatch):
    """The file of a whole job, cut at random bytes and with garbage after them."""
    options, expected = whole
    output, partial = tmp_path / "o.jsonl", tmp_path / "o.jsonl.partial"
    kept = []
    finish = JobFile.finish
    monkeypatch.setattr(JobFile, "finish", lambda job, count: (kept.append(partial.read_bytes()), finish(job, count)))
    assert generate(*options, "--output", output)[0] == 0
    assert output.read_bytes() == expected
    (full,) = kept
    header = full.index(b"\n") + 1
    draw = random.Random(2)
    cuts = [0, 5, header - 1, header, len(full) - 1, len(full), *(draw.randrange(header, len(full)) for _ in range(4))]
    for place, cut in enumerate(cuts):
        if place % 3 or cut < header:  # else killed between the last rename and the removal of the other file
            output.unlink()
        partial.write_bytes(full[:cut] + (b"\0\0\n12 garb\n" if place % 2 and cut > header else b""))
        code, _, err = generate(*options, "--output", output, "--resume")
        assert (code, err) == (0, "") and output.read_bytes() == expected
        assert list(tmp_path.iterdir()) == [output]


@pytest.mark.parametrize("number, status", [(signal.SIGINT, 130), (signal.SIGTERM, 128 + signal.SIGTERM)])
def test_a_signal_leaves_a_job_that_goes_on(demo_folder, whole, tmp_path, number, status):
    options, _ = whole
    output, partial = tmp_path / "o.jsonl", tmp_path / "o.jsonl.partial"
    prompts = write_prompts(tmp_path / "p.jsonl", 2000)
    child = start(demo_folder, *options, "--input", prompts, "--output", output)
    assert wait_for_results(child, partial, 3)
    child.send_signal(number)
    out, err = child.communicate(timeout=60)
    assert (child.returncode, out) == (status, b"")
    done = partial.read_bytes().count(b"\n") - 1
    assert (
        err.decode() == f"{partial}: {done} results so far; the same command with --resume continues\n"
        and not output.exists()
    )


def test_a_job_without_a_seed_keeps_the_one_it_drew(generate, tmp_path):
    prompts, output = tmp_path / "p.jsonl", tmp_path / "o.jsonl"
    good = "".join(json.dumps({"prompt": "def"}) + "\n" for _ in range(6))
    prompts.write_text(good + "{\n")
    options = ("--input", prompts, *SAMPLED, "--output", output)
    assert generate(*options)[0] == 1
    seed = json.loads((tmp_path / "o.jsonl.partial").read_bytes().split(b"\n")[0])["seed"]
    prompts.write_text(good + json.dumps({"prompt": "def"}) + "\n")
    assert generate(*options, "--resume")[0] == 0
    found = read_results(output)
    assert [result["seed"] for result in found] == list(range(seed, seed + 7))
    assert len({result["generated_text"] for result in found}) > 1
    assert generate(*options, "--force", "--seed", seed)[0] == 0
    assert read_results(output) == found


# ---- what is refused


BAD_LINES = {
    "no JSON": ("{prompt: 1}", "not JSON"),
    "no object": ('"def"', "not a JSON object"),
    "no prompt": ('{"text": "def"}', "has no \"prompt\", only 'text'"),
    "a prompt that is none": ('{"prompt": 5}', "text or a flat list of token ids"),
    "an empty prompt": ('{"prompt": []}', "empty"),
    "an unknown argument": ('{"prompt": "a", "topk": 5}', "unknown argument 'topk'; did you mean 'top_k'?"),
    "a value out of range": ('{"prompt": "a", "repetition_penalty": 0}', "repetition_penalty must be greater than 0"),
    "a kind that is none": ('{"prompt": "a", "stop_strings": 5}', "stop_strings must be a list"),
    "a function": ('{"prompt": "a", "streamer": "x"}', "streamer is for calls from Python"),
    "too long": ('{"prompt": "a", "max_new_tokens": 600}', "512"),
    "an id past the vocabulary": ('{"prompt": [1, 9999]}', "9999"),
    "half a character": ('{"prompt": "\\ud800"}', "UTF-8"),
    "deep": ("[" * 100000, "not JSON"),
}


def test_a_bad_line_stops_the_job_or_is_told_in_its_place(generate, tmp_path):
    """Alone it stops the job, when the lines before it are done; with --skip-errors each has its own message."""
    prompts, output = tmp_path / "p.jsonl", tmp_path / "o.jsonl"
    good = '{"prompt": "def", "max_new_tokens": 30}'
    prompts.write_text("\n".join([good, good, "", *(line for line, _ in BAD_LINES.values()), good]))
    code, out, err = generate("--input", prompts)
    assert code == 1 and len(read_results(out)) == 2
    assert err.startswith(f"error: {prompts}:4: not JSON") and err.count("\n") == 1
    code, out, err = generate("--input", prompts, "--skip-errors", "--output", output)
    assert (code, out) == (1, "")
    count = len(BAD_LINES)
    assert err == f'error: {count} of {count + 3} prompts could not be served: "error" in {output} says why\n'
    results = read_results(output)
    for number, (name, (_, message)) in enumerate(BAD_LINES.items()):
        assert results[number + 2].keys() == {"index", "error"}
        assert results[number + 2]["error"].startswith(f"{prompts}:{number + 4}: "), name
        assert message in results[number + 2]["error"]
    assert results[-1]["generated_text"] == results[0]["generated_text"]


def test_a_bad_line_may_be_mended_and_lines_added(generate, tmp_path):
    prompts, output, partial = tmp_path / "p.jsonl", tmp_path / "o.jsonl", tmp_path / "o.jsonl.partial"
    lines = ['{"prompt": "a"}', '{"prompt": "b", "id": 7, "topk": 1}', '{"prompt": "c"}']
    options = ("--input", prompts, "--output", output, "--max-new-tokens", 3)
    prompts.write_text("\n".join(lines))
    code, _, err = generate(*options)
    told, error = err.splitlines()
    assert code == 1 and told == f"{partial}: 1 results so far; the same command with --resume continues"
    assert error == f"error: {prompts}:2: unknown argument 'topk'; did you mean 'top_k'?"
    prompts.write_text("\n".join([lines[0], lines[1].replace("topk", "top_k"), lines[2], lines[0]]))
    assert "top_k needs do_sample" in generate(*options, "--resume")[2]
    assert generate(*options, "--resume", "--skip-errors")[0] == 1
    results = read_results(output)
    assert len(results) == 4 and results[1].keys() == {"index", "id", "error"} and results[1]["id"] == 7
    assert results[3]["generated_text"] == results[0]["generated_text"]


@pytest.fixture
def unfinished(generate, tmp_path):
    """A job that stopped at its third line: its options, without the arguments."""
    prompts, output = tmp_path / "p.jsonl", tmp_path / "o.jsonl"
    prompts.write_text('{"prompt": "a"}\n{"prompt": "b"}\n{\n')
    options = ("--input", prompts, "--output", output)
    assert generate(*options, "--max-new-tokens", 3, "--seed", 1)[0] == 1
    prompts.write_text('{"prompt": "a"}\n{"prompt": "b"}\n{"prompt": "c"}\n')
    return options


CHANGES = {
    "nothing said": ((), None, "an unfinished job (--resume goes on with it, --force starts again)"),
    "an argument": (("--resume", "--max-new-tokens", 4), None, "began with max_new_tokens 3, not 4"),
    "one more": (("--resume", "--logprobs", 1), None, "began with logprobs null, not 1"),
    "the seed": (("--resume", "--seed", 2), None, "began with seed 1, not 2"),
    "the format": (("--resume", "--input-format", "txt"), None, 'began with format "jsonl", not "txt"'),
    "a line": (("--resume",), '{"prompt": "a"}\n{"prompt": "B"}\n', "p.jsonl:2: has changed since"),
    "a line before": (("--resume",), '\n{"prompt": "x"}\n{"prompt": "a"}\n', "p.jsonl:2: has changed since"),
    "fewer lines": (("--resume",), '{"prompt": "a"}\n', "has a result of prompt 2, but there are 1 now"),
}


@pytest.mark.parametrize("case", CHANGES)
def test_another_job_does_not_go_on(generate, unfinished, tmp_path, case):
    arguments, text, message = CHANGES[case]
    before = (tmp_path / "o.jsonl.partial").read_bytes()
    if text:
        (tmp_path / "p.jsonl").write_text(text)
    code, out, err = generate(*unfinished, "--max-new-tokens", 3, *arguments)
    assert (code, out) == (1, "") and message in err.splitlines()[-1]
    assert (tmp_path / "o.jsonl.partial").read_bytes() == before and not (tmp_path / "o.jsonl").exists()


def test_another_model_does_not_go_on(monkeypatch, capsys, generate, exported, unfinished, tmp_path):
    # What was asked for is the same: only the model is not.
    other = exported(GOLDEN / "vocab-padded")
    code, _, err = run_cli(monkeypatch, capsys, "generate", other, *unfinished, "--max-new-tokens", 3, "--resume")
    assert code == 1 and "began with another model" in err
    assert generate(*unfinished, "--max-new-tokens", 3, "--resume", "--batch-size", 1, "--threads", 1)[0] == 0


def test_what_is_there_is_replaced_only_by_force_and_at_last(generate, unfinished, tmp_path):
    output = tmp_path / "o.jsonl"
    options = (*unfinished, "--max-new-tokens", 3)
    assert generate(*options, "--resume")[0] == 0
    finished = output.read_bytes()
    code, _, err = generate(*options)
    assert code == 1 and err == f"error: {output}: exists (--force replaces it)\n"
    assert generate(*options, "--resume") == (0, "", f"{output}: finished already\n")
    (tmp_path / "p.jsonl").write_text('{"prompt": "z"}\n{"prompt": []}\n')
    assert generate(*options, "--force")[0] == 1
    assert output.read_bytes() == finished and (tmp_path / "o.jsonl.partial").exists()
    assert generate(*options, "--force", "--skip-errors")[0] == 1
    assert len(read_results(output)) == 2 and not (tmp_path / "o.jsonl.partial").exists()


@pytest.mark.parametrize("text", [b"my notes", b"my notes\n", b'{"a": 1}\n', b'{"neo-tf job": 0}\n', b"[]\n"])
@pytest.mark.parametrize("option", ["--resume", "--force"])
def test_a_file_of_another_is_left_alone(text, option, tmp_path):
    (tmp_path / "o.partial").write_bytes(text)
    with pytest.raises(OutputError, match="move it away"):
        JobFile(tmp_path / "o", **{option[2:]: True})
    assert (tmp_path / "o.partial").read_bytes() == text


def test_two_processes_do_not_write_one_file(tmp_path):
    one = JobFile(tmp_path / "o")
    one.begin(JOB)
    for option in ({"resume": True}, {"force": True}):
        with pytest.raises(OutputError, match="another process"):
            JobFile(tmp_path / "o", **option)
    one.close()
    assert list(tmp_path.iterdir()) == []  # no results: nothing to go on with


USAGE = {
    "two sources": (("text", "--input", "p.jsonl"), "PROMPT and --input"),
    "resume without a file": (("text", "--resume"), "--resume needs an --output"),
    "force to standard output": (("text", "--force", "--output", "-"), "--force needs an --output"),
    "both": (("text", "--resume", "--force", "--output", "o"), "not both"),
    "no such file": (("--input", "nowhere.jsonl"), "nowhere.jsonl: No such file"),
    "a folder": (("--input", "."), ".: Is a directory"),
    "the input itself": (("--input", "p.jsonl", "--output", "./p.jsonl", "--force"), "is the input itself"),
    "into a folder": (("text", "--output", "."), "no plain file"),
    "nowhere": (("text", "--output", "nowhere/o.jsonl"), "nowhere/o.jsonl: cannot be written: No such file"),
}


@pytest.mark.parametrize("case", USAGE)
def test_what_cannot_be_done_is_one_line(generate, tmp_path, monkeypatch, case):
    arguments, message = USAGE[case]
    monkeypatch.chdir(tmp_path)
    (tmp_path / "p.jsonl").write_text('{"prompt": "a"}\n')
    code, out, err = generate(*arguments)
    assert (code, out) == (1, "") and err.startswith("error: ") and err.count("\n") == 1 and message in err
    assert [path.name for path in tmp_path.iterdir()] == ["p.jsonl"]


WITH_LIMIT = """
import resource, sys
import neo_tf.cli
resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[1]), int(sys.argv[1])))
sys.argv = ["neo-tf", "generate", *sys.argv[2:]]
neo_tf.cli.main()
"""


def test_a_full_disk_is_one_line_and_the_job_goes_on_later(generate, demo_folder, whole, tmp_path):
    """A file that may not grow past a limit fails as on a full disk: at some result, in the middle of its line."""
    options, expected = whole
    output, partial = tmp_path / "o.jsonl", tmp_path / "o.jsonl.partial"
    command = [sys.executable, "-c", WITH_LIMIT, 2000, demo_folder, *options, "--output", output]
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, timeout=60, cwd=FIXTURES.parents[1])
    told, error = done.stderr.splitlines()
    assert done.returncode == 1 and error == f"error: {output}: cannot be written: File too large"
    assert told.startswith(f"{partial}: ") and partial.stat().st_size == 2000
    assert generate(*options, "--output", output, "--resume")[0] == 0
    assert output.read_bytes() == expected


def test_a_step_that_fails_stops_the_job_or_is_told(generator, tmp_path, monkeypatch):
    decode, calls = generator.session.decode, []

    def fail(*arguments):
        calls.append(arguments)
        if len(calls) == 3:
            raise RuntimeError("out of memory")
        return decode(*arguments)

    monkeypatch.setattr(generator.session, "decode", fail)
    lines = ["def"] * 8
    file = JobFile(tmp_path / "o")
    file.begin(JOB)
    with pytest.raises(EngineError, match=r"^prompt 1: .*out of memory"):
        Job(EngineRunner(generator, {"max_new_tokens": 6}, 0), file).run(Given(lines))
    file.close()
    calls.clear()
    file = JobFile(tmp_path / "o", resume=True)
    file.begin(JOB)
    Job(EngineRunner(generator, {"max_new_tokens": 6}, 0), file, skip_errors=True).run(Given(lines))
    results = read_results(tmp_path / "o")
    assert file.errors == sum("error" in result for result in results) == 3
    assert len({result["generated_text"] for result in results if "error" not in result}) == 1


def test_an_interrupted_job_leaves_the_engine_usable(generator, tmp_path):
    def stop(amount, what):
        if int(what.split()[0]) > 4:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        Job(EngineRunner(generator, {}, 0), JobStream(), progress=stop).run(Given(["def"] * 9))
    # What is left of it ends in the next job's first step.
    results = JobFile(tmp_path / "out.jsonl")
    results.begin(JOB)
    Job(EngineRunner(generator, {"max_new_tokens": 3}, 0), results).run(Given(["def", "x"]))
    assert len((tmp_path / "out.jsonl").read_text().splitlines()) == 2
    assert generator("def", max_new_tokens=3) and not generator.engine.step()


def test_old_names_of_a_line_go_before_the_command_lines(generator, tmp_path):
    (tmp_path / "in.jsonl").write_text('{"prompt": "def", "response_length": 2, "remove_input": true}\n')
    results = JobFile(tmp_path / "out.jsonl")
    results.begin(JOB)
    with open(tmp_path / "in.jsonl", "rb") as file:
        lines = Lines(file, "in.jsonl", json=True)
        Job(EngineRunner(generator, {"max_new_tokens": 9, "return_full_text": True}, 0), results).run(lines)
    result = json.loads((tmp_path / "out.jsonl").read_text())
    assert result["new_tokens"] == 2 and not result["generated_text"].startswith("def")


def test_changed_lines_are_found_by_their_place(tmp_path):
    file = JobFile(tmp_path / "o")
    file.begin(JOB)
    first, second = Given(["a", "b"])
    file.add(second, {"index": 1})
    assert file.holds(second) and not file.holds(first)
    (_, other) = Given(["a", "c"])
    with pytest.raises(RequestError, match="prompt 2: has changed"):
        file.holds(other)
    file.close()
