"""The golden cases: four tiny gpt-oss models of different shapes, to expose wrong assumptions about dimensions."""

from dataclasses import dataclass

ROPE_MODES = ("exact", "truncated")
GENERATED = 32  # greedy tokens after each prompt


@dataclass(frozen=True)
class Shape:
    """The architecture, as in the metadata of a gpt-oss GGUF file."""

    hidden: int
    intermediate: int
    query_heads: int
    kv_heads: int
    head_dim: int
    experts: int
    experts_per_token: int
    window: int
    sliding: tuple[bool, ...]  # one entry per layer
    rms_eps: float = 1e-5
    rope_theta: float = 150000.0
    yarn_factor: float = 32.0
    original_context: int = 4096

    @property
    def layers(self) -> int:
        return len(self.sliding)


@dataclass(frozen=True)
class Case:
    """A shape and the storage of its file."""

    name: str
    shape: Shape
    dense: str  # GGML type of every matrix outside the experts and the router
    prompt: int  # tokens
    explicit_layers: bool = False  # write the sliding pattern to the file
    twins: bool = False  # experts 2i and 2i+1 are the same, router rows included
    base_seed: int = 1  # the first seed that seeds.py tries, in its search for weights whose greedy and router choices are clear


def alternating(layers: int) -> tuple[bool, ...]:
    return tuple(layer % 2 == 0 for layer in range(layers))


CASES = (
    # The number formats and the order of sliding and full layers of the public GGUF file of gpt-oss; the prompt is longer than the window.
    Case(
        name="even",
        shape=Shape(
            hidden=64, intermediate=64, query_heads=8, kv_heads=2, head_dim=32,
            experts=8, experts_per_token=4, window=16, sliding=alternating(4),
        ),
        dense="Q8_0",
        prompt=24,
    ),
    # Sizes that are not powers of two, and a window longer than the sequence.
    Case(
        name="odd",
        shape=Shape(
            hidden=96, intermediate=64, query_heads=6, kv_heads=2, head_dim=32,
            experts=4, experts_per_token=2, window=128, sliding=(False, True, True),
        ),
        dense="F16",
        prompt=12,
        explicit_layers=True,
    ),
    # One KV head for eight query heads, many experts, and the head size of gpt-oss.
    Case(
        name="gqa8",
        shape=Shape(
            hidden=64, intermediate=32, query_heads=8, kv_heads=1, head_dim=64,
            experts=16, experts_per_token=4, window=8, sliding=alternating(2),
        ),
        dense="BF16",
        prompt=20,
    ),
    # Pairs of equal experts and an odd number of chosen ones: for every token the last chosen expert ties with the next one. The choice
    # must not change the logits.
    Case(
        name="ties",
        shape=Shape(
            hidden=32, intermediate=32, query_heads=2, kv_heads=2, head_dim=64,
            experts=8, experts_per_token=3, window=16, sliding=alternating(2),
        ),
        dense="F32",
        prompt=16,
        twins=True,
    ),
)
