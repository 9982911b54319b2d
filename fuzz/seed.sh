#!/usr/bin/env bash
# Writes the seed corpus: the golden models, and short copies that contain little more than the headers, which the parsers read; and
# inputs for the targets of tokenizers, sessions and harmony.
set -euo pipefail
cd "$(dirname "$0")"
goldens=../reference/goldens
mkdir -p corpus/{gguf,safetensors,tokenizer,session,harmony}
for case in "$goldens"/*/; do
    name=$(basename "$case")
    [ -f "$case/model.gguf" ] || continue
    cp "$case/model.gguf" "corpus/gguf/$name"
    head -c 16000 "$case/model.gguf" > "corpus/gguf/$name-header"
done
for folder in "$goldens"/folders/*/; do
    name=$(basename "$folder")
    for file in "$folder"/*.safetensors; do
        cp "$file" "corpus/safetensors/$name-$(basename "$file")"
        head -c 8000 "$file" > "corpus/safetensors/$name-$(basename "$file")-header"
    done
    # The first byte tells the fuzz target which file the rest replaces.
    { printf '\0'; cat "$folder/tokenizer.json"; } > "corpus/tokenizer/$name-tokenizer"
    { printf '\1'; cat "$folder/config.json"; } > "corpus/tokenizer/$name-config"
done
{ printf '\1'; cat openai.json; } > corpus/tokenizer/openai-config
# The model `hf` in one file: unchanged, with unquantized experts (all zeros), and with OpenAI's tensor names.
python3 - "$goldens/folders/hf" corpus/safetensors << 'END'
import json, pathlib, sys

folder, out = map(pathlib.Path, sys.argv[1:])
tensors = {}
for file in sorted(folder.glob("model-*.safetensors")):
    data = file.read_bytes()
    length = int.from_bytes(data[:8], "little")
    for name, entry in json.loads(data[8 : 8 + length]).items():
        if name != "__metadata__":
            first, last = entry.pop("data_offsets")
            tensors[name] = (entry, data[8 + length + first : 8 + length + last])


def write(name, tensors):
    header, data = {}, b""
    for tensor, (entry, part) in tensors.items():
        header[tensor] = entry | {"data_offsets": [len(data), len(data) + len(part)]}
        data += part
    text = json.dumps(header).encode()
    (out / name).write_bytes(len(text).to_bytes(8, "little") + text + data)


write("whole", tensors)
plain = {}
for name, (entry, part) in tensors.items():
    if name.endswith("_blocks"):
        experts, rows, blocks, _ = entry["shape"]
        shape = [experts, blocks * 32, rows]
        plain[name.removesuffix("_blocks")] = ({"dtype": "BF16", "shape": shape}, bytes(experts * rows * blocks * 64))
    elif not name.endswith("_scales"):
        plain[name] = (entry, part)
write("plain-experts", plain)
NAMES = {
    "model.layers.": "block.", "model.embed_tokens": "embedding", "model.norm.weight": "norm.scale", "lm_head": "unembedding",
    "input_layernorm.weight": "attn.norm.scale", "post_attention_layernorm.weight": "mlp.norm.scale",
    "self_attn.o_proj": "attn.out", "self_attn": "attn", "mlp.router": "mlp.gate",
    "mlp.experts.gate_up_proj_bias": "mlp.mlp1_bias", "mlp.experts.down_proj_bias": "mlp.mlp2_bias",
    "mlp.experts.gate_up_proj_": "mlp.mlp1_weight.", "mlp.experts.down_proj_": "mlp.mlp2_weight.",
}
renamed = {}
# The order puts the rows of q before those of k and v.
for name, (entry, part) in sorted(tensors.items(), key=lambda item: item[0].replace("q_proj", "a_proj")):
    for theirs, ours in NAMES.items():
        name = name.replace(theirs, ours)
    for projection in ["q_proj", "k_proj", "v_proj"]:
        if projection in name:
            name = name.replace(projection, "qkv")
            if name in renamed:
                before = renamed[name]
                shape = [before[0]["shape"][0] + entry["shape"][0], *entry["shape"][1:]]
                entry, part = entry | {"shape": shape}, before[1] + part
    renamed[name] = (entry, part)
write("openai", renamed)
END
# A session of two tokens and two items. Its two checksums are wrong and differ from each other; the target corrects them.
python3 - corpus/session/seed << 'END'
import json, struct, sys

texts = {
    "format": "gptoss session", "version": "6", "model": "abcd", "rope": "exact", "cache": "f16", "engine": "phase 3",
    "cached_tokens": "1", "header_checksum": "1" * 16, "contents_checksum": "2" * 16,
}
header = {
    "__metadata__": texts,
    "tokens": {"dtype": "U32", "shape": [2], "data_offsets": [0, 8]},
    "item.00000": {"dtype": "U8", "shape": [3], "data_offsets": [8, 11]},
    "item.00001": {"dtype": "U8", "shape": [1], "data_offsets": [11, 12]},
}
text = json.dumps(header).encode()
with open(sys.argv[1], "wb") as file:
    file.write(struct.pack("<Q", len(text)) + text + struct.pack("<2I", 1, 2) + b"abcd")
END
# Inputs for harmony, two bytes of settings and a stream: an answer after reasoning, a call, and stop strings. The bytes are explained in
# `harmony/examples/fuzz_harmony/property.rs`.
printf '\0\0\1\11\2\16\17\3\0\10\1\13\2\16\21\5' > corpus/harmony/answer
printf '\0\0\14\1\12\15\2\20\4' > corpus/harmony/call
printf '\2\377\1\13\2\16\17\22\5' > corpus/harmony/stops
