"""Train the generator of defects on the patches of a labelled folder.

    station-export synthesize --data DIR --class CRACK --count 200 --out OUT --method gan

One network for all classes of defects, told which one it is to draw: what dark lines have in common is learnt once. The
discriminator's pairs are a real defect with its mask, and a drawn one on a piece of a real good part with its strength
as mask. The default generator also paints real defects back onto the ground that they stood on, by the mean absolute
difference (Isola et al., CVPR 2017): a few parts tell little to a discriminator, and this how dark a defect is. An
average of the generator's weights over the last steps is what is used (Karras et al., ICLR 2018).

What was done is saved every `save_every` steps and taken up again by the same command.
"""

import hashlib
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import keras
import numpy as np
import numpy.typing as npt
from keras import ops

from export.checkpoint import restore, save
from export.dataset import DatasetError
from export.gan import LATENT, MULTIPLE_PX, GanPreset, build_critic, build_generator, join
from export.synthesis.blending import VISIBLE, Draw, Drawn, Paint, Variation, bent, faded, place
from export.synthesis.marks import DIGITS
from export.synthesis.patches import PATCH_PX, Floats, Marked, Mask, Patch, cut, paint_over, sketch, soften
from export.synthesis.plain import turned
from export.synthesis.quality import COLLAPSED_BELOW, Eye, diversity
from station.messages import Pixels

SAY_EVERY_S = 10.0
LOOKED_AT = 32
"""Patches of each class that are drawn to see whether all of them are the same."""

REPAINT = 20.0
"""Weight of the mean absolute difference, in parts of the grey scale, of defects that are painted back."""

FOLLOW_EVERY = 4
"""Steps between two additions to the average of the weights."""


@dataclass(frozen=True, slots=True)
class GanKnobs:
    """Everything that decides the result.

    Attributes:
        preset: `default` or `textbook`.
        minutes: time budget.
        steps: of the generator, at most.
        batch: patches a step.
        generator_rate, critic_rate: of Adam; None: 4e-4 and 4e-4 (default), 2e-4 and 5e-5 (textbook).
        average: share of the former average that a step keeps.
        save_every: steps between two checkpoints.
        look_every: steps between two looks at what is drawn.
        seed: of weights and draws.
    """

    preset: GanPreset = "default"
    minutes: float = 25.0
    steps: int = 6_000
    batch: int = 8
    generator_rate: float | None = None
    critic_rate: float | None = None
    average: float = 0.995
    save_every: int = 50
    look_every: int = 1_000
    seed: int = 0


def checkpoint_of(knobs: GanKnobs, marked: Sequence[Marked], classes: Sequence[int]) -> str:
    """Name of the file that a training is kept in.

    Another seed begins anew and does not go on where one collapsed; so do other defects, since a network that has seen
    pictures which are held out now would show them to what is tested with them.
    """
    digest = hashlib.sha256(repr(list(classes)).encode())
    for one in sorted(marked, key=lambda one: (one.sample.name, one.label)):
        digest.update(f"{one.sample.name} {one.label}".encode())
        digest.update(np.ascontiguousarray(one.pixels).tobytes())
        digest.update(np.packbits(one.mask).tobytes())
    return f"gan-{knobs.preset}-{knobs.seed}-{digest.hexdigest()[:DIGITS]}.npz"


class CollapsedError(DatasetError):
    """The generator draws nearly the same patch whatever the random numbers are."""


Field = TypeVar("Field", Pixels, Mask, Floats)
Say = Callable[[str], None]
Look = Callable[[int, Floats], None]


@dataclass(frozen=True, slots=True)
class _Networks:
    """Everything that a step needs.

    Attributes:
        generator, averaged: the one that learns, and the mean of its weights over the last steps.
        critic, judge: the one that learns, and the copy of it that the generator learns by.
        adversary, pair: generator and judge, and the critic on a real and a drawn patch, as they are trained.
    """

    generator: keras.Model
    averaged: keras.Model
    critic: keras.Model
    judge: keras.Model
    adversary: keras.Model
    pair: keras.Model


