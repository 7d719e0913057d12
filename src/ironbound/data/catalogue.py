"""Table of the data sets: official file names, where they are published, and the hash of what each file holds.

Hashes are of the *decompressed* bytes, so that a re-compressed copy passes and a changed pixel does not.
MNIST: computed from files whose compressed MD5 is the published one. Fashion-MNIST: computed from a distribution's
package of the official files. CIFAR-10 and SVHN: as listed by torchvision. No hash of the HAR archive is known to us,
so it is never downloaded.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class File:
    """One official file.

    Args:
        name: the official name, without a compression suffix.
        algorithm: "sha256" or "md5".
        hash: hexadecimal digest of the decompressed content.
        aliases: other names under which copies circulate.
        urls: where it is published, in the order to try; empty for a member of an archive.
    """

    name: str
    algorithm: str
    hash: str
    aliases: tuple[str, ...] = ()
    urls: tuple[str, ...] = ()


@dataclass(frozen=True)
class Entry:
    """One data set.

    Args:
        name: what users call it.
        folders: sub-folders in which its files are found, besides the given folder and one with the data set's name.
        files: split → official files, in reading order.
        classes: names of the classes.
        archive: URL of the archive that holds the files, where they are not published one by one.
        strict: a local file with other content than the official one is refused; else it is noted with a warning.
    """

    name: str
    folders: tuple[str, ...]
    files: dict[str, tuple[File, ...]]
    classes: tuple[str, ...]
    archive: str = ""
    strict: bool = True


DIGITS = tuple(str(digit) for digit in range(10))


def _idx(name: str, sha256: str, *mirrors: str) -> File:
    dotted = name.replace("-idx", ".idx")
    aliases = (f"{name}.gz", dotted, f"{dotted}.gz")
    return File(name, "sha256", sha256, aliases, tuple(f"{mirror}{name}.gz" for mirror in mirrors))


_MNIST = (
    "https://ossci-datasets.s3.amazonaws.com/mnist/",
    "https://storage.googleapis.com/cvdf-datasets/mnist/",
)
_FASHION = ("http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/",)
_SVHN = "http://ufldl.stanford.edu/housenumbers/"

MNIST = Entry(
    name="mnist",
    folders=("MNIST/raw", "MNIST"),
    files={
        "train": (
            _idx(
                "train-images-idx3-ubyte", "ba891046e6505d7aadcbbe25680a0738ad16aec93bde7f9b65e87a2fc25776db", *_MNIST
            ),
            _idx(
                "train-labels-idx1-ubyte", "65a50cbbf4e906d70832878ad85ccda5333a97f0f4c3dd2ef09a8a9eef7101c5", *_MNIST
            ),
        ),
        "test": (
            _idx("t10k-images-idx3-ubyte", "0fa7898d509279e482958e8ce81c8e77db3f2f8254e26661ceb7762c4d494ce7", *_MNIST),
            _idx("t10k-labels-idx1-ubyte", "ff7bcfd416de33731a308c3f266cc351222c34898ecbeaf847f06e48f7ec33f2", *_MNIST),
        ),
    },
    classes=DIGITS,
)

FASHION_MNIST = Entry(
    name="fashion-mnist",
    folders=("FashionMNIST/raw", "FashionMNIST"),
    files={
        "train": (
            _idx(
                "train-images-idx3-ubyte", "c59f468a2f672dc815687fe0f83887768d799fd8a3f3276145d20f83aa44d888", *_FASHION
            ),
            _idx(
                "train-labels-idx1-ubyte", "bad3541b69d912435c50bb6ba87bec294ff4f6a2e1246121d8633921760443d9", *_FASHION
            ),
        ),
        "test": (
            _idx(
                "t10k-images-idx3-ubyte", "5b4141f0afbad91edebe8549f8fcffe087ea10ca49f1dbef5c9a5cd8815ce37b", *_FASHION
            ),
            _idx(
                "t10k-labels-idx1-ubyte", "0402a96d92fd2663957122ceb108a494c5af83dab82d92729df917d7dec38c34", *_FASHION
            ),
        ),
    },
    classes=(
        "t-shirt/top",
        "trouser",
        "pullover",
        "dress",
        "coat",
        "sandal",
        "shirt",
        "sneaker",
        "bag",
        "ankle boot",
    ),
)

CIFAR10 = Entry(
    name="cifar10",
    folders=("cifar-10-batches-py", "cifar10/cifar-10-batches-py"),
    files={
        "train": (
            File("data_batch_1", "md5", "c99cafc152244af753f735de768cd75f"),
            File("data_batch_2", "md5", "d4bba439e000b95fd0a9bffe97cbabec"),
            File("data_batch_3", "md5", "54ebc095f3ab1f0389bbae665268c751"),
            File("data_batch_4", "md5", "634d18415352ddfa80567beed471001a"),
            File("data_batch_5", "md5", "482c414d41f54cd18b22e5b47cb7c3cb"),
        ),
        "test": (File("test_batch", "md5", "40351d587109b95175f43aff81a1287e"),),
    },
    classes=("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"),
    archive="https://www.cs.toronto.edu/~kriz/cifar-10-python.tar.gz",
    strict=False,
)

SVHN = Entry(
    name="svhn",
    folders=("SVHN",),
    files={
        "train": (
            File("train_32x32.mat", "md5", "e26dedcc434d2e4c54c9b2d4a06d8373", urls=(f"{_SVHN}train_32x32.mat",)),
        ),
        "test": (File("test_32x32.mat", "md5", "eb5a983be6a315427106f1b164d9cef3", urls=(f"{_SVHN}test_32x32.mat",)),),
    },
    classes=DIGITS,
    strict=False,
)

ENTRIES = {entry.name: entry for entry in (MNIST, FASHION_MNIST, CIFAR10, SVHN)}
