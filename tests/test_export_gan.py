"""The network that draws defects: it trains, goes on, and says when it collapsed."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from masked_parts import write_masked_parts

from export.checkpoint import save
from export.dataset import read_dataset
from export.gan import GAN_PRESETS, LATENT, GanPreset, build_critic, build_generator
from export.samples import Dataset
from export.synthesis.make import Material, Order, gather, make
from export.synthesis.patches import PATCH_PX
from export.train_gan import CollapsedError, GanKnobs, GanTraining, checkpoint_of

pytestmark = pytest.mark.training

KNOBS = GanKnobs(minutes=5, steps=2, batch=4, look_every=100, save_every=1)


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    return read_dataset(write_masked_parts(tmp_path_factory.mktemp("real") / "parts", good=10, scratch=8))


@pytest.fixture(scope="module")
def material(dataset: Dataset) -> Material:
    return gather(dataset, [1], 0)


def name_of(knobs: GanKnobs, material: Material) -> str:
    return checkpoint_of(knobs, material.marked, [1])


def training(material: Material, knobs: GanKnobs, folder: Path | None, said: list[str]) -> GanTraining:
    goods = [pixels for _, pixels in material.goods]
    return GanTraining(material.patches, material.marked, [1], goods, 1, knobs, folder=folder, say=said.append)


def test_it_goes_on_where_it_stopped_and_draws_what_it_is_asked_for(
    dataset: Dataset, material: Material, tmp_path: Path
) -> None:
    said: list[str] = []
    first = training(material, KNOBS, tmp_path, said).train()
    assert (tmp_path / name_of(KNOBS, material)).is_file()
    again = training(material, replace(KNOBS, steps=3), tmp_path, said).train()
    assert any(line == "goes on at step 2" for line in said)
    assert len(first.weights) == len(again.weights)
    # A network that learnt for three steps changes nearly every place a little; its pictures are whole all the same.
    order = Order([1], 2, "gan", gan=replace(KNOBS, steps=3))
    for one in make(dataset, material, order, folder=tmp_path, say=said.append):
        assert one.pixels.shape == one.mask.shape
        assert one.mask.any()


@pytest.mark.parametrize("preset", GAN_PRESETS)
def test_generator_and_critic_fit_each_other(preset: GanPreset) -> None:
    generator, critic = build_generator(preset, 2, 3), build_critic(preset, 2, 3, 0)
    rng = np.random.default_rng(0)
    kind = np.eye(2, dtype=np.float32)
    ground = rng.uniform(0, 1, (2, PATCH_PX, PATCH_PX, 3)).astype(np.float32)
    inputs = [rng.standard_normal((2, LATENT)).astype(np.float32), kind, ground]
    if preset == "default":
        inputs += [rng.uniform(0, 1, (2, PATCH_PX, PATCH_PX, 1)).astype(np.float32) for _ in range(3)]
    alpha, difference = generator.predict_on_batch(inputs)
    assert alpha.shape == (2, PATCH_PX, PATCH_PX, 1)
    assert difference.shape == ground.shape
    assert 0 <= alpha.min() <= alpha.max() <= 1
    score = critic.predict_on_batch([np.concatenate([ground, alpha], axis=-1), kind])
    assert score.shape == (2, 1)


def test_a_generator_that_draws_one_patch_only_is_told(material: Material, tmp_path: Path) -> None:
    dead = [build_generator("default", 1, 1), build_generator("default", 1, 1), build_critic("default", 1, 1, 0)]
    for model in dead:
        model.set_weights([np.zeros_like(weight) for weight in model.get_weights()])
    save(tmp_path / name_of(KNOBS, material), dead, 0, KNOBS.steps, 1.0)
    one_good = replace(material, goods=[(material.goods[0][0], np.full((200, 200), 120, np.uint8))])
    with pytest.raises(CollapsedError, match=r"vary 0\.\d\d times as much as the real ones, .* another --seed"):
        training(one_good, KNOBS, tmp_path, []).train()
    # What it advises is another training, and does not go on from the collapsed one.
    assert name_of(replace(KNOBS, seed=1), material) != name_of(KNOBS, material)


def test_a_network_that_learnt_other_defects_is_not_gone_on_with(material: Material) -> None:
    held_out_now = replace(material, marked=material.marked[1:])
    first = material.marked[0]
    repainted = replace(material, marked=[replace(first, pixels=255 - first.pixels), *material.marked[1:]])
    remasked = replace(material, marked=[replace(first, mask=~first.mask), *material.marked[1:]])
    backwards = replace(material, marked=material.marked[::-1])
    names = [name_of(KNOBS, one) for one in (material, held_out_now, repainted, remasked)]
    assert len(set(names)) == 4
    assert name_of(KNOBS, backwards) == names[0]
