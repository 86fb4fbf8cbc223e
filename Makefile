# Two commands matter: `make demo` and `make test`. Both set everything up on first use.
PYTHON ?= python3
VENV   ?= .venv
TORCH  ?= torch==2.13.0
BIN    := $(VENV)/bin
STAMP  := $(VENV)/.installed
# With a compiler at hand, kernels that do not compile are an error here, not a reason to go on without them.
export DLMK_BUILD ?= $(if $(shell command -v $(CXX) 2>/dev/null),require,auto)
INPUTS := pyproject.toml setup.py dlm_kernels/cpu/build_config.py $(shell find csrc -type f -name '*.[hc]*' 2>/dev/null)

.PHONY: demo test test-slow bench resources gpu-check lint format docs build clean

demo: $(STAMP)
	$(BIN)/dlm-bench demo

test: $(STAMP)
	$(BIN)/python -m pytest

test-slow: $(STAMP)
	$(BIN)/python -m pytest -m slow

# One thread, no timing asserted. Compare two files with `pytest-benchmark compare A.json B.json`.
bench: $(STAMP)
	$(BIN)/python -m pytest benches/micro --benchmark-json=bench.json --benchmark-columns=median,iqr,rounds \
	  --benchmark-sort=name --benchmark-disable-gc -q

# GPU kernels compiled ahead of time, compared with benches/results/resources.json; needs no GPU.
resources: $(STAMP)
	$(BIN)/dlm-bench resources --check

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	@mkdir -p build/typing && ln -sfn ../../dlm_kernels build/typing/dlm_kernels \
	  && ln -sfn ../../samplers build/typing/dlm_samplers
	cd build/typing && ../../$(BIN)/mypy --config-file ../../pyproject.toml -p dlm_kernels -p dlm_samplers

format: $(STAMP)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# The documentation as a site, into build/site; links are checked.
docs: $(STAMP)
	$(BIN)/mkdocs build --strict

# torch first and pinned: a looser request may fetch another build of several gigabytes.
$(STAMP): $(INPUTS)
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet "setuptools>=77" wheel
	$(BIN)/python -c "import torch" 2>/dev/null || $(BIN)/python -m pip install --quiet "$(TORCH)"
	$(BIN)/python -m pip install --quiet --no-build-isolation --editable ".[dev]"
	touch $(STAMP)

build: $(STAMP)
	$(BIN)/python -m build

# Op tests, CUDA graphs, races and times on a GPU; says so and ends well where there is none.
gpu-check: $(STAMP)
	$(BIN)/dlm-bench gpu-check

clean:
	rm -rf build dist demo-out bench.json .benchmarks *.egg-info $(STAMP)
