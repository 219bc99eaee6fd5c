"""The model cards' snippets, run as programs with the cards' own clients, unmodified: npu and pipeline-ai."""

import json
import os
import subprocess

import pytest
from peer_helpers import peer
from server_helpers import running_server

import neo_tf
from neo_tf.runtime.server.api_keys import ApiKeys

PROMPT = "def read_lines(path):"
SNIPPET = {"max_length": 40, "do_sample": True, "temperature": 0.8, "seed": 7}
OPTIONS = {"response_length": 24, "remove_input": True, "num_return_sequences": 2, "seed": 7}

# The card of GPT-Neo-125M: a token, a model's id, and transformers' names.
NPU_SNIPPET = """
from npu import api, predict

api("API_TOKEN", deployed=True)
output = predict("60ca2a1e54f6ecb69867c72c", [PROMPT], SNIPPET)
print(output)
"""

# The same client outside of its deployment mode: data are uploaded, and a task is asked for its state.
NPU_TASKS = """
import npu

npu.api("API_TOKEN")
for arguments in (SNIPPET, OPTIONS, OPTIONS):  # data that are there are not uploaded again
    task = npu.predict("60ca2a1e54f6ecb69867c72c", [PROMPT, "import os"], input_kwargs=arguments)
    tell(task.get_result())
data = npu.upload_data(["class Parser:"])
tell(npu.predict(npu.nlp.models.CausalLM("gpt-neo"), data, SNIPPET, asynchronous=True).get_result())
"""

NPU_ERRORS = """
import npu

def failure(*arguments, **named):
    try:
        return npu.predict(*arguments, **named)
    except Exception as error:
        return str(error)

npu.api("API_TOKEN", deployed=True)
tell(failure("any", [PROMPT], {"nonsense": 1}))
tell(failure("any", [1, 2]))
npu.api("API_TOKEN")
tell(failure("any", [PROMPT], {"nonsense": 1}))  # the client prints why, and raises an exception without it
try:
    npu.api("WRONG", deployed=True)
except Exception:
    tell("refused")
"""

# The card of GPT-Neo-2.7B. It writes PipelineCloud("API_TOKEN"), but the first argument of this client is the address.
PIPELINE_AI_SNIPPET = """
from pipeline import PipelineCloud

pipeline = PipelineCloud(token="API_TOKEN")
run = pipeline.run_pipeline("pipeline_1d3cff8e9d4d4f3a9f7a", [PROMPT, OPTIONS])
print(run["result_preview"])
"""

PIPELINE_AI_MORE = """
tell(pipeline.download_result(run))
tell(pipeline.download_data(run["data"]["id"]))
from pipeline.schemas.run import RunGet
tell(RunGet.parse_obj(run).run_state.value)
tell(pipeline.run_pipeline("any", [[PROMPT, "import os"], SNIPPET])["result_preview"])

def failure(arguments):
    try:
        return pipeline.run_pipeline("any", arguments)
    except Exception as error:
        return str(error)

tell(failure([PROMPT, {"nonsense": 1}]))
tell(failure([lambda: 1]))
try:
    PipelineCloud(token="WRONG")
except Exception as error:
    tell(type(error).__name__)
"""


@pytest.fixture(scope="module")
def server(demo_folder):
    with running_server(demo_folder, keys=ApiKeys(["API_TOKEN"])) as running:
        yield running


@pytest.fixture(scope="module")
def generator(demo_folder):
    return neo_tf.pipeline(model=demo_folder)


def run(client, server, program):
    """What a program prints, and the values that it tells."""
    python = peer(client) / "bin/python"
    values = f"PROMPT, SNIPPET, OPTIONS = {PROMPT!r}, {SNIPPET!r}, {OPTIONS!r}\n"
    tell = "import json\ndef tell(value): print('\\ntold:' + json.dumps(value))\n"
    addresses = {"BASE_URL": f"{server.url}/npu/", "PIPELINE_API_URL": server.url}
    done = subprocess.run(
        [python, "-W", "ignore", "-c", values + tell + program],
        env={**os.environ, **addresses},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stdout + done.stderr[-3000:]
    lines = done.stdout.splitlines()
    return done.stdout, [json.loads(line.removeprefix("told:")) for line in lines if line.startswith("told:")]


def test_npus_snippet_prints_the_pipelines_text(server, generator):
    printed, _ = run("npu", server, NPU_SNIPPET)
    assert "Token successfully authenticated" in printed
    assert printed.splitlines()[-1] == str(generator(PROMPT, **SNIPPET))


def test_npu_uploads_and_waits_for_its_tasks(server, generator):
    printed, told = run("npu", server, "import npu.nlp.models\n" + NPU_TASKS)
    both = [PROMPT, "import os"]
    expected = [generator(both, **SNIPPET), generator(both, **OPTIONS), generator(both, **OPTIONS)]
    assert told == [*expected, generator("class Parser:", **SNIPPET)]
    assert printed.count("Uploading now") == 2 and printed.count("the data are here already") == 2


def test_npu_tells_what_is_wrong(server):
    printed, told = run("npu", server, NPU_ERRORS)
    unknown, numbers, without, refused = told
    assert "ERROR for prediction: unknown argument 'nonsense'" in unknown
    assert "holds numbers" in numbers and "send a list of texts" in numbers
    assert without == "" and "Error: unknown argument 'nonsense'" in printed
    assert refused == "refused" and "Error: the API key is wrong" in printed


def test_pipeline_ais_snippet_prints_the_pipelines_text(server, generator):
    printed, told = run("pipeline-ai", server, PIPELINE_AI_SNIPPET + PIPELINE_AI_MORE)
    expected = generator(PROMPT, **OPTIONS)
    assert str(expected) in printed.splitlines()
    result, arguments, state, several, unknown, function, refused = told
    assert (result, arguments, state) == (expected, [PROMPT, OPTIONS], "complete")
    assert several == generator([PROMPT, "import os"], **SNIPPET)
    assert "Error 400: unknown argument 'nonsense'" in unknown
    assert "Error 400: the pickle holds more than lists, dicts, texts and numbers" in function
    assert refused == "MissingActiveToken"
