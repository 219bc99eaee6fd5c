"""A Ray cluster of one node with the server on it, for test_ray.py. It runs in the environment that has Ray.

Writes a line of JSON with the addresses when it is ready, and ends when its standard input does.
"""

import json
import socket
import sys

import ray
from ray import serve

from neo_tf.runtime.server.ray import ReplicaArguments, app

with socket.create_server(("127.0.0.1", 0)) as free:
    port = free.getsockname()[1]
ray.init("local", num_cpus=3, include_dashboard=False, log_to_driver=False, object_store_memory=80_000_000)
serve.start(http_options={"host": "127.0.0.1", "port": port})
serve.run(app(ReplicaArguments(**json.loads(sys.argv[1]))))
told = {"url": f"http://127.0.0.1:{port}", "address": ray.get_runtime_context().gcs_address}
print(json.dumps(told), flush=True)
sys.stdin.read()
serve.shutdown()
ray.shutdown()
