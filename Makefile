# Two commands on a fresh machine: `make quickstart` and `make test`. Both bring what they need first.

CARGO ?= cargo
PYTHON ?= python3
PREFIX ?= /usr/local

.PHONY: quickstart test soak build setup weights tools release wheel install lint deny

## Runs two methods on generated products and opens the results to SQL and to a report.
quickstart: build weights
	$(CARGO) run --quiet -- run pipelines/quickstart.yaml
	$(CARGO) run --quiet -- sql "select 'diffusion' as method, class, image_auroc, pixel_auroc, aupro from metrics union all select 'nearest patches', class, image_auroc, pixel_auroc, aupro from bank_metrics order by 1, 2"
	$(CARGO) run --quiet -- report -o report.html

## Builds everything, with the extension of the Python package, and runs the tests.
test: build weights tools
	$(CARGO) build -p vlmdiff-python
	PYTHON=$(PYTHON) $(CARGO) test

## Runs eight pipelines at once over a failing network and kills their programs at random for SOAK_SECONDS (20 minutes); then a
## hundred long random sequences of edits and accidents, and two thousand damages to a store, each compared with a model; judges a
## thousand photographs in pieces and through kills; then lets banks of features grow by 300 random sequences. It takes more than an hour
## on two cores. VLMDIFF_SEED=N repeats a failure.
soak: build weights tools
	$(CARGO) test --test integration -- --ignored --nocapture soak::
	$(CARGO) test --test integration -- --ignored cluster::
	$(CARGO) test --test integration -- --ignored --nocapture checker::
	$(CARGO) test --test integration -- --ignored --nocapture prediction::
	VLMDIFF_SEQUENCES=300 $(CARGO) test --test integration -- --nocapture banks::bank_that_grew

build: setup
	$(CARGO) build

## Fetches libtorch, below .libtorch/.
setup:
	@$(PYTHON) setup/fetch.py libtorch

## Fetches the pretrained feature extractor, to the user's cache folder.
weights:
	@$(PYTHON) setup/fetch.py weights

## Fetches the Python packages that the tests check against, below .tools/: an S3 server, and readers of tables and of exports.
tools:
	@$(PYTHON) setup/fetch.py tools

## Packs the programs with libtorch, manual pages, completions, pipelines and licences for bare Debian and Ubuntu, and checks that
## they run on a root file system without anything else. Needs `strip` and `objdump`, and root or user namespaces for the check.
release: build
	$(PYTHON) setup/release.py archive
	$(PYTHON) setup/check_release.py

## Installs the Python package by `pip install .` into an environment of its own, and checks that it works there.
wheel: build
	$(PYTHON) setup/check_wheel.py

## Installs the same files below $(DESTDIR)$(PREFIX).
install: build
	@PREFIX=$(PREFIX) DESTDIR=$(DESTDIR) $(PYTHON) setup/release.py install

## Checks the format, the lints, the documentation of the code, and the dependencies.
lint: setup
	$(CARGO) fmt --check
	$(CARGO) clippy --workspace --all-targets -- -D warnings
	RUSTDOCFLAGS="-D warnings -A rustdoc::private-intra-doc-links" $(CARGO) doc --no-deps --document-private-items
	@if $(CARGO) deny --version >/dev/null 2>&1; then $(MAKE) deny; else echo "lint: cargo deny is not installed (cargo install cargo-deny --locked); tests/dependencies.rs has checked all but advisories"; fi

## Checks licences, sources, duplicates and advisories of the dependencies.
deny:
	$(CARGO) deny check