class GanTraining:
    """One training; `train` does all of it.

    Args:
        patches: real defects of the classes to learn, as the textbook draws them.
        marked: the pictures that they were cut out of: the default learns from windows of these.
        classes: labels of the classes, in the order of the one-hot input.
        goods: good pictures, `[height, width]` or `[height, width, 3]`.
        channels: 1 or 3.
        knobs: see there.
        folder: receives the checkpoint; None: nothing is saved.
        say: takes lines for people.
        look: is shown the step and some drawn patches, `[n, 64, 64, channels]`, from time to time; None: nobody is.
    """

    def __init__(
        self,
        patches: Sequence[Patch],
        marked: Sequence[Marked],
        classes: Sequence[int],
        goods: Sequence[Pixels],
        channels: int,
        knobs: GanKnobs,
        *,
        folder: Path | None = None,
        say: Say = print,
        look: Look | None = None,
    ) -> None:
        if not goods:
            raise DatasetError("there is no picture of a good part to draw defects on; add some, or name the class")
        self._classes = list(classes)
        self._marked = [one for one in marked if one.label in self._classes]
        self._by_class = [[one for one in patches if one.label == label] for label in classes]
        self._goods = goods
        self._grounds = [_at_least_a_window(good) for good in goods]
        self._sights = [[_Sight.of(one) for one in marked if one.label == label] for label in classes]
        self._channels = channels
        self._knobs = knobs
        self._folder = folder
        self._say = say
        self._look = look
        self._rng = np.random.default_rng(knobs.seed)

    def train(self) -> keras.Model:
        """Train, or go on where the checkpoint stands.

        Returns:
            The averaged generator.

        Raises:
            CollapsedError: at the end all patches are nearly the same.
            DatasetError: the losses are not finite any more.
        """
        knobs = self._knobs
        networks = self._networks()
        kept = [networks.generator, networks.averaged, networks.critic]
        path = self._folder / checkpoint_of(knobs, self._marked, self._classes) if self._folder else None
        _, first, spent_s = restore(path, kept) if path else (0, 0, 0.0)
        if first:
            self._say(f"goes on at step {first}")
        eye = Eye(self._channels)
        said = time.monotonic()
        began = said - spent_s
        step = first
        while step < knobs.steps and time.monotonic() - began < 60 * knobs.minutes:
            critic_loss, generator_loss = self._step(networks)
            step += 1
            if step % FOLLOW_EVERY == 0 or step < FOLLOW_EVERY:
                self._follow(networks.averaged, networks.generator, step)
            if not (math.isfinite(critic_loss) and math.isfinite(generator_loss)):
                raise DatasetError(f"the losses are not finite at step {step}; try another --seed")
            now = time.monotonic()
            if now - said >= SAY_EVERY_S:
                said = now
                spent = (now - began) / 60
                left = max(0.0, min(knobs.minutes - spent, spent / step * (knobs.steps - step)))
                self._say(f"step {step}: critic {critic_loss:.3f}, generator {generator_loss:.3f}, {left:.1f} min left")
            if path and step % knobs.save_every == 0:
                save(path, kept, 0, step, now - began)
            if step % knobs.look_every == 0:
                share = self._diversity(eye, networks.averaged, step)
                self._say(f"step {step}: diversity {share:.2f} of the real defects'")
        if path and step > first:
            save(path, kept, 0, step, time.monotonic() - began)
        share = self._diversity(eye, networks.averaged, step)
        if share < COLLAPSED_BELOW:
            raise CollapsedError(
                f"the generator collapsed: after {step} steps its defects vary {share:.2f} times as much as the real "
                f"ones, less than {COLLAPSED_BELOW}; train again with another --seed, for longer (--minutes), or with "
                "--preset default; --method cut-and-paste needs no training"
            )
        return networks.averaged

    def _networks(self) -> "_Networks":
        knobs, count = self._knobs, len(self._classes)
        keras.utils.set_random_seed(knobs.seed)
        generator = build_generator(knobs.preset, count, self._channels)
        averaged = build_generator(knobs.preset, count, self._channels)
        averaged.set_weights(generator.get_weights())
        critic = build_critic(knobs.preset, count, self._channels, knobs.seed)
        # The generator's own copy does not move while the generator does, on any backend.
        judge = build_critic(knobs.preset, count, self._channels, knobs.seed + 1)
        judge.trainable = False
        adversary = join(knobs.preset, generator, judge, count, self._channels)
        pair = self._pair(critic)
        textbook = knobs.preset == "textbook"
        beta = 0.5 if textbook else 0.0
        adversary.compile(
            keras.optimizers.Adam(knobs.generator_rate or (2e-4 if textbook else 4e-4), beta_1=beta, beta_2=0.99),
            loss=_textbook_fooled if textbook else [_fooled, _repainted],
        )
        pair.compile(
            keras.optimizers.Adam(knobs.critic_rate or (5e-5 if textbook else 4e-4), beta_1=beta, beta_2=0.99),
            loss=[_textbook_real, _textbook_drawn] if textbook else [_hinge_real, _hinge_drawn],
        )
        return _Networks(generator, averaged, critic, judge, adversary, pair)

    def _step(self, networks: "_Networks") -> tuple[float, float]:
        """One step of the critic and one of the generator; their losses."""
        target = np.zeros((self._knobs.batch, 1), np.float32)
        free = self._inputs()
        alpha, difference = networks.generator.predict_on_batch(free)
        drawn = np.concatenate([np.clip(free[2] + alpha * difference, 0, 1), alpha], axis=-1)
        real, again = self._real()
        critic_loss = networks.pair.train_on_batch([real, again[1], drawn, free[1]], [target, target])
        networks.judge.set_weights(networks.critic.get_weights())
        if self._knobs.preset == "textbook":
            generator_loss = networks.adversary.train_on_batch(self._inputs(), target)
        else:
            generator_loss = networks.adversary.train_on_batch([*free, *again], [target, real])
        return float(np.ravel(critic_loss)[0]), float(np.ravel(generator_loss)[0])

    def _follow(self, averaged: keras.Model, generator: keras.Model, step: int) -> None:
        # At the beginning the average of few steps: the first weights must not linger.
        keep = min(self._knobs.average**FOLLOW_EVERY, step / (step + 9 * FOLLOW_EVERY))
        averaged.set_weights(
            [
                keep * old + (1 - keep) * new
                for old, new in zip(averaged.get_weights(), generator.get_weights(), strict=True)
            ]
        )

    def _pair(self, critic: keras.Model) -> keras.Model:
        shape = (PATCH_PX, PATCH_PX, self._channels + 1)
        real, drawn = keras.Input(shape), keras.Input(shape)
        real_kind, drawn_kind = keras.Input((len(self._classes),)), keras.Input((len(self._classes),))
        return keras.Model(
            [real, real_kind, drawn, drawn_kind], [critic([real, real_kind]), critic([drawn, drawn_kind])]
        )

    def _inputs(self) -> list[Floats]:
        """What the generator draws from: good pieces, and for the default shapes of real defects, bent."""
        chosen = self._rng.integers(len(self._classes), size=self._knobs.batch)
        if self._knobs.preset == "textbook":
            return [*self._told(chosen), np.stack([self._ground(int(index)) for index in chosen])]
        strengths, sketches, grounds = [], [], []
        for index in chosen:
            while True:
                window = self._window(int(index), self._rng)
                both = np.concatenate([window.mask, window.sketch], axis=-1)
                both = bent(both, Variation().bend_px, self._rng)
                if (both[..., 0] >= VISIBLE).any():
                    break
            grounds.append(self._good_window(window))
            strengths.append(soften(both[..., :1]))
            sketches.append(both[..., 1:])
        fields = [np.stack(each) for each in (grounds, strengths, sketches)]
        return [*self._told(chosen), *fields, self._grain(self._knobs.batch)]

    def _told(self, chosen: npt.NDArray[np.int64]) -> tuple[Floats, Floats]:
        noise = self._rng.standard_normal((len(chosen), LATENT)).astype(np.float32)
        return noise, np.eye(len(self._classes), dtype=np.float32)[chosen]

    def _grain(self, count: int) -> Floats:
        return self._rng.standard_normal((count, PATCH_PX, PATCH_PX, 1)).astype(np.float32)

    def _ground(self, index: int) -> Floats:
        """A piece of a good part, of the size that a real defect of this class has."""
        own = self._by_class[index]
        side = own[int(self._rng.integers(len(own)))].side_px * float(np.exp(self._rng.uniform(-0.2, 0.2)))
        good = self._goods[int(self._rng.integers(len(self._goods)))]
        left, top = place(good.shape[:2], side, self._rng)
        return turned(cut(good, left, top, side), int(self._rng.integers(8)))

    def _window(self, index: int, rng: np.random.Generator) -> "_Window":
        """A window with a real defect of one class in it, mirrored or not; each picture as often."""
        own = self._sights[index]
        return own[int(rng.integers(len(own)))].window(rng)

    def _good_window(self, window: "_Window") -> Floats:
        """A window of a good part at about the same place: near an edge where that one is."""
        good = self._grounds[int(self._rng.integers(len(self._grounds)))]
        corner = []
        for length, share in zip(good.shape[:2], window.place, strict=True):
            room = length - PATCH_PX
            jitter = 0.0 if share in (0.0, 1.0) else float(self._rng.normal(0, 0.1))
            corner.append(round(min(max(share + jitter, 0.0), 1.0) * room))
        return _scaled(good[corner[0] : corner[0] + PATCH_PX, corner[1] : corner[1] + PATCH_PX])

    def _real(self) -> tuple[Floats, list[Floats]]:
        """Real defects with their masks behind them, each class as often, and what the generator paints them from."""
        batch = self._knobs.batch
        chosen = self._rng.integers(len(self._classes), size=batch)
        told = self._told(chosen)
        if self._knobs.preset == "default":
            windows = [self._window(int(index), self._rng) for index in chosen]
            strength = np.stack([soften(window.mask) for window in windows])
            ground = np.stack([window.ground for window in windows])
            drawn = np.stack([window.sketch for window in windows])
            real = ground + strength * (np.stack([window.pixels for window in windows]) - ground)
            return np.concatenate([real, strength], axis=-1), [*told, ground, strength, drawn, self._grain(batch)]
        rows = []
        rim = faded(PATCH_PX)
        for index in chosen:
            patch = self._by_class[index][int(self._rng.integers(len(self._by_class[index])))]
            # Drawn defects fade at the rim when they are put down; the critic must not know them by that.
            pixels = patch.ground + rim * (patch.pixels - patch.ground)
            rows.append(turned(np.concatenate([pixels, rim * patch.mask], axis=-1), int(self._rng.integers(8))))
        return np.stack(rows), list(told)

    def _diversity(self, eye: Eye, averaged: keras.Model, step: int) -> float:
        rng = np.random.default_rng((self._knobs.seed, step))
        shares, shown = [], []
        for index, own in enumerate(self._by_class):
            if self._knobs.preset == "textbook":
                real = np.stack([patch.pixels for patch in own])
                grounds = np.stack([self._ground(index) for _ in range(LOOKED_AT)])
                drawn = draw_patches(averaged, index, len(self._classes), grounds, rng)
            else:
                windows = [self._window(index, rng) for _ in range(LOOKED_AT)]
                real = np.stack([window.pixels for window in windows])
                draw = painting(averaged, index, len(self._classes))
                drawn = np.stack([_painted(draw, self._good_window(window), window, rng) for window in windows])
            shares.append(diversity(eye, real, drawn))
            shown.append(drawn[:8])
        if self._look is not None:
            self._look(step, np.concatenate(shown))
        return min(shares)


