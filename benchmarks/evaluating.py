"""Evaluation users per second (encode, mask, rank, top-K), beside a bare matrix product with top-k of ready vectors."""

import torch

from benchmarks.measure import Comparison, take_turns
from sharding.world import World
from trainer.config.job import Channel, Job
from trainer.data.dataset.manifest import read_manifest
from trainer.evaluation.next_item.evaluate import make_evaluator
from trainer.loop.build import build_model


def compare(argument: tuple[Job, int], world: World, channel: Channel) -> Comparison:
    job, turns = argument
    manifest = read_manifest(job.dataset_dir)
    built = build_model(job, manifest, world)
    model = built.model
    evaluator = make_evaluator(
        job.dataset_dir,
        manifest,
        built.catalogue,
        "test",
        job.config.evaluate,
        job.config.model.max_history,
        world,
        built.dynamic,
    )
    top = max(job.config.evaluate.ks)
    cpus = torch.get_num_threads() * world.world_size
    users = torch.randn(manifest.num_rows, job.config.tables["item"].dim)
    items = torch.randn(manifest.counts.num_items, job.config.tables["item"].dim)

    def ours() -> None:
        for _ in evaluator.rank_all(model, top):
            pass
        world.barrier()

    def ceiling() -> None:
        if world.is_first:
            torch.set_num_threads(cpus)
            for block in users.split(job.config.evaluate.batch_size):
                (block @ items.T).topk(top, dim=1)
            torch.set_num_threads(cpus // world.world_size)
        world.barrier()

    name = f"evaluate, {world.world_size} worker{'s' if world.world_size > 1 else ''}"
    label = f"bare product and top-{top} of ready vectors, {cpus} threads"
    return take_turns(name, "users/s", manifest.num_rows, ours, ceiling, label, turns)
