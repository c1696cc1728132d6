"""What the report says of each study, in words, and the figures that it is about."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple


def base(task: str) -> str:
    """The name of a task without its arguments."""
    return task.partition("(")[0]


class Figure(NamedTuple):
    """A figure that a study is about.

    Attributes:
      field: in the log.
      words: what it is.
      digits: behind the point.
      rises: whether more of it is better.
      axis: what it is called at an axis, if otherwise.
    """

    field: str
    words: str
    digits: int
    rises: bool = False
    axis: str = ""


class Chapter(NamedTuple):
    """What is said of a study, as plain text.

    Attributes:
      title: of the study.
      protocol: in words.
      figures: the first is the one that methods are compared by.
      baseline: the method that others are compared with.
      drawn: the methods in the picture.
      by_task: whether it is several tasks, of which the last figures count.
      guessing: the first figure of one who guesses, by the name of the task without arguments.
      tasks: the first figure of each task, by name without arguments, where methods were run at several
        learning rates to be compared under one budget; none for other studies.
    """

    title: str
    protocol: str
    figures: Sequence[Figure]
    baseline: str
    drawn: Sequence[str] = ()
    by_task: bool = False
    guessing: Mapping[str, float] = {}
    tasks: Mapping[str, Figure] = {}

    def figures_of(self, task: str) -> Sequence[Figure]:
        """The figures of a task, by its name in configs."""
        own = self.tasks.get(base(task))
        return self.figures if own is None else (own,)


CHAPTERS = {
    "copy": Chapter(
        "Copy task",
        """
A recurrent highway network n = 128 memorizes strings of bits whose length T* grows with its
success; batch 16, Adam 10^-3.5, the gradient of the cell clipped at norm 1, an update at every
step. The score is T*, which needs memory over T* + 1 steps. KF-RTRL, 16-OK, UORO, AVG and
16-KTP are in the papers' form: pushed at every step, the immediate derivative within the
estimate. In blocks of 8 steps the last one to eight steps are exact, and the influence is pushed
once in eight. TBPTT(L) is exact along the last L steps, with an update at every step. Exact RTRL
is too expensive for n = 128, and is compared at n = 32. The logs of 16-KTP are of 256 lanes.
"16-KTP, sampled" is this library's variant with less noise.
""",
        (
            Figure("sequence_length", "T*", 1, rises=True, axis="length of the strings, T*"),
            Figure("running_loss", "running loss, bits per character", 3),
        ),
        "TBPTT(25)",
        drawn=(
            "16-OK",
            "16-OK, blocks of 8",
            "KF-RTRL",
            "KF-RTRL, blocks of 8",
            "SnAp-1, blocks of 8",
            "UORO",
            "TBPTT(25)",
            "TBPTT(1)",
        ),
    ),
    "ptb": Chapter(
        "Penn Treebank, characters",
        """
A recurrent highway network n = 256 predicts the next character; batch 32, Adam 10^-3.5, the
gradient of the cell clipped at norm 1, an update at every step, state and influence of a lane
reset every 100 characters. Methods are named as in the copy task. All seeds read the same text;
"read from N" begins N characters further on (a lane reads 159,425 before it comes to the text of
the next), and shows how much a figure depends on the text that has just been read.
""",
        (
            Figure("running_loss", "running training loss, bits per character", 3),
            Figure("valid_loss", "validation loss, bits per character", 3),
        ),
        "TBPTT(25)",
        drawn=(
            "8-OK, blocks of 8",
            "KF-RTRL, blocks of 8",
            "UORO, blocks of 8",
            "TBPTT(25)",
            "TBPTT(5)",
            "TBPTT(1)",
            "SnAp-1, blocks of 8",
            "8-OK",
        ),
    ),
    "long": Chapter(
        "Dependencies longer than the window",
        """
An LSTM of 32 units whose forget gates start open, so that it has a memory of some 50 steps,
recalls a bit at the end of a chain of given length (memory_chain), or three symbols after a delay
(copy_fixed). Batch 16, Adam 10^-3 unless said, an update at every step. The score is the accuracy
over the last 800 steps; guessing has 0.5 on the chains and 0.125 on the symbols. TBPTT in
blocks of 8 is exact along the same steps as the others in such blocks, without an influence beyond
them; TBPTT(32) in such blocks along the last 25 to 32.
""",
        (Figure("score", "accuracy", 2, rises=True),),
        "TBPTT, blocks of 8",
        by_task=True,
        guessing={"memory_chain": 0.5, "copy_fixed": 0.125},
    ),
    "budget": Chapter(
        "What is worth its time",
        """
The same network, a recurrent highway network with n = 64, learns five tasks by each method; batch
8, Adam, the gradient of the cell clipped at norm 1, an update at every step. Each method has the
learning rate out of 10^-4, 10^-3.5, 10^-3, 10^-2.5 and 10^-2 that is best for it where it is read,
by the mean over its seeds; a rate at which a seed diverged until then is left out. Losses are those of
characters and answers before they were learned from. The time of a step is that of a run alone,
the methods taking turns in one process.
""",
        (),
        "",
        tasks={
            "copy": Figure("sequence_length", "T*", 1, rises=True),
            "penn_treebank": Figure("running_loss", "running loss, bits per character", 3),
            "adding": Figure("score", "mean square", 4),
            "copy_fixed": Figure("score", "accuracy", 2, rises=True),
            "mackey_glass": Figure("score", "normalized mean square", 6),
        },
    ),
}

# The files of experiments/results/reproduction/noise, and what they are of.
NOISE = {
    "untrained": "An untrained network",
    "copy": "A network trained on the copy task",
    "ptb": "A network trained on the Penn Treebank",
    "copy_widths": "Networks of several widths trained on the copy task",
    "ptb_widths": "Networks of several widths trained on the Penn Treebank",
}
NOISE_TITLE = "Noise"
NOISE_PROTOCOL = """
The gradient of each step's loss by each estimator against that of exact RTRL, along the stream of a
network whose parameters are held fixed: the noise, E|g̃ - g|² / |g|², and the cosine between g̃ and g,
over the second half of the steps, each with its standard error over draws. The cosine is a mean over
steps with the weights |g|: where a loss is near 0 the gradient is little but rounding. In the papers'
form the estimate includes the immediate derivative of each step; with K, the last one to K steps are
exact. What truncation and SnAp-1 leave out counts as noise here: it is their bias.
"""
# How the papers call what configs name.
PAPER_NAMES = {
    "truncated": "truncation",
    "uoro": "UORO",
    "kf_rtrl": "KF-RTRL",
    "ok(rank=8)": "8-OK",
    "ok(rank=16)": "16-OK",
    "ktp(rank=16)": "16-KTP",
    "average(kf_rtrl, copies=16)": "AVG of 16",
    "average(kf_rtrl, copies=8)": "AVG of 8",
    "snap": "SnAp-1",
}