def draw_patches(generator: keras.Model, index: int, classes: int, grounds: Floats, rng: np.random.Generator) -> Floats:
    """Defects of one class on grounds `[n, 64, 64, channels]`, by the textbook: patches of the same shape."""
    noise = rng.standard_normal((len(grounds), LATENT)).astype(np.float32)
    kind = np.tile(np.eye(classes, dtype=np.float32)[index], (len(grounds), 1))
    alpha, difference = generator.predict_on_batch([noise, kind, grounds])
    return np.asarray(np.clip(grounds + faded(PATCH_PX) * alpha * difference, 0, 1), np.float32)


def drawing(generator: keras.Model, index: int, classes: int) -> Draw:
    """The textbook's generator as a way to draw one class of defects."""
    kind = np.eye(classes, dtype=np.float32)[index][None]

    def draw(ground: Floats, rng: np.random.Generator) -> Drawn:
        noise = rng.standard_normal((1, LATENT)).astype(np.float32)
        alpha, difference = generator.predict_on_batch([noise, kind, ground[None]])
        return Drawn(np.asarray(alpha[0], np.float32), np.asarray(difference[0], np.float32))

    return draw


def painting(generator: keras.Model, index: int, classes: int) -> Paint:
    """The default generator as a way to paint shapes of one class of defects."""
    kind = np.eye(classes, dtype=np.float32)[index][None]

    def paint(ground: Floats, strength: Floats, drawn: Floats, rng: np.random.Generator) -> Floats:
        at = np.nonzero(strength[..., 0])
        rows, columns = (_span(places, length) for places, length in zip(at, strength.shape[:2], strict=True))
        seen, shape, lines = (field[rows, columns] for field in (ground, strength, drawn))
        # To multiples, as the network halves and doubles.
        more = [(0, -length % MULTIPLE_PX) for length in shape.shape[:2]]
        noise = rng.standard_normal((1, LATENT)).astype(np.float32)
        seen = np.pad(seen, (*more, (0, 0)), mode="symmetric")
        shape, lines = np.pad(shape, (*more, (0, 0))), np.pad(lines, (*more, (0, 0)))
        grain = rng.standard_normal((1, *shape.shape)).astype(np.float32)
        # Called, not predicted with: for each size of picture that would be compiled anew.
        _, painted = generator([noise, kind, seen[None], shape[None], lines[None], grain], training=False)
        difference = np.zeros_like(ground)
        inside = difference[rows, columns]
        inside[:] = ops.convert_to_numpy(painted)[0, : inside.shape[0], : inside.shape[1]]
        return difference

    return paint


