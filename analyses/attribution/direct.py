"""Direct logit attribution: what every head and MLP contributes to the logit difference without passing later layers.

1. The last residual stream at END is the sum of what the embedding, the heads, the MLPs and the biases wrote.
2. The final norm is held fixed as in the run: effect(u) = gain * centre(write of u) / root . direction, where direction
   is the gradient of the logit difference after the norm: the unembedding of the answer minus that of the wrong answer.
3. The effects of all nodes and of `biases` (attention's, the norm's, the unembedding's) sum to the logit difference.
Source: Elhage et al. 2021; Wang et al. 2022, section 3.1; TransformerLens' `stack_head_results` and `logit_attrs`.
"""

from functools import partial

import torch
from jaxtyping import Float
from torch import Tensor

from sparselens.analyses.attribution.nodes import NodeScores
from sparselens.analyses.engine.batching import in_batches
from sparselens.analyses.engine.edge_products import writes_of
from sparselens.analyses.engine.norms import Norm, read_norm
from sparselens.analyses.engine.request import Request, Run, open_request
from sparselens.analyses.engine.residual_stream import TOLERANCE
from sparselens.models.hooked_model import HookedModel
from sparselens.prompts.metrics import logit_difference
from sparselens.prompts.tokenized import TokenizedPairs

BIASES = "biases"
UNEMBED = "unembed"  # the module whose input is the normalised stream


def direct_logit_attribution(
    model: HookedModel,
    pairs: TokenizedPairs,
    *,
    memory: int | None = None,
    batch_size: int | None = None,
    progress: bool = True,
) -> NodeScores:
    """What the embedding, every head, every MLP and the biases contribute directly to the logit difference at END.

    >>> effects = direct_logit_attribution(model, pairs)
    >>> effects.per_prompt.shape, effects["a1.h1"], effects.interval("m0")  # [batch source]
    >>> effects.per_prompt.sum(-1) - effects.clean  # zeros: the effects sum to the logit difference

    Sign convention: positive where a node raises the logit difference.

    Scope: direct effects on the logits of the clean prompts, with the final norm held fixed. A node that acts only
    through later nodes has none. Where logits are capped (Gemma 2), effects and `clean` are about the logits before the
    cap.

    Args:
        memory, batch_size: as in `patch_activations`

    Raises:
        ValueError: as `patch_activations`; or the residual stream is not read by one norm and one unembedding.
    """
    with open_request(
        model, pairs, logit_difference, memory=memory, batch_size=batch_size, progress=progress
    ) as request:
        sources = (*request.reading.graph.sources, BIASES)
        effects, clean = torch.zeros(len(request), len(sources)), torch.zeros(len(request))
        final = request.model._modules.get("ln_final")
        norm = None if final is None else read_norm(final, request.model.cfg.d_model)
        for rows, found in in_batches(request, partial(_effects, norm), "direct effects"):
            effects[rows], clean[rows] = (values.float().cpu() for values in found)
    return NodeScores(sources, effects.mean(0), effects, clean, None, "direct effects", pairs.clean_prompt)


def _effects(norm: Norm | None, batch: Request) -> tuple[Float[Tensor, "batch source"], Float[Tensor, " batch"]]:
    """The effects of every prompt, and its logit difference."""
    end = batch.reading.end
    run = batch.record([*batch.reading.written_names(), end, UNEMBED])
    writes, biases = _written_at_end(batch, run)
    stream, read = _at_end(batch, run.recorded[end]).to(writes), run.recorded[UNEMBED][:, 0].to(writes)
    if norm is not None:
        inverse = norm.standardise(stream)[1]
        writes, biases = (norm.centre(x) * inverse * norm.gain.to(x) for x in (writes, biases))
        biases = biases + norm.bias.to(biases)
    found = torch.cat([writes, biases[None]])
    direction, difference = _direction(batch, run, read)
    _refuse(batch, "the unembedding does not read the final norm of the stream", found.sum(0), read)
    effects = torch.einsum("sbm,bm->bs", found, direction)
    effects[:, -1] += difference - (read * direction).sum(-1)  # the unembedding's bias
    return effects, difference


def _written_at_end(
    batch: Request, run: Run
) -> tuple[Float[Tensor, "source batch d_model"], Float[Tensor, "batch d_model"]]:
    """What every source writes at END, and what the biases of attention add there."""
    reading = batch.reading
    recorded = {name: _at_end(batch, run.recorded[name])[:, None] for name in reading.written_names()}
    writes = writes_of(reading, recorded)[:, :, 0]
    biases = torch.zeros_like(writes[0])
    for layer in reading.layers:
        unowned = reading.unowned(layer.number, recorded[layer.at("attn.hook_z")])
        if unowned is not None:
            biases = biases + unowned.reshape(-1, unowned.shape[-1]).to(biases)
    return writes, biases


def _at_end(batch: Request, values: Float[Tensor, "batch pos *rest"]) -> Float[Tensor, "batch *rest"]:
    end = batch.pairs.end.to(values.device)
    return values[torch.arange(len(end), device=values.device), end]


def _direction(
    batch: Request, run: Run, read: Float[Tensor, "batch d_model"]
) -> tuple[Float[Tensor, "batch d_model"], Float[Tensor, " batch"]]:
    """The gradient of the logit difference at the unembedding's input, and the difference itself, both before a cap."""
    model, n_pos = batch.model, batch.pairs.clean.shape[1]
    cap = getattr(model.cfg, "output_logits_soft_cap", None) or -1.0
    with torch.enable_grad():
        read = read.detach().requires_grad_()
        logits = (read @ model.W_U.detach().to(read) + model.b_U.detach().to(read))[:, None].expand(-1, n_pos, -1)
        difference = logit_difference(logits, batch.pairs)
        (direction,) = torch.autograd.grad(difference.sum(), read)
    capped = logit_difference(cap * (logits / cap).tanh() if cap > 0 else logits, batch.pairs)
    _refuse(batch, "its logits are not the unembedding of the normalised stream", capped.detach(), run.metric)
    return direction, difference.detach()


def _refuse(batch: Request, why: str, found: Tensor, seen: Tensor) -> None:
    seen = seen.to(found)
    error = float((found - seen).abs().max() / seen.abs().max().clamp_min(1e-3))
    if not error <= TOLERANCE.get(batch.opened.dtype, 1e-5):
        raise ValueError(f"direct effects would not add up in this {type(batch.model).__name__}: {why} ({error:.2g})")
