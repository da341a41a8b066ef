#!/usr/bin/env bash
# Llama 3.2 1B, sparse at the loss of the dense model, with adapters of rank 64 on queries, keys, values and outputs.
#
#   recipes/llama-1b.sh [OUT] [more options of post-train, such as --resume]
#
# Runs on all GPUs of a machine, each with the whole model. Under Slurm with one task per node:
#   accelerate launch --num_machines $SLURM_NNODES --machine_rank $SLURM_NODEID --main_process_ip $HEAD_NODE ...
# If the model does not fit on one GPU, `accelerate launch --use_fsdp --fsdp_version 2 --fsdp_auto_wrap_policy
# TRANSFORMER_BASED_WRAP ...` shards it; the checkpoints are the same, and any number of processes can resume from them.
#
# Data       FineWeb-Edu, streamed; the first documents are held out, half to steer the run, half for the final report.
# Tokens     2,000 steps of 262,144: 0.52 billion. Frozen weights need no gradients, so the gated model takes 4 x 1.2
#            billion operations a token, and the dense model (the same one with its adapters off) 2 x 1.2 billion:
#            3.9e18 in all, eleven hours on an A100 at 100 TFLOP/s, an hour and a half on eight. Computed, not run.
# Memory     5 GB of frozen weights, 0.4 GB for the adapters and their moments, and the activations of 8 rows of 1,024
#            tokens: about 20 GB, or 5 with --gradient-checkpointing.
# Expect     OUT/run.pdf, and OUT/model: a peft folder of 55 MB in float32 that `sl.load` opens.
set -euo pipefail
out=${1:-runs/llama-1b}
shift || true
accelerate launch --mixed_precision bf16 -m sparselens post-train \
    --model meta-llama/Llama-3.2-1B --data HuggingFaceFW/fineweb-edu --stream --out "$out" --lora 64 --learning-rate 1e-3 \
    --seq-len 1024 --batch-size 8 --batch-tokens 262144 --steps 2000 --held-out-rows 256 --mixed-precision bf16 "$@"
