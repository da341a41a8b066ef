"""Folders of transcoders in each published layout; errors name the damaged or unknown file."""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jaxtyping
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from sparselens import analyses
from sparselens.analyses.features.transcoders import Transcoders
from tests.analyses.features.transcoders_for import KINDS, random_transcoders
from tests.tiny_models import tiny_bridge

MODEL = tiny_bridge("gpt2", n_layer=3)


@pytest.fixture
def unchecked(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the type checks of tests, which would raise first."""
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)


def same(found: Transcoders, wanted: Transcoders) -> bool:
    """Whether all tensors and settings are equal."""
    for name, value in vars(wanted).items():
        other = getattr(found, name)
        if isinstance(value, Tensor):
            torch.testing.assert_close(other, value)
        elif isinstance(value, tuple):
            for one, two in zip(other, value, strict=True):
                torch.testing.assert_close(one, two)
        else:
            assert other == value, name
    return True


def write(path: Path, tensors: Mapping[str, Tensor]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file({name: values.contiguous() for name, values in tensors.items()}, path)


def sae_lens(folder: Path, made: Transcoders) -> None:
    """Save a transcoder of each layer as SAELens does."""
    for layer in range(made.n_layers):
        kind = "jumprelu_transcoder" if made.threshold is not None else "skip_transcoder"
        at = f"blocks.{layer}"
        places = {"hook_name": f"{at}.{made.reads}", "hook_name_out": f"{at}.hook_mlp_out"}
        tensors = {"W_enc": made.encoder[layer].T, "W_dec": made.decoder[layer][:, 0]}
        tensors |= {"b_enc": made.encoder_bias[layer], "b_dec": made.decoder_bias[layer]}
        if made.threshold is not None:
            tensors["threshold"] = made.threshold[layer]
        if made.skip is not None:
            tensors["W_skip"] = made.skip[layer].T
        write(folder / f"layer {layer}" / "sae_weights.safetensors", tensors)
        settings = {"architecture": kind, "normalize_activations": "none", "metadata": places}
        (folder / f"layer {layer}" / "cfg.json").write_text(json.dumps(settings))


def clt_forge(folder: Path, made: Transcoders, shards: int = 1) -> None:
    """Save as CLT-Forge does: pairs of layers in order, in units in which inputs and outputs have norm one."""
    assert made.threshold is not None
    n = made.n_layers
    read, written = torch.linspace(0.5, 2, n), torch.linspace(3, 4, n)
    pairs = [(source, layer) for source in range(n) for layer in range(source, n)]
    decoder = torch.stack([made.decoder[source][:, layer - source] * written[layer] for source, layer in pairs])
    bias = torch.stack([made.decoder_bias[layer] * written[layer] / (layer + 1) for _, layer in pairs])
    encoder = made.encoder.mT / read[:, None, None]
    size = encoder.shape[2] // shards
    for shard in range(shards):
        own = slice(shard * size, (shard + 1) * size)
        tensors = {"W_enc": encoder[..., own], "b_enc": made.encoder_bias[:, own], "W_dec": decoder[:, own]}
        tensors |= {"b_dec": bias, "log_threshold": made.threshold[:, own].log()}
        tensors |= {"estimated_norm_scaling_factor_in": read, "estimated_norm_scaling_factor_out": written}
        write(folder / f"{f'rank{shard}_' * (shards > 1)}clt_weights.safetensors", tensors)


@pytest.mark.parametrize("kind", KINDS)
def test_what_was_saved_is_what_is_opened(kind: str, tmp_path: Path):
    """Files are in circuit-tracer's layouts, cross-layer and per-layer, with its names and shapes."""
    made = random_transcoders(MODEL, **KINDS[kind])
    analyses.save_transcoders(made, tmp_path / "folder")
    assert same(analyses.load_transcoders(tmp_path / "folder"), made)
    files = sorted(file.name for file in (tmp_path / "folder").glob("*.safetensors"))
    tensors = load_file(tmp_path / "folder" / files[-1])
    if made.cross_layer:
        assert files == [f"W_{part}_{layer}.safetensors" for part in ("dec", "enc") for layer in range(3)]
        assert {"W_enc_2", "b_enc_2", "b_dec_2"} <= set(tensors) and tensors["W_enc_2"].shape == (12, 16)
        assert load_file(tmp_path / "folder" / "W_dec_1.safetensors")["W_dec_1"].shape == (12, 2, 16)
    else:
        assert files == [f"layer_{layer}.safetensors" for layer in range(3)]
        assert {"W_enc", "b_enc", "b_dec", "W_dec", "W_skip"} == set(tensors)


def test_circuit_tracers_published_settings(tmp_path: Path):
    """Without a config, cross-layer ones read the stream and the first token has no features. In bfloat16, too."""
    made = random_transcoders(MODEL, reads="hook_resid_mid", first_pos=1)
    for layer in range(3):
        parts = {"W_enc": made.encoder, "b_enc": made.encoder_bias, "b_dec": made.decoder_bias}
        named = {f"{name}_{layer}": values[layer].bfloat16() for name, values in parts.items()}
        write(tmp_path / f"W_enc_{layer}.safetensors", named)
        write(tmp_path / f"W_dec_{layer}.safetensors", {f"W_dec_{layer}": made.decoder[layer].bfloat16()})
    assert same(analyses.load_transcoders(tmp_path), made.to(dtype=torch.bfloat16).to(dtype=torch.float32))
    (tmp_path / "config.yaml").write_text("feature_input_hook: hook_mlp_in\nfirst_pos: 0\nscan: a\n")
    assert same(
        analyses.load_transcoders(tmp_path),
        random_transcoders(MODEL, reads="hook_resid_mid").to(dtype=torch.bfloat16).to(dtype=torch.float32),
    )


@pytest.mark.parametrize("options", [{"skip": True}, {"threshold": 0.2, "reads": "ln2.hook_normalized"}])
def test_saelens(options: dict[str, Any], tmp_path: Path):
    made = random_transcoders(MODEL, cross_layer=False, **options)
    sae_lens(tmp_path, made)
    assert same(analyses.load_transcoders(tmp_path), made)


@pytest.mark.parametrize("shards", [1, 3])
def test_clt_forge(shards: int, tmp_path: Path):
    made = random_transcoders(MODEL, threshold=0.2, reads="ln2.hook_normalized", first_pos=1)
    clt_forge(tmp_path, made, shards)
    assert same(analyses.load_transcoders(tmp_path), made)


def _cut_short(folder: Path) -> None:
    file = folder / "layer_1.safetensors"
    file.write_bytes(file.read_bytes()[:-100])


def _change(name: str, **changes: Any) -> Callable[[Path], None]:
    """Replace tensors in a file, or remove them (None)."""

    def change(folder: Path) -> None:
        tensors = load_file(folder / name) | changes
        write(folder / name, {key: values for key, values in tensors.items() if values is not None})

    return change


DAMAGED: dict[str, tuple[Callable[[Path], Any], str]] = {
    "a file cut short": (_cut_short, r"layer_1\.safetensors is truncated or damaged"),
    "no encoder": (_change("layer_0.safetensors", W_enc=None), r"layer_0\.safetensors has no W_enc: it has W_dec, W_"),
    "a decoder of another shape": (
        _change("layer_2.safetensors", W_dec=torch.ones(12, 15)),
        r"decoder\[2\] has shape \[12, 1, 15\], want \[12, 1, 16\]",
    ),
    "an encoder with one axis": (
        _change("layer_0.safetensors", W_enc=torch.ones(16)),
        r"layer_0\.safetensors: W_enc has shape \[16\], want 2 axes",
    ),
    "another number of features": (
        _change("layer_1.safetensors", W_enc=torch.ones(11, 16)),
        r"W_enc has shapes \[\(11, 16\), \(12, 16\)\]: want the same in all layers",
    ),
    "a threshold in one layer": (
        _change("layer_1.safetensors", threshold=torch.ones(12)),
        "1 of 3 layers have a threshold: want all or none",
    ),
    "a layer missing": (
        lambda folder: (folder / "layer_1.safetensors").unlink(),
        "for layers 0, 2: want every layer from 0 on",
    ),
    "settings that are no YAML": (
        lambda folder: (folder / "config.yaml").write_text("a: [b"),
        r"config\.yaml is not YAML",
    ),
    "settings that run code": (
        lambda folder: (folder / "config.yaml").write_text("a: !!python/object/apply:os.getcwd []"),
        r"config\.yaml is not YAML",
    ),
    "a place that nobody knows": (
        lambda folder: (folder / "config.yaml").write_text("feature_input_hook: ln1.hook_scale"),
        "no such place for features to read.*'ln1.hook_scale'",
    ),
    "features that write elsewhere": (
        lambda folder: (folder / "config.yaml").write_text("feature_output_hook: hook_attn_out"),
        "write to 'hook_attn_out', want 'hook_mlp_out'",
    ),
    "a k in words": (
        lambda folder: (folder / "config.yaml").write_text("activation: topk\nk: many"),
        "k = 'many'.*want integers",
    ),
}


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize("case", DAMAGED)
def test_damage_is_named(case: str, tmp_path: Path):
    change, message = DAMAGED[case]
    analyses.save_transcoders(random_transcoders(MODEL, cross_layer=False, skip=True), tmp_path)
    change(tmp_path)
    with pytest.raises(ValueError, match=message):
        analyses.load_transcoders(tmp_path)


def test_pickles_are_not_opened(tmp_path: Path):
    torch.save({"W_enc": torch.ones(2)}, tmp_path / "layer_0.pt")
    with pytest.raises(
        ValueError, match=r"holds no transcoders: want W_enc_0.*layer_0\.pt is not opened, since a pickle"
    ):
        analyses.load_transcoders(tmp_path)
    with pytest.raises(ValueError, match="no such folder"):
        analyses.load_transcoders(tmp_path / "nowhere")


@pytest.mark.usefixtures("unchecked")
def test_strange_folders_of_saelens_and_clt_forge(tmp_path: Path):
    made = random_transcoders(MODEL, cross_layer=False, skip=True)
    sae_lens(tmp_path, made)
    config = tmp_path / "layer 1" / "cfg.json"
    settings = json.loads(config.read_text())
    for changes, message in (
        ({"architecture": "standard"}, "'standard' is not a transcoder"),
        ({"normalize_activations": "layer_norm"}, "is 'layer_norm', want 'none'"),
        ({"metadata": {"hook_name": "blocks.1.mlp.hook_in"}}, "want hook_name and hook_name_out in the same layer"),
        ({"metadata": settings["metadata"] | {"hook_name_out": "blocks.1.hook_attn_out"}}, "write to 'hook_attn_out'"),
    ):
        config.write_text(json.dumps(settings | changes))
        with pytest.raises(ValueError, match=message):
            analyses.load_transcoders(tmp_path)
    config.write_text("{")
    with pytest.raises(ValueError, match=r"cannot read .*cfg\.json as JSON"):
        analyses.load_transcoders(tmp_path)
    clt_forge(tmp_path / "forge", random_transcoders(MODEL, threshold=0.2))
    _change("clt_weights.safetensors", b_dec=torch.ones(5, 16))(tmp_path / "forge")
    with pytest.raises(ValueError, match=r"for 6 and 5 pairs of layers, want 3 \(per-layer\) or 6"):
        analyses.load_transcoders(tmp_path / "forge")


@pytest.mark.usefixtures("unchecked")
def test_tensors_that_do_not_fit_are_refused():
    made = random_transcoders(MODEL, top_k=3)
    changes: list[tuple[dict[str, Any], str]] = [
        ({"decoder": made.decoder[:2]}, "for each layer a decoder"),
        ({"encoder_bias": torch.zeros(3, 5)}, r"encoder_bias has shape \[3, 5\], want \[3, 12\]"),
        ({"top_k": 13}, "top_k = 13: want 1 to 12"),
        ({"threshold": torch.zeros(3, 12)}, "a threshold or a top_k, not both"),
        ({"reads": "mlp.hook_out"}, "no such place for features to read"),
    ]
    for change, message in changes:
        with pytest.raises(ValueError, match=message):
            Transcoders(**{**vars(made), **change})
    assert repr(made) == "Transcoders(cross-layer, 3 layers of 12 features, d_model 16, top 3)"
