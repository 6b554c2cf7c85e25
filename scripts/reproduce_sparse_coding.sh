#!/usr/bin/env bash
# The sparse-coding experiments of the paper; see --help.
exec python "$(dirname "$0")/reproduce_sparse_coding.py" "$@"
