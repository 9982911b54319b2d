# MLX: mlx-lm's model and caches. common.py precedes this file, and serve.py follows it.
import copy
import math
from importlib.metadata import version
from pathlib import Path

import mlx.core as mx
import mlx.nn as nn
from mlx_lm.models.gpt_oss import Model, ModelArgs
from mlx_lm.models.switch_layers import SwitchLinear
from mlx_lm.utils import load_model

# GGUF's names and mlx-lm's.
NAMES = {
    "token_embd": "model.embed_tokens",
    "output_norm": "model.norm",
    "output": "lm_head",
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "attn_sinks": "self_attn.sinks",
    "post_attention_norm": "post_attention_layernorm",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate_inp": "mlp.router",
    "ffn_gate_exps": "mlp.experts.gate_proj",
    "ffn_up_exps": "mlp.experts.up_proj",
    "ffn_down_exps": "mlp.experts.down_proj",
}


def mlx_name(name):
    """`blk.0.attn_q.weight` to `model.layers.0.self_attn.q_proj.weight`."""
    stem, _, kind = name.rpartition(".")
    prefix = ""
    if stem.startswith("blk."):
        _, layer, stem = stem.split(".")
        prefix = f"model.layers.{layer}."
    if stem not in NAMES:
        raise Unsupported(f"mlx-lm has no equivalent of the tensor {name}; write a file with standard names with `gptoss convert`")
    return prefix + NAMES[stem] + ("" if stem == "attn_sinks" else f".{kind}")


def repack_mxfp4(data):
    """GGUF's 17-byte blocks `[experts, out, blocks * 17]` to MLX's words and scales. Byte j of a block has elements j and j + 16
    in GGUF, and 2j and 2j + 1 in MLX."""
    experts, rows, _ = data.shape
    blocks = data.reshape(experts, rows, -1, 17)
    codes = np.concatenate([blocks[..., 1:] & 15, blocks[..., 1:] >> 4], axis=-1)
    pairs = np.ascontiguousarray(codes[..., 0::2] | codes[..., 1::2] << 4)
    words = pairs.reshape(experts, rows, -1).view(np.uint32)
    return mx.array(words), mx.array(np.ascontiguousarray(blocks[..., 0]))


def repack_q8_0(data):
    """GGUF's 34-byte blocks `[rows, blocks * 34]` to MLX's affine words, scales and biases: d * q is d * (q + 128) - 128 d, exactly."""
    rows = data.shape[0]
    blocks = data.reshape(rows, -1, 34)
    scales = np.ascontiguousarray(blocks[..., :2]).view(np.float16)[..., 0].astype(np.float32)
    codes = np.ascontiguousarray(blocks[..., 2:] ^ 128).reshape(rows, -1)
    return mx.array(codes.view(np.uint32)), mx.array(scales), mx.array(-128 * scales)


def from_gguf(path, config):
    """Loads a GGUF file into mlx-lm's model. MXFP4 and Q8_0 stay packed; all other matrices become f32."""
    from gguf import GGMLQuantizationType, GGUFReader
    from gguf.quants import dequantize

    reader = GGUFReader(path)
    split = reader.get_field("split.count")
    if split is not None and split.contents() > 1:
        raise Unsupported("MLX does not read split GGUF files; merge them with `gptoss convert`")
    weights, affine = {}, set()
    for tensor in reader.tensors:
        name, stem = mlx_name(tensor.name), mlx_name(tensor.name).removesuffix(".weight")
        if tensor.tensor_type == GGMLQuantizationType.MXFP4:
            weights[name], weights[f"{stem}.scales"] = repack_mxfp4(tensor.data)
        elif tensor.tensor_type == GGMLQuantizationType.Q8_0:
            weights[name], weights[f"{stem}.scales"], weights[f"{stem}.biases"] = repack_q8_0(tensor.data)
            affine.add(stem)
        else:
            weights[name] = mx.array(dequantize(tensor.data, tensor.tensor_type))
        # Evaluated per tensor, so that memory never has a second copy of the whole file.
        mx.eval([value for key, value in weights.items() if key.startswith(stem)])
    model = Model(ModelArgs.from_dict(config))

    def storage(path, module):
        if isinstance(module, SwitchLinear) and f"{path}.scales" in weights and path not in affine:
            return {"group_size": 32, "bits": 4, "mode": "mxfp4"}
        return {"group_size": 32, "bits": 8, "mode": "affine"} if path in affine else False

    nn.quantize(model, group_size=32, bits=4, class_predicate=storage)
    model.load_weights(list(weights.items()), strict=True)
    return model


def from_folder(path, config):
    """Loads a folder with mlx-lm, using the configuration that the engine has read: mlx-lm does not find it in all folders."""
    if not list(path.glob("model*.safetensors")):
        raise Unsupported(f"mlx-lm needs model*.safetensors, which {path} does not have; convert it to GGUF with `gptoss convert`")
    return load_model(path, lazy=False, model_config=config)[0]


