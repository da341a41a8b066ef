"""Reads transcoders in the layouts of circuit-tracer, SAELens and CLT-Forge, and writes them in circuit-tracer's.

| layout | files | tensors |
| circuit-tracer, cross-layer | W_enc_0.safetensors, W_dec_0.safetensors, ... | W_enc_0 [feature, d_model], b_enc_0, b_dec_0, threshold_0, W_skip_0; W_dec_0 [feature, layers from 0 on, d_model] |
| circuit-tracer, per-layer | layer_0.safetensors, ... | W_enc, W_dec [feature, d_model], b_enc, b_dec, threshold, W_skip [out, in] |
| SAELens | a folder for each layer: sae_weights.safetensors, cfg.json | W_enc [d_model, feature], W_dec, b_enc, b_dec, threshold, W_skip [out, in] |
| CLT-Forge | clt_weights.safetensors, or rank0_clt_weights.safetensors, ... | W_enc [layer, d_model, feature], W_dec and b_dec [pair of layers, ...], log_threshold, scales |

The first two have a config.yaml that says where features read. Only safetensors files are opened, never pickles.
"""  # noqa: E501

import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save
from torch import Tensor

from sparselens.analyses.features.tensor_files import (
    CONFIG,
    TensorFile,
    layer_numbers,
    place_of_features,
    read_json,
    refuse_gaps,
    settings_of,
)
from sparselens.analyses.features.transcoders import READS, Transcoders
from sparselens.files.whole import write_file
from sparselens.models.places import find

FILES = ("*.safetensors", "*.json", "*.yaml")
FORGE, SAE = "clt_weights.safetensors", "sae_weights.safetensors"
SAE_KINDS = ("transcoder", "skip_transcoder", "jumprelu_transcoder", "jumprelu_skip_transcoder")
PARTS = {"W_enc": 2, "b_enc": 1, "b_dec": 1}  # tensor name -> number of axes
THRESHOLDS = ("threshold", "activation_function.threshold")
_LAYER = re.compile(r"blocks\.(\d+)\.(.+)")


def load_transcoders(folder: str | Path) -> Transcoders:
    """Load published transcoders, or those that `save_transcoders` wrote.

    >>> transcoders = analyses.load_transcoders("folder")

    Args:
        folder: a folder, or the id of a hub repository to download, in one of these layouts: circuit-tracer
            (cross-layer or per-layer), SAELens (a folder for each layer) or CLT-Forge

    Raises:
        ValueError: there is no such folder, it holds no transcoders as safetensors, or a tensor is missing or has the
            wrong shape; the message names it.
    """
    path = find(str(folder), FILES)
    for pattern, read in _LAYOUTS.items():
        if any(path.glob(pattern)):
            return read(path)
    wanted = "W_enc_0.safetensors, layer_0.safetensors, clt_weights.safetensors or */sae_weights.safetensors"
    pickles = sorted(file.name for kind in ("*.pt", "*.pth", "*.bin", "*.npz") for file in path.glob(kind))
    also = f"; {pickles[0]} is not opened, since a pickle can run code when loaded" if pickles else ""
    raise ValueError(f"{folder} holds no transcoders: want {wanted}{also}")


