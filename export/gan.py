"""The adversarial networks that learn defects: what a generator draws is put onto a piece of a real good part.

Two presets. `textbook`: generator and discriminator each of two convolutional layers and one dense layer, as the first
convolutional ones (Goodfellow et al., NeurIPS 2014; Radford et al., ICLR 2016). `default`: the generator sees the good
surface and draws only the defect, as strength and difference at each pixel; the discriminator sees picture and mask
together, so that the mask that comes out is true. Spectral normalization (Miyato et al., ICLR 2018), hinge loss and
the class by projection (Miyato & Koyama, ICLR 2018), and the same random augmentation of real and drawn patches (Zhao
et al., NeurIPS 2020), without which a discriminator learns some ten patches by heart.

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

LARGEST_DIFFERENCE = 1.0
"""Of a defect from its ground, in parts of the grey scale."""

PRIOR_ALPHA_LOGIT = -2.5
"""Initial bias of the strength: most of a patch is not defect."""

GENERATOR_WIDTHS = (96, 64, 48, 32, 16)
"""Channels at 4, 8, 16, 32 and 64 px: with 16 patches a step takes some 14 · 10⁹ operations, a fifth of a second on two
cores."""

CRITIC_WIDTHS = (24, 48, 80, 112)
"""Channels at 32, 16, 8 and 4 px."""


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
        both = ops.where(uniform(1, 1, 1) > 0, both, ops.swapaxes(both, 1, 2))
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
        alpha `[n, 64, 64, 1]` in 0..1 and difference `[n, 64, 64, channels]`.
    """
    noise = keras.Input((LATENT,), name="noise")
    kind = keras.Input((classes,), name="kind")
    ground = keras.Input((PATCH_PX, PATCH_PX, channels), name="ground")
    seed = layers.Concatenate()([noise, kind])
    if preset == "textbook":
        x = layers.Dense(16 * 16 * 64, activation="relu")(seed)
        x = layers.Reshape((16, 16, 64))(x)
        x = layers.UpSampling2D(2)(x)
        x = layers.Conv2D(64, 5, padding="same", activation="relu")(x)
        x = layers.UpSampling2D(2)(x)
        drawn = layers.Conv2D(1 + channels, 5, padding="same")(x)
    else:
        pyramid = [ground]
        for _ in GENERATOR_WIDTHS[1:]:
            pyramid.append(layers.AveragePooling2D(2)(pyramid[-1]))
        x = layers.Dense(4 * 4 * GENERATOR_WIDTHS[0])(seed)
        x = layers.Reshape((4, 4, GENERATOR_WIDTHS[0]))(x)
        for level, width in enumerate(GENERATOR_WIDTHS):
            if level:
                x = layers.UpSampling2D(2)(x)
            x = layers.Concatenate()([x, pyramid[len(GENERATOR_WIDTHS) - 1 - level]])
            x = layers.Conv2D(width, 3, padding="same", kernel_initializer="he_normal")(x)
            x = layers.LeakyReLU(0.2)(x)
            # Of each class and draw its own scale and offset of every channel.
            scale, offset = layers.Dense(width)(seed), layers.Dense(width)(seed)
            x = layers.LayerNormalization(axis=(1, 2), center=False, scale=False)(x)
            x = x * (1 + layers.Reshape((1, 1, width))(scale)) + layers.Reshape((1, 1, width))(offset)
        drawn = layers.Conv2D(1 + channels, 3, padding="same")(x)
    alpha = layers.Activation("sigmoid", name="alpha")(drawn[..., :1] + PRIOR_ALPHA_LOGIT)
    difference = LARGEST_DIFFERENCE * layers.Activation("tanh")(drawn[..., 1:])
    return keras.Model([noise, kind, ground], [alpha, difference], name="generator")


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


def join(generator: keras.Model, critic: keras.Model, classes: int, channels: int) -> keras.Model:
    """Generator and critic as one model to train the generator with; the critic must not be trainable in it."""
    noise = keras.Input((LATENT,), name="noise")
    kind = keras.Input((classes,), name="kind")
    ground = keras.Input((PATCH_PX, PATCH_PX, channels), name="ground")
    alpha, difference = generator([noise, kind, ground])
    patch = OntoGround()([ground, alpha, difference])
    return keras.Model([noise, kind, ground], critic([patch, kind]), name="adversary")


def _normalized(layer: Any) -> Any:
    return layers.SpectralNormalization(layer)
