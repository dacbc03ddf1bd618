"""Texts as whole numbers: pieces of words, learned from the texts themselves, and the sentences of SST-2."""

from __future__ import annotations

import os
from collections.abc import Iterable
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
NOTHING, UNKNOWN = "[PAD]", "[UNK]"  # tokens 0 and 1


def byte_pairs(texts: Iterable[str], size: int = VOCABULARY, length: int = LENGTH) -> Tokenizer:
    """A tokenizer whose vocabulary, at most `size` pieces of words, byte-pair encoding makes of texts (Sennrich et al. 2016); lower case only.

    The same texts give the same vocabulary.

    length  of every text in tokens: longer ones are cut, shorter ones filled up with token 0
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
    tokenizer.enable_padding(length=length, pad_token=NOTHING)
    return tokenizer


def numbers(tokenizer: Tokenizer, texts: list[str]) -> NDArray[np.int64]:
    """(N, length) tokens of texts."""
    return np.array([e.ids for e in tokenizer.encode_batch(texts)], np.int64)


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


def sst2(folder: str | os.PathLike | None = None) -> Splits:
    """SST-2 as GLUE has it (Socher et al. 2013, Wang et al. 2019), from train.tsv and dev.tsv in ``FOLDER/sst2`` or ``FOLDER/SST-2``.

    x (N, 48) are tokens of `byte_pairs`, learned from the training texts. GLUE's development sentences are the test part, as
    those of its own have no labels. The last 3,000 training texts are for validation: they are phrases, and other phrases of
    their sentences are trained on, so accuracy on them is higher than on new sentences.
    """
    base = data_folder(folder)
    needed = "sst2/train.tsv and sst2/dev.tsv, of GLUE's SST-2, are needed in the folder that --data-dir or LILNETX_DATA names"
    where = next((base / name for name in ("sst2", "SST-2") if (base / name / "train.tsv").is_file()), None) if base else None
    if where is None or not (where / "dev.tsv").is_file():
        raise DataError(needed)
    (texts, y), (test, test_y) = (_labelled(where / name) for name in ("train.tsv", "dev.tsv"))
    if len(texts) <= HELD_OUT:
        raise InputError(f"{where / 'train.tsv'} holds {len(texts)} texts: more than the {HELD_OUT} for validation are needed")
    tokenizer = byte_pairs(texts[:-HELD_OUT])
    x = numbers(tokenizer, texts)
    return Splits(Split(x[:-HELD_OUT], y[:-HELD_OUT]), Split(x[-HELD_OUT:], y[-HELD_OUT:]), Split(numbers(tokenizer, test), test_y))
