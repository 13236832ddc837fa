#!/usr/bin/env bash
# Makes the Python stubs from the .proto files, into the folder given (this one if none is).
set -euo pipefail
cd "$(dirname "$0")"
out=${1:-.}
python -m grpc_tools.protoc -I. --python_out="$out" --grpc_python_out="$out" --mypy_out="quiet:$out" --mypy_grpc_out="quiet:$out" \
  thalweg/v1/*.proto
# Only files with services have stubs of their own; the others' are empty.
for file in thalweg/v1/*.proto; do
  grep -q '^service ' "$file" || rm -f "$out/${file%.proto}"_pb2_grpc.py "$out/${file%.proto}"_pb2_grpc.pyi
done
