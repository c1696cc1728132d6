import gzip

import jax
import numpy as np
import pytest

from kfrtrl_jax import tasks
from kfrtrl_jax._src.tasks import mnist
from kfrtrl_jax.errors import DataError

HEIGHT, WIDTH, TRAINING, TEST = 3, 4, 40, 7


def idx(array):
    head = bytes([0, 0, 8, array.ndim])
    return head + b"".join(n.to_bytes(4, "big") for n in array.shape) + array.tobytes()


def write(path, content):
    path.write_bytes(gzip.compress(content) if path.suffix == ".gz" else content)


@pytest.fixture
def data(monkeypatch):
    """Small images of which the first pixel is unique, with 10 for validation."""
    monkeypatch.setattr(mnist, "VALIDATION_IMAGES", 10)
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (TRAINING + TEST, HEIGHT, WIDTH), dtype=np.uint8)
    pixels[:, 0, 0] = np.arange(TRAINING + TEST)
    labels = rng.integers(0, 10, TRAINING + TEST, dtype=np.uint8)
    return pixels, labels


@pytest.fixture
def folder(tmp_path, data):
    pixels, labels = data
    write(tmp_path / "train-images-idx3-ubyte", idx(pixels[:TRAINING]))
    write(tmp_path / "train-labels.idx1-ubyte", idx(labels[:TRAINING]))
    write(tmp_path / "t10k-images-idx3-ubyte.gz", idx(pixels[TRAINING:]))
    write(tmp_path / "t10k-labels.idx1-ubyte.gz", idx(labels[TRAINING:]))
    return tmp_path


def stream(task, steps):
    @jax.jit
    def run(key):
        first, rest = jax.random.split(key)
        return jax.lax.scan(task.sample, task.init(first), jax.random.split(rest, steps))[1]

    return jax.tree.map(np.asarray, run(jax.random.key(0)))


