# make demo   install, segment a sample clip with the embedded model, run the overview notebook
# make lab    install, open the workbook
# make test   install, unit tests, notebooks, paired notebooks in step, lint
VENV := .venv
BIN := $(VENV)/bin
PYTHON ?= python3
STAMP := $(VENV)/installed-$(shell cat pyproject.toml constraints.txt | cksum | cut -d' ' -f1)
NOTEBOOKS := $(wildcard notebooks/*.py)

.PHONY: install demo lab test unit notebooks pair sync lint format clean
.DEFAULT_GOAL := test

install: $(STAMP)
$(STAMP):
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed: make PYTHON=python3.12 ...")'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[test]"
	rm -f $(VENV)/installed-*
	touch $@

demo: install
	$(BIN)/python -m vidseg_core segment data/clips/cup.mp4 --segments 8 --out outputs/cup --overwrite
	$(BIN)/jupyter execute notebooks/00_overview.ipynb --output=../outputs/cup/00_overview.ipynb
	@echo "Look at outputs/cup/overlay.mp4 (video), contact_sheet.png, segments.csv and 00_overview.ipynb beside it."

lab: install
	$(BIN)/jupyter lab $(if $(filter 0,$(shell id -u)),--allow-root) notebooks/00_overview.ipynb

test: install lint sync unit notebooks

unit: install
	$(BIN)/python -m pytest

notebooks: install
	$(BIN)/python -m pytest -p no:cacheprovider --nbval-lax --nbval-current-env --nbval-cell-timeout=120 notebooks

# The .py files are the source; the .ipynb files are made from them, without outputs.
pair: install
	$(BIN)/jupytext --quiet --to ipynb $(NOTEBOOKS)
	$(BIN)/nbstripout $(NOTEBOOKS:.py=.ipynb)

sync: install
	@mkdir -p outputs/.sync && rm -f outputs/.sync/*
	@for n in $(NOTEBOOKS:.py=); do \
	  $(BIN)/jupytext --quiet --to ipynb --output outputs/.sync/$$(basename $$n).ipynb $$n.py && \
	  $(BIN)/nbstripout outputs/.sync/$$(basename $$n).ipynb && \
	  cmp outputs/.sync/$$(basename $$n).ipynb $$n.ipynb || { echo "$$n.ipynb is not what $$n.py makes: run 'make pair'"; exit 1; }; \
	done

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

format: install
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:
	rm -rf $(VENV) outputs
