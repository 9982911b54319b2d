"""One random checkpoint in several folder formats: Hugging Face's, and mlx-lm's conversions of it.

    python reference/folders.py

writes `goldens/folders/<name>/` for `hf`, `mlx-mxfp4` (experts MXFP4, the rest bf16), `mlx-q8` (the rest affine, 8 bits in
groups of 64) and `mlx-q4` (4 bits in groups of 32, the router 8 bits in groups of 64), each with `golden.safetensors`: the
logits [tokens, vocabulary] that MLX computes from that folder in f32, with both variants of YaRN.
"""

import json
import shutil
import tempfile
from pathlib import Path

import mlx.core as mx
import numpy as np
from mlx.utils import tree_map
from mlx_lm import convert
from mlx_lm.utils import load_model

import vocabulary
from cases import Case, Shape
from compare import difference
from models import Packed, weights
from numpy_model import inverse_frequencies
from safetensors_file import save

FOLDERS = Path(__file__).parent / "goldens/folders"
CASE = Case(
    name="folders",
    shape=Shape(
        hidden=64, intermediate=64, query_heads=4, kv_heads=2, head_dim=32,
        experts=4, experts_per_token=2, window=8, sliding=(True, False, True),
    ),
    dense="BF16",
    prompt=40,
)
SEED = 3
CONVERSIONS = {
    "mlx-mxfp4": {},
    "mlx-q8": {"quantize": True, "q_bits": 8, "q_group_size": 64},
    "mlx-q4": {"quantize": True, "q_bits": 4, "q_group_size": 32},
}
# How o200k splits text before it merges bytes.
O200K_PATTERN = "|".join([
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?",
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?",
    r"\p{N}{1,3}",
    r" ?[^\s\p{L}\p{N}]+[\r\n/]*",
    r"\s*[\r\n]+",
    r"\s+(?!\S)",
    r"\s+",
])
HF_NAMES = {
    "token_embd": "model.embed_tokens", "output_norm": "model.norm", "output": "lm_head",
    "attn_norm": "input_layernorm", "post_attention_norm": "post_attention_layernorm", "ffn_gate_inp": "mlp.router",
    "attn_q": "self_attn.q_proj", "attn_k": "self_attn.k_proj", "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
}


def hf_blocks(tensor: Packed) -> tuple[np.ndarray, np.ndarray]:
    """Blocks [experts, rows, columns / 32, 16] with element e in byte e / 2, and scales [experts, rows, columns / 32]."""
    experts, rows, _ = tensor.data.shape
    blocks = tensor.data.reshape(experts, rows, -1, 17)
    codes = np.concatenate([blocks[..., 1:] & 15, blocks[..., 1:] >> 4], axis=-1)
    return codes[..., 0::2] | codes[..., 1::2] << 4, blocks[..., 0]


def interleaved(gate: np.ndarray, up: np.ndarray) -> np.ndarray:
    """[experts, rows, …] twice to [experts, 2 rows, …]: gate even, up odd."""
    return np.stack([gate, up], axis=2).reshape(gate.shape[0], -1, *gate.shape[2:])


def bf16(tensor: Packed) -> mx.array:
    if tensor.data.dtype == np.uint8:
        return mx.array(tensor.data.view(np.uint16)).view(mx.bfloat16)
    return mx.array(tensor.data).astype(mx.bfloat16)


