# The commands of who works on neo-tf; `make` alone lists them. Nothing is needed but Python 3.11 to 3.13 and make.
# What they install is locked in requirements/: exact versions, with hashes. No command installs twice.
# Another Python wants another environment: make demo PYTHON=python3.13 VENV=.venv-3.13
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
PEERS := .peers
LATEST := .venv-latest
UPDATE := .update
# PyTorch for CUDA is there, too. On a machine that has all of it already: make gpu GPU_PYTHON=python3
GPU := .venv-gpu
GPU_PYTHON := $(GPU)/bin/python
MODEL := tests/fixtures/tiny-python
PROMPT ?= def read_lines(path):
N ?= 2000
SEED ?= 0
# The whole suite runs in two processes, each of which takes 2 GB of memory and hardly more than one core. The tests of
# a file stay together, with the models that they share. In one process: make test TOGETHER=
TOGETHER ?= --numprocesses 2 --dist loadfile

.PHONY: help demo test gpu threads schedules ray-nodes random-folders server-fuzz server-soak lint types peers lock update latest clean

help:
	@sed -n 's/^\([a-z-]*\):.* ## \(.*\)/make \1\t\2/p' $(MAKEFILE_LIST) | expand -t 21

demo: $(VENV)/.demo ## from nothing to generated text, with a small bundled model
	@rm -rf demo && mkdir demo
	$(BIN)/neo-tf info $(MODEL)
	$(BIN)/neo-tf convert $(MODEL) demo/keras
	$(BIN)/neo-tf export demo/keras demo/onnx
	$(BIN)/neo-tf generate demo/onnx "$(PROMPT)" --max-new-tokens 120 --do-sample --temperature 0.7 --seed 1

test: $(VENV)/.test peers ## style, types and the whole suite
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(MAKE) types
	$(BIN)/python -m pytest $(TOGETHER)

# Only what looks for a driver needs no installation; whether a GPU starts is seen by starting a session on it.
gpu: ## all that only a GPU can tell, in 10 minutes, with a report in build/gpu; ends with 2 where no GPU starts
	@$(PYTHON) tests/gpu/start.py --driver
	@if [ "$(GPU_PYTHON)" = "$(GPU)/bin/python" ]; then $(MAKE) $(GPU)/.done; fi
	$(GPU_PYTHON) tests/gpu/suite.py --report build/gpu

threads: $(VENV)/.test ## 12 threads with 200 calls each on one pipeline
	NEO_TF_CALLS_OF_EACH_THREAD=200 $(VENV)/bin/python -m pytest -q tests/runtime/test_many_threads.py

schedules: $(VENV)/.test ## 20 times as many random schedules of requests as in make test
	NEO_TF_SCHEDULES=20 $(VENV)/bin/python -m pytest -q tests/runtime/engine/test_engine_properties.py tests/runtime/engine/test_service.py

lint: $(VENV)/.test ## corrects the style, and checks the types
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
	$(MAKE) types

# The types are checked in the package as it is installed: only there do the folders have the names that they import
# each other by. build/ is removed first: what an older build left there would be packed again.
types: $(VENV)/.test ## checks the types
	@rm -rf build
	$(BIN)/python -m pip install $(QUIET) --no-deps --no-build-isolation --target build/types .
	cd build/types && $(abspath $(BIN))/mypy --config-file $(CURDIR)/pyproject.toml --cache-dir $(CURDIR)/.mypy_cache -p neo_tf

# The folder is exported beside the tests: Ray's environment has no TensorFlow.
ray-nodes: $(VENV)/.test $(PEERS)/ray/.done ## loses nodes of a Ray cluster of this machine, in a job and under traffic
	@rm -rf build/ray-nodes && mkdir -p build
	$(BIN)/neo-tf export $(MODEL) build/ray-nodes
	$(PEERS)/ray/bin/python tests/ray_nodes.py build/ray-nodes

random-folders: $(VENV)/.test ## draws N folders from SEED on, and compares neo-tf with transformers on each
	$(BIN)/python tests/random_folders/check_folders.py --folders $(N) --seed $(SEED)

