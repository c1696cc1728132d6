import os
import re
from pydoc_data.topics import topics

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kfrtrl_jax import tasks
from kfrtrl_jax.errors import DataError

needs_penn_treebank = pytest.mark.skipif(
    not os.environ.get("KFRTRL_DATA_DIR"),
    reason="KFRTRL_DATA_DIR does not name the folder of ptb.train.txt",
)


def run(task, steps, seed=0):
    """The stream of `steps` time steps: a batch with [steps, B]."""

    def step(state, key):
        return task.sample(state, key)

    _, batch = jax.lax.scan(
        step, task.init(jax.random.key(seed)), jax.random.split(jax.random.key(1), steps)
    )
    return jax.tree.map(np.asarray, batch)


def expected(stream, batch_size, reset_every, steps, start=0):
    size = len(stream)
    starts = np.array([start + i * size // batch_size for i in range(batch_size)])
    positions = (starts + np.arange(steps)[:, None]) % size
    reset = positions % reset_every == 0
    reset[0] = True
    return tasks.Batch(stream[positions], stream[(positions + 1) % size], reset)


def decoded(corpus, part):
    return "".join(corpus.characters[token] for token in getattr(corpus, part))


def one_line(error):
    message = str(error.value)
    assert "\n" not in message
    return message


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "my.train.txt").write_text("to be or not to be\n" * 5)
    (tmp_path / "my.valid.txt").write_text("be not\n")
    (tmp_path / "my.test.txt").write_text("or to\n")
    return tmp_path


@pytest.mark.parametrize(
    ("batch_size", "reset_every", "steps", "start"),
    [
        (1, 100, 250, 0),
        (3, 7, 250, 0),
        (47, 10, 130, 0),
        (4, 1, 9, 0),
        (3, 7, 250, 94),
        (1, 9, 30, 5),
    ],
)
def test_lanes_start_equally_spaced_and_wrap_around(folder, batch_size, reset_every, steps, start):
    corpus = tasks.read_corpus(str(folder))
    task = tasks.text(
        batch_size=batch_size, data_dir=str(folder), reset_every=reset_every, start=start
    )
    batch = run(task, steps)
    assert len(corpus.train) == 95
    wanted = expected(corpus.train, batch_size, reset_every, steps, start)
    jax.tree.map(np.testing.assert_array_equal, batch, wanted)
    assert batch.inputs.dtype == batch.targets.dtype == np.int32
    assert batch.reset.dtype == bool


def test_targets_of_a_lane_are_its_next_inputs(folder):
    batch = run(tasks.text(batch_size=3, data_dir=str(folder)), 200)
    np.testing.assert_array_equal(batch.targets[:-1], batch.inputs[1:])


def test_seeds_may_be_mapped_and_types_stay(folder):
    task = tasks.text(batch_size=3, data_dir=str(folder))
    keys = jax.random.split(jax.random.key(0), 2)
    states = jax.vmap(task.init)(keys)
    new, batch = jax.jit(jax.vmap(task.sample))(states, keys)
    first = run(task, 1)
    for seed in range(2):
        np.testing.assert_array_equal(batch.inputs[seed], first.inputs[0])
    assert jax.tree.map(lambda x: x.dtype, new) == jax.tree.map(lambda x: x.dtype, states)
    assert states.position.dtype == jnp.int32
    assert task.metrics(states) == {}


def test_folder_is_three_texts_over_the_characters_of_the_first(folder):
    corpus = tasks.read_corpus(str(folder))
    assert corpus.characters == "\n benort"
    for part in ("train", "valid", "test"):
        assert decoded(corpus, part) == (folder / f"my.{part}.txt").read_text()
    task = tasks.text(batch_size=2, data_dir=str(folder))
    assert task.input_size == task.output_size == 8
    assert set(task.held_out) == {"valid", "test"}
    for part in ("valid", "test"):
        whole, stream = getattr(corpus, part), task.held_out[part]
        np.testing.assert_array_equal(stream.inputs, whole[:-1])
        np.testing.assert_array_equal(stream.targets, whole[1:])
        assert not stream.reset.any()


def test_file_is_split_by_position_without_translation(tmp_path):
    path = tmp_path / "text"
    content = "añ\r\n€\ufeff𝄞" * 100 + "only at the end"
    path.write_bytes(content.encode())
    corpus = tasks.read_corpus(str(path))
    assert "".join(decoded(corpus, part) for part in ("train", "valid", "test")) == content
    assert corpus.characters == "".join(sorted(set(content)))
    assert len(corpus.valid) == len(corpus.test) == len(content) // 20


def test_texts_of_the_same_alphabet_and_length_have_digests_of_their_own(folder):
    before = tasks.text(batch_size=2, data_dir=str(folder)).data
    assert re.fullmatch("[0-9a-f]{64}", before)
    assert tasks.text(batch_size=3, data_dir=str(folder)).data == before
    (folder / "my.test.txt").write_text("to or\n")
    assert tasks.text(batch_size=2, data_dir=str(folder)).data != before
    assert tasks.copy(batch_size=2).data == ""


@pytest.mark.parametrize("marked", ["my.train.txt", "my.valid.txt"])
def test_byte_order_mark_is_no_part_of_a_text(folder, marked):
    before = tasks.text(batch_size=2, data_dir=str(folder))
    path = folder / marked
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())
    after = tasks.text(batch_size=2, data_dir=str(folder))
    assert after.symbols == before.symbols
    assert after.data == before.data