def hf_tensors(tensors: dict[str, Packed]) -> dict[str, mx.array]:
    found = {}
    for name, tensor in tensors.items():
        stem, kind = name.rsplit(".", 1)
        prefix = ""
        if stem.startswith("blk."):
            _, layer, stem = stem.split(".")
            prefix = f"model.layers.{layer}."
        if stem == "attn_sinks":
            found[prefix + "self_attn.sinks"] = bf16(tensor)
        elif stem in HF_NAMES:
            found[f"{prefix}{HF_NAMES[stem]}.{kind}"] = bf16(tensor)
        elif stem == "ffn_down_exps" and kind == "bias":
            found[prefix + "mlp.experts.down_proj_bias"] = bf16(tensor)
        elif stem == "ffn_down_exps":
            blocks, scales = hf_blocks(tensor)
            found[prefix + "mlp.experts.down_proj_blocks"] = mx.array(blocks)
            found[prefix + "mlp.experts.down_proj_scales"] = mx.array(scales)
        elif stem == "ffn_gate_exps":
            up = tensors[name.replace("gate", "up")]
            at = prefix + "mlp.experts.gate_up_proj"
            if kind == "bias":
                found[at + "_bias"] = mx.array(interleaved(tensor.data, up.data)).astype(mx.bfloat16)
            else:
                pairs = zip(hf_blocks(tensor), hf_blocks(up))
                blocks, scales = (interleaved(gate, up) for gate, up in pairs)
                found[at + "_blocks"], found[at + "_scales"] = mx.array(blocks), mx.array(scales)
    return found


def config(shape: Shape) -> dict:
    return {
        "architectures": ["GptOssForCausalLM"],
        "model_type": "gpt_oss",
        "num_hidden_layers": shape.layers,
        "hidden_size": shape.hidden,
        "intermediate_size": shape.intermediate,
        "num_attention_heads": shape.query_heads,
        "num_key_value_heads": shape.kv_heads,
        "head_dim": shape.head_dim,
        "num_local_experts": shape.experts,
        "num_experts_per_tok": shape.experts_per_token,
        "vocab_size": vocabulary.SIZE,
        "max_position_embeddings": 131072,
        "rms_norm_eps": shape.rms_eps,
        "sliding_window": shape.window,
        "layer_types": ["sliding_attention" if sliding else "full_attention" for sliding in shape.sliding],
        "rope_theta": shape.rope_theta,
        "rope_scaling": {
            "rope_type": "yarn",
            "factor": shape.yarn_factor,
            "beta_fast": 32.0,
            "beta_slow": 1.0,
            "truncate": False,
            "original_max_position_embeddings": shape.original_context,
        },
        "tie_word_embeddings": False,
        "torch_dtype": "bfloat16",
        "bos_token_id": vocabulary.token_id("<|startoftext|>"),
        "eos_token_id": vocabulary.token_id("<|return|>"),
        "pad_token_id": vocabulary.token_id("<|endoftext|>"),
        "quantization_config": {
            "quant_method": "mxfp4",
            "modules_to_not_convert": ["model.layers.*.self_attn", "model.layers.*.mlp.router", "model.embed_tokens", "lm_head"],
        },
    }


def tokenizer() -> dict:
    first = vocabulary.FIRST_CONTROL
    return {
        "version": "1.0",
        "added_tokens": [
            {
                "id": first + i, "content": text, "single_word": False, "lstrip": False, "rstrip": False,
                "normalized": False, "special": True,
            }
            for i, text in enumerate(vocabulary.CONTROL)
        ],
        "normalizer": None,
        "pre_tokenizer": {
            "type": "Sequence",
            "pretokenizers": [
                {"type": "Split", "pattern": {"Regex": O200K_PATTERN}, "behavior": "Isolated", "invert": False},
                {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False},
            ],
        },
        "post_processor": None,
        "decoder": {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True},
        "model": {
            "type": "BPE", "dropout": None, "unk_token": None, "fuse_unk": False, "byte_fallback": False,
            "ignore_merges": True,
            "vocab": {text: i for i, text in enumerate(vocabulary.NORMAL)},
            "merges": list(vocabulary.MERGES),
        },
    }


