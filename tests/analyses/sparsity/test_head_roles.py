"""The roles of heads, in a model that is built to have them and in the shipped ones."""

from typing import Any

import pytest
import torch

import sparselens as sl
from sparselens.analyses import direct_logit_attribution, head_roles, patch_paths
from sparselens.tasks import TASKS
from tests.analyses.small_models import native_model, put

QUIET: dict[str, Any] = {"progress": False}
IO, S1, AND, S2, END = range(5)
NAMED = {"IO": IO, "S1": S1, "S1+1": AND, "S2": S2, "END": END}


def looking_model(seen: dict[str, tuple[int, int]], write: dict[str, list[list[float]]]) -> Any:
    """Attention only, one-hot tokens of six dimensions; heads attend uniformly, except those given a place.

    Args:
        seen: of every head, its query and key position
        write: what a head makes of the token it sees, as a matrix on the right of a row; else nothing
    """
    sizes = {"n_layers": 2, "n_heads": 4, "d_head": 6, "d_model": 24, "n_ctx": 5, "d_vocab": 6}
    model = native_model(attn_only=True, **sizes)
    model.embed.original_component.weight.data[:, :6] = torch.eye(6)
    put(model.unembed, torch.eye(24)[:, :6].tolist())
    for name, matrix in write.items():
        layer, head = int(name[1]), int(name[4])
        value, out = (getattr(model.blocks[layer].attn, part).original_component.weight.data for part in "vo")
        value[6 * head : 6 * head + 6, :6] = torch.eye(6)
        out[:6, 6 * head : 6 * head + 6] = torch.tensor(matrix).T
    for name, (query, key) in seen.items():

        def look(pattern: torch.Tensor, hook: Any, head: int = int(name[4]), at: Any = (query, key)) -> torch.Tensor:
            if pattern.shape[-1] > END:  # a whole prompt
                pattern[:, head, at[0]] = torch.eye(5)[at[1]]
            return pattern

        model.blocks[int(name[1])].attn.hook_pattern.add_hook(look, is_permanent=True)
    return model


def make_pairs() -> sl.TokenizedPairs:
    """Names are tokens 1 to 4, at the positions IO, S1 and S2 before END; the corrupted S2 is the indirect object."""
    names = torch.tensor([[1, 2], [2, 3], [3, 4], [4, 1]])
    clean = torch.stack([names[:, 0], names[:, 1], torch.full((4,), 5), names[:, 1], torch.full((4,), 0)], 1)
    corrupted = clean.clone()
    corrupted[:, S2] = names[:, 0]
    places = {name: torch.full((4,), place) for name, place in NAMED.items()}
    return sl.TokenizedPairs(clean, corrupted, names[:, 0], names[:, 1], positions=places)


def test_roles_in_a_model_that_is_built_to_have_them():
    copy, negative = torch.diag(torch.tensor([0, 1.0, 1, 1, 1, 0])), -torch.diag(torch.tensor([0, 1.0, 1, 1, 1, 0]))
    seen = {"a0.h0": (S2, S1), "a0.h1": (S2, AND), "a0.h2": (AND, S1), "a0.h3": (END, S2)}
    seen |= {"a1.h0": (END, IO), "a1.h1": (END, IO), "a1.h2": (END, S2)}
    model, pairs = looking_model(seen, {"a1.h0": copy.tolist(), "a1.h1": negative.tolist()}), make_pairs()
    found = head_roles(model, pairs, threshold=0.9, **QUIET)
    assert found["a1.h0"]["END->IO"] == pytest.approx(1, abs=1e-3) and found["a1.h3"]["END->IO"] == pytest.approx(0.2)
    assert found["a1.h0"]["direct"] == pytest.approx(1, abs=1e-3) == -found["a1.h1"]["direct"]
    assert found.roles == {
        "name mover": ("a1.h0",),
        "negative name mover": ("a1.h1",),
        "S-inhibition": (),  # a0.h3 attends to S2, but writes nothing that a name mover reads
        "duplicate token": ("a0.h0",),
        "induction": ("a0.h1",),
        "previous token": ("a0.h2",),
    }
    assert found.paths is not None and found.paths.sources == ("a0.h3",) and found.paths["a0.h3"] == 0
    assert found.roles_of("a1.h2") == []  # attends to S2 in the layer of the name movers, not before it


def test_an_s_inhibition_head_acts_on_the_queries_of_name_movers():
    """a0.h3 copies the name of S2 to END, 12 dimensions up; a1.h0's query uses it to attend less to that name."""
    copy = torch.diag(torch.tensor([0, 1.0, 1, 1, 1, 0]))
    model, pairs = looking_model({"a0.h3": (END, S2), "a1.h1": (END, IO)}, {"a1.h0": copy.tolist()}), make_pairs()
    value, out = (getattr(model.blocks[0].attn, part).original_component.weight.data for part in "vo")
    value[18:24, :6], out[12:18, 18:24] = torch.eye(6), torch.eye(6)
    query, key = (getattr(model.blocks[1].attn, part).original_component.weight.data for part in "qk")
    query[:6, 12:18], key[:6, :6] = -20 * torch.eye(6), torch.diag(torch.tensor([0, 1.0, 1, 1, 1, 0]))
    query[:6, 0] += 10  # END, token 0, attends to names
    found = head_roles(model, pairs, threshold=0.4, **QUIET)
    assert found.roles["name mover"] == ("a1.h0",) and found.roles["S-inhibition"] == ("a0.h3",)
    assert found["a0.h3"]["path"] == pytest.approx(patch_paths(model, pairs, "a1.h0<q>", **QUIET)["a0.h3"]) != 0
    assert found["a0.h3"]["role"] == "S-inhibition"
    (trace,) = found.plot().data
    assert list(trace.y)[1] == "a0.h3: S-inhibition" and trace.y[0].startswith("a1.h0: name mover")
    assert [link.replace("&gt;", ">") for link in trace.x] == list(found.links)


@pytest.mark.parametrize("name", ["stories260k", "stories260k-sparse"])
def test_a_shipped_model(name: str):
    """stories260k is too small to know the answer (no name mover), but has an induction head."""
    model = sl.load(name)
    pairs = TASKS["ioi_stories"].tokenize(model.tokenizer, 20, corruption="s2_io")
    found = head_roles(model, pairs, **QUIET)
    assert found.roles["induction"] == ("a2.h7",) and not found.roles["name mover"]
    _, one = next(pairs.batches(1))
    _, cache = model.run_with_cache(one.clean)
    row = next(row for row in range(20) if pairs[row].prompts[0].clean == one.prompts[0].clean)
    weight = cache["blocks.2.attn.hook_pattern"][0, 7, one.positions["S2"][0], one.positions["S1+1"][0]]
    assert found.attention[row, 2, 7, found.links.index("S2->S1+1")] == pytest.approx(float(weight), abs=1e-5)
    torch.testing.assert_close(found.direct.mean, direct_logit_attribution(model, pairs, **QUIET).mean)


def test_other_tasks_get_the_numbers_alone():
    model = sl.load("stories260k-sparse")
    found = head_roles(model, TASKS["gendered_pronoun"].tokenize(model.tokenizer, 8), **QUIET)
    assert found.links == ("END->NAME",) and not found.roles and found.paths is None
    assert list(found.to_frame()) == ["head", "role", "direct", "END->NAME"]
    assert found.plot("END->NAME").data[0].z.shape == (5, 8) and len(found.plot().data[0].y) == 12
