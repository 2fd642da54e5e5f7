#!/bin/sh
# Checks and measures this installation on one GPU with 80 GB, or two, within ten minutes; --help lists the options.
cd "$(dirname "$0")/.." || exit
exec "${PYTHON:-.venv/bin/python}" -m dapo_openrlhf.bench.gpu_check --json gpu_check.json "$@"
