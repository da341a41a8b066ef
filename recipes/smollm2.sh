#!/usr/bin/env bash
# SmolLM2-135M, sparse at the loss of the dense model.
#
#   recipes/smollm2.sh [OUT] [more options of post-train, such as --resume]
#
# Data       FineWeb-Edu, read as it arrives; the first documents are held out, half to steer by, half to report on.
# Tokens     5,000 steps of 131,072: 0.66 billion. The gated model, its gradients and the dense model that it learns from
#            are 8 x 135 million operations a token, 0.7e18 in all: two hours at 100 TFLOP/s, which is a third of what an
#            A100 can do. Computed, not run on a GPU yet: the share of edges against tokens on a CPU is in RESULTS.md.
# Memory     weights, moments, gradients and the dense copy, 2.7 GB; logits go in chunks; the kernel keeps no T x T tensor.
# What to see OUT/run.pdf. On a CPU with adapters and steps of 1,024 tokens the layer-by-layer steps at the start left 10 %
#            of the edges open at a loss 0.13 above the dense model's, after 0.1 million tokens; they run in one process.
set -euo pipefail
out=${1:-runs/smollm2}
shift || true
sparselens post-train \
    --model HuggingFaceTB/SmolLM2-135M --data HuggingFaceFW/fineweb-edu --stream --out "$out" --layerwise-steps 200 \
    --seq-len 1024 --batch-size 32 --batch-tokens 131072 --steps 5000 --held-out-rows 256 --mixed-precision bf16 "$@"
