# make demo   install, segment a sample clip with the embedded model, run the overview notebook
# make lab    install, open the workbook
# make test   install, lint, paired notebooks in step, unit tests, chapters of the workbook
# make test-slow   whole runs of the embedded models, and the solutions of the exercises; some minutes
# make test-training   the scripts that train the embedded model and measure it
# make test-full   Stable Diffusion and Stable Video Diffusion at full size with random weights: 12 GB of memory, some minutes
# make bench       the paper's schedule against the default: compute, time, memory; seconds of each stage
# make gpu-check MODEL=sd21-base [VSPW=folder]   download a model, run the sample clips, write a report
# make book        run all notebooks and build them, docs/ and the reference as a site: outputs/book/index.html
# make test-browser   the workbook in a real JupyterLab, and the book (needs chromium or chrome)
VENV := .venv
BIN := $(VENV)/bin
PYTHON ?= python3
STAMP := $(VENV)/installed-$(shell cat pyproject.toml constraints.txt | cksum | cut -d' ' -f1)
NOTEBOOKS := $(wildcard notebooks/*.py)
# Processes of the tests. Each holds torch and a model, about 1 GB: on a machine with more cores and memory, make test JOBS=4.
JOBS ?= 2
SPREAD = -n $(JOBS) --dist loadfile
# Beside another process, threads that spin while they wait make K-means ten times slower.
export OMP_WAIT_POLICY := PASSIVE
# The tests spread over processes, not over threads.
unit notebooks solutions book test-slow test-training test-browser: export OMP_NUM_THREADS := 1

.PHONY: install demo figures lab test test-slow test-training test-full test-browser bench book gpu-check unit notebooks solutions pair sync lint format clean browser sphinx
MODEL ?= sd21-base
.DEFAULT_GOAL := test

install: $(STAMP)
$(STAMP):
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed: make PYTHON=python3.12 ...")'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[test]"
	rm -f $(VENV)/installed-*
	touch $@

SEGMENT = $(BIN)/python -m vidseg_core segment data/clips/$(1).mp4 --out outputs/$(1) --overwrite \
	--first-mask data/clips/$(1)/masks/00000.png --names data/clips/$(1)/names.json

demo: install
	$(call SEGMENT,cup)
	$(BIN)/jupyter execute notebooks/00_overview.ipynb --output=../outputs/00_overview.ipynb
	@echo "Look at outputs/cup/overlay.mp4 (video), contact_sheet.png and segments.csv beside it, and outputs/00_overview.ipynb."

# The pictures of README and docs; those of the workbook are taken in a real JupyterLab.
figures: browser
	$(call SEGMENT,cup)
	$(call SEGMENT,box)
	mkdir -p docs
	cp outputs/cup/contact_sheet.png docs/cup.png
	cp outputs/box/contact_sheet.png docs/box.png
	$(BIN)/python scripts/animate_overlay.py data/clips/cup.mp4 outputs/cup/overlay.mp4 docs/cup.webp
	$(BIN)/python scripts/workbook_pictures.py docs

lab: install
	$(BIN)/jupyter lab $(if $(filter 0,$(shell id -u)),--allow-root) notebooks/00_overview.ipynb

test: install lint sync unit notebooks

test-browser: browser sphinx
	$(BIN)/python -m pytest -p no:nbval -m browser tests/e2e

# What builds the book is not needed for anything else, and is installed only here.
sphinx: install
	@$(BIN)/python -c "import sphinx_book_theme, myst_nb" 2>/dev/null || \
	  $(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[book]"

# What drives a browser is not needed for anything else, and is installed only here.
browser: install
	@command -v chromium || command -v chromium-browser || command -v google-chrome || { \
	  echo "No chromium found. Debian, Ubuntu: apt-get install chromium. Elsewhere: any Chrome on the PATH."; exit 1; }
	@$(BIN)/python -c "import playwright" 2>/dev/null || \
	  $(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[browser]"

# Results of notebooks are kept in outputs/book-cache, and used again until the notebook, the package or its data change.
book: sphinx
	$(BIN)/python -m sphinx -W --keep-going -b html -c docs -d outputs/book-doctrees . outputs/book
	@echo "Open outputs/book/index.html in a browser."

# Without nbval, which loads much of Jupyter in each process; the slowest files first (tests/conftest.py), not those with most tests.
unit: install
	$(BIN)/python -m pytest -p no:nbval $(SPREAD) --no-loadscope-reorder

test-slow: install solutions
	$(BIN)/python -m pytest -p no:nbval $(SPREAD) --no-loadscope-reorder -m slow tests

test-training: install
	$(BIN)/python -m pytest -p no:nbval -n $(JOBS) -m training tests/training

test-full: install
	$(BIN)/python -m pytest -m long tests
	$(BIN)/python -m pytest tests/full

bench: install
	$(BIN)/python benchmarks/bench.py
	$(BIN)/python benchmarks/speed.py

gpu-check: install
	$(BIN)/python benchmarks/gpu_check.py --model $(MODEL) $(if $(VSPW),--vspw $(VSPW))

NBVAL = VIDSEG_FAST=1 $(BIN)/python -m pytest -p no:cacheprovider --nbval-lax --nbval-current-env --nbval-cell-timeout=600

notebooks: install
	$(NBVAL) $(SPREAD) notebooks/0*.ipynb

solutions: install
	$(NBVAL) notebooks/solutions.ipynb

# The .py files are the source; the .ipynb files are made from them, without outputs.
pair: install
	$(BIN)/jupytext --quiet --to ipynb $(NOTEBOOKS)
	$(BIN)/nbstripout $(NOTEBOOKS:.py=.ipynb)

sync: install
	@rm -rf outputs/.sync && mkdir -p outputs/.sync/notebooks && cp $(NOTEBOOKS) outputs/.sync/notebooks
	@$(BIN)/jupytext --quiet --to ipynb $(addprefix outputs/.sync/,$(NOTEBOOKS))
	@$(BIN)/nbstripout $(addprefix outputs/.sync/,$(NOTEBOOKS:.py=.ipynb))
	@for n in $(NOTEBOOKS:.py=.ipynb); do \
	  cmp outputs/.sync/$$n $$n || { echo "$$n is not what its .py makes: run 'make pair'"; exit 1; }; \
	done
	@echo "notebooks are in step with their sources"

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

format: install
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:
	rm -rf $(VENV) outputs
