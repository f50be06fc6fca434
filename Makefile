# Every target sets up .venv by itself; needs Python >= 3.11, make and git.
PYTHON ?= python3
DEMO ?= work/demo
BIN := .venv/bin
SETUP := .venv/.installed
LOWEST := .venv-lowest

.PHONY: help setup demo test test-lowest check soak learn bench bench-cache bench-loader bench-train bench-scale bench-gpu peers lint format wheel sbom lock clean-demo

help:            ## this list
	@grep -hE '^[a-z-]+: .*##' $(MAKEFILE_LIST) | sed -E 's/: *[^#]*## */\t/' | sort | awk -F'\t' '{printf "make %-12s %s\n", $$1, $$2}'

setup: $(SETUP)  ## .venv with the locked packages
$(SETUP): requirements.lock pyproject.toml
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "cspine needs Python >= 3.11; name one by PYTHON=")'
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check uv
	$(BIN)/uv pip install --quiet --python $(BIN)/python --require-hashes -r requirements.lock
	$(BIN)/uv pip install --quiet --python $(BIN)/python --no-deps --editable .
	touch $@

demo: $(SETUP) $(DEMO)/rsna  ## phantom -> cache -> four stages -> tables, scores and a report, in work/demo
	$(BIN)/python -m preprocess build-cache $(DEMO)/rsna $(DEMO)/cache --folds 2
	$(BIN)/python -m trainer.plan configs/plan/demo.yaml cache=$(DEMO)/cache out=$(DEMO)/runs
	$(BIN)/python -m trainer.predict source=$(DEMO)/cache models=$(DEMO)/runs out=$(DEMO)/answers held_out=true slices=true

$(DEMO)/rsna: | $(SETUP)
	$(BIN)/python -m preprocess phantom $@

test: $(SETUP)   ## the tests, at most 10 minutes on 2 idle cores
	$(BIN)/python -m pytest -n 2 --dist loadfile -m "not check"

# the report is opened in a browser, DICOM results by two validators: installed where that is possible, else these tests are skipped
check: $(SETUP)  ## what needs many launches, clusters, mounts, other users or hundreds of trials; at most 30 minutes
	@sh tests/install_tools.sh chromium dicom3tools dcmtk
	$(BIN)/python -m pytest -n 2 --dist loadfile -m check

test-lowest: $(LOWEST)/.installed  ## tables, settings, series, cache and training steps with the lowest packages that pyproject.toml allows
	$(LOWEST)/bin/python -m pytest -n 2 --dist loadfile -m "not check" $(LOWEST_TESTS)

LOWEST_TESTS := tests/cache_schema $(patsubst %,tests/preprocess/test_%.py,cli decode folds labels study_planner values) \
	$(patsubst %,tests/trainer/test_%.py,config own_tables plain_loop resume tables)
$(LOWEST)/.installed: pyproject.toml | $(SETUP)
	$(BIN)/uv venv --quiet --clear --python $(BIN)/python $(LOWEST)
	$(BIN)/uv pip install --quiet --python $(LOWEST)/bin/python --resolution lowest-direct --editable '.[dev]'
	touch $@

soak: $(SETUP)   ## kills, flipped bits, broken files and random changes by the hundred; about two hours
	PYTHONPATH=tests/preprocess:tests/cache_schema:tests/servers $(BIN)/python tests/soak/soak.py

learn: $(SETUP)  ## whether all stages learn a phantom's truth and nothing they must not know; an hour to an hour and a half
	$(BIN)/python tests/learn/learn.py

bench: $(SETUP)  ## the throughput table: from DICOM to images and answers, beside what make peers set up; AGAINST=RUN.json compares with a kept run
	$(BIN)/python -m benchmarks.suite $(if $(AGAINST),--against "$(AGAINST)")

bench-cache: $(SETUP)  ## what the cache costs to build and to read, as ratios of paired rounds
	$(BIN)/python -m benchmarks.cache --keep

bench-loader: $(SETUP) ## from the cache to the network's input, beside DICOM, PNG, albumentations and OpenCV
	$(BIN)/python -m benchmarks.loader --keep

bench-train: $(SETUP)  ## what a training step of each variant costs, and hours for the reference's 83 trainings
	$(BIN)/python -m benchmarks.train --keep

bench-scale: $(SETUP)  ## what grows with the size of a set, up to 711,601 files (3 GB on the disk for a while)
	$(BIN)/python -m benchmarks.scale --keep
	$(BIN)/python -m benchmarks.scale_tables --keep

bench-gpu: $(SETUP)    ## what only a GPU shows: its tests, items a second without a network, steps of the full-size variants in bf16
	$(BIN)/python -m benchmarks.gpu images tests ceiling train

# an environment each, because their pins clash with the lock; what could not be installed is left out by the benchmark
PEERS := $(basename $(notdir $(wildcard benchmarks/peers/requirements/*.txt)))
peers: $(PEERS:%=work/peers/%/.installed)  ## what people use instead, each in an environment of its own in work/peers, for the benchmarks

work/peers/%/.installed: benchmarks/peers/requirements/%.txt | $(SETUP)
	@mkdir -p work/peers
	@{ $(BIN)/uv venv --quiet --clear --python $(BIN)/python work/peers/$* && \
	  $(BIN)/uv pip install --quiet --python work/peers/$*/bin/python -r $< && touch $@; } 2> work/peers/$*.log || \
	  echo "make peers: $* cannot be installed here; work/peers/$*.log says why"

lint: $(SETUP)   ## ruff, its format, and types by mypy
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

wheel: $(SETUP)  ## dist/*.whl, by way of a source distribution; without the network
	$(BIN)/uv build --quiet --python $(BIN)/python --no-build-isolation --clear

sbom: $(SETUP)   ## dist/sbom.cdx.json: the packages that an image holds, with versions, hashes and licences
	$(BIN)/python container/sbom.py dist/sbom.cdx.json

format: $(SETUP) ## rewrites the code in the project's format
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

lock: $(SETUP)   ## requirements.lock from pyproject.toml, and of it what an image holds: requirements.runtime.lock
	$(BIN)/uv pip compile $(COMPILE) --extra dev pyproject.toml -o requirements.lock
	$(BIN)/uv pip compile $(COMPILE) --extra dicom --constraints requirements.lock pyproject.toml -o requirements.runtime.lock

COMPILE := --quiet --universal --generate-hashes --no-emit-index-url --no-header

clean-demo:      ## removes work/demo
	rm -rf $(DEMO)
