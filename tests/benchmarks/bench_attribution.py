"""What attribution costs, against the runs of the model that it cannot do without. Not collected by pytest.

    python -m tests.benchmarks.bench_attribution            # time, in seconds of processor, arms in turn
    python -m tests.benchmarks.bench_attribution --memory   # peak of resident memory, every arm in its own process

Model: 12 layers, 12 heads, d_model 768, vocabulary 50257 (GPT-2 small's shape), random weights; 32 prompts of 15
tokens; one thread. Floors: of EAP two forwards and one backward, of EAP-IG with 5 steps seven and five, both of the
same model as transformers runs it, parameters frozen, gradient down to the embeddings; of exact edges one forward each;
of circuits, run one after the other as the search does, one each and the two baselines.
"""

import argparse
import resource
import subprocess
import sys
import time
from collections.abc import Callable
from statistics import median
from typing import Any

import torch
import transformers as tr
from transformer_lens.model_bridge.sources import build_bridge_from_module

from sparselens.analyses.attribution.edges import attribute_edges
from sparselens.analyses.attribution.exact import patch_edges
from sparselens.analyses.circuits.circuit_runs import CircuitRunner
from sparselens.analyses.engine.request import open_request
from sparselens.circuits.circuit import Circuit
from sparselens.circuits.graph import Graph
from sparselens.prompts.metrics import logit_difference
from sparselens.prompts.tokenized import TokenizedPairs

PROMPTS, TOKENS, VOCABULARY = 32, 15, 50257
EDGES = 1000
CIRCUITS = 4


def plain_model() -> Any:
    """GPT-2 small's shape, random, as transformers runs it."""
    torch.manual_seed(0)
    return tr.GPT2LMHeadModel(tr.GPT2Config(attn_implementation="eager")).eval()


def bridge() -> Any:
    """The same as a TransformerBridge."""
    model = plain_model()
    return build_bridge_from_module(model, "GPT2LMHeadModel", hf_config=model.config)


def make_pairs(prompts: int) -> TokenizedPairs:
    """Prompts that differ from the third token on in three places, as those of IOI do."""
    generator = torch.Generator().manual_seed(0)
    clean = torch.randint(VOCABULARY, (prompts, TOKENS), generator=generator)
    corrupted = clean.clone()
    corrupted[:, [3, 6, 10]] = torch.randint(VOCABULARY, (prompts, 3), generator=generator)
    answers = torch.randint(VOCABULARY, (2, prompts), generator=generator)
    return TokenizedPairs(clean, corrupted, answers[0], (answers[1] + 1) % VOCABULARY)


def floor(model: Any, pairs: TokenizedPairs, forwards: int, backwards: int) -> None:
    """So many runs of the whole batch, the gradient down to the embeddings."""
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    for _ in range(forwards - backwards):
        with torch.no_grad():
            logit_difference(model(pairs.corrupted, use_cache=False).logits, pairs)
    for _ in range(backwards):
        embeddings = model.get_input_embeddings()(pairs.clean).requires_grad_()
        logits = model(inputs_embeds=embeddings, use_cache=False).logits
        torch.autograd.grad(logit_difference(logits, pairs).sum(), embeddings)


def some_edges(count: int) -> torch.Tensor:
    """Edges drawn from all alike."""
    graph = Graph.of_shape(12, 12)
    places = graph.exists.flatten().nonzero()[:, 0]
    drawn = places[torch.randperm(len(places), generator=torch.Generator().manual_seed(0))[:count]]
    return torch.zeros(graph.exists.numel(), dtype=torch.bool).index_fill_(0, drawn, True).view(graph.exists.shape)


def one_forward_an_edge(model: Any, pairs: TokenizedPairs, edges: int) -> None:
    """What patching edge by edge costs at least: one run of all prompts for each."""
    with torch.no_grad():
        for _ in range(edges):
            logit_difference(model(pairs.clean, use_cache=False).logits, pairs)