def test_large_vocabularies_have_wider_tokens(tmp_path):
    path = tmp_path / "text"
    path.write_text("".join(map(chr, range(0x4E00, 0x4E00 + 1000))) * 2)
    corpus = tasks.read_corpus(str(path))
    assert corpus.train.dtype == np.uint16
    np.testing.assert_array_equal(corpus.train, np.arange(1800) % 1000)
    task = tasks.text(batch_size=2, data_dir=str(path))
    np.testing.assert_array_equal(run(task, 3).inputs[:, 1], [900, 901, 902])


def test_built_in_corpus_is_the_documentation_split_by_topic():
    corpus = tasks.read_corpus()
    texts = {part: decoded(corpus, part) for part in ("train", "valid", "test")}
    size = sum(map(len, texts.values()))
    assert size > 300_000
    for part, share in {"train": 0.9, "valid": 0.05, "test": 0.05}.items():
        assert abs(len(texts[part]) / size - share) < 0.03
    # No paragraph is lost, and none is in two parts.
    for paragraph in {p.strip() for text in topics.values() for p in text.split("\n\n")}:
        assert any(paragraph in text for text in texts.values())
    held = [set(texts[part].split("\n\n")) for part in ("valid", "test")]
    for paragraphs in held:
        assert not {p for p in paragraphs if len(p) > 40} & set(texts["train"].split("\n\n"))
    again = tasks.read_corpus()
    assert again.characters == corpus.characters
    np.testing.assert_array_equal(again.train, corpus.train)


def test_unknown_character_is_named(folder):
    (folder / "my.test.txt").write_text("to bee z\n")
    with pytest.raises(DataError, match=r"my\.test\.txt holds the character 'z'") as error:
        tasks.text(batch_size=2, data_dir=str(folder))
    one_line(error)


def test_text_that_is_not_utf8_is_refused_with_its_place(folder):
    path = folder / "my.valid.txt"
    path.write_bytes(b"be \xff not")
    with pytest.raises(DataError, match=r"my\.valid\.txt is not UTF-8 text at byte 3") as error:
        tasks.text(batch_size=2, data_dir=str(folder))
    one_line(error)


@pytest.mark.parametrize(
    ("files", "said"),
    [
        (["a.train.txt", "a.valid.txt"], '"test" in its name, found none'),
        (["train.txt", "a.valid.txt", "b.valid.txt", "test.txt"], "found a.valid.txt, b.valid.txt"),
        (["train.csv", "valid.txt", "test.txt"], '"train" in its name, found none'),
        (["train_valid_test.txt"], "three .txt files"),
    ],
)
def test_folder_without_exactly_the_three_files_is_refused(tmp_path, files, said):
    for name in files:
        (tmp_path / name).write_text("some text")
    with pytest.raises(DataError) as error:
        tasks.text(batch_size=2, data_dir=str(tmp_path))
    assert said in one_line(error)