def write_hf(folder: Path, tensors: dict[str, Packed]) -> None:
    """Writes two shards and an index, as large checkpoints have, the configuration and the tokenizer."""
    folder.mkdir(parents=True)
    named = hf_tensors(tensors)
    shards = {"model-00001-of-00002.safetensors": {}, "model-00002-of-00002.safetensors": {}}
    weight_map = {}
    for name, tensor in named.items():
        # Scales and blocks of one matrix are in different files, except in layer 2, so that readers cannot expect both in one.
        file = list(shards)[name.endswith("_scales") or ".layers.2." in name]
        shards[file][name], weight_map[name] = tensor, file
    for file, part in shards.items():
        mx.save_safetensors(str(folder / file), part, {"format": "pt"})
    index = {"metadata": {"total_size": sum(t.nbytes for t in named.values())}, "weight_map": weight_map}
    write_json(folder / "model.safetensors.index.json", index)
    write_json(folder / "config.json", config(CASE.shape))
    write_json(folder / "tokenizer.json", tokenizer())
    write_json(folder / "tokenizer_config.json", {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": "<|startoftext|>", "eos_token": "<|return|>", "pad_token": "<|endoftext|>",
        "chat_template": vocabulary.CHAT_TEMPLATE,
    })


def write_json(path: Path, value: dict) -> None:
    path.write_text(json.dumps(value, indent=1, ensure_ascii=False) + "\n")


def mlx_logits(folder: Path, tokens: list[int], truncate: bool) -> np.ndarray:
    model, _ = load_model(folder)
    in_f32 = lambda a: a.astype(mx.float32) if mx.issubdtype(a.dtype, mx.floating) else a
    model.update(tree_map(in_f32, model.parameters()))
    wavelengths = mx.array((1 / inverse_frequencies(CASE.shape, truncate)).astype(np.float32))
    for layer in model.layers:
        layer.self_attn.rope._freqs = wavelengths
    return np.array(model(mx.array([tokens]))[0])


def write_golden(folder: Path, tokens: list[int]) -> dict[str, np.ndarray]:
    logits = {f"logits.{rope}": mlx_logits(folder, tokens, rope == "truncated") for rope in ("exact", "truncated")}
    save(folder / "golden.safetensors", {"tokens": np.array(tokens, np.int32)} | logits, {"seed": str(SEED)})
    return logits


def check_transformers(folder: Path, tokens: list[int], expected: np.ndarray) -> None:
    """Compares with transformers on the same folder. Without an MXFP4 kernel, it unpacks the weights to floats."""
    try:
        import torch
        import accelerate  # noqa: F401  (transformers unpacks MXFP4 through it)
        from transformers import AutoModelForCausalLM
    except ImportError:
        print("not checked: transformers or accelerate is not installed")
        return
    model = AutoModelForCausalLM.from_pretrained(folder, attn_implementation="eager").float().eval()
    with torch.no_grad():
        logits = model(torch.tensor([tokens]), use_cache=False).logits[0].float().numpy()
    found = difference(expected, logits)
    print(f"transformers on hf against MLX on hf: rms/std {found.rms:.1e}, max/std {found.max:.1e}")
    if found.rms > 2e-5:
        raise AssertionError(f"transformers and MLX differ by {found.rms:.1e} rms/std, more than 2e-5")


def main() -> None:
    mx.set_default_device(mx.cpu)
    prompt, tensors = weights(CASE, SEED)
    tokens = prompt.tolist()
    shutil.rmtree(FOLDERS, ignore_errors=True)
    write_hf(FOLDERS / "hf", tensors)
    for name, options in CONVERSIONS.items():
        with tempfile.TemporaryDirectory() as scratch:
            made = Path(scratch) / "model"
            convert(str(FOLDERS / "hf"), str(made), **options)
            (FOLDERS / name).mkdir()
            for file in sorted(made.iterdir()):
                if file.suffix in (".json", ".jinja", ".safetensors"):
                    shutil.copy(file, FOLDERS / name / file.name)
    logits = {name: write_golden(FOLDERS / name, tokens) for name in ("hf", *CONVERSIONS)}
    plain = difference(logits["hf"]["logits.exact"], logits["mlx-mxfp4"]["logits.exact"])
    print(f"MLX on mlx-mxfp4 against MLX on hf: rms/std {plain.rms:.1e}, max/std {plain.max:.1e}")
    check_transformers(FOLDERS / "hf", tokens, logits["hf"]["logits.exact"])
    for folder in sorted(FOLDERS.iterdir()):
        print(f"{folder.name:10} {sum(file.stat().st_size for file in folder.iterdir()) / 1000:8.0f} KB")


if __name__ == "__main__":
    main()
