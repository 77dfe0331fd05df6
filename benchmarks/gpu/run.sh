#!/usr/bin/env bash
# The GPU command on a machine without network, which has PyTorch, Triton, transformers and pytest. From the pack's folder:
#
#   python -m pip download --no-deps --only-binary=:all: -d wheels diffusers segment-anything importlib-metadata  # where
#   bash benchmarks/gpu/run.sh wheels results --minutes 8                       # there is network; then on the machine
#
# What the wheels hold is unpacked for this run alone, into a temporary folder.
set -euo pipefail
wheels=$1 out=$2
shift 2
site=$(mktemp -d)
trap 'rm -rf "$site"' EXIT
python3 -m pip install -q --no-index --no-deps --no-compile --target "$site" "$wheels"/*.whl
PYTHONPATH=$site PYTHONUNBUFFERED=1 python3 -m weft.benchmarks.gpu --out "$out" "$@"
