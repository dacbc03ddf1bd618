"""Texts as numbers, and SST-2 from files."""

import numpy as np
import pytest

from lilnetx_mini import InputError, text
from lilnetx_mini.errors import DataError

pytest.importorskip("tokenizers")

WORDS = "the film is a warm and funny story of two old friends who never quite grew up".split()


def sentences(count):
    g = np.random.default_rng(0)
    return [" ".join(g.choice(WORDS, g.integers(1, 9))) for _ in range(count)]


def folder(tmp_path, train=None, dev=None, name="sst2"):
    (tmp_path / name).mkdir()
    rows = [f"{s} \t{n % 2}" for n, s in enumerate(sentences(text.HELD_OUT + 50))] if train is None else train
    for file, lines in (("train.tsv", rows), ("dev.tsv", ["a warm film\t1", "never funny\t0"] if dev is None else dev)):
        (tmp_path / name / file).write_text("\n".join(["sentence\tlabel", *lines]) + "\n", encoding="utf-8")
    return tmp_path


def test_the_same_texts_give_the_same_vocabulary_and_tokens_are_all_there():
    a, b = (text.byte_pairs(sentences(200), 60, 12) for _ in range(2))
    assert a.get_vocab() == b.get_vocab() and len(a.get_vocab()) <= 60
    x = text.numbers(a, ["The FILM is funny", "a", "the " * 40])
    assert x.shape == (3, 12) and x.dtype == np.int64 and x.max() < 60
    assert a.decode(x[0].tolist()).replace("▁", "").replace(" ", "") == "thefilmisfunny"
    assert (x[1] > 0).sum() == 1 and (x[2] > 0).all()  # filled up, and cut
    assert 1 in text.numbers(a, ["日"])  # unknown


@pytest.mark.parametrize("name", ["sst2", "SST-2"])
def test_sst2_holds_out_its_last_training_texts_and_tests_on_the_development_ones(tmp_path, name):
    splits = text.sst2(folder(tmp_path, name=name))
    assert [len(s) for s in (splits.train, splits.validation, splits.test)] == [50, text.HELD_OUT, 2]
    assert splits.test.y.tolist() == [1, 0] and splits.train.y.tolist() == [n % 2 for n in range(50)]
    assert splits.train.x.shape == (50, text.LENGTH)
    again = text.numbers(text.byte_pairs(sentences(text.HELD_OUT + 50)[:50]), sentences(text.HELD_OUT + 50))
    assert np.array_equal(again, np.concatenate([splits.train.x, splits.validation.x]))


def test_files_that_are_missing_or_damaged_are_named(tmp_path):
    with pytest.raises(DataError, match="sst2/train.tsv and sst2/dev.tsv"):
        text.sst2(tmp_path)
    where = folder(tmp_path, dev=["a film\t1", "no tab 0"])
    with pytest.raises(InputError, match=r"dev.tsv, line 3: a text, a tab, and 0 or 1"):
        text.sst2(where)
    (where / "sst2" / "dev.tsv").write_text("sentence\tlabel\n")
    with pytest.raises(InputError, match="dev.tsv holds no texts"):
        text.sst2(where)
    (where / "sst2" / "dev.tsv").write_bytes(b"sentence\tlabel\n\xff\xfe\t1\n")
    with pytest.raises(InputError, match="dev.tsv is not a file of texts"):
        text.sst2(where)


def test_too_few_texts_for_validation_are_refused(tmp_path):
    with pytest.raises(InputError, match="holds 5 texts: more than the 3000"):
        text.sst2(folder(tmp_path, train=[f"{s}\t1" for s in sentences(5)]))


def test_other_tokens_can_be_asked_for(tmp_path):
    splits = text.sst2(folder(tmp_path), lambda texts: np.array([[len(t), 1] for t in texts]))
    assert splits.train.x.shape == (50, 2) and splits.test.x.tolist() == [[len("a warm film"), 1], [len("never funny"), 1]]
