"""What raters of a study read. All arms read the same, but for what is beside the photograph."""

from __future__ import annotations

CONSENT = """\
You are asked whether a label describes what a photograph shows. This is a study of how people judge the \
labels that computer programs give to photographs. Your answers are analysed and published with a random \
name in place of yours.

Taking part is your choice. You can stop at any time, with the link at the top of the page, and you can \
withdraw all your answers until the study is frozen for publication. Nothing about you is stored but your \
answers, the time they took, and when you gave them. The photographs come from the internet; a few may be \
unpleasant.

Not everything about the study can be said before, since it could change how you answer. You are told all of \
it at the end, and can then still withdraw."""

INSTRUCTIONS = """\
You see one photograph and one label with its meaning. The label was suggested by a computer program, which \
may be right or wrong. Does the label apply to something in the photograph?

Yes: the thing is there, even if it is small, in the background, or one of several things.
No: it is not there.

Judge what is in the photograph, not what it is mainly about. A toy, a statue or a drawing of the thing \
counts as the thing unless the meaning says otherwise. Take the time you need, and go by what you see."""

NOTES = {
    "none": "",
    "feature": (
        "Beside the photograph you see it once more under colours: yellow where the program found most that "
        "speaks for the label, blue where it found nothing. Look at both, then answer for the photograph."
    ),
    "example": (
        "Beside the photograph you see other photographs with the same label, for comparison. "
        "Look at both, then answer for the photograph."
    ),
}

CAPTIONS = {
    "none": "",
    "feature": "Yellow: speaks most for the label",
    "example": "Other photographs with this label",
}

RIGHT = "The label applies to this photograph."
WRONG = "The label does not apply to this photograph."

DEBRIEFING = """\
Not everything could be said at the start, since it would have changed how you answer. Here is the rest.

Some of the photographs were altered by a computer, so slightly that it is hard to see, in a way that makes \
a program take them for something else; their label is what the program then said. Others were not altered: \
their label was one that people accept, or one that is plainly wrong. A few questions with plain answers \
were there to see whether people pay attention.

Some people saw the photograph alone, others saw beside it where the program looked, or other photographs \
with the same label. We compare how often people then agree with the program. It was never a test of you, \
and most of these questions have no answer that is right for everybody.

If you would rather not have your answers used now that you know this, withdraw them below."""
