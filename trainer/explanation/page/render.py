"""explain.html: one self-contained page of explanations, from the files of a folder alone."""

from collections.abc import Sequence
from pathlib import Path

from trainer.config.job import Job
from trainer.data.dataset.manifest import Manifest
from trainer.evaluation.run_header import model_text, moment_of
from trainer.explanation.aggregates.groups import Grouping
from trainer.explanation.aggregates.sums import AttentionSums
from trainer.explanation.command.folder import ExplanationsManifest
from trainer.explanation.page.attention import HEADINGS, shown_attention
from trainer.explanation.page.trust import Trust
from trainer.explanation.page.users import shown_users
from trainer.pages import page
from trainer.pages.text import duration_text

_INTEGRATED = "The value of an event is its part of the difference in score to {}, by integrated gradients."
METHODS = {
    "occlusion": "The value of an event is the fall of the score when the event is left out.",
    "attention": "The value of an event is the attention weight that it gets, the mean over the heads of the last block.",
    "rollout": "The value of an event is its attention through all blocks, with the residual connections.",
    "gradient_x_input": "The value of an event is its vector times the gradient of the score.",
    "integrated_gradients_zero": _INTEGRATED.format("a history of empty vectors"),
    "integrated_gradients_mean": _INTEGRATED.format("a history of average events"),
    "integrated_gradients_sampled": _INTEGRATED.format("real histories of other users"),
}
REMOVALS = {
    "deleted": "Removing an event deletes it: the other events close the gap and keep their times.",
    "masked": "Removing an event empties its vector: its place and its time stay.",
    "replaced": "Removing an event puts an event of another user in its place, at the same time.",
}


def render(
    job: Job,
    manifest: Manifest,
    folder: Path,
    described: ExplanationsManifest,
    trust: Trust,
    attention: AttentionSums | None,
    groupings: Sequence[Grouping],
) -> str:
    """Return the page.

    Args:
        job: the run.
        manifest: the manifest of its dataset.
        folder: the folder of explanations, with its tables.
        described: what the folder holds.
        trust: how faithful the method is.
        attention: sums over all explained users; None for a model without attention.
        groupings: the groupings of these sums.
    """
    ranks = described.task == "ranking"
    users = shown_users(job, manifest, folder, described.options["shown"], ranks)
    return page.render(
        Path(__file__).parent,
        "explain.html.j2",
        title=f"Why {job.run_dir.name} recommends what it recommends",
        header=_header(job, manifest, described),
        trust=trust,
        users=users,
        described=described,
        ranks=ranks,
        methods=[(name, METHODS.get(name, "")) for name in described.methods],
        why_method=described.why_method,
        removal=_removal_text(described),
        attention=None if attention is None else shown_attention(attention, groupings),
        attention_headings=HEADINGS,
    )


def _removal_text(described: ExplanationsManifest) -> str:
    """Return what removing an event means, and whether its item could then be recommended."""
    text = REMOVALS[described.options["removal"]]
    if described.task == "ranking":
        return text
    if described.options["filter_viewed"] is False:
        return f"{text} Items of the history can be recommended, too."
    return f"{text} Its item stays a viewed item, which is not recommended."


def _header(job: Job, manifest: Manifest, described: ExplanationsManifest) -> list[tuple[str, str]]:
    """Return names and values of the header."""
    without = f"; {described.num_without:,} without events were left out" if described.num_without else ""
    others = len(described.methods) - 1
    rows = [
        ("Model", model_text(job)),
        ("Checkpoint", described.checkpoint),
        ("Explained", f"{described.num_questions:,} items for {described.num_users:,} users{without}"),
        ("Method", described.methods[0].replace("_", " ") + (f", and {others} others" if others else "")),
    ]
    if described.at is not None:
        rows.append(("Asked at", moment_of(described.at, manifest)))
    workers = f"{described.num_workers} worker{'s' * (described.num_workers > 1)}"
    rows.append(("Duration", f"{duration_text(described.seconds)} on {workers}"))
    return rows
