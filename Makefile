PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin

.PHONY: demo test test-all lint bench install clean

demo: $(VENV)/.installed  ## prepare embedded data, train, evaluate, write report.html
	$(BIN)/heptad ctr demo
	$(BIN)/heptad seqrec demo
	$(BIN)/heptad medical demo
	$(BIN)/heptad ieeg demo
	$(BIN)/heptad pose demo
	$(BIN)/heptad expression demo
	$(BIN)/heptad finegrained demo

test: $(VENV)/.installed  ## the default tests (under 10 minutes on 2 cores)
	$(BIN)/python -m pytest -q -n 2 --dist worksteal

test-all: $(VENV)/.installed  ## also the slow ones
	$(BIN)/python -m pytest -q -n 2 -m "not gpu"

lint: $(VENV)/.installed  ## linter, formatter, types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

bench: $(VENV)/.installed  ## timings of this checkout; peers join with PEER_PYTHON=..., WSI_PYTHON=..., EEG_PYTHON=...
	$(BIN)/python -m benchmarks.ctr_training $(if $(PEER_PYTHON),--peer-python $(PEER_PYTHON))
	$(BIN)/python -m benchmarks.ctr_preparation $(if $(PEER_PYTHON),--peer-python $(PEER_PYTHON))
	$(BIN)/python -m benchmarks.seqrec_training $(if $(PEER_PYTHON),--peer-python $(PEER_PYTHON))
	$(BIN)/python -m benchmarks.seqrec_preparation
	$(BIN)/python -m benchmarks.medical_attention
	$(BIN)/python -m benchmarks.medical_bag
	$(BIN)/python -m benchmarks.medical_bag --input
	$(BIN)/python -m benchmarks.medical_tiling $(if $(WSI_PYTHON),--peer-python $(WSI_PYTHON))
	$(BIN)/python -m benchmarks.medical_heatmap
	$(BIN)/python -m benchmarks.ieeg_attention $(if $(EEG_PYTHON),--peer-python $(EEG_PYTHON))
	$(BIN)/python -m benchmarks.ieeg_attention --whole --sizes 25x64 $(if $(EEG_PYTHON),--peer-python $(EEG_PYTHON))
	$(BIN)/python -m benchmarks.ieeg_preparation
	$(BIN)/python -m benchmarks.pose_deformable
	$(BIN)/python -m benchmarks.pose_convformer
	$(BIN)/python -m benchmarks.pose_evaluation
	$(BIN)/python -m benchmarks.pose_scaling
	$(BIN)/python -m benchmarks.expression_inference
	$(BIN)/python -m benchmarks.finegrained_dcal
	$(BIN)/python -m benchmarks.finegrained_reid

install: $(VENV)/.installed

$(VENV)/.installed: pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --editable ".[dev]"
	touch $@

clean:
	rm -rf $(VENV) build dist
