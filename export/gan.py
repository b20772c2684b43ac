"""The adversarial networks that learn defects: what a generator draws is put onto a piece of a real good part.

Two presets. `textbook`: generator and discriminator each of two convolutional layers and one dense layer, as the first
convolutional ones (Goodfellow et al., NeurIPS 2014; Radford et al., ICLR 2016); it draws patches of one size, strength
and difference at each pixel. `default`: five defects do not tell how defects are formed, so it is given the bent shape
of a real one, a sketch of it in three tones and the good surface, and paints only what it looks like there (after Isola
et al., CVPR 2017). It is convolutional throughout and paints a defect of any size at the picture's own resolution. The
discriminator sees picture and shape together. Spectral normalization (Miyato et al., ICLR 2018), hinge loss and the
class by projection (Miyato & Koyama, ICLR 2018), and the same random augmentation of real and drawn patches (Zhao et
al., NeurIPS 2020), without which a discriminator learns some ten patches by heart.

Everything is Keras 3 with `keras.ops`: the same code runs on each of its backends.
"""

from typing import Any, Literal

import keras
from keras import layers, ops

from export.synthesis.patches import PATCH_PX

GanPreset = Literal["default", "textbook"]
GAN_PRESETS: tuple[GanPreset, ...] = ("default", "textbook")

LATENT = 48
"""Random numbers that decide what a defect looks like."""

LARGEST_DIFFERENCE = 0.6
"""Of a painted defect from its ground, in parts of the grey scale."""

PRIOR_ALPHA_LOGIT = -2.5
"""Initial bias of the textbook's strength: most of a patch is not defect."""

GENERATOR_WIDTHS = (8, 24, 40, 56)
"""Channels at the full resolution, a half, a quarter and an eighth: 34 · 10⁶ multiplications for 64 × 64 px."""

MULTIPLE_PX = 8
"""Edges of what the default generator paints are multiples of this."""

CRITIC_WIDTHS = (16, 32, 56, 80)
"""Channels at 64, 32, 16 and 8 px."""


