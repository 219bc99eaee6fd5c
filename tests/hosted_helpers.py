"""The cards' hosted services on the wire: what their clients npu and pipeline-ai send, sent by hand."""

import io
import json
import pickle

import numpy as np


def npz(texts):
    """Texts in the file that npu makes of them."""
    file = io.BytesIO()
    np.savez(file, **{str(number): text for number, text in enumerate(texts)})
    return file.getvalue()


def npu_form(data, **fields):
    """npu's form, as arguments of a client's post."""
    told = {"modelId": "any", "scripts": [], "hash": "x", "collection": 1, "project": "Default", **fields}
    return {"files": {"file": ("file", data), "json": (None, json.dumps(told), "application/json")}}


def sync_predict(client, texts, **arguments):
    """The answer of npu's prediction in deployment mode."""
    return client.post(
        "/npu/SyncPredict", params={"include_result": True}, **npu_form(npz(texts), input_kwargs=arguments)
    )


def start_task(client, texts, **arguments):
    """The id of a prediction that npu starts in the background."""
    data = client.post("/npu/UploadData", **npu_form(npz(texts))).raise_for_status().json()["id"]
    answer = client.post("/npu/Predict", json={"modelId": "any", "dataId": data, "input_kwargs": arguments})
    return answer.raise_for_status().text


def task_state(client, task):
    """What npu is told of a task, with its result."""
    return client.get(f"/npu/status/{task}", params={"include_result": True}).raise_for_status().json()


def upload_data(client, pickled):
    """The answer to a pickle that pipeline-ai has uploaded and made the data of runs; its id where all went well."""
    form = {"files": {"file": ("name", pickled.hex())}, "data": {"file_path": "/"}}
    file = client.post("/v2/files/", **form).raise_for_status().json()
    return client.post("/v2/data", json=file).raise_for_status().json()["id"]


def run_pipeline(client, arguments):
    """The answer to a run of pipeline-ai's. The arguments may be pickled already."""
    pickled = arguments if isinstance(arguments, bytes) else pickle.dumps(arguments)
    body = {"pipeline_id": "any", "data_id": upload_data(client, pickled), "blocking": False, "compute_type": None}
    return client.post("/v2/runs", json={**body, "function_id": None, "data": None, "compute_requirements": None})


def post_json(client, path, body):
    """The answer to a body as JSON in ASCII, which can say half of a surrogate pair."""
    return client.post(path, content=json.dumps(body), headers={"content-type": "application/json"})
