# make demo   pretrain a tiny I-JEPA on embedded pictures      make lint   formatting, lints and types
# make test   run the tests                                   make clean  remove the environment and the runs
# All set up .venv by themselves. Another Python: make demo PYTHON=python3.12

PYTHON ?= python3
BIN := .venv/bin
RUN_DIR ?= runs/demo

.PHONY: demo test lint clean
.DELETE_ON_ERROR:

demo: .venv/ready
	@echo "== Pretraining recipe ijepa_tiny on rendered shapes (minutes on two cores) into $(RUN_DIR)"
	@echo "== The same command again resumes it or, at its end, says so; RUN_DIR=... trains anew"
	$(BIN)/python -m jepa.run recipe=ijepa_tiny run_dir=$(RUN_DIR)
	@echo "== Probing the frozen encoder beside raw pixels, a random initialisation and chance"
	$(BIN)/python -m jepa.evaluate run=$(RUN_DIR) limit=2000 "probes=[knn,linear,regression]"
	@echo "== Drawing the report"
	$(BIN)/python -m jepa.report run=$(RUN_DIR)

test: .venv/ready
	@echo "== Running the tests on two processes"
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2

lint: .venv/ready
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

.venv/ready: pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "jepa needs Python 3.11 or newer; $(PYTHON) is $$($(PYTHON) --version). Name another: make PYTHON=python3.12"; exit 1; }
	@echo "== Setting up .venv (once; PyTorch is a download of a few GB)"
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --progress-bar on --editable ".[dev]"
	@touch $@

clean:
	rm -rf .venv runs build dist
