"""What an update is for: responses that score higher become likelier, and so do right verdicts."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import AutoModel, AutoModelForCausalLM

from megatron_gad.training.parallel import Parallel, shut_down
from tests.oracle.case import case
from tests.oracle.models import Scorer, load, response_logprobs
from tests.oracle.product import Product, Step, start
from tests.oracle.texts import Texts

# Steps small enough to follow the gradient, without what else moves the student.
SMALL = case(
    stages=("adversarial",),
    gad__kl_coef=0.0,
    weight_decay=0.0,
    lr_decay_style="constant",
    lr_warmup_steps=0,
    adversarial__student_lr=1e-4,
    adversarial__discriminator_lr=1e-4,
    adversarial__discriminator_samples=0,
    adversarial__extra_discriminator_steps=0,
)


@dataclass(frozen=True)
class Update:
    """A step of both models, with their weights from before and after it."""

    options: Any
    step: Step
    students: tuple[dict[str, Tensor], dict[str, Tensor]]
    discriminators: tuple[dict[str, Tensor], dict[str, Tensor]]
    texts: Texts

    def scores(self, number: int) -> tuple[Tensor, Tensor]:
        """Scores of the teacher's responses, [P, 1], and of the student's, [P, G]."""
        folder = Path(self.options["student.path"])
        scorer = Scorer(load(AutoModel, folder), self.options)
        with torch.no_grad():
            for name, value in scorer.named.items():
                value.copy_(self.discriminators[number][name])
            rows = []
            for group in self.step.groups:
                teacher, students = self.texts.read(group)
                prompt = self.texts.prompt(group.row)
                rows += [(prompt, ids) for ids in (teacher, *students)]
            scores = scorer(rows).view(len(self.step.groups), -1)
        return scores[:, :1], scores[:, 1:]

    def logprobs(self, number: int) -> Tensor:
        """Log-probabilities of the sampled responses at the temperature, [P, G]."""
        model = load(AutoModelForCausalLM, Path(self.options["student.path"]))
        model.load_state_dict(self.students[number])
        rows = [
            (self.texts.prompt(group.row), list(response.ids))
            for group in self.step.groups
            for response in group.responses
        ]
        with torch.no_grad():
            taken, _ = response_logprobs(model, rows, self.options["rollout.temperature"])
        return torch.stack([each.sum() for each in taken]).view(len(self.step.groups), -1)


@pytest.fixture(scope="module")
def place(assets: Path) -> Iterator[Parallel]:
    yield start(SMALL.options(assets, assets / "unused"))
    shut_down()


@pytest.fixture(params=["last_token", "sum"], scope="module")
def update(
    request: pytest.FixtureRequest,
    assets: Path,
    place: Parallel,
    tmp_path_factory: pytest.TempPathFactory,
) -> Update:
    """The first step of a run, on eight prompts of four responses."""
    options = SMALL.options(assets, tmp_path_factory.mktemp("run"))
    options = {
        **options,
        "discriminator.score": request.param,
        "adversarial.prompts-per-step": 8,
    }
    run = Product(options, place)
    run.begin_stage()
    before = run.weights("student"), run.weights("discriminator")
    step = run.step()
    after = run.weights("student"), run.weights("discriminator")
    run.close()
    students, discriminators = zip(before, after, strict=True)
    cap = options["data.max-response-tokens"]
    texts = Texts(Path(options["student.path"]), Path(options["data.path"]), cap)
    return Update(options, step, students, discriminators, texts)


def test_responses_that_score_higher_become_likelier_than_others(update: Update) -> None:
    _, scores = update.scores(0)
    gains = update.logprobs(1) - update.logprobs(0)
    best, worst = scores.argmax(dim=1, keepdim=True), scores.argmin(dim=1, keepdim=True)
    leads = (gains.gather(1, best) - gains.gather(1, worst))[:, 0]
    assert (leads > 0).float().mean() >= 0.75, f"leads of the best over the worst: {leads.tolist()}"
    assert leads.mean() > 0.01, f"leads of the best over the worst: {leads.tolist()}"
    assert scores.std() > 0.1


def test_the_teachers_responses_come_to_score_higher_than_the_students(update: Update) -> None:
    margins = []
    for number in (0, 1):
        teachers, students = update.scores(number)
        margins.append(teachers - students)
    gains = margins[1] - margins[0]
    assert gains.mean() > 0.01, f"gains of the margins: {gains.tolist()}"
    assert (gains > 0).float().mean() > 0.75, f"gains of the margins: {gains.tolist()}"
