# make demo   train on a bundled scan of few photons, and compare with a plain solver and the pre-trained network
# make test   run every test, WORKERS at a time
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --quiet --constraint constraints.txt
OUTPUT ?= demo_output
SCAN := datasets/low_dose_64.npz
INFER = $(BIN)/python -m ptycho_torch.inference --test_data $(SCAN) --device cpu --output_dir
# Processes that share the tests; each computes with one thread.
WORKERS ?= 2
# The program our plug-ins are for. It runs on Python 3.11 and later, so do its tests.
CLIENT := ptychodus==1.7.0; python_version >= "3.11"
CLIENT_REQUIRED = $(shell $(BIN)/python -c 'import sys; print(",ptychodus" * (sys.version_info >= (3, 11)))')

.PHONY: demo test clean

# The probe of the scan is the true one; a fit at so few photons would harm the two that have no training.
demo: $(VENV)/torch.stamp
	$(BIN)/python -m ptycho_torch.train --train_data_file $(SCAN) --output_dir $(OUTPUT)/run \
		--gridsize 1 --max_epochs 6 --device cpu --disable_mlflow
	$(INFER) $(OUTPUT)/plain --model_path pretrained --init flat --refine 60 --refine-likelihood poisson --no-fit-probe
	$(INFER) $(OUTPUT)/pretrained --model_path pretrained --select off --no-fit-probe
	$(BIN)/python benchmarks/side_by_side.py --truth $(SCAN) --output $(OUTPUT)/side_by_side.png \
		"plain solver=$(OUTPUT)/plain" "pre-trained network=$(OUTPUT)/pretrained" "trained network=$(OUTPUT)/run"

test: $(VENV)/all.stamp
	PTYCHO_REQUIRE=tensorflow,torch$(CLIENT_REQUIRED) $(BIN)/python -m pytest -n $(WORKERS) $(PYTEST_ARGS)

$(VENV)/bin/python:
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip

$(VENV)/torch.stamp: setup.py constraints.txt | $(VENV)/bin/python
	$(PIP) -e '.[torch]'
	touch $@

$(VENV)/all.stamp: setup.py constraints.txt | $(VENV)/bin/python
	$(PIP) -e '.[all,test,compat]'
	$(PIP) --no-deps '$(CLIENT)'
	touch $@ $(VENV)/torch.stamp

clean:
	rm -rf $(VENV) $(OUTPUT)
