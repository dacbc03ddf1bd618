"""Texts as whole numbers: pieces of words, learned from the texts themselves, and the sentences of SST-2."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from functools import lru_cache, partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from .data import Split, Splits, data_folder
from .errors import DataError, InputError, MissingExtraError

if TYPE_CHECKING:
    from tokenizers import Tokenizer

VOCABULARY, LENGTH = 8000, 48
HELD_OUT = 3000  # of SST-2's training phrases
NOTHING, UNKNOWN = "[PAD]", "[UNK]"  # tokens 0, which fills up, and 1


def byte_pairs(texts: Iterable[str], size: int = VOCABULARY, length: int = LENGTH) -> Tokenizer:
    """A tokenizer with at most `size` pieces of words, which byte-pair encoding finds in texts (Sennrich et al. 2016); lower case only.

    The same texts give the same pieces.

    length  of a text in tokens at most: what is longer is cut
    raises  MissingExtraError without tokenizers
    """
    try:
        from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, trainers
    except ImportError as e:
        raise MissingExtraError("tokenizers", "text") from e
    tokenizer = Tokenizer(models.BPE(unk_token=UNKNOWN))
    tokenizer.normalizer, tokenizer.pre_tokenizer = normalizers.BertNormalizer(), pre_tokenizers.Metaspace()
    tokenizer.train_from_iterator(texts, trainers.BpeTrainer(vocab_size=size, special_tokens=[NOTHING, UNKNOWN], show_progress=False))
    tokenizer.enable_truncation(length)
    return tokenizer


def numbers(tokenizer: Tokenizer, texts: list[str]) -> NDArray[np.int64]:
    """(N, length) tokens of texts, filled up with zeros."""
    found = [e.ids for e in tokenizer.encode_batch(texts)]
    out = np.zeros((len(texts), tokenizer.truncation["max_length"]), np.int64)
    for row, ids in zip(out, found, strict=True):
        row[: len(ids)] = ids
    return out


def _labelled(path: Path) -> tuple[list[str], NDArray[np.int64]]:
    """Texts and their classes from a file with a head and then a line for each: text, tab, 0 or 1."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()[1:]
    except UnicodeDecodeError as e:
        raise InputError(f"{path} is not a file of texts: {e}") from None
    texts, classes = [], []
    for n, line in enumerate(lines, 2):
        text, tab, label = line.rpartition("\t")
        if not tab or label.strip() not in ("0", "1"):
            raise InputError(f"{path}, line {n}: a text, a tab, and 0 or 1 are needed")
        texts.append(text.strip())
        classes.append(int(label))
    if not texts:
        raise InputError(f"{path} holds no texts")
    return texts, np.array(classes, np.int64)


def sst2(folder: str | os.PathLike | None = None, tokens: Callable[[list[str]], NDArray[np.int64]] | None = None) -> Splits:
    """SST-2 as GLUE has it (Socher et al. 2013, Wang et al. 2019), from train.tsv and dev.tsv in ``FOLDER/sst2`` or ``FOLDER/SST-2``.

    x (N, 48) are tokens of `byte_pairs`, learned from the training texts, or what `tokens` makes of texts. GLUE's development
    sentences are the test part, as those of its own have no labels. The last 3,000 training texts are for validation: they are
    phrases, and other phrases of their sentences are trained on, so accuracy on them is higher than on new sentences.
    """
    base = data_folder(folder)
    needed = "sst2/train.tsv and sst2/dev.tsv, of GLUE's SST-2, are needed in the folder that --data-dir or LILNETX_DATA names"
    where = next((base / name for name in ("sst2", "SST-2") if (base / name / "train.tsv").is_file()), None) if base else None
    if where is None or not (where / "dev.tsv").is_file():
        raise DataError(needed)
    return _sst2(where, tokens)


@lru_cache(maxsize=1)  # it takes seconds, and a training run asks several times
def _sst2(where: Path, tokens: Callable[[list[str]], NDArray[np.int64]] | None) -> Splits:
    (texts, y), (test, test_y) = (_labelled(where / name) for name in ("train.tsv", "dev.tsv"))
    if len(texts) <= HELD_OUT:
        raise InputError(f"{where / 'train.tsv'} holds {len(texts)} texts: more than the {HELD_OUT} for validation are needed")
    tokens = tokens or partial(numbers, byte_pairs(texts[:-HELD_OUT]))
    x = tokens(texts)
    return Splits(Split(x[:-HELD_OUT], y[:-HELD_OUT]), Split(x[-HELD_OUT:], y[-HELD_OUT:]), Split(tokens(test), test_y))
