"""Two layers with small integer weights and no norms, so that every number can be worked out on paper."""

from typing import Any

import torch
import transformers as tr

from sparselens.prompts.tokenized import TokenizedPairs
from tests.tiny_models import bridge_of


def hand_model() -> Any:
    """Two heads of one dimension each that look at all they see alike, and ReLU MLPs.

    tokens   0: (2, 0)   1: (0, 2)   2: (4, -2)
    layer 0  values (x + y, 2y); heads write to (x, y);  the MLP adds (relu y, relu x)
    layer 1  values (x - y, y);  heads write to (y, x);  the MLP adds (relu x, 2 relu(y - x))
    logits   token 1: x, token 2: y
    """
    dropout = dict.fromkeys(("resid_pdrop", "embd_pdrop", "attn_pdrop"), 0.0)
    sizes = {"vocab_size": 3, "n_positions": 2, "n_embd": 2, "n_layer": 2, "n_head": 2, "n_inner": 2}
    special = {"bos_token_id": None, "eos_token_id": None, "tie_word_embeddings": False}
    model = tr.GPT2LMHeadModel(
        tr.GPT2Config(**sizes, **special, **dropout, activation_function="relu", attn_implementation="eager")
    ).eval()
    with torch.no_grad():
        for weight in model.parameters():
            weight.zero_()
        model.transformer.wte.weight.copy_(torch.tensor([[2, 0], [0, 2], [4, -2]]))
        model.lm_head.weight.copy_(torch.tensor([[0, 0], [1, 0], [0, 1]]))
        for block, values, out, mlp_in, mlp_out in zip(
            model.transformer.h,
            ([[1, 0], [1, 2]], [[1, 0], [-1, 1]]),  # rows: what x and y give to the two heads
            ([[1, 0], [0, 1]], [[0, 1], [1, 0]]),  # rows: what the two heads give to x and y
            ([[1, 0], [0, 1]], [[1, -1], [0, 1]]),
            ([[0, 1], [1, 0]], [[1, 0], [0, 2]]),
            strict=True,
        ):
            block.attn.c_attn.weight[:, 4:] = torch.tensor(values)
            block.attn.c_proj.weight.copy_(torch.tensor(out))
            block.mlp.c_fc.weight.copy_(torch.tensor(mlp_in))
            block.mlp.c_proj.weight.copy_(torch.tensor(mlp_out))
    bridge = bridge_of(model)
    for norm in (*(norm for block in bridge.blocks for norm in (block.ln1, block.ln2)), bridge.ln_final):
        norm.__dict__["forward"] = lambda x, norm=norm: norm.hook_out(norm.hook_in(x))
    return bridge


def hand_pairs() -> TokenizedPairs:
    """Clean: tokens 0 1, corrupted: tokens 0 2; the metric is x - y at the second."""
    return TokenizedPairs(torch.tensor([[0, 1]]), torch.tensor([[0, 2]]), torch.tensor([1]), torch.tensor([2]))
