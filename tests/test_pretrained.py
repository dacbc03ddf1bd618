"""Encoders that others have trained: from a folder to tokens and logits, narrower with `compress`; what is no such folder is named."""

import numpy as np
import pytest
import torch

from lilnetx_mini import InputError, data
from lilnetx_mini.nn import compress
from lilnetx_mini.nn.pretrained import pretrained, tokens_of

hub = pytest.importorskip("transformers", reason="transformers is not installed")
tokenizers = pytest.importorskip("tokenizers")
pytest.importorskip("torch_pruning")

WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "good", "bad", "film", "the", "was", "not", "##s"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A tiny BERT as `save_pretrained` writes it, with its tokenizer."""
    where = tmp_path_factory.mktemp("bert")
    tokenizer = tokenizers.Tokenizer(tokenizers.models.WordPiece({w: n for n, w in enumerate(WORDS)}, unk_token="[UNK]"))
    tokenizer.normalizer, tokenizer.pre_tokenizer = tokenizers.normalizers.BertNormalizer(), tokenizers.pre_tokenizers.BertPreTokenizer()
    tokenizer.post_processor = tokenizers.processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    named = {"pad_token": "[PAD]", "unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]"}
    hub.PreTrainedTokenizerFast(tokenizer_object=tokenizer, **named).save_pretrained(where)
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48, "max_position_embeddings": 16}
    hub.BertForSequenceClassification(hub.BertConfig(vocab_size=len(WORDS), num_labels=2, **sizes)).save_pretrained(where)
    return where


def test_tokens_and_logits_are_those_of_the_library(folder):
    tokens = tokens_of(folder, 8)(["the films was not good", "bad", "the " * 20])
    assert tokens.tolist()[:2] == [[2, 8, 7, 11, 9, 10, 5, 3], [2, 6, 3, 0, 0, 0, 0, 0]] and tokens.shape == (3, 8)
    model = pretrained(folder).eval()
    with torch.no_grad():
        alone = model.network(torch.from_numpy(tokens[1:2, :3])).logits
        torch.testing.assert_close(model(torch.from_numpy(tokens))[1:2], alone)  # what fills up is not looked at
    assert pretrained(folder, classes=3)(torch.from_numpy(tokens)).shape == (3, 3)


def test_half_of_its_multiply_adds_in_one_call(folder):
    g = np.random.default_rng(0)
    y = g.integers(0, 2, 300)
    texts = [f"the film was {'bad' if label else 'good'}" for label in y]
    x = tokens_of(folder, 8)(texts)
    splits = data.Splits(*(data.Split(x[part], y[part]) for part in (slice(200), slice(200, 250), slice(250, 300))))
    before = pretrained(folder)
    made = compress(before, splits, target_flops=0.5, epochs=12, batch=32, plain_lr=0.002, threads=1, progress=False)
    assert 0.4 < made.metrics[-1]["flops_left"] <= 0.5 and made.metrics[-1]["validation_accuracy"] > 0.95
    assert sum(p.numel() for p in made.model.parameters()) < sum(p.numel() for p in before.parameters())


def test_what_cannot_be_loaded_is_named(tmp_path):
    for load in (pretrained, tokens_of):
        with pytest.raises(InputError, match=f"transformers cannot load {tmp_path}"):
            load(tmp_path)
    torch.save({}, tmp_path / "pytorch_model.bin")  # pickles are not read
    hub.BertConfig().save_pretrained(tmp_path)
    with pytest.raises(InputError, match="transformers cannot load"):
        pretrained(tmp_path)
