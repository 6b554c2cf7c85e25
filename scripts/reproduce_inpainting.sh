#!/usr/bin/env bash
# The inpainting experiments of the paper; see --help.
exec python "$(dirname "$0")/reproduce_inpainting.py" "$@"
