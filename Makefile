# make demo: from nothing to generated text.  make test: the whole suite.  Neither installs twice.
# make peers: other runtimes, for the tests that load an exported folder in them; make test includes it.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
MODEL := tests/fixtures/tiny-python
PROMPT ?= def read_lines(path):

PEERS := .peers

.PHONY: demo test peers lint clean

demo: $(VENV)/.demo
	@rm -rf demo && mkdir demo
	$(BIN)/neo-tf info $(MODEL)
	$(BIN)/neo-tf convert $(MODEL) demo/keras
	$(BIN)/neo-tf export demo/keras demo/onnx
	$(BIN)/neo-tf generate demo/onnx "$(PROMPT)" --max-new-tokens 120 --do-sample --temperature 0.7 --seed 1

test: $(VENV)/.test peers
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/python -m pytest

lint: $(VENV)/.test
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:
	rm -rf $(VENV) $(PEERS) demo build *.egg-info

# Stamps: an installation is repeated only when what it depends on has changed.
$(VENV)/bin/python:
	$(PYTHON) -c "import sys; sys.exit('neo-tf needs Python 3.11 or later') if sys.version_info < (3, 11) else None"
	$(PYTHON) -m venv $(VENV)

$(VENV)/.demo: setup.py | $(VENV)/bin/python
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[tensorflow]'
	touch $@

$(VENV)/.test: setup.py | $(VENV)/bin/python
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[test]'
	touch $@ $(VENV)/.demo

# Other runtimes, each in an environment of its own: they want other versions than the tests. Where one cannot be
# installed, its tests are skipped with the reason, which is the end of its log; the next run tries again.
peers: $(PEERS)/genai/.done $(PEERS)/optimum/.done $(PEERS)/js/.done

$(PEERS)/genai/.done $(PEERS)/optimum/.done: $(PEERS)/%/.done: tests/portable/%.txt
	@mkdir -p $(@D)
	{ $(PYTHON) -m venv $(@D) && $(@D)/bin/python -m pip install --quiet --disable-pip-version-check -r $<; } \
		>$(@D)/install.log 2>&1 && touch $@ || echo "$(@D): not installed, its tests will be skipped"

$(PEERS)/js/.done: tests/portable/package.json
	@mkdir -p $(@D)
	cp $< $(@D) && { npm install --prefix $(@D) --ignore-scripts --no-audit --no-fund --no-progress; } \
		>$(@D)/install.log 2>&1 && touch $@ || echo "$(@D): not installed, its tests will be skipped"
