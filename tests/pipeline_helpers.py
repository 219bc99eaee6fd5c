"""Pipelines of neo-tf and of transformers over the same folder."""

import pytest
import transformers

import neo_tf


def both_pipelines(folder, cache):
    """neo-tf's pipeline, whose export lies in a folder `cache` of its own, and transformers'."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setenv("NEO_TF_CACHE", str(cache))
        ours = neo_tf.pipeline("text-generation", model=folder)
    return ours, transformers.pipeline("text-generation", model=str(folder))
