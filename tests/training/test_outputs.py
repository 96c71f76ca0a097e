"""A network of several outputs whose losses a training weighs, by weights that change from step to step."""

import dataclasses

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from fastcifar.data.synthetic import make_synthetic
from fastcifar.errors import UserError
from fastcifar.models import Network
from fastcifar.recipes import EnsembleConfig
from fastcifar.training import Listener, Trainer
from tests.small import BARE


@dataclasses.dataclass(frozen=True)
class NoConfig:
    pass


class TwoHeads(Network[NoConfig]):
    """Two linear classifiers of the mean colors; the first one's loss counts at every third step alone."""

    config_class = NoConfig
    head = "first"

    def build(self, config, classes):
        self.outputs, self.reported_outputs = 2, 1
        self.first, self.second = nn.Linear(3, classes), nn.Linear(3, classes)
        self.register_buffer("steps", torch.zeros(1, dtype=torch.int64))

    def unscaled(self, x):
        return self.first(x.mean((2, 3)))

    def all_outputs(self, x):
        return torch.stack([self.first(x.mean((2, 3))), self.second(x.mean((2, 3)))])

    def loss_weights(self):
        first = (self.steps % 3 == 0).float()
        self.steps.add_(1)
        return torch.cat([first, 2 - first])


@pytest.fixture(scope="module")
def data():
    return make_synthetic(96, 20)


def test_each_output_has_the_gradient_of_its_own_weight(data):
    trainer = Trainer(BARE, data, model=TwoHeads)
    network = trainer.new_network(seed=3)
    batches, losses, right = [], [], 0
    run = trainer.run(3, listeners=[Listener(on_step=lambda step, total: batches.append(step))])
    for epoch in range(3):
        trainer.state.begin_epoch(trainer.timeline.epochs[epoch])
        for position in range(6):
            batch = trainer.state.tensors.plan.batch(position, 16)
            images = batch.augment(data.train.images, mean=data.mean, std=data.std, dtype=torch.float32)
            labels, weights = batch.labels(data.train.labels), network.loss_weights()
            first, second = network(images, every=True)
            each = torch.stack([F.cross_entropy(logits, labels) for logits in (first, second)])
            losses.append(each[0].item())
            right += (first.argmax(1) == labels).sum().item()
            gradients = torch.autograd.grad((weights * each).sum(), list(network.parameters()))
            with torch.no_grad():
                for parameter, gradient in zip(network.parameters(), gradients, strict=True):
                    parameter.sub_(0.05 * gradient)
    for name, parameter in network.named_parameters():
        torch.testing.assert_close(run.state[name], parameter.detach(), rtol=1e-4, atol=1e-6)
    assert run.state["steps"].item() == 18  # whatever went before the first step left no trace
    rows = run.rows
    assert sum(row.train_loss for row in rows) / 3 == pytest.approx(sum(losses) / 18, rel=1e-5)  # of the first alone
    assert sum(row.train_accuracy for row in rows) == pytest.approx(right / 96)


def test_a_training_of_it_goes_on_from_its_state(data):
    whole, states = Trainer(BARE, data, model=TwoHeads).run(1), []
    trainer = Trainer(BARE, data, model=TwoHeads)
    trainer.run(1, listeners=[Listener(on_step=lambda step, total: states.append(trainer.state.state_dict()))])
    again = Trainer(BARE, data, model=TwoHeads).run(resume=states[7])
    assert all(torch.equal(again.state[name], whole.state[name]) for name in whole.state)


def test_it_is_no_member_of_an_ensemble(data):
    recipe = dataclasses.replace(BARE, ensemble=EnsembleConfig(2))
    with pytest.raises(UserError, match="TwoHeads is trained on several outputs already; allowed: 1 for it"):
        Trainer(recipe, data, model=TwoHeads)