def save_transcoders(transcoders: Transcoders, folder: str | Path) -> None:
    """Write transcoders in circuit-tracer's layout, for `load_transcoders`.

    >>> analyses.save_transcoders(transcoders, "folder")

    The k of top-k features is written to config.yaml; circuit-tracer reads it only for per-layer transcoders.
    """
    path, plain = Path(folder), transcoders.to(device="cpu")
    for layer in range(plain.n_layers):
        parts = {"W_enc": plain.encoder[layer], "b_enc": plain.encoder_bias[layer], "b_dec": plain.decoder_bias[layer]}
        if plain.threshold is not None:
            parts["threshold" if plain.cross_layer else THRESHOLDS[1]] = plain.threshold[layer]
        if plain.skip is not None:
            parts["W_skip"] = plain.skip[layer] if plain.cross_layer else plain.skip[layer].T
        if plain.cross_layer:
            named = {f"{name}_{layer}": values for name, values in parts.items()}
            _write(path / f"W_enc_{layer}.safetensors", named)
            _write(path / f"W_dec_{layer}.safetensors", {f"W_dec_{layer}": plain.decoder[layer]})
        else:
            _write(path / f"layer_{layer}.safetensors", parts | {"W_dec": plain.decoder[layer][:, 0]})
    kind = "cross_layer_transcoder" if plain.cross_layer else "transcoder_set"
    lines = [f"model_kind: {kind}", f"feature_input_hook: {plain.reads}", "feature_output_hook: hook_mlp_out"]
    lines += [f"first_pos: {plain.first_pos}"]
    lines += [] if plain.top_k is None else ["activation: topk", f"k: {plain.top_k}"]
    write_file(path / CONFIG, ("\n".join(lines) + "\n").encode())


# -- the layouts


def _circuit_tracer_cross_layer(path: Path) -> Transcoders:
    layers = []
    for layer in layer_numbers(path, "W_enc_{}.safetensors"):
        encoder, decoder = (TensorFile(path / f"W_{part}_{layer}.safetensors", f"_{layer}") for part in ("enc", "dec"))
        parts = {name: encoder.need(name, n) for name, n in PARTS.items()}
        skip = encoder.get("W_skip")
        layers.append(parts | {"W_dec": decoder.need("W_dec", 3), "threshold": encoder.get("threshold"), "skip": skip})
    return _joined(path, layers, **settings_of(path, "hook_resid_mid"))


def _circuit_tracer_per_layer(path: Path) -> Transcoders:
    layers = []
    for layer in layer_numbers(path, "layer_{}.safetensors"):
        file = TensorFile(path / f"layer_{layer}.safetensors")
        parts = {name: file.need(name, n) for name, n in PARTS.items()}
        layers.append(parts | {"W_dec": file.need("W_dec", 2)[:, None], **_threshold_and_skip(file)})
    return _joined(path, layers, **settings_of(path, READS[0]))


def _sae_lens(path: Path) -> Transcoders:
    layers: dict[int, dict[str, Any]] = {}
    reads: set[str] = set()
    for weights in sorted(path.glob(f"*/{SAE}")):
        file, config = TensorFile(weights), weights.with_name("cfg.json")
        layer, read = _sae_place(config)
        reads.add(read)
        if layer in layers:
            raise ValueError(f"{config} is a second transcoder for layer {layer}: want one for each layer")
        parts = {name: file.need(name, n) for name, n in PARTS.items()}
        parts |= {"W_enc": parts["W_enc"].T, "W_dec": file.need("W_dec", 2)[:, None]}
        layers[layer] = parts | _threshold_and_skip(file)
    refuse_gaps(path, sorted(layers), "a folder")
    if len(reads) > 1:
        raise ValueError(
            f"the transcoders in {path} read from {' and '.join(sorted(reads))}: want the same place in all layers"
        )
    return _joined(path, [layers[layer] for layer in sorted(layers)], reads=reads.pop())


def _sae_place(config: Path) -> tuple[int, str]:
    """The layer of an SAELens transcoder, and what it reads there."""
    settings = read_json(config)
    if settings.get("architecture") not in SAE_KINDS:
        raise ValueError(
            f"{config}: {settings.get('architecture')!r} is not a transcoder (want {', '.join(SAE_KINDS)})"
        )
    if settings.get("normalize_activations", "none") != "none":
        raise ValueError(f"{config}: normalize_activations is {settings['normalize_activations']!r}, want 'none'")
    places = {**settings, **(settings.get("metadata") or {})}
    found = [_LAYER.fullmatch(str(places.get(name))) for name in ("hook_name", "hook_name_out")]
    if found[0] is None or found[1] is None or found[0][1] != found[1][1]:
        raise ValueError(f"{config}: want hook_name and hook_name_out in the same layer, such as blocks.0.hook_mlp_out")
    return int(found[0][1]), place_of_features(config, found[0][2], found[1][2])


