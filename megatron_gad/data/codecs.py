"""Who reads the texts of a run."""

from dataclasses import dataclass

from megatron_gad.data.chat import ChatCodec


@dataclass(frozen=True)
class Codecs:
    """The codecs of a run, and the folders whose tokenizers they use.

    student: reads prompts and responses, the teacher's and the student's.
    scorer: of a discriminator whose tokenizer reads otherwise; None: it reads the student's ids.
    """

    student: ChatCodec
    student_folder: str
    scorer: ChatCodec | None = None
    scorer_folder: str = ""

    @property
    def folders(self) -> tuple[str, ...]:
        """The folders that decide about the ids."""
        return tuple(folder for folder in (self.student_folder, self.scorer_folder) if folder)
