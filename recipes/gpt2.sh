#!/usr/bin/env bash
# GPT-2 small, sparse at the loss of the dense model.
#
#   recipes/gpt2.sh [OUT] [more options of post-train, such as --resume]
#
# Data       OpenWebText, streamed; the first documents are held out, half to steer the run, half for the final report.
# Tokens     5,000 steps of 131,072: 0.66 billion; 8 x 124 million operations a token, 0.65e18 in all. GPT-2 trains with
#            attention dropout, which the kernel does not support, so attention is eager and much of the time goes into
#            moving T x T tensors: expect four hours on an A100. Computed, not run.
# Memory     2.5 GB for weights, moments, gradients and the dense copy; in eager attention a row of 1,024 tokens keeps
#            about 50 MB a layer, so 8 rows take 5 GB.
# Expect     OUT/run.pdf: the open share falls to a few per cent in the first tenth of the run; the loss rises by less
#            than 0.1 and returns to the target as the learning rate falls. Then run
#            sparselens compare --dense openai-community/gpt2 --sparse OUT/model --tasks ioi --out ioi
set -euo pipefail
out=${1:-runs/gpt2}
shift || true
accelerate launch --mixed_precision bf16 -m sparselens post-train \
    --model openai-community/gpt2 --data Skylion007/openwebtext --stream --out "$out" \
    --seq-len 1024 --batch-size 8 --batch-tokens 131072 --steps 5000 --held-out-rows 256 --mixed-precision bf16 "$@"
