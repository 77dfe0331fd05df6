# Everything runs in .venv, which the first call makes. Another Python: make test PYTHON=python3.11
PYTHON ?= python3
RUN := .venv/bin/python -m
# Processes that run tests side by side: more than two cores are, as tests wait for servers and pages.
WORKERS ?= 3

.PHONY: help demo test lint environment oldest train clean

help:
	@echo "make demo    edit the shipped clip in ComfyUI and hold the result against the truth (output/demo)"
	@echo "make test    lint and every test, in ComfyUI too where it is found"
	@echo "make lint    ruff alone"
	@echo "make oldest  make .venv-old with the oldest libraries allowed, which 'make test' then tries as well"
	@echo "make train   train the toy world's models anew (hours without a GPU; goes on where it stopped)"
	@echo "make clean   remove .venv, a ComfyUI cloned by us, and outputs"

demo: environment
	@$(RUN) weft.headless.demo

test: lint
	OMP_NUM_THREADS=1 $(RUN) pytest -n $(WORKERS)

lint: environment
	$(RUN) ruff check .
	$(RUN) ruff format --check .

environment:
	@$(PYTHON) -m weft.headless.environment

oldest:
	@$(PYTHON) -m weft.headless.environment --oldest

train: environment
	$(RUN) weft.toyworld.train vae
	$(RUN) weft.toyworld.train image
	$(RUN) weft.toyworld.train video
	$(RUN) weft.toyworld.train words
	$(RUN) weft.toyworld.train shapes
	$(RUN) weft.toyworld.train detail
	$(RUN) weft.toyworld.train crisp
	$(RUN) weft.toyworld.train things
	$(RUN) weft.toyworld.train epsilon
	$(RUN) weft.toyworld.train instruct
	$(RUN) weft.toyworld.train sam
	$(RUN) weft.toyworld.train clicks
	$(RUN) weft.toyworld.train detector
	$(RUN) weft.toyworld.train clip

clean:
	rm -rf .venv .venv-old .comfy output .pytest_cache .ruff_cache
