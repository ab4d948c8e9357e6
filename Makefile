# Two commands: `make demo` and `make test`. Both set up everything they need in .venv.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin

.PHONY: help demo test check strength reference bench fuzz lock locked audit sbom site browser clean
help: ## List the targets
	@grep -hE '^[a-z]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 10

$(VENV)/bin/pip:
	@$(PYTHON) -c 'import sys; sys.exit("Python 3.11 or newer is needed: make PYTHON=python3.12 ..." if sys.version_info < (3, 11) else 0)'
	@echo "Making a virtual environment in $(VENV) (the first time takes a few minutes: torch is large)"
	@$(PYTHON) -m venv $(VENV)

$(VENV)/.demo: pyproject.toml | $(VENV)/bin/pip
	@test -e $(VENV)/.dev || $(BIN)/pip install --quiet --disable-pip-version-check --editable '.[campaign,demo]'
	@touch $@

$(VENV)/.dev: pyproject.toml | $(VENV)/bin/pip
	@$(BIN)/pip install --quiet --disable-pip-version-check --editable '.[dev]'
	@touch $@

demo: $(VENV)/.demo ## Score the sample model on the sample images, and print where to look
	@$(BIN)/beyond demo

test: $(VENV)/.dev browser ## Run the whole test suite
	@$(BIN)/python -m pytest

check: $(VENV)/.dev ## Run linters, the type checker and the import rules
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/deptry .
	$(BIN)/actionlint
	$(BIN)/zizmor --offline --quiet .github

strength: $(VENV)/.dev ## Measure at full size: attacks against AutoAttack's figures, Ray, memory (minutes)
	@$(BIN)/python -m pytest -m strength tests/benchmark

reference: $(VENV)/.dev ## Accept a change of results: write the reference scorecard again
	@$(BIN)/beyond score efficientnet-lite0 --images sample --annotations sample --overwrite --out build/reference >/dev/null
	@cp build/reference/scorecard.json tests/reference/efficientnet-lite0.json
	@git diff --stat -- tests/reference

bench: $(VENV)/.dev browser ## Measure against the peers, side by side, and write docs/performance.md (20 minutes)
	@mkdir -p build
	@$(BIN)/python -m pytest tests/bench --benchmark-only --durations=0 --benchmark-json=build/bench.json
	@$(BIN)/python -m tests.bench.table build/bench.json > build/performance.md
	@cp build/performance.md docs/performance.md

fuzz: $(VENV)/.dev ## Look for input that makes anything but a line: SECONDS=300 to choose how long
	@$(BIN)/python -W ignore -m tests.fuzz --seconds $(or $(SECONDS),300)
	@$(BIN)/python -c 'import atheris' 2>/dev/null || echo "atheris is not here; pip install '.[fuzz]' fuzzes images by coverage, too"
	@! $(BIN)/python -c 'import atheris' 2>/dev/null || \
		$(BIN)/python -m tests.fuzz.atheris_images -max_total_time=$(or $(SECONDS),300) -print_final_stats=1

lock: $(VENV)/.dev ## Pin and hash what is installed here for development, in requirements/
	@$(BIN)/python -m tests.supply_chain.lock

locked: | $(VENV)/bin/pip ## Set up development from the lock: every file has a known hash
	@$(BIN)/pip install --quiet -r requirements/torch.txt
	@$(BIN)/pip install --quiet --require-hashes --no-deps -r requirements/dev.lock
	@$(BIN)/pip install --quiet --no-deps --no-build-isolation --editable .
	@$(BIN)/pip check
	@touch $(VENV)/.dev

audit: $(VENV)/.dev ## Ask for known vulnerabilities of everything that is locked (needs the network)
	@$(BIN)/pip-audit --disable-pip --no-deps --require-hashes --requirement requirements/dev.lock
	@$(BIN)/pip-audit --disable-pip --no-deps --requirement requirements/torch.txt

sbom: $(VENV)/.dev ## Write the bill of materials of this environment, build/sbom.cdx.json (CycloneDX)
	@mkdir -p build
	@$(BIN)/python -m tests.supply_chain.sbom $(BIN)/python build/sbom.cdx.json

site: $(VENV)/.dev ## Build the site, leaderboard and documentation, into site/
	@$(BIN)/beyond leaderboard build

browser: $(VENV)/.dev
	@$(BIN)/python -m tests.browser

clean: ## Remove what the targets made
	rm -rf $(VENV) site build *.egg-info .pytest_cache .mypy_cache .ruff_cache .import_linter_cache
