"""Judge a picture as it is and mirrored, and take the mean: steadier than one look, for as many times the work.

A network that learned from mirrored views should say the same of each of them and does not quite. The mean has less of
the accidents of one look, and less of the noise that rounding to int8 adds (test-time augmentation; Krizhevsky et al.,
NIPS 2012, section 4.1). It stands in the graph, so that whatever runs the model does the same.
"""

import keras
from keras import layers, ops

_ROWS, _COLUMNS = 1, 2
_AXES: dict[int, tuple[tuple[int, ...], ...]] = {
    1: ((),),
    # Turned by half: what stood at the right and at the bottom stands at the left and at the top.
    2: ((), (_ROWS, _COLUMNS)),
    4: ((), (_COLUMNS,), (_ROWS,), (_ROWS, _COLUMNS)),
}
"""What is mirrored in each look, by their number."""


def with_looks(network: keras.Model, looks: int) -> keras.Model:
    """A network around another one, which it shares the weights with, that takes the mean over several looks.

    Args:
        network: from `[1, height, width, channels]` to outputs `[1, values]` and maps `[1, rows, columns, values]`.
        looks: 1, as it is, which gives the network itself; 2, also turned by half; 4, also left-right and up-down.
    """
    if looks == 1:
        return network
    axes = _AXES[looks]
    picture = keras.Input(network.input_shape[1:], batch_size=1, name="picture")
    together = ops.concatenate([_mirror(picture, axis) for axis in axes], axis=0)
    means = []
    for output in network(together, training=False):
        parts = ops.split(output, looks, axis=0)
        if len(output.shape) == len(picture.shape):
            # A map lies as the picture does: it is mirrored back.
            parts = [_mirror(part, axis) for part, axis in zip(parts, axes, strict=True)]
        means.append(layers.Average()(parts))
    return keras.Model(picture, means, name=f"looks_{looks}")


def _mirror(tensor: keras.KerasTensor, axes: tuple[int, ...]) -> keras.KerasTensor:
    return ops.flip(tensor, axes) if axes else tensor