def _clt_forge(path: Path) -> Transcoders:
    files = [TensorFile(file) for file in sorted(path.glob(f"rank*_{FORGE}"), key=_rank)] or [TensorFile(path / FORGE)]
    encoder, bias, decoder, threshold = (
        torch.cat([file.need(name, n_axes) for file in files], axis)
        for name, n_axes, axis in (("W_enc", 3, 2), ("b_enc", 2, 1), ("W_dec", 3, 1), ("log_threshold", 2, 1))
    )
    decoder_bias, n_layers = files[0].need("b_dec", 2), len(encoder)
    pairs = [(layer, layer) for layer in range(n_layers)]
    if len(decoder) != n_layers or n_layers == 1:
        pairs = [(source, layer) for source in range(n_layers) for layer in range(source, n_layers)]
    if len(decoder) != len(pairs) or len(decoder_bias) != len(pairs):
        raise ValueError(
            f"{files[0].path}: W_dec and b_dec are for {len(decoder)} and {len(decoder_bias)} pairs of layers, want "
            f"{n_layers} (per-layer) or {n_layers * (n_layers + 1) // 2} (cross-layer)"
        )
    scales = [files[0].get(f"estimated_norm_scaling_factor_{way}") for way in ("in", "out")]
    read, written = (torch.ones(n_layers) if scale is None else scale for scale in scales)
    biases = torch.zeros(n_layers, decoder_bias.shape[-1])
    decoders: list[list[Tensor]] = [[] for _ in range(n_layers)]
    for (source, layer), values, values_bias in zip(pairs, decoder, decoder_bias, strict=True):
        decoders[source].append(values / written[layer])
        biases[layer] += values_bias / written[layer]
    return Transcoders(
        encoder.mT * read[:, None, None],
        bias,
        tuple(torch.stack(values, 1) for values in decoders),
        biases,
        threshold.exp(),
        reads="ln2.hook_normalized",
        first_pos=1,
    )


def _rank(file: Path) -> int:
    return int(re.sub(r"\D", "", file.name.split("_")[0]) or 0)


_LAYOUTS: dict[str, Callable[[Path], Transcoders]] = {
    "W_enc_*.safetensors": _circuit_tracer_cross_layer,
    "layer_*.safetensors": _circuit_tracer_per_layer,
    f"*/{SAE}": _sae_lens,
    f"*{FORGE}": _clt_forge,
}


def _threshold_and_skip(file: TensorFile) -> dict[str, Tensor | None]:
    skip = file.get("W_skip")
    return {"threshold": file.get(*THRESHOLDS), "skip": None if skip is None else skip.mT}


def _joined(path: Path, layers: list[dict[str, Any]], **settings: Any) -> Transcoders:
    """Transcoders from the tensors of each layer, of which threshold and skip may be None."""
    tensors: dict[str, Any] = {}
    for name in ("W_enc", "b_enc", "b_dec", "threshold", "skip"):
        found = [layer[name] for layer in layers]
        there = [values for values in found if values is not None]
        if there and len(there) < len(found):
            raise ValueError(f"in {path} {len(there)} of {len(found)} layers have a {name}: want all or none")
        shapes = {tuple(values.shape) for values in there}
        if len(shapes) > 1:
            raise ValueError(f"in {path} {name} has shapes {sorted(shapes)}: want the same in all layers")
        tensors[name] = torch.stack(there) if there else None
    decoder = tuple(layer["W_dec"] for layer in layers)
    encoder, bias, decoder_bias, threshold, skip = tensors.values()
    try:
        return Transcoders(encoder, bias, decoder, decoder_bias, threshold, skip=skip, **settings)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


def _write(path: Path, tensors: Mapping[str, Tensor]) -> None:
    write_file(path, save({name: values.contiguous() for name, values in tensors.items()}))