def run_circuits(model: Any, pairs: TokenizedPairs) -> None:
    """Circuits of twice as many edges each time."""
    with open_request(model, pairs, logit_difference) as request:
        graph = Graph.of_shape(12, 12)
        runner = CircuitRunner(request, graph, "corrupted")
        for number in range(CIRCUITS):
            runner.run([Circuit(graph, some_edges(EDGES * 2**number))])


def arms() -> dict[str, Callable[[], Any]]:
    """Everything that is measured, ready to run. Built as it is asked for, so that one arm holds one model."""
    pairs, few = make_pairs(PROMPTS), make_pairs(4)
    made: dict[str, Any] = {}

    def model(kind: Callable[[], Any]) -> Any:
        if kind.__name__ not in made:
            made[kind.__name__] = kind()
        return made[kind.__name__]

    def attribute(method: str, prompts: TokenizedPairs = pairs) -> Any:
        return attribute_edges(model(bridge), prompts, logit_difference, method, progress=False)

    return {
        "floor of eap": lambda: floor(model(plain_model), pairs, 2, 1),
        "eap": lambda: attribute("eap"),
        "floor of eap-ig": lambda: floor(model(plain_model), pairs, 7, 5),
        "eap-ig": lambda: attribute("eap-ig"),
        "floor of 1,000 exact edges": lambda: one_forward_an_edge(model(plain_model), few, EDGES // 50),
        "1,000 exact edges": lambda: patch_edges(
            model(bridge), few, logit_difference, some_edges(EDGES), progress=False
        ),
        "floor of circuits": lambda: floor(model(plain_model), pairs, 2 + CIRCUITS, 0),
        "circuits": lambda: run_circuits(model(bridge), pairs),
        "eap of 4 x the prompts": lambda: attribute("eap", make_pairs(4 * PROMPTS)),
        "one forward and backward": lambda: floor(model(plain_model), pairs, 1, 1),
    }


def seconds(run: Callable[[], Any]) -> float:
    """Processor time."""
    start = time.process_time()
    run()
    return time.process_time() - start


def measure_time(repeats: int, names: list[str]) -> None:
    """Medians of the arms, run in turn, and each one's ratio to its floor in the same round."""
    chosen = {name: run for name, run in arms().items() if not names or name.removeprefix("floor of ") in names}
    for run in chosen.values():
        run()
    rounds = [{name: seconds(run) for name, run in chosen.items()} for _ in range(repeats)]
    for name in chosen:
        line = f"{name:28} {median(found[name] for found in rounds):8.2f} s"
        if f"floor of {name}" in chosen:
            scale = 50 if "exact" in name else 1  # the floor ran one edge in fifty
            ratios = [found[name] / found[f"floor of {name}"] / scale for found in rounds]
            line += f"   {median(ratios):.3f} x its floor (rounds: {', '.join(f'{r:.3f}' for r in ratios)})"
        print(line, flush=True)


def measure_memory() -> None:
    """Peak of resident memory of each arm, above what the process holds with the model loaded."""
    for name in arms():
        if not name.startswith("floor of"):
            command = [sys.executable, "-m", "tests.benchmarks.bench_attribution", "--peak", name]
            print(f"{name:28} {subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()}")


def main() -> None:
    """Print what is asked for."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--memory", action="store_true", help="peak memory instead of time")
    parser.add_argument("--repeats", type=int, default=3, help="rounds (default 3)")
    parser.add_argument("--only", nargs="*", default=[], help="measure these arms and their floors")
    parser.add_argument("--peak", help=argparse.SUPPRESS)
    options = parser.parse_args()
    torch.set_num_threads(1)
    if options.peak:
        arms()[options.peak]()
        print(f"{resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20:.2f} GiB peak")
    elif options.memory:
        measure_memory()
    else:
        measure_time(options.repeats, options.only)


if __name__ == "__main__":
    main()
