"""Transformers that others have trained: BERT and DistilBERT of the library `transformers`, as networks from tokens to logits."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor, nn

from ..errors import InputError, MissingExtraError
from ..text import LENGTH


class Pretrained(nn.Module):
    """A classifier of `transformers`, asked for the logits of tokens alone.

    network  as the library makes it
    pad      the token that is none
    """

    def __init__(self, network: nn.Module, pad: int = 0) -> None:
        super().__init__()
        self.network, self.pad = network, pad

    def forward(self, tokens: Tensor) -> Tensor:
        """(N, T) whole numbers to (N, classes) logits."""
        return self.network(input_ids=tokens, attention_mask=(tokens != self.pad).long()).logits


def pretrained(where: str | os.PathLike, classes: int = 2) -> Pretrained:
    """A trained encoder with a new last layer for so many classes, or with its own if it has as many.

    where   a folder that the library's ``save_pretrained`` wrote, or a name on its hub, which is then downloaded
    raises  MissingExtraError without transformers; InputError if nothing can be loaded from there. Weights are read from safetensors,
            as other files may hold code
    """
    hub = _library()
    network = _loaded(hub.AutoModelForSequenceClassification, where, num_labels=classes, ignore_mismatched_sizes=True, use_safetensors=True)
    return Pretrained(network, network.config.pad_token_id or 0)


def tokens_of(where: str | os.PathLike, length: int = LENGTH) -> Callable[[list[str]], NDArray[np.int64]]:
    """What turns texts into the tokens (N, length) that a trained encoder knows; longer texts are cut. `where` as for `pretrained`."""
    tokenizer = _loaded(_library().AutoTokenizer, where)

    def tokens(texts: list[str]) -> NDArray[np.int64]:
        return np.array(tokenizer(texts, padding="max_length", truncation=True, max_length=length)["input_ids"], np.int64)

    return tokens


def _library() -> Any:
    try:
        import transformers
    except ImportError as e:
        raise MissingExtraError("transformers", "bert") from e
    return transformers


def _loaded(kind: Any, where: str | os.PathLike, **options: object) -> Any:
    try:
        return kind.from_pretrained(str(where), **options)
    except Exception as e:  # whatever it meets in the folder, or on its way to the hub
        first = str(e).strip().split("\n")[0]
        raise InputError(f"transformers cannot load {where}: {type(e).__name__}: {first}") from None
