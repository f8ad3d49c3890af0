"""LayerNorm and BatchNorm tuning: losses, sets, keys, selection, and what must never move."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn
from torch.nn import functional

import clframe
from clframe.errors import ConfigurationError
from clframe.models import backbone_config
from clframe.strategies.batchnorm_tuning import BatchNormTuning
from clframe.strategies.layernorm_tuning import LayerNormTuning
from clframe.testing.bench import first_difference
from clframe.testing.streams import synthetic_stream
from tests.strategies.laws import assert_gradients, at_begin_of, ce, copied

KINDS = {"layer": (LayerNormTuning, "vit_tiny", {"patch": 4, "dim": 12, "depth": 2, "heads": 3}),
         "batch": (BatchNormTuning, "resnet8", {"width": 4})}  # fmt: skip
SHAPE = (1, 8, 8)
FORMS = ["two_stage", "single_stage"]


@pytest.fixture(scope="module")
def pretrained(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Any]:
    """Backbones whose weights, norms and statistics are not those that they begin with."""

    def config(kind: str) -> Any:
        _, name, options = KINDS[kind]
        file = tmp_path_factory.mktemp("weights") / "w.safetensors"
        torch.manual_seed(5)
        made = backbone_config(name, options).build(SHAPE)
        for module in made.modules():
            if isinstance(module, (nn.LayerNorm, nn.BatchNorm2d)):
                for tensor in module.state_dict().values():
                    tensor.add_(torch.rand(tensor.shape).mul(0.4).to(tensor.dtype))
        save_file({k: v.contiguous() for k, v in made.state_dict().items()}, file)
        return backbone_config(name, {**options, "weights": str(file)})

    made = {kind: config(kind) for kind in KINDS}
    return made.__getitem__


@pytest.fixture
def tuned(make, pretrained) -> Callable[..., Any]:
    def trial(kind: str = "layer", stream=None, **options):
        run = {n: options.pop(n) for n in ("head", "optimizer", "batch_size") if n in options}
        options = {"epochs": 2, **options}
        return make(KINDS[kind][0](**options), stream, backbone=pretrained(kind), epochs=None, **run)

    return trial


@pytest.fixture(scope="module")
def experienced(tmp_path_factory) -> dict[Any, Any]:
    """Finished trials by what they are of; not to be changed."""
    return {}


@pytest.fixture
def finished(tuned, experienced) -> Callable[..., Any]:
    def trial(kind: str, form: str):
        if (kind, form) not in experienced:
            placed = {"key_epochs": 0} if form == "two_stage" else {}
            experienced[kind, form] = tuned(kind, form=form, **placed).run()
        return copy.copy(experienced[kind, form])

    return trial


def loaded(strategy, values) -> nn.Module:
    """A copy of the backbone that holds the values of a set."""
    twin = copy.deepcopy(strategy.backbone)
    with torch.no_grad():
        for name, value in values.items():
            twin.get_parameter(name).copy_(value)
    return twin.eval()


def test_images(trial) -> torch.Tensor:
    maker = trial.trainer.context.test_maker
    return maker.test_input(maker.table.gather(torch.arange(len(maker.table))))


test_images.__test__ = False


def some_batch(trial):
    return next(iter(trial.trainer.context.batches(trial.stream.experiences[-1].train, batch_size=8)))


def cosines(a: torch.Tensor, b: torch.Tensor) -> np.ndarray:
    a, b = a.detach().double().numpy(), b.detach().double().numpy()
    return (a @ b.T) / (np.linalg.norm(a, axis=1)[:, None] * np.linalg.norm(b, axis=1)[None])


def masked_ce(logits: torch.Tensor, y: torch.Tensor, classes) -> float:
    z = logits.detach().double().numpy()[:, list(classes)]
    return ce(z, np.array([list(classes).index(int(label)) for label in y]))


# ---- losses


@pytest.mark.parametrize("kind", KINDS)
def test_every_loss_of_the_two_stage_form_is_the_papers(finished, kind):
    trial = finished(kind, "two_stage")
    strategy, batch = trial.strategy, some_batch(trial)
    strategy.network.eval()
    plain = strategy.backbone(batch.x)
    keys = torch.stack([k[0] for k in strategy.keys_])
    similar = cosines(plain, keys)
    assert strategy.key_loss(batch)["keys"].item() == pytest.approx(-similar[:, -1].mean(), rel=1e-5)
    own = loaded(strategy, strategy.sets_[-1])(batch.x)
    classes = trial.stream.experiences[-1].classes
    head = strategy.network.heads["stage1"]
    expected = masked_ce(head(own), batch.y, classes)
    assert strategy.norm_loss(batch)["classification"].item() == pytest.approx(expected, rel=1e-5)
    chosen = similar.argmax(1)
    mixed = torch.cat([loaded(strategy, strategy.sets_[i])(x[None]) for i, x in zip(chosen, batch.x, strict=True)])
    expected = masked_ce(strategy.network.classifier(mixed), batch.y, classes)
    assert strategy.rectification_loss(batch)["classification"].item() == pytest.approx(expected, rel=1e-5)


def queries(strategy, net: nn.Module, x: torch.Tensor) -> dict[str, torch.Tensor]:
    """What enters each norm layer of a network: its class token, or its mean over pixels."""
    found: dict[str, torch.Tensor] = {}
    handles = []
    for layer in strategy.layers():

        def keep(module, arguments, layer=layer):
            (x,) = arguments
            found[layer] = x.mean((2, 3)) if x.ndim == 4 else x[:, 0] if x.ndim == 3 else x

        handles.append(net.get_submodule(layer).register_forward_pre_hook(keep))
    net(x)
    for handle in handles:
        handle.remove()
    return found


@pytest.mark.parametrize("kind", KINDS)
def test_the_loss_of_the_single_stage_form(finished, kind):
    trial = finished(kind, "single_stage")
    strategy, batch = trial.strategy, some_batch(trial)
    strategy.network.eval()
    twin = loaded(strategy, strategy.sets_[-1])
    terms = strategy.single_stage_loss(batch)
    expected = masked_ce(strategy.network.classifier(twin(batch.x)), batch.y, trial.stream.experiences[-1].classes)
    assert terms["classification"].item() == pytest.approx(expected, rel=1e-5)
    entered = queries(strategy, twin, batch.x)
    assert list(entered) == strategy.layers()
    assert len(entered) > 4
    alike = [cosines(q, k[None]).mean() for q, k in zip(entered.values(), strategy.keys_[-1], strict=True)]
    assert terms["keys"].item() == pytest.approx(-np.mean(alike), rel=1e-5)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("kind", KINDS)
def test_gradients_equal_finite_differences(tuned, kind, form):
    trial = tuned(kind, form=form, epochs=1).run()
    strategy, batch = trial.strategy, some_batch(trial)
    network = strategy.network.double().eval()
    batch.x = batch.x.double()
    for values in strategy.sets_:
        for parameter in values.values():
            parameter.data = parameter.data.double()
    for keys in strategy.keys_:
        for key in keys:
            key.data = key.data.double()
    sets, keys = list(strategy.sets_[-1].values()), strategy.keys_[-1]
    if form == "two_stage":
        head = list(network.heads["stage1"].parameters())
        assert_gradients(lambda: strategy.norm_loss(batch)["classification"], [*sets, *head])
        for loss, trained in (
            (strategy.key_loss, keys),
            (strategy.rectification_loss, network.classifier.parameters()),
        ):
            (total,) = loss(batch).values()
            assert all(g.abs().max() > 0 for g in torch.autograd.grad(total, list(trained)))
        with pytest.raises(RuntimeError, match="not have been used"):
            torch.autograd.grad(strategy.rectification_loss(batch)["classification"], sets)
        return
    assert_gradients(
        lambda: strategy.single_stage_loss(batch)["classification"], [*sets, *network.classifier.parameters()]
    )
    alike = strategy.single_stage_loss(batch)["keys"]
    assert all(g is None for g in torch.autograd.grad(alike, sets, allow_unused=True, retain_graph=True))
    assert all(g.abs().max() > 0 for g in torch.autograd.grad(alike, keys))


# ---- what trains when, and what never does


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("kind", KINDS)
def test_the_network_stays_bit_identical_and_old_sets_too(tuned, kind, form):
    trial, kept = tuned(kind, form=form), []
    before = copied(trial.strategy.network.branches)

    def remember(experience):
        strategy = trial.strategy
        kept.append([[p.detach().clone() for p in [*s.values(), *k]]
                     for s, k in zip(strategy.sets_, strategy.keys_, strict=True)])  # fmt: skip

    trial.before("after_experience", remember).run()
    assert any("running" in name for name in before) == (kind == "batch")
    assert first_difference(before, dict(trial.strategy.network.branches.state_dict())) is None
    assert [len(k) for k in kept] == [1, 2, 3]
    assert first_difference(kept[0][0], kept[2][0]) is None
    assert first_difference(kept[1], kept[2][:2]) is None
    places = {p.untyped_storage().data_ptr() for s in trial.strategy.sets_ for p in s.values()}
    network = {p.untyped_storage().data_ptr() for p in trial.strategy.network.parameters()}
    assert len(places) == sum(map(len, trial.strategy.sets_))
    assert not places & network
    for one, other in zip(trial.strategy.sets_, trial.strategy.sets_[1:], strict=False):
        assert all(not torch.equal(one[n], other[n]) for n in one)


@pytest.mark.parametrize("kind", KINDS)
def test_a_set_starts_from_the_one_before(tuned, kind):
    trial, starts, ends = tuned(kind), [], []
    pretrained = copied(trial.strategy.network.branches[0])

    def values(found):
        return lambda _: found.append({n: p.detach().clone() for n, p in trial.strategy.sets_[-1].items()})

    at_begin_of(trial, "keys", values(starts))
    trial.before("after_experience", values(ends)).run()
    assert set(starts[0]) < set(pretrained)
    assert first_difference(starts[0], {n: pretrained[n] for n in starts[0]}) is None
    assert first_difference(starts[1:], ends[:-1]) is None


def test_each_stage_trains_its_own_parts_alone(tuned):
    trial, states = tuned(), []

    def look(_):
        strategy = trial.strategy
        states.append({
            "key": [k[0].detach().clone() for k in strategy.keys_],
            "set": [p.detach().clone() for s in strategy.sets_ for p in s.values()],
            "stage1": copied(strategy.network.heads["stage1"]),
            "classifier": copied(strategy.network.classifier),
        })  # fmt: skip

    for phase in ("keys", "norms", "rectify"):
        at_begin_of(trial, phase, look)
    trial.before("after_experience", look).run()
    for first in range(0, len(states), 4):
        pairs = zip(states[first : first + 3], states[first + 1 : first + 4], strict=True)
        changed = [{k for k in a if first_difference(a[k], b[k]) is not None} for a, b in pairs]
        assert changed == [{"key"}, {"set", "stage1"}, {"classifier"}]


def test_the_throw_away_head_begins_as_a_copy_and_is_kept(tuned):
    trial, ends = tuned(head={"name": "cosine"}), []

    def compare(experience):
        rows, old = trial.strategy.network.heads["stage1"].weight, experience.classes[0]
        assert torch.equal(rows[old:], trial.strategy.network.classifier.weight[old:])
        if ends:
            assert torch.equal(rows[:old], ends[-1])
            assert not torch.equal(rows[:old], trial.strategy.network.classifier.weight[:old])

    at_begin_of(trial, "keys", compare)
    trial.before(
        "after_experience", lambda _: ends.append(trial.strategy.network.heads["stage1"].weight.detach().clone())
    )
    trial.run()
    assert len(ends) == 3


@pytest.mark.parametrize("kind", KINDS)
def test_the_trained_key_goes_to_its_closed_form(tuned, kind):
    options = {"stream": synthetic_stream(experiences=[[0, 1]]), "epochs": 1}
    trained, placed = (
        tuned(kind, key_epochs=n, optimizer={"lr": 0.5}, batch_size=12, **options).run().strategy for n in (60, 0)
    )
    features = functional.normalize(placed.run.features(placed.run.stream.experiences[0].train), dim=1)
    optimum = functional.normalize(features.mean(0), dim=0)
    assert torch.allclose(placed.keys_[0][0], optimum, atol=1e-6)
    assert functional.cosine_similarity(trained.keys_[0][0], optimum, dim=0) > 0.9999
    phases = [p.name for p in placed.phases(placed.run.stream.experiences[0])]
    assert phases == ["norms", "rectify"]


def test_stages_have_their_lengths_and_rates(tuned):
    trial = tuned(epochs=3, key_epochs=1, head_epochs=2, head_lr=0.004).run()
    epochs = [v for kind, v in trial.recorder.events if kind == "epoch" and v["experience"] == 2]
    assert [e["phase"] for e in epochs] == ["keys"] + ["norms"] * 3 + ["rectify"] * 2
    assert [e["lr"] for e in epochs] == [0.05] * 4 + [0.004] * 2


@pytest.mark.parametrize(("kind", "form"), [("layer", "two_stage"), ("batch", "two_stage"), ("layer", "single_stage")])
def test_trained_parameters_are_counted_in_the_log(tuned, kind, form):
    trial = tuned(kind, form=form, epochs=1).run()
    strategy = trial.strategy
    events = [v for name, v in trial.recorder.events if name == "epoch"]
    channels = [4, 4, 4, 8, 8, 16, 16] if kind == "batch" else [12] * 5
    dim = strategy.network.feature_dim
    assert strategy.parameter_counts() == {
        "norms": 2 * sum(channels),
        "keys": dim if form == "two_stage" else sum(channels),
    }
    for t in range(3):
        head, norms = 2 * (t + 1) * (dim + 1), 2 * sum(channels)
        found = [e["parameters"] for e in events if e["experience"] == t + 1]
        assert found == ([dim, norms + head, head] if form == "two_stage" else [norms + sum(channels) + head])


def test_the_papers_number_of_parameters():
    with torch.device("meta"):
        vit = backbone_config("vit_tiny", {"dim": 768, "patch": 16, "heads": 12, "depth": 12}).build((3, 32, 32))
    assert sum(vit.get_parameter(n).numel() for n in LayerNormTuning.names_in(vit)) == 38_400
    resnet = backbone_config("resnet32", {}).build((3, 32, 32))
    assert sum(resnet.get_parameter(n).numel() for n in BatchNormTuning.names_in(resnet)) == 2_272


# ---- choosing and predicting


@pytest.mark.parametrize("kind", KINDS)
def test_every_sample_is_computed_under_its_own_set(finished, kind):
    trial = finished(kind, "two_stage")
    strategy, x = trial.strategy, test_images(trial)
    with torch.no_grad():
        chosen = cosines(strategy.backbone(x), torch.stack([k[0] for k in strategy.keys_])).argmax(1)
        assert len(set(chosen.tolist())) > 1
        features = torch.cat([loaded(strategy, strategy.sets_[i])(one[None]) for i, one in zip(chosen, x, strict=True)])
        heads = strategy.predict(x)
    for name in ("classifier", "stage1"):
        assert torch.allclose(heads[name], strategy.network.heads[name](features), atol=1e-5)
    assert not torch.allclose(heads["classifier"], strategy.network(x).logits, atol=1e-3)
    inside = [[c in strategy.classes_[i] for c in range(6)] for i in chosen]
    assert torch.equal(heads["selected"] > -torch.inf, torch.tensor(inside))
    assert torch.equal(heads["selected"][torch.tensor(inside)], heads["classifier"][torch.tensor(inside)])


@pytest.mark.parametrize("kind", KINDS)
def test_every_norm_layer_chooses_for_itself(finished, kind):
    trial = finished(kind, "single_stage")
    strategy, x, seen = trial.strategy, test_images(trial)[:9], []
    for image in x:  # alone, layer by layer: choose by what enters, then load that layer's values
        twin, choices = copy.deepcopy(strategy.backbone).eval(), []
        for place, layer in enumerate(strategy.layers()):
            with torch.no_grad():
                entered = queries(strategy, twin, image[None])[layer]
                best = int(cosines(entered, torch.stack([k[place] for k in strategy.keys_])).argmax())
                choices.append(best)
                for name in ("weight", "bias"):
                    twin.get_parameter(f"{layer}.{name}").copy_(strategy.sets_[best][f"{layer}.{name}"])
        seen.append((twin(image[None]), choices))
    assert any(len(set(choices)) > 1 for _, choices in seen)
    with torch.no_grad():
        features, last = strategy.features_of(x)
    assert torch.allclose(features, torch.cat([f for f, _ in seen]), atol=1e-5)
    assert last.tolist() == [choices[-1] for _, choices in seen]


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("kind", KINDS)
def test_sets_of_pretrained_values_leave_the_network_as_it_is(tuned, kind, form):
    trial = tuned(kind, form=form, epochs=1).run()
    strategy, x = trial.strategy, test_images(trial)
    with torch.no_grad():
        for values in strategy.sets_:
            for name, value in values.items():
                value.copy_(strategy.backbone.get_parameter(name))
        assert torch.allclose(strategy.predict(x)["classifier"], strategy.network(x).logits, atol=1e-5)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("kind", KINDS)
def test_a_prediction_does_not_depend_on_the_batch(finished, kind, form):
    trial = finished(kind, form)
    x = test_images(trial)
    with torch.no_grad():
        whole = trial.strategy.predict(x)
        for order in (torch.arange(len(x)).flip(0), torch.randperm(len(x), generator=torch.Generator().manual_seed(1))):
            for size in (1, 5):
                parts = [trial.strategy.predict(x[rows]) for rows in order.split(size)]
                for name, scores in whole.items():
                    assert torch.allclose(torch.cat([p[name] for p in parts]), scores[order], atol=1e-5), name


def test_selection_accuracy_is_the_task_identification_of_the_head_selected(tuned, tmp_path, pretrained):
    stream = synthetic_stream(test_per_class=10)
    strategy = {"name": "layernorm_tuning", "epochs": 1, "key_epochs": 0}
    run = clframe.run(scenario=stream, strategy=strategy, backbone=pretrained("layer"), run_dir=tmp_path / "run",
                      progress=False, device="cpu", precision="fp32", optimizer={"lr": 0.05})  # fmt: skip
    found = run.metric("task_identification", head="selected")
    images = stream.test.gather(torch.arange(len(stream.test)))
    x = run.strategy.run.test_maker.test_input(images)
    with torch.no_grad():
        _, chosen = run.strategy.features_of(x)
    assert found[-1] == pytest.approx((chosen == stream.test.targets // 2).double().mean().item())
    assert 1 / 3 < found[-1] < 1


@pytest.mark.parametrize("form", FORMS)
def test_a_task_id_decides(tuned, form):
    trial = tuned(stream=synthetic_stream(setting="task"), form=form).run()
    strategy, x = trial.strategy, test_images(trial)
    ids = torch.arange(len(x)) % 3
    with torch.no_grad():
        heads = strategy.predict(x, ids)
        for t in range(3):
            features = loaded(strategy, strategy.sets_[t])(x[ids == t])
            assert torch.allclose(heads["classifier"][ids == t], strategy.network.classifier(features), atol=1e-5)
        assert torch.equal(strategy.features_of(x[:2], torch.tensor([7, -1]))[1], torch.tensor([2, 2]))
    assert "selected" not in heads


def test_rectification_sees_the_sets_that_inference_chooses(tuned):
    trial, used = tuned(key_epochs=0), []
    inner = trial.strategy.features_of

    def watched(x, task_ids=None):
        features, chosen = inner(x, task_ids)
        if torch.is_grad_enabled() is False and trial.trainer.position.phase == 1:
            used.append(chosen)
        return features, chosen

    trial.strategy.features_of = watched
    trial.run()
    assert len(torch.cat(used).unique()) == 3


def test_a_model_comes_back_without_its_weights_file(tmp_path, pretrained):
    config = pretrained("layer")
    weights = tmp_path / "moved.safetensors"
    weights.write_bytes(Path(config.weights).read_bytes())
    backbone = {"name": "vit_tiny", **KINDS["layer"][2], "weights": str(weights)}
    stream = synthetic_stream()
    run = clframe.run(scenario=stream, strategy={"name": "layernorm_tuning", "epochs": 1}, backbone=backbone,
                      run_dir=tmp_path / "run", progress=False, device="cpu", precision="fp32")  # fmt: skip
    kept = np.load(run.path / "predictions" / "test" / "0003-classifier.npz")
    weights.unlink()
    images = stream.test.gather(torch.from_numpy(kept["sample"]))
    names = clframe.load(run.path).predict(images.numpy())
    assert names == [stream.class_names[k] for k in kept["predicted"]]


@pytest.mark.parametrize("stop_after", [2, 7, 11, 14, 20, 25, 31])
def test_it_resumes_inside_every_stage(resumes, pretrained, stop_after):
    resumes(LayerNormTuning(epochs=2), stop_after, backbone=pretrained("layer"), epochs=None)


# ---- refusals


@pytest.mark.parametrize(
    ("options", "config", "sentence"),
    [
        ({}, {"head": {"name": "multi"}}, "head.name: LayerNormTuning needs one classifier"),
        ({"form": "single_stage", "key_epochs": 0}, {}, "strategy.key_epochs: the form single_stage has no such stage"),
        ({"form": "single_stage", "head_lr": 0.1}, {}, "strategy.head_lr: .*expected none, received 0.1"),
        ({}, {"backbone": "resnet8"}, "needs a backbone with LayerNorm"),
        ({}, {"backbone": "vit_tiny"}, "needs a backbone with weights: give --backbone.weights FILE"),
    ],
)
def test_what_makes_no_sense_is_refused(make, pretrained, options, config, sentence):
    with pytest.raises(ConfigurationError, match=sentence):
        make(LayerNormTuning(**options), **{"backbone": pretrained("layer"), **config})


def test_batchnorm_tuning_needs_batchnorm(make, pretrained):
    with pytest.raises(ConfigurationError, match="needs a backbone with BatchNorm, such as resnet32"):
        make(BatchNormTuning(), backbone=pretrained("layer"))
    with pytest.raises(ConfigurationError, match="task-incremental streams, not domain"):
        make(
            BatchNormTuning(),
            synthetic_stream(setting="domain", experiences=[[0, 1]] * 2),
            backbone=pretrained("batch"),
        )


class Bare(nn.Module):
    """A network whose LayerNorm has no parameters."""

    pretrained = True

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(64, elementwise_affine=False)

    def forward(self, x):
        return self.norm(x.flatten(1))


def test_norms_without_parameters_are_refused(make, tmp_path):
    save_file({"nothing": torch.zeros(1)}, tmp_path / "w.safetensors")
    config = backbone_config(Bare)
    type(config).pretrained = True
    with pytest.raises(ConfigurationError, match="tunes the scale and shift of LayerNorm layers"):
        make(LayerNormTuning(), backbone=config)
