# Needs Python 3.11 or newer and make. Everything runs in .venv, which is made on first use.
PYTHON ?= python3
UV := uv==0.13.8
PIP_AUDIT := pip-audit==2.10.0
export PATH := $(CURDIR)/.venv/bin:$(PATH)
# Every stage is a process that imports torch; without its byte code on disk that takes twice as long.
export PYTHONDONTWRITEBYTECODE :=

.PHONY: repro ui test check fmt lock schema bench kill-test fault-test fuzz audit
.DEFAULT_GOAL := repro

repro: .venv/installed .dvc/scm ## run the whole pipeline on params.yaml and print the table
	python -m pipelines recover && dvc repro && python -m pipelines report

ui: .venv/installed ## serve the MLflow UI on http://127.0.0.1:5000
	python -m pipelines ui

test: .venv/installed-dev ## run the tests
	python -m pytest -n auto --dist loadfile

kill-test: .venv/installed-dev ## kill the pipeline at POINTS random moments and compare what it leaves in the end
	python -m tests.reliability.kill_test --points $(or $(POINTS),50) --seed $(or $(SEED),0) --jobs $(or $(JOBS),2)

fault-test: .venv/installed-dev ## full disks, read-only disks, lost files, memory, damaged files, Ctrl-C: all of tests/reliability
	python -m pytest -n0 -v tests/reliability

fuzz: .venv/installed-dev ## fuzz every reader of outside bytes for SECONDS of processor time; exit code 1 where one crashes
	python -m tests.fuzzing --seconds $(or $(SECONDS),300)

audit: .venv/bin/uv ## look for known vulnerabilities of the pinned packages; fails where nobody can be asked
	uv tool run --from $(PIP_AUDIT) pip-audit --strict --disable-pip --require-hashes --progress-spinner off -r requirements.lock

bench: .venv/installed ## time training beside a conventional loop; writes benchmarks/results/latest.json
	python -m benchmarks.training

check: .venv/installed-dev ## lint, format, types, import rules
	ruff check && ruff format --check && pyright && lint-imports

fmt: .venv/installed-dev ## format the code
	ruff check --fix && ruff format

lock: .venv/installed-dev ## pin the dependencies again
	uv pip compile -q --universal --generate-hashes --no-emit-index-url --no-header --extra pipeline --extra serve pyproject.toml -o requirements.lock
	uv pip compile -q --universal --generate-hashes --no-emit-index-url --no-header --extra pipeline --extra serve --extra openvino --extra sign --extra dev pyproject.toml -o requirements-dev.lock
	uv pip compile -q --universal --generate-hashes --no-emit-index-url --no-header -c requirements.lock requirements-serve.in -o requirements-serve.lock

schema: .venv/installed ## write the JSON schema by which editors complete params.yaml
	python -m pipelines schema > params.schema.json

.venv/bin/uv:
	$(PYTHON) -c 'import sys; sys.exit("compress needs Python 3.11 or newer, this is " + sys.version if sys.version_info < (3, 11) else 0)'
	$(PYTHON) -m venv .venv && .venv/bin/python -m pip install -q --disable-pip-version-check $(UV)

# uv installs about four times as fast; pip also reads a pip.conf, so it is the second try.
.venv/installed: requirements.lock | .venv/bin/uv .venv/bin/compress
	uv pip install -q --python .venv/bin/python --require-hashes -r $< || .venv/bin/python -m pip install -q --require-hashes -r $<
	touch $@

# The command of this checkout, wherever it is called; code in the current folder comes first.
.venv/bin/compress: | .venv/bin/uv
	printf '#!/bin/sh\nPYTHONPATH="%s$${PYTHONPATH:+:$$PYTHONPATH}" exec "%s" -m pipelines "$$@"\n' '$(CURDIR)' '$(CURDIR)/.venv/bin/python' > $@
	chmod +x $@

.venv/installed-dev: requirements-dev.lock .venv/installed
	uv pip install -q --python .venv/bin/python --require-hashes -r $< || .venv/bin/python -m pip install -q --require-hashes -r $<
	touch $@

# An unpacked archive has no .git; DVC must be told.
.dvc/scm: .venv/installed
	test -e .git || dvc config -q --local core.no_scm true
	touch $@
