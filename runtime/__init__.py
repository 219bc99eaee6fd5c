"""Decoding exported models with onnxruntime; no onnx, no TensorFlow."""

from runtime.beams import BeamOptions
from runtime.engine import Engine
from runtime.pipeline import pipeline
from runtime.request import Request
from runtime.sampling import SamplingOptions
from runtime.service import Service
from runtime.session import Session
from runtime.tokenizer import Tokenizer

__all__ = ["BeamOptions", "Engine", "Request", "SamplingOptions", "Service", "Session", "Tokenizer", "pipeline"]