@dataclass(frozen=True, slots=True, eq=False)
class _Window:
    """A square of `PATCH_PX` of a picture with a defect.

    Attributes:
        pixels, ground: `[64, 64, channels]` in 0..1, with the defect and without.
        mask: `[64, 64, 1]`, 0 or 1.
        sketch: `[64, 64, 1]`, −1, 0 or 1.
        place: where it lies in its picture, down and across; 0: at the first edge, 1: at the other.
    """

    pixels: Floats
    ground: Floats
    mask: Floats
    sketch: Floats
    place: tuple[float, float]


@dataclass(frozen=True, slots=True, eq=False)
class _Sight:
    """A picture with a defect, at least as large as a window.

    Attributes:
        pixels, ground: `[height, width]` or `[height, width, 3]`, with the defect and without.
        mask: `[height, width]`.
        sketch: `[height, width, 1]`.
    """

    pixels: Pixels
    ground: Pixels
    mask: Mask
    sketch: Floats

    @classmethod
    def of(cls, marked: Marked) -> "_Sight":
        """Of a picture as it is stored."""
        ground = paint_over(marked.pixels, marked.mask)
        drawn = sketch(_scaled(marked.pixels) - _scaled(ground), marked.mask.astype(np.float32)[..., None])
        wide = _at_least_a_window
        return cls(wide(marked.pixels), wide(ground), wide(marked.mask), wide(drawn))

    def window(self, rng: np.random.Generator) -> _Window:
        """One around any pixel of the defect."""
        at = np.argwhere(self.mask)
        middle = at[int(rng.integers(len(at)))] + rng.integers(-PATCH_PX // 3, PATCH_PX // 3 + 1, 2)
        room = np.array(self.mask.shape) - PATCH_PX
        top, left = (int(value) for value in np.clip(middle - PATCH_PX // 2, 0, room))
        share = [float(corner / most) if most else 0.5 for corner, most in zip((top, left), room, strict=True)]
        rows, columns = slice(top, top + PATCH_PX), slice(left, left + PATCH_PX)
        mask = self.mask[rows, columns].astype(np.float32)[..., None]
        fields = [_scaled(self.pixels[rows, columns]), _scaled(self.ground[rows, columns]), mask]
        fields.append(self.sketch[rows, columns])
        for axis in (0, 1):
            if rng.random() < 0.5:  # noqa: PLR2004
                fields = [np.flip(field, axis) for field in fields]
                share[axis] = 1 - share[axis]
        pixels, ground, shape, drawn = map(np.ascontiguousarray, fields)
        return _Window(pixels, ground, shape, drawn, (share[0], share[1]))


def _scaled(pixels: Pixels) -> Floats:
    scaled = np.asarray(pixels / np.float32(255), np.float32)
    return scaled if scaled.ndim == 3 else scaled[..., None]  # noqa: PLR2004


def _at_least_a_window(field: Field) -> Field:
    """Mirrored beyond its edges where it is smaller than a window; `[height, width, …]`."""
    more = [(0, max(0, PATCH_PX - length)) for length in field.shape[:2]]
    more += [(0, 0)] * (field.ndim - 2)
    return np.pad(field, more, mode="symmetric") if any(extra for _, extra in more) else field


def _span(places: npt.NDArray[np.int64], length: int) -> slice:
    """From the first to the last place, at least a window where there is room for one."""
    first, last = int(places.min()), int(places.max()) + 1
    grow = max(0, PATCH_PX - (last - first))
    first = max(0, min(first - grow // 2, length - PATCH_PX))
    return slice(first, min(max(last, first + PATCH_PX), length))


def _painted(paint: Paint, ground: Floats, window: _Window, rng: np.random.Generator) -> Floats:
    strength = soften(window.mask)
    return np.asarray(np.clip(ground + strength * paint(ground, strength, window.sketch, rng), 0, 1), np.float32)


def _repainted(real: Any, painted: Any) -> Any:
    """Mean absolute difference where the defect is; the mask stands behind the pixels of both."""
    apart = ops.sum(ops.abs(real[..., :-1] - painted[..., :-1]), axis=(1, 2, 3))
    return REPAINT * ops.mean(apart / (ops.sum(real[..., -1], axis=(1, 2)) + 1))


def _fooled(_: Any, score: Any) -> Any:
    return -ops.mean(score)


def _hinge_real(_: Any, score: Any) -> Any:
    return ops.mean(ops.relu(1.0 - score))


def _hinge_drawn(_: Any, score: Any) -> Any:
    return ops.mean(ops.relu(1.0 + score))


def _textbook_fooled(_: Any, score: Any) -> Any:
    """−log D(G(z))."""
    return ops.mean(ops.softplus(-score))


def _textbook_real(_: Any, score: Any) -> Any:
    """−log D(x)."""
    return ops.mean(ops.softplus(-score))


def _textbook_drawn(_: Any, score: Any) -> Any:
    """−log(1 − D(G(z)))."""
    return ops.mean(ops.softplus(score))
