"""Answers as they arrive, each on the disk before the next question."""

import asyncio
from datetime import datetime, timezone
from typing import Any

from megatron_gad.data.conversation import Answer as TeacherAnswer
from megatron_gad.data.teacher.response_file import ResponseFile
from megatron_gad.data.teacher.wanted import RowKey
from megatron_gad.engines.asking.pool import Question
from megatron_gad.engines.asking.reply import Answer


class Collection:
    """Stores answers that can be learned from, as data/ judges them.

    num_empty: number of answers without text.
    num_truncated: number of stored answers that hit the endpoint's length cap.
    """

    def __init__(self, file: ResponseFile) -> None:
        """Store in an open file."""
        self.num_empty = 0
        self.num_truncated = 0
        self._file = file
        self._pending: list[dict[str, Any]] = []
        self._writing = asyncio.Lock()

    async def keep(self, question: Question[RowKey], answer: Answer) -> str:
        """Store an answer, or return why it is not stored."""
        if not answer.text.strip():
            self.num_empty += 1
            thoughts = ", after reasoning alone: raise max_tokens" if answer.reasoning else ""
            return f"empty response, finish_reason {answer.finish_reason or 'unknown'}{thoughts}"
        ending = TeacherAnswer(answer.text, finish_reason=answer.finish_reason).ending
        if ending == "failed":
            number = len(answer.text)
            return f"broken off after {number} characters, finish_reason {answer.finish_reason}"
        await self._store(_row(question, answer))
        self.num_truncated += ending == "cut"
        return ""

    async def _store(self, row: dict[str, Any]) -> None:
        """Return when the row is on the disk; rows that arrive meanwhile share one write."""
        self._pending.append(row)
        async with self._writing:
            rows, self._pending = self._pending, []
            if rows:
                await asyncio.to_thread(self._file.append, rows)


def _row(question: Question[RowKey], answer: Answer) -> dict[str, Any]:
    target = question.endpoint.target
    return {
        "id": question.key.id,
        "answer": question.key.answer,
        "content": question.messages,
        "teacher_response": answer.text,
        "reasoning_content": answer.reasoning,
        "finish_reason": answer.finish_reason,
        "model": target.model,
        "answered_by": answer.model,
        "endpoint": target.address,
        "reply_id": answer.reply_id,
        "time": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "prompt_tokens": answer.prompt_tokens,
        "completion_tokens": answer.completion_tokens,
    }