def test_text_that_is_missing_empty_or_short_is_refused(tmp_path):
    with pytest.raises(DataError, match="no text file or folder"):
        tasks.text(batch_size=2, data_dir=str(tmp_path / "nothing"))
    path = tmp_path / "text"
    path.write_text("")
    with pytest.raises(DataError, match="fewer than two characters"):
        tasks.text(batch_size=2, data_dir=str(path))
    path.write_text("a" * 100)
    assert tasks.text(batch_size=45, data_dir=str(path)).batch_size == 45
    with pytest.raises(
        DataError, match="90 characters are too few for 46 lanes, which need at least 92"
    ):
        tasks.text(batch_size=46, data_dir=str(path))


@pytest.mark.parametrize("kwargs", [{"batch_size": 0}, {"batch_size": 1, "reset_every": 0}])
def test_impossible_sizes_are_refused(kwargs):
    with pytest.raises(ValueError, match="at least 1"):
        tasks.text(**kwargs)


@pytest.mark.parametrize("start", [-1, 95])
def test_a_start_outside_of_the_text_is_refused(folder, start):
    with pytest.raises(ValueError, match=f"position in the text, 0 to 94, got {start}"):
        tasks.text(batch_size=3, data_dir=str(folder), start=start)


def test_missing_penn_treebank_says_how_to_get_it(tmp_path, monkeypatch):
    monkeypatch.delenv("KFRTRL_DATA_DIR", raising=False)
    (tmp_path / "ptb.train.txt").write_text("some text")
    for folder in ("", str(tmp_path)):
        with pytest.raises(DataError) as error:
            tasks.penn_treebank(batch_size=2, data_dir=folder)
        message = one_line(error)
        for way in ("KFRTRL_DATA_DIR", "data_dir", "kfrtrl data --out=DIR"):
            assert way in message
    assert "has no ptb.valid.txt, ptb.test.txt" in message


def test_penn_treebank_folder_given_goes_before_the_variable(tmp_path, monkeypatch):
    for name in ("given", "variable"):
        (tmp_path / name).mkdir()
        for part in ("train", "valid", "test"):
            (tmp_path / name / f"ptb.{part}.txt").write_text(name)
    monkeypatch.setenv("KFRTRL_DATA_DIR", str(tmp_path / "variable"))
    corpus = tasks.read_penn_treebank()
    assert decoded(corpus, "train") == "variable"
    corpus = tasks.read_penn_treebank(str(tmp_path / "given"))
    assert decoded(corpus, "valid") == "given"


@needs_penn_treebank
def test_penn_treebank_is_the_raw_text_of_the_papers():
    corpus = tasks.read_penn_treebank()
    sizes = len(corpus.train), len(corpus.valid), len(corpus.test)
    assert sizes == (5_101_618, 399_782, 449_945)
    assert len(corpus.characters) == 50
    tokens = corpus.train.astype(int)

    def entropy(counts):
        p = counts[counts > 0] / counts.sum()
        return -np.sum(p * np.log2(p))

    single = entropy(np.bincount(tokens))
    pairs = entropy(np.bincount(50 * tokens[:-1] + tokens[1:]))
    assert single == pytest.approx(4.304, abs=6e-4)
    assert pairs - single == pytest.approx(3.340, abs=6e-4)


@needs_penn_treebank
def test_penn_treebank_lanes_are_those_of_the_papers():
    corpus = tasks.read_penn_treebank()
    task = tasks.penn_treebank(batch_size=32)
    batch = run(task, 250)
    chex.assert_trees_all_equal(batch, expected(corpus.train, 32, 100, 250))
    # Beyond its first step every lane starts anew where its position in the text is a multiple of 100.
    np.testing.assert_array_equal(np.flatnonzero(batch.reset[:, 0]), [0, 100, 200])
    start = 5_101_618 // 32
    np.testing.assert_array_equal(
        np.flatnonzero(batch.reset[:, 1]), [0, -start % 100, -start % 100 + 100]
    )