@keras.saving.register_keras_serializable("export")
class SameForAll(layers.Layer):  # type: ignore[misc]
    """Random brightness, contrast, shift, mirror and hole, of picture and mask together; only in training.

    Of each patch its own; differentiable in the patch, so that the generator learns through it.
    """

    def __init__(self, channels: int, seed: int = 0, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.channels = channels
        self.seed = seed
        self._seeds = keras.random.SeedGenerator(seed)

    def get_config(self) -> dict[str, Any]:
        """What rebuilds this layer."""
        return {**super().get_config(), "channels": self.channels, "seed": self.seed}

    def call(self, patch: Any, training: bool = False) -> Any:
        """`[n, 64, 64, channels + 1]` to the same."""
        if not training:
            return patch
        count = ops.shape(patch)[0]
        pixels, mask = patch[..., : self.channels], patch[..., self.channels :]

        def uniform(*shape: Any) -> Any:
            return keras.random.uniform((count, *shape), -1.0, 1.0, seed=self._seeds)

        pixels = pixels + 0.15 * uniform(1, 1, 1)
        mean = ops.mean(pixels, axis=(1, 2), keepdims=True)
        pixels = (pixels - mean) * (1 + 0.3 * uniform(1, 1, 1)) + mean
        both = ops.concatenate([pixels, mask], axis=-1)
        both = ops.where(uniform(1, 1, 1) > 0, both, ops.flip(both, axis=2))
        both = ops.where(uniform(1, 1, 1) > 0, both, ops.flip(both, axis=1))
        both = self._shifted(both, uniform)
        return self._holed(both, uniform)

    @staticmethod
    def _shifted(both: Any, uniform: Any) -> Any:
        """Moved by up to an eighth, mirrored at the rim; by a matrix product, which every backend differentiates."""
        reach = PATCH_PX // 8
        places = ops.cast(ops.arange(PATCH_PX), "float32")

        def moved(axis_shift: Any) -> Any:
            source = places[None, :] + ops.round(axis_shift * reach)
            source = ops.abs(source)
            source = (PATCH_PX - 1) - ops.abs((PATCH_PX - 1) - source)
            return ops.cast(source[:, :, None] == places[None, None, :], "float32")

        rows, columns = moved(uniform(1)), moved(uniform(1))
        both = ops.einsum("nij,njkc->nikc", rows, both)
        return ops.einsum("nkj,nijc->nikc", columns, both)

    @staticmethod
    def _holed(both: Any, uniform: Any) -> Any:
        """A square of three eighths is set to zero in half of the patches (DeVries & Taylor, 2017)."""
        half = PATCH_PX * 3 // 16
        places = ops.cast(ops.arange(PATCH_PX), "float32")
        centre_y = (uniform(1) + 1) * PATCH_PX / 2
        # A hole that is far outside is none.
        centre_x = ops.where(uniform(1) > 0, (uniform(1) + 1) * PATCH_PX / 2, -2.0 * PATCH_PX)
        inside = ops.logical_and(
            (ops.abs(places[None, :] - centre_y) < half)[:, :, None],
            (ops.abs(places[None, :] - centre_x) < half)[:, None, :],
        )
        return both * (1.0 - ops.cast(inside, "float32"))[..., None]


@keras.saving.register_keras_serializable("export")
class OntoGround(layers.Layer):  # type: ignore[misc]
    """Strength and difference put onto a good surface: the patch, with the strength as its mask behind it."""

    def call(self, inputs: Any) -> Any:
        """`[ground, alpha, difference]` to `[n, 64, 64, channels + 1]`."""
        ground, alpha, difference = inputs
        return ops.concatenate([ops.clip(ground + alpha * difference, 0.0, 1.0), alpha], axis=-1)


@keras.saving.register_keras_serializable("export")
class AcrossBatch(layers.Layer):  # type: ignore[misc]
    """How much the patches of a batch differ, as one more channel (Karras et al., ICLR 2018): sees a collapse."""

    def call(self, x: Any) -> Any:
        """`[n, h, w, c]` to `[n, h, w, c + 1]`."""
        spread = ops.mean(ops.sqrt(ops.var(x, axis=0, keepdims=True) + 1e-8))
        return ops.concatenate([x, ops.ones_like(x[..., :1]) * spread], axis=-1)


def build_generator(preset: GanPreset, classes: int, channels: int) -> keras.Model:
    """From random numbers, class and ground to strength and difference.

    Returns:
        A model from `[n, LATENT]`, `[n, classes]` (one-hot) and the ground `[n, 64, 64, channels]` in 0..1 to
        alpha `[n, 64, 64, 1]` in 0..1 and difference `[n, 64, 64, channels]`. The default takes as fourth to sixth the
        strength `[n, h, w, 1]`, the sketch and noise of the same shape, any h and w that are multiples of
        `MULTIPLE_PX`, and gives the strength back as alpha.
    """
    noise = keras.Input((LATENT,), name="noise")
    kind = keras.Input((classes,), name="kind")
    seed = layers.Concatenate()([noise, kind])
    if preset == "textbook":
        ground = keras.Input((PATCH_PX, PATCH_PX, channels), name="ground")
        x = layers.Dense(16 * 16 * 64, activation="relu")(seed)
        x = layers.Reshape((16, 16, 64))(x)
        x = layers.UpSampling2D(2)(x)
        x = layers.Conv2D(64, 5, padding="same", activation="relu")(x)
        x = layers.UpSampling2D(2)(x)
        drawn = layers.Conv2D(1 + channels, 5, padding="same")(x)
        alpha = layers.Activation("sigmoid", name="alpha")(drawn[..., :1] + PRIOR_ALPHA_LOGIT)
        return keras.Model([noise, kind, ground], [alpha, layers.Activation("tanh")(drawn[..., 1:])], name="generator")
    ground = keras.Input((None, None, channels), name="ground")
    strength = keras.Input((None, None, 1), name="strength")
    drawing = keras.Input((None, None, 1), name="sketch")
    grain = keras.Input((None, None, 1), name="grain")

    def block(x: Any, width: int) -> Any:
        x = layers.Conv2D(width, 3, padding="same", kernel_initializer="he_normal")(x)
        # Of each class and draw its own scale and offset of every channel.
        scale = layers.Reshape((1, 1, width))(layers.Dense(width)(seed))
        offset = layers.Reshape((1, 1, width))(layers.Dense(width)(seed))
        return layers.LeakyReLU(0.2)(x * (1 + 0.3 * scale) + 0.3 * offset)

    # Grey values around their middle, as the first layer's weights are.
    x = layers.Concatenate()([layers.Rescaling(2.0, -1.0)(ground), strength, drawing, grain])
    skips = []
    for width in GENERATOR_WIDTHS[:-1]:
        x = block(x, width)
        skips.append(x)
        x = layers.AveragePooling2D(2)(x)
    x = block(block(x, GENERATOR_WIDTHS[-1]), GENERATOR_WIDTHS[-1])
    for skip in reversed(skips):
        x = layers.UpSampling2D(2)(x)
        x = layers.Concatenate()([x, skip])
        x = block(x, max(skip.shape[-1] * 3 // 4, 12))
    drawn = layers.Conv2D(channels, 3, padding="same")(x)
    difference = layers.Rescaling(LARGEST_DIFFERENCE)(layers.Activation("tanh")(drawn))
    # An input cannot be an output of a model that stands in another one.
    alpha = layers.Activation("linear", name="alpha")(strength)
    return keras.Model([noise, kind, ground, strength, drawing, grain], [alpha, difference], name="generator")


def build_critic(preset: GanPreset, classes: int, channels: int, seed: int) -> keras.Model:
    """From a patch with its mask and class to one number, the larger the more real.

    Returns:
        A model from `[n, 64, 64, channels + 1]` and `[n, classes]` to `[n, 1]`.
    """
    patch = keras.Input((PATCH_PX, PATCH_PX, channels + 1), name="patch")
    kind = keras.Input((classes,), name="kind")
    if preset == "textbook":
        x = layers.Conv2D(32, 5, 2, padding="same")(patch)
        x = layers.LeakyReLU(0.2)(x)
        x = layers.Conv2D(64, 5, 2, padding="same")(x)
        x = layers.LeakyReLU(0.2)(x)
        x = layers.Concatenate()([layers.Flatten()(x), kind])
        return keras.Model([patch, kind], layers.Dense(1)(x), name="critic")
    x = SameForAll(channels, seed)(patch)
    for width in CRITIC_WIDTHS:
        # At half of the resolution, with an average before: a stride alone would see every second pixel.
        x = _normalized(layers.Conv2D(width, 3, padding="same", kernel_initializer="he_normal"))(x)
        x = layers.LeakyReLU(0.2)(x)
        x = layers.AveragePooling2D(2)(x)
    x = AcrossBatch()(x)
    x = _normalized(layers.Conv2D(CRITIC_WIDTHS[-1], 3, padding="same", kernel_initializer="he_normal"))(x)
    x = layers.LeakyReLU(0.2)(x)
    features = layers.GlobalAveragePooling2D()(x)
    score = _normalized(layers.Dense(1))(features)
    told = _normalized(layers.Dense(CRITIC_WIDTHS[-1], use_bias=False))(kind)
    return keras.Model([patch, kind], score + layers.Dot(axes=1)([features, told]), name="critic")


def join(preset: GanPreset, generator: keras.Model, critic: keras.Model, classes: int, channels: int) -> keras.Model:
    """Generator and critic as one model to train the generator with; the critic must not be trainable in it.

    Returns:
        A model from the generator's inputs to the critic's score. With the default preset from two sets of inputs, and
        what was painted on the second, `[n, 64, 64, channels + 1]`, comes second.
    """

    def inputs(name: str) -> list[Any]:
        shapes = {"noise": (LATENT,), "kind": (classes,), "ground": (PATCH_PX, PATCH_PX, channels)}
        if preset == "default":
            shapes |= dict.fromkeys(("strength", "sketch", "grain"), (PATCH_PX, PATCH_PX, 1))
        return [keras.Input(shape, name=f"{name}_{key}") for key, shape in shapes.items()]

    def painted(of: list[Any]) -> Any:
        alpha, difference = generator(of)
        return OntoGround()([of[2], alpha, difference])

    free = inputs("free")
    score = critic([painted(free), free[1]])
    if preset == "textbook":
        return keras.Model(free, score, name="adversary")
    again = inputs("again")
    return keras.Model([*free, *again], [score, painted(again)], name="adversary")


def _normalized(layer: Any) -> Any:
    return layers.SpectralNormalization(layer)
