# llama.cpp through the C interface of llama-cpp-python. common.py precedes this file, and serve.py follows it.
import ctypes
from importlib.metadata import version
from pathlib import Path

import llama_cpp as api

# The most tokens per step, and per batch of llama.cpp.
MAX_TOKENS = 512


def check_request(request):
    if Path(request["model"]).is_dir():
        raise Unsupported("llama.cpp reads only GGUF files; convert the folder with `gptoss convert`")
    if request["rope"] != "truncated":
        raise Unsupported("llama.cpp always rounds YaRN's ramp; add --rope truncated")
    if request["dtype"] not in (None, "float32"):
        raise Unsupported("llama.cpp is supported with an f16 cache, the default, or dtype float32")
    if request["device"] == "gpu" and not api.llama_supports_gpu_offload():
        raise Unsupported("llama.cpp was built without GPU support; set CMAKE_ARGS and reinstall it, or use --device cpu")


class Peer:
    def __init__(self, request):
        check_request(request)
        api.llama_backend_init()
        exact = request["dtype"] == "float32"
        on_gpu = request["device"] != "cpu" and api.llama_supports_gpu_offload()
        parameters = api.llama_model_default_params()
        parameters.n_gpu_layers = 999 if on_gpu else 0
        self.model = api.llama_model_load_from_file(request["model"].encode(), parameters)
        if not self.model:
            raise RuntimeError(f"llama.cpp failed to load {request['model']}; see its messages above")
        options = api.llama_context_default_params()
        # One pool of cells for all sequences. Sliding layers keep only their window.
        options.n_ctx, options.n_seq_max = request["context"], request["sequences"]
        options.kv_unified, options.swa_full = True, False
        options.n_batch = options.n_ubatch = MAX_TOKENS
        threads = request["threads"]
        options.n_threads = options.n_threads_batch = threads
        options.flash_attn_type = api.LLAMA_FLASH_ATTN_TYPE_ENABLED
        options.type_k = options.type_v = api.GGML_TYPE_F32 if exact else api.GGML_TYPE_F16
        self.context = api.llama_init_from_model(self.model, options)
        if not self.context:
            raise RuntimeError(f"llama.cpp failed to create a context of {request['context']} positions; use a smaller context")
        self.memory = api.llama_get_memory(self.context)
        self.vocab = api.llama_vocab_n_tokens(api.llama_model_get_vocab(self.model))
        self.window = api.llama_model_n_swa(self.model)
        # Sliding layers have room for one window per sequence, and positions that two sequences share are kept even behind both windows.
        self.longest_fork = self.window * request["sequences"] // 2
        self.batch = api.llama_batch_init(MAX_TOKENS, 0, 1)
        # The slot in llama.cpp of each sequence, its number of tokens, and the free slots.
        self.slots, self.lengths, self.free = {}, {}, list(range(request["sequences"]))[::-1]
        versions = {"llama-cpp-python": version("llama-cpp-python"), "python": sys.version.split()[0]}
        self.hello = {
            "device": "gpu" if on_gpu else "cpu",
            "dtype": "float32" if exact else "float16",
            "versions": versions,
            "vocab": self.vocab,
            "layers": api.llama_model_n_layer(self.model),
        }

    def slot(self, sequence):
        if sequence not in self.slots:
            self.slots[sequence], self.lengths[sequence] = self.free.pop(), 0
        return self.slots[sequence]

    def step(self, items):
        batch, count, wanted = self.batch, 0, []
        for item in items:
            slot, start, tokens = self.slot(item["sequence"]), self.lengths[item["sequence"]], item["tokens"]
            rows = {"nothing": 0, "all": len(tokens)}.get(item["want"], 1)
            first = count
            for index, token in enumerate(tokens):
                batch.token[count], batch.pos[count] = token, start + index
                batch.n_seq_id[count], batch.seq_id[count][0] = 1, slot
                batch.logits[count] = index >= len(tokens) - rows
                count += 1
            wanted.append(range(first + len(tokens) - rows, first + len(tokens)))
            self.lengths[item["sequence"]] += len(tokens)
        batch.n_tokens = count
        if status := api.llama_decode(self.context, batch):
            raise RuntimeError(f"llama_decode failed with status {status}")
        tokens, logits = [], []
        for item, rows in zip(items, wanted):
            if item["want"] == "greedy":
                row = self.row(rows[0])
                tokens.append(None if np.isnan(row).any() else int(row.argmax()))
            else:
                # Copied, because the next step overwrites the buffer.
                logits.extend(self.row(row).copy() for row in rows)
        # Reading logits waits for the GPU. A step without logits to read is waited for here.
        api.llama_synchronize(self.context)
        return {"tokens": tokens}, logits

    def row(self, index):
        logits = api.llama_get_logits_ith(self.context, index)
        return np.ctypeslib.as_array(ctypes.cast(logits, ctypes.POINTER(ctypes.c_float)), (self.vocab,))

    def check_rewind(self, sequence, length):
        """Fails if sliding layers no longer have the last `window` positions before `length`, to which the next token attends."""
        least = api.llama_memory_seq_pos_min(self.memory, self.slots[sequence])
        if length < self.lengths[sequence] and least > max(0, length - self.window):
            raise CannotGoBack

    def fork(self, source, to, length):
        if length > self.longest_fork:
            raise Unsupported(f"llama.cpp's sliding layers have room for forks of at most {self.longest_fork} tokens")
        self.check_rewind(source, length)
        slot = self.slot(to)
        api.llama_memory_seq_cp(self.memory, self.slots[source], slot, -1, -1)
        api.llama_memory_seq_rm(self.memory, slot, length, -1)
        self.lengths[to] = length

    def truncate(self, sequence, length):
        self.check_rewind(sequence, length)
        api.llama_memory_seq_rm(self.memory, self.slots[sequence], length, -1)
        self.lengths[sequence] = length

    def release(self, sequence):
        if sequence in self.slots:
            slot = self.slots.pop(sequence)
            del self.lengths[sequence]
            api.llama_memory_seq_rm(self.memory, slot, -1, -1)
            self.free.append(slot)

    def stats(self):
        return {"peak_device_bytes": None}