def check_sequences(batch, sequences, labels):
    """Every lane reads whole sequences [N, T, d] one after the other; returns which, [rounds, B]."""
    length = sequences.shape[1]
    steps, lanes = batch.reset.shape
    position = np.arange(steps)[:, None].repeat(lanes, 1) % length
    np.testing.assert_array_equal(batch.reset, position == 0)
    np.testing.assert_array_equal(batch.weight, position == length - 1)
    which = np.empty((steps // length, lanes), int)
    for i, j in np.ndindex(which.shape):
        part = slice(i * length, (i + 1) * length)
        same = np.isclose(batch.inputs[part, j], sequences, atol=1e-6).all(axis=(1, 2))
        which[i, j] = np.flatnonzero(same)[0]
        np.testing.assert_array_equal(batch.targets[part, j], labels[which[i, j]])
    return which


@pytest.mark.parametrize("order", ["pixels", "rows"])
def test_lanes_read_random_training_images(folder, data, order):
    pixels, labels = data
    task = tasks.sequential_mnist(batch_size=3, data_dir=str(folder), order=order)
    shape = (-1, HEIGHT * WIDTH, 1) if order == "pixels" else (-1, HEIGHT, WIDTH)
    assert (task.input_size, task.output_size) == (shape[2], 10)
    sequences = pixels.reshape(len(pixels), *shape[1:]) / 255
    which = check_sequences(stream(task, 100 * shape[1]), sequences, labels)
    # All of the first 30, and none of those held out.
    assert set(which.ravel()) == set(range(30))
    assert (which[:, 0] != which[:, 1]).mean() > 0.8
    for part, images in {"valid": slice(30, TRAINING), "test": slice(TRAINING, None)}.items():
        whole = task.held_out[part]
        held = sequences[images]
        np.testing.assert_allclose(whole.inputs, held.reshape(-1, shape[2]), atol=1e-7)
        np.testing.assert_array_equal(whole.targets, labels[images].repeat(shape[1]))
        position = np.arange(len(whole.inputs)) % shape[1]
        np.testing.assert_array_equal(whole.reset, position == 0)
        np.testing.assert_array_equal(whole.weight, position == shape[1] - 1)


def test_one_other_pixel_is_another_digest(folder, data):
    before = tasks.sequential_mnist(batch_size=2, data_dir=str(folder)).data
    pixels = data[0][:TRAINING].copy()
    pixels[-1, -1, -1] ^= 1
    write(folder / "train-images-idx3-ubyte", idx(pixels))
    assert tasks.sequential_mnist(batch_size=2, data_dir=str(folder)).data != before


def test_permutation_is_the_same_for_all_images(folder, data):
    pixels, _ = data

    def valid(**kwargs):
        task = tasks.sequential_mnist(batch_size=1, data_dir=str(folder), **kwargs)
        return np.round(255 * task.held_out["valid"].inputs.reshape(10, -1))

    plain = pixels[30:TRAINING].reshape(10, -1)
    np.testing.assert_array_equal(valid(), plain)
    permuted = valid(permuted=True)
    places = [np.flatnonzero((plain == column[:, None]).all(axis=0))[0] for column in permuted.T]
    assert sorted(places) == list(range(HEIGHT * WIDTH))
    assert places != sorted(places)
    np.testing.assert_array_equal(valid(permuted=True, order="rows"), permuted)
    assert (valid(permuted=True, permutation_seed=1) != permuted).any()


def test_folder_given_goes_before_the_variable(folder, data, monkeypatch, tmp_path_factory):
    monkeypatch.setenv("KFRTRL_MNIST_DIR", str(folder))
    train, test = tasks.read_mnist()
    np.testing.assert_array_equal(train.pixels, data[0][:TRAINING])
    np.testing.assert_array_equal(test.labels, data[1][TRAINING:])
    empty = tmp_path_factory.mktemp("empty")
    with pytest.raises(DataError, match=f"{empty} has no train-images, train-labels, t10k-images"):
        tasks.read_mnist(str(empty))
    monkeypatch.delenv("KFRTRL_MNIST_DIR")
    with pytest.raises(DataError, match=r"no MNIST: give the folder of .* KFRTRL_MNIST_DIR"):
        tasks.read_mnist()


def truncated(content):
    return content[:-1]


def headless(content):
    return content[:6]


def empty(content):
    return b""


def of_floats(content):
    return b"\x00\x00\x0d" + content[3:]


def with_a_letter(content):
    return content[:-1] + bytes([11])


def one_less(content):
    return content[:7] + bytes([content[7] - 1]) + content[8:-1]


def compressed_and_cut(content):
    return gzip.compress(content)[:-20]


@pytest.mark.parametrize(
    ("name", "change", "said"),
    [
        ("train-images-idx3-ubyte", truncated, "has 495 bytes and should have 496"),
        ("train-images-idx3-ubyte", headless, "has 6 bytes and should have"),
        ("train-images-idx3-ubyte", empty, "begins with nothing, not with 00000803"),
        ("train-images-idx3-ubyte", of_floats, "begins with 00000d03, not with 00000803"),
        ("train-labels.idx1-ubyte", with_a_letter, "holds the label 11, which is no digit"),
        ("train-labels.idx1-ubyte", one_less, "has 40 images and .* 39 labels"),
        ("t10k-images-idx3-ubyte.gz", compressed_and_cut, "is not a whole gzip file"),
    ],
)
def test_broken_file_is_named_in_one_line(folder, name, change, said):
    path = folder / name
    content = path.read_bytes()
    if path.suffix == ".gz":
        content = gzip.decompress(content)
    path.write_bytes(change(content))
    with pytest.raises(DataError, match=said) as error:
        tasks.sequential_mnist(batch_size=1, data_dir=str(folder))
    assert "\n" not in str(error.value)
    assert name in str(error.value)


def test_too_few_images_and_impossible_arguments_are_refused(folder, monkeypatch):
    monkeypatch.setattr(mnist, "VALIDATION_IMAGES", TRAINING)
    with pytest.raises(DataError, match="40 training images are too few"):
        tasks.sequential_mnist(batch_size=1, data_dir=str(folder))
    with pytest.raises(ValueError, match="batch_size must be at least 1"):
        tasks.sequential_mnist(batch_size=0)
    with pytest.raises(ValueError, match='"pixels" or "rows"'):
        tasks.sequential_mnist(batch_size=1, order="columns")
    for count in (90, 105):
        with pytest.raises(ValueError, match="num_samples must be a multiple of 10"):
            tasks.mnist1d(batch_size=1, num_samples=count)


def test_mnist1d_is_that_of_its_package():
    data = pytest.importorskip("mnist1d.data")
    np.random.seed(3)
    task = tasks.mnist1d(batch_size=2, num_samples=200, data_seed=5)
    # The user's generator is left as it was.
    after, _ = np.random.random(), np.random.seed(3)
    assert after == np.random.random()
    settings = data.get_dataset_args()
    settings.num_samples, settings.seed = 200, 5
    made = data.make_dataset(settings)
    assert made["x"].shape == (160, 40)
    which = check_sequences(stream(task, 400), made["x"][..., None], made["y"])
    assert which.max() < 144
    valid, test = task.held_out["valid"], task.held_out["test"]
    np.testing.assert_allclose(valid.inputs.reshape(16, 40), made["x"][144:], atol=1e-6)
    np.testing.assert_allclose(test.inputs.reshape(40, 40), made["x_test"], atol=1e-6)
    np.testing.assert_array_equal(test.targets.reshape(40, 40)[:, 0], made["y_test"])
    assert (task.input_size, task.output_size) == (1, 10)