def exact_wavelengths(config):
    """YaRN's wavelengths without rounding of the ramp, as in OpenAI's code. mlx-lm rounds it."""
    dims, base, scaling = config["head_dim"], config["rope_theta"], config["rope_scaling"]
    factor, original = scaling["factor"], scaling["original_max_position_embeddings"]

    def correction(rotations):
        return dims * math.log(original / (rotations * 2 * math.pi)) / (2 * math.log(base))

    low = max(correction(scaling["beta_fast"]), 0)
    high = min(correction(scaling["beta_slow"]), dims - 1)
    high = high if high > low else low + 1e-3
    pairs = np.arange(dims // 2)
    ramp = np.clip((pairs - low) / (high - low), 0, 1)
    plain = base ** (-2 * pairs / dims)
    return mx.array((1 / (plain * (1 - ramp) + plain / factor * ramp)).astype(np.float32))


def choose_device(wanted):
    """Sets MLX's default device, and returns its name: `cpu` or `gpu`."""
    has_gpu = mx.metal.is_available() or getattr(mx, "cuda", None) is not None and mx.cuda.is_available()
    if wanted == "gpu" and not has_gpu:
        raise Unsupported("MLX finds no GPU here; use --device cpu")
    device = "cpu" if wanted == "cpu" or not has_gpu else "gpu"
    mx.set_default_device(mx.gpu if device == "gpu" else mx.cpu)
    return device


class Peer:
    def __init__(self, request):
        device = choose_device(request["device"])
        dtype = request["dtype"] or ("float32" if device == "cpu" else "bfloat16")
        if dtype != "float32" and device == "cpu":
            raise Unsupported("MLX's CPU kernels accumulate in bf16 with this dtype, which is too inaccurate; use float32 on the CPU")
        config, path = request["config"], Path(request["model"])
        self.model = from_folder(path, config) if path.is_dir() else from_gguf(path, config)
        self.model.set_dtype(getattr(mx, dtype))
        if request["rope"] == "exact":
            wavelengths = exact_wavelengths(config)
            for layer in self.model.layers:
                layer.self_attn.rope._freqs = wavelengths
        mx.eval(self.model.parameters())
        # The caches of each sequence; the sequences of the last batched decoding step, and their merged caches.
        self.caches, self.together, self.merged = {}, [], None
        versions = {"mlx": version("mlx"), "mlx-lm": version("mlx-lm"), "python": sys.version.split()[0]}
        vocab, layers = config["vocab_size"], len(self.model.layers)
        self.hello = {"device": device, "dtype": dtype, "versions": versions, "vocab": vocab, "layers": layers}

    def step(self, items):
        """Computes a step. Items that add one token to an existing sequence run as one batch; the others run one by one."""
        hidden = [None] * len(items)
        single = [index for index, item in enumerate(items) if len(item["tokens"]) == 1]
        known = [index for index in single if items[index]["sequence"] in self.caches]
        if len(known) > 1:
            for index, row in zip(known, self.decode([items[index] for index in known])):
                hidden[index] = row
        for index, item in enumerate(items):
            if hidden[index] is None:
                hidden[index] = self.feed(item["sequence"], item["tokens"])
        tokens, logits = [], []
        for item, row in zip(items, hidden):
            if item["want"] == "nothing":
                mx.eval(row)
                continue
            rows = self.model.lm_head(row if item["want"] == "all" else row[-1:]).astype(mx.float32)
            if item["want"] == "greedy":
                chosen, is_nan = mx.argmax(rows[0]), mx.any(mx.isnan(rows))
                mx.eval(chosen, is_nan)
                tokens.append(None if is_nan.item() else chosen.item())
            else:
                logits.append(np.array(rows))
        return {"tokens": tokens}, logits

    def feed(self, sequence, tokens):
        """Appends tokens to a sequence; returns their hidden states `[tokens, hidden]`."""
        self.part(sequence)
        cache = self.caches.setdefault(sequence, self.model.make_cache())
        hidden = self.model.model(mx.array([tokens]), cache=cache)[0]
        # MLX is lazy: without this, a step without logits would be computed by a later step.
        mx.eval(hidden, [layer.state for layer in cache])
        if len(tokens) > 1:
            mx.clear_cache()
        return hidden

    def decode(self, items):
        """Appends one token to each sequence in one batch; returns the hidden states, `[1, hidden]` each."""
        sequences = [item["sequence"] for item in items]
        if self.together != sequences:
            self.part(*self.together)
            layers = zip(*(self.caches[sequence] for sequence in sequences))
            self.merged = [layer[0].merge(list(layer)) for layer in layers]
            self.together = sequences
        tokens = mx.array([item["tokens"] for item in items])
        hidden = self.model.model(tokens, cache=self.merged)
        mx.eval(hidden, [layer.state for layer in self.merged])
        return [hidden[index] for index in range(len(items))]

    def part(self, *sequences):
        """Splits the merged caches into one per sequence, if they contain any of `sequences`."""
        if not set(sequences) & set(self.together):
            return
        for index, sequence in enumerate(self.together):
            self.caches[sequence] = [layer.extract(index) for layer in self.merged]
        self.together, self.merged = [], None

    def trimmed(self, cache, length):
        """A copy of a sequence's caches that ends at `length`."""
        back = cache[0].offset - length
        if back and not all(layer.is_trimmable() for layer in cache):
            raise CannotGoBack
        shortened = copy.copy(cache)
        for index, layer in enumerate(cache):
            shortened[index] = copy.copy(layer)
            # Arrays are written in place, so each cache needs its own copy.
            shortened[index].keys, shortened[index].values = layer.keys + 0, layer.values + 0
            if back:
                shortened[index].trim(back)
        mx.eval([layer.state for layer in shortened])
        return shortened

    def fork(self, source, to, length):
        self.part(source)
        self.caches[to] = self.trimmed(self.caches[source], length)

    def truncate(self, sequence, length):
        self.part(sequence)
        self.caches[sequence] = self.trimmed(self.caches[sequence], length)

    def release(self, sequence):
        self.part(sequence)
        self.caches.pop(sequence, None)
        mx.clear_cache()

    def stats(self):
        return {"peak_device_bytes": mx.get_peak_memory()}


