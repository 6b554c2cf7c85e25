#!/usr/bin/env bash
# The LISTA family on the standard benchmark; see --help.
exec python "$(dirname "$0")/reproduce_lista_family.py" "$@"