server-fuzz: $(VENV)/.test $(PEERS)/schemathesis/.done ## sends N cases made of the server's OpenAPI schema to a server
	@mkdir -p build && rm -rf build/*-onnx
	$(BIN)/neo-tf export $(MODEL) build/fuzz-onnx
	$(BIN)/python tests/fuzz/server_fuzz.py build/fuzz-onnx --cases $(N) --seed $(SEED)

server-soak: $(VENV)/.test ## cuts N connections to a server at random moments, and looks at its memory
	@mkdir -p build && rm -rf build/*-onnx
	$(BIN)/neo-tf export $(MODEL) build/soak-onnx
	$(BIN)/python benchmarks/server_soak.py build/soak-onnx --connections $(N) --seed $(SEED)

# -- What is installed ------------------------------------------------------------------------------------------------

QUIET := --quiet --disable-pip-version-check

# $(call install,ENVIRONMENT,LOCK): what the lock names, in these versions and no others. Dependencies are not looked
# for, since the lock has them all, and a package that has no wheel is built with what build.txt put there.
install = $(1)/bin/python -m pip install $(QUIET) --require-hashes --no-deps --no-build-isolation -r requirements/$(2).txt

# $(call install-torch,ENVIRONMENT): PyTorch's own build for the CPU where pip finds it (PIP_FIND_LINKS or
# PIP_EXTRA_INDEX_URL says where), and else the index's, which on Linux needs 3 GB of CUDA's libraries to run at all.
install-torch = { $(call install,$(1),torch-cpu) 2>/dev/null \
	|| { echo "No CPU build of torch was found: installing the index's"; $(call install,$(1),torch); }; }

# $(call install-project,ENVIRONMENT): neo-tf itself, and a look at whether all that its packages need is there, but
# for triton, which requirements/update.py leaves out.
install-project = $(1)/bin/python -m pip install $(QUIET) --no-deps --no-build-isolation --editable . \
	&& ! $(1)/bin/python -m pip check --disable-pip-version-check | grep -v -e "^No broken" -e "requires triton,"

# Stamps: an installation is repeated only when what it depends on has changed.
$(BIN)/python:
	$(PYTHON) -c "import sys; sys.exit(None if (3, 11) <= sys.version_info[:2] <= (3, 13) else \
		'TensorFlow needs Python 3.11, 3.12 or 3.13: say make PYTHON=python3.13')"
	$(PYTHON) -m venv $(VENV)

$(VENV)/.build: requirements/build.txt | $(BIN)/python
	$(call install,$(VENV),build)
	touch $@

$(VENV)/.demo: requirements/demo.txt setup.py $(VENV)/.build
	$(call install,$(VENV),demo)
	$(call install-project,$(VENV))
	touch $@

$(VENV)/.test: requirements/test.txt requirements/torch.txt requirements/torch-cpu.txt setup.py $(VENV)/.build
	$(call install,$(VENV),test)
	$(call install-torch,$(VENV))
	$(call install-project,$(VENV))
	touch $@ $(VENV)/.demo

$(GPU)/.done: requirements/build.txt requirements/test.txt requirements/torch.txt setup.py
	$(PYTHON) -m venv $(GPU)
	$(call install,$(GPU),build)
	$(call install,$(GPU),test)
	$(call install,$(GPU),torch)
	$(call install-project,$(GPU))
	touch $@

# Other runtimes, each in an environment of its own: they want other versions than the tests. Where one cannot be
# installed, its tests are skipped with the reason, which is the end of its log; the next run tries again.
peers: $(PEERS)/genai/.done $(PEERS)/optimum/.done $(PEERS)/js/.done $(PEERS)/lm-eval/.done $(PEERS)/npu/.done $(PEERS)/pipeline-ai/.done $(PEERS)/ray/.done ## other runtimes for the tests that load an exported folder in them, Ray, and old clients of the server

$(PEERS)/genai/.done: requirements/genai.txt
	@mkdir -p $(@D)
	{ $(PYTHON) -m venv $(@D) && $(call install,$(@D),genai); } \
		>$(@D)/install.log 2>&1 && touch $@ || echo "$(@D): not installed, its tests will be skipped"

$(PEERS)/optimum/.done: requirements/optimum.txt requirements/torch.txt requirements/torch-cpu.txt
	@mkdir -p $(@D)
	{ $(PYTHON) -m venv $(@D) && $(call install,$(@D),optimum) && $(call install-torch,$(@D)); } \
		>$(@D)/install.log 2>&1 && touch $@ || echo "$(@D): not installed, its tests will be skipped"

$(PEERS)/js/.done: tests/portable/package.json tests/portable/package-lock.json
	@mkdir -p $(@D)
	cp $^ $(@D) && { npm ci --prefix $(@D) --ignore-scripts --no-audit --no-fund --no-progress; } \
		>$(@D)/install.log 2>&1 && touch $@ || echo "$(@D): not installed, its tests will be skipped"

# Ray brings uvloop and httptools, which uvicorn uses where it finds them: beside the tests they would change what the
# server's tests run on.
$(PEERS)/ray/.done: requirements/build.txt requirements/ray.txt setup.py
	@mkdir -p $(@D)
	{ $(PYTHON) -m venv $(@D) && $(call install,$(@D),build) && $(call install,$(@D),ray) \
		&& $(call install-project,$(@D)); } \
		>$(@D)/install.log 2>&1 && touch $@ || echo "$(@D): not installed, its tests will be skipped"

# Clients of the server that need old packages. bson, which npu needs, has no wheel.
$(PEERS)/npu/.done: requirements/npu.txt requirements/build.txt
	@mkdir -p $(@D)
	{ $(PYTHON) -m venv $(@D) && $(call install,$(@D),build) && $(call install,$(@D),npu); } \
		>$(@D)/install.log 2>&1 && touch $@ || echo "$(@D): not installed, its tests will be skipped"

$(PEERS)/pipeline-ai/.done: requirements/pipeline-ai.txt
	@mkdir -p $(@D)
	{ $(PYTHON) -m venv $(@D) && $(call install,$(@D),pipeline-ai); } \
		>$(@D)/install.log 2>&1 && touch $@ || echo "$(@D): not installed, its tests will be skipped"

# Some of what it needs has no wheel, and is built with what build.txt puts there.
$(PEERS)/lm-eval/.done: requirements/lm-eval.txt requirements/build.txt
	@mkdir -p $(@D)
	{ $(PYTHON) -m venv $(@D) && $(call install,$(@D),build) && $(call install,$(@D),lm-eval); } \
		>$(@D)/install.log 2>&1 && touch $@ || echo "$(@D): not installed, its tests will be skipped"

$(PEERS)/schemathesis/.done: requirements/schemathesis.txt
	@mkdir -p $(@D)
	$(PYTHON) -m venv $(@D)
	$(call install,$(@D),schemathesis)
	touch $@

# -- Versions ---------------------------------------------------------------------------------------------------------

lock: $(UPDATE)/.done ## writes the lock files after setup.py, requirements/*.in or package.json has changed; keeps versions that fit
	$(UPDATE)/bin/python requirements/update.py --keep

update: $(UPDATE)/.done ## writes the lock files with the newest of everything that setup.py allows
	$(UPDATE)/bin/python requirements/update.py

latest: ## runs the suite with the newest of everything that setup.py allows, in an environment of its own
	$(PYTHON) -m venv --clear $(LATEST)
	$(LATEST)/bin/python -m pip install $(QUIET) --editable '.[test]'
	$(LATEST)/bin/python -m pip uninstall $(QUIET) --yes triton # requirements/update.py says why
	$(LATEST)/bin/python -m pip freeze --disable-pip-version-check --exclude-editable
	$(LATEST)/bin/python -m pytest $(TOGETHER)

$(UPDATE)/.done: requirements/update.txt
	$(PYTHON) -m venv $(UPDATE)
	$(call install,$(UPDATE),update)
	touch $@

clean: ## removes all that these commands made
	rm -rf .venv .venv-* $(VENV) $(PEERS) $(UPDATE) demo build *.egg-info .mypy_cache .pytest_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
