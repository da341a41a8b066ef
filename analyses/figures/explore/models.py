"""The explored models: how they tokenize a prompt, and what they compute on it with some parts cut."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor

from sparselens.analyses.attribution.qk import explain_under
from sparselens.analyses.attribution.qk_attribution import QKAttribution
from sparselens.analyses.engine.request import OpenModel
from sparselens.analyses.figures.explore.reading import model_data
from sparselens.analyses.figures.token_layout import printable
from sparselens.analyses.patching.cuts import CutRun, Cuts, Shape, cut_hooks, read_cut, refuse_unknown, run_with_cuts
from sparselens.gates.surgery import is_sparse
from sparselens.prompts.fitting import Fit, text_of, vocabulary_of

LONGEST = 256  # tokens of a prompt; the size of the drawing grows with their square


class Models:
    """One or two models with the same vocabulary. Their runs of the last prompt without cuts are cached.

    Raises:
        ValueError: they have different tokenizers.
    """

    def __init__(self, models: Mapping[str, Any]) -> None:
        self._models = dict(models)
        self._opened = {name: OpenModel(model) for name, model in models.items()}
        tokenizers = [model.tokenizer for model in models.values()]
        if len({vocabulary_of(tokenizer) for tokenizer in tokenizers}) > 1:
            raise ValueError(f"{' and '.join(models)} have different tokenizers: want models with the same one")
        self._tokenizer, self._fit = tokenizers[0], Fit(tokenizers[0])
        self._texts: dict[int, str] = {}
        self._prompt, self._tokens, self._ids = "", (), torch.zeros(1, 0, dtype=torch.long)
        self._whole: dict[str, CutRun] = {}

    def tokens(self, prompt: str) -> Sequence[str]:
        """The strings of a prompt's tokens; the empty prompt has none.

        Raises:
            ValueError: the prompt is too long, or the tokenizer cannot represent it.
        """
        if prompt != self._prompt:
            ids, strings = self._fit.prompt(prompt) if prompt else ([], ())
            longest = min([LONGEST, *(getattr(model.cfg, "n_ctx", None) or LONGEST for model in self._models.values())])
            if len(ids) > longest:
                raise ValueError(f"the prompt has {len(ids)} tokens: want at most {longest}")
            self._prompt, self._tokens, self._ids = prompt, strings, torch.tensor([ids], dtype=torch.long)
            self._whole = {}
        return self._tokens

    def refuse_unknown(self, names: Iterable[str], n_pos: int) -> None:
        """Raise a ValueError if a name is not the name of a part of any model."""
        refuse_unknown(names, [Shape.of(model, n_pos) for model in self._models.values()])

    def read(self, prompt: str, cuts: Sequence[str]) -> list[dict[str, Any]]:
        """For each model its shape and its results on the prompt, without and with the cuts, as plain numbers.

        Raises:
            ValueError: as in `tokens`, or a part cannot be cut.
        """
        n_pos = len(self.tokens(prompt))
        return [
            {
                "name": name,
                "gated": is_sparse(model),
                **Shape.of(model, n_pos)._asdict(),
                **(self._compared(name, model, cuts) if n_pos else {}),
            }
            for name, model in self._models.items()
        ]

    def explain(self, prompt: str, cuts: Sequence[str], edge: str) -> dict[str, QKAttribution]:
        """Why an attention edge is open or closed with these cuts, in each model that has it.

        Raises:
            ValueError: as in `read`, or it is not the name of an edge, or a model cannot be explained.
        """
        n_pos, place = len(self.tokens(prompt)), dict(read_cut(edge).places)
        if "key_pos" not in place:
            raise ValueError(f"{edge!r} is not an attention edge: want one such as a0.h1:3->7")
        self.refuse_unknown([edge], n_pos)
        found: dict[str, QKAttribution] = {}
        for name, model in self._models.items():
            shape = Shape.of(model, n_pos)
            if shape.has(read_cut(edge)):
                head, hooks = f"a{place['layer']}.h{place['head']}", cut_hooks(model, Cuts.of(cuts, shape))
                ends = place["query_pos"], place["key_pos"]
                found[name] = explain_under(self._opened[name], self._ids, head, *ends, hooks, is_sparse(model))
        return found

    def _compared(self, name: str, model: Any, names: Sequence[str]) -> dict[str, Any]:
        ids: Int[Tensor, "1 pos"] = self._ids.to(next(model.parameters()).device)
        none, cuts = (Cuts.of(some, Shape.of(model, ids.shape[1])) for some in ((), names))
        if name not in self._whole:
            self._whole[name] = run_with_cuts(model, ids, none)
        whole = self._whole[name]
        after = run_with_cuts(model, ids, cuts) if names else whole
        return model_data(whole, after, cuts.cover(whole.edges), self._text_of)

    def _text_of(self, token: int) -> str:
        if token not in self._texts:
            known = token < len(self._tokenizer)
            self._texts[token] = printable(text_of(self._tokenizer, token)) if known else f"<{token}>"
        return self._texts[token]
