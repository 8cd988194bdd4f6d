# make demo   train on the bundled scan, reconstruct it, and name the two pictures and the scores
# make test   run every test, WORKERS at a time
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --quiet --constraint constraints.txt
OUTPUT ?= demo_output
# Processes that share the tests; each computes with one thread.
WORKERS ?= 2
# The program our plug-ins are for. It runs on Python 3.11 and later, so do its tests.
CLIENT := ptychodus==1.7.0; python_version >= "3.11"
CLIENT_REQUIRED = $(shell $(BIN)/python -c 'import sys; print(",ptychodus" * (sys.version_info >= (3, 11)))')

.PHONY: demo test clean

demo: $(VENV)/torch.stamp
	$(BIN)/python -m ptycho_torch.train --train_data_file datasets/demo_64.npz --output_dir $(OUTPUT)/run \
		--gridsize 1 --device cpu --disable_mlflow
	$(BIN)/python -m ptycho_torch.inference --model_path $(OUTPUT)/run --test_data datasets/demo_64.npz \
		--output_dir $(OUTPUT)/pictures --device cpu

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
