"""Training batches: examples drawn from the grammars, tokenized and packed into rows by worker processes."""

import multiprocessing
import os
import random
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

import tokenizer
from corpus import CATEGORIES, training_example

ROW = 1024
OPEN_ROWS = 8  # rows that can still take documents
WAITING = 4  # batches that a worker keeps ready


@dataclass
class Batch:
    """Arrays [rows, ROW + 1]: the model reads all but the last column and is scored on all but the first."""

    tokens: np.ndarray
    documents: np.ndarray  # number of the document in its row, 0 where padded
    trained: np.ndarray
    categories: np.ndarray


def rows(rng: random.Random) -> Iterator[np.ndarray]:
    """Packed rows [4, ROW + 1], in the order of Batch's fields."""
    unfinished: list[tuple[np.ndarray, int, int]] = []  # row, tokens in it, documents in it
    while True:
        example = training_example(rng)
        pieces = [(tokenizer.encode(piece.text), piece.trained) for piece in example.pieces]
        tokens = [token for ids, _ in pieces for token in ids]
        trained = [flag for ids, flag in pieces for _ in ids]
        length = len(tokens)
        if length > ROW + 1:
            continue
        fitting = [index for index, (_, filled, _) in enumerate(unfinished) if filled + length <= ROW + 1]
        if fitting:
            row, filled, documents = unfinished.pop(max(fitting, key=lambda index: unfinished[index][1]))
        else:
            if len(unfinished) == OPEN_ROWS:
                fullest = max(range(OPEN_ROWS), key=lambda index: unfinished[index][1])
                yield unfinished.pop(fullest)[0]
            row, filled, documents = np.zeros((4, ROW + 1), np.int16), 0, 0
        span = np.s_[filled : filled + length]
        row[0, span], row[1, span], row[2, span] = tokens, documents + 1, trained
        row[3, span] = CATEGORIES.index(example.category)
        unfinished.append((row, filled + length, documents + 1))


def work(seed: int, size: int, queue: multiprocessing.Queue) -> None:
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    source = rows(random.Random(seed))
    while True:
        queue.put(np.stack([next(source) for _ in range(size)], axis=1))


class Loader:
    """Batches in an order that depends only on the seed and the number of workers."""

    def __init__(self, seed: int, size: int, workers: int):
        # Forked before the GPU is initialized: the workers do not use it, and need not import torch again.
        context = multiprocessing.get_context("fork")
        self.queues = [context.Queue(WAITING) for _ in range(workers)]
        self.workers = [
            context.Process(target=work, args=(seed * 1000 + index, size, queue), daemon=True)
            for index, queue in enumerate(self.queues)
        ]
        for worker in self.workers:
            worker.start()

    def __iter__(self) -> Iterator[Batch]:
        while True:
            for queue in self.queues:
                yield Batch(*queue.get())

    def close(self) -> None:
        for worker in self.workers:
            worker.terminate()
