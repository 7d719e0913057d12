"""Table of architectures: each is a plain `nn.Sequential`, so that released weights fit by position.

Sources:
    small: Wong and Kolter 2018, section 4.2, and appendix of Zhu et al. 2020.
    wide: ours, with twice the channels and hidden units of small.
    large: the larger network of Wong et al. 2018, as in the appendix of Zhu et al. 2020.
    mlp-2x100: Zhu et al. 2020, section "Models, data sets and hyper-parameters".
    har: Wong and Kolter 2018, section 4.3 and appendix B.4: 561 features, one hidden layer of 500 units.
    two-layer: Raghunathan et al. 2018, the SDP paper: 500 hidden units.
    crown-ibp-small-0 … 9, crown-ibp-large-0 … 7: Zhang et al. 2019, the ten small and eight large MNIST networks, in
        the order of the authors' released configurations. There large-0 and large-1 have the same structure.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields, replace

from torch import nn

from ironbound.errors import InputError

Convolution = tuple[int, int, int, int]  # channels, kernel, stride, padding


@dataclass(frozen=True)
class ConvolutionalNet:
    """Convolutions, each followed by a ReLU, then fully connected layers with ReLUs between them.

    Args:
        convolutions: (output channels, kernel size, stride, padding) of each.
        hidden: sizes of the hidden fully connected layers.
        in_channels: channels of an input image.
        size: height and width of an input image.
        classes: number of outputs.
    """

    convolutions: tuple[Convolution, ...]
    hidden: tuple[int, ...]
    in_channels: int = 1
    size: int = 28
    classes: int = 10

    def build(self) -> nn.Sequential:
        """Make the module with fresh weights.

        Returns:
            Network from [batch, in_channels, size, size] to [batch, classes].

        Raises:
            InputError: the image is too small for the convolutions.
        """
        layers: list[nn.Module] = []
        channels, size = self.in_channels, self.size
        for out_channels, kernel, stride, padding in self.convolutions:
            layers += [nn.Conv2d(channels, out_channels, kernel, stride=stride, padding=padding), nn.ReLU()]
            channels, size = out_channels, (size + 2 * padding - kernel) // stride + 1
            if size < 1:
                raise InputError(f"images of {self.size} x {self.size} pixels are too small for this architecture.")
        return nn.Sequential(*layers, nn.Flatten(), *_dense((channels * size * size, *self.hidden, self.classes)))


@dataclass(frozen=True)
class ImageMLP:
    """Fully connected layers with ReLUs between them, on flattened images.

    Args:
        hidden: sizes of the hidden layers.
        in_channels: channels of an input image.
        size: height and width of an input image.
        classes: number of outputs.
    """

    hidden: tuple[int, ...]
    in_channels: int = 1
    size: int = 28
    classes: int = 10

    def build(self) -> nn.Sequential:
        """Make the module with fresh weights.

        Returns:
            Network from [batch, in_channels, size, size] to [batch, classes].
        """
        return nn.Sequential(nn.Flatten(), *_dense((self.in_channels * self.size**2, *self.hidden, self.classes)))


@dataclass(frozen=True)
class FeatureMLP:
    """Fully connected layers with ReLUs between them, on feature vectors.

    Args:
        hidden: sizes of the hidden layers.
        features: length of an input.
        classes: number of outputs.
    """

    hidden: tuple[int, ...]
    features: int
    classes: int

    def build(self) -> nn.Sequential:
        """Make the module with fresh weights.

        Returns:
            Network from [batch, features] to [batch, classes].
        """
        return nn.Sequential(*_dense((self.features, *self.hidden, self.classes)))


Architecture = ConvolutionalNet | ImageMLP | FeatureMLP


def build(name: str, **options: int) -> nn.Sequential:
    """Make a network of the papers with fresh weights, in evaluation mode.

    Args:
        name: one of `names()`.
        **options: `in_channels`, `size` and `classes` of image networks, `features` and `classes` of `har`.

    Returns:
        The network. Seed torch's generator to make its weights reproducible.

    Raises:
        InputError: an unknown name or option, or a value that is not a positive integer.
    """
    if name not in _TABLE:
        raise InputError(f"unknown architecture {name!r}; known are {', '.join(names())}.")
    architecture = _TABLE[name]
    known = {field.name for field in fields(architecture)} - {"convolutions", "hidden"}
    for option, value in options.items():
        if option not in known:
            raise InputError(f"{name!r} has no option {option!r}; it has {', '.join(sorted(known))}.")
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise InputError(f"{option} must be a positive integer; it is {value!r}.")
    made: Architecture = replace(architecture, **options)
    return made.build().eval()


def names() -> tuple[str, ...]:
    """List the architectures.

    Returns:
        The names that `build` knows.
    """
    return tuple(_TABLE)


def _dense(sizes: tuple[int, ...]) -> list[nn.Module]:
    layers: list[nn.Module] = []
    for inputs, outputs in zip(sizes, sizes[1:], strict=False):
        layers += [nn.Linear(inputs, outputs), nn.ReLU()]
    return layers[:-1]


# The three families of Zhang et al. 2019; every count of channels is a multiple of `width`.
def _two(width: int, linear: int) -> ConvolutionalNet:
    return ConvolutionalNet(((4 * width, 4, 2, 1), (8 * width, 4, 2, 1)), (linear,))


def _three(kernel: int, width: int, linear: int) -> ConvolutionalNet:
    # padding 1 for both kernel sizes: with kernel 5 the map shrinks by two pixels per layer
    return ConvolutionalNet(((4 * width, kernel, 1, 1), (8 * width, kernel, 1, 1), (8 * width, 4, 4, 0)), (linear,))


def _four(width: int, linear: int) -> ConvolutionalNet:
    convolutions = ((4 * width, 3, 1, 1), (4 * width, 4, 2, 1), (8 * width, 3, 1, 1), (8 * width, 4, 2, 1))
    return ConvolutionalNet(convolutions, (linear, linear))


_SMALL_FAMILY: tuple[tuple[Callable[..., ConvolutionalNet], tuple[int, ...]], ...] = (
    (_two, (1, 128)),
    (_two, (2, 256)),
    (_four, (1, 256)),
    (_four, (2, 256)),
    (_four, (1, 512)),
    (_four, (2, 512)),
    (_three, (3, 1, 64)),
    (_three, (3, 2, 128)),
    (_three, (5, 1, 64)),
    (_three, (5, 2, 128)),
)
_LARGE_FAMILY: tuple[tuple[Callable[..., ConvolutionalNet], tuple[int, ...]], ...] = (
    (_four, (4, 512)),  # released under a name that says 256; the configuration itself, and so the network, has 512
    (_four, (4, 512)),
    (_four, (8, 512)),
    (_four, (16, 512)),
    (_three, (5, 16, 512)),
    (_three, (5, 8, 512)),
    (_three, (5, 4, 512)),
    (_three, (3, 8, 512)),
)

_TABLE: dict[str, Architecture] = {
    "digits": ConvolutionalNet(((8, 3, 1, 1), (16, 4, 2, 1)), (32,), size=8),
    "small": ConvolutionalNet(((16, 4, 2, 1), (32, 4, 2, 1)), (100,)),
    "wide": ConvolutionalNet(((32, 4, 2, 1), (64, 4, 2, 1)), (200,)),
    "large": ConvolutionalNet(((32, 3, 1, 1), (32, 4, 2, 1), (64, 3, 1, 1), (64, 4, 2, 1)), (512, 512)),
    "mlp-2x100": ImageMLP((100, 100)),
    "two-layer": ImageMLP((500,)),
    "har": FeatureMLP((500,), features=561, classes=6),
    **{f"crown-ibp-small-{index}": make(*sizes) for index, (make, sizes) in enumerate(_SMALL_FAMILY)},
    **{f"crown-ibp-large-{index}": make(*sizes) for index, (make, sizes) in enumerate(_LARGE_FAMILY)},
}
