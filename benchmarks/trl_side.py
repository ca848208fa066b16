"""Steps of TRL's GRPO with a discriminator that learns in the reward function; see ``against_trl``.

Arguments: folder of the game, rows of a microbatch. Needs TRL, and nothing of this package.
"""

import json
import sys
import time
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from torch import Tensor
from torch.nn.functional import softplus
from torch.nn.utils.rnn import pad_sequence
from transformers import AutoModelForSequenceClassification, AutoTokenizer, TrainerCallback
from trl import GRPOConfig, GRPOTrainer  # pyright: ignore[reportMissingImports]

from benchmarks.game import KL_COEF, LEARNING_RATE, read_game

MOST_STEPS = 10_000


class Discriminator:
    """Scores responses, and learns from them in the same pass, a few groups at a time."""

    def __init__(self, folder: Path, rollouts: int, groups_at_once: int) -> None:
        self.tokenizer = AutoTokenizer.from_pretrained(folder / "model")
        self.model = AutoModelForSequenceClassification.from_pretrained(
            folder / "model", num_labels=1
        )
        self.optimizer = torch.optim.AdamW(self.model.parameters(), LEARNING_RATE, fused=True)
        self.rollouts, self.groups_at_once = rollouts, groups_at_once
        self.__name__ = "discriminator"

    def __call__(
        self,
        prompts: list[str],
        completion_ids: list[list[int]],
        teacher_response: list[str],
        **_others: Any,
    ) -> list[float]:
        """Return the scores from before the update; a group's rows are adjacent."""
        starts, scores = range(0, len(prompts), self.rollouts), []
        self.optimizer.zero_grad()
        for at in range(0, len(starts), self.groups_at_once):
            rows = []
            chosen = starts[at : at + self.groups_at_once]
            for start in chosen:
                prompt = self.tokenizer(prompts[start])["input_ids"]
                teacher = self.tokenizer(teacher_response[start])["input_ids"]
                responses = [
                    [*teacher, self.tokenizer.eos_token_id],
                    *completion_ids[start : start + self.rollouts],
                ]
                rows += [torch.tensor(prompt + response) for response in responses]
            values = self._score(rows).view(len(chosen), -1)
            loss = softplus(values[:, 1:] - values[:, :1]).sum() / len(prompts)
            loss.backward()
            scores += values[:, 1:].flatten().tolist()
        self.optimizer.step()
        return scores

    def _score(self, rows: list[Tensor]) -> Tensor:
        """Return [R] scores."""
        tokens = pad_sequence(rows, batch_first=True, padding_value=self.tokenizer.pad_token_id)
        mask = tokens != self.tokenizer.pad_token_id
        return self.model(tokens, attention_mask=mask, use_cache=False).logits.squeeze(-1)


class Turns(TrainerCallback):
    """Waits before each step until it is asked for, and tells how long it took."""

    def __init__(self, report: Any) -> None:
        self.report = report
        self.start = 0.0

    def on_train_begin(self, *_arguments: Any, **_others: Any) -> None:
        """Tell that steps may be asked for."""
        print("ready", file=self.report, flush=True)

    def on_step_begin(self, _args: Any, _state: Any, control: Any, **_others: Any) -> None:
        """Wait for a line; without one, stop."""
        if not sys.stdin.readline():
            control.should_training_stop = True
        self.start = time.perf_counter()

    def on_step_end(self, _args: Any, _state: Any, _control: Any, **_others: Any) -> None:
        """Tell the seconds."""
        found = {"seconds": time.perf_counter() - self.start}
        print(json.dumps(found), file=self.report, flush=True)


def main() -> None:
    """Build the trainer, and let it take a step whenever one is asked for."""
    folder, rows = Path(sys.argv[1]), int(sys.argv[2])
    game, report = read_game(folder), sys.stdout
    sys.stdout = sys.stderr
    data = [json.loads(line) for line in (folder / "train.jsonl").read_text().splitlines()]
    prompts = [f"<user> {row['content'][0]['content']} <assistant>" for row in data]
    columns = {"prompt": prompts, "teacher_response": [row["teacher_response"] for row in data]}
    config = GRPOConfig(
        output_dir=str(folder / "trl"),
        use_cpu=True,
        bf16=False,
        gradient_checkpointing=False,
        per_device_train_batch_size=rows,
        gradient_accumulation_steps=game.num_rows // rows,
        num_generations=game.rollouts,
        max_completion_length=game.response_tokens,
        generation_kwargs={"min_new_tokens": game.response_tokens},
        beta=KL_COEF,
        learning_rate=LEARNING_RATE,
        max_steps=MOST_STEPS,
        save_strategy="no",
        logging_steps=MOST_STEPS,
        report_to=[],
        dataloader_pin_memory=False,
    )
    trainer = GRPOTrainer(
        model=str(folder / "model"),
        reward_funcs=Discriminator(folder, game.rollouts, max(1, rows // game.rollouts)),
        args=config,
        train_dataset=Dataset.from_dict(columns),
        processing_class=AutoTokenizer.from_pretrained(folder / "model"),
        callbacks=[Turns(report)],
    )
    trainer.train()


if __name__ == "__main__":
    main()
