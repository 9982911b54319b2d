#!/usr/bin/env bash
# The seed corpus: the golden models, whose headers are all that matters, cut behind them where that makes them small.
set -euo pipefail
cd "$(dirname "$0")"
goldens=../reference/goldens
mkdir -p corpus/{gguf,safetensors,tokenizer,session}
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
    # The first byte says which file follows.
    { printf '\0'; cat "$folder/tokenizer.json"; } > "corpus/tokenizer/$name-tokenizer"
    { printf '\1'; cat "$folder/config.json"; } > "corpus/tokenizer/$name-config"
done
# A session of two tokens and two items, without its checksum: the target adds that.
{
    printf 'GPTOSSKV\2\0\0\0\4\0\0\0abcd\5\0\0\0exact\3\0\0\0f16\7\0\0\0phase 3'
    printf '\2\0\0\0\0\0\0\0\1\0\0\0\2\0\0\0\1\0\0\0\0\0\0\0'
    printf '\2\0\0\0\3\0\0\0\0\0\0\0\1\0\0\0\0\0\0\0abcd'
} > corpus/session/seed
