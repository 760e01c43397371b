# make demo   install, then everything on the embedded model, with a report in demo/report.html
# make rehearse-12b   one training step of FLUX.1-dev in full size on the CPU (15 minutes, 10 GB of memory)
# make rehearse-klein   one try-on of FLUX.2-klein-4B in full size on the CPU (half an hour on two cores, 12 GB of memory)
# make mutants   small changes in the code, one by one: do the tests notice? (an hour; goal 80 %)
# make test   install, then ruff, mypy, import-linter and the tests in TEST_PROCESSES (2) processes (under 15 minutes on 2 cores)
# make docs   the site, into build/site, without a network; and docs/errors.md from the source
# make test-ray   installs Ray (80 MB) and runs the tests on a cluster of one machine
# make test-s3    copies to and from a server on this machine that speaks S3
# make wheel  builds the wheel, installs it into an empty environment and dresses somebody there (WHEEL_PYTHON=python3.13)
# make test-api   2,000 requests that fit the OpenAPI document, and such that do not: is every answer as it says?
# make soak   50 clients at `triptych serve` for two minutes, on the embedded model: what is lost, memory, times
# make gpu    what a card can prove in 8 minutes (GPU_BUDGET seconds), with the Python at hand; figures in GPU_OUT
# make gpu-wheels   the packages for a machine with a card, PyTorch and no network, into build/gpu-wheels
TEST_PROCESSES ?= 2
PYTHON ?= $(shell command -v python3.11 || command -v python3)
BIN := .venv/bin
READY := .venv/.ready

GPU_PYTHON ?= $(shell test -x $(BIN)/python && echo $(BIN)/python || command -v python3)
GPU_BUDGET ?= 480
GPU_OUT ?= work/gpu
GPU_WHEELS ?=

WHEEL := build/wheel
WHEEL_PYTHON ?= $(PYTHON)

.PHONY: docs wheel demo test test-ray test-s3 test-slow test-api soak lint format clean mutants rehearse-12b rehearse-klein gpu gpu-wheels

demo: $(READY)
	$(BIN)/triptych demo --out demo

test: lint
	HF_HUB_OFFLINE=1 OMP_NUM_THREADS=1 $(BIN)/pytest -n $(TEST_PROCESSES) --dist loadfile -m "not slow"

test-slow: $(READY)
	HF_HUB_OFFLINE=1 $(BIN)/pytest -m slow

test-api: $(READY)
	HF_HUB_OFFLINE=1 OMP_NUM_THREADS=1 $(BIN)/pytest -s tests/test_serve_schema.py -m slow

soak: $(READY)
	HF_HUB_OFFLINE=1 OMP_NUM_THREADS=1 $(BIN)/python benchmarks/soak.py --out work/soak.json

test-ray: $(READY)
	$(BIN)/pip install --disable-pip-version-check --quiet -c constraints.txt -e '.[dev,ray]'
	HF_HUB_OFFLINE=1 OMP_NUM_THREADS=1 $(BIN)/pytest -m ray

test-s3: $(READY)
	$(BIN)/pip install --disable-pip-version-check --quiet -c constraints.txt -e '.[dev,s3]'
	$(BIN)/pip install --disable-pip-version-check --quiet 'moto[server]'
	HF_HUB_OFFLINE=1 OMP_NUM_THREADS=1 $(BIN)/pytest -m s3

mutants: $(READY)
	$(BIN)/pip install --disable-pip-version-check --quiet -c constraints.txt -e '.[dev,mutation]'
	HF_HUB_OFFLINE=1 OMP_NUM_THREADS=1 $(BIN)/mutmut run --max-children 2
	$(BIN)/python tests/mutation_score.py

rehearse-12b: $(READY)
	$(BIN)/python benchmarks/rehearse_12b.py --out work/rehearsal-12b --report docs/rehearsal-12b.md

rehearse-klein: $(READY)
	$(BIN)/python benchmarks/rehearse_klein.py --out work/rehearsal-klein --report docs/rehearsal-klein.md

gpu:
	$(GPU_PYTHON) benchmarks/gpu.py --budget $(GPU_BUDGET) --out $(GPU_OUT)

gpu-wheels:
	$(PYTHON) benchmarks/gpu_wheels.py $(GPU_WHEELS)

docs: $(READY)
	$(BIN)/python -m recipes.docs.site

wheel:
	rm -rf $(WHEEL) && mkdir -p $(WHEEL)
	$(WHEEL_PYTHON) -m venv $(WHEEL)/env
	$(WHEEL)/env/bin/pip install --disable-pip-version-check --quiet build hatchling
	$(WHEEL)/env/bin/python -m build --no-isolation --wheel --outdir $(WHEEL) .
	$(WHEEL)/env/bin/pip install --disable-pip-version-check --quiet -c constraints.txt $(WHEEL)/*.whl
	$(WHEEL)/env/bin/triptych doctor --work $(WHEEL)/work
	$(WHEEL)/env/bin/python -I benchmarks/wheel_check.py

lint: $(READY)
	$(BIN)/ruff check src tests benchmarks recipes comfyui-triptych
	$(BIN)/ruff format --check src tests benchmarks recipes comfyui-triptych
	$(BIN)/mypy
	$(BIN)/lint-imports

format: $(READY)
	$(BIN)/ruff check --fix src tests benchmarks recipes comfyui-triptych
	$(BIN)/ruff format src tests benchmarks recipes comfyui-triptych
	$(BIN)/python -m recipes.docs.errors

$(READY): pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --disable-pip-version-check --quiet -c constraints.txt -e '.[dev]'
	touch $@

clean:
	rm -rf .venv .pytest_cache .mypy_cache .ruff_cache demo
